"""Follow a console through the incidents of a station that runs, by what its recorder writes: across
the cut to the next incident's folder, and where the older half of a record was set aside.

Nothing is asked of the station, so nobody who looks can delay it; who reads slowly reads later.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from freezeframe.harness.core.events import READ_TIME, Ns, Side
from freezeframe.harness.edge import locks
from freezeframe.harness.edge.clock import WallReading
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.store import (
    CONSOLE,
    LOCK,
    OPEN,
    TIMES,
    StoredIncident,
    open_inside,
)

READ_BYTES: Final = 256 << 10
"""Given out at once, and looked through for the newest lines."""
MAX_BEFORE: Final = 8
"""Earlier incidents in which the newest lines are looked for."""
MAX_TIMES_BYTES: Final = 64 << 20
STILL_LOOKS: Final = 2
"""A record that has not grown for so many looks has all its times: they follow within 50 ms."""
_SECOND_CHARS: Final = len("20260102T030405Z")


@dataclass(frozen=True)
class Recorder:
    """A command that records a bench now."""

    pid: int
    """0: not visible to this user."""
    holder: str
    """``python (pid 123)``."""
    newest: StoredIncident
    """The incident that its consoles are recorded into."""


def recorders(bench_id: str, side: Side, out_dirs: Iterable[Path]) -> list[Recorder]:
    """Return who records this bench, as far as this user may see it, or in one of ``out_dirs``; last the
    newest of those in ``out_dirs``."""
    found = all_recorders(side, out_dirs)
    return [one for one in found if one.newest.record.bench_id == bench_id]


def all_recorders(side: Side, out_dirs: Iterable[Path]) -> list[Recorder]:
    """The same of all benches."""
    paths = {one.parent for one in locks.locked_files(LOCK)}
    meant = {out_dir.resolve() for out_dir in out_dirs}
    for out_dir in meant:
        with contextlib.suppress(OSError):
            paths |= {one.parent for one in out_dir.glob(f"*/{LOCK}")}
    found: dict[tuple[int, str], Recorder] = {}
    for one in sorted(filter(None, map(_opened, paths)), key=lambda one: one.started_ns):
        if (
            one.outcome == OPEN and (one.path / side / CONSOLE).exists()
        ):  # else it is the next one's
            pid, holder = locks.locker(one.path / LOCK)
            found[pid, one.record.bench_id] = Recorder(pid, holder, one)
    return sorted(
        found.values(), key=lambda one: (one.newest.path.parent in meant, one.newest.started_ns)
    )


def _opened(path: Path) -> StoredIncident | None:
    with contextlib.suppress(UsageError, RigError, OSError):
        return StoredIncident.open(path)
    return None


@dataclass
class LineTimes:
    """When the bytes of one record were read."""

    incident: StoredIncident
    name: str
    """Of its file, in the incident."""
    t_ns: list[Ns] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def update(self) -> None:
        """Read what was added."""
        with (
            contextlib.suppress(OSError, RigError),
            open_inside(self.incident.path, self.name) as file,
        ):
            file.seek(len(self.offsets) * READ_TIME.size)
            data = file.read(MAX_TIMES_BYTES)
            for t_ns, offset in READ_TIME.iter_unpack(
                data[: len(data) - len(data) % READ_TIME.size]
            ):
                self.t_ns.append(t_ns)
                self.offsets.append(offset)

    def utc(self, offset_bytes: int) -> str:
        """Time of day in milliseconds; question marks when it is not known."""
        found, clock = bisect_right(self.offsets, offset_bytes), self.incident.record.clock
        if clock is None or not found:
            return "??:??:??.???"
        reading = WallReading(clock.monotonic_ns, clock.wall_ns, clock.error_ns)
        return reading.utc(self.t_ns[found - 1])


@dataclass(frozen=True)
class Chunk:
    """Bytes of one record, in order."""

    incident: StoredIncident
    data: bytes
    offset_bytes: int
    times: LineTimes

    def utc(self, index: int) -> str:
        return self.times.utc(self.offset_bytes + index)


class ConsoleFollower:
    """One console of one recorder. ``read`` gives what was added since the last call."""

    def __init__(self, recorder: Recorder, side: Side, *, with_times: bool = False) -> None:
        """``with_times``: give bytes out once their time is on the disk, too: the newest ones
        STILL_LOOKS calls later. RigError: the record cannot be read."""
        self.is_over = False
        """The recorder has ended, and all was given out."""
        self._pid, self._side, self._with_times = recorder.pid, side, with_times
        self._seen_bytes, self._still = -1, 0
        """Size of the record at the last look, and since how many looks it is that."""
        self._file: BinaryIO | None = None
        self._out_mtime_ns = -1
        self._waiting: list[StoredIncident] = []
        """Incidents of the same recorder that it does not record into yet."""
        self._use(recorder.newest)

    def _use(self, incident: StoredIncident) -> None:
        if self._file is not None:
            self._file.close()
        self._incident, self._at = incident, 0
        self._file = open_inside(incident.path, f"{self._side}/{CONSOLE}")
        self._times = LineTimes(incident, f"{self._side}/{TIMES}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    # --- what was there before --------------------------------------------------------------------------
    def newest_lines(self, count: int) -> list[Chunk]:
        """Return the last lines up to now, at most ``count``; also of what was set aside, and of
        the incidents before of the same controllers."""
        assert self._file is not None
        self._times.update()
        size = os.fstat(self._file.fileno()).st_size
        if self._with_times and self._times.offsets:
            size = min(size, self._times.offsets[-1])
        self._at = size
        found: list[Chunk] = []
        for incident, stem in self._records_before():
            if count <= 0:
                break
            times = self._times
            if stem or incident is not self._incident:
                times = LineTimes(incident, f"{self._side}/console{stem}.times")
                if self._with_times:
                    times.update()
            with contextlib.suppress(OSError, RigError):
                if times is self._times:
                    end, data = size, _end_of(self._file, size)
                else:
                    with open_inside(incident.path, f"{self._side}/console{stem}.log") as file:
                        end = os.fstat(file.fileno()).st_size
                        data = _end_of(file, end)
                lines = _last_lines(data, count)
                count -= lines.count(b"\n") + (not lines.endswith(b"\n") and bool(lines))
                if lines:
                    found.insert(0, Chunk(incident, lines, end - len(lines), times))
        return found

    def _records_before(self) -> Iterator[tuple[StoredIncident, str]]:
        """(incident, "" or ".old"), the newest first."""
        yield self._incident, ""
        yield self._incident, ".old"
        if not self._incident.record.pair_id:
            return
        here, own = self._incident.path.parent, self._incident
        names = [one for one in _names(here) if one[:_SECOND_CHARS] <= own.id[:_SECOND_CHARS]]
        for name in sorted(names, reverse=True)[: MAX_BEFORE + 1]:
            one = _opened(here / name)
            if one is None or one.id == own.id or one.record.pair_id != own.record.pair_id:
                continue
            if one.started_ns < own.started_ns:
                yield one, ""

    # --- what comes -------------------------------------------------------------------------------------
    def read(self) -> list[Chunk]:
        """Return what came since the last call, at most ``READ_BYTES`` of a record."""
        if chunk := self._rest(whole=False):
            return [chunk]
        if self._with_times and self._seen_bytes > self._at:
            return []  # the time of what is there is still to come
        is_alive = _is_open(self._incident.path)
        after = self._successor()
        if after is None and is_alive:
            return []
        # Nobody writes into this record any more.
        found = []
        while chunk := self._rest(whole=True):
            found.append(chunk)
        if after is not None:
            self._use(after)
        else:
            self.is_over = True
        return found

    def _rest(self, *, whole: bool) -> Chunk | None:
        """``whole``: all that is there is certain."""
        assert self._file is not None
        if self._with_times:
            self._times.update()
        size = os.fstat(self._file.fileno()).st_size
        limit = size
        self._still = self._still + 1 if size == self._seen_bytes else 0
        if self._with_times and not whole and self._still < STILL_LOOKS:
            # What the newest entry begins may be followed by reads that have no entry yet.
            limit = self._times.offsets[-1] if self._times.offsets else 0
        self._seen_bytes = size
        self._file.seek(self._at)
        data = self._file.read(max(0, min(READ_BYTES, limit - self._at)))
        if not data:
            return None
        self._at += len(data)
        return Chunk(self._incident, data, self._at - len(data), self._times)

    def _successor(self) -> StoredIncident | None:
        """The record that follows this one, which is complete by then: the recorder ends one
        before it makes the next."""
        path, name = self._incident.path, f"{self._side}/{CONSOLE}"
        assert self._file is not None
        with contextlib.suppress(OSError):
            if not os.path.samestat((path / name).stat(), os.fstat(self._file.fileno())):
                return self._incident  # its older half was set aside
        self._look_for_incidents()
        ready = [one for one in self._waiting if (one.path / name).exists()]
        if not ready:
            return None
        first = min(ready, key=lambda one: one.started_ns)
        self._waiting.remove(first)
        return first

    def _look_for_incidents(self) -> None:
        own = self._incident
        try:
            mtime_ns = own.path.parent.stat().st_mtime_ns
            if mtime_ns == self._out_mtime_ns:
                return
            names = _names(own.path.parent)
        except OSError:
            return
        known = {own.id, *(one.id for one in self._waiting)}
        is_complete = True
        for name in names:
            if name[:_SECOND_CHARS] < own.id[:_SECOND_CHARS] or name in known:
                continue
            one = _opened(own.path.parent / name)
            if one is None or not one.record.bench:
                is_complete = False  # it is just being made
            elif self._is_next(one):
                self._waiting.append(one)
        self._out_mtime_ns = mtime_ns if is_complete else -1

    def _is_next(self, one: StoredIncident) -> bool:
        own = self._incident
        is_later = one.record.bench_id == own.record.bench_id and one.started_ns > own.started_ns
        return is_later and one.outcome == OPEN and locks.locker(one.path / LOCK)[0] == self._pid


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [one.name for one in entries]


def _is_open(path: Path) -> bool:
    one = _opened(path)
    return one is not None and one.outcome == OPEN


def _end_of(file: BinaryIO, end_bytes: int) -> bytes:
    """What stands before that offset, at most READ_BYTES."""
    file.seek(max(0, end_bytes - READ_BYTES))
    return file.read(min(READ_BYTES, end_bytes))


def _last_lines(data: bytes, count: int) -> bytes:
    """The last ``count`` lines; one that has not ended is one."""
    at = len(data) - data.endswith(b"\n")
    for _ in range(count):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data
    return data[at + 1 :]
