"""One round of a selector whose handlers close each other's ends."""

from selectors import BaseSelector


def dispatch(selector: BaseSelector, wait_s: float) -> None:
    """Call ``data(mask)`` of every end that is ready, and that no handler before it in this round
    has let go of."""
    for key, mask in selector.select(wait_s):
        held = selector.get_map().get(key.fd)
        # A new socket may have the number of one that was closed in this round: it has another
        # handler.
        if held is not None and held.data == key.data:
            key.data(mask)
