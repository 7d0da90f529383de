"""Serve a console to programs that know nothing of us: RFC 2217 on TCP (pyserial's), or plain bytes on a unix socket.

Peers of this machine are of this user, or root: on a unix socket by its mode and the kernel's word, on a loopback address
by who owns the other end. From another machine nobody's user is known, so nobody may write there. Whoever reads slowly
misses bytes; nobody else does.
"""

import contextlib
import ipaddress
import os
import select
import socket
import time
from pathlib import Path
from typing import Final

import serial.rfc2217

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.edge.ownsocket import MAX_PEERS, MODE, peer_of
from freezeframe.harness.errors import RigError, UsageError

UNIX: Final = "unix:"
RECEIVE_BYTES: Final = 4096
MAX_HELD_BYTES: Final = 1 << 20
"""What a peer has not taken; what comes beyond is not for it."""
MAX_OPTION_BYTES: Final = 1024
"""Of one telnet negotiation."""
REST_NS: Final = NS_PER_S // 2
TCP_TABLE: Final = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _STATE, _UID = 1, 2, 3, 7
"""Columns of that table."""
_ESTABLISHED: Final = "01"
"""The kernel calls root the owner of one that its process has closed."""
BREAK_SENT: Final = b""
"""Among what came: a BREAK."""


class _Line:
    """What a client of RFC 2217 sees of the serial line: as the bench file says, whatever it asks for."""

    bytesize, parity, stopbits = 8, "N", 1
    xonxoff = rtscts = ri = False
    dtr = rts = cts = dsr = cd = True

    def __init__(self, baud: int, came: list[bytes]) -> None:
        self._baud, self._came = baud, came

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        elif name == "break_condition" and value:
            self._came.append(BREAK_SENT)

    @property
    def baudrate(self) -> int:
        return self._baud

    def reset_input_buffer(self) -> None: ...
    def reset_output_buffer(self) -> None: ...


class _Peer:
    def __init__(self, connection: socket.socket, name: str, baud: int | None) -> None:
        """``baud``: it speaks RFC 2217; None: plain bytes."""
        self.connection, self.name = connection, name
        self.held = bytearray()
        self.came: list[bytes] = []
        self.is_told = False
        """That what it sends is not written."""
        self._manager = None
        self.is_rfc2217 = baud is not None
        if baud is not None:
            self._manager = serial.rfc2217.PortManager(_Line(baud, self.came), self)

    def write(self, data: bytes) -> None:
        """What the negotiation says to it."""
        self.held += data[: MAX_HELD_BYTES - len(self.held)]

    def say(self, data: bytes) -> None:
        if self._manager is not None:
            data = b"".join(self._manager.escape(data))
        if len(self.held) + len(data) <= MAX_HELD_BYTES:
            self.held += data

    def read(self) -> bool:
        """Take what it sends into ``came``; whether it is still there."""
        try:
            data = self.connection.recv(RECEIVE_BYTES)
            if self._manager is None:
                self.came.append(data)
                return bool(data)
            for one in self._manager.filter(data):
                self.came.append(one)
            return bool(data) and len(self._manager.suboption or b"") < MAX_OPTION_BYTES
        except BlockingIOError:
            return True
        except Exception:  # noqa: BLE001 - pyserial raises anything for what is no negotiation
            return False

    def send(self) -> bool:
        try:
            sent = self.connection.send(self.held, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return True
        except OSError:
            return False
        del self.held[:sent]
        return True


class ConsolePort:
    """For one thread. ``turn`` serves, and gives what its one writer sends."""

    def __init__(self, address: str, *, baud: int, may_write: bool) -> None:
        """``address``: HOST:PORT or unix:PATH. UsageError: it is neither, or nobody may write there. RigError:
        it cannot be listened on."""
        self._baud, self._may_write = baud, may_write
        self._peers: dict[int, _Peer] = {}
        self._writer: _Peer | None = None
        self._rests_until_ns: Ns = 0
        self._path: Path | None = None
        self.notes: list[str] = []
        """What somebody should know of the peers."""
        try:
            self._socket = self._listen(address)
        except OSError as error:
            raise RigError(f"--serve {address}: {error.strerror or error}") from error
        self._socket.setblocking(False)
        host = self._socket.getsockname()
        self.address = address if self._path else f"{host[0]}:{host[1]}"

    def _listen(self, address: str) -> socket.socket:
        if address.startswith(UNIX):
            self._path = Path(address.removeprefix(UNIX))
            one = socket.socket(socket.AF_UNIX)
            os.fchmod(one.fileno(), MODE)
            one.bind(str(self._path))
            one.listen(MAX_PEERS)
            self._is_local = True
            return one
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise UsageError(f"--serve {address}: no address; allowed: HOST:PORT, unix:PATH")
        host = socket.gethostbyname(host)
        self._is_local = ipaddress.ip_address(host).is_loopback
        if self._may_write and not self._is_local:
            raise UsageError(
                f"--serve {address} --write: whoever reaches that address could write to the device; serve on "
                "127.0.0.1 (and reach it with ssh -L), or without --write"
            )
        return socket.create_server((host, int(port)), backlog=MAX_PEERS)

    def say(self, data: bytes) -> None:
        """The device has said this."""
        for peer in self._peers.values():
            peer.say(data)

    def turn(self, timeout_s: float) -> list[bytes]:
        """Return what the writer has sent, at the latest after ``timeout_s``; BREAK_SENT is a BREAK."""
        poller = select.poll()
        if time.monotonic_ns() >= self._rests_until_ns:
            poller.register(self._socket, select.POLLIN)
        for fd, peer in self._peers.items():
            poller.register(fd, select.POLLIN | (select.POLLOUT if peer.held else 0))
        ready = dict(poller.poll(timeout_s * 1000))
        if ready.pop(self._socket.fileno(), 0):
            self._accept()
        found: list[bytes] = []
        for fd, events in ready.items():
            peer = self._peers[fd]
            is_there = peer.read() if events & ~select.POLLOUT else True
            is_there = is_there and (not peer.held or peer.send())
            found += self._written(peer)
            if not is_there:
                self._drop(fd)
        return found

    def _written(self, peer: _Peer) -> list[bytes]:
        came = [one for one in peer.came if one or peer.is_rfc2217]
        peer.came.clear()
        if not came:
            return []
        if self._may_write and self._writer in (None, peer):
            self._writer = peer
            return came
        if not peer.is_told:
            peer.is_told = True
            why = (
                f"{self._writer.name} writes" if self._writer else "without --write it is read-only"
            )
            self.notes.append(f"what {peer.name} sends is not written: {why}")
        return []

    def _accept(self) -> None:
        try:
            connection, address = self._socket.accept()
        except OSError:  # gone meanwhile, or no descriptor left
            self._rests_until_ns = time.monotonic_ns() + REST_NS
            return
        connection.setblocking(False)
        name, uid = "a program of another machine", None
        if self._path is not None:
            pid, uid = peer_of(connection)
            name = f"pid {pid}"
        elif self._is_local:
            name, uid = f"{address[0]}:{address[1]}", owner_of(connection)
        is_ours = not self._is_local or uid in (0, os.geteuid())
        if len(self._peers) >= MAX_PEERS or not is_ours:
            connection.close()
            self.notes.append(
                f"{name} was refused: {'it is another user' if not is_ours else 'too many'}"
            )
            return
        baud = None if self._path is not None else self._baud
        self._peers[connection.fileno()] = _Peer(connection, name, baud)

    def _drop(self, fd: int) -> None:
        peer = self._peers.pop(fd)
        peer.connection.close()
        if self._writer is peer:
            self._writer = None

    def close(self) -> None:
        for fd in list(self._peers):
            self._drop(fd)
        self._socket.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def owner_of(connection: socket.socket) -> int | None:
    """Return the user of the other end of a TCP connection within this machine; None: it is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # it may be gone by now
        theirs, ours = _in_table(connection.getpeername()), _in_table(connection.getsockname())
        for line in TCP_TABLE.read_text().splitlines()[1:]:
            words = line.split()
            if (words[_LOCAL], words[_REMOTE], words[_STATE]) == (theirs, ours, _ESTABLISHED):
                return int(words[_UID])
    return None


def _in_table(address: tuple[str, int]) -> str:
    packed = socket.inet_aton(address[0])
    return f"{int.from_bytes(packed, 'little'):08X}:{address[1]:04X}"
