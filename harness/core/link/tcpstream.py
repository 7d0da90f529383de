"""Captured frames -> ordered byte streams, one a direction of a TCP connection; what the capture
missed is told.

Ethernet (up to two VLAN tags), IPv4 or IPv6, TCP. The payloads come out in order, each byte once,
with its time, its packet number and its absolute offset in the stream. Offset 0 is the byte behind
the SYN, or, when the capture began later, the first byte seen.

A hole is a fact about the *capture*, never about the device. It is told as a StreamGap when one of
these is certain: the receiver has acknowledged bytes that were not captured (after
``HOLE_PATIENCE_NS``, because a capture may show an acknowledgement before the data); it is older
than ``HOLE_LIMIT_NS``; more out-of-order data is waiting than ``max_pending_bytes``; the stream
closes.
"""

from __future__ import annotations

import ipaddress
import struct
from bisect import insort
from typing import Final

import msgspec

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.ipheaders import (
    ETHERTYPE_IPV4,
    HOSTILE,
    IPPROTO_TCP,
    NOT_FRAGMENTED_MASK,
    locate_tcp,
)
from freezeframe.harness.core.link.skim import Fill, HalfState, Skimmer

HOLE_PATIENCE_NS: Final = 50 * NS_PER_MS
"""Longer than any disorder between the two directions of one capture, far shorter than any deadline
of a rule."""
HOLE_LIMIT_NS: Final = 500 * NS_PER_MS
"""A hole that nobody acknowledges is waited for so long: the sender repeats the segment after 200
ms and 400 ms."""
MAX_PENDING_BYTES: Final = 1 << 20
"""Out-of-order data kept a direction; a LAN's whole bandwidth-delay product is below it."""
MAX_PENDING_SEGMENTS: Final = 4096
MAX_CONNECTIONS: Final = 128

_TCP_HEADER_BYTES: Final = 20
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_SEQ_MASK: Final = 0xFFFFFFFF
_HALF_RANGE: Final = 1 << 31
_MAX_WINDOW_BYTES: Final = 1 << 30
"""Largest TCP window (RFC 7323)."""

_COMMON: Final = struct.Struct(">12xHBxHxxHxB")
"""Ethernet and IPv4 in one go: ethertype, version and IHL, total length, fragment field,
protocol."""
_TCP: Final = struct.Struct(">HHIIBB")


class Flow(msgspec.Struct, frozen=True, eq=False):
    """One direction of one TCP connection; ``number`` tells directions apart, also when the same
    ports come again."""

    number: int
    connection: int
    """The same in both directions."""
    source: str
    source_port: int
    destination: str
    destination_port: int
    fill: Fill = msgspec.field(default_factory=Fill)
    """Where this direction's consumer collects a body, so that the bytes of its middle can go there
    unfed."""


class StreamOpened(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    packet_no: int
    from_start: bool
    """The SYN was captured: offset 0 is the first byte that was sent."""
    opener: bool
    """This direction's sender opened the connection (its SYN was captured)."""


class StreamData(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    """Time of the frame that brought these bytes, also when they had to wait for earlier ones."""
    packet_no: int
    offset: int
    data: bytes | memoryview
    """In-order data is a view of the frame that was fed: it lives as long as that frame's
    memory."""


class StreamGap(msgspec.Struct, frozen=True, eq=False):
    """The capture did not see ``length_bytes`` bytes from ``offset`` on."""

    flow: Flow
    t_ns: Ns
    packet_no: int
    offset: int
    length_bytes: int


class StreamClosed(msgspec.Struct, frozen=True, eq=False):
    flow: Flow
    t_ns: Ns
    packet_no: int
    offset: int
    reason: str
    """fin | rst | reused (the same ports began anew) | evicted (too many connections) | end of
    capture."""


StreamEvent = StreamOpened | StreamData | StreamGap | StreamClosed
_Pending = tuple[int, int, Ns, int, bytes]
"""(offset, order of arrival, t_ns, packet_no, data); the order keeps sorting away from the data."""


class _Half(HalfState):
    """One direction."""

    __slots__ = (
        "closed", "fin_at", "flow", "isn", "missed_since_ns", "missed_to", "opened", "pending",
        "pending_bytes",
    )  # fmt: skip

    other: _Half

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.fill = flow.fill
        self.isn: int | None = None
        self.opened = False
        self.closed = False
        self.fin_at: int | None = None
        self.pending: list[_Pending] = []
        self.pending_bytes = 0
        self.missed_to = 0
        self.missed_since_ns: Ns | None = None

    def judge(self) -> None:
        """Say whether frames of this direction may be passed over; behind whatever changes that."""
        self.steady = (
            self.next_seq >= 0
            and not self.pending
            and self.missed_since_ns is None
            and self.fin_at is None
            and not self.closed
        )

    def deadline_ns(self) -> Ns:
        """When the hole that it waits at is given up."""
        if self.missed_since_ns is not None:
            return self.missed_since_ns + HOLE_PATIENCE_NS
        return self.pending[0][2] + HOLE_LIMIT_NS


class Reassembler(Skimmer):
    """``feed`` every captured frame in order, or those that ``frames`` gives out of a run of them;
    ``tick`` at ``next_deadline``; ``close`` at the end of the capture.

    ``ports``: only connections with one of these ports are followed; empty follows all. Memory is
    bounded by ``max_connections`` and ``max_pending_bytes`` a direction.
    """

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
        self.gaps = 0
        self._ports = ports
        self._max_connections = max_connections
        self._max_pending_bytes = max_pending_bytes
        self._halves: dict[bytes, _Half] = self.halves
        self._uncertain: dict[int, _Half] = {}
        """Directions whose receiver has acknowledged more than was captured."""
        self._flows = 0
        self._order = 0

    def feed(self, t_ns: Ns, frame: bytes | memoryview, packet_no: int) -> list[StreamEvent]:
        """Take one Ethernet frame (possibly cut short by the capture); return what became
        certain."""
        view = frame if type(frame) is memoryview else memoryview(frame)
        if len(view) < 54:
            return self._skip()
        ethertype, version_ihl, total, fragment, protocol = _COMMON.unpack_from(view)
        if ethertype == ETHERTYPE_IPV4 and version_ihl == 0x45 and protocol == IPPROTO_TCP:
            if fragment & NOT_FRAGMENTED_MASK:
                return self._skip()
            # A total length of 0 is a frame above 64 KiB that segmentation offload has built.
            at, end, key = 34, 14 + total if total else len(view), bytes(view[26:38])
        else:
            located = locate_tcp(view)
            if located is None:
                return self._skip()
            if located is HOSTILE:
                return self._hostile()
            at, end, addresses = located
            if at + _TCP_HEADER_BYTES > len(view):
                return self._hostile()
            key = addresses + bytes(view[at : at + 4])
        source_port, destination_port, seq, ack, data_offset, flags = _TCP.unpack_from(view, at)
        data_at = at + (data_offset >> 4) * 4
        if data_at < at + _TCP_HEADER_BYTES or data_at > end:
            return self._hostile()
        half = self._halves.get(key)
        if half is None:
            if (
                self._ports
                and source_port not in self._ports
                and destination_port not in self._ports
            ):
                return self._skip()
            if flags & _RST:
                return []
            events: list[StreamEvent] = []
            half = self._connect(key, t_ns, packet_no, events)
            return events + self._segment(half, t_ns, packet_no, seq, ack, flags, view[data_at:end])
        half.last_packet_no = packet_no
        if (
            seq == half.next_seq
            and half.steady
            and flags & (_FIN | _SYN | _RST | _ACK) == _ACK
            and data_at < end <= len(view)
        ):  # the whole of a healthy bulk transfer comes this way
            length = end - data_at
            event = StreamData(half.flow, t_ns, packet_no, half.offset, view[data_at:end])
            half.next_seq = (seq + length) & _SEQ_MASK
            half.offset += length
            other = half.other
            if ack != other.next_seq or other.missed_since_ns is not None:
                late: list[StreamEvent] = [event]
                self._acknowledged(other, ack, t_ns, packet_no, late)
                other.judge()
                return late
            return [event]
        return self._segment(half, t_ns, packet_no, seq, ack, flags, view[data_at:end])

    @property
    def certain(self) -> bool:
        """No stream waits for bytes that may be missing: what was captured has all been given
        out."""
        return not self._uncertain

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to decide."""
        return min((half.deadline_ns() for half in self._uncertain.values()), default=None)

    def tick(self, now_ns: Ns) -> list[StreamEvent]:
        """Tell the holes that have become certain by waiting."""
        events: list[StreamEvent] = []
        for half in list(self._uncertain.values()):
            while half.flow.number in self._uncertain and half.deadline_ns() <= now_ns:
                acknowledged = half.missed_since_ns is not None
                to = half.missed_to if acknowledged else half.pending[0][0]
                self._give_up(half, to, now_ns, 0, events)
                self._finish(half, now_ns, 0, events)
            half.judge()
        return events

    def close(self, t_ns: Ns) -> list[StreamEvent]:
        """The capture ends: tell the holes that are left, and close every stream."""
        events: list[StreamEvent] = []
        for half in self._halves.values():
            self._end(half, t_ns, 0, "end of capture", events)
        self._halves.clear()
        return events

    def _skip(self) -> list[StreamEvent]:
        self.skipped_frames += 1
        return []

    def _hostile(self) -> list[StreamEvent]:
        self.hostile_frames += 1
        return self._skip()

    def _connect(self, key: bytes, t_ns: Ns, packet_no: int, events: list[StreamEvent]) -> _Half:
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
        half = _Half(Flow(number, number // 2, a, source_port, b, destination_port))
        half.other = _Half(Flow(number + 1, number // 2, b, destination_port, a, source_port))
        half.other.other = half
        half.last_packet_no = half.other.last_packet_no = packet_no
        self._halves[key] = half
        self._halves[reverse_key] = half.other
        return half

    def _evict(self, t_ns: Ns, packet_no: int, events: list[StreamEvent]) -> None:
        """Drop the connection that is least worth following: closed, then without data, then
        longest silent."""
        key, half = min(
            self._halves.items(),
            key=lambda entry: (
                not (entry[1].closed and entry[1].other.closed),
                bool(entry[1].offset or entry[1].other.offset),
                max(entry[1].last_packet_no, entry[1].other.last_packet_no),
            ),
        )
        self._drop(half, t_ns, packet_no, "evicted", events)
        pair = {half.flow.number, half.other.flow.number}
        for other_key in [k for k, h in self._halves.items() if h.flow.number in pair and k != key]:
            del self._halves[other_key]
        del self._halves[key]

    def _drop(
        self, half: _Half, t_ns: Ns, packet_no: int, reason: str, events: list[StreamEvent]
    ) -> None:
        self._end(half, t_ns, packet_no, reason, events)
        self._end(half.other, t_ns, packet_no, reason, events)

    def _segment(
        self,
        half: _Half,
        t_ns: Ns,
        packet_no: int,
        seq: int,
        ack: int,
        flags: int,
        data: memoryview,
    ) -> list[StreamEvent]:
        """Any segment: opening, closing, out of order, repeated, or empty."""
        events: list[StreamEvent] = []
        if flags & _SYN:
            half = self._synchronise(half, t_ns, packet_no, seq, bool(flags & _ACK), events)
            seq = (seq + 1) & _SEQ_MASK
        self._apply(half, t_ns, packet_no, seq, ack, flags, data, events)
        half.judge()
        half.other.judge()
        return events

    def _apply(
        self, half: _Half, t_ns: Ns, packet_no: int, seq: int, ack: int, flags: int, data: memoryview,
        events: list[StreamEvent],
    ) -> None:  # fmt: skip
        if half.closed:
            return
        if flags & _RST:
            self._drop(half, t_ns, packet_no, "rst", events)
            return
        if half.next_seq < 0 and (len(data) or flags & _FIN):
            half.next_seq = seq
            self._open(half, t_ns, packet_no, False, False, events)
        if half.next_seq >= 0:
            at = half.offset + _signed(seq - half.next_seq)
            if len(data):
                self._take(half, at, t_ns, packet_no, data, events)
            if flags & _FIN and half.fin_at is None and at + len(data) >= half.offset:
                half.fin_at = at + len(data)
            self._finish(half, t_ns, packet_no, events)
        if flags & _ACK:
            self._acknowledged(half.other, ack, t_ns, packet_no, events)

    def _synchronise(
        self,
        half: _Half,
        t_ns: Ns,
        packet_no: int,
        isn: int,
        answer: bool,
        events: list[StreamEvent],
    ) -> _Half:
        """A SYN: a new stream, or the known one's again. Returns the half to go on with."""
        if half.isn == isn:
            return half
        first = (isn + 1) & _SEQ_MASK
        known = half.next_seq >= 0 or half.closed
        if known and not half.closed and 0 <= _signed(half.next_seq - first) == half.offset:
            half.isn = isn  # the SYN of what we are following, captured behind its data
            return half
        if known:
            self._drop(half, t_ns, packet_no, "reused", events)
            keys = [key for key, h in self._halves.items() if h is half or h is half.other]
            own = next(key for key in keys if self._halves[key] is half)
            for key in keys:
                del self._halves[key]
            half = self._connect(own, t_ns, packet_no, events)
        half.isn, half.next_seq = isn, first
        self._open(half, t_ns, packet_no, True, not answer, events)
        return half

    def _open(
        self,
        half: _Half,
        t_ns: Ns,
        packet_no: int,
        from_start: bool,
        opener: bool,
        events: list[StreamEvent],
    ) -> None:
        half.opened = True
        events.append(StreamOpened(half.flow, t_ns, packet_no, from_start, opener))

    def _take(
        self,
        half: _Half,
        at: int,
        t_ns: Ns,
        packet_no: int,
        data: memoryview,
        events: list[StreamEvent],
    ) -> None:
        """Deliver, hold or drop the bytes at stream offset ``at``."""
        if half.fin_at is not None:
            data = data[: max(0, half.fin_at - at)]
        if at + len(data) <= half.offset or not len(data):
            return  # repeated, or a keep-alive's byte
        if at > half.offset:
            self._order += 1
            insort(half.pending, (at, self._order, t_ns, packet_no, bytes(data)))
            half.pending_bytes += len(data)
            self._uncertain[half.flow.number] = half
            if (
                half.pending_bytes > self._max_pending_bytes
                or len(half.pending) > MAX_PENDING_SEGMENTS
            ):
                self._give_up(half, half.pending[0][0], t_ns, packet_no, events)
            return
        self._deliver(half, at, t_ns, packet_no, data, events)
        self._drain(half, events)
        self._settle(half)

    def _deliver(
        self,
        half: _Half,
        at: int,
        t_ns: Ns,
        packet_no: int,
        data: bytes | memoryview,
        events: list[StreamEvent],
    ) -> None:
        fresh = data[half.offset - at :]
        if not len(fresh):
            return
        events.append(StreamData(half.flow, t_ns, packet_no, half.offset, fresh))
        self._advance(half, len(fresh))

    def _advance(self, half: _Half, length: int) -> None:
        half.offset += length
        half.next_seq = (half.next_seq + length) & _SEQ_MASK
        if half.missed_since_ns is not None and half.offset >= half.missed_to:
            half.missed_since_ns = None

    def _drain(self, half: _Half, events: list[StreamEvent]) -> None:
        """Deliver what was waiting for the byte that has just come."""
        done = 0
        for at, _, t_ns, packet_no, data in half.pending:
            if at > half.offset:
                break
            self._deliver(half, at, t_ns, packet_no, data, events)
            half.pending_bytes -= len(data)
            done += 1
        del half.pending[:done]

    def _give_up(
        self, half: _Half, to: int, t_ns: Ns, packet_no: int, events: list[StreamEvent]
    ) -> None:
        """Tell every hole below stream offset ``to``, and deliver what waits behind each."""
        while half.offset < to:
            hole_end = min(to, half.pending[0][0]) if half.pending else to
            self.gaps += 1
            events.append(
                StreamGap(half.flow, t_ns, packet_no, half.offset, hole_end - half.offset)
            )
            self._advance(half, hole_end - half.offset)
            self._drain(half, events)
        self._settle(half)

    def _settle(self, half: _Half) -> None:
        if not half.pending and half.missed_since_ns is None:
            self._uncertain.pop(half.flow.number, None)

    def _acknowledged(
        self, half: _Half, ack: int, t_ns: Ns, packet_no: int, events: list[StreamEvent]
    ) -> None:
        """The receiver of ``half`` has everything below ``ack``: what we lack of it, the capture
        missed."""
        if half.next_seq < 0 or half.closed:
            return
        ahead = _signed(ack - half.next_seq)
        if ahead > _MAX_WINDOW_BYTES:
            return  # no receiver can have that; believing it would skip real data
        acked_to = half.offset + ahead
        if half.fin_at is not None:
            acked_to = min(acked_to, half.fin_at)  # a FIN takes one sequence number and no byte
        if acked_to <= half.offset:
            if half.missed_since_ns is None:
                return
        elif half.missed_since_ns is None:
            half.missed_since_ns, half.missed_to = t_ns, acked_to
            self._uncertain[half.flow.number] = half
            return
        half.missed_to = max(half.missed_to, acked_to)
        if half.missed_since_ns is not None and t_ns - half.missed_since_ns >= HOLE_PATIENCE_NS:
            self._give_up(half, half.missed_to, t_ns, packet_no, events)
            self._finish(half, t_ns, packet_no, events)

    def _finish(self, half: _Half, t_ns: Ns, packet_no: int, events: list[StreamEvent]) -> None:
        if half.fin_at is not None and half.offset >= half.fin_at and not half.closed:
            self._end(half, t_ns, packet_no, "fin", events)

    def _end(
        self, half: _Half, t_ns: Ns, packet_no: int, reason: str, events: list[StreamEvent]
    ) -> None:
        if half.closed:
            return
        if half.pending:
            self._give_up(half, half.pending[-1][0], t_ns, packet_no, events)
            self._drain(half, events)
        half.closed = True
        half.steady = False
        half.missed_since_ns = None
        self._uncertain.pop(half.flow.number, None)
        if half.opened:
            events.append(StreamClosed(half.flow, t_ns, packet_no, half.offset, reason))


def _signed(difference: int) -> int:
    """A difference of two sequence numbers as the nearest signed number: the sequence space wraps
    at 2**32."""
    difference &= _SEQ_MASK
    return difference - (1 << 32) if difference >= _HALF_RANGE else difference
