"""The ledger of the replication link: one row a replicated write, from its P_DATA to its
acknowledgement and barrier.

Session events in, ledger events out. The ledger says what is *certainly* so: a row that a hole in
the capture may have touched is ``unknown`` and gives no event; where a write may have gone unseen,
an acknowledgement without a write and a barrier's count are not judged. Memory is bounded: finished
rows are counted and the last ones kept, unfinished ones are limited in number.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from freezeframe.harness.core.blocks.blockstamp import is_broken
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.drbdsession import (
    MAX_SESSIONS,
    Blind,
    Broken,
    Seen,
    Session,
    SessionClosed,
    SessionEvent,
)
from freezeframe.harness.core.link.drbdstream import DrbdPacket, Malformed
from freezeframe.harness.core.link.ledgerevents import (
    Acknowledged,
    BarrierMismatch,
    BrokenStamp,
    DigestMismatch,
    LedgerEvent,
    MalformedSeen,
    NegativeAck,
    RepeatedAck,
    Totals,
    UnackedClose,
    UnknownAck,
    WriteRow,
    WriteSent,
)
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

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
CRC_BYTES: Final = 4
"""Only crc32c's digest is so short."""

_ACKS: Final = frozenset(
    {Cmd.WRITE_ACK, Cmd.RS_WRITE_ACK, Cmd.RECV_ACK, Cmd.SUPERSEDED, Cmd.RETRY_WRITE, Cmd.NEG_ACK}
)
_NOT_KNOWN: Final = -1
"""In place of an epoch's number of writes: some may not have been captured."""
_T = TypeVar("_T")
_V = TypeVar("_V")
_Key = tuple[int, bytes, int]
"""(volume, block_id, sector)"""


@dataclass(eq=False, slots=True)
class _Book:
    """The rows of one session."""

    unfinished: OrderedDict[_Key, WriteRow] = field(default_factory=OrderedDict)
    finished: OrderedDict[_Key, WriteRow] = field(default_factory=OrderedDict)
    epoch: int = 0
    epoch_writes: int = 0
    epoch_known: bool = False
    """No write of the current epoch can have been missed."""
    barriers: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """Cookie -> writes before it, or _NOT_KNOWN."""
    early_acks: OrderedDict[_Key, tuple[int, Ns, int]] = field(default_factory=OrderedDict)
    """Acknowledgements that no write waited for: (packet number, time, command). The capture gives
    out a write late when it stood behind a hole of the data socket, while the meta socket ran
    on."""
    early_barrier_acks: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """The same for barriers: cookie -> packet number."""
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


@dataclass(frozen=True, slots=True)
class _Doubtful:
    """A finding that a hole in the capture may yet explain."""

    due_ns: Ns
    session: int
    key: _Key | None
    event: LedgerEvent


class Ledger:
    """``on`` takes each session event in order; ``frames_lost`` is told when the kernel has dropped
    frames."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._books: dict[int, _Book] = {}
        self._doubtful: deque[_Doubtful] = deque()

    def on(self, event: SessionEvent) -> list[LedgerEvent]:
        """Take one session event. What is found at once comes out at once; doubtful findings come
        by ``tick``."""
        match event:
            case SessionClosed():
                return self._closed(event)
            case _ if event.session.closed:
                return []  # still under way when the meta socket closed: nobody will answer
            case Seen():
                handler = _HANDLERS.get(event.packet.command)
                return [] if handler is None else handler(self, event)
            case Blind():
                self._blind(event)
                return []
            case Broken():
                self._writes_missed(self._book(event.session), event.session)
                _silence_unknown(self._book(event.session), event.malformed.t_ns)
                return [MalformedSeen(event.session, event.sender, event.malformed)]

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

    def rows(self, session: Session) -> list[WriteRow]:
        """The rows still held: finished ones first, then the unfinished."""
        book = self._book(session)
        return [*book.finished.values(), *book.unfinished.values()]

    def _book(self, session: Session) -> _Book:
        book = self._books.get(session.number)
        if book is None:
            # A session whose handshake was seen has no writes from before the capture.
            whole = bool(session.version)
            book = _Book(epoch_known=whole, complete=whole, blind_since_barrier=not whole)
            self._books[session.number] = book
            if len(self._books) > MAX_SESSIONS:
                del self._books[next(iter(self._books))]
        return book

    def _write(self, seen: Seen) -> list[LedgerEvent]:
        packet, session, sender = seen.packet, seen.session, seen.sender
        book = self._book(session)
        if not session.primary_address:
            session.primary_address = sender
        sector, block_id, _, dp_flags = drbd.P_DATA.unpack_from(packet.body)
        row = WriteRow(
            session=session,
            sender=sender,
            command=packet.command,
            volume=packet.volume,
            sector=sector,
            block_id=block_id,
            size_bytes=0,
            t_sent_ns=packet.t_ns,
            first_packet_no=packet.first_packet_no,
            packet_no=packet.packet_no,
            epoch=book.epoch,
            expects_ack=session.expects_ack(packet.header, dp_flags),
            unknown=packet.tentative
            or packet.t_ns <= max(book.silence_unknown_to_ns, book.suspect_to_ns),
        )
        events: list[LedgerEvent] = [WriteSent(row)]
        if packet.command == Cmd.DATA:
            self._check_digest(row, packet, events)
        else:
            row.size_bytes = drbd.P_TRIM.unpack_from(packet.body)[4]
        book.epoch_writes += 1
        self.totals.writes += 1
        self.totals.bytes_written += row.size_bytes
        key = (packet.volume, block_id, sector)
        book.finished.pop(key, None)
        self._doubtful = (
            deque(d for d in self._doubtful if d.key != key) if self._doubtful else self._doubtful
        )
        early = book.early_acks.pop(key, None)
        if early is not None and early[0] > row.packet_no:
            row.ack_packet_no, row.t_ack_ns, row.ack = early
            row.unknown = True
            self.totals.acks += 1
        if not row.expects_ack or row.ack >= 0:
            _keep(book, key, row)
            return events
        book.unfinished[key] = row
        if len(book.unfinished) > MAX_UNFINISHED:
            _, oldest = book.unfinished.popitem(last=False)
            oldest.unknown = True
            self.totals.rows_given_up += 1
            _forget_writes(book)
        return events

    def _check_digest(self, row: WriteRow, packet: DrbdPacket, events: list[LedgerEvent]) -> None:
        """Split digest and data, and check the one against the other."""
        payload = packet.body[drbd.P_DATA.size :]
        integrity = row.session.integrity(row.sender, len(payload))
        if integrity is None:
            row.size_bytes = len(payload)
            if not packet.tentative:
                what = f"P_DATA with {len(payload)} bytes of digest and data: not whole sectors"
                where = (packet.t_ns, packet.packet_no, packet.offset)
                wrong = Malformed(*where, what, bytes(packet.body[:32]))
                events.append(MalformedSeen(row.session, row.sender, wrong))
            return
        size = integrity.size_bytes
        row.algorithm, row.size_bytes = integrity.name, len(payload) - size
        if integrity.digest is None or packet.tentative:
            return
        row.digest_wire = bytes(payload[:size])
        row.digest_computed = integrity.digest(payload[size:])
        self.totals.digests_checked += 1
        if row.digest_wire != row.digest_computed:
            self.totals.digests_wrong += 1
            events.append(DigestMismatch(row, bytes(packet.body[:_EXCERPT_BYTES])))
        elif size == CRC_BYTES and is_broken(
            payload[size:], int.from_bytes(row.digest_computed, "little")
        ):
            events.append(BrokenStamp(row, bytes(packet.body[:_EXCERPT_BYTES])))

    def _ack(self, seen: Seen) -> list[LedgerEvent]:
        packet, book = seen.packet, self._book(seen.session)
        sector, block_id, _, _ = drbd.P_BLOCK_ACK.unpack_from(packet.body)
        if block_id == drbd.ID_SYNCER:
            return []  # resync traffic
        key = (packet.volume, block_id, sector)
        row = book.unfinished.pop(key, None)
        if row is None:
            return [] if packet.tentative else self._ack_again(seen, book, key)
        row.ack, row.t_ack_ns, row.ack_packet_no = packet.command, packet.t_ns, packet.packet_no
        self.totals.acks += 1
        self.totals.latency_sum_ns += row.latency_ns
        self.totals.latency_max_ns = max(self.totals.latency_max_ns, row.latency_ns)
        _keep(book, key, row)
        if packet.command == Cmd.NEG_ACK:
            return [NegativeAck(seen.session, seen.sender, packet, row)]
        return [Acknowledged(row)]

    def _ack_again(self, seen: Seen, book: _Book, key: _Key) -> list[LedgerEvent]:
        """An acknowledgement that no open write waits for."""
        packet, row = seen.packet, book.finished.get(key)
        if packet.command == Cmd.NEG_ACK:
            return [NegativeAck(seen.session, seen.sender, packet, row)]
        if row is not None and row.ack in (-1, Cmd.RECV_ACK) and row.ack != packet.command:
            row.ack = packet.command  # it was not due, or protocol B's first answer stood for it
            return []
        if row is None:
            self.totals.orphans += 1
        _remember(book.early_acks, key, (packet.packet_no, packet.t_ns, packet.command))
        if book.complete:
            kept = own_packet(packet)
            self._doubt(
                RepeatedAck(row, seen.sender, kept) if row else UnknownAck(seen.session, seen.sender, kept),
                seen.session, packet.t_ns, key,
            )  # fmt: skip
        return []

    def _doubt(
        self, event: LedgerEvent, session: Session, t_ns: Ns, key: _Key | None = None
    ) -> None:
        if len(self._doubtful) < MAX_DOUBTFUL:
            self._doubtful.append(_Doubtful(t_ns + JUDGEMENT_NS, session.number, key, event))

    def _barrier(self, seen: Seen) -> list[LedgerEvent]:
        book = self._book(seen.session)
        cookie, _ = drbd.P_BARRIER.unpack_from(seen.packet.body)
        answered = book.early_barrier_acks.pop(cookie, 0) > seen.packet.packet_no
        if seen.packet.tentative:
            if not answered:
                book.barriers[cookie] = _NOT_KNOWN
            return []
        if not answered:
            known = book.epoch_known and seen.packet.t_ns > book.silence_unknown_to_ns
            book.barriers[cookie] = book.epoch_writes if known else _NOT_KNOWN
        if len(book.barriers) > MAX_OPEN_BARRIERS:
            book.barriers.popitem(last=False)
            _forget_writes(book)
        book.epoch += 1
        book.epoch_writes, book.epoch_known, book.blind_since_barrier = 0, True, False
        return []

    def _barrier_ack(self, seen: Seen) -> list[LedgerEvent]:
        packet, session, sender = seen.packet, seen.session, seen.sender
        book = self._book(session)
        cookie, told = drbd.P_BARRIER_ACK.unpack_from(packet.body)
        shown = f"barrier 0x{int.from_bytes(cookie, 'little'):x}"
        if cookie not in book.barriers:
            _remember(book.early_barrier_acks, cookie, packet.packet_no)
            if book.complete and not packet.tentative:
                event = BarrierMismatch(
                    session, sender, own_packet(packet), f"{shown} is not open, {told} writes told"
                )
                self._doubt(event, session, packet.t_ns)
            return []
        events: list[LedgerEvent] = []
        while True:  # barriers are answered in their order
            opened, expected = book.barriers.popitem(last=False)
            if opened == cookie:
                break
            if expected != _NOT_KNOWN:
                skipped = (
                    f"barrier 0x{int.from_bytes(opened, 'little'):x} was skipped, {shown} came"
                )
                events.append(BarrierMismatch(session, sender, packet, skipped))
        if expected == _NOT_KNOWN:
            if not book.blind_since_barrier and _NOT_KNOWN not in book.barriers.values():
                book.complete = True  # whatever was missed is acknowledged by now
        elif expected != told:
            detail = f"{shown} acknowledges {told} writes, its epoch had {expected}"
            events.append(BarrierMismatch(session, sender, packet, detail))
        return events

    def _blind(self, event: Blind) -> None:
        book = self._book(event.session)
        book.suspect_to_ns = event.t_ns + SUSPECT_NS
        if event.socket != "meta":
            self._writes_missed(book, event.session)
        if event.socket != "data":
            _silence_unknown(book, event.t_ns)

    def _writes_missed(self, book: _Book, session: Session) -> None:
        _forget_writes(book)
        self._doubtful = deque(d for d in self._doubtful if d.session != session.number)

    def _closed(self, event: SessionClosed) -> list[LedgerEvent]:
        book = self._books.pop(event.session.number, None)
        if book is None:
            return []
        rows = [row for row in book.unfinished.values() if row.waiting]
        for row in rows:
            row.closed, row.t_closed_ns = True, event.t_ns
        if not rows or event.session.leaving or event.reason in ("end of capture", "evicted"):
            return []
        return [UnackedClose(event, rows)]


def own_packet(packet: DrbdPacket) -> DrbdPacket:
    """The packet with a body of its own, to outlive the memory of the frame."""
    return msgspec.structs.replace(packet, body=memoryview(bytes(packet.body)))


def _keep(book: _Book, key: _Key, row: WriteRow) -> None:
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


_HANDLERS: Final[dict[int, Callable[[Ledger, Seen], list[LedgerEvent]]]] = {
    **dict.fromkeys(drbd.WRITES, Ledger._write),
    **dict.fromkeys(_ACKS, Ledger._ack),
    Cmd.BARRIER: Ledger._barrier,
    Cmd.BARRIER_ACK: Ledger._barrier_ack,
}
