"""Run a simulated controller as a process: the pure ``Controller`` on sockets, serial lines and
the clock.

One loop, one thread: wait for ports or the next deadline of the controller, pass inputs in, send
outputs. This module knows no protocol.
"""

import argparse
import ctypes
import errno
import fcntl
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal, assert_never

from freezeframe.firmware_sim.channels import (
    PortError,
    Stream,
    Target,
    address,
    destination,
    family,
    listen,
    open_line,
    tcp_options,
)
from freezeframe.firmware_sim.config import BOOT_NS, ControllerConfig
from freezeframe.firmware_sim.control import BreakDetector
from freezeframe.firmware_sim.controller import Controller
from freezeframe.firmware_sim.drbd_contract import PeerConfig
from freezeframe.firmware_sim.drbd_metadata import Metadata
from freezeframe.firmware_sim.managed import Phase
from freezeframe.firmware_sim.medium import FileMedium
from freezeframe.firmware_sim.ports import (
    ConsoleSend,
    ControlBreak,
    ControlData,
    ControlSend,
    HostClose,
    HostClosed,
    HostData,
    HostHold,
    HostOpened,
    HostSend,
    Inbox,
    Outbox,
    ReplicationBlocked,
    ReplicationClose,
    ReplicationClosed,
    ReplicationData,
    ReplicationDial,
    ReplicationHold,
    ReplicationOpened,
    ReplicationSend,
)
from freezeframe.firmware_sim.rootcause import FileNvram
from freezeframe.firmware_sim.store import Store

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
EXIT_RIG: Final = 3
"""A port, device or directory cannot be used."""
CONSOLE_LIMIT_BYTES: Final = 256 << 10
"""Limit of text kept for a console that nobody reads."""
DIAL_TIMEOUT_NS: Final = 1 * NS_PER_S
REDIAL_NS: Final = 500 * NS_PER_MS
"""Pause between connect attempts to the control port of the other controller."""
STOP_NS: Final = 2 * NS_PER_S
CLONE_NEWNET: Final = 0x40000000
SOCKET_BUFFER_BYTES: Final = 1 << 20
GC_THRESHOLD: Final = 50_000
"""New objects between two runs of the cyclic garbage collector: a few thousand writes."""
MAX_HOST_SESSIONS: Final = 64
MAX_WAIT_S: Final = 3600.0
CONNECTED: Final = ("tcp:", "unix:")
"""Line names that are connections, not descriptors."""


class Dial:
    """A pending outgoing connection. ``done(socket | None, reason)`` is called exactly once."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        target: Target,
        done: Callable[[socket.socket | None, str], None],
        deadline_ns: int,
    ) -> None:
        self.deadline_ns = deadline_ns
        self.open = True
        self._selector = selector
        self._done = done
        kind = socket.AF_UNIX if isinstance(target, str) else family(target[0])
        self._socket = socket.socket(kind, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        selector.register(self._socket, selectors.EVENT_WRITE, self._ready)
        error = self._socket.connect_ex(target)
        if error not in (0, errno.EINPROGRESS):
            self.fail(os.strerror(error))

    def _ready(self, _mask: int) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.fail(os.strerror(error))
            return
        self._end()
        tcp_options(self._socket)
        self._done(self._socket, "")

    def fail(self, reason: str) -> None:
        self._end()
        self._socket.close()
        self._done(None, reason)

    def _end(self) -> None:
        self.open = False
        self._selector.unregister(self._socket)


class Server:
    """The loop and the ports of one controller."""

    def __init__(self, options: argparse.Namespace, controller: Controller) -> None:
        self._controller = controller
        self._selector = selectors.DefaultSelector()
        self._inbox: list[Inbox] = []
        self._sessions: dict[int, Stream] = {}
        self._sockets: dict[int, Stream] = {}
        self._lines: dict[str, Stream] = {}
        self._dials: list[Dial] = []
        self._redial_ns: int | None = None
        self._next_number = 1
        self._dirty: set[Stream] = set()
        self._kept_fds: list[int] = []
        self._running = True
        self._dial_target = (
            address(options.replication_connect) if options.replication_connect else None
        )
        self._peer_target: Target | None = None
        self._accept(listen(options.host), self._host_opened)
        if options.replication_listen:
            self._accept(listen(f"tcp:{options.replication_listen}"), self._replication_accepted)
        self._console_shared = options.control == "console"
        self._line("console", options.console)
        if not self._console_shared:
            self._line("control", options.control)
        if options.service_listen:
            self._line("service", options.service_listen)
        if options.peer_control_listen:
            self._line("peer", options.peer_control_listen)
        elif options.peer_control and options.peer_control.startswith(CONNECTED):
            self._peer_target = destination(options.peer_control)
            self._redial_ns = 0
        elif options.peer_control:
            self._line("peer", options.peer_control)

    # --- the loop -------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then shut down cleanly."""
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake, selectors.EVENT_READ, self._stop)
        self._dispatch(self._controller.power_on(time.monotonic_ns()))
        # Existing objects stay; of new ones almost none are in cycles.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        while self._running:
            self._turn()
        self._end()

    def _turn(self) -> None:
        for key, mask in self._selector.select(self._wait_s()):
            key.data(mask)
        now_ns = time.monotonic_ns()
        if self._dials or self._redial_ns is not None:
            self._dial_deadlines(now_ns)
        inbox, self._inbox = self._inbox, []
        self._dispatch(self._controller.step(now_ns, inbox))

    def _stop(self, _mask: int) -> None:
        self._running = False

    def _end(self) -> None:
        until_ns = time.monotonic_ns() + STOP_NS
        self._dispatch(self._controller.shut_down(time.monotonic_ns()))
        while self._controller.phase is Phase.RUNNING and time.monotonic_ns() < until_ns:
            self._turn()
        streams = [*self._sessions.values(), *self._sockets.values(), *self._lines.values()]
        for stream in streams:
            stream.hold(True)
        while any(stream.open and stream.pending_bytes for stream in streams):
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0:
                break
            for key, mask in self._selector.select(left_ns / NS_PER_S):
                key.data(mask)
        for stream in streams:
            stream.close()

    def _wait_s(self) -> float:
        deadline_ns = self._controller.next_deadline()
        if self._dials or self._redial_ns is not None:
            others = [dial.deadline_ns for dial in self._dials]
            others += [due for due in (deadline_ns, self._redial_ns) if due is not None]
            deadline_ns = min(others)
        if deadline_ns is None:
            return MAX_WAIT_S
        return max(0.0, (deadline_ns - time.monotonic_ns()) / NS_PER_S)

    def _dispatch(self, outbox: list[Outbox]) -> None:
        for item in outbox:
            match item:
                case HostSend():
                    self._queue(self._sessions.get(item.session), item.data)
                case ReplicationSend():
                    self._queue(self._sockets.get(item.socket), item.data)
                case ConsoleSend():
                    self._queue(self._lines.get("console"), item.data)
                case ControlSend():
                    name = (
                        "console" if self._console_shared and item.port == "console" else item.port
                    )
                    self._queue(self._lines.get(name), item.data)
                case HostHold():
                    if item.session in self._sessions:
                        self._sessions[item.session].hold(item.hold)
                case ReplicationHold():
                    if item.socket in self._sockets:
                        self._sockets[item.socket].hold(item.hold)
                case ReplicationDial():
                    self._dial(item.kind)
                case HostClose():
                    self._close(self._sessions.pop(item.session, None))
                case ReplicationClose():
                    self._close(self._sockets.pop(item.socket, None))
                case _:
                    assert_never(item)
        for stream in self._dirty:
            stream.flush()
        self._dirty.clear()

    def _queue(self, stream: Stream | None, data: bytes | bytearray | memoryview) -> None:
        if stream is not None:
            stream.queue(data)
            self._dirty.add(stream)

    def _close(self, stream: Stream | None) -> None:
        if stream is not None:
            stream.flush()
            stream.close()

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

    # --- listening ------------------------------------------------------------------------------------------
    def _accept(self, listener: socket.socket, opened: Callable[[socket.socket], None]) -> None:
        def ready(_mask: int) -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            tcp_options(connection)
            opened(connection)

        self._selector.register(listener, selectors.EVENT_READ, ready)

    def _host_opened(self, connection: socket.socket) -> None:
        if len(self._sessions) >= MAX_HOST_SESSIONS:
            connection.close()
            return
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        session = self._number()

        def data(received: memoryview) -> None:
            self._inbox.append(HostData(session, received))

        def end(_reason: str) -> None:
            self._sessions.pop(session, None)
            self._inbox.append(HostClosed(session))

        self._inbox.append(HostOpened(session))
        self._sessions[session] = Stream(self._selector, connection, data, end)

    def _replication_accepted(self, connection: socket.socket) -> None:
        self._replication_opened(connection, "")

    def _replication_opened(
        self, connection: socket.socket, kind: Literal["data", "meta", ""]
    ) -> None:
        number = self._number()

        def data(received: memoryview) -> None:
            self._inbox.append(ReplicationData(number, received))

        def end(reason: str) -> None:
            self._sockets.pop(number, None)
            self._inbox.append(ReplicationClosed(number, reason))

        def blocked(is_blocked: bool) -> None:
            self._inbox.append(ReplicationBlocked(number, is_blocked))

        self._inbox.append(ReplicationOpened(number, kind))
        self._sockets[number] = Stream(self._selector, connection, data, end, on_blocked=blocked)

    # --- dialling -------------------------------------------------------------------------------------------
    def _dial(self, kind: Literal["data", "meta"]) -> None:
        def done(connection: socket.socket | None, reason: str) -> None:
            if connection is None:
                self._inbox.append(ReplicationClosed(-1, reason, kind))
            else:
                self._replication_opened(connection, kind)

        if self._dial_target is None:
            self._inbox.append(ReplicationClosed(-1, "no address to connect to", kind))
        else:
            self._start_dial(self._dial_target, done)

    def _start_dial(
        self, target: Target, done: Callable[[socket.socket | None, str], None]
    ) -> None:
        dial = Dial(self._selector, target, done, time.monotonic_ns() + DIAL_TIMEOUT_NS)
        if dial.open:
            self._dials.append(dial)

    def _dial_deadlines(self, now_ns: int) -> None:
        for dial in self._dials:
            if dial.open and now_ns >= dial.deadline_ns:
                dial.fail("timed out")
        self._dials = [dial for dial in self._dials if dial.open]
        if (
            self._redial_ns is not None
            and now_ns >= self._redial_ns
            and self._peer_target is not None
        ):
            self._redial_ns = None
            self._start_dial(self._peer_target, self._peer_dialled)

    def _peer_dialled(self, connection: socket.socket | None, _reason: str) -> None:
        if connection is None:
            self._redial_ns = time.monotonic_ns() + REDIAL_NS
            return
        self._attach("peer", connection, self._peer_lost)

    def _peer_lost(self, _reason: str) -> None:
        self._redial_ns = time.monotonic_ns() + REDIAL_NS

    # --- serial lines, and TCP in their place ---------------------------------------------------------------
    def _line(self, port: str, name: str) -> None:
        if name.startswith(CONNECTED):
            self._accept(listen(name), partial(self._line_accepted, port))
            return
        fd, beside = open_line(name)
        self._kept_fds += beside
        self._attach(port, fd, lambda _reason: None)

    def _line_accepted(self, port: str, connection: socket.socket) -> None:
        """Accept one client per line, as on a UART; refuse further ones."""
        if port in self._lines and self._lines[port].open:
            connection.close()
            return
        self._attach(port, connection, lambda _reason: None)

    def _attach(self, port: str, source: socket.socket | int, end: Callable[[str], None]) -> None:
        breaks = BreakDetector()

        def data(received: memoryview) -> None:
            self._inbox.append(ControlData(port, bytes(received)))
            if breaks.feed(bytes(received)):
                self._inbox.append(ControlBreak(port))

        limit = CONSOLE_LIMIT_BYTES if port == "console" else 0
        self._lines[port] = Stream(self._selector, source, data, end, drop_above_bytes=limit)


def parser() -> argparse.ArgumentParser:
    """Parse the arguments of ``python -m freezeframe.firmware_sim serve``."""
    made = argparse.ArgumentParser(
        prog="firmware_sim serve", description="One simulated storage controller."
    )
    made.add_argument("--side", required=True, choices=("primary", "secondary"))
    made.add_argument("--serial-number", required=True, metavar="S")
    made.add_argument(
        "--state-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="volume and non-volatile memory",
    )
    made.add_argument("--size-mib", type=int, default=128, metavar="N")
    made.add_argument("--host", required=True, metavar="unix:PATH|tcp:ADDR:PORT", help="NBD")
    link = made.add_mutually_exclusive_group(required=True)
    link.add_argument("--replication-listen", metavar="ADDR:PORT")
    link.add_argument("--replication-connect", metavar="ADDR:PORT")
    line = "fd:N|pty:LINKPATH|tcp:ADDR:PORT|/dev/ttyX[@BAUD]"
    made.add_argument("--console", required=True, metavar=line)
    made.add_argument("--control", required=True, metavar=f"{line}|console")
    made.add_argument(
        "--service-listen",
        metavar="tcp:ADDR:PORT|unix:PATH",
        help="takes control frames too: for a fault while the control line is somebody's",
    )
    peer = made.add_mutually_exclusive_group()
    peer.add_argument(
        "--peer-control",
        metavar="tcp:ADDR:PORT|unix:PATH|LINE",
        help="the other controller's peer port",
    )
    peer.add_argument(
        "--peer-control-listen",
        metavar="tcp:ADDR:PORT|unix:PATH|LINE",
        help="where the other one instructs us",
    )
    made.add_argument(
        "--autonomic", action="store_true", help="secondary: monitor and instruct by itself"
    )
    made.add_argument("--netns", metavar="PATH", help="enter this network namespace first")
    made.add_argument("--boot-ms", type=int, default=BOOT_NS // NS_PER_MS, metavar="N")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--resource", default="r0", metavar="NAME")
    return made


def enter_netns(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PortError(f"network namespace {path}: {error.strerror}") from error
    if libc.setns(fd, CLONE_NEWNET):
        raise PortError(f"network namespace {path}: {os.strerror(ctypes.get_errno())}")
    os.close(fd)


def open_state(directory: Path) -> None:
    """Lock the state directory. The lock ends with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PortError(f"state directory {directory}: another controller uses it") from error
    except OSError as error:
        raise PortError(f"state directory {directory}: {error.strerror}") from error


def build(options: argparse.Namespace) -> Controller:
    """Create the controller on the files of its state directory."""
    open_state(options.state_dir)
    store = open_store(FileMedium(options.state_dir / "volume"), options.size_mib << 20)
    config = ControllerConfig(
        side=options.side,
        serial_number=options.serial_number,
        peer=PeerConfig(resource=options.resource, dial=options.replication_connect is not None),
        seed=options.seed,
        boot_ns=options.boot_ms * NS_PER_MS,
        autonomic=options.autonomic,
        wall_offset_ns=time.time_ns() - time.monotonic_ns(),
    )
    return Controller(config, FileNvram(options.state_dir / "nvram"), store)


def open_store(medium: FileMedium, size_bytes: int) -> Store[Metadata]:
    """Open the volume with its metadata; a new one starts unpaired."""
    saved = medium.read_metadata()
    metadata = Metadata.fresh(size_bytes) if saved is None else Metadata.from_bytes(saved)
    if metadata.bitmap.size_bytes != size_bytes:
        raise PortError(f"the volume has {metadata.bitmap.size_bytes} bytes, not {size_bytes}")
    return Store(medium, size_bytes, metadata)


def main(argv: list[str]) -> int:
    """Run one controller until it is stopped; return 3 when a port or file cannot be opened."""
    options = parser().parse_args(argv)
    try:
        if options.netns:
            enter_netns(options.netns)
        server = Server(options, build(options))
    except (PortError, ValueError, OSError) as error:
        print(f"firmware_sim: {error}", file=sys.stderr)
        return EXIT_RIG
    server.run()
    return 0
