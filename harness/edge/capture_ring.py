"""The newest of a link's capture on disk, bounded, and the window around a trigger.

Frames go to ``link.pcapng``. When that has grown to a segment it is renamed to
``link.NNNNNNNNNNNN.pcapng``, by the number of its first frame since the capture began, and a new
one begins. Until a trigger the oldest segments are removed: half of the bound is for what came
before a trigger, half for what comes behind it. ``freeze`` keeps the window before the trigger and
goes on until the window behind it, or the bound, is full. ``join`` makes one file of it at the end:
in place, segment by segment, so that it needs no second copy, and a kill in between loses nothing.

Frame numbers: ``number`` tells the number that a frame will have in the joined file. What has been
told of the incident's trigger stays true: ``pin``, called with each trigger, and ``freeze`` keep
what is there. That of a trigger which nobody acts on is too high by the frames that are removed
later.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.link.skim import Run, survey
from freezeframe.harness.edge.pcapng import (
    END,
    PcapngWriter,
    first_packet_at,
    is_retired,
    retire,
    runs_of,
    whole_to,
)
from freezeframe.harness.errors import RigError, WireError

SEGMENTS: Final = 8
"""Of each half of the bound, and of the time before a trigger: how finely the window is cut."""
MIN_SEGMENT_BYTES: Final = 1 << 20
PIN_NS: Final = 2 * NS_PER_S
"""So long after a trigger nothing is removed that the bound leaves room for, beside the segment
that is being written: the supervisor needs some milliseconds to say that the trigger is the
incident's."""
_COPY_BYTES: Final = 1 << 20
_NAME: Final = "{stem}.{number:012d}{suffix}"
_MAX_FRAMES: Final = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Bounds:
    max_bytes: int
    before_ns: Ns
    after_ns: Ns


@dataclass(frozen=True)
class _Segment:
    path: Path
    first_no: int
    frames: int
    size_bytes: int
    t_last_ns: Ns


class CaptureRing:
    """``write`` each run; ``full`` says why nothing more is kept. Windows are counted in
    CLOCK_MONOTONIC: the frames' own times jump with the host's clock, and a jump must not throw a
    window away."""

    def __init__(
        self, path: Path, make: Callable[[Path, str], PcapngWriter], bounds: Bounds
    ) -> None:
        """``make`` begins a file, with a comment or "". RigError when it cannot."""
        self.path = path
        self.full = ""
        """Why nothing more is recorded although it should be; "" while all is well."""
        self.is_complete = False
        """The window behind the trigger is recorded; what comes now is not kept, as wanted."""
        self._make = make
        self._bounds = bounds
        self._segment_bytes = max(MIN_SEGMENT_BYTES, bounds.max_bytes // 2 // SEGMENTS)
        self._older: deque[_Segment] = deque()
        self._first_no = 1
        """Of the file that is being written."""
        self._t_began_ns: Ns | None = None
        self._t_last_ns: Ns = 0
        self._until_ns: Ns | None = None
        """Frozen: recorded up to then."""
        self._pinned_ns: Ns = 0
        self._file = make(path, "")

    @property
    def first_no(self) -> int:
        """The number, since the capture began, of the first frame that is kept."""
        return self._older[0].first_no if self._older else self._first_no

    def number(self, packet_no: int) -> int:
        """What frame ``packet_no`` of the capture is numbered in the file; 0: it is not in it."""
        return max(0, packet_no - self.first_no + 1)

    @property
    def frames_stored(self) -> int:
        """In all segments that are there."""
        return sum(one.frames for one in self._older) + self._file.frames

    @property
    def size_bytes(self) -> int:
        return self._older_bytes + self._file.size_bytes

    @property
    def _older_bytes(self) -> int:
        return sum(one.size_bytes for one in self._older)

    def write(self, run: Run, t_ns: Ns) -> None:
        """``t_ns``: now."""
        if self.full or self.is_complete:
            return
        size = len(run.data)
        if self._until_ns is not None and (
            t_ns > self._until_ns or self.size_bytes + size > self._bounds.max_bytes
        ):
            self.is_complete = True
            return
        if self._is_due(t_ns, size) and not self._roll(t_ns):
            return
        if not self._file.write(run.data, run.frames):
            self.full = self._file.full
            return
        self._t_began_ns = t_ns if self._t_began_ns is None else self._t_began_ns
        self._t_last_ns = t_ns

    def pin(self, t_ns: Ns) -> None:
        """A trigger was found."""
        self._pinned_ns = t_ns + PIN_NS

    def freeze(self, t_ns: Ns) -> None:
        """The trigger at ``t_ns`` is the incident's: keep its window. Only the first counts."""
        if self._until_ns is None:
            self._until_ns = t_ns + self._bounds.after_ns

    def close(self, *, start_ns: Ns, end_ns: Ns, frames_received: int, frames_dropped: int) -> None:
        """Add the statistics of the interface; the segments stay for ``join``."""
        self._file.close(
            start_ns=start_ns,
            end_ns=end_ns,
            frames_received=frames_received,
            frames_dropped=frames_dropped,
        )
        self.full = self.full or self._file.full

    def _is_due(self, t_ns: Ns, size: int) -> bool:
        if self._file.frames == 0 or self._t_began_ns is None:
            return False
        age_ns = t_ns - self._t_began_ns
        return self._file.size_bytes + size > self._segment_bytes or (
            self._until_ns is None and age_ns > self._bounds.before_ns // SEGMENTS
        )

    def _roll(self, t_ns: Ns) -> bool:
        """Set the file aside as a segment, and begin another; False, and ``full`` says why, when
        none can be begun."""
        aside = segment_path(self.path, self._first_no)
        file = self._file
        following = self._first_no + file.frames
        try:
            file.seal()
            self.path.rename(aside)
        except OSError as error:
            self.full = str(error)
            return False
        self._older.append(
            _Segment(aside, self._first_no, file.frames, file.size_bytes, self._t_last_ns)
        )
        try:
            self._make_room(t_ns)
            self._file = self._make(self.path, f"begins with frame {following} of the capture")
        except (OSError, RigError) as error:
            self.full = str(error)
            self._older.pop()
            with contextlib.suppress(
                OSError
            ):  # in the place of what could not be begun: it is still open
                aside.rename(self.path)
            return False
        file.abandon()
        self._first_no, self._t_began_ns = following, None
        return True

    def _make_room(self, now_ns: Ns) -> None:
        """For one segment more: the oldest go, as far as the window before a trigger does without
        them. The last one that goes lies at ``path`` afterwards, to be written over."""
        is_pinned = now_ns < self._pinned_ns
        room = (
            self._bounds.max_bytes if is_pinned else self._bounds.max_bytes // 2
        ) - self._segment_bytes
        while self._until_ns is None and len(self._older) > 1:
            oldest = self._older[0]
            is_past = not is_pinned and oldest.t_last_ns < now_ns - self._bounds.before_ns
            if self._older_bytes <= room and not is_past:
                return
            with contextlib.suppress(FileNotFoundError):  # somebody needed the room
                retire(oldest.path)
            self._older.popleft()
            with contextlib.suppress(FileNotFoundError):
                oldest.path.replace(self.path)


# --- one file of the segments -----------------------------------------------------------------------------------
def segment_path(path: Path, first_no: int) -> Path:
    return path.with_name(_NAME.format(stem=path.stem, number=first_no, suffix=path.suffix))


def segments(path: Path) -> list[tuple[int, Path]]:
    """(number of the first frame, file) of each segment set aside from the capture at ``path``, in
    order."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.(\d{{12}}){re.escape(path.suffix)}")
    found = []
    if path.parent.is_dir():
        for one in path.parent.iterdir():
            if match := pattern.fullmatch(one.name):
                found.append((int(match[1]), one))
    return sorted(found)


def kept_runs(path: Path, open_file: Callable[[str], BinaryIO]) -> Iterator[Run]:
    """Every run of a capture that may not be joined yet: the segments in order, then ``path``.
    RigError: a watch is going on, and has written over what was being read, or begun another
    segment."""
    parts = segments(path)
    moved_on = RigError(
        f"{path} has moved on while it was read; read it again, or when the run is over"
    )
    for position, (first_no, one) in enumerate(parts):
        following = parts[position + 1][0] if position + 1 < len(parts) else None
        left = _MAX_FRAMES if following is None else following - first_no
        try:
            with open_file(one.name) as file:
                # A join that was killed may have set the newest file aside as it was.
                for run in (
                    () if _is_empty(file) else runs_of(file, one.name, is_growing=following is None)
                ):
                    if not _is_at(file, one):
                        raise moved_on
                    if run.frames >= left:
                        end, frames, size, t_first_ns, t_last_ns = survey(run.data, 0, left)
                        yield Run(memoryview(run.data)[:end], frames, size, t_first_ns, t_last_ns)
                        break
                    left -= run.frames
                    yield run
        except (FileNotFoundError, WireError) as error:
            if one.exists():
                raise
            raise moved_on from error
        if not one.exists():
            raise moved_on
    try:
        with open_file(path.name) as file:
            if segments(path) != parts:
                raise moved_on
            if not (parts and _is_empty(file)):
                yield from runs_of(file, path.name, is_growing=True)
    except FileNotFoundError:
        if segments(path) != parts:
            raise moved_on from None
        if not parts:
            raise


def join(path: Path) -> None:
    """Make the capture at ``path`` one file, also after a kill, also of a join. RigError: a segment
    stays as it is."""
    parts = segments(path)
    try:
        while parts and is_retired(parts[0][1]):
            parts.pop(0)[1].unlink()
        if not parts:
            return
        if path.exists():  # no join has begun
            last_no, last = parts[-1]
            first_no = last_no + _count(last)
            aside = segment_path(path, first_no)
            path.rename(aside)
            parts.append((first_no, aside))
        first_no, whole = parts[0]
        with whole.open("r+b") as out:
            for number, one in parts[1:]:
                _cut(whole, out.fileno(), number - first_no)
                _append(out.fileno(), one)
                one.unlink()
            os.fsync(out.fileno())
        whole.rename(path)
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RigError(f"the segments of {path} cannot be made one file: {why}") from error


def _is_empty(file: BinaryIO) -> bool:
    """A segment that was killed, or met the end of the disk, before it had its header; or one that
    is retired."""
    return os.pread(file.fileno(), len(END), 0) in (b"", END)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(run.frames for run in runs_of(file, path.name))


def _cut(path: Path, fd: int, frames: int) -> None:
    """End the file behind so many frames: what stands there is a half copy of the next segment, or
    statistics."""
    if os.fstat(fd).st_size == 0:
        raise WireError(f"{path} is empty")
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        end, found, *_ = survey(memoryview(data), first_packet_at(data), frames)
    if found != frames:  # what came behind half a block could no longer be read
        raise WireError(f"{path} has {found} of {frames} frames", end)
    os.ftruncate(fd, end)
    os.lseek(fd, 0, os.SEEK_END)


def _append(fd: int, path: Path) -> None:
    """The packets and statistics of ``path``, without the header that is the same, and without half
    a block."""
    with path.open("rb") as file:
        if _is_empty(file):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = first_packet_at(data)
            end = whole_to(data, at)
            while at < end:
                at += os.write(fd, data[at : min(end, at + _COPY_BYTES)])
