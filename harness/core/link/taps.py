"""Several captures of one link, made one capture: how far their clocks are apart, and which copy of
a segment is kept. Pure.

A TCP segment that two taps saw is the same one when all of its header but the checksum is. It
passes one tap before the other, so that half of the difference between the two directions is the
way between the taps, and their mean is the difference of the clocks (as NTP does it). Clocks drift:
the difference is taken for up to ``MAX_KNOTS`` stretches of the capture.

Of the copies of one segment the last one is kept, which is the one nearest to the receiver: what
the receiver got counts, also when the data were changed between the taps.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import merge
from statistics import median
from typing import Final

from crc32c import crc32c

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.ipheaders import HOSTILE, locate_tcp

MAX_KNOTS: Final = 32
LEAST_SEGMENTS: Final = 16
"""Of one stretch: with fewer a single late copy would move its difference."""
MAX_SEGMENTS: Final = 2_000_000
"""Of one tap; each takes some 300 bytes of memory."""
_LEAST_FRAME_BYTES: Final = 54
_TCP_BYTES: Final = 20
_CUT: Final = -1
"""In place of a checksum: the capture cut the segment short."""

TapFrame = tuple[Ns, bytes, int]
"""Time of its own clock, Ethernet frame, length on the wire."""


def segment_of(frame: bytes) -> tuple[int, int, bool] | None:
    """(what tells it from others, checksum of its data, is it of the lower address): None when it
    is no whole TCP header."""
    if len(frame) < _LEAST_FRAME_BYTES:
        return None
    view = memoryview(frame)
    located = locate_tcp(view)
    if located is None or located is HOSTILE:
        return None
    at, end, addresses = located
    if at + _TCP_BYTES > len(view):
        return None
    data_at = at + (view[at + 12] >> 4) * 4
    if data_at < at + _TCP_BYTES or data_at > min(end, len(view)):
        return None
    head = blake2b(addresses, digest_size=8)
    head.update(view[at : at + 16])
    head.update(view[at + _TCP_BYTES : data_at])
    head.update(struct.pack(">I", end - data_at))
    data_crc = crc32c(bytes(view[data_at:end])) if end <= len(view) else _CUT
    half = len(addresses) // 2
    ports = view[at : at + 4]
    is_lower = (addresses[:half], bytes(ports[:2])) < (addresses[half:], bytes(ports[2:]))
    return int.from_bytes(head.digest(), "big"), data_crc, is_lower


@dataclass
class TapIndex:
    """What one tap saw, by segment; ``add`` each of its frames."""

    copies: dict[int, list[int]] = field(default_factory=dict)
    """Segment -> the checksum of each of its copies, in order."""
    seen: dict[int, tuple[Ns, bool]] = field(default_factory=dict)
    """Segment -> time of its first copy, and direction."""
    frames: int = 0
    cut_frames: int = 0
    t_first_ns: Ns = 0
    t_last_ns: Ns = 0

    def add(self, frame: TapFrame) -> None:
        t_ns, data, original_length = frame
        self.t_first_ns = self.t_first_ns if self.frames else t_ns
        self.t_last_ns = t_ns
        self.frames += 1
        self.cut_frames += original_length > len(data)
        found = segment_of(data) if len(self.copies) < MAX_SEGMENTS else None
        if found is None:
            return
        key, data_crc, is_lower = found
        self.copies.setdefault(key, []).append(data_crc)
        self.seen.setdefault(key, (t_ns, is_lower))


@dataclass(frozen=True, kw_only=True)
class Skew:
    """One tap's clock against the first tap's."""

    offset_ns: Ns
    """Its clock is ahead of the first tap's by so much (median)."""
    error_ns: Ns | None
    """Half of what the two directions differ by: the way between the taps. None: only one direction
    was seen by both, and the way is in the offset."""
    segments: int
    """Seen once by each of both."""
    knots: tuple[tuple[Ns, Ns], ...] = ()
    """(time of the tap's own clock, offset), in order."""

    def corrected(self, t_ns: Ns) -> Ns:
        """On the first tap's clock."""
        if not self.knots:
            return t_ns - self.offset_ns
        at = bisect_right(self.knots, (t_ns, 1 << 63))
        if at in (0, len(self.knots)):
            return t_ns - self.knots[max(at - 1, 0)][1]
        (before_ns, low), (after_ns, high) = self.knots[at - 1], self.knots[at]
        part = (t_ns - before_ns) / max(1, after_ns - before_ns)
        return t_ns - low - round((high - low) * part)


def skew(first: TapIndex, other: TapIndex) -> Skew | None:
    """None: no segment was seen by both."""
    both = [
        (other.seen[key][0], other.seen[key][0] - first.seen[key][0], other.seen[key][1])
        for key, copies in other.copies.items()
        if len(copies) == 1 and len(first.copies.get(key, ())) == 1
    ]
    if not both:
        return None
    both.sort()
    offset_ns, error_ns = _apart(both)
    count = min(MAX_KNOTS, len(both) // LEAST_SEGMENTS)
    knots = []
    for number in range(count if count > 1 else 0):
        part = both[number * len(both) // count : (number + 1) * len(both) // count]
        knot_ns, part_error_ns = _apart(part)
        if (part_error_ns is None) == (error_ns is None):
            knots.append((part[len(part) // 2][0], knot_ns))
    return Skew(offset_ns=offset_ns, error_ns=error_ns, segments=len(both), knots=tuple(knots))


def _apart(both: Sequence[tuple[Ns, Ns, bool]]) -> tuple[Ns, Ns | None]:
    """(offset, error) of these (time, difference, direction)."""
    ways = [[apart for _, apart, lower in both if lower is way] for way in (False, True)]
    middles = [median(way) for way in ways if way]
    if len(middles) == 1:
        return round(middles[0]), None
    return round(sum(middles) / 2), round(abs(middles[0] - middles[1]) / 2)


@dataclass
class Merge:
    """The frames of all taps in the order of the first one's clock, each segment once."""

    indexes: Sequence[TapIndex]
    skews: Sequence[Skew | None]
    """By tap; of the first, and of one that has no segment in common, None."""
    differing: int = 0
    """Segments whose copies differ."""
    first_differing: int = 0
    """Number of the merged frame that holds the kept copy of the first of them; 0: none differ."""
    copies_left_out: int = 0

    def frames(self, taps: Sequence[Iterable[TapFrame]]) -> Iterator[tuple[int, int, TapFrame]]:
        """(tap, number of the frame in it, frame)"""
        arrived: Counter[tuple[int, int]] = Counter()
        passed: list[Counter[int]] = [Counter() for _ in taps]
        kept = 0
        for _, tap, number, frame in merge(
            *(self._moved(tap, frames) for tap, frames in enumerate(taps)), key=lambda one: one[0]
        ):
            found = segment_of(frame[1])
            if found is not None and not self._is_kept(tap, found, arrived, passed[tap], kept + 1):
                self.copies_left_out += 1
                continue
            kept += 1
            yield tap, number, frame

    def _moved(
        self, tap: int, frames: Iterable[TapFrame]
    ) -> Iterator[tuple[Ns, int, int, TapFrame]]:
        clock = self.skews[tap]
        for number, (t_ns, data, original) in enumerate(frames, 1):
            on_first_ns = t_ns if clock is None else clock.corrected(t_ns)
            yield on_first_ns, tap, number, (on_first_ns, data, original)

    def _is_kept(
        self,
        tap: int,
        found: tuple[int, int, bool],
        arrived: Counter[tuple[int, int]],
        passed: Counter[int],
        number: int,
    ) -> bool:
        """Decide one copy of a segment. ``number``: of the frame, if it is kept."""
        key, data_crc, _ = found
        copy = passed[key]
        passed[key] += 1
        others = [
            crcs[copy]
            for at, index in enumerate(self.indexes)
            if at != tap and len(crcs := index.copies.get(key, ())) > copy
        ]
        if not others:
            return True
        whole = [one for one in others if one != _CUT]
        if data_crc == _CUT and whole:
            return False
        arrived[key, copy] += 1
        if arrived[key, copy] <= len(whole if data_crc != _CUT else others):
            return False
        if len({*whole, data_crc}) > 1:
            self.differing += 1
            self.first_differing = self.first_differing or number
        return True
