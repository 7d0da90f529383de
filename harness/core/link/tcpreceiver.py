"""One direction of a TCP connection as its receiver's kernel sees it: sequence state, the queue of
what came too early, and the segments whose fate only the receiver's acknowledgement tells.

The rules are those of Linux (``net/ipv4/tcp_input.c``), which follow RFC 9293, RFC 5961 and RFC
7323. Positions are stream offsets: 0 is the byte after the SYN, or the first byte seen. A FIN takes
one position, as it takes one sequence number.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, NamedTuple

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.skim import NEVER, TIMESTAMPS_OFF, HalfState, signed
from freezeframe.harness.core.link.streams import Flow

HOLE_PATIENCE_NS: Final = 50 * NS_PER_MS
"""Longer than any disorder between the two directions of one capture, far shorter than any deadline
of a rule."""
HOLE_LIMIT_NS: Final = 500 * NS_PER_MS
"""A hole that nobody acknowledges is waited for so long: the sender repeats the segment after 200
ms and 400 ms. A refused segment is remembered as long."""
MAX_DOUBTS: Final = 1024
MAX_DOUBT_BYTES: Final = 1 << 20
"""Refused segments that are remembered a direction."""
SLOWEST_TICK_NS: Final = 10 * NS_PER_MS
"""Of a sender's clock of which nothing is known yet: the slowest that are in use."""
CLOCK_JITTER_NS: Final = 50 * NS_PER_MS
"""Between the sending of two frames and their times in the capture, as virtual machines have it."""
FASTEST_TICK_NS: Final = NS_PER_MS
"""RFC 7323 5.4 ..."""
MICROSECOND_CLOCK_NS: Final = FASTEST_TICK_NS // 20
"""... but for clocks that count microseconds, as Linux may: what is measured of one is at most this."""
MIN_TICKS: Final = 20
"""So many show how fast it is."""
CLOCK_STEP_NS: Final = 250 * NS_PER_MS
"""A clock that was set by less is not noticed; far below all deadlines of rules."""
_TCP_NUM_SACKS: Final = 4
_MAX_SCALE: Final = 14
_ALIGNED_TIMESTAMP: Final = b"\x01\x01\x08\x0a"
_LEARN_FIRST: Final = 3
"""A direction whose first frames all have wrong checksums was captured before they were filled
in."""
_LEARN_VOUCHED: Final = 4
"""So many segments with a wrong checksum that the receiver acknowledged, without a right copy of
them in the capture, for each one that was repeated with a right one."""


class TcpOptions(NamedTuple):
    """The TCP options that decide about a segment; -1 or empty: not there."""

    tsval: int = -1
    scale: int = -1
    sack_ok: bool = False
    sacks: tuple[tuple[int, int], ...] = ()


class TcpSegment(NamedTuple):
    """One captured TCP segment."""

    t_ns: Ns
    packet_no: int
    seq: int
    ack: int
    flags: int
    window: int
    options: TcpOptions
    data: memoryview
    """As far as it was captured."""
    length: int
    """Bytes of data on the wire."""
    verdict: int
    """Of its checksum, as ``skim.judge_sum``."""


class QueuedSegment(NamedTuple):
    """A segment in the queue of those that came too early."""

    at: int
    end: int
    """Behind its last byte, and its FIN."""
    t_ns: Ns
    packet_no: int
    data: bytes | memoryview
    fin: bool

    def kept(self) -> QueuedSegment:
        """With bytes of its own: those of a frame live no longer than its memory."""
        return QueuedSegment(
            self.at, self.end, self.t_ns, self.packet_no, bytes(self.data), self.fin
        )


class SenderClock(NamedTuple):
    """The timestamps of one sender (RFC 7323): of the first segment that carried one, and of the
    newest."""

    t_first_ns: Ns
    first: int
    t_ns: Ns
    newest: int

    def at(self, t_ns: Ns, tsval: int) -> SenderClock:
        return SenderClock(self.t_first_ns, self.first, t_ns, tsval)

    def is_behind(self, t_ns: Ns, tsval: int) -> bool:
        """Whether the clock of the capture has gone on by far more than the sender's."""
        ticks, known = signed(tsval - self.newest), signed(self.newest - self.first)
        tick_ns = SLOWEST_TICK_NS
        if known >= MIN_TICKS:
            elapsed_ns = max(self.t_ns - self.t_first_ns, 0) + CLOCK_JITTER_NS
            measured_ns = elapsed_ns // known
            if measured_ns > MICROSECOND_CLOCK_NS:
                measured_ns = max(measured_ns, FASTEST_TICK_NS)
            tick_ns = min(tick_ns, measured_ns)
        return t_ns - self.t_ns > max(ticks + 2, 0) * tick_ns * 5 // 4 + CLOCK_STEP_NS


class RefusedSegment(NamedTuple):
    """A segment that the model refuses. The receiver's acknowledgement overrules the model."""

    node: QueuedSegment
    rule: str
    tsval: int


@dataclass(eq=False, slots=True)
class AddressPair:
    """What is known of the frames from one address to another, over all connections: whether their
    checksums mean anything (a sender with checksum offload is captured before they are filled in),
    and what was captured of them."""

    is_meaningful: bool = False
    """A right one was seen."""
    is_verified: bool = True
    """False: learned that they mean nothing."""
    first_wrong: int = 0
    vouched: int = 0
    repeated: int = 0
    is_heard: bool = False
    """A frame was captured."""
    has_spoken: bool = False
    """Bytes of a stream were captured."""
    first_bytes: bytes = b""
    """Of the first stream that was captured from its beginning."""
    connections: int = 0

    def wrong(self) -> bool:
        """Count a wrong checksum before any right one; True: now they are not verified any more."""
        self.first_wrong += 1
        if not self.is_meaningful and self.first_wrong >= _LEARN_FIRST:
            self.is_verified = False
        return not self.is_verified

    def vouch(self) -> None:
        """A segment with a wrong checksum was acknowledged, and no right copy was captured."""
        self.vouched += 1
        if self.vouched >= _LEARN_VOUCHED * (1 + self.repeated):
            self.is_verified = False


@dataclass(frozen=True, slots=True)
class PendingSyn:
    """A SYN on a connection that lives: the receiver ignores it, unless its answer shows that it
    had forgotten the connection."""

    segment: TcpSegment
    is_answer: bool


class Half(HalfState):
    """One direction; ``HalfState`` holds what a frame in the middle of a bulk transfer touches."""

    __slots__ = (
        "attended", "closed", "doubt_bytes", "doubts", "flow", "heard", "isn", "missed_since_ns",
        "missed_to", "offered", "opened", "opening", "pending", "pending_bytes", "repeated_ns",
        "sack_ok", "sacks", "sender_waits", "stamped", "syn_window", "trust",
        "whole_ns",
    )  # fmt: skip

    other: Half

    def __init__(self, flow: Flow, trust: AddressPair) -> None:
        super().__init__()
        self.flow = flow
        self.fill = flow.fill
        self.trust = trust
        self.verify = trust.is_verified
        self.heard = False
        """A frame of this direction was captured."""
        self.isn: int | None = None
        self.offered: TcpOptions | None = None
        """The options of this sender's SYN."""
        self.syn_window = 0
        self.opening: PendingSyn | None = None
        self.opened = False
        self.closed = False
        self.pending: list[QueuedSegment] = []
        """By position; no node lies within another (as in Linux's tree)."""
        self.pending_bytes = 0
        self.sack_ok = False
        self.sacks: list[tuple[int, int]] = []
        """As the receiver keeps them: at most four, the newest first."""
        self.missed_to = 0
        self.missed_since_ns: Ns | None = None
        self.sender_waits = False
        """The hole is the network's: the receiver asks for these bytes itself."""
        self.doubts: list[RefusedSegment] = []
        self.doubt_bytes = 0
        self.repeated_ns: Ns = -1
        """When its sender last repeated bytes that were captured before."""
        self.stamped: SenderClock | None = None
        self.attended = False
        """``whole_ns`` is kept."""
        self.whole_ns: Ns = -1
        """When its receiver last acknowledged what was captured of it, and no more."""

    def judge(self) -> None:
        """Say whether frames of this direction may be passed over; after whatever changes that."""
        trust = self.trust
        self.verify, self.sums_known = trust.is_verified, trust.is_meaningful
        self.spoken = trust.has_spoken
        self.steady = (
            self.next_seq >= 0
            and not self.pending
            and self.missed_since_ns is None
            and not self.closed
            and not self.doubts
            and self.opening is None
            and not self.attended
        )

    def position(self, seq: int) -> int:
        """The stream offset that a sequence number means; only where ``next_seq`` is known."""
        return self.offset + signed(seq - self.next_seq)

    @property
    def sent_to(self) -> int:
        """Behind the last position that was captured."""
        return max(self.offset, self.pending[-1].end) if self.pending else self.offset

    @property
    def received_to(self) -> int:
        """The receiver has everything below this position, by its own word."""
        return self.acked if self.missed_since_ns is None else max(self.acked, self.missed_to)

    @property
    def waits(self) -> bool:
        """For bytes that the capture may have missed, or for a word about a refused segment."""
        return (
            self.missed_since_ns is not None
            or (bool(self.pending) and not self.sender_waits)
            or bool(self.doubts)
        )

    def deadline_ns(self) -> Ns:
        """When it stops to wait."""
        if self.missed_since_ns is not None:
            return self.missed_since_ns + HOLE_PATIENCE_NS
        due = [self.pending[0].t_ns] if self.pending and not self.sender_waits else []
        due += [self.doubts[0].node.t_ns] if self.doubts else []
        return min(due) + HOLE_LIMIT_NS

    def overlaps(self, node: QueuedSegment) -> bool:
        """Bytes of ``node`` are queued already. As no queued node lies within another, their ends are
        in order too: only its two neighbours can overlap it."""
        pending = self.pending
        at = bisect_left(pending, (node.at + 1,))
        return (at > 0 and pending[at - 1].end > node.at) or (
            at < len(pending) and pending[at].at < node.end
        )

    def hold(self, node: QueuedSegment) -> bool:
        """Queue what came too early, as Linux's ``tcp_data_queue_ofo``: what lies within one that
        is there is dropped, one that begins with it and is shorter is replaced, later ones within
        it are dropped; otherwise both stay, and the earlier bytes are taken from the one that
        begins first. False: dropped.

        Linux may first join segments that follow each other, where their memory allows it; that
        shows only where copies of one byte differ.
        """
        pending = self.pending
        self._note_sack(node.at, node.end)
        at = bisect_left(pending, (node.at + 1,))
        if at:
            before = pending[at - 1]
            if node.end <= before.end:
                return False
            if node.at == before.at:
                at -= 1
                self._remove(at)
        pending.insert(at, node)
        self.pending_bytes += len(node.data)
        while at + 1 < len(pending) and pending[at + 1].end <= node.end:
            self._remove(at + 1)
        return True

    def next_ready(self) -> QueuedSegment | None:
        """Take the next node that the stream has reached."""
        while self.pending and self.pending[0].at <= self.offset:
            node = self.pending[0]
            self._remove(0)
            if node.end > self.offset:
                return node
        return None

    def _remove(self, at: int) -> None:
        self.pending_bytes -= len(self.pending[at].data)
        del self.pending[at]

    def forget_pending(self) -> None:
        self.pending.clear()
        self.sacks.clear()
        self.pending_bytes = 0

    def doubt(self, node: QueuedSegment, rule: str, tsval: int) -> None:
        """Remember a refused segment; the oldest are forgotten."""
        if node.end <= self.offset:
            return
        self.doubts.append(RefusedSegment(node, rule, tsval))
        self.doubt_bytes += len(node.data)
        while len(self.doubts) > MAX_DOUBTS or self.doubt_bytes > MAX_DOUBT_BYTES:
            self.doubt_bytes -= len(self.doubts.pop(0).node.data)

    def confirmed(self, from_at: int, to: int) -> list[RefusedSegment]:
        """Take out the refused segments that an acknowledgement of these positions vouches for: the
        receiver has their bytes, and no other copy of them was captured."""
        found = [
            one
            for one in self.doubts
            if from_at <= one.node.at
            and one.node.end <= to
            and one.node.end > self.offset
            and not (one.rule == "checksum" and self.trust.is_verified and self.trust.is_meaningful)
            and not self.holds(one.node)
        ]
        if found:
            taken = {id(one) for one in found}
            self._keep([one for one in self.doubts if id(one) not in taken])
        return found

    def holds(self, node: QueuedSegment) -> bool:
        """All positions of ``node`` are queued already, from other segments."""
        at, pending = max(node.at, self.offset), self.pending
        first = bisect_left(pending, (at + 1,)) - 1
        for number in range(max(first, 0), len(pending)):
            one = pending[number]
            if one.at > at or at >= node.end:
                break
            at = max(at, one.end)
        return at >= node.end

    def settle_doubts(self, *, by_gap: bool) -> None:
        """The stream has passed some of the refused segments: a right copy came, or, by a gap,
        none."""
        passed = [one for one in self.doubts if one.node.end <= self.offset]
        if not passed:
            return
        for one in passed:
            if one.rule == "checksum" and by_gap:
                self.trust.vouch()
            elif one.rule == "checksum":
                self.trust.repeated += 1
        self._keep([one for one in self.doubts if one.node.end > self.offset])

    def expire_doubts(self, now_ns: Ns) -> list[RefusedSegment]:
        """Forget the refused segments that nobody vouched for. Returned are those that lay beyond
        the window while no frame of the receiver was captured any more: how far its window has
        moved is not known then."""
        old = [one for one in self.doubts if one.node.t_ns + HOLE_LIMIT_NS <= now_ns]
        self._keep([one for one in self.doubts if one.node.t_ns + HOLE_LIMIT_NS > now_ns])
        silent = self.other.last_packet_no
        return [one for one in old if one.rule == "window" and silent < one.node.packet_no]

    def _keep(self, doubts: list[RefusedSegment]) -> None:
        self.doubts = doubts
        self.doubt_bytes = sum(len(one.node.data) for one in doubts)

    # --- selective acknowledgements, as the receiver keeps them (tcp_sack_new_ofo_skb) ---
    def _note_sack(self, start: int, end: int) -> None:
        if not self.sack_ok:
            return
        blocks = self.sacks
        for number, (a, b) in enumerate(blocks):
            if start <= b and a <= end:
                del blocks[number]
                blocks.insert(0, (min(a, start), max(b, end)))
                self._join_sacks()
                return
        del blocks[_TCP_NUM_SACKS - 1 :]
        blocks.insert(0, (start, end))

    def _join_sacks(self) -> None:
        (start, end), kept = self.sacks[0], []
        for a, b in self.sacks[1:]:
            if a <= end and start <= b:
                start, end = min(start, a), max(end, b)
            else:
                kept.append((a, b))
        self.sacks[:] = [(start, end), *kept]

    def drop_sacks(self) -> None:
        """The stream has moved on (tcp_sack_remove)."""
        self.sacks[:] = [one for one in self.sacks if one[0] > self.offset] if self.pending else []

    def resets(self, at: int) -> bool:
        """A RST at ``at`` ends the connection: exactly the next position expected (RFC 5961 3.2);
        after a FIN also the one before it; or the end of the highest selective acknowledgement."""
        return (
            at == self.offset
            or (at == self.received_to > self.offset)
            or (self.closed and at == self.offset - 1)
            or (bool(self.sacks) and at == max(end for _, end in self.sacks))
        )


def agree(opener: Half, answerer: Half) -> None:
    """Both SYNs were captured: what they agreed on (RFC 7323 2.2, 3.2; RFC 2018)."""
    a, b = opener.offered, answerer.offered
    if a is None or b is None:
        return
    both_scale = a.scale >= 0 and b.scale >= 0
    for half, receiver, sender in ((opener, b, a), (answerer, a, b)):
        half.scale = min(receiver.scale, _MAX_SCALE) if both_scale else 0
        half.sack_ok = a.sack_ok and b.sack_ok
        both_stamp = a.tsval >= 0 and b.tsval >= 0
        half.ts_recent = sender.tsval if both_stamp else TIMESTAMPS_OFF


_NO_OPTIONS: Final = TcpOptions()


def parse_options(raw: memoryview) -> TcpOptions:
    """The options behind a TCP header. What contradicts itself ends the reading, as in Linux."""
    if not len(raw):
        return _NO_OPTIONS
    if len(raw) == 12 and bytes(raw[:4]) == _ALIGNED_TIMESTAMP:
        return TcpOptions(tsval=int.from_bytes(raw[4:8], "big"))
    tsval = scale = -1
    sack_ok, at = False, 0
    sacks: tuple[tuple[int, int], ...] = ()
    while at < len(raw):
        kind = raw[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        size = raw[at + 1] if at + 1 < len(raw) else 0
        if size < 2 or at + size > len(raw):
            break
        if kind == 3 and size == 3:
            scale = raw[at + 2]
        elif kind == 4 and size == 2:
            sack_ok = True
        elif kind == 5 and size >= 10 and (size - 2) % 8 == 0:
            edges = [int.from_bytes(raw[i : i + 4], "big") for i in range(at + 2, at + size, 4)]
            sacks = tuple(zip(edges[::2], edges[1::2], strict=True))
        elif kind == 8 and size == 10:
            tsval = int.from_bytes(raw[at + 2 : at + 6], "big")
        at += size
    return TcpOptions(tsval, scale, sack_ok, sacks)


__all__ = [
    "HOLE_LIMIT_NS", "HOLE_PATIENCE_NS", "NEVER", "TIMESTAMPS_OFF", "RefusedSegment",
    "Half", "QueuedSegment", "PendingSyn", "TcpOptions", "TcpSegment", "AddressPair", "agree", "parse_options", "signed",
]  # fmt: skip
