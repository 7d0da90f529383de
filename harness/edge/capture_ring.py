"""Keep the newest part of a link capture on disk within a size limit, and the window around a
trigger.

Frames are written to ``link.pcapng``. When it reaches the segment size it is renamed to
``link.NNNNNNNNNNNN.pcapng``, with the number of its first frame since the start of the capture,
and a new file begins. Until a trigger the oldest segments are removed: half of the limit is for
frames before a trigger, half for frames after it. ``freeze`` keeps the window before the trigger
and records until the window after it, or the limit, is full. ``join`` makes one file of the
segments at the end: in place, segment by segment, so that it needs no second copy and a kill in
between loses nothing.

Frame numbers: ``number`` returns the number that a frame will have in the joined file. For the
trigger of the incident it stays correct: ``pin``, called with each trigger, and ``freeze`` keep
the frames before it. For a trigger without an incident it is too high by the number of frames
removed later.
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
"""Segments per half of the limit and per window before a trigger. It sets the granularity of the
window."""
MIN_SEGMENT_BYTES: Final = 1 << 20
PIN_NS: Final = 2 * NS_PER_S
"""Time after a trigger in which no segment is removed while the limit has room: the supervisor
needs some milliseconds to report that the trigger belongs to the incident."""
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
    """Writes runs of frames; ``full`` gives the reason why no more are kept.

    Windows are measured in CLOCK_MONOTONIC. The timestamps of the frames jump when the clock of
    the host is set, and a jump must not discard a window.
    """

    def __init__(
        self,
        path: Path,
        make: Callable[[Path, str], PcapngWriter],
        bounds: Bounds,
        first_no: int = 1,
    ) -> None:
        """``make`` creates a file, with a comment or "". ``first_no``: number of the first frame
        that will be written. Raises RigError."""
        self.path = path
        self.full = ""
        """Why no more frames are recorded although they should be; "": no problem."""
        self.is_complete = False
        """The window after the trigger is complete; later frames are intentionally not kept."""
        self._make = make
        self._bounds = bounds
        self._segment_bytes = max(MIN_SEGMENT_BYTES, bounds.max_bytes // 2 // SEGMENTS)
        self._older: deque[_Segment] = deque()
        self._first_no = first_no
        """Of the current file."""
        self._t_began_ns: Ns | None = None
        self._t_last_ns: Ns = 0
        self._until_ns: Ns | None = None
        """When frozen: end of the recording."""
        self._pinned_ns: Ns = 0
        self._file = make(path, "")

    @property
    def first_no(self) -> int:
        """Number, since the start of the capture, of the first frame kept."""
        return self._older[0].first_no if self._older else self._first_no

    def number(self, packet_no: int) -> int:
        """Return the number in the joined file of frame ``packet_no`` of the capture; 0: not in
        the file."""
        return max(0, packet_no - self.first_no + 1)

    @property
    def frames_stored(self) -> int:
        """Total of all existing segments."""
        return sum(one.frames for one in self._older) + self._file.frames

    @property
    def size_bytes(self) -> int:
        return self._older_bytes + self._file.size_bytes

    @property
    def _older_bytes(self) -> int:
        return sum(one.size_bytes for one in self._older)

    def write(self, run: Run, t_ns: Ns) -> None:
        """Append a run of frames. ``t_ns`` is the present time."""
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
        """Note that a trigger was found."""
        self._pinned_ns = t_ns + PIN_NS

    def freeze(self, t_ns: Ns) -> None:
        """Keep the window around the trigger at ``t_ns``, which belongs to the incident. Only the
        first call counts."""
        if self._until_ns is None:
            self._until_ns = t_ns + self._bounds.after_ns

    def close(self, *, start_ns: Ns, end_ns: Ns, frames_received: int, frames_dropped: int) -> None:
        """Append the interface statistics. The segments stay until ``join``."""
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
        """Close the current file as a segment and begin another. False: none can be created, and
        ``full`` gives the reason."""
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
            with contextlib.suppress(OSError):  # continue in the file that is still open
                aside.rename(self.path)
            return False
        file.abandon()
        self._first_no, self._t_began_ns = following, None
        return True

    def _make_room(self, now_ns: Ns) -> None:
        """Make room for one more segment by removing the oldest, as far as the window before a
        trigger allows. The last one removed is renamed to ``path``, to be overwritten."""
        is_pinned = now_ns < self._pinned_ns
        room = (
            self._bounds.max_bytes if is_pinned else self._bounds.max_bytes // 2
        ) - self._segment_bytes
        while self._until_ns is None and len(self._older) > 1:
            oldest = self._older[0]
            is_past = not is_pinned and oldest.t_last_ns < now_ns - self._bounds.before_ns
            if self._older_bytes <= room and not is_past:
                return
            with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                retire(oldest.path)
            self._older.popleft()
            with contextlib.suppress(FileNotFoundError):
                oldest.path.replace(self.path)


# --- joining the segments -----------------------------------------------------------------------------------
def segment_path(path: Path, first_no: int) -> Path:
    return path.with_name(_NAME.format(stem=path.stem, number=first_no, suffix=path.suffix))


def segments(path: Path) -> list[tuple[int, Path]]:
    """Return (number of the first frame, file) of each segment of the capture at ``path``, in
    order."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.(\d{{12}}){re.escape(path.suffix)}")
    found = []
    if path.parent.is_dir():
        for one in path.parent.iterdir():
            if match := pattern.fullmatch(one.name):
                found.append((int(match[1]), one))
    return sorted(found)


def kept_runs(path: Path, open_file: Callable[[str], BinaryIO]) -> Iterator[Run]:
    """Yield every run of a capture that may not be joined yet: the segments in order, then
    ``path``.

    Raises RigError if a running watch overwrote a segment or began a new one meanwhile.
    """
    parts = segments(path)
    moved_on = RigError(
        f"{path} has moved on while it was read; read it again, or when the run is over"
    )
    for position, (first_no, one) in enumerate(parts):
        following = parts[position + 1][0] if position + 1 < len(parts) else None
        left = _MAX_FRAMES if following is None else following - first_no
        try:
            with open_file(one.name) as file:
                # A killed join may have renamed the newest file.
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
    """Join the segments of the capture at ``path`` into one file. Also works after a kill, and
    after a killed join. A segment that raises RigError stays as it is."""
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
    """Return whether a segment has no header (killed, or disk full, before it was written) or is
    retired."""
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
    """Cut the file after that many frames. What follows is an incomplete copy of the next segment,
    or statistics."""
    if os.fstat(fd).st_size == 0:
        raise WireError(f"{path} is empty")
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        end, found, *_ = survey(memoryview(data), first_packet_at(data), frames)
    if found != frames:  # data after an incomplete block would be unreadable
        raise WireError(f"{path} has {found} of {frames} frames", end)
    os.ftruncate(fd, end)
    os.lseek(fd, 0, os.SEEK_END)


def _append(fd: int, path: Path) -> None:
    """Return the packets and statistics of ``path``, without the common header and without an
    incomplete block."""
    with path.open("rb") as file:
        if _is_empty(file):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = first_packet_at(data)
            end = whole_to(data, at)
            while at < end:
                at += os.write(fd, data[at : min(end, at + _COPY_BYTES)])
