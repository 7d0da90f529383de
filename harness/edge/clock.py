"""The host's clocks. Everything is timed by CLOCK_MONOTONIC; wall time is read once a run, with its
error."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from freezeframe.harness.core.events import Ns


class MonotonicClock:
    """Plays roles.Clock."""

    def now(self) -> Ns:
        return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class WallReading:
    """Wall time at one moment of CLOCK_MONOTONIC."""

    monotonic_ns: Ns
    wall_ns: int
    """Nanoseconds since 1970-01-01 UTC."""
    error_ns: int
    """How far apart the two readings can have been taken; the wall clock's own error is not known
    here."""

    def utc(self, t_ns: Ns) -> str:
        """Time of day at another moment of CLOCK_MONOTONIC, to a millisecond."""
        wall_s = (self.wall_ns + t_ns - self.monotonic_ns) / 1e9
        return datetime.fromtimestamp(wall_s, UTC).time().isoformat("milliseconds")


def read_wall_clock() -> WallReading:
    """Wall time between two readings of the monotonic clock: the closest of a few tries."""
    tries = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(5)]
    before, wall, after = min(tries, key=lambda one: one[2] - one[0])
    half = (after - before + 1) // 2
    return WallReading(before + half, wall, half)
