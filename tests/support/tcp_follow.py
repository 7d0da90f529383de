"""The follower on the record of a script (``kernel_tcp``): all frames fed, or skimmed first; and
followers that lack one rule each, which shows how often a rule decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kernel_tcp import PEER

from freezeframe.harness.core.link import skim, skimpure
from freezeframe.harness.core.link.tcpreceiver import Half, QueuedSegment, TcpSegment
from freezeframe.harness.core.link.tcpstream import (
    Reassembler,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)

STEP_NS = 1000
MAX_BYTES = 1 << 17
"""More than any script sends."""
RST = 4


class Followed(NamedTuple):
    data: bytes
    lived: bool
    gaps: int
    closed: str
    refused: dict[str, int]


class Judging(Reassembler):
    """No segment goes the short way: each is judged by all rules."""

    def next_data(self, frame: skim.Buffer, number: int) -> tuple[Any, memoryview] | None:
        return None


class ByPython(Reassembler):
    """Passing over and the short way in Python, also where the C module was built."""

    def frames(
        self, run: skim.Buffer, first_no: int, offset_ns: int
    ) -> Iterator[tuple[int, memoryview, int]]:
        return skimpure.Skimmer.frames(self, run, first_no, offset_ns)

    def next_data(self, frame: skim.Buffer, number: int) -> tuple[Any, memoryview] | None:
        return skimpure.Skimmer.next_data(self, frame, number)


def follow(
    frames: Sequence[bytes], *, skimmed: bool = False, kind: type[Reassembler] = Judging
) -> Followed:
    """What the peer's bytes became, and whether the connection lived."""
    reassembler = kind()
    run = skim.encode(
        (number * STEP_NS, frame, len(frame)) for number, frame in enumerate(frames, 1)
    )
    source = reassembler if skimmed else skimpure.Skimmer(())
    fill: Any = None
    gaps, closed = 0, ""
    for t_ns, frame, number in source.frames(run, 1, 0):
        for event in reassembler.feed(t_ns, frame, number):
            if event.flow.source != PEER:
                if isinstance(event, StreamOpened):
                    event.flow.fill.discard()
                continue
            if isinstance(event, StreamOpened) and fill is None:
                fill = event.flow.fill
                fill.begin(MAX_BYTES)
            elif isinstance(event, StreamData):
                fill.take(event.data)
            elif isinstance(event, StreamGap):
                gaps += 1
            elif isinstance(event, StreamClosed):
                closed = event.reason
    lived = not any(half.closed and half.other.closed for half in reassembler.halves.values())
    taken = fill.filled
    fill.take(bytes(MAX_BYTES))
    return Followed(bytes(fill.finish())[:taken], lived, gaps, closed, dict(reassembler.refused))


class WithoutChecksum(Judging):
    def _segment(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> Half:
        return super()._segment(half, seg._replace(verdict=skim.UNFINISHED), events)


class AnyReset(Judging):
    def _is_acceptable(self, half: Half, seg: TcpSegment) -> bool:
        if seg.flags & RST:
            self._drop(half, seg.t_ns, seg.packet_no, "rst", [])
            return False
        return super()._is_acceptable(half, seg)


class ResetWithin(Judging):
    """RFC 793: any RST within the window."""

    def _is_acceptable(self, half: Half, seg: TcpSegment) -> bool:
        taken = super()._is_acceptable(half, seg)
        if seg.flags & RST and taken and half.position(seg.seq) >= half.offset:
            self._drop(half, seg.t_ns, seg.packet_no, "rst", [])
            return False
        return taken


class AnySyn(Judging):
    def _synchronise(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> Half:
        half.other.heard = False
        return super()._synchronise(half, seg, events)


class LastCopyWins(Judging):
    """Of overlapping segments that wait, the newest stays."""

    def _queue(
        self, half: Half, node: QueuedSegment, events: list[StreamEvent], *, is_taken: bool = False
    ) -> None:
        if node.at > half.offset:
            kept = [one for one in half.pending if one.end <= node.at or node.end <= one.at]
            half.pending[:] = kept
        super()._queue(half, node, events, is_taken=is_taken)


class RepeatedIsNew(Judging):
    """Old duplicates are taken again."""

    def _deliver(self, half: Half, node: QueuedSegment, events: list[StreamEvent]) -> None:
        super()._deliver(half, node._replace(at=min(node.at, half.offset)), events)

    def _queue(
        self, half: Half, node: QueuedSegment, events: list[StreamEvent], *, is_taken: bool = False
    ) -> None:
        if node.at < half.offset:
            moved = half.offset - node.at
            node = node._replace(at=half.offset, end=node.end + moved)
        super()._queue(half, node, events, is_taken=is_taken)


class WithoutWindow(Judging):
    def _is_acceptable(self, half: Half, seg: TcpSegment) -> bool:
        half.edge = -skim.NEVER
        return super()._is_acceptable(half, seg)


class WithoutPaws(Judging):
    def _is_acceptable(self, half: Half, seg: TcpSegment) -> bool:
        half.ts_recent = -1
        return super()._is_acceptable(half, seg)


class AnyAcknowledgement(Judging):
    def _acknowledge(self, half: Half, seg: TcpSegment, events: list[StreamEvent]) -> bool:
        super()._acknowledge(half, seg, events)
        return True


RULES: dict[str, type[Reassembler]] = {
    "checksum": WithoutChecksum,
    "a RST outside of the window is ignored": AnyReset,
    "a RST within the window is ignored": ResetWithin,
    "a SYN on a connection that lives is ignored": AnySyn,
    "of overlapping copies, as Linux": LastCopyWins,
    "old duplicates": RepeatedIsNew,
    "window": WithoutWindow,
    "PAWS": WithoutPaws,
    "acknowledgement of what was not sent, or too old": AnyAcknowledgement,
}
"""A rule -> a follower without it."""


def decided(frames: Sequence[bytes], right: Followed) -> Counter[str]:
    """The rules without which this script would have been followed wrongly."""
    return Counter(
        rule
        for rule, kind in RULES.items()
        if (found := follow(frames, kind=kind)).data != right.data or found.lived != right.lived
    )
