"""What reassembly tells: ordered bytes of one direction of one TCP connection, and what became of
it."""

from __future__ import annotations

import msgspec

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.skim import Fill


class Flow(msgspec.Struct, frozen=True, eq=False):
    """One direction of one TCP connection; ``number`` tells directions apart, also when the same
    ports come again."""

    number: int
    connection: int
    """The same in both directions."""
    source: str
    source_port: int
    destination: str
    destination_port: int
    fill: Fill = msgspec.field(default_factory=Fill)
    """Where this direction's consumer collects a body, so that the bytes of its middle can go there
    unfed."""


class StreamOpened(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    packet_no: int
    from_start: bool
    """The SYN was captured: offset 0 is the first byte that was sent."""
    opener: bool
    """This direction's sender opened the connection (its SYN was captured)."""


class StreamData(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    """Time of the frame that brought these bytes, also when they had to wait for earlier ones."""
    packet_no: int
    offset: int
    data: bytes | memoryview
    """In-order data is a view of the frame that was fed: it lives as long as that frame's
    memory."""


class StreamGap(msgspec.Struct, frozen=True, eq=False):
    """The capture did not see ``length_bytes`` bytes from ``offset`` on."""

    flow: Flow
    t_ns: Ns
    packet_no: int
    offset: int
    length_bytes: int


class StreamClosed(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    packet_no: int
    offset: int
    reason: str
    """fin | rst | reused (the same ports began anew) | evicted (too many connections) | end of
    capture."""


StreamEvent = StreamOpened | StreamData | StreamGap | StreamClosed
