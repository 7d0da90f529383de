"""Sets of ranges on a volume: what was marked, what was copied, what is left. Pure.

A range is half-open, ``(start, end)``, in bytes. A set holds disjoint ranges in order; neighbours
are joined. The number of ranges is bounded: a set that would need more is ``cut``, and nothing is
concluded from it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

MAX_RANGES: Final = 1 << 16


class Ranges:
    """``add``, ``remove`` and the operators ``|``, ``-``, ``&``."""

    __slots__ = ("_ends", "_starts", "is_cut")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.is_cut = False
        """Some ranges are missing, because there were too many."""
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    @property
    def bytes(self) -> int:
        """How many bytes they hold together."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        if not starts or start > ends[-1]:  # nearly always: what is sent goes upwards
            if len(starts) >= MAX_RANGES:
                self.is_cut = True
                return
            starts.append(start)
            ends.append(end)
            return
        low, high = bisect_left(ends, start), bisect_right(starts, end)
        if low < high:
            start, end = min(start, starts[low]), max(end, ends[high - 1])
        elif len(starts) >= MAX_RANGES:
            self.is_cut = True
            return
        starts[low:high], ends[low:high] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        low, high = bisect_right(ends, start), bisect_left(starts, end)
        if low >= high:
            return
        kept = [(a, b) for a, b in ((starts[low], start), (end, ends[high - 1])) if a < b]
        starts[low:high], ends[low:high] = [a for a, _ in kept], [b for _, b in kept]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of the range is in it."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    def touches(self, start: int, end: int) -> bool:
        """Whether some of the range is in it."""
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def copy(self) -> Ranges:
        made = Ranges()
        made._starts, made._ends, made.is_cut = list(self._starts), list(self._ends), self.is_cut
        return made

    def __or__(self, other: Ranges) -> Ranges:
        made = self.copy()
        for start, end in other:
            made.add(start, end)
        made.is_cut |= other.is_cut
        return made

    def __sub__(self, other: Ranges) -> Ranges:
        made = self.copy()
        for start, end in other:
            made.remove(start, end)
        made.is_cut |= other.is_cut
        return made

    def __and__(self, other: Ranges) -> Ranges:
        made = self - (self - other)
        made.is_cut |= other.is_cut
        return made

    def rounded(self, block_bytes: int) -> Ranges:
        """Each range grown to whole blocks."""
        made = Ranges(
            (start // block_bytes * block_bytes, -(-end // block_bytes) * block_bytes)
            for start, end in self
        )
        made.is_cut |= self.is_cut
        return made
