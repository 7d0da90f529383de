"""The replication link as evidence: every captured write with what became of it, and the answers that were wrong.

Frames in, once more and at leisure: the ledger's rows, the checksum of each write's data, the write id that the data
themselves tell, and the data of those few writes that somebody may ask about.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from crc32c import crc32c

from harness.core import ledgerevents
from harness.core.drbdsession import Dissector, Seen
from harness.core.events import NS_PER_S, Ns
from harness.core.ledger import Ledger
from harness.core.ledgerevents import LedgerEvent, WriteRow
from harness.core.linkview import LinkEnds
from harness.core.skim import Run
from harness.core.tcpstream import Reassembler, StreamEvent
from harness.wire import blockstamp as stamps
from harness.wire import drbd
from harness.wire.drbd import Cmd

MAX_WRITES: Final = 1 << 20
MAX_KEPT_BYTES: Final = 64 << 20
"""Data of writes that are kept for the inquest."""
MAX_ANSWERS: Final = 1000
NO_ID: Final = -1


@dataclass(eq=False, slots=True)
class LinkWrite:
    """One replicated write as the capture shows it."""

    row: WriteRow
    crc32c: int
    """Of its data as captured; -1: it carries none (TRIM)."""
    write_id: int
    """What most of its sectors' stamps say; NO_ID: they are not stamped."""
    data: bytes = b""
    """Kept only when the data do not fit their digest or their stamps, or lie where somebody asked."""

    @property
    def sector(self) -> int:
        return self.row.sector

    @property
    def sectors(self) -> int:
        return self.row.size_bytes // drbd.SECTOR_BYTES

    @property
    def digest_is_right(self) -> bool | None:
        """None: it has none, or one that could not be checked."""
        return self.row.digest_wire == self.row.digest_computed if self.row.digest_computed else None

    def covers(self, sector: int) -> bool:
        return self.row.sector <= sector < self.row.sector + self.sectors


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """An answer that no healthy pair gives: neg-ack, repeated, unknown, wrong barrier."""

    kind: str
    side: str
    t_ns: Ns
    packet_no: int
    write: LinkWrite | None = None
    expected: str = ""
    found: str = ""


@dataclass(eq=False)
class LinkEvidence:
    """All that a capture tells. ``feed`` each run of frames in order, then ``close``."""

    ends: LinkEnds
    is_suspect: Callable[[LinkWrite], bool] = lambda write: False
    """Told of each write with its checksum and id: whether its data are to be kept."""
    writes: list[LinkWrite] = field(default_factory=list)
    answers: list[WrongAnswer] = field(default_factory=list)
    frames: int = 0
    t_first_ns: Ns = 0
    t_last_ns: Ns = 0
    malformed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reassembler = Reassembler(ports=self.ends.ports)
        self._dissector = Dissector(
            primary_address=self.ends.primary_address,
            secondary_address=self.ends.secondary_address,
            integrity_alg=self.ends.integrity_alg,
            must_be_drbd=bool(self.ends.ports),
        )
        self._ledger = Ledger()
        self._by_row: dict[int, LinkWrite] = {}
        self._kept_bytes = 0

    @property
    def gaps(self) -> int:
        return self._reassembler.gaps

    @property
    def is_cut_short(self) -> bool:
        """Too many writes: the evidence ends before the capture does."""
        return len(self.writes) >= MAX_WRITES

    def feed(self, run: Run, offset_ns: Ns) -> None:
        """``offset_ns``: CLOCK_REALTIME - CLOCK_MONOTONIC."""
        self.t_first_ns = self.t_first_ns or run.t_first_ns - offset_ns
        for t_ns, frame, packet_no in self._reassembler.frames(run.data, self.frames + 1, offset_ns):
            self._tick(t_ns)
            events = self._reassembler.feed(t_ns, frame, packet_no)
            if events:
                self._understand(events)
        self.frames += run.frames
        self.t_last_ns = run.t_last_ns - offset_ns

    def _tick(self, t_ns: Ns) -> None:
        deadline_ns = self._ledger.next_deadline()
        if deadline_ns is not None and deadline_ns <= t_ns:
            self._learn(self._ledger.tick(t_ns), None)

    def close(self) -> None:
        self._understand(self._reassembler.close(self.t_last_ns))
        self._learn(self._ledger.tick(self.t_last_ns + NS_PER_S), None)

    def _understand(self, events: Iterable[StreamEvent]) -> None:
        for stream_event in events:
            for event in self._dissector.on(stream_event):
                found = self._ledger.on(event)
                if found:
                    self._learn(found, event if type(event) is Seen else None)

    def _learn(self, found: Iterable[LedgerEvent], seen: Seen | None) -> None:
        for event in found:
            match event:
                case ledgerevents.WriteSent(row=row) if seen is not None:
                    self._write(row, seen)
                case ledgerevents.NegativeAck(session=session, sender=sender, packet=packet, row=row):
                    self._answer("neg-ack", session.side_of(sender), packet.t_ns, packet.packet_no, row)
                case ledgerevents.RepeatedAck(row=row, sender=sender, packet=packet):
                    side = row.session.side_of(sender)
                    self._answer("repeated", side, packet.t_ns, packet.packet_no, row, "one answer", "two")
                case ledgerevents.UnknownAck(session=session, sender=sender, packet=packet):
                    side = session.side_of(sender)
                    self._answer("unknown", side, packet.t_ns, packet.packet_no, None)
                case ledgerevents.BarrierMismatch(session=session, sender=sender, packet=packet):
                    self._barrier(session.side_of(sender), event)
                case ledgerevents.MalformedSeen(malformed=wrong):
                    if len(self.malformed) < MAX_ANSWERS:
                        self.malformed.append(wrong.what)
                case _:
                    pass

    def _write(self, row: WriteRow, seen: Seen) -> None:
        if self.is_cut_short:
            return
        if row.command != Cmd.DATA:
            write = LinkWrite(row, -1, NO_ID)
        else:
            data = seen.packet.body[len(seen.packet.body) - row.size_bytes :]
            write = LinkWrite(row, crc32c(data), stamped_id(data))
            suspect = write.digest_is_right is False or self.is_suspect(write)
            if suspect and self._kept_bytes + len(data) <= MAX_KEPT_BYTES:
                write.data = bytes(data)
                self._kept_bytes += len(data)
        self.writes.append(write)
        self._by_row[id(row)] = write

    def _answer(
        self,
        kind: str,
        side: str,
        t_ns: Ns,
        packet_no: int,
        row: WriteRow | None,
        expected: str = "",
        found: str = "",
    ) -> None:
        if len(self.answers) < MAX_ANSWERS:
            write = self._by_row.get(id(row)) if row is not None else None
            self.answers.append(
                WrongAnswer(
                    kind=kind, side=side, t_ns=t_ns, packet_no=packet_no, write=write, expected=expected, found=found
                )
            )  # fmt: skip

    def _barrier(self, side: str, event: ledgerevents.BarrierMismatch) -> None:
        packet = event.packet
        self._answer("wrong barrier", side, packet.t_ns, packet.packet_no, None, "", event.detail)


def stamped_id(data: bytes | memoryview) -> int:
    """The write id that most of the sectors' headers tell; NO_ID when not even the first or last is stamped."""
    size = stamps.SECTOR_BYTES
    ends = (0, len(data) - size)
    if len(data) < size or not any(data[at : at + len(stamps.MAGIC)] == stamps.MAGIC for at in ends):
        return NO_ID
    told = [_told_id(data, at) for at in {0, len(data) // (2 * size) * size, len(data) - size}]
    known = [one for one in told if one != NO_ID]
    return max(set(known), key=known.count)


def _told_id(data: bytes | memoryview, at: int) -> int:
    if data[at : at + len(stamps.MAGIC)] != stamps.MAGIC:
        return NO_ID
    return int(stamps.HEADER.unpack_from(data, at)[4])
