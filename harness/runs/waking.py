"""Wakes a thread that waits for descriptors, from any other thread."""

import contextlib
import os
import threading
from typing import Final

DRAIN_BYTES: Final = 4096


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
