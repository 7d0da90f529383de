"""The ledger of the replication link: one row for each replicated write, from its data to its answer
and barrier. It knows no protocol.

Messages in, ledger events out. The ledger says what is *certainly* so: a row that a hole in the
capture may have touched is ``unknown`` and gives no event; where a write may have gone unseen, an
acknowledgement without a write and a barrier's count are not judged. Memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, get_args

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.doubts import Doubts, WriteSight
from freezeframe.harness.core.link.ghosts import GhostWatch
from freezeframe.harness.core.link.ledgerbook import (
    CRC32C,
    MATCHES_TO_BELIEVE,
    MAX_ASSEMBLED_BYTES,
    MAX_ASSEMBLING,
    MAX_OPEN_BARRIERS,
    MAX_SESSIONS,
    MAX_UNFINISHED,
    NO_CLOSE,
    NOT_KNOWN,
    PROVING_ID_BYTES,
    RESYNC_TRAFFIC,
    SUSPECT_NS,
    Assembly,
    Book,
    answered,
    begin,
    close,
    confirm,
    excerpt,
    had_its_answer,
    is_disorder,
    is_owed,
    keep,
    new_book,
    note_answer,
    remember,
    silence_unknown,
    unconfirmed,
)
from freezeframe.harness.core.link.ledgerevents import (
    MAX_PIECES,
    Acknowledged,
    BarrierMismatch,
    DigestMismatch,
    LedgerEvent,
    MalformedSeen,
    NegativeAck,
    Piece,
    RepeatedAck,
    ResyncOmitted,
    StampsContradict,
    Totals,
    UnackedClose,
    UnknownAck,
    WriteRow,
    WriteSent,
)
from freezeframe.harness.core.link.messages import (
    Answer,
    Barrier,
    BarrierAnswer,
    Closed,
    Hole,
    Leaving,
    LinkMessage,
    LinkSession,
    Malformed,
    Opened,
    Other,
    ReplicatedWrite,
    Resync,
    WritePart,
)
from freezeframe.harness.core.link.resync import ResyncAccount
from freezeframe.harness.core.link.stampwatch import StampWatch


class Ledger:
    """``on`` takes each message in order; ``sight`` is what the capture shows of the writes' connection."""

    def __init__(self, sight: WriteSight | None = None) -> None:
        self.totals = Totals()
        self.stamps: StampWatch | None = None
        """Set while our own writer is the volume's sole writer."""
        self.resync = ResyncAccount()
        self._books: dict[int, Book] = {}
        self.doubts = Doubts(sight)
        self._assembled_bytes = 0
        self._ghosts = GhostWatch()

    def on(self, message: LinkMessage) -> list[LedgerEvent]:
        """Take one message. Doubtful findings come out by ``tick``, all others at once."""
        if message.session.closed and type(message) is not Closed:
            return self._ghosts.late(message)  # under way when the session closed: never answered
        events = _HANDLERS[type(message)](self, message)
        if events and message.session.resends:
            self._ghosts.sent(events)
        return events

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to tell."""
        due_ns, doubt_ns = self.resync.next_deadline(), self.doubts.next_deadline()
        return min((one for one in (due_ns, doubt_ns) if one is not None), default=None)

    def tick(self, now_ns: Ns, *, only_shown: bool = False) -> list[LedgerEvent]:
        """Tell what no hole has explained; ``only_shown``: frames may be lost without a word."""
        events = self.doubts.tick(now_ns, self._books.get if only_shown else None)
        for one, session in self.resync.tick(now_ns):
            events.append(ResyncOmitted(session, *one.claim, one.omitted(), one.blocks_lost))
        return events

    def shows_answers(self, session: LinkSession, t_ns: Ns) -> bool:
        """Answers to what was sent then are in the capture."""
        book = self._books.get(session.number)
        return book is not None and (book.whole or book.first_answer_ns < t_ns)

    def frames_lost(self, t_ns: Ns) -> None:
        """The capture lost frames until ``t_ns``, nobody knows which."""
        self.doubts.forget(lambda one: True)
        self.resync.missed_any()
        for book in self._books.values():
            silence_unknown(book, t_ns)
            for writer in book.writers.values():
                writer.miss(t_ns)

    def outstanding(self) -> int:
        return sum(book.outstanding for book in self._books.values())

    def _book(self, session: LinkSession, *, whole: bool = False) -> Book:
        book = self._books.get(session.number)
        if book is None:
            book = self._books[session.number] = new_book(session, whole=whole)
            if len(self._books) > MAX_SESSIONS:
                del self._books[next(iter(self._books))]
        return book

    def _opened(self, message: Opened) -> list[LedgerEvent]:
        self._book(message.session, whole=True)
        return []

    def _leaving(self, message: Leaving) -> list[LedgerEvent]:
        self._book(message.session).leaving = not message.is_off
        return []

    def _resync(self, message: Resync) -> list[LedgerEvent]:
        self.totals.resync_messages += message.what in RESYNC_TRAFFIC
        self.resync.on(message)
        return []

    def _write(self, message: ReplicatedWrite) -> list[LedgerEvent]:
        session, key = message.session, message.key
        book = self._book(session)
        book.written_ns = message.t_ns
        if not session.primary_address:
            session.primary_address = message.sender
        t_ns, data = message.t_ns, message.data
        row = WriteRow(
            session, message.sender, message.name, message.kind, message.volume, message.offset_bytes,
            message.length_bytes, message.write_id, message.t_first_ns, t_ns, message.first_packet_no,
            message.packet_no, book.epoch, message.expects_answer, message.algorithm,
            unknown=message.tentative or t_ns <= max(book.silence_unknown_to_ns, book.suspect_to_ns),
        )  # fmt: skip
        writer = book.writer(message.sender)
        if writer.epoch_writes != NOT_KNOWN:
            writer.epoch_writes += 1
        totals = self.totals
        totals.writes += 1
        totals.count_writer(message.sender)
        totals.bytes_written += row.length_bytes
        events: list[LedgerEvent] = []
        if message.kind != "write":
            events.append(WriteSent(row, None))
        elif len(data) == row.length_bytes:
            events.append(WriteSent(row, data))
            if not self._check(row, message, data, events):
                self._check_stamps(row, message, data, events)
        else:
            self._assemble(book, row, message, events)
        book.finished.pop(key, None)
        early = book.early_acks.pop(key, None) if book.early_acks else None
        if early is not None and is_disorder(early, row.t_sent_ns, row.packet_no):
            self._explained(session, key)
            note_answer(row, early)
            row.unknown = True
            totals.acks += 1
        if self.resync.is_open and (row.is_answered or not row.expects_answer):
            self.resync.acknowledged(row)
        if not row.expects_answer or row.answer != "none":
            keep(book, key, row)
            return events
        begin(book, key, row)
        if len(book.unfinished) > MAX_UNFINISHED:
            _, oldest = book.unfinished.popitem(last=False)
            oldest.unknown = True
            totals.rows_given_up += 1
            book.writer(oldest.sender).miss(t_ns)
        return events

    def _check(
        self,
        row: WriteRow,
        message: ReplicatedWrite | WritePart,
        data: bytes | memoryview,
        events: list[LedgerEvent],
    ) -> bool:
        """Note the digest of a write or a piece of one; whether it does not fit the data."""
        computed = message.digest_computed
        if not computed:
            return False
        wire = message.digest_wire
        if not message.digest_agreed and not self._is_believed(row, wire == computed):
            if row.digest_wire == row.digest_computed:
                row.algorithm, row.digest_agreed = message.algorithm, False
                row.digest_wire, row.digest_computed = wire, computed
            return False
        was_wrong = row.digest_wire != row.digest_computed
        if not was_wrong:
            row.algorithm, row.digest_agreed = message.algorithm, message.digest_agreed
            row.digest_wire, row.digest_computed = wire, computed
        self.totals.digests_checked += 1
        if wire != computed:
            self.totals.digests_wrong += 1
            if not was_wrong:
                events.append(DigestMismatch(row, excerpt(message)))
            return True
        return False

    def _check_stamps(
        self,
        row: WriteRow,
        message: ReplicatedWrite | WritePart,
        data: bytes | memoryview,
        events: list[LedgerEvent],
    ) -> None:
        """Hold a whole write whose digests fit, or that has none, against our writer's stamps."""
        if self.stamps is None or message.tentative:
            return
        is_digest_of_all = row.pieces is None and row.algorithm == CRC32C and row.digest_computed
        crc = int.from_bytes(row.digest_computed, "little") if is_digest_of_all else None
        fault = self.stamps.judge(row.sector, data, crc, row)
        if fault is not None:
            events.append(StampsContradict(row, fault, excerpt(message)))

    def _is_believed(self, row: WriteRow, is_right: bool) -> bool:
        """Whether a digest of an inferred algorithm proves anything: a match does, and a mismatch
        once enough have matched."""
        matches = self._book(row.session).matches
        if is_right:
            matches[row.sender] = matches.get(row.sender, 0) + 1
            return True
        return matches.get(row.sender, 0) >= MATCHES_TO_BELIEVE

    # --- writes in pieces ------------------------------------------------------------------------
    def _assemble(
        self, book: Book, row: WriteRow, message: ReplicatedWrite, events: list[LedgerEvent]
    ) -> None:
        """A write whose data did not come with it, or not all."""
        row.pieces = []
        fits = self._assembled_bytes + row.length_bytes <= MAX_ASSEMBLED_BYTES
        buffer = bytearray(row.length_bytes) if fits else None
        self._forget_assembly(book, message.key)
        while len(book.assembling) >= MAX_ASSEMBLING:
            self._forget_assembly(book, next(iter(book.assembling)))
        assembly = Assembly(row, buffer, row.length_bytes)
        book.assembling[message.key] = assembly
        self._assembled_bytes += len(buffer or b"")
        if len(message.data):
            self._piece(book, assembly, message, 0, events)

    def _part(self, message: WritePart) -> list[LedgerEvent]:
        book = self._book(message.session)
        assembly = book.assembling.get(message.key)
        events: list[LedgerEvent] = []
        if assembly is not None:
            assembly.row.unknown |= message.tentative
            self._piece(book, assembly, message, message.part_offset_bytes, events)
        return events

    def _piece(
        self,
        book: Book,
        assembly: Assembly,
        message: ReplicatedWrite | WritePart,
        at: int,
        events: list[LedgerEvent],
    ) -> None:
        row, data = assembly.row, message.data
        assert row.pieces is not None
        if not 0 <= at <= row.length_bytes - len(data) or len(row.pieces) >= MAX_PIECES:
            self._forget_assembly(book, message.key)
            return
        row.t_sent_ns, row.packet_no = message.t_ns, message.packet_no
        row.pieces.append(
            Piece(at, len(data), message.packet_no, message.digest_wire, message.digest_computed)
        )
        if assembly.data is not None:
            assembly.data[at : at + len(data)] = data
        self._check(row, message, data, events)
        assembly.missing_bytes -= len(data)
        if assembly.missing_bytes <= 0:
            whole = assembly.data if assembly.data is not None else None
            self._forget_assembly(book, message.key)
            events.insert(0, WriteSent(row, None if whole is None else bytes(whole)))
            if whole is not None and row.digest_wire == row.digest_computed:
                self._check_stamps(row, message, memoryview(whole), events)

    def _forget_assembly(self, book: Book, key: Hashable) -> None:
        assembly = book.assembling.pop(key, None)
        if assembly is not None:
            self._assembled_bytes -= len(assembly.data or b"")

    # --- answers ---------------------------------------------------------------------------------
    def _answer(self, message: Answer) -> list[LedgerEvent]:
        book, key = self._book(message.session), message.key
        book.first_answer_ns = min(book.first_answer_ns, message.t_ns)
        self.totals.answerers.add(message.sender)
        row = book.unfinished.pop(key, None)
        if row is None:
            return [] if message.tentative else self._answer_again(message, book)
        note_answer(row, message)
        totals, latency_ns = self.totals, message.t_ns - row.t_sent_ns
        totals.acks += 1
        totals.latency_sum_ns += latency_ns
        totals.latency_max_ns = max(totals.latency_max_ns, latency_ns)
        keep(book, key, row)
        if message.kind == "refused":
            self.resync.refused(row)
        elif self.resync.is_open:
            self.resync.acknowledged(row)
        events: list[LedgerEvent] = []
        if key in book.assembling:
            self._forget_assembly(book, key)
            events.append(WriteSent(row, None))
        if message.kind != "refused":
            events.append(Acknowledged(row))
        elif message.tentative and len(message.write_id) < PROVING_ID_BYTES:
            row.unknown = True  # data that look like an answer may hold a number under way
        else:
            events.append(NegativeAck(message, row))
        return events

    def _answer_again(self, message: Answer, book: Book) -> list[LedgerEvent]:
        """An answer that no open write waits for."""
        key, row = message.key, book.finished.get(message.key)
        if message.kind == "refused":
            return [NegativeAck(message, row)]
        if is_owed(book, key):
            return []
        if (
            row is not None
            and row.answer in ("none", "received")
            and (row.answer, row.answer_code) != (message.kind, message.code)
        ):
            # It was not due, or "received" stood for it.
            row.answer, row.answer_code, row.answer_name = message.kind, message.code, message.name
            return []
        if row is None and message.may_be_resync:
            self.totals.resync_messages += 1
            return []
        if row is None:
            self.totals.orphans += 1
        remember(book.early_acks, key, message)
        if row is not None and had_its_answer(book, row):
            self.doubts.add(RepeatedAck(row, message), key)
        elif row is None and book.writer(answered(message)).complete:
            self.doubts.add(UnknownAck(message), key)
        return []

    def _barrier(self, message: Barrier) -> list[LedgerEvent]:
        book, barrier_id = self._book(message.session), (message.sender, message.barrier_id)
        book.written_ns = message.t_ns
        early = book.early_barrier_acks.pop(barrier_id, None) if book.early_barrier_acks else None
        if early is not None and not is_disorder(early, message.t_ns, message.packet_no):
            early = None
        if message.tentative:
            if early is None:
                book.barriers[barrier_id] = NOT_KNOWN
            return []
        known = message.t_ns > book.silence_unknown_to_ns
        writer = book.writer(message.sender)
        expected = writer.epoch_writes if known else NOT_KNOWN
        events: list[LedgerEvent] = []
        if early is None:
            book.barriers[barrier_id] = expected
        else:
            self._explained(message.session, barrier_id)
            self._count(early, expected, events)
        if len(book.barriers) > MAX_OPEN_BARRIERS:
            (sender, _), _ = book.barriers.popitem(last=False)
            book.writer(sender).miss(message.t_ns)
        book.epoch += 1
        writer.epoch_writes, writer.blind_since_barrier = 0, False
        return events

    def _count(self, answer: BarrierAnswer, expected: int, events: list[LedgerEvent]) -> None:
        """Hold a barrier's answer against the writes that were captured before it."""
        if expected == NOT_KNOWN or answer.count is None:
            return
        self.totals.barriers_checked += 1
        if expected != answer.count:
            shown = answer.session.show_id(answer.barrier_id)
            detail = f"barrier {shown} acknowledges {answer.count} writes, its epoch had {expected}"
            events.append(BarrierMismatch(answer, detail))

    def _explained(self, session: LinkSession, key: Hashable) -> None:
        """What the early answer with this key answers has come: no finding."""
        self.doubts.forget(lambda one: (one.session, one.key) == (session.number, key))

    def _barrier_answer(self, message: BarrierAnswer) -> list[LedgerEvent]:
        session, count = message.session, message.count
        book, barrier_id = self._book(session), (answered(message), message.barrier_id)
        writer = book.writer(barrier_id[0])
        shown = f"barrier {session.show_id(message.barrier_id)}"
        if barrier_id not in book.barriers:
            remember(book.early_barrier_acks, barrier_id, message)
            if writer.complete and not message.tentative:
                event = BarrierMismatch(message, f"{shown} is not open, {count} writes reported")
                self.doubts.add(event, barrier_id)
            return []
        events: list[LedgerEvent] = []
        oldest, expected = book.epoch - len(book.barriers), NOT_KNOWN
        for opened in [one for one in book.barriers if one[0] == barrier_id[0]]:
            expected = book.barriers.pop(opened)  # one end's barriers are answered in their order
            if opened == barrier_id:
                break
            if expected != NOT_KNOWN:
                detail = f"barrier {session.show_id(opened[1])} was skipped, {shown} came"
                events.append(BarrierMismatch(message, detail))
        writer.complete = writer.complete or book.has_come_round(barrier_id[0])
        self._count(message, expected, events)
        confirm(book, message.t_ns, oldest, not events)
        return events

    def _hole(self, message: Hole) -> list[LedgerEvent]:
        book = self._book(message.session)
        book.suspect_to_ns = message.t_ns + SUSPECT_NS
        self.resync.missed(message.session)
        if message.hides_writes:
            self._writes_missed(book, message)
        if message.hides_answers:
            silence_unknown(book, message.t_ns)
        return []

    def _malformed(self, message: Malformed) -> list[LedgerEvent]:
        if message.hides_writes:
            book = self._book(message.session)
            self._writes_missed(book, message)
            silence_unknown(book, message.t_ns)
            self.resync.missed(message.session)
        return [MalformedSeen(message)]

    def _writes_missed(self, book: Book, message: Hole | Malformed) -> None:
        book.writer(message.sender).miss(message.t_ns)
        for key in list(book.assembling):
            self._forget_assembly(book, key)  # what is missing of it may be in the hole
        self.doubts.forget(lambda one: one.session == message.session.number)

    def _closed(self, message: Closed) -> list[LedgerEvent]:
        is_unseen = message.reason in NO_CLOSE
        book = (self._books.get if is_unseen else self._books.pop)(message.session.number, None)
        if book is None:
            return []
        for key in list(book.assembling):
            self._forget_assembly(book, key)
        rows = [row for row in book.unfinished.values() if row.waiting]
        if not is_unseen:
            self.resync.parted(message.session, message.t_ns, rows, unconfirmed(book, message.t_ns))
        for row in rows:
            close(row, message)
        is_told = rows and not book.leaving and not is_unseen
        return [UnackedClose(message, rows)] if is_told else []


_HANDLERS: Final[dict[type, Callable[[Ledger, Any], list[LedgerEvent]]]] = {
    ReplicatedWrite: Ledger._write,
    WritePart: Ledger._part,
    Answer: Ledger._answer,
    Barrier: Ledger._barrier,
    BarrierAnswer: Ledger._barrier_answer,
    Resync: Ledger._resync,
    Leaving: Ledger._leaving,
    Other: lambda ledger, message: [],
    Opened: Ledger._opened,
    Closed: Ledger._closed,
    Hole: Ledger._hole,
    Malformed: Ledger._malformed,
}
assert set(_HANDLERS) == set(get_args(LinkMessage))
