"""The clocks of the host.

All times are CLOCK_MONOTONIC. Wall time is read once per run, with its error.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from freezeframe.harness.core.events import Ns


class MonotonicClock:
    """Implements roles.Clock."""

    def now(self) -> Ns:
        return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class WallReading:
    """Wall time at one time of CLOCK_MONOTONIC."""

    monotonic_ns: Ns
    wall_ns: int
    """Nanoseconds since 1970-01-01 UTC."""
    error_ns: int
    """Maximum time between the two clock readings. The error of the wall clock itself is unknown.
    """

    def utc(self, t_ns: Ns) -> str:
        """Return the time of day at another time of CLOCK_MONOTONIC, in milliseconds."""
        wall_s = (self.wall_ns + t_ns - self.monotonic_ns) / 1e9
        return datetime.fromtimestamp(wall_s, UTC).time().isoformat("milliseconds")


def utc_now() -> str:
    """Return the wall time, ISO 8601 in milliseconds: ``2026-11-30T18:00:00.000Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_wall_clock() -> WallReading:
    """Read the wall time between two readings of the monotonic clock; return the tightest of a few
    attempts."""
    tries = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(5)]
    before, wall, after = min(tries, key=lambda one: one[2] - one[0])
    half = (after - before + 1) // 2
    return WallReading(before + half, wall, half)
