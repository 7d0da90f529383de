"""A replication peer of the simulator on real sockets, stepped by a test, in the place of a real
node's partner."""

import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drbd_world import Hooks, MemoryBackend

from freezeframe.firmware_sim.drbd_peer import Peer, PeerConfig
from freezeframe.firmware_sim.ports import (
    ReplicationClose,
    ReplicationClosed,
    ReplicationData,
    ReplicationDial,
    ReplicationHold,
    ReplicationOpened,
    ReplicationSend,
)
from freezeframe.harness.edge.netns import Namespace

READ_BYTES = 256 << 10
RECEIVE_BUFFER_BYTES = 128 << 10
"""Small, so that a socket which is not read is soon felt by the sender."""


class RealSide:
    """``peer`` dials ``address`` from inside of a namespace; ``run_until`` carries its bytes until
    something is so."""

    def __init__(
        self,
        namespace: Path,
        address: tuple[str, int],
        backend: MemoryBackend,
        hooks: Any = None,
        **config: Any,
    ) -> None:
        self.address = address
        self.backend = backend
        self.lines: list[str] = []
        self.peer = Peer(
            PeerConfig(dial=True, **config),
            self.backend,
            hooks or Hooks(),
            self.lines.append,
            lambda *_: None,
        )
        self.completions: list[tuple[int, str]] = []
        self._namespace = Namespace.open(namespace)
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[int, socket.socket] = {}
        self._unsent: dict[int, bytearray] = {}
        self._number = 0

    # --- what a test does -----------------------------------------------------------------------------------------
    def start(self) -> None:
        self.peer.start(time.monotonic_ns())
        self.collect()

    def write(self, write_no: int, offset_bytes: int, data: bytes) -> bool:
        self.backend.write(offset_bytes, data)
        sent = self.peer.replicate(time.monotonic_ns(), write_no, offset_bytes, data)
        self.collect()
        return sent

    def run_until(self, condition: Callable[[], object], limit_s: float = 30.0) -> None:
        until = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < until, "never came:\n" + "\n".join(self.lines[-40:])
            self.round(0.02)

    def run_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.round(0.02)

    def round(self, wait_s: float) -> None:
        for key, mask in self._selector.select(wait_s):
            number = key.data
            if number not in self._sockets:
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(number)
            if mask & selectors.EVENT_READ and number in self._sockets:
                self._read(number)
        now = time.monotonic_ns()
        deadline = self.peer.next_deadline()
        if deadline is not None and deadline <= now:
            self.peer.tick(now)
        self.collect()

    def close_sockets(self) -> None:
        """As a peer that dies: both are gone, without a word."""
        for number in list(self._sockets):
            self._drop(number)
            self.peer.handle(time.monotonic_ns(), ReplicationClosed(number, "cut"))
        self.collect()

    def close(self) -> None:
        for number in list(self._sockets):
            self._drop(number)
        self._selector.close()
        self._namespace.close()

    # --- bytes ----------------------------------------------------------------------------------------------------
    def _read(self, number: int) -> None:
        try:
            data = self._sockets[number].recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if data:
            self.peer.handle(now, ReplicationData(number, data))
        else:
            self._drop(number)
            self.peer.handle(now, ReplicationClosed(number, "closed"))

    def collect(self) -> None:
        self.completions += self.peer.take_completions()
        for item in self.peer.take_output():
            match item:
                case ReplicationDial():
                    self._dial(item.kind)
                case ReplicationSend():
                    if item.socket in self._sockets:
                        self._unsent[item.socket] += item.data
                        self._flush(item.socket)
                case ReplicationClose():
                    if item.socket in self._sockets:
                        self._flush(item.socket)
                        self._drop(item.socket)
                case ReplicationHold():
                    if item.socket in self._sockets:
                        events = selectors.EVENT_WRITE if item.hold else selectors.EVENT_READ
                        self._selector.modify(self._sockets[item.socket], events, item.socket)
                case _:
                    raise AssertionError(item)

    def _dial(self, kind: Any) -> None:
        def dialled() -> socket.socket:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(2.0)
            made.connect(self.address)
            return made

        try:
            end = self._namespace.run(dialled)
        except OSError as error:
            self.peer.handle(time.monotonic_ns(), ReplicationClosed(-1, str(error), kind))
            return
        end.setblocking(False)
        self._number += 1
        self._sockets[self._number] = end
        self._unsent[self._number] = bytearray()
        self._selector.register(end, selectors.EVENT_READ, self._number)
        self.peer.handle(time.monotonic_ns(), ReplicationOpened(self._number, kind))
        self.collect()

    def _flush(self, number: int) -> None:
        end, unsent = self._sockets[number], self._unsent[number]
        try:
            while unsent:
                del unsent[: end.send(unsent)]
        except BlockingIOError:
            pass
        except OSError:
            unsent.clear()
        events = self._selector.get_key(end).events & selectors.EVENT_READ
        wanted = events | (selectors.EVENT_WRITE if unsent else 0)
        if wanted:
            self._selector.modify(end, wanted, number)

    def _drop(self, number: int) -> None:
        end = self._sockets.pop(number)
        del self._unsent[number]
        self._selector.unregister(end)
        end.close()
