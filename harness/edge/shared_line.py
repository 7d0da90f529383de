"""The control side of one UART that carries both a console and control frames, as a
roles.ByteLink.

Only one process may read a line. Before the reflex starts it is this process. After ``share`` the
reflex reads, records and scans the line, and copies every byte into a pipe, which is read here.
"""

import os
import select
import time
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.edge.serial_link import SerialLink
from freezeframe.harness.errors import LineGoneError, RigError

MAX_EARLY_BYTES: Final = 1 << 20
"""Limit for bytes kept before sharing: 90 s at 115,200 baud. Opening a bench takes seconds."""


class SharedLine:
    """Implements roles.ByteLink. Writes go directly to the line: a frame is written in one piece,
    and text never contains its delimiter.

    ``is_gone``: ``line`` stands in for one that has gone. Each read and write fails, so that silence
    is not taken for a controller's; whoever reads the console does not see it end.
    """

    def __init__(self, line: SerialLink, *, is_gone: bool = False) -> None:
        self.name = line.name
        self.line = line
        self._is_gone = is_gone
        self._copy_fd = -1
        self._early = bytearray()

    def take_early(self) -> bytes:
        """Return the bytes read before the line was shared. They are console output too and belong
        into its record."""
        early, self._early = bytes(self._early), bytearray()
        return early

    def share(self) -> int:
        """Return the descriptor into which the reader of the line copies each byte from now on.
        The caller passes it on and closes it.

        It is non-blocking: a copy that is not read is dropped. The record of the reader is
        complete.
        """
        self.unshare()
        self._copy_fd, theirs = os.pipe()
        os.set_blocking(self._copy_fd, False)
        os.set_blocking(theirs, False)
        return theirs

    def unshare(self) -> None:
        """Stop sharing: no other process reads the line any more."""
        if self._copy_fd >= 0:
            os.close(self._copy_fd)
            self._copy_fd = -1

    def fileno(self) -> int:
        return self.line.fileno()

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        self._fail_if_gone()
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
        self._fail_if_gone()
        self.line.write(data)

    def send_break(self) -> None:
        self._fail_if_gone()
        self.line.send_break()

    def _fail_if_gone(self) -> None:
        if self._is_gone:
            raise LineGoneError(f"{self.name} is gone, and is not there again yet")

    def close(self) -> None:
        self.unshare()
        self.line.close()
