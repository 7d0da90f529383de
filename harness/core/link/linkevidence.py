"""The replication link as evidence: every captured write with what became of it, and the answers
that were wrong.

Frames in, once more and at leisure: the ledger's rows, the checksum of each write's data, the write
id that the data themselves tell, and the data of those few writes that somebody may ask about.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from crc32c import crc32c

from freezeframe.harness.core.blocks.blockstamp import decode, is_unbroken, stamped_crc
from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.link import ledgerevents
from freezeframe.harness.core.link.blindness import Blindness, blindness, state_of
from freezeframe.harness.core.link.follow import Follower, LaneSight
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.ledgerevents import LedgerEvent, WriteRow
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.core.link.messages import Answer, BarrierAnswer
from freezeframe.harness.core.link.resync import Rejoin, left_out
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamEvent
from freezeframe.harness.wire import blockstamp as stamps

MAX_WRITES: Final = 1 << 20
MAX_KEPT_BYTES: Final = 64 << 20
"""Data of writes that are kept for the inquest."""
MAX_ASKED: Final = 64
MAX_ANSWERS: Final = 1000
MAX_MARKS: Final = 4096
NO_ID: Final = -1
CRC_BYTES: Final = 4
MAX_VOTES: Final = 64
"""Stamped writes that say how far the link's addresses are from the host's."""


@dataclass(eq=False)
class HostAddresses:
    """How far the link's addresses lie behind the host's: a mirror's metadata come first. Learnt from
    the stamps of the host's writer."""

    same: bool
    """The protocol's addresses are the host's."""
    votes: Counter[int] = field(default_factory=Counter)

    @property
    def distance_sectors(self) -> int:
        """0 as long as nothing says otherwise."""
        return 0 if self.same or not self.votes else self.votes.most_common(1)[0][0]

    def learn(self, sector: int, data: bytes | memoryview) -> None:
        if self.same or self.votes.total() >= MAX_VOTES:
            return
        stamp = decode(bytes(data[: stamps.SECTOR_BYTES]))
        if stamp is not None and sector >= stamp.lba:
            self.votes[sector - stamp.lba] += 1


@dataclass(eq=False, slots=True)
class LinkWrite:
    """One replicated write as the capture shows it."""

    row: WriteRow
    addresses: HostAddresses
    crc32c: int
    """Of its data as captured; -1: it carries none (TRIM)."""
    write_id: int
    """What most of its sectors' stamps say; NO_ID: they are not stamped."""
    data: bytes = b""
    """Kept only when the data do not fit their digest or their stamps, or lie where somebody
    asked."""
    stamped_lba: int = -1
    """Where its first sector belongs, as its stamp says; -1: it is not stamped."""
    is_judged: bool = True
    """False: its digest was checked by an algorithm that was not the link's."""
    has_broken_stamps: bool = False
    """Its data are stamped, and not as the host's writer stamped them. Right data pass always, wrong
    ones in 1 of 2**32."""
    resent_as: "LinkWrite | None" = None
    """The same data sent to the same place again over a later session, because this one was refused
    or never answered."""

    @property
    def sector(self) -> int:
        """As the host counts them; of a mirror's own write, before the host's first, the link's."""
        here = self.row.sector - self.addresses.distance_sectors
        return here if here >= 0 else self.row.sector

    @property
    def sectors(self) -> int:
        return self.row.sectors

    @property
    def size_bytes(self) -> int:
        return self.row.length_bytes

    @property
    def write_id_text(self) -> str:
        """The sender's id of it on the link, for people; not the stamp's write_id."""
        return self.row.write_id_text

    @property
    def block_id(self) -> str:
        """As write_id_text, by the name that incident.json has for it."""
        return self.row.write_id_text

    @property
    def t_first_ns(self) -> Ns:
        """When the frame of its first byte was on the wire."""
        return self.row.t_first_ns

    @property
    def t_sent_ns(self) -> Ns:
        return self.row.t_sent_ns

    @property
    def first_packet_no(self) -> int:
        return self.row.first_packet_no

    @property
    def packet_no(self) -> int:
        return self.row.packet_no

    @property
    def is_acked(self) -> bool:
        return self.row.is_answered and self.row.t_answer_ns > 0

    @property
    def t_ack_ns(self) -> Ns:
        """0: no acknowledgement was seen."""
        return self.row.t_answer_ns if self.is_acked else 0

    @property
    def ack(self) -> str:
        """Name of the answer, as the protocol calls it; "" without one."""
        return self.row.answer_name if self.is_acked else ""

    @property
    def ack_packet_no(self) -> int:
        return self.row.answer_packet_no if self.is_acked else 0

    @property
    def latency_ns(self) -> Ns:
        return self.t_ack_ns - self.t_sent_ns

    @property
    def digest_is_right(self) -> bool | None:
        """None: it has none, or one that could not be checked."""
        checked = self.is_judged and self.row.digest_computed
        return self.row.digest_wire == self.row.digest_computed if checked else None

    def covers(self, sector: int) -> bool:
        return self.sector <= sector < self.sector + max(self.sectors, 1)


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
    """Told of each write with its checksum and id: whether its data are to be kept, of the last
    MAX_ASKED such."""
    writes: list[LinkWrite] = field(default_factory=list)
    answers: list[WrongAnswer] = field(default_factory=list)
    marks: dict[int, list[str]] = field(default_factory=dict)
    """Frame number, from 1 -> what is worth a comment."""
    frames: int = 0
    bytes_captured: int = 0
    t_first_ns: Ns = 0
    t_last_ns: Ns = 0
    malformed: list[str] = field(default_factory=list)
    ghosts: list[ledgerevents.GhostWrite] = field(default_factory=list)
    """Old copies of writes that landed after newer ones."""

    def __post_init__(self) -> None:
        self.protocol = self.ends.speak()
        self.addresses = HostAddresses(self.protocol.host_addresses)
        self._reassembler = Reassembler(ports=self.ends.ports)
        self._follower = Follower(self.protocol, self.ends.ports)
        self._ledger = Ledger(LaneSight(self._reassembler, self.protocol))
        self._messages = 0
        self._by_row: dict[int, LinkWrite] = {}
        self._kept_bytes = 0
        self._asked: deque[LinkWrite] = deque()

    @property
    def gaps(self) -> int:
        return self._reassembler.gaps

    @property
    def blind(self) -> list[Blindness]:
        """What the capture cannot see."""
        state = state_of(
            self._reassembler, self.protocol, self._ledger.totals, named=self.ends.named,
            ports=self.ends.ports, frames=self.frames, messages=self._messages,
        )  # fmt: skip
        return blindness(state)

    @property
    def rejoins(self) -> list[Rejoin]:
        """What made the two sides equal again after they had been apart, oldest first."""
        return list(self._ledger.resync.rejoins)

    @property
    def is_cut_short(self) -> bool:
        """Too many writes: the evidence ends before the capture does."""
        return len(self.writes) >= MAX_WRITES

    def feed(self, run: Run, offset_ns: Ns) -> None:
        """``offset_ns``: CLOCK_REALTIME - CLOCK_MONOTONIC."""
        self.t_first_ns = self.t_first_ns or run.t_first_ns - offset_ns
        for t_ns, frame, packet_no in self._reassembler.frames(
            run.data, self.frames + 1, offset_ns
        ):
            self._tick(t_ns)
            events = self._reassembler.feed(t_ns, frame, packet_no)
            if events:
                self._understand(events)
        self.frames += run.frames
        self.bytes_captured += run.bytes_captured
        self.t_last_ns = run.t_last_ns - offset_ns

    def _tick(self, t_ns: Ns) -> None:
        deadline_ns = self._ledger.next_deadline()
        if deadline_ns is not None and deadline_ns <= t_ns:
            self._understand(self._reassembler.tick(t_ns))
            if self._reassembler.certain:
                self._learn(self._ledger.tick(t_ns, only_shown=True))

    def close(self, *, is_whole: bool = True) -> None:
        """``is_whole`` False: the capture may lack frames without a word, as one from elsewhere."""
        end_ns = self.t_last_ns + NS_PER_S
        self._understand(self._reassembler.tick(end_ns))
        if not is_whole:
            self._learn(self._ledger.tick(end_ns, only_shown=True))
        self._understand(self._reassembler.close(self.t_last_ns))
        if is_whole:
            self._learn(self._ledger.tick(end_ns))
        self._judge_digests()
        self._find_resent()

    def _find_resent(self) -> None:
        """Pair each write that was refused or not answered with the one that brought its data over a
        later session. A digest error that healed itself so is no lost write."""
        open_writes: dict[tuple[str, int, int], list[LinkWrite]] = {}
        for write in self.writes:
            row = write.row
            where = (row.sender, row.sector, row.length_bytes)
            for before in open_writes.get(where, ()):
                if before.resent_as is None and _is_resent(before, write):
                    before.resent_as = write
            if write.digest_is_right is False or not write.is_acked:
                open_writes.setdefault(where, []).append(write)

    def _judge_digests(self) -> None:
        """Where the algorithm was only inferred and most digests come out wrong, it was another."""
        checked = [one for one in self.writes if one.digest_is_right is not None]
        inferred = [one for one in checked if not one.row.digest_agreed]
        if sum(not one.digest_is_right for one in inferred) * 2 >= len(inferred):
            for write in inferred:
                write.is_judged = False
        wrong = [one for one in checked if one.digest_is_right is False]
        for write in wrong:
            self._mark(
                write.packet_no, f"digest wrong: sector {write.sector} + {write.size_bytes} bytes"
            )

    def _understand(self, events: Iterable[StreamEvent]) -> None:
        for stream_event in events:
            for message in self._follower.on(stream_event):
                self._messages += 1
                found = self._ledger.on(message)
                if found:
                    self._learn(found)

    def _learn(self, found: Iterable[LedgerEvent]) -> None:
        for event in found:
            match event:
                case ledgerevents.WriteSent(row=row, data=data):
                    self._write(row, data)
                case ledgerevents.NegativeAck(answer=answer, row=row):
                    self._mark(answer.packet_no, "negative acknowledgement")
                    self._answer("neg-ack", answer, row)
                case ledgerevents.RepeatedAck(row=row, answer=answer):
                    self._mark(answer.packet_no, "acknowledged a second time")
                    self._answer("repeated", answer, row, "one answer", "two")
                case ledgerevents.UnknownAck(answer=answer):
                    self._mark(answer.packet_no, "acknowledges no write that was sent")
                    self._answer("unknown", answer, None)
                case ledgerevents.BarrierMismatch(answer=barrier, detail=detail):
                    self._mark(barrier.packet_no, detail)
                    self._answer("wrong barrier", barrier, None, "", detail)
                case ledgerevents.UnackedClose(closed=closed, rows=rows):
                    self._mark(closed.packet_no, f"closed with {len(rows)} unacknowledged writes")
                case ledgerevents.GhostWrite(row=row, retry=retry, newer=newer):
                    words = f"old copy of {retry.write_id_text}, after {newer.write_id_text} wrote there"
                    self._mark(row.packet_no, words)
                    if len(self.ghosts) < MAX_ANSWERS:
                        self.ghosts.append(event)
                case ledgerevents.ResyncOmitted(packet_no=packet_no, left=left):
                    words = left_out(left, event.blocks_lost, stamps.SECTOR_BYTES)
                    self._mark(packet_no, f"calls both sides up to date, and {words}")
                case ledgerevents.MalformedSeen(malformed=wrong):
                    self._mark(wrong.packet_no, wrong.what)
                    if len(self.malformed) < MAX_ANSWERS:
                        self.malformed.append(wrong.what)
                case _:
                    pass

    def _mark(self, packet_no: int, text: str) -> None:
        if len(self.marks) < MAX_MARKS:
            self.marks.setdefault(packet_no, []).append(text)

    def _write(self, row: WriteRow, data: bytes | memoryview | None) -> None:
        if self.is_cut_short:
            return
        if data is None:
            write = LinkWrite(row, self.addresses, -1, NO_ID)
        else:
            found = stamped_id(data)
            write = LinkWrite(
                row, self.addresses, crc32c(data), found, stamped_lba=_stamped_lba(data)
            )
            if write.write_id != NO_ID:
                self.addresses.learn(row.sector, data)
            self._keep(write, data)
        self.writes.append(write)
        self._by_row[id(row)] = write

    def _keep(self, write: LinkWrite, data: bytes | memoryview) -> None:
        """Data that are wrong in themselves, the first of them; and the last of those that were
        asked for."""
        if write.write_id != NO_ID:
            is_whole = write.crc32c == stamped_crc(write.sectors)
            is_copied = not is_whole and not self.addresses.same
            write.has_broken_stamps = not (
                is_whole or (is_copied and is_unbroken(data, write.crc32c))
            )
        if write.has_broken_stamps and write.digest_is_right:
            words = "digest right, but not what the host's writer stamped"
            self._mark(write.packet_no, words)
        is_wrong = write.digest_is_right is False or write.has_broken_stamps
        if not is_wrong and not self.is_suspect(write):
            return
        if self._kept_bytes + len(data) > MAX_KEPT_BYTES:
            return
        write.data = bytes(data)
        if is_wrong:
            self._kept_bytes += len(data)
            return
        self._asked.append(write)
        if len(self._asked) > MAX_ASKED:
            self._asked.popleft().data = b""

    def _answer(
        self,
        kind: str,
        answer: Answer | BarrierAnswer,
        row: WriteRow | None,
        expected: str = "",
        found: str = "",
    ) -> None:
        if len(self.answers) < MAX_ANSWERS:
            write = self._by_row.get(id(row)) if row is not None else None
            side = answer.session.side_of(answer.sender)
            self.answers.append(
                WrongAnswer(
                    kind=kind, side=side, t_ns=answer.t_ns, packet_no=answer.packet_no, write=write,
                    expected=expected, found=found,
                )
            )  # fmt: skip


def _is_resent(before: LinkWrite, later: LinkWrite) -> bool:
    """The later one brings what the earlier was to bring: its data, or those that its digest fits."""
    if before.row.session is later.row.session or later.crc32c < 0:
        return False
    row = before.row
    meant = {before.crc32c}
    if row.algorithm == "crc32c" and len(row.digest_wire) == CRC_BYTES:
        meant.add(int.from_bytes(row.digest_wire, "little"))
    return later.crc32c in meant


def stamped_id(data: bytes | memoryview) -> int:
    """The write id that most of the sectors' headers tell; NO_ID when not even the first or last is
    stamped."""
    size = stamps.SECTOR_BYTES
    ends = (0, len(data) - size)
    if len(data) < size or not any(
        data[at : at + len(stamps.MAGIC)] == stamps.MAGIC for at in ends
    ):
        return NO_ID
    ids = [_told_id(data, at) for at in {0, len(data) // (2 * size) * size, len(data) - size}]
    known = [one for one in ids if one != NO_ID]
    return max(set(known), key=known.count)


def _stamped_lba(data: bytes | memoryview) -> int:
    if data[: len(stamps.MAGIC)] != stamps.MAGIC or len(data) < stamps.SECTOR_BYTES:
        return -1
    return int(stamps.HEADER.unpack_from(data, 0)[3])


def _told_id(data: bytes | memoryview, at: int) -> int:
    if data[at : at + len(stamps.MAGIC)] != stamps.MAGIC:
        return NO_ID
    return int(stamps.HEADER.unpack_from(data, at)[4])
