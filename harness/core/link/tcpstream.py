"""Captured frames -> ordered byte streams, one a direction of a TCP connection: the bytes that the
receiving TCP took; what the capture missed is reported.

Ethernet, IPv4 or IPv6, TCP; tags and tunnels by ``ipheaders``. The bytes come out in order, each
once, with time, packet number and absolute offset in the stream. Offset 0 is the byte after the
SYN, or, when the capture began later, the first byte seen.

A byte counts as received only if the receiver took it. Its own acknowledgements are the first
witness; before they come, the rules of Linux's TCP decide (``tcpreceiver``): checksum, RST only at
the exact position expected, no SYN on a connection that lives, no data without an acceptable
acknowledgement, beyond the window or with an old timestamp; of overlapping copies the one that
Linux delivers. A refused segment is remembered: when the receiver acknowledges its bytes and the
capture has no other copy of them, the receiver was right, and they are given out.

A hole is a fact about the *capture*, never about the device. It is reported as a StreamGap when one
of these is certain: the receiver has acknowledged bytes that were not captured (after
``HOLE_PATIENCE_NS``, because a capture may show an acknowledgement before the data); it is older
than ``HOLE_LIMIT_NS``, and the receiver does not say itself that it waits for these bytes; more
out-of-order data is waiting than ``max_pending_bytes``; the stream closes.
"""

from __future__ import annotations

import struct
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.ipheaders import (
    ETHERTYPE_IPV4,
    HOSTILE,
    IPPROTO_TCP,
    NOT_FRAGMENTED_MASK,
    Foreign,
    look,
)
from freezeframe.harness.core.link.skim import GOOD, UNFINISHED, judge_sum
from freezeframe.harness.core.link.streams import (
    Flow,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.core.link.tcpreceiver import (
    HOLE_LIMIT_NS,
    HOLE_PATIENCE_NS,
    NEVER,
    TIMESTAMPS_OFF,
    Half,
    TcpSegment,
    parse_options,
    signed,
)
from freezeframe.harness.core.link.tcpsegments import (
    MAX_CONNECTIONS,
    MAX_PENDING_BYTES,
    SegmentJudge,
)

_TCP_HEADER_BYTES: Final = 20
_RST, _ACK = 0x04, 0x10
_FLAGS: Final = 0x17
"""FIN, SYN, RST and ACK."""
_ALIGNED_TIMESTAMP: Final = memoryview(b"\x01\x01\x08\x0a")

_COMMON: Final = struct.Struct(">12xHBxHxxHxB")
"""Ethernet and IPv4 in one go: ethertype, version and IHL, total length, fragment field,
protocol."""
_TCP: Final = struct.Struct(">HHIIBBH")

__all__ = [
    "HOLE_LIMIT_NS", "HOLE_PATIENCE_NS", "MAX_CONNECTIONS", "MAX_PENDING_BYTES", "Flow", "Half",
    "Reassembler", "StreamClosed", "StreamData", "StreamEvent", "StreamGap", "StreamOpened",
]  # fmt: skip


class Reassembler(SegmentJudge):
    """``feed`` every captured frame in order, or those that ``frames`` gives out of a run of them;
    ``tick`` at ``next_deadline``; ``close`` at the end of the capture.

    ``ports``: only connections with one of these ports are followed; empty follows all. Memory is
    bounded by ``max_connections`` and ``max_pending_bytes`` a direction.
    """

    def feed(self, t_ns: Ns, frame: bytes | memoryview, packet_no: int) -> list[StreamEvent]:
        """Take one Ethernet frame (possibly cut short by the capture); return what became
        certain."""
        view = frame if type(frame) is memoryview else memoryview(frame)
        if len(view) < 54:
            return self._skip(Foreign.OTHER)
        ethertype, version_ihl, total, fragment, protocol = _COMMON.unpack_from(view)
        if ethertype == ETHERTYPE_IPV4 and version_ihl == 0x45 and protocol == IPPROTO_TCP:
            if fragment & NOT_FRAGMENTED_MASK:
                return self._skip(Foreign.FRAGMENT)
            # A total length of 0 is a frame above 64 KiB that segmentation offload has built.
            at, end, addresses = 34, 14 + total if total else len(view), bytes(view[26:34])
        else:
            located = look(view)
            if isinstance(located, Foreign):
                return self._skip(located)
            if located is HOSTILE:
                return self._hostile()
            at, end, addresses = located
            if at + _TCP_HEADER_BYTES > len(view):
                return self._hostile()
        source_port, destination_port, seq, ack, data_offset, flags, window = _TCP.unpack_from(
            view, at
        )
        data_at = at + (data_offset >> 4) * 4
        if data_at < at + _TCP_HEADER_BYTES or data_at > end:
            return self._hostile()
        key = addresses + bytes(view[at : at + 4])
        half = self._halves.get(key)
        events: list[StreamEvent] = []
        if half is None:
            ports = self._ports
            if ports and source_port not in ports and destination_port not in ports:
                return self._skip(Foreign.OTHER)
            if flags & _RST:
                return []
            half = self._connect(key, t_ns, packet_no, events)
        half.last_packet_no = packet_no
        if half.steady and seq == half.next_seq and flags & _FLAGS == _ACK and end <= len(view):
            length = end - data_at
            if length and self._is_next(half, view, (at, data_at, end), ack, window, addresses):
                data = StreamData(half.flow, t_ns, packet_no, half.offset, view[data_at:end])
                half.next_seq = (seq + length) & 0xFFFFFFFF
                half.offset += length
                return [data]
        verdict = UNFINISHED  # of a frame that was cut short, it cannot be known
        if half.verify and end <= len(view):
            verdict = judge_sum(view, at, end, addresses)
            half.trust.is_meaningful = half.trust.is_meaningful or verdict == GOOD
        options = parse_options(view[at + _TCP_HEADER_BYTES : data_at])
        segment = TcpSegment(
            t_ns, packet_no, seq, ack, flags, window, options, view[data_at:end], end - data_at, verdict
        )  # fmt: skip
        half = self._segment(half, segment, events)
        for one in (half, half.other):
            one.judge()
            self._watch(one)
        return events

    def _is_next(
        self, half: Half, view: memoryview, places: tuple[int, int, int], ack: int, window: int,
        addresses: bytes,
    ) -> bool:  # fmt: skip
        """The way of nearly all data that were not skimmed: by the rules at ``HalfState``, the next
        segment of a steady stream. True: all but its own position is moved on."""
        at, data_at, end = places
        other, options = half.other, data_at - at - _TCP_HEADER_BYTES
        acked = other.offset + signed(ack - other.next_seq)
        tsval = -1
        if options == 12 and view[at + 20 : at + 24] == _ALIGNED_TIMESTAMP:
            tsval = int.from_bytes(view[at + 24 : at + 28], "big")
        elif options:
            return False
        recent = half.ts_recent
        if (
            half.offset + end - data_at > half.edge
            or not half.trust.has_spoken
            or not other.steady
            or not other.acked <= acked <= other.offset
            or (tsval >= 0 and recent > 0 and signed(tsval - recent) < 0)
        ):
            return False
        if half.verify:
            verdict = judge_sum(view, at, end, addresses)
            if verdict > UNFINISHED or (verdict == GOOD and not half.sums_known):
                return False
        if tsval >= 0 and recent != TIMESTAMPS_OFF and half.offset <= half.acked:
            half.ts_recent = tsval
        other.acked = acked
        if other.scale >= 0:
            size = window << other.scale
            other.max_window = max(other.max_window, size)
            known = other.edge != -NEVER
            other.edge = max(other.edge, acked + size) if known else acked + size
        return True

    @property
    def certain(self) -> bool:
        """No stream waits for bytes that may be missing: what was captured has all been given
        out."""
        return not self._uncertain

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to decide."""
        return min((half.deadline_ns() for half in self._uncertain.values()), default=None)

    def tick(self, now_ns: Ns) -> list[StreamEvent]:
        """Report the holes that have become certain by waiting."""
        events: list[StreamEvent] = []
        for half in list(self._uncertain.values()):
            while half.waits and half.deadline_ns() <= now_ns:
                for refused in half.expire_doubts(now_ns):
                    self._accept(half, refused.node, refused.tsval, events)
                if half.missed_since_ns is not None:
                    self._give_up(half, half.missed_to, now_ns, 0, events)
                elif half.pending and half.pending[0].t_ns + HOLE_LIMIT_NS <= now_ns:
                    if half.acked == half.offset:
                        half.sender_waits = True
                    else:
                        self._give_up(half, half.pending[0].at, now_ns, 0, events)
            half.judge()
            self._watch(half)
        return events

    def close(self, t_ns: Ns) -> list[StreamEvent]:
        """The capture ends: report the holes that are left, and close every stream."""
        events: list[StreamEvent] = []
        for half in self._halves.values():
            self._end(half, t_ns, 0, "end of capture", events)
        self._halves.clear()
        return events

    def _skip(self, what: Foreign) -> list[StreamEvent]:
        self.skipped_frames += 1
        if what is not Foreign.OTHER:
            self.foreign[what] += 1
        return []

    def _hostile(self) -> list[StreamEvent]:
        self.hostile_frames += 1
        return self._skip(Foreign.OTHER)

    def _watch(self, half: Half) -> None:
        """Keep the list of the directions that wait for something."""
        if half.waits:
            self._uncertain[half.flow.number] = half
        else:
            self._uncertain.pop(half.flow.number, None)
