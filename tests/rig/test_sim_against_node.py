"""The simulated controller peers with a real Linux node, in both roles: clean, with a digest fault,
with a cut link."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.drivers.hosts.image import ImageHost
from freezeframe.drivers.hosts.nbd import NbdHost
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.injector import other
from freezeframe.harness.rigs.rig import VirtualRig
from freezeframe.harness.rigs.wiring import REPLICATION_ADDRESSES

pytestmark = pytest.mark.rig
SIZE_MIB = 64
WRITTEN_BYTES = 4 << 20
WRITE_BYTES = 64 << 10
LIMIT_S = 60.0


class Pairing:
    """A node in QEMU and a process of firmware_sim at the ends of one replication link."""

    def __init__(self, directory: Path, node: Side) -> None:
        self.directory = directory
        self.node_side, self.sim_side = node, other(node)
        serials = {side: f"FFNODE-{side[0].upper()}" for side in SIDES}
        self.rig = VirtualRig.start(
            RigConfig(
                pair=LinuxDrbd.node_pair,
                directory=str(directory),
                serial_numbers=serials,
                size_mib=SIZE_MIB,
                outside=self.sim_side,
            )
        )
        self.line = open_serial(f"unix:{directory}/{node}.control")
        self.node = LinuxDrbd(node, self.line, serial_number=serials[node])
        port = f"{REPLICATION_ADDRESSES[node]}:7788"
        self.log = directory / "sim.stderr"
        with self.log.open("wb") as stderr:
            self.sim = subprocess.Popen(
                [
                    sys.executable, "-m", "freezeframe.firmware_sim", "serve", "--side", self.sim_side,
                    "--serial-number", "FFSIM-1",
                    "--state-dir", str(directory / "sim"), "--size-mib", str(SIZE_MIB),
                    "--host", f"unix:{directory}/sim.nbd", "--replication-connect", port,
                    "--netns", str(directory / "outside.netns"),
                    "--console", f"pty:{directory}/sim.con", "--control", f"pty:{directory}/sim.ctl",
                ],
                stderr=stderr,
            )  # fmt: skip

    def host(self) -> NbdHost:
        """The primary's volume."""
        name = "primary.nbd" if self.node_side == "primary" else "sim.nbd"
        return NbdHost(f"nbd+unix:///?socket={self.directory}/{name}", timeout_s=LIMIT_S)

    def node_data(self) -> bytes:
        return ImageHost(str(self.directory / f"{self.node_side}.img")).read(0, WRITTEN_BYTES)

    def sim_data(self) -> bytes:
        with NbdHost(f"nbd+unix:///?socket={self.directory}/sim.nbd") as volume:
            return volume.read(0, WRITTEN_BYTES)

    def console(self) -> str:
        return (self.directory / f"{self.node_side}.console.log").read_text(errors="replace")

    def state(self) -> str:
        try:
            return self.node.identify(deadline_in(2.0)).pair_state
        except RigError as error:
            return str(error)

    def await_full_duplex(self) -> None:
        until = time.monotonic() + LIMIT_S
        while (state := self.state()) != "full duplex":
            assert self.sim.poll() is None, self.log.read_text()
            assert time.monotonic() < until, f"{state}\n{self.console()[-3000:]}"

    def write(self, seed: int, on_write: Callable[[int], None] = lambda number: None) -> bytes:
        data = bytearray()
        with self.host() as host:
            for number in range(WRITTEN_BYTES // WRITE_BYTES):
                piece = (seed * 1000 + number).to_bytes(4, "big") * (WRITE_BYTES // 4)
                on_write(number)
                host.write(len(data), piece)
                data += piece
            host.flush()
        return bytes(data)

    def close(self) -> None:
        self.sim.terminate()
        try:
            self.sim.wait(10)
        except subprocess.TimeoutExpired:
            self.sim.kill()
            self.sim.wait()
        self.line.close()
        self.rig.close()


@pytest.fixture(scope="module", params=SIDES)
def pairing(request: pytest.FixtureRequest) -> Iterator[Pairing]:
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        made = Pairing(Path(directory), request.param)
        try:
            yield made
        finally:
            made.close()


def assert_equal(pairing: Pairing, data: bytes) -> None:
    pairing.await_full_duplex()
    assert pairing.node_data() == data
    assert pairing.sim_data() == data


def test_clean(pairing: Pairing) -> None:
    pairing.await_full_duplex()
    before = len(pairing.console())
    data = pairing.write(1)
    assert_equal(pairing, data)
    assert "conn(" not in pairing.console()[before:], "a healthy pair stays connected"


def test_a_digest_fault(pairing: Pairing) -> None:
    """The receiver, whoever it is, drops the connection, and both resync."""
    pairing.await_full_duplex()
    before = len(pairing.console())
    pairing.rig.arm([{"kind": "bit_flip_sender", "at_write": 20}])
    data = pairing.write(2)
    assert pairing.rig.status()["link"]["fired"]
    assert_equal(pairing, data)
    said = pairing.console()[before:]
    if pairing.node_side == "secondary":
        assert "Digest integrity check FAILED" in said
        assert "conn( Connected -> ProtocolError )" in said
    else:
        # A close with unread bytes is a reset; which of the two sockets is seen first is a race.
        assert re.search(
            r"sock was (shut down|reset) by peer|meta connection shut down by peer", said
        ), said
    assert "-> Connected )" in said


def test_a_cut_link(pairing: Pairing) -> None:
    """Both lose each other by their timeouts, the host's writes go on, and a resync of what changed
    follows."""
    pairing.await_full_duplex()
    before = len(pairing.console())
    data = pairing.write(3, lambda number: pairing.rig.cut(SIDES, 5.0) if number == 20 else None)
    assert_equal(pairing, data)
    said = pairing.console()[before:]
    assert "NetworkFailure" in said or "Timeout" in said or "BrokenPipe" in said
    assert "-> Connected )" in said
