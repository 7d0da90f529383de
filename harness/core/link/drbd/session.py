"""One DRBD session, and what its two ends agreed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from freezeframe.harness.core.link.drbd.bitmaps import BitmapTransfer
from freezeframe.harness.core.link.drbd.digests import BY_SIZE, INTEGRITY, Integrity
from freezeframe.harness.core.link.drbd.proof import ProvingAnswers
from freezeframe.harness.core.link.messages import LinkSession
from freezeframe.harness.wire import drbd

_WIRE_PROTOCOL_A: Final = 1
_WANTS_ACK: Final = int(drbd.DpFlag.SEND_WRITE_ACK | drbd.DpFlag.SEND_RECEIVE_ACK)
"""A plain number: the operators of IntFlag take microseconds, and each write is asked."""


def shown_id(cookie: bytes) -> str:
    """block_id or barrier as tshark shows it: a little-endian number."""
    return f"0x{int.from_bytes(cookie, 'little'):x}"


@dataclass(eq=False)
class DrbdLinkSession(LinkSession):
    """A session, and what its ends agreed on."""

    protocol: str = "drbd"
    id_name: str = "block_id"
    show_id: Callable[[bytes], str] = shown_id
    version: int = 0
    """Agreed protocol version; 0 until both ends have announced their features."""
    wire_protocol: int = 0
    """1 A, 2 B, 3 C; 0 until P_PROTOCOL."""
    offers: dict[str, tuple[int, int]] = field(default_factory=dict)
    algorithms: dict[str, str] = field(default_factory=dict)
    """Address -> integrity algorithm that it announced."""
    assumed_algorithm: str = ""
    """Named by the bench file, for an end whose P_PROTOCOL was not captured; "": what the digest's
    size tells is not certain."""
    ending: bool = False
    """Its data socket is closing: the next connection that opens begins another session."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Address -> node id, of DRBD 9."""
    confirmed: bool = False
    """DRBD 9 reported a part of an epoch before its barrier's answer, which may then count the
    rest."""
    bitmaps: dict[tuple[str, int], BitmapTransfer] = field(default_factory=dict)
    """(address, volume) -> the bitmap that it is sending."""
    volume_bytes: dict[int, int] = field(default_factory=dict)
    """Volume -> its size, as the ends announced it last."""
    proof: ProvingAnswers = field(default_factory=ProvingAnswers)
    meta: int = -1
    """Number of the TCP connection that is the meta socket; ``data`` is the data socket."""

    def integrity(self, sender: str, data_bytes: int) -> Integrity | None:
        """How ``sender`` protects a packet with ``data_bytes`` of digest and data. None: digest and
        data disagree.

        Data is whole sectors, so that an unknown algorithm's digest has the bytes that are left
        over.
        """
        announced = self.algorithms.get(sender)
        if announced is None and self.algorithms:
            announced = next(iter(self.algorithms.values()))
        left_over = data_bytes % drbd.SECTOR_BYTES
        if announced is None:
            return BY_SIZE.get(left_over) or Integrity("unknown", left_over, None)
        known = INTEGRITY.get(announced)
        if known is None:
            return Integrity(announced, left_over, None)
        return known if known.size_bytes == left_over and data_bytes >= left_over else None

    @property
    def is_agreed(self) -> bool:
        """The algorithm is certain: an end announced it, or the bench file names it."""
        return bool(self.algorithms or self.assumed_algorithm)

    @property
    def is_nine(self) -> bool:
        return self.version >= drbd.DRBD9_VERSION

    def expects_ack(self, header: int, dp_flags: int) -> bool:
        """Whether the receiver of a write has to answer it by itself (protocols B and C)."""
        if header == 100:
            return bool(dp_flags & _WANTS_ACK)
        return self.wire_protocol > _WIRE_PROTOCOL_A
