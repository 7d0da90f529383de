"""The simulated bench supply and wiring: SCPI over TCP, and two outputs that power the two
controllers.

Switching an output on starts the process of its controller; switching it off kills it without
warning. The serial lines belong to the bench, not to the controller: the supply opens one PTY per
line at start, keeps both ends open, and passes the master to each controller it starts, so that a
reader of the line survives every power cycle. Data sent to an unpowered controller is lost, as on
a wire.
"""

import argparse
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from freezeframe.firmware_sim.scpi import Rail, Scpi
from freezeframe.harness.wire import scpi

MAX_CLIENTS: Final = 16
READ_BYTES: Final = 4096
MAX_CONFIG_BYTES: Final = 1 << 20
REAP_TIMEOUT_S: Final = 5.0
PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Line:
    """One serial line: a raw PTY whose slave is linked at ``link``."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master_fd, self._slave_fd = os.openpty()
        tty.setraw(self._slave_fd)
        fresh = link.with_name(link.name + ".new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.ttyname(self._slave_fd))
        fresh.replace(link)

    def drain(self) -> None:
        """Discard data sent to a controller without power."""
        # Again each time: the mode belongs to both holders of the master, and a controller may have
        # changed it.
        os.set_blocking(self.master_fd, False)
        with contextlib.suppress(OSError):
            while os.read(self.master_fd, READ_BYTES):
                pass

    def close(self) -> None:
        self.link.unlink(missing_ok=True)
        os.close(self.master_fd)
        os.close(self._slave_fd)


class Controller:
    """The load of one output: a process group and its serial lines."""

    def __init__(
        self, argv: list[str], lines: dict[str, Line], log: Path, selector: selectors.BaseSelector
    ) -> None:
        self._lines = lines
        self._argv = argv
        for name, line in lines.items():
            self._argv = [
                word.replace(f"{{{name}_fd}}", str(line.master_fd)) for word in self._argv
            ]
        self._log = log
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._listen(True)

    def apply(self, powered: bool) -> None:
        self._stop()
        if powered:
            self._start()

    def draws(self) -> bool:
        # Looked at without reaping: as long as its leader is a zombie, the group's number is not
        # given to others.
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self._process is not None and os.waitid(os.P_PID, self._process.pid, how) is None

    def close(self) -> None:
        self._stop()
        self._listen(False)
        for line in self._lines.values():
            line.close()

    def _start(self) -> None:
        self._listen(False)
        for line in self._lines.values():
            line.drain()
        supply = os.getpid()
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[line.master_fd for line in self._lines.values()],
                    start_new_session=True,
                    preexec_fn=lambda: _die_with(supply),
                )
        except OSError as error:
            self._listen(True)
            print(f"supply: cannot start {self._argv[0]}: {error}", file=sys.stderr, flush=True)
            raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._ended)

    def _stop(self) -> None:
        if self._process is None:
            return
        # The group may outlive its leader: kill it also when the leader has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_TIMEOUT_S)
        self._ended()
        self._process = None

    def _ended(self) -> None:
        """Handle the end of the process: its lines lead nowhere from now on."""
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._listen(True)

    def _listen(self, on: bool) -> None:
        """Drain the lines while no controller reads them."""
        for line in self._lines.values():
            if on:
                self._selector.register(line.master_fd, selectors.EVENT_READ, line.drain)
            else:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(line.master_fd)


def _die_with(parent: int) -> None:
    """Run in the child before exec: if the supply is killed, its controllers are too."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Client:
    """One TCP connection. A client that does not read its answers is disconnected when the socket
    is full."""

    def __init__(
        self, connection: socket.socket, rails: dict[int, Rail], gone: "Callable[[Client], None]"
    ) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._dialogue = Scpi(rails)
        self._gone = gone

    def readable(self) -> None:
        try:
            data = self.connection.recv(READ_BYTES)
            answers = self._dialogue.feed(data)
            alive = bool(data) and (not answers or self.connection.send(answers) == len(answers))
        except OSError:
            alive = False
        if not alive:
            self._gone(self)


class Supply:
    """The instrument: rails, clients, and their main loop."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._clients: set[Client] = set()
        self._controllers: list[Controller] = []
        self._rails: dict[int, Rail] = {}
        self._listener: socket.socket | None = None
        self._port_file: Path | None = None
        self._running = True
        self._wake, self._waker = socket.socketpair()

    def open(self, config: dict[str, Any]) -> None:
        """Create the lines and listen. Raises an exception on a wrong configuration or a port in
        use; ``close`` cleans up."""
        self._watch_for_the_end()
        host, _, port = config["listen"].rpartition(":")
        for side, output in config["outputs"].items():
            lines: dict[str, Line] = {}
            try:
                for name, link in output.get("lines", {}).items():
                    lines[name] = Line(Path(link))
            finally:
                # Also when a later line failed, so that close() takes the earlier ones away.
                load = Controller(list(output["argv"]), lines, Path(output["log"]), self._selector)
                self._controllers.append(load)
            self._rails[scpi.OUTPUTS[side]] = Rail(load)
        self._listener = socket.create_server((host, int(port)), backlog=MAX_CLIENTS)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        port_file = Path(config["port_file"])
        fresh = port_file.with_name(port_file.name + ".new")
        fresh.write_text(f"{self._listener.getsockname()[1]}\n")
        self._port_file = fresh.replace(port_file)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the end of standard input."""
        while self._running:
            for key, _ in self._selector.select():
                # An earlier callback of this round may have ended a later one's descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def close(self) -> None:
        """Switch the power off and remove the files created."""
        for controller in self._controllers:
            controller.close()
        for client in list(self._clients):
            self._drop(client)
        if self._listener is not None:
            self._listener.close()
        if self._port_file is not None:
            self._port_file.unlink(missing_ok=True)

    def _watch_for_the_end(self) -> None:
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._wake, selectors.EVENT_READ, self._stop)
        # A terminal or a file that cannot be polled is not a parent's pipe: then signals alone end
        # us.
        with contextlib.suppress(PermissionError):
            self._selector.register(0, selectors.EVENT_READ, self._parent)

    def _stop(self) -> None:
        self._running = False

    def _parent(self) -> None:
        if not os.read(0, READ_BYTES):
            self._running = False

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                return
            client = Client(connection, self._rails, self._drop)
            self._clients.add(client)
            self._selector.register(connection, selectors.EVENT_READ, client.readable)

    def _drop(self, client: Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()


def main(argv: list[str]) -> int:
    """``supply --config FILE``; the file: {"listen": "HOST:PORT", "port_file": PATH, "outputs":
    {SIDE: OUTPUT}}, OUTPUT: {"argv": [...], "lines": {NAME: LINK_PATH}, "log": PATH}; "{NAME_fd}"
    in argv becomes NAME's master."""
    parser = argparse.ArgumentParser(
        prog="firmware_sim supply", description="The simulated bench supply."
    )
    parser.add_argument(
        "--config", required=True, type=Path, help="JSON file: listen, port_file, outputs"
    )
    path: Path = parser.parse_args(argv).config
    supply = Supply()
    try:
        with path.open("rb") as file:
            supply.open(json.loads(file.read(MAX_CONFIG_BYTES)))
        supply.run()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"supply: {path}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        supply.close()
    return 0
