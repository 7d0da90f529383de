"""A look-only unix socket: one process writes lines, others of the same user read them.

The socket is its owner's alone (mode 0600), and each peer's user is checked (SO_PEERCRED): root may look, too.
Nothing is read from a peer. Whoever reads slowly skips lines; who reads nothing is hung up on.
"""

import contextlib
import errno
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.errors import RigError

NAME: Final = "{name}.{pid}.sock"
MODE: Final = 0o600
MAX_PEERS: Final = 16
REST_NS: Final = NS_PER_S // 2
"""Before somebody is accepted again after there was no descriptor left for him, who waits in the queue."""
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
STUCK_NS: Final = 10 * NS_PER_S
"""A peer that has not taken a line for so long is hung up on."""
MAX_LINE_BYTES: Final = 1 << 20
RECEIVE_BYTES: Final = 65536
_PEER: Final = struct.Struct("3i")
"""struct ucred: process, user, group."""


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return (process id, user id) of who is at the other end, as the kernel knows it."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


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
        self._rests_until_ns: Ns = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.path = folder / NAME.format(name=name, pid=os.getpid())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(folder, name)
            # Before it has a name: no moment with another mode.
            os.fchmod(self._socket.fileno(), MODE)
            # It gets its name when somebody listens: nobody finds it left behind before.
            fresh = self.path.with_suffix(".new")
            with _short(fresh) as address:
                with contextlib.suppress(FileNotFoundError):
                    fresh.unlink()
                self._socket.bind(address)
            self._socket.listen(MAX_PEERS)
            fresh.rename(self.path)
        except OSError as error:
            self._socket.close()
            raise RigError(
                f"{self.path}: {error.strerror}: nobody can look on (freezeframe top)"
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def any(self) -> bool:
        return bool(self._peers)

    def await_caller(self, fds: list[int], timeout_s: float | None) -> list[int]:
        """Return which of these can be read, and ``fileno`` when somebody has come, at the latest after
        ``timeout_s``. After ``accept`` had no descriptor left it returns once a rest is over, too."""
        rest_s = (self._rests_until_ns - time.monotonic_ns()) / NS_PER_S
        if rest_s <= 0:
            return wait_readable([self.fileno(), *fds], timeout_s)
        return wait_readable(fds, rest_s if timeout_s is None else min(rest_s, timeout_s))

    def accept(self) -> bool:
        """Take who has come; whether somebody who may look has."""
        try:
            connection, _ = self._socket.accept()
        except OSError as error:  # gone meanwhile, or no descriptor left
            if error.errno in NO_ROOM:
                self._rests_until_ns = time.monotonic_ns() + REST_NS
            return False
        connection.setblocking(False)
        if len(self._peers) >= MAX_PEERS or peer_of(connection)[1] not in (0, os.geteuid()):
            connection.close()
            return False
        self._peers.append(_Peer(connection))
        return True

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
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._socket.close()


class Lines:
    """The reading end, of one process. ``fileno`` is readable when there is something to ``read``."""

    def __init__(self, path: Path, pid: int) -> None:
        """OSError: nobody listens there, or it may not be looked at."""
        self.path, self.pid = path, pid
        self._held = b""
        self.is_over = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(path) as address:
                self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise

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
    found, refused = [], None
    for path, pid in _sockets(folder, name):
        try:
            found.append(Lines(path, pid))
        except PermissionError:
            refused = path
        except OSError:  # left behind by a kill, or just gone
            continue
    if not found and refused is not None:
        raise RigError(f"{refused}: it is another user's; look as that user (sudo -u)")
    return found


def names(folder: Path) -> list[str]:
    """Return the names that sockets in this folder have, also of those that nobody listens at."""
    found = set()
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if match := re.fullmatch(r"(.+)\.\d+\.sock", path.name):
                found.add(match[1])
    return sorted(found)


def _sockets(folder: Path, name: str) -> list[tuple[Path, int]]:
    pattern = re.compile(re.escape(name) + r"\.(\d+)\.sock")
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if match := pattern.fullmatch(path.name):
                found.append((path.lstat().st_mtime_ns, path, int(match[1])))
    return [(path, pid) for _, path, pid in sorted(found)]


def _remove_left_behind(folder: Path, name: str) -> None:
    """Sockets of processes that were killed: nobody listens there."""
    for path, _ in _sockets(folder, name):
        with socket.socket(socket.AF_UNIX) as one, _short(path) as address:
            one.setblocking(False)
            try:
                one.connect(address)
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:
                continue


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of at most 107 bytes, which is all that a unix socket may have."""
    fd = os.open(path.parent, os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def wait_readable(fds: list[int], timeout_s: float | None) -> list[int]:
    """Return which of these can be read, or have hung up, at the latest after ``timeout_s``."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(None if timeout_s is None else max(0, timeout_s) * 1000)]
