"""Unix sockets of one user, by which commands of that user find each other: ``NAME.PID.KIND`` in a folder.

A socket is its owner's alone (mode 0600), and each peer's user is checked (SO_PEERCRED): root may come, too. What a
killed command left is refused by the kernel, and removed by the next one of that name.
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

LOOK: Final = "sock"
"""Of a socket that only sends."""
ACT: Final = "act"
"""Of one that takes requests."""
MODE: Final = 0o600
MAX_PEERS: Final = 16
REST_NS: Final = NS_PER_S // 2
"""Before somebody is accepted again after there was no descriptor left for him, who waits in the queue."""
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PEER: Final = struct.Struct("3i")
"""struct ucred: process, user, group."""


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return (process id, user id) of who is at the other end, as the kernel knows it."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


class Listening:
    """The listening end. For one thread."""

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        """OSError: no socket can be made there."""
        self._rests_until_ns: Ns = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.path = folder / f"{name}.{os.getpid()}.{kind}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(folder, name, kind)
            # Before it has a name: no moment with another mode.
            os.fchmod(self._socket.fileno(), MODE)
            # It gets its name when somebody listens: nobody finds it left behind before.
            fresh = self.path.with_suffix(f".{kind}-new")
            with _short(fresh) as address:
                with contextlib.suppress(FileNotFoundError):
                    fresh.unlink()
                self._socket.bind(address)
            self._socket.listen(MAX_PEERS)
            fresh.rename(self.path)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def rest_s(self) -> float:
        """So long nobody can be accepted; 0: somebody can."""
        return max(0, self._rests_until_ns - time.monotonic_ns()) / NS_PER_S

    def accept(self, peers: int) -> socket.socket | None:
        """Take who has come, without waiting; None: nobody who may. ``peers``: how many there are."""
        try:
            connection, _ = self._socket.accept()
        except OSError as error:  # gone meanwhile, or no descriptor left
            if error.errno in NO_ROOM:
                self._rests_until_ns = time.monotonic_ns() + REST_NS
            return None
        connection.setblocking(False)
        if peers >= MAX_PEERS or peer_of(connection)[1] not in (0, os.geteuid()):
            connection.close()
            return None
        return connection

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._socket.close()


def connect(path: Path) -> socket.socket:
    """OSError: nobody listens there, or this user may not come."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            one.connect(address)
    except OSError:
        one.close()
        raise
    return one


def connections(folder: Path, name: str, kind: str) -> list[tuple[socket.socket, Path, int]]:
    """Return (connection, path, process id) of all who listen under ``name`` and answer, the newest last.
    RigError: somebody does, and this user may not come."""
    found, refused = [], None
    for path, pid in _sockets(folder, name, kind):
        try:
            found.append((connect(path), path, pid))
        except PermissionError:
            refused = path
        except OSError:  # left behind by a kill, or just gone
            continue
    if not found and refused is not None:
        raise RigError(f"{refused}: it is another user's; come as that user (sudo -u)")
    return found


def names(folder: Path) -> list[str]:
    """Return the names that look-only sockets in this folder have, also of those that nobody listens at."""
    found = set()
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if match := re.fullmatch(rf"(.+)\.\d+\.{LOOK}", path.name):
                found.add(match[1])
    return sorted(found)


def _sockets(folder: Path, name: str, kind: str) -> list[tuple[Path, int]]:
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.{kind}")
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if match := pattern.fullmatch(path.name):
                found.append((path.lstat().st_mtime_ns, path, int(match[1])))
    return [(path, pid) for _, path, pid in sorted(found)]


def _remove_left_behind(folder: Path, name: str, kind: str) -> None:
    """Sockets of processes that were killed: nobody listens there."""
    for path, _ in _sockets(folder, name, kind):
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
