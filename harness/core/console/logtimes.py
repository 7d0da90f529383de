"""When each line of a log was printed, as far as the log itself says. Pure.

A log has either times of day (of the machine that wrote it down, or of the device), or only the
device's uptime, or nothing. ``LogTimes.starts`` gives every line a time; what cannot be known of it
is in ``scale``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from freezeframe.harness.core.console import stamps
from freezeframe.harness.core.events import NS_PER_S, Ns

Scale = Literal["wall", "uptime", "none"]
"""wall: since 1970; uptime: relative to the first boot's begin; none: all lines at 0."""
NS_PER_DAY: Final = 86_400 * NS_PER_S
MAX_STAMPED_BYTES: Final = 4096
"""Looked at of one line."""
MAX_WALL_NS: Final = (1 << 62) - 1
REBOOT_NS: Final = NS_PER_S
"""An uptime that falls by more than this is another boot's: lines of two processors may stand a
little out of order."""
_TIME_OF_DAY: Final = re.compile(
    rb"\[?(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d)(?:[.,](?P<fraction>\d{1,9}))?\]?[ \t]+"
)
"""In front of each line, without a date: terminal programs, ``grabserial``, a test's own log."""


@dataclass(frozen=True, kw_only=True)
class LogTimes:
    """What a log says of its times."""

    starts: tuple[tuple[Ns, int], ...]
    """(time, offset of the line's first byte): one for each line whose time differs from the one
    before, never falling."""
    scale: Scale
    boots: int
    """Seen by their uptimes; 0: there are none."""
    lines: int
    unstamped: int
    """Lines without a time of their own: they have the one of the line before."""

    def moved(self, by_ns: Ns) -> tuple[tuple[Ns, int], ...]:
        return tuple((max(0, t_ns + by_ns), at) for t_ns, at in self.starts)

    def time_at(self, offset_bytes: int) -> Ns:
        """Of the line that holds this byte."""
        found = bisect_right(self.starts, offset_bytes, key=lambda one: one[1])
        return self.starts[found - 1][0] if found else 0


def read_times(log: bytes, around_ns: Ns) -> LogTimes:
    """``around_ns``: a time, since 1970, near which the log was written: it gives stamps the year or
    the day that they lack."""
    reader = _Reader(around_ns)
    at = 0
    while at < len(log):
        newline = log.find(b"\n", at)
        end = len(log) if newline < 0 else newline + 1
        reader.take(at, log[at : min(end, at + MAX_STAMPED_BYTES)])
        at = end
    return reader.times()


class _Reader:
    """Line by line: (offset, wall time, uptime) each."""

    def __init__(self, around_ns: Ns) -> None:
        self._around_ns = around_ns
        self._year = datetime.fromtimestamp(around_ns / NS_PER_S, UTC).year
        self._read: list[tuple[int, Ns | None, Ns | None]] = []

    def take(self, at: int, line: bytes) -> None:
        of_day = _TIME_OF_DAY.match(line)
        stamped = stamps.read(line[of_day.end() :] if of_day else line, self._year)
        wall_ns = stamped.wall_ns
        if wall_ns is not None and wall_ns - self._around_ns > 180 * NS_PER_DAY:
            wall_ns = stamps.read(line, self._year - 1).wall_ns
        if of_day:
            wall_ns = self._near(of_day)
        if wall_ns is not None and not 0 <= wall_ns <= MAX_WALL_NS:
            wall_ns = None
        self._read.append((at, wall_ns, stamped.uptime_ns))

    def _near(self, of_day: re.Match[bytes]) -> Ns:
        """The day on which this time of day is nearest to ``around_ns``."""
        hour, minute, second = (int(of_day[name]) for name in ("hour", "minute", "second"))
        t_ns = (hour * 3600 + minute * 60 + second) * NS_PER_S
        t_ns += int((of_day["fraction"] or b"").ljust(9, b"0"))
        midnight_ns = self._around_ns - self._around_ns % NS_PER_DAY
        days = [midnight_ns + day * NS_PER_DAY + t_ns for day in (-1, 0, 1)]
        return min(days, key=lambda one: abs(one - self._around_ns))

    def times(self) -> LogTimes:
        has_wall = any(wall_ns is not None for _, wall_ns, _ in self._read)
        has_uptime = any(uptime_ns is not None for _, _, uptime_ns in self._read)
        starts: list[tuple[Ns, int]] = []
        now_ns = unstamped = boots = 0
        base_ns: Ns = 0
        last_uptime_ns: Ns | None = None
        for at, wall_ns, uptime_ns in self._read:
            if uptime_ns is not None:
                if last_uptime_ns is None or uptime_ns < last_uptime_ns - REBOOT_NS:
                    boots += 1
                    base_ns = now_ns - uptime_ns if boots > 1 else 0
                    last_uptime_ns = uptime_ns
                last_uptime_ns = max(uptime_ns, last_uptime_ns)
            t_ns = now_ns
            if wall_ns is not None:
                t_ns = wall_ns
                if uptime_ns is not None:
                    base_ns = wall_ns - uptime_ns
            elif uptime_ns is not None and (not has_wall or now_ns):
                t_ns = base_ns + uptime_ns
            else:
                unstamped += 1
            now_ns = max(now_ns, t_ns)
            if not starts or now_ns > starts[-1][0]:
                starts.append((now_ns, at))
        if has_wall and starts and starts[0][0] == 0:
            # What stands before the first time of day was printed before it.
            first_ns = next((t_ns for t_ns, _ in starts if t_ns), 0)
            starts = [(first_ns, starts[0][1]), *((t, at) for t, at in starts[1:] if t > first_ns)]
        scale: Scale = "wall" if has_wall else "uptime" if has_uptime else "none"
        return LogTimes(
            starts=tuple(starts),
            scale=scale,
            boots=boots,
            lines=len(self._read),
            unstamped=unstamped,
        )
