"""What a replication peer does wrong, done to a real node and to a simulated controller: both print
the same lines, and both come back. And the peer that does nothing wrong, at the protocol versions
from 95 to 101."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drbd_world import MemoryBackend, S, World
from misbehaviour import (
    CASES,
    PATIENT,
    SIZE_BYTES,
    VICTIM,
    WRITE_BYTES,
    Case,
    Misbehaving,
    mute,
    normalised,
)
from real_link import RealSide
from waiting import await_true

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.console.rules import parse_rules
from freezeframe.harness.core.console.triggers import Scanner
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.injector import other
from freezeframe.harness.rigs.rig import VirtualRig
from freezeframe.harness.rigs.wiring import REPLICATION_ADDRESSES
from freezeframe.harness.wire.control import PairState
from freezeframe.harness.wire.drbd import Role

pytestmark = pytest.mark.rig
RULES = Path(__file__).parents[2] / "bench_configs" / "rules"
CONNECT = (
    "drbdsetup connect r0 ipv4:{own}:7788 ipv4:{peer}:7788 --protocol C --data-integrity-alg crc32c "
    "--ping-int 2 --timeout 20 --ko-count 2 --connect-int 1"
)
LIMIT_S = 40.0
ENDS = {
    "meta connection shut down by peer.",
    "sock was shut down by peer",
    "short read (expected size N)",
}
"""Which of these a node prints when both of its sockets end, and in which order, is a race of its
threads."""


class Node:
    """One node in QEMU; a peer of the simulator, driven by the test, in the other's place."""

    def __init__(self, directory: Path, side: Side) -> None:
        self.side, self.directory = side, directory
        serials = {one: f"FFALIKE-{one[0].upper()}" for one in SIDES}
        config = RigConfig(
            pair=LinuxDrbd.node_pair,
            directory=str(directory),
            serial_numbers=serials,
            size_mib=SIZE_BYTES >> 20,
            outside=other(side),
        )
        self.rig = VirtualRig.start(config)
        self.line = open_serial(f"unix:{directory}/{side}.control")
        self.driver = LinuxDrbd(side, self.line, serial_number=serials[side])
        self.backend = MemoryBackend(SIZE_BYTES)
        self.peer: RealSide | None = None
        self.write_no = 0

    def console(self) -> str:
        return (
            (self.directory / f"{self.side}.console.log")
            .read_text(errors="replace")
            .replace("\r", "")
        )

    def connect(
        self,
        hooks: Any = None,
        backend: MemoryBackend | None = None,
        *,
        muted: bool = False,
        **config: Any,
    ) -> RealSide:
        self.disconnect()
        netns, address = self.directory / "outside.netns", (REPLICATION_ADDRESSES[self.side], 7788)
        self.peer = RealSide(netns, address, backend or self.backend, hooks, **(PATIENT | config))
        if muted:
            mute(self.peer.peer)
        self.peer.start()
        if self.side == "secondary":
            self.peer.peer.set_role(time.monotonic_ns(), Role.PRIMARY)
        return self.peer

    def disconnect(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def await_full_duplex(self) -> None:
        assert self.peer is not None
        peer = self.peer.peer

        def is_whole() -> bool:
            primary = peer.peer_role if self.side == "primary" else peer.role
            return peer.pair_state is PairState.FULL_DUPLEX and primary is Role.PRIMARY

        self.peer.run_until(is_whole, LIMIT_S)

    def reset(self) -> None:
        """A node that stands alone looks for its peer again."""
        own, peer = REPLICATION_ADDRESSES[self.side], REPLICATION_ADDRESSES[other(self.side)]
        script = f"grep -q StandAlone /proc/drbd && {CONNECT.format(own=own, peer=peer)}"
        self.driver._shell.ask(script, deadline_in(10))

    def host_writes(self, writes: int, block_bytes: int = WRITE_BYTES, seek: int = 0) -> str:
        """The primary's host writes; on a node in the background. Returns the line that it ends
        with."""
        self.write_no += 1
        if self.side == "primary":
            end = f"node: writes {self.write_no} are done"
            command = f"dd if=/dev/urandom of=/dev/drbd0 bs={block_bytes} count={writes} seek={seek} conv=fsync,notrunc"
            self.line.write(f"({command} 2>/dev/null; echo '{end}' >/dev/kmsg) &\n".encode())
            return end
        assert self.peer is not None
        for number in range(writes):
            data = bytes([1 + (self.write_no + number) % 255]) * block_bytes
            self.peer.write(self.write_no * 10_000 + number, (seek + number) * block_bytes, data)
        return ""

    def close(self) -> None:
        self.disconnect()
        self.line.close()
        self.rig.close()


class Nodes:
    """One node at a time: booted when a test needs that side, and kept for the next that does."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._node: Node | None = None

    def side(self, side: Side) -> Node:
        if self._node is None or self._node.side != side:
            self.close()
            directory = self._held.enter_context(tempfile.TemporaryDirectory(prefix="ff-"))
            self._node = Node(Path(directory), side)
            self._held.callback(self._node.close)
        return self._node

    def close(self) -> None:
        self._node = None
        self._held.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def of_node(node: Node, case: Case) -> list[str]:
    hooks = Misbehaving(**case.hooks)
    node.reset()
    peer = node.connect(hooks)
    node.await_full_duplex()
    peer.run_for(0.5)
    if case.is_mute:
        # The next connection is the case: what the end of this one prints is not.
        at = len(node.console())
        node.disconnect()
        await_true(
            lambda: "Unconnected -> WFConnection" in node.console()[at:],
            LIMIT_S,
            "the node to notice",
        )
        at = len(node.console())
        backend = other_backend(case, node.backend)
        peer = node.connect(hooks, backend, muted=True, **case.config)
    else:
        at = len(node.console())
        hooks.is_armed = True
        case.act(peer.peer)
        peer.collect()
        if case.closes:
            peer.close_sockets()
        done = node.host_writes(case.writes) if case.writes else ""
        if not case.end:
            peer.run_until(lambda: done in node.console()[at:], LIMIT_S)
    if case.end:
        peer.run_until(lambda: case.end in node.console()[at:], LIMIT_S)
    return node.console()[at:].splitlines()


def other_backend(case: Case, last: MemoryBackend) -> MemoryBackend:
    """The volume of the one that comes back, and is not as it was."""
    backend = MemoryBackend(case.smaller_bytes or SIZE_BYTES)
    if case.uuids is not None:
        backend.metadata.uuids = case.uuids(list(last.metadata.uuids))
        backend.metadata.disk = last.metadata.disk
        backend.metadata.bitmap.clear_all()
    return backend


def of_simulator(case: Case) -> list[str]:
    """The one that misbehaves is the dialler."""
    world = World(dialler=PATIENT, listener=VICTIM, size_bytes=SIZE_BYTES)
    world.start("b" if case.victim == "primary" else "a")
    hooks = Misbehaving(**case.hooks)
    world.a.hooks = world.a.peer._link.faults = hooks
    victim = world.b
    if case.is_mute:
        world.kill(world.a)
        world.run_until(lambda: "Unconnected -> WFConnection" in victim.lines[-1])
        at = len(victim.lines)
        world.a.config |= case.config
        world.a.backend = other_backend(case, world.a.backend)
        world.a.boot()
        mute(world.a.peer)
        world.a.peer.start(world.now)
    else:
        at = len(victim.lines)
        hooks.is_armed = True
        case.act(world.a.peer)
        world.collect()
        if case.closes:
            world.cut()
        host = victim if case.victim == "primary" else world.a
        for number in range(case.writes):
            host.write(10 + number, number * WRITE_BYTES, bytes([1 + number % 255]) * WRITE_BYTES)
    world.run(20 * S)
    return until_end(victim.lines[at:], case)


def until_end(lines: list[str], case: Case) -> list[str]:
    found = []
    for line in lines:
        # Which helpers a node calls is its configuration, and it tells of each call.
        if ("drbd r0: " in line or "block drbd0: " in line) and "helper command" not in line:
            found.append(
                normalised(line[line.index("block drbd0" if "block" in line else "drbd r0") :])
            )
            if case.end and case.end in line:
                break
    return found


def without_races(lines: list[str], case: Case) -> list[str]:
    if not case.closes:
        return lines
    ends = [line.partition(": ")[2] for line in lines]
    assert ENDS & set(ends)
    kept = [line for line, text in zip(lines, ends, strict=True) if text not in ENDS]
    return [line.replace("NetworkFailure", "BrokenPipe") for line in kept]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.victim} {case.name}")
def test_both_print_the_same(nodes: Nodes, case: Case, tmp_path: Path) -> None:
    node = nodes.side(case.victim)
    raw = of_node(node, case)
    (tmp_path / "console.log").write_text("\n".join(raw))  # for who looks why
    printed, expected = until_end(raw, case), of_simulator(case)
    real, simulated = without_races(printed, case), without_races(expected, case)
    # What was found, and into which state it led, come first and in this order; behind that several
    # threads print.
    first = 1 if case.closes else 2
    assert real[:first] == simulated[:first], "\n".join(
        ["node:", *printed, "simulator:", *expected]
    )
    assert sorted(real) == sorted(simulated), "\n".join(
        ["node:", *printed, "simulator:", *expected]
    )
    assert rules_that_see(raw, case) == case.rules
    if not case.is_mute:
        node.connect()
        node.await_full_duplex()
        assert_equal(node)


def rules_that_see(lines: list[str], case: Case) -> set[str]:
    """Of the nodes' bench, in what was printed until the end of the case."""
    rules = parse_rules((RULES / "drbd.toml").read_text(), "drbd.toml").console
    end = next(
        (number for number, line in enumerate(lines, 1) if case.end and case.end in line),
        len(lines),
    )
    data = "".join(f"{line}\r\n" for line in lines[:end]).encode()
    return {
        rules[hit.rule].name for hit in Scanner(rules, {"node": case.victim}).feed("node", data, 0)
    }


def assert_equal(node: Node) -> None:
    assert (node.directory / f"{node.side}.img").read_bytes()[:SIZE_BYTES] == node.backend.data


@pytest.mark.parametrize("version", [95, 96, 97, 99, 100, 101])
@pytest.mark.parametrize("side", SIDES)
def test_protocol_versions(nodes: Nodes, side: Side, version: int) -> None:
    """Writes of all lengths, barriers, a cut, writes on one side, a resync; again the data are
    equal."""
    node = nodes.side(side)
    node.reset()
    at = len(node.console())
    peer = node.connect(protocol_max=version)
    node.await_full_duplex()
    assert f"Agreed network protocol version {version}" in node.console()[at:]
    for block_bytes, writes in ((512, 8), (4096, 64), (65536, 40), (1 << 20, 4)):
        end = node.host_writes(writes, block_bytes)
        peer.run_until(
            lambda end=end: end in node.console() and not peer.peer.queues()["unacked_writes"],
            LIMIT_S,
        )  # type: ignore[misc]
    peer.run_for(0.3)
    assert_equal(node)
    at = len(node.console())
    peer.close_sockets()
    peer.peer.request_resync(time.monotonic_ns())
    end = node.host_writes(16, 65536, seek=3)
    peer.run_until(lambda: end in node.console(), LIMIT_S)
    node.await_full_duplex()
    peer.run_until(lambda: "-> Connected )" in node.console()[at:], LIMIT_S)
    role = "SyncSource" if node.side == "primary" else "SyncTarget"
    assert f"Began resync as {role}" in node.console()[at:]
    assert_equal(node)
