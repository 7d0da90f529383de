"""Access the block device of a controller over NBD: the ``HostPort`` role, and a pipelined
connection for the writer.

Addresses: ``nbd+unix:///EXPORT?socket=PATH`` and ``nbd://HOST:PORT/EXPORT``; an empty EXPORT is
the default one.
"""

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from freezeframe.drivers.hosts.nbd_client import (
    DISCONNECT,
    Buffer,
    Command,
    Completion,
    NbdClientSession,
)
from freezeframe.harness.errors import HarnessError, RigError, UsageError, WireError
from freezeframe.harness.wire import nbd
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

DEFAULT_PORT: Final = 10809
RECEIVE_BYTES: Final = 1 << 20
SEND_BUFFERS: Final = 64
"""Buffers per sendmsg: header and data of 32 writes."""
PIECE_BYTES: Final = 1 << 20
"""Maximum length of one request. NbdHost splits longer ones and sends PIECES_IN_FLIGHT at a time.
"""
PIECES_IN_FLIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """The address of an export."""

    socket_path: str
    """Path of a unix socket; "": TCP."""
    host: str
    port: int
    export_name: str


def parse_uri(uri: str) -> NbdAddress:
    """Parse an address. Raises UsageError: not one of the forms in the module docstring."""
    try:
        parts = urlsplit(uri)
        export_name = unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd+unix":
            (path,) = parse_qs(parts.query, strict_parsing=True)["socket"]
            return NbdAddress(path, "", 0, export_name)
        if parts.scheme == "nbd" and parts.hostname:
            return NbdAddress("", parts.hostname, parts.port or DEFAULT_PORT, export_name)
    except (ValueError, KeyError):
        pass
    raise UsageError(
        f"{uri!r} is not an NBD address; allowed: nbd+unix:///EXPORT?socket=PATH and nbd://HOST:PORT/EXPORT"
    )


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn socket errors and protocol errors of the peer into RigError."""
    try:
        yield
    except HarnessError as error:
        if isinstance(error, WireError):
            raise RigError(f"host port {uri}: {error}") from error
        raise
    except TimeoutError as error:
        raise RigError(
            f"host port {uri}: no answer before the timeout; is the controller running?"
        ) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise RigError(
            f"host port {uri}: nothing listens there; is the controller powered?"
        ) from error
    except OSError as error:
        raise RigError(f"host port {uri}: {error.strerror or error}") from error


class NbdConnection:
    """One connection with any number of requests in flight.

    ``submit`` queues a request, ``pump`` transfers bytes in both directions and returns completed
    requests. A RigError ends the connection.
    """

    def __init__(self, uri: str, *, timeout_s: float = 30) -> None:
        """Connect and do the handshake within ``timeout_s``."""
        self.uri = uri
        self._out: deque[memoryview] = deque()
        address = parse_uri(uri)
        self._session = NbdClientSession(address.export_name)
        deadline_s = time.monotonic() + timeout_s
        with _translated(uri):
            self._socket = _connect(address, timeout_s)
        try:
            self._socket.setblocking(False)
            while not self._session.ready:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise RigError(
                        f"host port {uri}: no NBD greeting within {timeout_s:g} s: is it an NBD port?"
                    )
                self.pump(left_s)
        except BaseException:
            self._socket.close()
            raise
        self.size_bytes = self._session.size_bytes
        self.read_only = bool(self._session.flags & nbd.Transmission.READ_ONLY)
        self.block_bytes = SECTOR_BYTES
        self.max_request_bytes = self._session.max_request_bytes

    @property
    def outstanding(self) -> int:
        return self._session.outstanding

    @property
    def wants_write(self) -> bool:
        """Return whether ``pump`` has bytes to send; then also wait for POLLOUT."""
        return bool(self._out)

    def fileno(self) -> int:
        return self._socket.fileno()

    def submit(
        self,
        command: Command,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        data: Buffer = b"",
        *,
        fua: bool = False,
    ) -> int:
        """Queue a request and return its cookie. ``length_bytes`` is used for all requests except
        a write, which has ``data``."""
        cookie, header = self._session.request(
            command, offset_bytes, length_bytes or len(data), fua=fua
        )
        self._out.append(memoryview(header))
        if data:
            self._out.append(memoryview(data))
        return cookie

    def pump(self, timeout_s: float) -> list[Completion]:
        """Wait until bytes were transferred, at most ``timeout_s`` (0: do not wait); return the
        requests completed by them."""
        if self._socket.fileno() < 0:
            raise RigError(f"host port {self.uri}: this connection is closed")
        with _translated(self.uri):
            self._send()
            poller = select.poll()
            poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
            ready = poller.poll(timeout_s * 1000)
            if not ready:
                return []
            if ready[0][1] & select.POLLOUT:
                self._send()
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return []
            if not data:
                raise RigError(f"host port {self.uri}: the controller closed the connection")
            done = self._session.feed(data)
            if answer := self._session.take_output():
                self._out.append(memoryview(answer))
            return done

    def close(self) -> None:
        """Send a disconnect if that is possible without waiting, and close."""
        if self._socket.fileno() >= 0:
            if not self._out:
                with contextlib.suppress(OSError):
                    self._socket.send(DISCONNECT)
            self._socket.close()

    def _send(self) -> None:
        while self._out:
            buffers = [self._out[i] for i in range(min(len(self._out), SEND_BUFFERS))]
            try:
                sent = self._socket.sendmsg(buffers)
            except BlockingIOError:
                return
            while sent:
                first = self._out[0]
                if sent < len(first):
                    self._out[0] = first[sent:]
                    break
                sent -= len(first)
                self._out.popleft()


def _connect(address: NbdAddress, timeout_s: float) -> socket.socket:
    if not address.socket_path:
        connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(address.socket_path)
    except BaseException:
        connection.close()
        raise
    return connection


def error_name(error: int) -> str:
    """ "ENOSPC (No space left on device)"."""
    return f"{errno.errorcode.get(error, error)} ({os.strerror(error)})"


class NbdHost:
    """``HostPort`` and ``HostWorkload`` over NBD: one call at a time, which fails after
    ``timeout_s`` without a byte."""

    def __init__(self, uri: str, *, timeout_s: float = 30) -> None:
        self.uri = uri
        self._timeout_s = timeout_s
        self._connection = NbdConnection(uri, timeout_s=timeout_s)
        self.size_bytes = self._connection.size_bytes
        self.read_only = self._connection.read_only

    @staticmethod
    def workload_module() -> str:
        return "freezeframe.drivers.hosts.writer"

    @staticmethod
    def keeps_journal() -> bool:
        return True

    @staticmethod
    def programs() -> tuple[str, ...]:
        return ()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        pieces = self._all("read", offset_bytes, length_bytes)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        self._all("write", offset_bytes, len(data), data, fua=fua)

    def flush(self) -> None:
        self._connection.submit("flush")
        self._drain("flush", 0, {})

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        self._all("trim", offset_bytes, length_bytes)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "NbdHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(
        self,
        command: Command,
        offset_bytes: int,
        length_bytes: int,
        data: Buffer = b"",
        *,
        fua: bool = False,
    ) -> list[bytes]:
        """Perform a request of any length in pieces; return the pieces of a read in order."""
        if offset_bytes < 0 or length_bytes <= 0 or offset_bytes + length_bytes > self.size_bytes:
            asked = f"{command} of {length_bytes} bytes at {offset_bytes}"
            raise UsageError(f"host port {self.uri}: {asked}, but it has {self.size_bytes} bytes")
        view = memoryview(data)
        piece_bytes = min(PIECE_BYTES, self._connection.max_request_bytes)
        order: list[int] = []
        results: dict[int, Completion] = {}
        for at in range(0, length_bytes, piece_bytes):
            length = min(piece_bytes, length_bytes - at)
            while self._connection.outstanding >= PIECES_IN_FLIGHT:
                self._collect(command, offset_bytes, results)
            order.append(
                self._connection.submit(
                    command, offset_bytes + at, length, view[at : at + length], fua=fua
                )
            )
        self._drain(command, offset_bytes, results)
        return [results[cookie].data for cookie in order]

    def _drain(self, command: Command, offset_bytes: int, results: dict[int, Completion]) -> None:
        """Wait for all answers, even after an error, so that the next call starts with an idle
        connection."""
        while self._connection.outstanding:
            self._collect(command, offset_bytes, results)
        for completion in results.values():
            if completion.error:
                reason = error_name(completion.error)
                raise RigError(
                    f"host port {self.uri}: {command} at {offset_bytes} failed: {reason}"
                )

    def _collect(self, command: Command, offset_bytes: int, results: dict[int, Completion]) -> None:
        silent_until_s = time.monotonic() + self._timeout_s
        while not (done := self._connection.pump(max(0.0, silent_until_s - time.monotonic()))):
            if time.monotonic() >= silent_until_s:
                # What comes later would answer nobody: this connection is over.
                self._connection.close()
                waited = f"not answered within {self._timeout_s:g} s"
                raise RigError(f"host port {self.uri}: {command} at {offset_bytes} {waited}")
        results.update((completion.cookie, completion) for completion in done)
