"""One UART that carries both a console and the control frames: a roles.ByteLink for the control
side of it.

Only one process may read a line. Before the reflex runs, that is this one; from ``share`` on the
reflex reads, records and scans the line, and hands every byte on through a pipe, whose other end is
read here.
"""

import os
import select
import time
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.edge.serial_link import SerialLink
from freezeframe.harness.errors import RigError

MAX_EARLY_BYTES: Final = 1 << 20
"""A minute and a half at 115,200 baud; who opens a bench takes seconds."""


class SharedLine:
    """Plays roles.ByteLink. Writes go to the line itself: a frame is written whole, and text never
    holds its delimiter."""

    def __init__(self, line: SerialLink) -> None:
        self.name = line.name
        self.line = line
        self._copy_fd = -1
        self._early = bytearray()

    def take_early(self) -> bytes:
        """What was read here before the line was shared, and is the console's as well: it belongs
        into its record."""
        early, self._early = bytes(self._early), bytearray()
        return early

    def share(self) -> int:
        """The descriptor into which the line's reader copies each byte from now on; the caller
        hands it over and closes it. Not blocking: a copy that nobody reads is dropped, the reader's
        record is whole."""
        self.unshare()
        self._copy_fd, theirs = os.pipe()
        os.set_blocking(self._copy_fd, False)
        os.set_blocking(theirs, False)
        return theirs

    def unshare(self) -> None:
        """Nobody else reads the line any more."""
        if self._copy_fd >= 0:
            os.close(self._copy_fd)
            self._copy_fd = -1

    def fileno(self) -> int:
        return self.line.fileno()

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        if self._copy_fd < 0:
            data = self.line.read(max_bytes, deadline_ns)
            self._early += data[: MAX_EARLY_BYTES - len(self._early)]
            return data
        poller = select.poll()
        poller.register(self._copy_fd, select.POLLIN)
        if not poller.poll(max(0, (deadline_ns - time.monotonic_ns()) / 1_000_000)):
            return b""
        data = os.read(self._copy_fd, max_bytes)
        if not data:
            raise RigError(f"{self.name}: the process that reads the line has ended")
        return data

    def write(self, data: bytes) -> None:
        self.line.write(data)

    def close(self) -> None:
        self.unshare()
        self.line.close()
