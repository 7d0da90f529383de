"""A console's adapter that can be unplugged: a TCP port in front of a PTY."""

import contextlib
import os
import select
import socket
import threading
import tty
from pathlib import Path
from typing import Final

READ_BYTES: Final = 64 << 10
POLL_S: Final = 0.05


class ConsoleAdapter:
    """Serves one client at a time on ``port``; the PTY at ``device`` is opened for the first one."""

    def __init__(self, device: Path) -> None:
        self._device = device
        self._fd = -1
        self._client: socket.socket | None = None
        self._is_plugged = threading.Event()
        self._is_plugged.set()
        self._is_ending = False
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def say(self, data: bytes) -> None:
        """As if the device had printed it."""
        assert self._client is not None
        self._client.sendall(data)

    def unplug(self) -> None:
        """The connection ends, nothing listens, and what the console says meanwhile is lost."""
        self._is_plugged.clear()

    def plug(self) -> None:
        self._is_plugged.set()

    def close(self) -> None:
        self._is_ending = True
        self._is_plugged.set()
        self._thread.join(60)
        self._listener.close()
        if self._fd >= 0:
            os.close(self._fd)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        listener.settimeout(POLL_S)
        return listener

    def _serve(self) -> None:
        while not self._is_ending:
            if not self._is_plugged.is_set():
                self._listener.close()
                while not self._is_plugged.wait(POLL_S):
                    self._drain()
                self._listener = self._listen(self.port)
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                if self._fd < 0:
                    self._fd = os.open(self._device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                    tty.setraw(self._fd)
                with client, contextlib.suppress(OSError):
                    self._carry(client)

    def _carry(self, client: socket.socket) -> None:
        self._client = client
        while self._is_plugged.is_set() and not self._is_ending:
            for ready in select.select([client, self._fd], [], [], POLL_S)[0]:
                if ready is client:
                    data = client.recv(READ_BYTES)
                    if not data:
                        return
                    os.write(self._fd, data)
                else:
                    client.sendall(os.read(self._fd, READ_BYTES))

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self._fd, READ_BYTES)
