"""The process of a virtual rig. Its configuration is on standard input.

It holds the namespace, passes the frames of the replication link through the injector and the
bytes of the host to the primary node, switches the power of the nodes, and answers requests on
``rig.sock``: one JSON object per line in each direction. When it ends, for any reason, the whole
rig ends: QEMU is killed with it, devices and namespace disappear with their last descriptor.
"""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Side
from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.rigs import image, wiring
from freezeframe.harness.rigs.injector import Injector, other
from freezeframe.harness.rigs.node import Node
from freezeframe.harness.rigs.relay import Relay
from freezeframe.harness.rigs.rounds import dispatch

SOCKET: Final = "rig.sock"
LOCK: Final = "rig.lock"
"""Locked by the daemon while it runs, even if it does not answer. Contains its pid."""
NBD_PORT: Final = 10809
FRAMES_A_ROUND: Final = 64
"""Frames of one side handled before those of the other side."""
MAX_COMMAND_BYTES: Final = 64 << 10
IDLE_NS: Final = NS_PER_S


class RigConfig(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    pair: NodePair
    serial_numbers: dict[Side, str]
    size_mib: int = 64
    memory_mib: int = 256
    mtu_bytes: int = 1500
    outside: Side | None = None
    """The side that is not a node but another controller, in the namespace ``outside.netns``."""
    stays: bool = False
    """False: the rig ends when the daemon's standard input closes, that is, with the run that
    started it."""
    boot_options: dict[Side, dict[str, str]] = {}
    bad_sectors: dict[Side, int] = {}
    """Of the disks: the first write that covers it fails there."""
    description: str = ""


class Daemon:
    def __init__(self, config: RigConfig) -> None:
        self.config = config
        self.directory = Path(config.directory)
        self.is_ending = False
        self.injector = Injector(config.pair.protocol, config.pair.host_offset_bytes)
        self._selector = selectors.DefaultSelector()
        self._closing = contextlib.ExitStack()
        self._lock = _locked(self.directory)
        self._wiring = wiring.lay(config.mtu_bytes, config.outside)
        self._closing.callback(self._wiring.close)
        self._link_namespace()
        self._ends = self._wiring.packets
        assert self._wiring.mirror is not None
        self._mirror = self._wiring.mirror
        for side in SIDES:
            self._selector.register(
                self._ends[side], selectors.EVENT_READ, lambda _, side=side: self._frames(side)
            )
        built = image.ensure(config.pair)
        self.description = built.description
        self.nodes: dict[Side, Node] = {}
        for side in (side for side in SIDES if side != config.outside):
            node = self.nodes[side] = Node(
                side=side,
                directory=self.directory,
                image=built,
                pair=config.pair,
                serial_number=config.serial_numbers[side],
                size_mib=config.size_mib,
                memory_mib=config.memory_mib,
                mtu_bytes=config.mtu_bytes,
                taps=self._wiring.taps[side],
                boot_options=config.boot_options.get(side, {}),
                bad_sector=config.bad_sectors.get(side),
            )
            node.prepare()
            self._closing.callback(node.power_off)
        self._relay = Relay(
            self._selector,
            self._wiring.namespace,
            self.directory / "primary.nbd",
            (f"{wiring.HOST_NETWORKS['primary']}.2", NBD_PORT),
        )
        self._listener = socket.socket(socket.AF_UNIX)
        path = self.directory / SOCKET
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if not config.stays:
            self._selector.register(0, selectors.EVENT_READ, self._on_stdin)
        for node in reversed(self.nodes.values()):
            node.power_on()

    def run(self) -> None:
        while not self.is_ending:
            now = time.monotonic_ns()
            deadlines = [now + IDLE_NS, self.injector.next_deadline(), self._relay.next_deadline()]
            wake = min(one for one in deadlines if one is not None)
            dispatch(self._selector, max(0.0, (wake - now) / NS_PER_S))
            now = time.monotonic_ns()
            for sender, frame in self.injector.release(now):
                self._send(other(sender), frame)
            for sender, frame in self.injector.unseen():
                with contextlib.suppress(OSError):
                    self._ends[other(sender)].send(frame)
            self._relay.tick(now)

    def close(self) -> None:
        self._closing.close()
        lines = [f"{side}.{line}" for side in SIDES for line in ("console", "control")]
        for name in (SOCKET, "primary.nbd", "link.netns", "outside.netns", *lines):
            (self.directory / name).unlink(missing_ok=True)

    # --- the link -------------------------------------------------------------------------------------------
    def _frames(self, sender: Side) -> None:
        end = self._ends[sender]
        now = time.monotonic_ns()
        for _ in range(FRAMES_A_ROUND):
            try:
                frame = end.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                return
            for out in self.injector.feed(sender, frame, now):
                self._send(other(sender), out)

    def _send(self, to: Side, frame: bytes) -> None:
        # First the mirror: the reaction of a node to a frame follows it. A full queue drops, as a
        # switch does.
        with contextlib.suppress(OSError):
            self._mirror.send(frame)
        with contextlib.suppress(OSError):
            self._ends[to].send(frame)

    def _link_namespace(self) -> None:
        for name, namespace in (
            ("link", self._wiring.namespace),
            ("outside", self._wiring.outside),
        ):
            link = self.directory / f"{name}.netns"
            link.unlink(missing_ok=True)
            if namespace is not None:
                link.symlink_to(namespace.path)

    # --- commands -------------------------------------------------------------------------------------------
    def _on_stdin(self, _mask: int) -> None:
        if not os.read(0, 4096):
            self.is_ending = True

    def _accept(self, _mask: int) -> None:
        asking, _ = self._listener.accept()
        asking.settimeout(1.0)
        with asking, contextlib.suppress(OSError):
            line = b""
            while not line.endswith(b"\n") and len(line) < MAX_COMMAND_BYTES:
                data = asking.recv(4096)
                if not data:
                    break
                line += data
            asking.sendall(json.dumps(self._answer(line)).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            command = json.loads(line)
            return {"ok": True, **self._do(command)}
        except (HarnessError, ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _do(self, command: dict[str, Any]) -> dict[str, object]:
        now = time.monotonic_ns()
        match command["do"]:
            case "status":
                return self.status()
            case "power":
                node = self.nodes[command["side"]]
                node.power_on() if command["on"] else node.power_off()
                return {}
            case "arm":
                self.injector.arm(command["faults"])
                return {}
            case "hold-lane":
                self.injector.hold_lane()
                return {}
            case "release-lane":
                return {"frames": self.injector.release_lane()}
            case "cut":
                for sender in command["senders"]:
                    self.injector.cut(sender, now + int(command["ms"]) * NS_PER_MS)
                return {}
            case unknown:
                raise UsageError(f"unknown command {unknown!r}")

    def status(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "pair": self.config.pair.name,
            "image": self.description,
            "nodes": {side: node.status() for side, node in self.nodes.items()},
            "link": {
                "frames": self.injector.frames,
                "dropped": self.injector.dropped,
                "writes": self.injector.writes,
                "fired": self.injector.fired[-20:],
            },
        }


def _locked(directory: Path) -> TextIO:
    """Lock the folder. Raises RigError: two rigs would write to the same disks."""
    file = (directory / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RigError(
            f"a rig's process lives in {directory} already; freezeframe rig down"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=RigConfig)
    daemon: Daemon | None = None

    def on_signal(_number: int, _frame: object) -> None:
        if daemon is None:
            # It may be making the nodes' image, which takes minutes; what it has started ends with
            # it.
            sys.exit("stopped before the rig was up")
        daemon.is_ending = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        daemon = Daemon(config)
        daemon.run()
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        if daemon is not None:
            daemon.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
