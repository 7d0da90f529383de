"""Open a serial line by any pyserial URL, as a roles.ByteLink over a raw descriptor.

Device paths (``/dev/ttyUSB0``, ``/dev/serial/by-id/...``, a PTY or a link to one) and
``socket://host:port`` are read and written through their own descriptor, and so is ``exec:COMMAND``
(``exec_line``), through the terminal of a program. ``rfc2217://`` and other
URLs that pyserial interprets itself have no descriptor with plain bytes: two threads copy them
through a socket pair. A descriptor may also be passed to another process (the reflex writes the
first frame through it). pyserial only opens the line and configures it: raw, 8N1.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import termios
import threading
import time
from pathlib import Path
from typing import Final

import serial
import serial.rfc2217
from serial.tools import list_ports

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.lineerrors import COUNTERS, LineErrors
from freezeframe.harness.edge import exec_line, locks
from freezeframe.harness.edge.exec_line import ExecPort
from freezeframe.harness.errors import LineGoneError, RigError
from freezeframe.harness.wire.control import BREAK_NULS

DEFAULT_BAUD: Final = 115_200
WRITE_TIMEOUT_NS: Final = 5 * NS_PER_S
"""Write timeout without a byte that is taken. All of a write gets this time and what its bytes need at
``SLOWEST_BAUD``: a line that takes a byte now and then does not outlive it."""
SLOWEST_BAUD: Final = 9600
"""A port that is set to a slower rate gets the time that it needs."""
BITS_PER_BYTE: Final = 10
"""On a serial line, 8N1."""
PUMP_BYTES: Final = 4096
PUMP_POLL_S: Final = 0.05
"""Interval at which the read of a pumped line checks whether it was closed."""
BREAK: Final = b"\xff\xf3"
"""A BREAK in the bytes written to a line opened with ``breaks``, as in telnet (RFC 854, IAC
BREAK)."""
BREAK_S: Final = 0.25
"""Duration of a BREAK: longer than any character, as terminal programs send it."""
UNIX_PREFIX: Final = "unix:"
"""A unix socket, as QEMU provides for serial lines. Not a URL of pyserial."""
PTY_PREFIX: Final = "/dev/pts/"
BY_ID: Final = Path("/dev/serial/by-id")
SHOWN_PORTS: Final = 20


class SerialLink:
    """Implements roles.ByteLink. Created by ``open_serial``."""

    def __init__(
        self,
        name: str,
        port: "serial.SerialBase | socket.socket | ExecPort | _Silent",
        notes: list[str],
        *,
        breaks: bool = False,
    ) -> None:
        self.name = name
        self.notes = notes
        """Features that the line lacks: "ttyUSB0: no low-latency mode ..."."""
        self._port = port
        self._pump: _Pump | None = None
        try:
            if breaks and isinstance(port, serial.SerialBase):
                raise OSError("a BREAK is not a byte; only the port itself can send it")
            self._fd: int = port.fileno()
        except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
            self._pump = _Pump(port, breaks=breaks)
            self._fd = self._pump.fileno()
            notes.append(f"{name}: copied by a thread, slower than a direct line")
        os.set_blocking(self._fd, False)
        self._in_use = threading.Lock()
        """Held for each use of the descriptor. One thread may close the line while another writes, reads or
        counts: the number of a closed one may be any other line's at once."""
        self._is_closed = False
        self._counted = self._read_counters()

    def fileno(self) -> int:
        return self._fd

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        while True:
            try:
                with self._in_use:
                    self._fail_if_closed()
                    data = os.read(self._fd, max_bytes)
            except BlockingIOError:
                if not self._wait(select.POLLIN, deadline_ns):
                    return b""
                continue
            except OSError as error:
                raise LineGoneError(f"{self.name} is gone: {self._end(error)}") from error
            if not data:
                raise LineGoneError(f"{self.name} is gone: {self._end()}")
            return data

    def write(self, data: bytes) -> None:
        baud = min(SLOWEST_BAUD, getattr(self._port, "baudrate", None) or SLOWEST_BAUD)
        sending_ns = len(data) * BITS_PER_BYTE * NS_PER_S // baud
        left, until_ns = memoryview(data), time.monotonic_ns() + WRITE_TIMEOUT_NS
        limit_ns = until_ns + sending_ns
        while left:
            try:
                with self._in_use:
                    self._fail_if_closed()
                    left = left[os.write(self._fd, left) :]
                until_ns = min(limit_ns, time.monotonic_ns() + WRITE_TIMEOUT_NS)
            except BlockingIOError as error:
                ready = self._wait(select.POLLOUT, until_ns)
                if ready and not ready & select.POLLOUT:  # the other end has hung up
                    raise LineGoneError(f"{self.name} is gone: {self._end()}") from error
                if not ready or time.monotonic_ns() >= until_ns:
                    raise RigError(
                        f"{self.name} accepts no bytes: flow control, or no device at the other end"
                    ) from error
            except OSError as error:
                raise LineGoneError(f"{self.name} is gone: {self._end(error)}") from error

    def send_break(self) -> None:
        """Send a BREAK; on a PTY, which carries none, the NULs that stand for it. RigError: this kind of
        line cannot, or it is gone."""
        if self._is_pty:
            self.write(bytes(BREAK_NULS))
            return
        if isinstance(self._port, _Silent):
            raise LineGoneError(f"{self.name} is gone")
        if not isinstance(self._port, serial.Serial | serial.rfc2217.Serial):
            raise RigError(
                f"{self.name} cannot send a BREAK: use a serial device, or the terminal server's rfc2217:// port"
            )
        try:
            with self._in_use:
                self._fail_if_closed()
                self._port.send_break(BREAK_S)
        except (OSError, ValueError, termios.error) as error:
            if self._pump is not None and not self._pump.error:  # the terminal server did not obey
                raise RigError(f"{self.name} sent no BREAK: {error}") from error
            raise LineGoneError(f"{self.name} is gone: {error}") from error

    def _fail_if_closed(self) -> None:
        if self._is_closed:
            raise LineGoneError(f"{self.name} is gone: closed here")

    @property
    def _is_pty(self) -> bool:
        return isinstance(self._port, serial.Serial) and os.path.realpath(
            str(self._port.port)
        ).startswith(PTY_PREFIX)

    def set_baud(self, baud: int) -> None:
        """Change the rate of a device's port. Lines of other kinds have none. RigError: refused."""
        if self._pump is None and isinstance(self._port, serial.Serial):
            try:
                self._port.baudrate = baud
                _tell_empty_from_ended(self._fd)
            except (serial.SerialException, OSError, ValueError, termios.error) as error:
                raise RigError(f"{self.name}: {baud} baud: {error}") from error

    def errors_since(self) -> LineErrors | None:
        """Return what the serial driver counted since this was last asked, or since the line was
        opened. None: it does not count, or the line is gone."""
        with self._in_use:
            before, now = self._counted, self._read_counters()
            if before is None or now is None:
                return None
            self._counted = now
        return now.since(before)

    def _read_counters(self) -> LineErrors | None:
        try:
            if not isinstance(self._port, serial.Serial):
                return None
            room = bytes(COUNTERS.size)
            return LineErrors.decode(fcntl.ioctl(self._port.fileno(), termios.TIOCGICOUNT, room))
        except (OSError, ValueError):  # ENOTTY, EINVAL: none; EIO: gone; ValueError: closed
            return None

    def close(self) -> None:
        with self._in_use:
            self._is_closed, self._counted = True, None
        if self._pump is not None:
            self._pump.close()
        self._port.close()

    def _wait(self, events: int, deadline_ns: Ns) -> int:
        """What the line is ready for; 0 at the deadline."""
        poller = select.poll()
        poller.register(self._fd, events)
        found = poller.poll(max(0, (deadline_ns - time.monotonic_ns()) / 1_000_000))
        return found[0][1] if found else 0

    def _end(self, error: OSError | None = None) -> str:
        if isinstance(self._port, ExecPort):
            return self._port.reason()
        if error is not None:
            return error.strerror or str(error)
        return (self._pump and self._pump.error) or "closed by the other end"


class _Silent:
    """A line on which nothing ever comes, and which takes nothing; ``is_gone``: one that has ended."""

    def __init__(self, *, is_gone: bool) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.shutdown(socket.SHUT_WR)  # EPIPE, for whoever has the descriptor
        if is_gone:
            self._theirs.close()

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


def silent_line(name: str, *, is_gone: bool = False) -> SerialLink:
    """In the place of a line that a bench does not have: nothing comes, and each write fails.
    ``is_gone``: each read fails too, as on one that has gone."""
    return SerialLink(name, _Silent(is_gone=is_gone), [])


class _Pump:
    """Copies bytes between a pyserial port and one end of a socket pair."""

    def __init__(self, port: serial.SerialBase, *, breaks: bool) -> None:
        self._port = port
        self._breaks = breaks
        self.error = ""
        """Why the line ended; "": it has not ended."""
        self._closing = False
        self._ours, self._theirs = socket.socketpair()
        self._port.timeout = PUMP_POLL_S
        self._threads = [
            threading.Thread(target=loop, daemon=True) for loop in (self._inward, self._outward)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._theirs.fileno()

    def close(self) -> None:
        self._closing = True
        self._shut_down()
        for thread in self._threads:
            thread.join(timeout=2.0)
        self._ours.close()
        self._theirs.close()

    def _inward(self) -> None:
        try:
            while not self._closing:
                data = self._port.read(max(1, min(self._port.in_waiting, PUMP_BYTES)))
                self._ours.sendall(data)
        except (serial.SerialException, OSError) as error:
            self._give_up(error)

    def _outward(self) -> None:
        try:
            while data := self._ours.recv(PUMP_BYTES):
                first, *rest = data.split(BREAK) if self._breaks else [data]
                self._port.write(first)
                for piece in rest:
                    self._port.send_break(BREAK_S)
                    self._port.write(piece)
        except (serial.SerialException, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._closing:
            self.error = self.error or str(error)
        self._shut_down()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # already shut down
            self._ours.shutdown(socket.SHUT_RDWR)


def open_serial(url: str, *, baud: int = DEFAULT_BAUD, breaks: bool = False) -> SerialLink:
    """Open ``url`` exclusively for this process.

    With ``breaks``, BREAK in the written bytes sends a BREAK; the server of a unix socket must
    then understand telnet. Raises RigError: missing (with a list of existing ports), in use (by
    which process), refused.
    """
    if url.startswith(UNIX_PREFIX):
        return SerialLink(url, _unix_socket(url.removeprefix(UNIX_PREFIX)), [])
    if url.startswith(exec_line.PREFIX):
        if breaks:
            raise RigError(f"{url} cannot send a BREAK: use the terminal server's rfc2217:// port")
        return SerialLink(url, ExecPort(url), [])
    if breaks and url.startswith("socket://"):
        raise RigError(f"{url} cannot send a BREAK: use the terminal server's rfc2217:// port")
    is_device = "://" not in url
    if is_device:
        _check_device(url)
    notes: list[str] = []
    try:
        if is_device:
            port = serial.Serial(url, baudrate=baud, timeout=0, exclusive=True)
            _tell_empty_from_ended(port.fileno())
            _ask_low_latency(url, port, notes)
        else:
            port = serial.serial_for_url(url, baudrate=baud, timeout=0)
    except (serial.SerialException, OSError, ValueError) as error:
        raise _translated(url, error, is_device) from error
    return SerialLink(url, port, notes, breaks=breaks)


def _tell_empty_from_ended(fd: int) -> None:
    """Set VMIN to 1, and HUPCL off. pyserial leaves it at 0, where a read from an idle line returns nothing, like
    a read from a dead one. With 1 a non-blocking read from an idle line raises EAGAIN."""
    attributes = termios.tcgetattr(fd)
    attributes[2] &= ~termios.HUPCL  # closing the port must not drop DTR: that resets some boards
    attributes[6][termios.VMIN] = 1
    attributes[6][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _unix_socket(path: str) -> socket.socket:
    """Open the serial line of a virtual machine. Its server allows one client at a time; a second
    one receives nothing."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(path)
    except OSError as error:
        line.close()
        raise RigError(f"{path} cannot be opened: {error.strerror}; is the rig up?") from error
    return line


def _check_device(path: str) -> None:
    if not Path(path).exists():
        raise RigError(f"{path} is not there. {_what_is_there()}")
    if not Path(path).is_char_device():
        raise RigError(f"{path} is not a serial line: it is not a device. {_what_is_there()}")
    if not os.path.realpath(path).startswith(PTY_PREFIX):
        # A terminal program without a lock would take some of the bytes. Not checked for a PTY: its
        # creator holds it too.
        taken_by = locks.holder(path)
        if taken_by:
            raise _in_use(path, taken_by)


def _in_use(url: str, holder: str) -> RigError:
    return RigError(
        f"{url} is in use by {holder}: end it, with Ctrl-C in its terminal; if it is a watch, `freezeframe top` shows "
        "the bench beside it"
    )


def _translated(url: str, error: Exception, is_device: bool) -> RigError:
    # termios.error, from which pyserial raises, is no OSError: its number is its first argument.
    number = getattr(error, "errno", None) or getattr(error.__context__, "args", ("",))[0]
    if is_device and number in (errno.EAGAIN, errno.EBUSY):
        return _in_use(url, locks.holder(url) or "a process of another user")
    if is_device and number in (errno.EACCES, errno.EPERM):
        return RigError(f"{url}: permission denied: join the group dialout, or run as root")
    if is_device and number in (errno.ENOTTY, errno.EINVAL, errno.EIO):
        return RigError(f"{url} is not a serial line: {error}")
    cause = error.__context__  # pyserial's own text repeats the name and adds a number
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
    return RigError(f"{url} cannot be opened: {why}")


def _what_is_there() -> str:
    """Return the serial ports of this machine, those with permanent names first."""
    named = sorted(str(path) for path in BY_ID.glob("*"))
    behind = {os.path.realpath(path) for path in named}
    others = sorted(port.device for port in list_ports.comports() if port.device not in behind)
    found = [*named, *others][:SHOWN_PORTS]
    return f"There are: {', '.join(found)}" if found else "This machine has no serial ports"


def _ask_low_latency(path: str, port: serial.Serial, notes: list[str]) -> None:
    """Request low-latency mode: USB adapters otherwise delay bytes (FTDI: 16 ms)."""
    real = os.path.realpath(path)
    if real.startswith(PTY_PREFIX):
        return
    try:
        port.set_low_latency_mode(True)
    except (OSError, ValueError, NotImplementedError, AttributeError) as error:
        notes.append(
            f"{Path(real).name}: no low-latency mode ({error}): bytes may arrive up to 16 ms late"
        )
