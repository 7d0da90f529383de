"""A look-only socket (``ownsocket``): one process writes lines, others of the same user read them.

Nothing is read from a peer. Whoever reads slowly skips lines; who reads nothing is hung up on.
"""

import socket
import time
from pathlib import Path
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.edge.ownsocket import (
    LOOK,
    Listening,
    connections,
    wait_readable,
)
from freezeframe.harness.errors import RigError

STUCK_NS: Final = 10 * NS_PER_S
"""A peer that has not taken a line for so long is hung up on."""
MAX_LINE_BYTES: Final = 1 << 20
RECEIVE_BYTES: Final = 65536


class _Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.held = b""
        """The rest of a line."""
        self.since_ns: Ns = 0

    def send(self, line: bytes, now: Ns) -> bool:
        """Whether it is still there. A line that comes before the one before is out is left out."""
        if not self.held:
            self.held, self.since_ns = line, now
        try:
            sent = self.connection.send(self.held, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent:
            self.held, self.since_ns = self.held[sent:], now
        return not self.held or now - self.since_ns < STUCK_NS


class Onlookers:
    """The writing end. ``await_caller`` waits for somebody to come. All methods are for one thread."""

    def __init__(self, folder: Path, name: str) -> None:
        """RigError: no socket can be made there."""
        self._peers: list[_Peer] = []
        try:
            self._listening = Listening(folder, name, LOOK)
        except OSError as error:
            raise RigError(
                f"{folder}: {error.strerror}: nobody can look on (freezeframe top)"
            ) from error
        self.path = self._listening.path

    def fileno(self) -> int:
        return self._listening.fileno()

    @property
    def any(self) -> bool:
        return bool(self._peers)

    def await_caller(self, fds: list[int], timeout_s: float | None) -> list[int]:
        """Return which of these can be read, and ``fileno`` when somebody has come, at the latest after
        ``timeout_s``. After ``accept`` had no descriptor left it returns once a rest is over, too."""
        rest_s = self._listening.rest_s
        if not rest_s:
            return wait_readable([self.fileno(), *fds], timeout_s)
        return wait_readable(fds, rest_s if timeout_s is None else min(rest_s, timeout_s))

    def accept(self) -> bool:
        """Take who has come; whether somebody who may look has."""
        connection = self._listening.accept(len(self._peers))
        if connection is not None:
            self._peers.append(_Peer(connection))
        return connection is not None

    def send(self, line: bytes) -> None:
        now = time.monotonic_ns()
        for peer in list(self._peers):
            if not peer.send(line, now):
                peer.connection.close()
                self._peers.remove(peer)

    def close(self, last: bytes) -> None:
        """``last``: a line for all who have taken the one before."""
        self.send(last)
        for peer in self._peers:
            peer.connection.close()
        self._peers.clear()
        self._listening.close()


class Lines:
    """The reading end, of one process. ``fileno`` is readable when there is something to ``read``."""

    def __init__(self, connection: socket.socket, path: Path, pid: int) -> None:
        self.path, self.pid = path, pid
        self._held = b""
        self.is_over = False
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[bytes]:
        """Return whole lines that have come; waits for the first byte. RigError: one is too long."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        self.is_over = not data
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > MAX_LINE_BYTES:
            raise RigError(f"{self.path}: a line has more than {MAX_LINE_BYTES} bytes")
        return lines

    def take_up(self, other: "Lines") -> None:
        """Go on with another connection to the same process."""
        self._socket.close()
        self._socket, self._held, self.is_over = other._socket, b"", False

    def close(self) -> None:
        self._socket.close()


def listeners(folder: Path, name: str) -> list[Lines]:
    """Return connections to all who write for ``name`` and answer, the newest last. RigError: somebody
    does, and may not be looked at."""
    return [Lines(*one) for one in connections(folder, name, LOOK)]
