"""The books that the ledger keeps: the rows of one session, and what may be concluded from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.ledgerevents import AboutAnswer, WriteRow
from freezeframe.harness.core.link.messages import (
    Answer,
    BarrierAnswer,
    Closed,
    LinkSession,
    ReplicatedWrite,
    WritePart,
)

MAX_SESSIONS: Final = 64
"""Kept at once; a rig has one or two."""
MAX_UNFINISHED: Final = 65536
"""Unacknowledged writes kept a session; a node has at most some thousands in flight."""
KEPT_ROWS: Final = 8192
"""Finished rows kept a session: the window in which a repeated acknowledgement is known as one."""
MAX_OPEN_BARRIERS: Final = 4096
MAX_EARLY: Final = 4096
"""Answers remembered that came before what they answer."""
SUSPECT_NS: Final = NS_PER_S
"""A capture that has just lost frames may have lost an answer together with every later sign of
it."""
PROVING_ID_BYTES: Final = 8
"""An answer that was found by looking, and names a write under way by so long an id, is one; a tag
of 16 or 32 bits may stand in anybody's data."""
EXCERPT_BYTES: Final = 64
CRC32C: Final = "crc32c"
"""The digest that the stamps of our own writer use too."""
MATCHES_TO_BELIEVE: Final = 16
"""Digests of an inferred algorithm that must fit, in a session and direction, before one that does
not fit is the data's fault and not the inference's. One of 4 bytes fits by chance in 1 of 2**32."""
REORDER_NS: Final = 5 * NS_PER_MS
REORDER_FRAMES: Final = 64
"""Two sockets, queues, taps or merged files: an answer may be captured so much before what it
answers, at most."""
PARTING_NS: Final = NS_PER_S
"""What was answered less than this before a session's end may not have reached the writer."""
MAX_ASSEMBLING: Final = 1024
"""Writes of a session whose data are still coming ..."""
MAX_ASSEMBLED_BYTES: Final = 64 << 20
"""... and what is held of the data of all of them."""

END_OF_CAPTURE: Final = "end of capture"
NO_CLOSE: Final = (END_OF_CAPTURE, "evicted")
"""Reasons of a Closed that say nothing about the session itself."""
RESYNC_TRAFFIC: Final = frozenset({"data", "answer", "request", "bitmap"})
"""What Totals.resync_messages counts."""
NOT_KNOWN: Final = -1
"""In place of an epoch's number of writes: some may not have been captured."""
_T = TypeVar("_T")
_V = TypeVar("_V")


@dataclass(eq=False, slots=True)
class Assembly:
    """A write whose data are still coming."""

    row: WriteRow
    data: bytearray | None
    """None: too much is being put together already."""
    missing_bytes: int


@dataclass(eq=False, slots=True)
class WriterBook:
    """What is known of all writes and barriers of one end. With two primaries each end has its own: what
    was missed of one says nothing about the other."""

    epoch_writes: int = NOT_KNOWN
    """Since its last barrier, or NOT_KNOWN: one may have been missed."""
    complete: bool = False
    """Every write that an acknowledgement may still name was captured."""
    blind_since_barrier: bool = True
    """No barrier was captured since writes may have been missed."""
    missed_ns: Ns = -1
    """Until then a write may have gone unseen since the capture began; -1: none has."""

    def miss(self, t_ns: Ns) -> None:
        """Writes may have gone unseen until ``t_ns``: judge no count and no stray acknowledgement until a
        barrier has come round."""
        self.missed_ns = max(self.missed_ns, t_ns)
        self.epoch_writes, self.complete, self.blind_since_barrier = NOT_KNOWN, False, True


@dataclass(eq=False, slots=True)
class Book:
    """The rows of one session."""

    unfinished: OrderedDict[Hashable, WriteRow] = field(default_factory=OrderedDict)
    finished: OrderedDict[Hashable, WriteRow] = field(default_factory=OrderedDict)
    whole: bool = False
    """The session's greeting was captured."""
    writers: dict[str, WriterBook] = field(default_factory=dict)
    """By address."""
    epoch: int = 0
    barriers: OrderedDict[tuple[str, bytes], int] = field(default_factory=OrderedDict)
    """Sender and cookie -> writes before it, or NOT_KNOWN."""
    early_acks: OrderedDict[Hashable, Answer] = field(default_factory=OrderedDict)
    """Answers that no write waited for: the capture gives out a write late when it stood behind a
    hole of its stream, while that of the answers ran on."""
    early_barrier_acks: OrderedDict[tuple[str, bytes], BarrierAnswer] = field(
        default_factory=OrderedDict
    )
    """The same for barriers."""
    owed: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)
    """Key -> answers not given out yet to writes whose id was used again: they stand behind a hole of
    their stream, or were not captured."""
    matches: dict[str, int] = field(default_factory=dict)
    """Sender -> digests of an algorithm that was only inferred, and that fitted."""
    assembling: dict[Hashable, Assembly] = field(default_factory=dict)
    """Writes whose data come in several messages."""
    silence_unknown_to_ns: Ns = -1
    """The capture may lack answers from before this time: silence about what was sent until then
    proves nothing."""
    suspect_to_ns: Ns = -1
    """For SUSPECT_NS after a hole the capture is not trusted with silence about new writes
    either."""
    marks: tuple[tuple[Ns, int], tuple[Ns, int]] = ((-1, 0), (-1, 0))
    """(time, first epoch that was not confirmed then), twice, PARTING_NS apart: what was confirmed on
    the link since may not have reached the writer when it stopped."""
    t_confirmed_ns: Ns = -1
    """When a barrier was answered last."""
    disputed: int = 1 << 62
    """The first epoch whose barrier was answered wrongly."""
    first_answer_ns: Ns = 1 << 62
    """When the first answer was captured; far in the future: none was yet."""
    written_ns: Ns = -1
    """When a write or barrier was captured last."""
    leaving: bool = False
    """An end has announced that it disconnects."""

    def writer(self, address: str) -> WriterBook:
        """What is known of the writes of that end."""
        found = self.writers.get(address)
        if found is None:
            found = self.writers[address] = WriterBook()
        return found

    def has_come_round(self, address: str) -> bool:
        """Whether no answer can come any more to a write of that end that was missed: a barrier after the
        last of them was captured and answered."""
        if self.writer(address).blind_since_barrier:
            return False
        return not any(
            one[0] == address and count == NOT_KNOWN for one, count in self.barriers.items()
        )

    @property
    def outstanding(self) -> int:
        """Writes that wait for their answer."""
        return sum(row.waiting for row in self.unfinished.values())


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A finding that a hole in the capture may yet explain."""

    due_ns: Ns
    session: int
    key: Hashable
    event: AboutAnswer


def is_disorder(answer: Answer | BarrierAnswer, t_ns: Ns, packet_no: int) -> bool:
    """Whether an answer that was given out before what it answers, which was captured at ``t_ns`` in
    frame ``packet_no``, is only out of order. Given out later than captured: it stood behind a
    hole."""
    if answer.packet_no > packet_no:
        return True
    return packet_no - answer.packet_no <= REORDER_FRAMES and t_ns - answer.t_ns <= REORDER_NS


def new_book(session: LinkSession, *, whole: bool) -> Book:
    """``whole``: its greeting was captured, so that it has no writes from before the capture."""
    return Book(
        whole=whole,
        writers={
            one: WriterBook(0 if whole else NOT_KNOWN, whole, not whole)
            for one in session.addresses
        },
    )


def answered(answer: Answer | BarrierAnswer) -> str:
    """Address of the end whose write or barrier this answers; of both, where they have one address."""
    return next((one for one in answer.session.addresses if one != answer.sender), answer.sender)


def keep(book: Book, key: Hashable, row: WriteRow) -> None:
    book.finished[key] = row
    if len(book.finished) > KEPT_ROWS:
        book.finished.popitem(last=False)


def begin(book: Book, key: Hashable, row: WriteRow) -> None:
    """Wait for the answer to a write. A sender uses an id again only after its answer, so that a write
    which still waits under it has been answered."""
    if key in book.unfinished:
        remember(book.owed, key, book.owed.get(key, 0) + 1)
    book.unfinished[key] = row


def is_owed(book: Book, key: Hashable) -> bool:
    """Whether an answer that no write waits for is one to an earlier write of this id; it is then
    settled."""
    left = book.owed.pop(key, 0)
    if left > 1:
        book.owed[key] = left - 1
    return left > 0


def had_its_answer(book: Book, row: WriteRow) -> bool:
    """Whether an answer more than ``row`` has is one too many: no write was missed that it may be for; or,
    also where the capture began in the middle of a session, none since ``row``, and its answer was captured
    after it. One that was captured before may be for a write that was missed, which had the same id."""
    is_own = row.answer_packet_no > row.packet_no
    writer = book.writer(row.sender)
    return writer.complete or (row.t_sent_ns > writer.missed_ns and is_own)


def remember(early: OrderedDict[_T, _V], key: _T, value: _V) -> None:
    early[key] = value
    if len(early) > MAX_EARLY:
        early.popitem(last=False)


def silence_unknown(book: Book, t_ns: Ns) -> None:
    book.silence_unknown_to_ns = max(book.silence_unknown_to_ns, t_ns)
    for cookie in book.barriers:
        book.barriers[cookie] = NOT_KNOWN
    for row in book.unfinished.values():
        row.unknown = True


def note_answer(row: WriteRow, message: Answer) -> None:
    row.answer, row.answer_code, row.answer_name = message.kind, message.code, message.name
    row.t_answer_ns, row.answer_packet_no = message.t_ns, message.packet_no


def excerpt(message: ReplicatedWrite | WritePart) -> bytes:
    raw = message.raw if type(message) is ReplicatedWrite else message.data
    return bytes(raw[:EXCERPT_BYTES])


def confirm(book: Book, t_ns: Ns, oldest: int, is_right: bool) -> None:
    """The barrier of epoch ``oldest`` was answered."""
    if not is_right:
        book.disputed = min(book.disputed, oldest)
    if t_ns - book.t_confirmed_ns > PARTING_NS:
        book.marks = ((t_ns, oldest), (t_ns, oldest))
    elif t_ns - book.marks[1][0] > PARTING_NS:
        book.marks = (book.marks[1], (t_ns, oldest))
    book.t_confirmed_ns = t_ns


def close(row: WriteRow, message: Closed) -> None:
    """No answer comes any more, or none is seen."""
    row.closed, row.closed_by = True, message.closer
    row.t_closed_ns = 0 if message.reason == END_OF_CAPTURE else message.t_ns


def unconfirmed(book: Book, t_ns: Ns) -> list[WriteRow]:
    """Writes that were answered, and whose epoch's barrier was not, or wrongly, or so late that the
    writer may not know: the newest ones."""
    first = min(book.epoch - len(book.barriers), book.disputed)
    if t_ns - book.t_confirmed_ns <= PARTING_NS:
        first = min(first, book.marks[0][1])
    return [row for row in book.finished.values() if row.epoch >= first]
