"""A real NBD server for tests: NbdSession and Store behind a unix socket, in a thread. Not the
product's server."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from freezeframe.firmware_sim.medium import MemoryMedium
from freezeframe.firmware_sim.nbd_port import NbdSession, Request
from freezeframe.firmware_sim.store import Store
from freezeframe.harness.wire.nbd import Error


class NoMetadata:
    def to_bytes(self) -> bytes:
        return b""


class NbdTestServer:
    """Serves ``store`` to any number of clients until the end of the ``with`` block.

    ``hold()`` keeps all answers back, ``release()`` lets them go, ``hang_up()`` drops every
    connection.
    """

    def __init__(self, path: Path, size_bytes: int = 64 << 20, *, read_only: bool = False) -> None:
        self.uri = f"nbd+unix:///?socket={path}"
        self.path = path
        self.store = Store(MemoryMedium(), size_bytes, NoMetadata())
        self.failing: set[int] = set()
        """Offsets of requests that are answered with EIO."""
        self.waiting: list[tuple[socket.socket, bytes]] = []
        """Answers that are held back."""
        self._read_only = read_only
        self._held = threading.Event()
        self._commands: list[str] = []
        self._done = threading.Condition()
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(32)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("stop")
        self._thread.join(60)

    def hold(self) -> None:
        self._tell("hold")

    def release(self) -> None:
        self._tell("release")

    def hang_up(self) -> None:
        self._tell("hang up")

    def _tell(self, command: str) -> None:
        """Returns when the server has done it."""
        with self._done:
            self._commands.append(command)
            self._waker.send(b"x")
            assert self._done.wait_for(lambda: not self._commands, 10)

    # --- the server's thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wake, selectors.EVENT_READ)
        selector.register(self._listener, selectors.EVENT_READ)
        sessions: dict[socket.socket, NbdSession] = {}
        holding = False

        def drop(client: socket.socket) -> None:
            selector.unregister(client)
            sessions.pop(client)
            client.close()

        while True:
            for key, _ in selector.select():
                if key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    session = sessions[client] = NbdSession(self.store.size_bytes, self._read_only)
                    client.sendall(session.take_output())
                    selector.register(client, selectors.EVENT_READ)
                elif key.fileobj is self._wake:
                    self._wake.recv(1)
                    with self._done:
                        command = self._commands[0]
                    if command == "hold":
                        holding = True
                    elif command == "release":
                        holding = False
                        for client, answer in self.waiting:
                            if client in sessions:
                                client.sendall(answer)
                        self.waiting.clear()
                    else:
                        for client in list(sessions):
                            drop(client)
                        self.waiting.clear()
                    with self._done:
                        self._commands.pop(0)
                        self._done.notify_all()
                    if command == "stop":
                        selector.close()
                        self._listener.close()
                        return
                elif key.fileobj in sessions:
                    client = key.fileobj
                    session = sessions[client]
                    try:
                        data = client.recv(256 << 10)
                        answer = b"".join(
                            session.reply(r, *self._serve(r)) for r in session.feed(data)
                        )
                        # A held controller still shakes hands and refuses nonsense.
                        client.sendall(session.take_output())
                        if holding and answer:
                            self.waiting.append((client, answer))
                        else:
                            client.sendall(answer)
                    except OSError:
                        data = b""
                    if not data or session.closed:
                        drop(client)

    def _serve(self, request: Request) -> tuple[bytes, int]:
        if request.offset_bytes in self.failing:
            return b"", Error.EIO
        match request.kind:
            case "read":
                return self.store.read(request.offset_bytes, request.length_bytes), 0
            case "write":
                self.store.write(request.offset_bytes, request.data)
            case "trim" | "write_zeroes":
                self.store.trim(request.offset_bytes, request.length_bytes)
            case "flush":
                self.store.flush()
        if request.fua:
            self.store.flush()
        return b"", 0


@contextlib.contextmanager
def served(
    folder: Path, size_bytes: int = 64 << 20, *, read_only: bool = False
) -> Iterator[NbdTestServer]:
    with NbdTestServer(folder / "nbd.sock", size_bytes, read_only=read_only) as server:
        yield server
