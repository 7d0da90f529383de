"""What follows after the hot route: the record of each console on disk, and the events for the
supervisor."""

import contextlib
import os
import select
from collections import deque
from collections.abc import Sequence
from itertools import islice
from time import monotonic_ns
from typing import Final

from freezeframe.harness.core import events
from freezeframe.harness.core.console.rulebook import RuleBook
from freezeframe.harness.core.console.rules import MAX_PATTERN_CHARACTERS
from freezeframe.harness.core.console.triggers import Hit, Place
from freezeframe.harness.core.events import (
    NS_PER_MS,
    NS_PER_S,
    READ_TIME,
    Event,
    Note,
    Ns,
    Side,
    Trigger,
)

EXCERPT_BYTES: Final = 256
REPLAY_BYTES: Final = 4 * MAX_PATTERN_CHARACTERS
"""Bytes kept per console, the length of the longest literal, so that new rules find a text of
which a part has already arrived."""
TIMES_WITHIN_NS: Final = 50 * NS_PER_MS
"""Interval at which ``console.times`` is written. A killed reflex loses the times of this
interval; for the bytes see UNRECORDED."""
UNRECORDED: Final = 64
"""Reads that may be unrecorded while more input is available: about a millisecond. A killed reflex
loses them."""
BACKLOG: Final = 20_000
"""Limit of events queued for a slow supervisor, about 10 MiB. After that, triggers that sent no
frame are only counted."""
WRITE_PARTS: Final = 256
"""Events per write to the pipe; IOV_MAX is 1024."""


class Console:
    """The stream position of one console and its record on disk."""

    def __init__(
        self,
        book: RuleBook,
        *,
        side: Side,
        label: str,
        log_path: str,
        times_path: str,
        copy_fd: int,
    ) -> None:
        """``label``, ``copy_fd``: see StreamConfig. OSError when a file cannot be opened."""
        self.side = side
        self.label = label
        self.name = label or f"{side} console"
        self._book = book
        self._log_fd, self._times_fd = _open(log_path), _open(times_path)
        self._recorded_from = os.fstat(self._log_fd).st_size
        """Offset in the record of the first byte read. A restarted reflex continues at the end of
        the record; negative: this record began later."""
        self._read_bytes = 0
        """Read since."""
        self._before = bytearray()
        """The newest bytes, at least REPLAY_BYTES."""
        self.times = bytearray()
        """Entries of ``console.times`` not written yet."""
        self._is_recording = True
        self._copy_fd = copy_fd

    @property
    def place(self) -> Place:
        """Offset after the last byte read."""
        return Place(self._read_bytes, bytes(self._before[-REPLAY_BYTES:]))

    def record_into(self, log_path: str, times_path: str) -> Note | None:
        """Record into other files from the next byte on. If they cannot be opened, return a note
        and keep the old ones."""
        try:
            fds = [_open(log_path)]
            fds.append(_open(times_path))
        except OSError as error:
            text = f"{self.name}: {error.filename}: {error.strerror}: recorded as before"
            return Note(t_ns=monotonic_ns(), source="reflex", text=text, level="error")
        os.close(self._log_fd)
        os.close(self._times_fd)
        self._log_fd, self._times_fd = fds
        self._recorded_from = os.fstat(self._log_fd).st_size - self._read_bytes
        self._is_recording = True
        return None

    def again(self, copy_fd: int) -> "Console":
        """Its line was opened again. No text is found across the gap."""
        if self._copy_fd >= 0:
            os.close(self._copy_fd)
        self._copy_fd = copy_fd
        self._before.clear()
        self._book.remember(self.name, self.side, self.place)
        return self

    def triggers(
        self,
        hits: list[Hit],
        data: bytes,
        t_arrival_ns: Ns,
        t_match_ns: Ns,
        struck: int = 0,
        cause: int = -1,
    ) -> list[Event]:
        """Return the events for the hits completed by ``data``, which is not added to the record
        yet. ``struck``: see events.Trigger; ``cause``: the rule whose frames were written, which
        strikes at its first hit. That one is reported first."""
        seen = bytes(self._before) + data
        first = self._read_bytes - len(self._before)
        struck_for = next((hit for hit in hits if hit.rule == cause), None)
        return [
            Trigger(
                t_ns=t_match_ns,
                rule=self._book.rules[hit.rule].name,
                source="console",
                side=self.side,
                console=self.label,
                offset_bytes=self._recorded_from + hit.end_offset_bytes,
                t_arrival_ns=t_arrival_ns,
                t_match_ns=t_match_ns,
                excerpt=seen[: hit.end_offset_bytes - first][-EXCERPT_BYTES:],
                instruct=self._book.instructed[hit.rule],
                struck=struck,
                is_cause=hit is struck_for,
            )
            for hit in sorted(hits, key=lambda hit: hit is not struck_for)
        ]

    def take(self, t_arrival_ns: Ns, data: bytes) -> None:
        """Add the bytes to the stream; they will be recorded."""
        self.times += READ_TIME.pack(t_arrival_ns, self._recorded_from + self._read_bytes)
        self._read_bytes += len(data)
        self._before += data
        if len(self._before) > 2 * REPLAY_BYTES:
            del self._before[:-REPLAY_BYTES]

    def record(self, data: bytes) -> Note | None:
        """Append to the record on disk. Returns a note, once, when the disk accepts no more."""
        note = None
        if self._is_recording:
            try:
                if (written := os.write(self._log_fd, data)) < len(data):
                    _write_all(
                        self._log_fd, data[written:]
                    )  # a signal came, or the disk is nearly full
            except OSError as error:
                note = self._end_of_record(error)
        if self._copy_fd >= 0:
            with contextlib.suppress(
                OSError
            ):  # full or closed: the reader asks again, and the record is complete
                os.write(self._copy_fd, data)
        return note

    def record_times(self) -> Note | None:
        times, self.times = self.times, bytearray()
        try:
            if self._is_recording:
                _write_all(self._times_fd, times)
        except OSError as error:
            return self._end_of_record(error)
        return None

    def _end_of_record(self, error: OSError) -> Note:
        self._is_recording = False
        at = os.fstat(self._log_fd).st_size
        text = f"{self.name}: the record ends at byte {at}: {error.strerror}"
        return Note(t_ns=monotonic_ns(), source="reflex", text=text, level="error")


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _write_all(fd: int, data: bytes | bytearray) -> None:
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])


class EventOut:
    """Writes the record, and sends events to the supervisor over a pipe that may be full or
    closed. It never waits and never drops a trigger that sent a frame."""

    def __init__(self, fd: int, poller: select.epoll) -> None:
        self._fd = fd
        self._poller = poller
        self._unrecorded: list[tuple[Console, bytes]] = []
        self._untimed: list[Console] = []
        """Consoles with times not written yet."""
        self._times_due_ns: Ns = 0
        self._backlog: deque[bytes] = deque()
        self._untold = 0
        """Number of triggers that were only counted."""
        self._is_gone = False
        self._is_polled = False
        os.set_blocking(fd, False)

    def tell(self, reported: Sequence[Event]) -> None:
        """Queue events for the next ``flush``."""
        if all(isinstance(one, Trigger) for one in reported):
            room = max(0, BACKLOG - len(self._backlog))
            self._untold += max(0, len(reported) - room)
            reported = reported[:room]
        if not self._is_gone:
            self._backlog += map(events.encode, reported)

    def record(self, console: Console, t_arrival_ns: Ns, data: bytes) -> None:
        """Queue bytes to be recorded by the next ``flush``, after all available input has been
        searched."""
        if not console.times:
            self._untimed.append(console)
            self._times_due_ns = self._times_due_ns or t_arrival_ns + TIMES_WITHIN_NS
        console.take(t_arrival_ns, data)
        self._unrecorded.append((console, data))

    def is_due(self) -> bool:
        """Return whether ``flush`` must run even if more input is available."""
        return bool(self._backlog) or len(self._unrecorded) >= UNRECORDED

    def room(self, _fd: int) -> None:
        """Called when the pipe has room again; ``flush`` runs anyway."""

    def wait_s(self, silence_ms: int | None) -> float | None:
        """Return how long to wait for input; None: without limit."""
        if silence_ms is None:
            return TIMES_WITHIN_NS / NS_PER_S if self._untimed else None
        return min(silence_ms * NS_PER_MS, TIMES_WITHIN_NS) / NS_PER_S

    def flush(self) -> None:
        """Record what was read and write as much as the pipe accepts; poll for more room if
        something is left."""
        if self._unrecorded:
            for console, data in self._unrecorded:
                if note := console.record(data):
                    self.tell([note])
            self._unrecorded.clear()
            if monotonic_ns() > self._times_due_ns:
                self._flush_times()
        elif self._untimed:  # no input is waiting
            self._flush_times()
        if self._backlog:
            self._flush_events()

    def flush_all(self) -> None:
        """Record all that was read, and its times."""
        self.flush()
        self._flush_times()

    def _flush_times(self) -> None:
        for console in self._untimed:
            if note := console.record_times():
                self.tell([note])
        self._untimed.clear()
        self._times_due_ns = 0

    def _flush_events(self) -> None:
        while self._backlog and not self._is_gone:
            try:
                written = os.writev(self._fd, list(islice(self._backlog, WRITE_PARTS)))
            except BlockingIOError:
                break
            except OSError:  # the supervisor has exited: keep recording to disk
                self._is_gone = True
                self._backlog.clear()
                break
            while written:
                first = self._backlog.popleft()
                if written < len(first):
                    self._backlog.appendleft(first[written:])
                written = max(0, written - len(first))
        if self._untold and not self._backlog:
            text = f"the supervisor did not read: {self._untold} triggers were not sent as events; the record is complete"
            self._backlog.append(
                events.encode(Note(t_ns=monotonic_ns(), source="reflex", text=text, level="error"))
            )
            self._untold = 0
        self._poll(bool(self._backlog))

    def finish(self, limit_ns: Ns) -> None:
        """Record the rest and send the remaining events, for at most ``limit_ns``."""
        deadline_ns = monotonic_ns() + limit_ns
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        self.flush_all()
        while self._backlog:
            left_ms = (deadline_ns - monotonic_ns()) / NS_PER_MS
            if left_ms <= 0 or not room.poll(left_ms):
                return
            self.flush()

    def _poll(self, wanted: bool) -> None:
        if wanted and not self._is_polled:
            self._poller.register(self._fd, select.EPOLLOUT)
        elif self._is_polled and not wanted:
            self._poller.unregister(self._fd)
        self._is_polled = wanted
