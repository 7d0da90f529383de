"""Segments -> stream events: the connections, and the judgement on each segment, in the order of
Linux's ``tcp_rcv_established``."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter, deque
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.ipheaders import Foreign
from freezeframe.harness.core.link.skim import BAD, NEVER, TIMESTAMPS_OFF, ZERO, Skimmer, signed
from freezeframe.harness.core.link.streams import (
    Flow,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.core.link.tcpreceiver import (
    HOLE_PATIENCE_NS,
    AddressPair,
    Half,
    PendingSyn,
    QueuedSegment,
    RefusedSegment,
    SenderClock,
    TcpSegment,
    agree,
)

MAX_PENDING_BYTES: Final = 1 << 20
"""Out-of-order data kept a direction; a LAN's whole bandwidth-delay product is below it."""
MAX_PENDING_SEGMENTS: Final = 4096
MAX_CONNECTIONS: Final = 128

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_SEQ_MASK: Final = 0xFFFFFFFF
_MAX_WINDOW_BYTES: Final = 1 << 30
"""Largest TCP window (RFC 7323)."""


class SegmentJudge(Skimmer):
    """All connections that are followed, and what becomes of a segment of one of them."""

    def __init__(
        self,
        *,
        ports: frozenset[int] = frozenset(),
        max_connections: int = MAX_CONNECTIONS,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        super().__init__(ports)
        self.hostile_frames = 0
        """Of ``skipped_frames``: IP or TCP headers that cannot be true."""
        self.foreign: Counter[Foreign] = Counter()
        """Of ``skipped_frames``: those whose content a tunnel, tag or fragment hides."""
        self.hidden_nos: deque[int] = deque(maxlen=4)
        """Numbers of the newest of these."""
        self.gaps = 0
        self.refused: Counter[str] = Counter()
        """Rule -> segments that it kept from the receiver: checksum, no-ack, old, window, paws,
        rst, syn, ack; repeated and overlap: bytes that the receiver had from another copy."""
        self._ports = ports
        self._max_connections = max_connections
        self._max_pending_bytes = max_pending_bytes
        self._halves: dict[bytes, Half] = self.halves
        self._uncertain: dict[int, Half] = {}
        """Directions that wait for bytes, or for a word about a refused segment."""
        self.pairs: dict[tuple[str, str], AddressPair] = {}
        """(source, destination) -> what is known of the frames between them."""
        self._flows = 0

    # --- connections come and go ---
    def _connect(self, key: bytes, t_ns: Ns, packet_no: int, events: list[StreamEvent]) -> Half:
        """Begin to follow both directions of the connection that ``key`` (addresses, ports)
        names."""
        size = (len(key) - 4) // 2
        source, destination = key[:size], key[size : 2 * size]
        source_port, destination_port = struct.unpack(">HH", key[2 * size :])
        reverse_key = destination + source + key[-2:] + key[-4:-2]
        if len(self._halves) >= 2 * self._max_connections:
            self._evict(t_ns, packet_no, events)
        number = self._flows
        self._flows += 2
        a, b = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination))
        forth = Flow(number, number // 2, a, source_port, b, destination_port)
        back = Flow(number + 1, number // 2, b, destination_port, a, source_port)
        half, half.other = Half(forth, self._trust(a, b)), Half(back, self._trust(b, a))
        half.other.other = half
        half.trust.connections += 1
        half.other.trust.connections += 1
        half.last_packet_no = half.other.last_packet_no = packet_no
        self._halves[key] = half
        self._halves[reverse_key] = half.other
        return half

    def _trust(self, source: str, destination: str) -> AddressPair:
        if len(self.pairs) > 4 * self._max_connections:
            del self.pairs[next(iter(self.pairs))]
        return self.pairs.setdefault((source, destination), AddressPair())

    def _evict(self, t_ns: Ns, packet_no: int, events: list[StreamEvent]) -> None:
        """Drop the connection that is least worth following: closed, then without data, then
        longest silent."""
        _, half = min(
            self._halves.items(),
            key=lambda entry: (
                not (entry[1].closed and entry[1].other.closed),
                bool(entry[1].offset or entry[1].other.offset),
                max(entry[1].last_packet_no, entry[1].other.last_packet_no),
            ),
        )
        self._drop(half, t_ns, packet_no, "evicted", events)
        self._forget(half)

    def _forget(self, half: Half) -> bytes:
        """Follow this connection no longer; the key of ``half``."""
        keys = [key for key, one in self._halves.items() if one is half or one is half.other]
        own = next(key for key in keys if self._halves[key] is half)
        for key in keys:
            del self._halves[key]
        return own

    def _drop(
        self, half: Half, t_ns: Ns, packet_no: int, reason: str, events: list[StreamEvent]
    ) -> None:
        self._end(half, t_ns, packet_no, reason, events)
        self._end(half.other, t_ns, packet_no, reason, events)

    def _restart(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> Half:
        self._drop(half, seg.t_ns, seg.packet_no, "reused", events)
        return self._connect(self._forget(half), seg.t_ns, seg.packet_no, events)

    def _open(
        self, half: Half, t_ns: Ns, packet_no: int, events: list[StreamEvent], *,
        from_start: bool = False, opener: bool = False,
    ) -> None:  # fmt: skip
        half.opened = True
        events.append(StreamOpened(half.flow, t_ns, packet_no, from_start, opener))

    # --- SYN ---
    def _synchronise(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> Half:
        """A SYN: a new connection; or one that lives, which ignores it (RFC 5961 4) unless the
        answer shows that its receiver began anew. Returns the half to go on with."""
        other = half.other
        is_answer = bool(seg.flags & _ACK)
        asked = other.opening
        answers_asked = is_answer and asked and seg.ack == (asked.segment.seq + 1) & _SEQ_MASK
        if half.isn == seg.seq and not answers_asked and not (half.closed and other.closed):
            return half  # repeated
        first = (seg.seq + 1) & _SEQ_MASK
        if half.isn is None and 0 <= signed(half.next_seq - first) == half.offset and half.opened:
            half.isn = seg.seq  # the SYN of what we are following, captured behind its data
            return half
        answers = other.isn is not None and seg.ack == (other.isn + 1) & _SEQ_MASK
        fresh = half.next_seq < 0 and not half.closed
        if (half.closed and other.closed) or not (fresh or other.heard):
            half = self._restart(half, seg, events)
        elif asked and answers_asked:
            half = self._restart(half, seg, events)
            self._begin(half.other, asked.segment, asked.is_answer, events)
            half.other.heard = True
        elif (
            (is_answer and other.isn is not None and not answers)
            or not fresh
            or (not is_answer and other.next_seq >= 0 and other.isn is None)
        ):
            self.refused["syn"] += 1
            half.opening = PendingSyn(seg, is_answer)
            return half
        self._begin(half, seg, is_answer, events)
        return half

    def _begin(
        self, half: Half, seg: TcpSegment, is_answer: bool, events: list[StreamEvent]
    ) -> None:
        """A SYN that opens a stream."""
        half.isn, half.next_seq, half.offered = seg.seq, (seg.seq + 1) & _SEQ_MASK, seg.options
        half.heard, half.syn_window = True, seg.window
        self._open(half, seg.t_ns, seg.packet_no, events, from_start=True, opener=not is_answer)
        other = half.other
        if is_answer and other.isn is not None:
            agree(other, half)
            # The window of a SYN is not scaled.
            other.acked, other.edge, half.edge = 0, seg.window, other.syn_window
        if is_answer:
            self._acknowledge(half, seg, events)
        if seg.length:  # TCP Fast Open: taken only if the answer says so
            self.refused["window"] += 1
            self._remember(half, 0, seg, "window")

    def _is_begun_anew(self, half: Half, seg: TcpSegment) -> bool:
        """``half``'s sender acknowledges a SYN | ACK that did not belong to the connection that is
        followed: the SYN before it was not captured."""
        asked = half.other.opening
        return (
            asked is not None
            and asked.is_answer
            and seg.ack == (asked.segment.seq + 1) & _SEQ_MASK
            and seg.seq == asked.segment.ack
            and not seg.flags & _RST
            and half.next_seq != seg.seq
        )

    # --- one segment ---
    def _segment(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> Half:
        """Any segment, as the receiver's kernel judges it. Returns the half that it belongs to."""
        trust, flags = half.trust, seg.flags
        half.heard = trust.is_heard = True
        if seg.options.tsval >= 0:
            t_ns, tsval = seg.t_ns, seg.options.tsval
            clock = half.stamped or SenderClock(t_ns, tsval, t_ns, tsval)
            half.stamped = clock.at(t_ns, tsval)
        wrong = seg.verdict in (BAD, ZERO) and not trust.wrong()
        if wrong and trust.is_meaningful:
            self._refuse(half, seg, "checksum")
            return half
        wrong = wrong and seg.verdict == BAD  # 0 is one that was not filled in
        if flags & _SYN:
            return self._synchronise(half, seg, events)
        if half.closed and half.other.closed:
            return half
        if flags & _ACK and self._is_begun_anew(half, seg):
            asked = half.other.opening
            assert asked is not None
            half = self._restart(half, seg, events)
            self._begin(half.other, asked.segment, True, events)
        if half.next_seq < 0 and not self._join(half, seg, wrong, events):
            return half
        at = half.position(seg.seq)
        if seg.length and at + seg.length <= half.offset:
            half.repeated_ns = seg.t_ns
        if not self._is_acceptable(half, seg):
            return half
        if flags & _RST:
            if half.resets(at):
                self._drop(half, seg.t_ns, seg.packet_no, "rst", events)
            else:
                self.refused["rst"] += 1
            return half
        if not flags & _ACK:
            self._refuse(half, seg, "no-ack")
            return half
        if not self._acknowledge(half, seg, events):
            self._refuse(half, seg, "ack")
            return half
        if wrong:  # nothing is known yet about this direction's checksums: the receiver will tell
            self._refuse(half, seg, "checksum")
            return half
        self._queue(half, self._node(half, seg), events)
        return half

    def _join(self, half: Half, seg: TcpSegment, wrong: bool, events: list[StreamEvent]) -> bool:
        """The first segments of a stream whose SYN was not captured. True: it has begun with this
        one."""
        other = half.other
        if seg.flags & _RST:
            refused_syn = other.isn is not None and seg.ack == (other.isn + 1) & _SEQ_MASK
            if (refused_syn and seg.flags & _ACK) or seg.seq == half.acked_seq:
                self._drop(half, seg.t_ns, seg.packet_no, "rst", events)
            else:
                self.refused["rst"] += 1
            return False
        if not seg.flags & _ACK:
            return False
        if wrong or not (seg.length or seg.flags & _FIN):
            self._acknowledge(half, seg, events)
            return False
        half.next_seq = seg.seq
        if half.acked_seq >= 0:
            half.acked = signed(half.acked_seq - seg.seq)
        self._open(half, seg.t_ns, seg.packet_no, events)
        return True

    def _is_acceptable(self, half: Half, seg: TcpSegment) -> bool:
        """PAWS and the window, in the order of ``tcp_validate_incoming``. Bytes that the receiver
        has acknowledged already it has accepted."""
        at = half.position(seg.seq)
        fin = seg.flags & _FIN
        end = at + seg.length + fin
        if half.offset < end <= half.received_to:
            return True
        is_reset = bool(seg.flags & _RST)
        tsval, recent = seg.options.tsval, half.ts_recent
        # One tick of tolerance, and 0 is what a SYN of some systems carries: as in Linux.
        if tsval >= 0 and recent > 0 and not is_reset and signed(tsval - recent) < -1:
            self._refuse(half, seg, "paws")
            return False
        if end < min(half.acked, half.offset) and not (is_reset and half.resets(at)):
            self.refused["rst" if is_reset else "old"] += 1
            return False
        if end - fin > half.edge or at > half.edge:
            if is_reset:
                self.refused["rst"] += 1
            else:
                self._refuse(half, seg, "window")
            return False
        return True

    def _acknowledge(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> bool:
        """What the sender of ``half`` says about the other direction. False: no receiver believes
        a segment with this acknowledgement (RFC 5961 5.2)."""
        other = half.other
        if other.next_seq < 0:
            other.acked_seq = seg.ack
            self._stamp(half, seg)
            return True
        at = other.position(seg.ack)
        if at - other.offset > _MAX_WINDOW_BYTES:
            return False  # no receiver can have that; believing it would skip real data
        acked = other.acked
        if at < acked:
            known = other.acked if other.isn is not None else _MAX_WINDOW_BYTES
            return at >= acked - min(other.max_window or _MAX_WINDOW_BYTES, known)
        is_ahead = at > other.sent_to
        if not is_ahead:
            self._stamp(half, seg)
            other.acked = at
            if at <= other.offset:
                other.whole_ns = seg.t_ns
            if other.missed_since_ns is not None and at < other.missed_to:
                other.missed_since_ns = None  # this end says that it does not have them
        if other.scale >= 0 and not is_ahead and not seg.flags & _SYN:
            size = seg.window << other.scale
            other.max_window = max(other.max_window, size)
            other.edge = at + size if other.edge == -NEVER else max(other.edge, at + size)
        for doubt in other.confirmed(NEVER, at):
            self._accept(other, doubt, acked, events)
        for left, right in seg.options.sacks:
            other.sack_ok = True
            for doubt in other.confirmed(other.position(left), other.position(right)):
                self._accept(other, doubt, acked, events)
        self._miss(other, at, seg, events)
        return not is_ahead

    def _stamp(self, half: Half, seg: TcpSegment) -> None:
        """The receiver keeps the timestamp of a segment that does not begin behind its last
        acknowledgement (RFC 7323 4.3)."""
        tsval = seg.options.tsval
        if (
            tsval >= 0
            and half.next_seq >= 0
            and half.ts_recent != TIMESTAMPS_OFF
            and half.position(seg.seq) <= half.acked
            and (half.ts_recent <= 0 or signed(tsval - half.ts_recent) >= 0)
        ):
            half.ts_recent = tsval

    # --- data ---
    def _node(self, half: Half, seg: TcpSegment, at: int | None = None) -> QueuedSegment:
        at = half.position(seg.seq) if at is None else at
        fin = bool(seg.flags & _FIN) and len(seg.data) == seg.length
        end = at + len(seg.data) + fin
        return QueuedSegment(at, end, seg.t_ns, seg.packet_no, seg.data, fin)

    def _refuse(self, half: Half, seg: TcpSegment, rule: str) -> None:
        self.refused[rule] += 1
        if half.next_seq >= 0 and not seg.flags & (_SYN | _RST):
            self._remember(half, half.position(seg.seq), seg, rule)

    def _remember(self, half: Half, at: int, seg: TcpSegment, rule: str) -> None:
        node = self._node(half, seg, at)
        if node.end > node.at and not half.closed:
            half.doubt(node.kept(), rule, seg.options.tsval)

    def _accept(
        self, half: Half, refused: RefusedSegment, acked: int, events: list[StreamEvent]
    ) -> None:
        """The receiver says that it has taken what the rules refused. ``acked``: what it had
        acknowledged when it took that: as in ``_stamp``, the timestamp of a later segment is not
        kept."""
        is_kept = acked == NEVER or refused.node.at <= acked
        if refused.tsval >= 0 and half.ts_recent > 0 and is_kept:
            half.ts_recent = refused.tsval
        self._queue(half, refused.node, events, is_taken=True)

    def _queue(
        self, half: Half, node: QueuedSegment, events: list[StreamEvent], *, is_taken: bool = False
    ) -> None:
        """Deliver, hold or drop an acceptable segment's data (``tcp_data_queue``)."""
        if node.end == node.at or half.closed:
            return
        if node.end <= half.offset:
            self.refused["repeated"] += 1
            return
        closed_window = node.at >= half.edge or (node.at < half.offset and half.offset >= half.edge)
        is_bare_fin = node.fin and node.end == node.at + 1 and node.at == half.offset
        is_taken = is_taken or is_bare_fin or node.end <= half.received_to
        if closed_window and not is_taken:
            self.refused["window"] += 1
            half.doubt(node.kept(), "window", -1)
            return
        if node.at > half.offset:
            self.refused["overlap"] += half.overlaps(node)
            half.hold(node.kept())
            too_much = half.pending_bytes > self._max_pending_bytes
            if too_much or len(half.pending) > MAX_PENDING_SEGMENTS:
                self._give_up(half, half.pending[0].at, node.t_ns, node.packet_no, events)
            return
        self.refused["overlap"] += node.at < half.offset
        self._deliver(half, node, events)
        self._drain(half, events)
        half.settle_doubts(by_gap=False)

    def _deliver(self, half: Half, node: QueuedSegment, events: list[StreamEvent]) -> None:
        fresh = node.data[half.offset - node.at :]
        if len(fresh):
            pair = half.trust
            if not pair.has_spoken:
                pair.has_spoken, pair.first_bytes = True, bytes(fresh[:8])
            events.append(StreamData(half.flow, node.t_ns, node.packet_no, half.offset, fresh))
            self._advance(half, len(fresh))
        if node.fin:
            half.next_seq = (half.next_seq + 1) & _SEQ_MASK
            half.forget_pending()
            self._end(half, node.t_ns, node.packet_no, "fin", events)

    def _advance(self, half: Half, length: int) -> None:
        half.offset += length
        half.next_seq = (half.next_seq + length) & _SEQ_MASK
        half.sender_waits = False
        half.opening = None
        if half.missed_since_ns is not None and half.offset >= half.missed_to:
            half.missed_since_ns = None

    def _drain(self, half: Half, events: list[StreamEvent]) -> None:
        """Deliver what was waiting for the byte that has just come."""
        while (node := half.next_ready()) is not None:
            self._deliver(half, node, events)
        half.drop_sacks()

    def _give_up(
        self, half: Half, to: int, t_ns: Ns, packet_no: int, events: list[StreamEvent]
    ) -> None:
        """Report every hole below stream offset ``to``, and deliver what waits behind each."""
        while half.offset < to and not half.closed:
            hole_end = min(to, half.pending[0].at) if half.pending else to
            self.gaps += 1
            length = hole_end - half.offset
            events.append(StreamGap(half.flow, t_ns, packet_no, half.offset, length))
            self._advance(half, length)
            half.settle_doubts(by_gap=True)
            self._drain(half, events)
        if half.missed_since_ns is not None and half.offset >= half.missed_to:
            half.missed_since_ns = None

    def _miss(self, half: Half, acked_to: int, seg: TcpSegment, events: list[StreamEvent]) -> None:
        """The receiver of ``half`` has everything below ``acked_to``: what we lack of it, the
        capture missed."""
        if half.closed:
            return
        if half.pending and half.pending[-1].fin:  # a FIN takes a position and no byte
            acked_to = min(acked_to, half.pending[-1].end - 1)
        if acked_to > half.offset and half.missed_since_ns is None:
            half.missed_since_ns, half.missed_to = seg.t_ns, acked_to
            return
        half.missed_to = max(half.missed_to, acked_to)
        since_ns = half.missed_since_ns
        if since_ns is not None and seg.t_ns - since_ns >= HOLE_PATIENCE_NS:
            self._give_up(half, half.missed_to, seg.t_ns, seg.packet_no, events)

    def _end(
        self, half: Half, t_ns: Ns, packet_no: int, reason: str, events: list[StreamEvent]
    ) -> None:
        if half.closed:
            return
        if half.pending:
            # A receiver that was reset, or has forgotten the connection, throws away what came too
            # early; what it has acknowledged, only the capture lacks.
            thrown = reason in ("rst", "reused") and half.received_to > NEVER
            to = min(half.received_to, half.pending[-1].at) if thrown else half.pending[-1].at
            self._give_up(half, to, t_ns, packet_no, events)
        if half.closed:
            return  # by a FIN that waited
        half.closed = True
        half.steady = False
        half.missed_since_ns = None
        half.forget_pending()
        half.doubts.clear()
        self._uncertain.pop(half.flow.number, None)
        if half.opened:
            events.append(StreamClosed(half.flow, t_ns, packet_no, half.offset, reason))
