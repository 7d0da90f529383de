"""A socket that takes requests (``ownsocket``): each is a line, and gets a line as its answer.

A peer has one request at a time: the next one is read once the answer is out. So nobody who floods, or never
reads, costs more than one line, and what a peer holds is free as soon as it is gone.
"""

import select
import socket
import time
from pathlib import Path
from typing import Final, Self

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.edge.ownsocket import ACT, Listening, connections, peer_of
from freezeframe.harness.errors import RigError

STUCK_NS: Final = 10 * NS_PER_S
"""A peer that has not taken its answer for so long is hung up on."""
RECEIVE_BYTES: Final = 4096
MAX_ANSWER_BYTES: Final = 64 << 10


class Asker:
    """One peer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid, self.uid = peer_of(connection)
        self.held = bytearray()
        """Of its input: what is not a whole line, and lines after the one that is being answered."""
        self.out = b""
        """Of its answer: what it has not taken."""
        self.out_ns: Ns = 0
        self.awaits = False
        """Its request is being carried out."""
        self.is_last = False
        """Its answer is the last one that it gets."""
        self.is_gone = False

    @property
    def is_ready(self) -> bool:
        """Its next request has come already."""
        return b"\n" in self.held and not (self.awaits or self.out)

    @property
    def events(self) -> int:
        if self.out:
            return select.POLLRDHUP | select.POLLOUT
        has_more = self.awaits or b"\n" in self.held  # what is held is answered before more is read
        return select.POLLRDHUP | (0 if has_more else select.POLLIN)


class Requests:
    """The answering end, for one thread; it serves while it ``wait``s."""

    def __init__(self, folder: Path, name: str, max_line_bytes: int) -> None:
        """RigError: no socket can be made there."""
        self._askers: dict[int, Asker] = {}
        self._max = max_line_bytes
        try:
            self._listening = Listening(folder, name, ACT)
        except OSError as error:
            raise RigError(
                f"{folder}: {error.strerror}: no command can act through this one"
            ) from error
        self.path = self._listening.path

    def wait(self, wake_fd: int, timeout_s: float) -> list[tuple[Asker, bytes | None]]:
        """Return what came, at the latest after ``timeout_s`` or when ``wake_fd`` can be read: (who, its
        request), or (who, None): it is gone. Who is gone stands first."""
        ready = self._poll(wake_fd, timeout_s)
        gone: list[tuple[Asker, bytes | None]] = []
        come: list[tuple[Asker, bytes | None]] = []
        now = time.monotonic_ns()
        for fd, asker in list(self._askers.items()):
            if not self._serve(asker, ready.get(fd, 0), now):
                gone.append((asker, None))
                self._drop(asker)
            elif (line := self._line(asker)) is not None:
                come.append((asker, line))
        if ready.get(self._listening.fileno()):
            connection = self._listening.accept(len(self._askers))
            if connection is not None:
                self._askers[connection.fileno()] = Asker(connection)
        return gone + come

    def _poll(self, wake_fd: int, timeout_s: float) -> dict[int, int]:
        poller = select.poll()
        poller.register(wake_fd, select.POLLIN)
        if any(one.is_ready for one in self._askers.values()):
            timeout_s = 0.0
        if rest_s := self._listening.rest_s:
            timeout_s = min(timeout_s, rest_s)
        else:
            poller.register(self._listening.fileno(), select.POLLIN)
        for fd, asker in self._askers.items():
            poller.register(fd, asker.events)
        return dict(poller.poll(timeout_s * 1000))

    def _serve(self, asker: Asker, events: int, now: Ns) -> bool:
        """Whether it is still there."""
        if events & (select.POLLHUP | select.POLLERR | select.POLLRDHUP):
            return False
        if events & select.POLLIN:
            try:
                data = asker.connection.recv(RECEIVE_BYTES)
            except OSError:
                return False
            asker.held += data
        if events & select.POLLOUT:
            return self._send(asker, now)
        return not (asker.out and now - asker.out_ns > STUCK_NS)

    def _line(self, asker: Asker) -> bytes | None:
        """Its next request, when it has one and the one before is answered."""
        if asker.awaits or asker.out:
            return None
        end = asker.held.find(b"\n")
        if end < 0 and len(asker.held) <= self._max:
            return None
        end = end if end >= 0 else len(asker.held)
        line = bytes(asker.held[:end])
        del asker.held[: end + 1]
        asker.awaits = True
        return line

    def answer(self, asker: Asker, line: bytes, *, is_last: bool = False) -> bool:
        """Answer its request. ``is_last``: hang up then. Whether it is still there."""
        if asker.is_gone:
            return False
        asker.awaits, asker.is_last = False, is_last
        asker.out, asker.out_ns = line, time.monotonic_ns()
        if not self._send(asker, asker.out_ns):
            self._drop(asker)
        return not asker.is_gone

    def _send(self, asker: Asker, now: Ns) -> bool:
        try:
            sent = asker.connection.send(asker.out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return True
        except OSError:
            return False
        asker.out, asker.out_ns = asker.out[sent:], now
        return bool(asker.out) or not asker.is_last

    def _drop(self, asker: Asker) -> None:
        asker.is_gone = True
        self._askers.pop(asker.connection.fileno(), None)
        asker.connection.close()

    def close(self) -> None:
        for asker in list(self._askers.values()):
            self._drop(asker)
        self._listening.close()


class Asking:
    """The asking end, a connection to one process."""

    def __init__(self, connection: socket.socket, path: Path, pid: int) -> None:
        self.path, self.pid = path, pid
        self._socket, self._held = connection, b""

    def fileno(self) -> int:
        """It can be read when the other end has gone."""
        return self._socket.fileno()

    def ask(self, line: bytes, limit_s: float) -> bytes:
        """Return the answer. RigError: none came within ``limit_s``, or the other end has gone."""
        try:
            self._socket.settimeout(limit_s)
            self._socket.sendall(line)
            while b"\n" not in self._held:
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    raise ConnectionError("it hung up")
                self._held += data
                if len(self._held) > MAX_ANSWER_BYTES:
                    raise RigError(f"{self.path}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise RigError(
                f"pid {self.pid} has not answered within {limit_s:g} s: whether it was done is in its audit journal"
            ) from error
        except OSError as error:
            raise RigError(
                f"pid {self.pid} has ended, or takes nobody else, and did not answer: whether it was done is in its "
                "audit journal"
            ) from error
        answer, _, self._held = self._held.partition(b"\n")
        return answer

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def answering(folder: Path, name: str) -> list[Asking]:
    """Return connections to all who take requests for ``name``, the newest last. RigError: somebody does,
    and this user may not ask."""
    return [Asking(*one) for one in connections(folder, name, ACT)]
