"""The conformance kit of the seam: what ``core.link.protocol`` promises, tried on a protocol."""

from __future__ import annotations

from typing import Any

from freezeframe.harness.core.link.messages import LinkMessage


def plain(message: LinkMessage) -> tuple[Any, ...]:
    """The message as values that can be compared and kept: views become bytes, its session a
    number."""
    found: list[Any] = [type(message).__name__, message.session.number]
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if name != "session":
            found.append(bytes(value) if isinstance(value, memoryview) else value)
    return tuple(found)
