"""One round of a selector whose handlers may close each other's sockets."""

from selectors import BaseSelector


def dispatch(selector: BaseSelector, wait_s: float) -> None:
    """Call ``data(mask)`` of every ready end that no earlier handler of this round has
    unregistered."""
    for key, mask in selector.select(wait_s):
        held = selector.get_map().get(key.fd)
        # A new socket may have the number of one closed in this round; it has another handler.
        if held is not None and held.data == key.data:
            key.data(mask)
