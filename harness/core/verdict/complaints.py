"""What a controller's console says of places on the volume. Pure.

A console reaches further back than the incident: what was printed before the bench was armed never
speaks for it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from freezeframe.harness.core.console.places import places
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.verdict import deviceclock

if TYPE_CHECKING:
    from freezeframe.harness.core.verdict.evidence import SideEvidence

MAX_LINE_BYTES: Final = 4096


class Complaint(NamedTuple):
    """What a side says of a place on the volume."""

    sector: int
    size: int
    """Bytes of data with a wrong digest, sectors out of sync."""
    record: EventRecord | None = None
    """Of its event log; None: its console says it."""
    offset_bytes: int = -1
    """Of the words in the console's record."""


def line_at(console: bytes, end: int) -> bytes:
    """The line in which a match ended just before ``end``."""
    start = console.rfind(b"\n", max(0, end - MAX_LINE_BYTES), max(end - 1, 0)) + 1
    stop = console.find(b"\n", max(end - 1, 0), end + MAX_LINE_BYTES)
    return console[max(start, end - MAX_LINE_BYTES) : stop if stop >= 0 else end + MAX_LINE_BYTES]


def _complaints(side: SideEvidence, about: str) -> list[Complaint]:
    """What such lines say that the side printed since the bench was armed."""
    found = []
    for place in places(side.console, side.console_texts, about):
        size, write = place.length_bytes or place.sectors or 0, side.named_write(place)
        if write is not None:
            found.append(Complaint(write.sector, write.size_bytes, offset_bytes=place.offset_bytes))
        elif place.sector >= 0:
            found.append(Complaint(place.sector, size, offset_bytes=place.offset_bytes))
    if not found:
        return []
    starts = [offset for _, offset in side.console_times]
    stamped = {one.offset_bytes: one for one in deviceclock.lines(side.console, side.console_times)}
    own = []
    for one in found:
        read = bisect_right(starts, one.offset_bytes) - 1
        line = stamped.get(side.console.rfind(b"\n", 0, one.offset_bytes) + 1)
        is_early = read >= 0 and 0 < side.console_times[read][0] < side.armed_ns
        if not is_early and not (line is not None and _was_printed_before(side, line)):
            own.append(one)
    return own


def _was_printed_before(side: SideEvidence, line: deviceclock.StampedLine) -> bool:
    """A line that was read after the arming and printed before it, as when somebody lists a log there: by its own
    stamp. After the trigger small stamps are those of the next boot."""
    until_ns = side.trigger_ns
    is_same_boot = until_ns is None or line.t_read_ns <= until_ns
    return is_same_boot and line.uptime_ns < side.armed_uptime_ns


def printed_digests(side: SideEvidence) -> list[Complaint]:
    return _complaints(side, "digest")


def printed_out_of_sync(side: SideEvidence) -> list[Complaint]:
    return _complaints(side, "out-of-sync")
