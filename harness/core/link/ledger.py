"""The ledger of the replication link: one row for each replicated write, from its data to its answer
and barrier. It knows no protocol.

Messages in, ledger events out. The ledger says what is *certainly* so: a row that a hole in
the capture may have touched is ``unknown`` and gives no event; where a write may have gone unseen,
an acknowledgement without a write and a barrier's count are not judged. Memory is bounded: finished
rows are counted and the last ones kept, unfinished ones are limited in number.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, get_args

from freezeframe.harness.core.blocks.blockstamp import is_broken
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.ledgerevents import (
    MAX_PIECES,
    Acknowledged,
    BarrierMismatch,
    BrokenStamp,
    DigestMismatch,
    LedgerEvent,
    MalformedSeen,
    NegativeAck,
    Piece,
    RepeatedAck,
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

MAX_SESSIONS: Final = 64
"""Kept at once; a rig has one or two."""
MAX_UNFINISHED: Final = 65536
"""Unacknowledged writes kept a session; a node has at most some thousands in flight."""
KEPT_ROWS: Final = 8192
"""Finished rows kept a session: the window in which a repeated acknowledgement is known as one."""
MAX_OPEN_BARRIERS: Final = 4096
MAX_DOUBTFUL: Final = 256
MAX_EARLY: Final = 4096
"""Answers remembered that came before what they answer."""
JUDGEMENT_NS: Final = 100 * NS_PER_MS
"""A stray acknowledgement is told only after this: a write that the capture lacks shows as a hole
by then, since the receiver's TCP acknowledges it within 40 ms, and HOLE_PATIENCE_NS later the hole
is certain."""
SUSPECT_NS: Final = NS_PER_S
"""A capture that has just lost frames may have lost an answer together with every later sign of
it."""
_EXCERPT_BYTES: Final = 64
_CRC32C: Final = "crc32c"
"""The digest that the stamps of our own writer use too."""
MAX_ASSEMBLING: Final = 1024
"""Writes of a session whose data are still coming ..."""
MAX_ASSEMBLED_BYTES: Final = 64 << 20
"""... and what is held of the data of all of them."""

_NOT_KNOWN: Final = -1
"""In place of an epoch's number of writes: some may not have been captured."""
_T = TypeVar("_T")
_V = TypeVar("_V")


@dataclass(eq=False, slots=True)
class _Assembly:
    """A write whose data are still coming."""

    row: WriteRow
    data: bytearray | None
    """None: too much is being put together already."""
    missing_bytes: int


@dataclass(eq=False, slots=True)
class _Book:
    """The rows of one session."""

    unfinished: OrderedDict[Hashable, WriteRow] = field(default_factory=OrderedDict)
    finished: OrderedDict[Hashable, WriteRow] = field(default_factory=OrderedDict)
    epoch: int = 0
    epoch_writes: int = 0
    epoch_known: bool = False
    """No write of the current epoch can have been missed."""
    barriers: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """Cookie -> writes before it, or _NOT_KNOWN."""
    early_acks: OrderedDict[Hashable, Answer] = field(default_factory=OrderedDict)
    """Answers that no write waited for: the capture gives out a write late when it stood behind a
    hole of its stream, while that of the answers ran on."""
    early_barrier_acks: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """The same for barriers: id -> packet number."""
    assembling: dict[Hashable, _Assembly] = field(default_factory=dict)
    """Writes whose data come in several messages."""
    silence_unknown_to_ns: Ns = -1
    """The capture may lack answers from before this time: silence about what was sent until then
    proves nothing."""
    suspect_to_ns: Ns = -1
    """For SUSPECT_NS after a hole the capture is not trusted with silence about new writes
    either."""
    complete: bool = False
    """Every write that an acknowledgement may still name was captured."""
    blind_since_barrier: bool = True
    """No barrier was captured since writes may have been missed."""
    leaving: bool = False
    """An end has announced that it disconnects."""


@dataclass(frozen=True, slots=True)
class _Doubtful:
    """A finding that a hole in the capture may yet explain."""

    due_ns: Ns
    session: int
    key: Hashable | None
    event: LedgerEvent


class Ledger:
    """``on`` takes each message in order; ``frames_lost`` is told when the kernel has dropped
    frames."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._books: dict[int, _Book] = {}
        self._doubtful: deque[_Doubtful] = deque()
        self._assembled_bytes = 0

    def on(self, message: LinkMessage) -> list[LedgerEvent]:
        """Take one message. What is found at once comes out at once; doubtful findings come by
        ``tick``."""
        if message.session.closed and type(message) is not Closed:
            return []  # still under way when the session closed: nobody will answer
        return _HANDLERS[type(message)](self, message)

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to tell."""
        return self._doubtful[0].due_ns if self._doubtful else None

    def tick(self, now_ns: Ns) -> list[LedgerEvent]:
        """Tell the findings that no hole in the capture has explained in the meantime."""
        events: list[LedgerEvent] = []
        while self._doubtful and self._doubtful[0].due_ns <= now_ns:
            events.append(self._doubtful.popleft().event)
        return events

    def frames_lost(self, t_ns: Ns) -> None:
        """The capture lost frames until ``t_ns``, nobody knows which."""
        self._doubtful.clear()
        for book in self._books.values():
            _silence_unknown(book, t_ns)
            _forget_writes(book)

    def rows(self, session: LinkSession) -> list[WriteRow]:
        """The rows still held: finished ones first, then the unfinished."""
        book = self._book(session)
        return [*book.finished.values(), *book.unfinished.values()]

    def _book(self, session: LinkSession, *, whole: bool = False) -> _Book:
        book = self._books.get(session.number)
        if book is None:
            # A session whose greeting was seen has no writes from before the capture.
            book = _Book(epoch_known=whole, complete=whole, blind_since_barrier=not whole)
            self._books[session.number] = book
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
        self.totals.resync_messages += 1
        return []

    def _other(self, message: Other) -> list[LedgerEvent]:
        return []

    def _write(self, message: ReplicatedWrite) -> list[LedgerEvent]:
        session, key = message.session, message.key
        book = self._book(session)
        if not session.primary_address:
            session.primary_address = message.sender
        t_ns, data = message.t_ns, message.data
        row = WriteRow(
            session,
            message.sender,
            message.name,
            message.kind,
            message.volume,
            message.offset_bytes,
            message.length_bytes,
            message.write_id,
            message.t_first_ns,
            t_ns,
            message.first_packet_no,
            message.packet_no,
            book.epoch,
            message.expects_answer,
            message.algorithm,
            unknown=message.tentative
            or t_ns <= max(book.silence_unknown_to_ns, book.suspect_to_ns),
        )
        book.epoch_writes += 1
        totals = self.totals
        totals.writes += 1
        totals.bytes_written += row.length_bytes
        events: list[LedgerEvent] = []
        if message.kind != "write":
            events.append(WriteSent(row, None))
        elif len(data) == row.length_bytes:
            events.append(WriteSent(row, data))
            self._check(row, message, data, events)
        else:
            self._assemble(book, row, message, events)
        book.finished.pop(key, None)
        if self._doubtful:
            self._doubtful = deque(d for d in self._doubtful if d.key != key)
        early = book.early_acks.pop(key, None) if book.early_acks else None
        if early is not None and early.packet_no > row.packet_no:
            _answered(row, early)
            row.unknown = True
            totals.acks += 1
        if not row.expects_answer or row.answer != "none":
            _keep(book, key, row)
            return events
        book.unfinished[key] = row
        if len(book.unfinished) > MAX_UNFINISHED:
            _, oldest = book.unfinished.popitem(last=False)
            oldest.unknown = True
            totals.rows_given_up += 1
            _forget_writes(book)
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
        was_wrong = row.digest_wire != row.digest_computed
        if not was_wrong:
            row.algorithm, row.digest_agreed = message.algorithm, message.digest_agreed
            row.digest_wire, row.digest_computed = wire, computed
        self.totals.digests_checked += 1
        if wire != computed:
            self.totals.digests_wrong += 1
            if not was_wrong:
                events.append(DigestMismatch(row, _excerpt(message)))
            return True
        if (
            row.algorithm == _CRC32C
            and row.pieces is None
            and is_broken(data, int.from_bytes(computed, "little"))
        ):
            events.append(BrokenStamp(row, _excerpt(message)))
        return False

    # --- writes in pieces ------------------------------------------------------------------------
    def _assemble(
        self, book: _Book, row: WriteRow, message: ReplicatedWrite, events: list[LedgerEvent]
    ) -> None:
        """A write whose data did not come with it, or not all."""
        row.pieces = []
        fits = self._assembled_bytes + row.length_bytes <= MAX_ASSEMBLED_BYTES
        buffer = bytearray(row.length_bytes) if fits else None
        self._forget_assembly(book, message.key)
        while len(book.assembling) >= MAX_ASSEMBLING:
            self._forget_assembly(book, next(iter(book.assembling)))
        assembly = _Assembly(row, buffer, row.length_bytes)
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
        book: _Book,
        assembly: _Assembly,
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

    def _forget_assembly(self, book: _Book, key: Hashable) -> None:
        assembly = book.assembling.pop(key, None)
        if assembly is not None:
            self._assembled_bytes -= len(assembly.data or b"")

    # --- answers ---------------------------------------------------------------------------------
    def _answer(self, message: Answer) -> list[LedgerEvent]:
        book, key = self._book(message.session), message.key
        row = book.unfinished.pop(key, None)
        if row is None:
            return [] if message.tentative else self._answer_again(message, book)
        _answered(row, message)
        totals, latency_ns = self.totals, message.t_ns - row.t_sent_ns
        totals.acks += 1
        totals.latency_sum_ns += latency_ns
        totals.latency_max_ns = max(totals.latency_max_ns, latency_ns)
        _keep(book, key, row)
        events: list[LedgerEvent] = []
        if key in book.assembling:
            self._forget_assembly(book, key)
            events.append(WriteSent(row, None))
        if message.kind == "refused":
            events.append(NegativeAck(message, row))
        else:
            events.append(Acknowledged(row))
        return events

    def _answer_again(self, message: Answer, book: _Book) -> list[LedgerEvent]:
        """An answer that no open write waits for."""
        key, row = message.key, book.finished.get(message.key)
        if message.kind == "refused":
            return [NegativeAck(message, row)]
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
        _remember(book.early_acks, key, message)
        if book.complete:
            event = RepeatedAck(row, message) if row is not None else UnknownAck(message)
            self._doubt(event, message.session, message.t_ns, key)
        return []

    def _doubt(
        self, event: LedgerEvent, session: LinkSession, t_ns: Ns, key: Hashable | None = None
    ) -> None:
        if len(self._doubtful) < MAX_DOUBTFUL:
            self._doubtful.append(_Doubtful(t_ns + JUDGEMENT_NS, session.number, key, event))

    def _barrier(self, message: Barrier) -> list[LedgerEvent]:
        book, barrier_id = self._book(message.session), message.barrier_id
        answered = book.early_barrier_acks.pop(barrier_id, 0) > message.packet_no
        if message.tentative:
            if not answered:
                book.barriers[barrier_id] = _NOT_KNOWN
            return []
        if not answered:
            known = book.epoch_known and message.t_ns > book.silence_unknown_to_ns
            book.barriers[barrier_id] = book.epoch_writes if known else _NOT_KNOWN
        if len(book.barriers) > MAX_OPEN_BARRIERS:
            book.barriers.popitem(last=False)
            _forget_writes(book)
        book.epoch += 1
        book.epoch_writes, book.epoch_known, book.blind_since_barrier = 0, True, False
        return []

    def _barrier_answer(self, message: BarrierAnswer) -> list[LedgerEvent]:
        session, barrier_id, count = message.session, message.barrier_id, message.count
        book = self._book(session)
        shown = f"barrier {session.show_id(barrier_id)}"
        if barrier_id not in book.barriers:
            _remember(book.early_barrier_acks, barrier_id, message.packet_no)
            if book.complete and not message.tentative:
                event = BarrierMismatch(message, f"{shown} is not open, {count} writes told")
                self._doubt(event, session, message.t_ns)
            return []
        events: list[LedgerEvent] = []
        while True:  # barriers are answered in their order
            opened, expected = book.barriers.popitem(last=False)
            if opened == barrier_id:
                break
            if expected != _NOT_KNOWN:
                skipped = f"barrier {session.show_id(opened)} was skipped, {shown} came"
                events.append(BarrierMismatch(message, skipped))
        if expected == _NOT_KNOWN:
            if not book.blind_since_barrier and _NOT_KNOWN not in book.barriers.values():
                book.complete = True  # whatever was missed is answered by now
        elif count is not None:
            self.totals.barriers_checked += 1
            if expected != count:
                detail = f"{shown} acknowledges {count} writes, its epoch had {expected}"
                events.append(BarrierMismatch(message, detail))
        return events

    def _hole(self, message: Hole) -> list[LedgerEvent]:
        book = self._book(message.session)
        book.suspect_to_ns = message.t_ns + SUSPECT_NS
        if message.hides_writes:
            self._writes_missed(book, message.session)
        if message.hides_answers:
            _silence_unknown(book, message.t_ns)
        return []

    def _malformed(self, message: Malformed) -> list[LedgerEvent]:
        if message.hides_writes:
            book = self._book(message.session)
            self._writes_missed(book, message.session)
            _silence_unknown(book, message.t_ns)
        return [MalformedSeen(message)]

    def _writes_missed(self, book: _Book, session: LinkSession) -> None:
        _forget_writes(book)
        for key in list(book.assembling):
            self._forget_assembly(book, key)  # what is missing of it may be in the hole
        self._doubtful = deque(d for d in self._doubtful if d.session != session.number)

    def _closed(self, message: Closed) -> list[LedgerEvent]:
        book = self._books.pop(message.session.number, None)
        if book is None:
            return []
        for key in list(book.assembling):
            self._forget_assembly(book, key)
        rows = [row for row in book.unfinished.values() if row.waiting]
        for row in rows:
            row.closed, row.t_closed_ns, row.closed_by = True, message.t_ns, message.closer
        if not rows or book.leaving or message.reason in ("end of capture", "evicted"):
            return []
        return [UnackedClose(message, rows)]


def _answered(row: WriteRow, message: Answer) -> None:
    row.answer, row.answer_code, row.answer_name = message.kind, message.code, message.name
    row.t_answer_ns, row.answer_packet_no = message.t_ns, message.packet_no


def _excerpt(message: ReplicatedWrite | WritePart) -> bytes:
    raw = message.raw if type(message) is ReplicatedWrite else message.data
    return bytes(raw[:_EXCERPT_BYTES])


def _keep(book: _Book, key: Hashable, row: WriteRow) -> None:
    book.finished[key] = row
    if len(book.finished) > KEPT_ROWS:
        book.finished.popitem(last=False)


def _remember(early: OrderedDict[_T, _V], key: _T, value: _V) -> None:
    early[key] = value
    if len(early) > MAX_EARLY:
        early.popitem(last=False)


def _forget_writes(book: _Book) -> None:
    """Writes may have gone unseen: judge no count and no stray acknowledgement until a barrier has
    come round."""
    book.epoch_known, book.complete, book.blind_since_barrier = False, False, True


def _silence_unknown(book: _Book, t_ns: Ns) -> None:
    book.silence_unknown_to_ns = max(book.silence_unknown_to_ns, t_ns)
    for cookie in book.barriers:
        book.barriers[cookie] = _NOT_KNOWN
    for row in book.unfinished.values():
        row.unknown = True


_HANDLERS: Final[dict[type, Callable[[Ledger, Any], list[LedgerEvent]]]] = {
    ReplicatedWrite: Ledger._write,
    WritePart: Ledger._part,
    Answer: Ledger._answer,
    Barrier: Ledger._barrier,
    BarrierAnswer: Ledger._barrier_answer,
    Resync: Ledger._resync,
    Leaving: Ledger._leaving,
    Other: Ledger._other,
    Opened: Ledger._opened,
    Closed: Ledger._closed,
    Hole: Ledger._hole,
    Malformed: Ledger._malformed,
}
assert set(_HANDLERS) == set(get_args(LinkMessage))
