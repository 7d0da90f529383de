"""A device's uptime on the host's clock, with a bound on the error. Pure.

What ties the two together: a question and its answer (the device read its uptime between them), and
a console line, which cannot have been read before it was printed. Each says "the offset is at
least" or "at most"; the truth lies between the highest of the ones and the lowest of the others.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.console import stamps
from freezeframe.harness.core.events import Ns

DRIFT_PPM: Final = 100
"""Two ordinary crystals differ by less; added for the time between the observations and what they
are used for."""
MAX_LINES: Final = 200_000
_LINE: Final = re.compile(rb"[^\r\n]+")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """At ``uptime_ns`` of the device the host's clock showed ``not_before_ns`` to ``not_after_ns``;
    None: open."""

    uptime_ns: int
    not_before_ns: Ns | None = None
    not_after_ns: Ns | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceClock:
    """``host = uptime + offset``, give or take the error."""

    offset_ns: Ns
    error_ns: Ns
    consistent: bool
    """False: the observations contradict each other, one of the clocks was stepped between them."""

    def host_ns(self, uptime_ns: int) -> Ns:
        return uptime_ns + self.offset_ns

    def error_at(self, uptime_ns: int) -> Ns:
        return self.error_ns + uptime_ns * DRIFT_PPM // 1_000_000


def fit(bounds: Iterable[Bound]) -> DeviceClock | None:
    """The clock that the observations allow; None when they leave it open to one side."""
    lowest = highest = None
    for bound in bounds:
        if bound.not_before_ns is not None:
            at_least = bound.not_before_ns - bound.uptime_ns
            lowest = at_least if lowest is None else max(lowest, at_least)
        if bound.not_after_ns is not None:
            at_most = bound.not_after_ns - bound.uptime_ns
            highest = at_most if highest is None else min(highest, at_most)
    if lowest is None or highest is None:
        return None
    return DeviceClock(
        offset_ns=(lowest + highest) // 2,
        error_ns=(abs(highest - lowest) + 1) // 2,
        consistent=lowest <= highest,
    )


@dataclass(frozen=True, slots=True)
class StampedLine:
    """A console line that carries its device's uptime, as the kernel's and the firmware's do."""

    boot: int
    """Counts from 0; the uptime went back before each further one."""
    uptime_ns: int
    offset_bytes: int
    t_read_ns: Ns
    """When the read returned that brought its end; 0: not known."""


def lines(log: bytes, times: Sequence[tuple[Ns, int]]) -> list[StampedLine]:
    """The stamped lines of a console; ``times``: (t_ns, offset of the first byte) of each read, in
    order."""
    starts = [offset for _, offset in times]
    found: list[StampedLine] = []
    boot, last_ns = 0, 0
    for match in _LINE.finditer(log):
        stamped = stamps.read(match[0])
        uptime_ns = stamped.uptime_ns
        if uptime_ns is None:
            continue
        if uptime_ns < last_ns:
            boot += 1
        last_ns = uptime_ns
        read = bisect_right(starts, match.end() - len(stamped.rest) - 1) - 1
        found.append(
            StampedLine(boot, uptime_ns, match.start(), times[read][0] if read >= 0 else 0)
        )
        if len(found) >= MAX_LINES:
            break
    return found


def printed(found: Iterable[StampedLine], boot: int) -> list[Bound]:
    """What the lines of one boot say of the clock: none was read before it was printed."""
    return [
        Bound(uptime_ns=line.uptime_ns, not_after_ns=line.t_read_ns)
        for line in found
        if line.boot == boot and line.t_read_ns
    ]
