"""A serial line's cable with a fault in it: a unix socket here, the line's own socket there, bytes
both ways between."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

READ_BYTES = 64 << 10
POLL_MS = 100


class LineRelay:
    """``outward`` changes what goes to the line; ``inward`` what comes from it, None: not a byte
    more, either way."""

    def __init__(
        self,
        path: Path,
        line: Path,
        *,
        outward: Callable[[bytes], bytes] = lambda data: data,
        inward: Callable[[bytes], bytes | None] = lambda data: data,
    ) -> None:
        self.is_dead = False
        self._line = line
        self._outward, self._inward = outward, inward
        self._is_ending = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(POLL_MS / 1000)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_ending = True
        self._thread.join(60)
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_ending:
            with contextlib.suppress(TimeoutError):
                user, _ = self._listener.accept()
                with user, socket.socket(socket.AF_UNIX) as line:
                    line.connect(str(self._line))
                    with contextlib.suppress(OSError):
                        self._carry(user, line)

    def _carry(self, user: socket.socket, line: socket.socket) -> None:
        poller = select.poll()
        ends = {user.fileno(): (user, line), line.fileno(): (line, user)}
        for fd in ends:
            poller.register(fd, select.POLLIN)
        while not self._is_ending:
            for fd, _ in poller.poll(POLL_MS):
                source, sink = ends[fd]
                data: bytes | None = source.recv(READ_BYTES)
                if not data:
                    return
                if not self.is_dead:
                    data = self._outward(data) if source is user else self._inward(data)
                    self.is_dead = data is None
                if not self.is_dead and data:
                    sink.sendall(data)
