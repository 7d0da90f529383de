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
from enum import Enum
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.addresses import canonical
from freezeframe.harness.core.link.ipheaders import (
    HOSTILE,
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
    Half,
    SenderClock,
    TcpSegment,
    parse_options,
)
from freezeframe.harness.core.link.tcpsegments import (
    MAX_CONNECTIONS,
    MAX_PENDING_BYTES,
    SegmentJudge,
)

MANY_HIDDEN: Final = 4
"""Frames whose content is hidden, after the newest one of the link."""
RETRANSMISSION_NS: Final = 150 * NS_PER_MS
"""What is repeated earlier may be a second copy from the mirror; Linux waits for at least 200 ms."""
_TCP_HEADER_BYTES: Final = 20
_RST: Final = 0x04
_TCP: Final = struct.Struct(">HHIIBBH")

__all__ = [
    "HOLE_LIMIT_NS", "HOLE_PATIENCE_NS", "MAX_CONNECTIONS", "MAX_PENDING_BYTES", "Flow", "Half",
    "ClockSign", "Reassembler", "StreamClosed", "StreamData", "StreamEvent", "StreamGap", "StreamOpened",
]  # fmt: skip


class ClockSign(Enum):
    """What a frame shows of the clock that times the frames, after a time in which none came."""

    RUNS = "runs"
    """Its sender's clock went on as far."""
    SET = "set"
    """It went on by far less."""
    FIRST = "first"
    """It is the first one of its sender's clock: nothing is known yet."""
    NONE = "none"
    """It carries none."""


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
        found = self.next_data(view, packet_no)
        if found is not None:
            half, data = found
            return [StreamData(half.flow, t_ns, packet_no, half.offset - len(data), data)]
        if len(view) < 54:
            return self._skip(Foreign.OTHER)
        located = look(view)
        if isinstance(located, Foreign):
            if located is not Foreign.OTHER:
                self.hidden_nos.append(packet_no)
            return self._skip(located)
        at, end, addresses = located
        if located is HOSTILE or at + _TCP_HEADER_BYTES > len(view):
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

    def is_heard(self, source: str, destination: str, since_no: int, since_ns: Ns) -> bool:
        """Whether the capture shows that the direction from ``source`` is still in it: a frame after
        number ``since_no``; or the other end repeats what it has sent since ``since_ns``, so that
        it lacks an acknowledgement itself. Not where all newest frames are hidden by a tunnel.
        Addresses are canonical."""
        newest_no = max((half.last_packet_no for half in self._halves.values()), default=0)
        if len(self.hidden_nos) == MANY_HIDDEN and self.hidden_nos[0] > newest_no:
            return False
        return any(
            half.last_packet_no > since_no or half.other.repeated_ns >= since_ns + RETRANSMISSION_NS
            for half in self._halves.values()
            if canonical(half.flow.source) == source
            and canonical(half.flow.destination) == destination
        )

    def attend(self, connection: int) -> None:
        """Keep ``acknowledged_ns`` of a connection; none of its frames is passed over meanwhile."""
        for half in self._halves.values():
            if half.flow.connection == connection:
                half.attended, half.steady = True, False

    def rest(self) -> None:
        """``acknowledged_ns`` is not asked for any more."""
        for half in self._halves.values():
            half.attended = False

    def acknowledged_ns(self, connection: int, receiver: str) -> Ns:
        """When ``receiver`` (its address, canonical) last acknowledged on an attended connection all that
        was captured up to then, and no more; -1: it has not."""
        return max(
            (
                half.whole_ns
                for half in self._halves.values()
                if half.flow.connection == connection
                and canonical(half.flow.destination) == receiver
            ),
            default=-1,
        )

    def clock_of(self, t_ns: Ns, frame: bytes | memoryview) -> ClockSign:
        """Whether the clock that times the frames was set before this one: its sender's own clock
        (RFC 7323) went on by far less."""
        view = memoryview(frame)
        found = look(view) if len(view) >= 54 else HOSTILE
        if (
            isinstance(found, Foreign)
            or found is HOSTILE
            or found[0] + _TCP_HEADER_BYTES > len(view)
        ):
            return ClockSign.NONE
        at = found[0]
        half = self._halves.get(found[2] + bytes(view[at : at + 4]))
        options = parse_options(view[at + _TCP_HEADER_BYTES : at + (view[at + 12] >> 4) * 4])
        if half is None or options.tsval < 0:
            return ClockSign.NONE
        before = half.stamped or SenderClock(t_ns, options.tsval, t_ns, options.tsval)
        is_first, half.stamped = half.stamped is None, before.at(t_ns, options.tsval)
        if is_first:
            return ClockSign.FIRST
        return ClockSign.SET if before.is_behind(t_ns, options.tsval) else ClockSign.RUNS

    def forget_clocks(self) -> None:
        """The clock that times the frames was set: what is known of the senders' no longer fits it."""
        for half in self._halves.values():
            half.stamped = None

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
                    self._accept(half, refused, half.acked, events)
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
