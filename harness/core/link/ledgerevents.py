"""What the ledger of the replication link holds and tells: rows, events, totals."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.drbdsession import Session, SessionClosed
from freezeframe.harness.core.link.drbdstream import DrbdPacket, Malformed


class WriteRow(msgspec.Struct, eq=False):
    """One replicated write."""

    session: Session
    sender: str
    command: int
    volume: int
    sector: int
    block_id: bytes
    """The sender's cookie as on the wire, 8 bytes."""
    size_bytes: int
    t_sent_ns: Ns
    """When its last byte was on the wire."""
    first_packet_no: int
    packet_no: int
    epoch: int
    """Number of the epoch within the session, from 0."""
    expects_ack: bool
    algorithm: str = ""
    digest_wire: bytes = b""
    digest_computed: bytes = b""
    """b"" when it was not checked."""
    unknown: bool = False
    """A hole in the capture may have hidden its acknowledgement: nothing is concluded from
    silence."""
    ack: int = -1
    """Command of its acknowledgement, -1 while there is none."""
    t_ack_ns: Ns = 0
    ack_packet_no: int = 0
    closed: bool = False
    """The session closed before an acknowledgement ..."""
    t_closed_ns: Ns = 0
    """... at that time."""
    missing_told: bool = False
    """A rule has told that its acknowledgement is missing."""

    @property
    def block_id_text(self) -> str:
        return f"0x{int.from_bytes(self.block_id, 'little'):x}"

    @property
    def latency_ns(self) -> Ns:
        return self.t_ack_ns - self.t_sent_ns

    @property
    def waiting(self) -> bool:
        """Its acknowledgement is due and has not come."""
        return self.expects_ack and self.ack < 0 and not self.unknown and not self.closed


class WriteSent(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow


class DigestMismatch(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow
    excerpt: bytes


class BrokenStamp(msgspec.Struct, frozen=True, eq=False):
    """Data that fit their digest, and not the stamps that their writer gave them: wrong before the
    digest was made."""

    row: WriteRow
    excerpt: bytes


class Acknowledged(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow


class NegativeAck(msgspec.Struct, frozen=True, eq=False):
    session: Session
    sender: str
    packet: DrbdPacket
    row: WriteRow | None


class RepeatedAck(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow
    sender: str
    packet: DrbdPacket


class UnknownAck(msgspec.Struct, frozen=True, eq=False):
    session: Session
    sender: str
    packet: DrbdPacket


class BarrierMismatch(msgspec.Struct, frozen=True, eq=False):
    session: Session
    sender: str
    packet: DrbdPacket
    detail: str


class UnackedClose(msgspec.Struct, frozen=True, eq=False):
    """The session closed while these writes were unacknowledged, and nobody had said that it
    would."""

    closed: SessionClosed
    rows: list[WriteRow]


class MalformedSeen(msgspec.Struct, frozen=True, eq=False):
    session: Session
    sender: str
    malformed: Malformed


LedgerEvent = (
    WriteSent
    | DigestMismatch
    | BrokenStamp
    | Acknowledged
    | NegativeAck
    | RepeatedAck
    | UnknownAck
    | BarrierMismatch
    | UnackedClose
    | MalformedSeen
)


@dataclass(eq=False, slots=True)
class Totals:
    """What became of all writes since the start."""

    writes: int = 0
    bytes_written: int = 0
    acks: int = 0
    digests_checked: int = 0
    digests_wrong: int = 0
    orphans: int = 0
    """Acknowledgements without a write."""
    latency_sum_ns: int = 0
    latency_max_ns: int = 0
    rows_given_up: int = 0
    """Unfinished rows dropped because too many were open."""
