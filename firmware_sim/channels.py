"""The real ports of a controller process: non-blocking streams with bounded buffers, and how to
open them by name.

A port is named ``fd:N`` (inherited), ``pty:LINKPATH``, ``tcp:ADDR:PORT``, ``unix:PATH`` or a
serial device ``/dev/ttyX[@BAUD]``. ``PortError`` carries a one-line message for the user.
"""

import os
import selectors
import socket
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import serial

READ_BYTES: Final = 256 << 10
WRITE_PARTS: Final = 64
"""Buffers per write; IOV_MAX is 1024, more than some dozens gain nothing."""
PAUSE_BYTES: Final = 8 << 20
"""A stream with more unsent output than this is not read, so that its peer cannot make our memory
grow."""
BAUD: Final = 115_200
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
BACKLOG: Final = 64

_serial_ports: Final[list[serial.Serial]] = []
"""Kept open for the life of the process: a collected Serial object closes its descriptor."""

Buffer = bytes | bytearray | memoryview
Target = tuple[str, int] | str
"""An address and a TCP port, or the path of a socket file."""


class PortError(Exception):
    """A port cannot be opened; the message names it."""


class Stream:
    """A descriptor for byte streams. Calls ``on_data(data)``, and ``on_end(reason)`` once when it
    is closed.

    ``data`` is a view of the single read buffer of the stream, valid until the selector is polled
    again; a new buffer per read would cost more system calls than the read. ``on_blocked(True)``
    is called when output has to wait, and again whenever the kernel has accepted some of it;
    ``on_blocked(False)`` when all is sent.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        source: socket.socket | int,
        on_data: Callable[[memoryview], None],
        on_end: Callable[[str], None],
        *,
        drop_above_bytes: int = 0,
        on_blocked: Callable[[bool], None] | None = None,
    ) -> None:
        self._selector = selector
        self._socket = source if isinstance(source, socket.socket) else None
        self._fd = source if isinstance(source, int) else source.fileno()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._on_data = on_data
        self._on_end = on_end
        self._drop_above_bytes = drop_above_bytes
        self._out: deque[Buffer] = deque()
        self._out_bytes = 0
        self._dropped_bytes = 0
        self._note = b""
        """Marks lost text in the output."""
        self._mask = 0
        self._held = False
        self._on_blocked = on_blocked
        self._is_blocked = False
        self.open = True
        os.set_blocking(self._fd, False)
        self._update()

    @property
    def pending_bytes(self) -> int:
        return self._out_bytes

    def hold(self, hold: bool) -> None:
        """Stop or resume reading."""
        self._held = hold
        self._update()

    def queue(self, data: Buffer) -> None:
        """Queue output; the next ``flush`` sends it. A line that nobody reads loses its oldest
        text."""
        if not self.open or not data:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._drop_above_bytes and self._out_bytes > self._drop_above_bytes:
            self._drop()

    def _drop(self) -> None:
        # The first buffer may be partly sent; it is kept, so that no line is cut.
        while self._out_bytes > self._drop_above_bytes // 2 and len(self._out) > 2:
            lost = self._out[1]
            del self._out[1]
            self._out_bytes -= len(lost)
            if lost is not self._note:
                self._dropped_bytes += len(lost)
        self._note = b"[console: %d bytes lost]\r\n" % self._dropped_bytes
        self._out.insert(1, self._note)
        self._out_bytes += len(self._note)

    def flush(self) -> None:
        """Write as much as the kernel accepts now."""
        before = self._out_bytes
        while self._out and self.open:
            parts = [self._out[at] for at in range(min(len(self._out), WRITE_PARTS))]
            try:
                sent = self._socket.sendmsg(parts) if self._socket else os.writev(self._fd, parts)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._end(error)
                return
            self._sent(sent)
        if self._on_blocked is not None and (self._out or self._is_blocked):
            self._tell_blocked(self._out_bytes < before, self._on_blocked)
        self._update()

    def _tell_blocked(self, has_moved: bool, tell: Callable[[bool], None]) -> None:
        if not self._out or has_moved or not self._is_blocked:
            tell(bool(self._out))
        self._is_blocked = bool(self._out)

    def _sent(self, sent: int) -> None:
        self._out_bytes -= sent
        while sent:
            first = self._out[0]
            if sent < len(first):
                self._out[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            self._out.popleft()
        if not self._out:
            self._dropped_bytes = 0

    def ready(self, mask: int) -> None:
        """Called by the selector."""
        if mask & selectors.EVENT_WRITE:
            self.flush()
        if mask & selectors.EVENT_READ and self.open:
            try:
                size = os.readv(self._fd, [self._buffer])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._end(error)
                return
            if size:
                self._on_data(self._buffer[:size])
            else:
                self._end(None)

    def close(self) -> None:
        """Close without calling ``on_end``; output already accepted by the kernel is still sent."""
        if not self.open:
            return
        self.open = False
        if self._mask:
            self._selector.unregister(self._fd)
            self._mask = 0
        if self._socket:
            self._socket.close()
        else:
            os.close(self._fd)

    def _end(self, error: OSError | None) -> None:
        self.close()
        self._on_end(error.strerror or "" if error else "closed by the other side")

    def _update(self) -> None:
        if not self.open:
            return
        reading = not self._held and self._out_bytes <= PAUSE_BYTES
        mask = (selectors.EVENT_READ if reading else 0) | (
            selectors.EVENT_WRITE if self._out else 0
        )
        if mask == self._mask:
            return
        if not self._mask:
            self._selector.register(self._fd, mask, self.ready)
        elif not mask:
            self._selector.unregister(self._fd)
        else:
            self._selector.modify(self._fd, mask, self.ready)
        self._mask = mask


def address(text: str) -> tuple[str, int]:
    """Parse ``ADDR:PORT`` (an IPv6 address in brackets)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise PortError(f"{text}: not ADDR:PORT")
    return host.strip("[]"), int(port)


def destination(name: str) -> Target:
    """Parse ``tcp:ADDR:PORT`` or ``unix:PATH``."""
    kind, _, where = name.partition(":")
    if kind == "unix" and where:
        return where
    if kind == "tcp":
        return address(where)
    raise PortError(f"{name}: not tcp:ADDR:PORT or unix:PATH")


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def tcp_options(connection: socket.socket) -> None:
    """Set TCP_NODELAY, and keep-alive to detect a dead peer."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def listen(name: str) -> socket.socket:
    """Open a listening socket on ``tcp:ADDR:PORT`` or ``unix:PATH``; an existing socket file is
    replaced."""
    kind, _, where = name.partition(":")
    try:
        if kind == "unix":
            path = Path(where)
            fresh = path.with_name(path.name + ".new")
            fresh.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(fresh))
            listener.listen(BACKLOG)
            fresh.replace(path)
        elif kind == "tcp":
            host, port = address(where)
            listener = socket.create_server((host, port), family=family(host), backlog=BACKLOG)
        else:
            raise PortError(f"{name}: not tcp:ADDR:PORT or unix:PATH")
    except OSError as error:
        raise PortError(f"cannot listen on {name}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def open_line(name: str) -> tuple[int, list[int]]:
    """Open ``fd:N``, ``pty:LINKPATH`` or a device; return its descriptor and further descriptors
    that must stay open."""
    kind, _, where = name.partition(":")
    if kind == "fd" and where.isdecimal():
        fd = int(where)
        try:
            os.fstat(fd)
        except OSError as error:
            raise PortError(f"{name}: {error.strerror}") from error
        return fd, []
    if kind == "pty":
        return _open_pty(Path(where))
    if name.startswith("/"):
        return _open_serial(name), []
    raise PortError(f"{name}: not fd:N, pty:LINKPATH, tcp:ADDR:PORT or /dev/ttyX[@BAUD]")


def _open_pty(link: Path) -> tuple[int, list[int]]:
    """Open a raw PTY whose slave is linked at ``link``. The slave stays open, so that readers may
    come and go."""
    master, slave = os.openpty()
    tty.setraw(slave)
    fresh = link.with_name(link.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.ttyname(slave))
        fresh.replace(link)
    except OSError as error:
        raise PortError(f"cannot make {link}: {error.strerror}") from error
    return master, [slave]


def _open_serial(name: str) -> int:
    device, _, baud = name.partition("@")
    if baud and not baud.isdecimal():
        raise PortError(f"{name}: {baud} is not a baud rate")
    try:
        port = serial.Serial(device, int(baud or BAUD), exclusive=True)
    except (serial.SerialException, ValueError) as error:
        raise PortError(f"cannot open {device}: {error}") from error
    _serial_ports.append(port)
    fd: int = port.fileno()
    return fd
