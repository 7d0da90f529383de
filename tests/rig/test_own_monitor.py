"""Autonomic mode on two real kernels: the secondary's own monitor watches its kernel's log and instructs
the primary over a UART between the two nodes. While it does, no line of the nodes is open here and no
process of the harness runs but the rig's own, which is the cables."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from waiting import await_true

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.drivers.controllers.linux_node import LinuxNode
from freezeframe.drivers.controllers.linux_nvme import LinuxNvme
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge.netns import Namespace
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.node import BANNER
from freezeframe.harness.rigs.rig import VirtualRig
from freezeframe.harness.roles import Identity, RootCauseSet, SelfMonitoring
from freezeframe.harness.wire.control import Reason
from freezeframe.harness.wire.drbd import Role

pytestmark = pytest.mark.rig
DRIVERS: dict[str, type[LinuxNode]] = {"drbd_qemu": LinuxDrbd, "nvme_qemu": LinuxNvme}
SERIALS: dict[Side, str] = {"primary": "FFQEMU-P-0001", "secondary": "FFQEMU-S-0001"}
BAD_BYTE = 8 << 20
"""Of the volume: the secondary's disk refuses the first write there."""
CRASH = b"sysrq: Trigger a crash"
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33


@dataclass
class Incident:
    """What is left of one: pulled with drivers that know nothing of it but its id."""

    incident_id: bytes
    sets: dict[Side, RootCauseSet] = field(default_factory=dict)
    epochs_before: dict[Side, int] = field(default_factory=dict)
    epochs_after: dict[Side, int] = field(default_factory=dict)
    link: bytes = b""
    """All frames of the replication link meanwhile."""

    def __repr__(self) -> str:
        return f"Incident({self.incident_id.hex()})"

    def log(self, side: Side) -> str:
        return "\n".join(one["text"] for one in self.sets[side].events)


class Pair:
    def __init__(self, rig: VirtualRig, made: type[LinuxNode]) -> None:
        self.rig, self.made = rig, made

    @contextlib.contextmanager
    def nodes(self) -> Iterator[dict[Side, LinuxNode]]:
        with contextlib.ExitStack() as lines:
            found: dict[Side, LinuxNode] = {}
            for side in SIDES:
                line = open_serial(f"unix:{self.rig.directory}/{side}.control")
                lines.callback(line.close)
                options = self.made.Options(peer_line="/dev/ttyS2" if side == "secondary" else "")
                found[side] = self.made(side, line, serial_number=SERIALS[side], options=options)
            yield found

    def identify(
        self, nodes: dict[Side, LinuxNode], *, is_whole: bool = True
    ) -> dict[Side, Identity]:
        def asked() -> dict[Side, Identity] | None:
            try:
                seen = {side: node.identify(deadline_in(20)) for side, node in nodes.items()}
            except RigError:
                return None
            return seen if not is_whole or seen["primary"].pair_state == "full duplex" else None

        return await_true(asked, 150, "both nodes, in full duplex")

    def arm(self, incident: Incident) -> None:
        with self.nodes() as nodes:
            seen = self.identify(nodes)
            frames = {}
            for side, reason in (("primary", Reason.PEER_TRIGGER), ("secondary", Reason.SELF)):
                nodes[side].prepare(seen[side], incident.incident_id, deadline_in(30))
                frames[side] = nodes[side].freeze_frame(seen[side], reason, incident.incident_id)
            monitor = nodes["secondary"]
            assert isinstance(monitor, SelfMonitoring)
            monitor.monitor(
                incident.incident_id, frames["primary"], frames["secondary"], deadline_in(30)
            )
            incident.epochs_before = {side: one.boot_epoch for side, one in seen.items()}

    def console(self, side: Side) -> bytes:
        return (self.rig.directory / f"{side}.console.log").read_bytes()

    def play(self, incident_id: bytes, offset_bytes: int) -> Incident:
        """Arm, let go, have a host write there, wait until both have crashed and are back, pull."""
        incident = Incident(incident_id)
        self.arm(incident)
        before = {side: len(self.console(side)) for side in SIDES}
        host = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-c", f"write -P 0x5a {offset_bytes} 64k",
             f"nbd+unix:///?socket={self.rig.directory}/primary.nbd"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with self.tap() as frames:
                for side in SIDES:
                    await_true(
                        lambda side=side: CRASH in self.console(side)[before[side] :],
                        60,
                        f"the {side}'s crash",
                    )
                incident.link = frames()
            for side in SIDES:
                await_true(
                    lambda side=side: BANNER in self.console(side)[before[side] :],
                    120,
                    f"the {side}'s boot",
                )
        finally:
            host.kill()
            host.wait()
        with self.nodes() as nodes:
            seen = self.identify(nodes, is_whole=False)
            incident.epochs_after = {side: one.boot_epoch for side, one in seen.items()}
            for side, node in nodes.items():
                listed = node.sets(deadline_in(60))
                (entry,) = [one for one in listed if one.incident_id == incident_id]
                incident.sets[side] = node.pull(entry, b"", deadline_in(60), lambda _: None)
        return incident

    @contextlib.contextmanager
    def tap(self) -> Iterator[object]:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            made.bind(("mirror", 0))
            made.setblocking(False)
            return made

        namespace = Namespace.open(self.rig.directory / "link.netns")
        tap = namespace.run(opened)

        def read() -> bytes:
            frames = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    frames.append(tap.recv(65536))
            return b"".join(frames)

        try:
            yield read
        finally:
            tap.close()
            namespace.close()


@contextlib.contextmanager
def standing(bench: str, bad_byte: int | None = None) -> Iterator[Pair]:
    """A short path: unix sockets have at most 107 bytes."""
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is missing: apt install qemu-utils")
    made = DRIVERS[bench]
    bad: dict[Side, int] = {}
    if bad_byte is not None:
        bad = {"secondary": (made.node_pair.host_offset_bytes + bad_byte) // 512}
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        config = RigConfig(
            directory=directory,
            pair=made.node_pair,
            serial_numbers=SERIALS,
            size_mib=24,
            bad_sectors=bad,
        )
        with VirtualRig.start(config) as rig:
            yield Pair(rig, made)


@pytest.fixture(scope="module", params=DRIVERS)
def flip(request: pytest.FixtureRequest) -> Incident:
    """A byte of a copy changes on the link."""
    with standing(request.param) as pair:
        pair.rig.arm([{"kind": "bit_flip_sender", "at_write": 1}])
        return pair.play(os.urandom(16), 1 << 20)


@pytest.mark.claim(10, bench=("drbd_qemu", "nvme_qemu"))
def test_the_secondarys_own_monitor_instructs_the_primary(flip: Incident) -> None:
    log = flip.log("secondary")
    assert re.search(r"Digest integrity check FAILED|data digest error", log)
    assert f"monitor {flip.incident_id.hex()}: instructs the primary, for record " in log
    assert f"monitor {flip.incident_id.hex()}: answer: ok" in log
    for side in SIDES:
        assert flip.epochs_after[side] > flip.epochs_before[side]


@pytest.mark.claim(11, bench=("drbd_qemu", "nvme_qemu"))
def test_its_second_link_is_a_line_between_the_two_nodes(flip: Incident) -> None:
    """The primary got the frame, with this incident's id, and nothing of it came over the replication link."""
    assert f"freezeframe: warmstart {flip.incident_id.hex()} " in flip.log("primary")
    assert b"\x5a" * 512 in flip.link  # the host's write
    assert flip.incident_id.hex().encode() not in flip.link


@pytest.mark.claim(12, bench=("drbd_qemu", "nvme_qemu"))
def test_the_primary_stores_its_set_when_its_secondary_instructs_it(flip: Incident) -> None:
    header = flip.sets["primary"].header
    assert header["incident_id"] == flip.incident_id
    assert header["reason"] == Reason.PEER_TRIGGER
    assert flip.sets["secondary"].header["reason"] == Reason.SELF


@pytest.mark.claim(13, bench=("drbd_qemu", "nvme_qemu"))
def test_that_set_is_state_and_continuous_kernel_log(flip: Incident) -> None:
    primary = flip.sets["primary"]
    assert primary.state["role"] == Role.PRIMARY
    assert [one["seq"] for one in primary.events] == list(range(len(primary.events)))
    log = flip.log("primary")
    assert log.index("freezeframe: warmstart ") < log.index("sysrq: Trigger a crash")


@pytest.mark.claim(14, bench=("drbd_qemu", "nvme_qemu"))
@pytest.mark.parametrize("bench", DRIVERS)
def test_a_response_that_refuses_a_write_makes_the_secondary_recover(bench: str) -> None:
    """Its disk fails under one write, which it answers with a refusal."""
    with standing(bench, BAD_BYTE) as pair:
        refusal = pair.play(os.urandom(16), BAD_BYTE)
    log = refusal.log("secondary")
    assert "I/O error, dev vda, sector " in log
    assert "digest" not in log.lower()
    assert f"monitor {refusal.incident_id.hex()}: answer: ok" in log
    assert refusal.sets["secondary"].header["reason"] == Reason.SELF
    assert refusal.epochs_after["secondary"] > refusal.epochs_before["secondary"]
