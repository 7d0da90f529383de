"""Wakes a thread that waits for descriptors, from any other thread; and keeps its work that could not
be done yet."""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns

DRAIN_BYTES: Final = 4096
AGAIN_S: Final = 0.5
"""Before work that failed is done again; the pause doubles with each failure."""
AGAIN_MAX_S: Final = 5.0


class Waker:
    """A pipe. Whoever waits for ``fileno`` to be readable calls ``drain`` after it."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._read_fd

    def wake(self) -> None:
        """Also when it is closed: a late thread must not write into whatever gets the number."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it wakes anyway
            if self._write_fd >= 0:
                os.write(self._write_fd, b"\0")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, DRAIN_BYTES)

    def close(self) -> None:
        with self._lock:
            os.close(self._write_fd)
            os.close(self._read_fd)
            self._write_fd = -1


class Later:
    """One piece of work that could not be done, for a full disk, say: done again after a pause, not each
    time that the loop turns. Work that fails again calls ``put`` again."""

    def __init__(self) -> None:
        self._work: Callable[[], None] | None = None
        self._due_ns: Ns = 0
        self._pause_s = AGAIN_S

    def put(self, now: Ns, work: Callable[[], None]) -> None:
        self._work, self._due_ns = work, now + round(self._pause_s * NS_PER_S)
        self._pause_s = min(2 * self._pause_s, AGAIN_MAX_S)

    def turn(self, now: Ns, *, at_once: bool) -> None:
        """Do it if it is due, or ``at_once``: nothing may wait for it any more."""
        if self._work is None or not (at_once or now >= self._due_ns):
            return
        work, self._work = self._work, None
        work()
        if self._work is None:
            self._pause_s = AGAIN_S
