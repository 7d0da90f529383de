"""Connect the host with the primary node: a unix socket on this machine, TCP inside the namespace
of the rig.

A node that crashes does not close its connections. Keep-alive probes detect it within some
seconds; then the connection of the host is closed, and the host connects again. While the node
boots, the connect of the host waits.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.edge.netns import Namespace

CHUNK_BYTES: Final = 256 << 10
MAX_HELD_BYTES: Final = 4 << 20
"""Bytes read from one end and not yet accepted by the other."""
RETRY_NS: Final = 200 * NS_PER_MS
CONNECT_LIMIT_NS: Final = 60 * NS_PER_S
"""Time after which a host waiting for a booting node is disconnected."""
KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 2}
"""Keep-alive idle time (s), interval (s), probes: a dead node is detected in 3 s."""
USER_TIMEOUT_MS: Final = 3000
"""The same for data sent and not acknowledged."""


class Relay:
    """Listens at ``path`` and copies the bytes of each connection to ``target`` and back. Driven
    by one thread."""

    def __init__(
        self, selector: BaseSelector, namespace: Namespace, path: Path, target: tuple[str, int]
    ) -> None:
        self._selector = selector
        self._namespace = namespace
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._carriers: set[_Carrier] = set()
        selector.register(self._listener, EVENT_READ, self._accept)

    def tick(self, now: Ns) -> None:
        for carrier in list(self._carriers):
            carrier.tick(now)

    def next_deadline(self) -> Ns | None:
        return min((one.retry_ns for one in self._carriers if one.retry_ns), default=None)

    def close(self) -> None:
        for carrier in list(self._carriers):
            carrier.close()
        self._selector.unregister(self._listener)
        self._listener.close()

    def connect(self) -> socket.socket:
        """Open a socket in the namespace of the rig that connects to the node."""

        def made() -> socket.socket:
            node = socket.socket(socket.AF_INET)
            node.setblocking(False)
            node.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            node.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in KEEPALIVE.items():
                node.setsockopt(socket.IPPROTO_TCP, option, value)
            node.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
            node.connect_ex(self._target)
            return node

        return self._namespace.run(made)

    def _accept(self, _mask: int) -> None:
        host, _ = self._listener.accept()
        host.setblocking(False)
        self._carriers.add(_Carrier(self, self._selector, host, time.monotonic_ns()))

    def forget(self, carrier: "_Carrier") -> None:
        self._carriers.discard(carrier)


class _Carrier:
    """One connection of a host."""

    def __init__(self, relay: Relay, selector: BaseSelector, host: socket.socket, now: Ns) -> None:
        self._relay = relay
        self._selector = selector
        self._host = host
        self._node: socket.socket | None = None
        self._connected = False
        self._to_node = bytearray()
        self._to_host = bytearray()
        self._give_up_ns = now + CONNECT_LIMIT_NS
        self.retry_ns: Ns = now
        """Time of the next connect attempt; 0: none pending."""
        selector.register(host, EVENT_READ, self._on_host)
        self.tick(now)

    def tick(self, now: Ns) -> None:
        if not self.retry_ns or now < self.retry_ns:
            return
        if now >= self._give_up_ns:
            self.close()
            return
        self._drop_node()
        self._node = self._relay.connect()
        self._selector.register(self._node, EVENT_WRITE, self._on_node)
        # A node that is booting swallows the first request: ask again rather than wait for TCP's
        # own patience.
        self.retry_ns = now + 5 * RETRY_NS

    def close(self) -> None:
        self._drop_node()
        self._unwatch(self._host)
        self._host.close()
        self._relay.forget(self)

    def _drop_node(self) -> None:
        if self._node is not None:
            self._unwatch(self._node)
            self._node.close()
            self._node = None

    def _on_host(self, mask: int) -> None:
        self._carry(self._host, self._to_node, self._to_host, mask)

    def _on_node(self, mask: int) -> None:
        assert self._node is not None
        if not self._connected:
            error = self._node.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._drop_node()
                self.retry_ns = time.monotonic_ns() + RETRY_NS
                return
            self._connected = True
            self.retry_ns = 0
        self._carry(self._node, self._to_host, self._to_node, mask)

    def _carry(
        self, source: socket.socket, inward: bytearray, outward: bytearray, mask: int
    ) -> None:
        """Read from ``source`` into ``inward`` and write ``outward`` to it; then poll for what is
        possible next."""
        try:
            if mask & EVENT_READ and len(inward) < MAX_HELD_BYTES:
                data = source.recv(CHUNK_BYTES)
                if not data:
                    self.close()
                    return
                inward += data
            for end, held in ((self._host, self._to_host), (self._node, self._to_node)):
                if end is not None and held and (end is self._host or self._connected):
                    with contextlib.suppress(BlockingIOError):
                        del held[: end.send(held)]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self.close()
                return
        self._watch(self._host, self._on_host, self._to_node, self._to_host)
        if self._node is not None and self._connected:
            self._watch(self._node, self._on_node, self._to_host, self._to_node)

    def _watch(
        self,
        end: socket.socket,
        handler: Callable[[int], None],
        inward: bytearray,
        outward: bytearray,
    ) -> None:
        """Unregister an end with nothing to read or write; it would be ready in each round."""
        mask = (EVENT_READ if len(inward) < MAX_HELD_BYTES else 0) | (EVENT_WRITE if outward else 0)
        key = self._selector.get_map().get(end)
        if not mask:
            self._unwatch(end)
        elif key is None:
            self._selector.register(end, mask, handler)
        elif mask != key.events:
            self._selector.modify(end, mask, handler)

    def _unwatch(self, end: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(end)
