"""What the ledger of the replication link holds and tells: rows, events, totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    BarrierAnswer,
    Closed,
    LinkSession,
    Malformed,
    WriteKind,
)
from freezeframe.harness.core.link.ranges import Ranges
from freezeframe.harness.core.link.stampwatch import StampFault
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

MAX_PIECES: Final = 4096
"""Of one write."""


class Piece(msgspec.Struct, frozen=True, eq=False):
    """A part of a write's data that came in a message of its own."""

    offset_bytes: int
    """Within the write."""
    length_bytes: int
    packet_no: int
    digest_wire: bytes
    digest_computed: bytes
    """b"" when it was not checked."""


class WriteRow(msgspec.Struct, eq=False):
    """One replicated write."""

    session: LinkSession
    sender: str
    name: str
    """The protocol's name of what announced it: P_DATA."""
    kind: WriteKind
    volume: int
    offset_bytes: int
    length_bytes: int
    write_id: bytes
    """The sender's id of it as on the wire."""
    t_first_ns: Ns
    """When its first byte was on the wire ..."""
    t_sent_ns: Ns
    """... and when its last byte was."""
    first_packet_no: int
    packet_no: int
    epoch: int
    """Number of the epoch within the session, from 0."""
    expects_answer: bool
    algorithm: str = ""
    digest_wire: bytes = b""
    digest_computed: bytes = b""
    """b"" when it was not checked. Of a write in pieces: the first wrong one's, else the last
    one's."""
    digest_agreed: bool = True
    """False: by an algorithm that was assumed."""
    pieces: list[Piece] | None = None
    """Of a write whose data came in several messages."""
    unknown: bool = False
    """A hole in the capture may have hidden its answer: nothing is concluded from silence."""
    answer: AnswerKind = "none"
    answer_code: int = 0
    """The protocol's number of the answer ..."""
    answer_name: str = ""
    """... and its name: P_WRITE_ACK; "" while there is none."""
    t_answer_ns: Ns = 0
    answer_packet_no: int = 0
    closed: bool = False
    """The session closed before an answer, or the capture ended ..."""
    t_closed_ns: Ns = 0
    """... at that time; 0: it was open at the capture's end ..."""
    closed_by: str = ""
    """... by this address; "" when that was not captured."""
    missing_told: bool = False
    """A rule has reported that its answer is missing."""

    @property
    def write_id_text(self) -> str:
        return self.session.show_id(self.write_id)

    @property
    def sector(self) -> int:
        """Of 512 bytes, as the consoles and the stamps count."""
        return self.offset_bytes // SECTOR_BYTES

    @property
    def sectors(self) -> int:
        return self.length_bytes // SECTOR_BYTES

    @property
    def is_answered(self) -> bool:
        return self.answer != "none"

    @property
    def latency_ns(self) -> Ns:
        return self.t_answer_ns - self.t_sent_ns

    @property
    def waiting(self) -> bool:
        """Its answer is due and has not come."""
        return (
            self.expects_answer and self.answer == "none" and not self.unknown and not self.closed
        )


class WriteSent(msgspec.Struct, frozen=True, eq=False):
    """The last byte of a write was on the wire."""

    row: WriteRow
    data: bytes | memoryview | None
    """None: it brought none, or not all of it was captured. A view lives as long as the frame."""


class DigestMismatch(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow
    excerpt: bytes


class StampsContradict(msgspec.Struct, frozen=True, eq=False):
    """Data that fit their digest, and not the stamps that their writer gave them: wrong, elsewhere's
    or older before the digest was made."""

    row: WriteRow
    fault: StampFault
    excerpt: bytes


class Acknowledged(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow


class NegativeAck(msgspec.Struct, frozen=True, eq=False):
    answer: Answer
    row: WriteRow | None


class RepeatedAck(msgspec.Struct, frozen=True, eq=False):
    row: WriteRow
    answer: Answer


class UnknownAck(msgspec.Struct, frozen=True, eq=False):
    answer: Answer


class BarrierMismatch(msgspec.Struct, frozen=True, eq=False):
    answer: BarrierAnswer
    detail: str


class UnackedClose(msgspec.Struct, frozen=True, eq=False):
    """The session closed while these writes were unanswered, and nobody had said that it would."""

    closed: Closed
    rows: list[WriteRow]


class GhostWrite(msgspec.Struct, frozen=True, eq=False):
    """An old copy of a write came over a session that its sender has given up, after its ``retry`` was
    answered and after the ``newer`` write to the same place. Its digest, where it has one, is right."""

    row: WriteRow
    retry: WriteRow
    newer: WriteRow


class ResyncOmitted(msgspec.Struct, frozen=True, eq=False):
    """An end calls both sides up to date, and what had been written or marked was not copied."""

    session: LinkSession
    sender: str
    """The end that says so."""
    t_ns: Ns
    packet_no: int
    left: Ranges
    """What was left out, in bytes of the volume ..."""
    blocks_lost: int
    """... and how many blocks, of which nobody knows which, were lost from a bitmap."""


class MalformedSeen(msgspec.Struct, frozen=True, eq=False):
    malformed: Malformed


AboutAnswer = RepeatedAck | UnknownAck | BarrierMismatch
"""What a write or barrier that was not captured may explain."""
LedgerEvent = (
    WriteSent
    | DigestMismatch
    | StampsContradict
    | Acknowledged
    | NegativeAck
    | RepeatedAck
    | UnknownAck
    | BarrierMismatch
    | UnackedClose
    | GhostWrite
    | ResyncOmitted
    | MalformedSeen
)


@dataclass(eq=False, slots=True)
class Totals:
    """What became of all writes since the start."""

    writes: int = 0
    writers: dict[str, int] = field(default_factory=dict)
    """Address -> writes that it sent."""
    last_writer: str = ""
    writes_in_a_row: int = 0
    """By ``last_writer``, up to now."""
    answerers: set[str] = field(default_factory=set)
    """Addresses that sent answers."""
    bytes_written: int = 0
    acks: int = 0
    digests_checked: int = 0
    digests_wrong: int = 0
    orphans: int = 0
    """Answers without a write."""
    barriers_checked: int = 0
    """Barrier answers whose count was held against the writes captured."""
    resync_messages: int = 0
    latency_sum_ns: int = 0
    latency_max_ns: int = 0
    rows_given_up: int = 0
    """Unfinished rows dropped because too many were open."""

    def count_writer(self, address: str) -> None:
        self.writers[address] = self.writers.get(address, 0) + 1
        self.writes_in_a_row = self.writes_in_a_row + 1 if address == self.last_writer else 1
        self.last_writer = address
