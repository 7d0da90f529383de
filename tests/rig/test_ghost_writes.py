"""Ghost writes on two real kernels: an old copy of a write lands on newer data, and is named; a copy that lands
where nobody wrote since is an ordinary retry."""

import contextlib
import socket
import tempfile
from collections.abc import Iterator

import pytest
from waiting import await_true

from freezeframe.drivers.controllers.linux_nvme import LinuxNvme
from freezeframe.drivers.controllers.linux_shell import Shell
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import Side, Trigger
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.edge.netns import Namespace
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.rig import VirtualRig

pytestmark = pytest.mark.rig
SERIALS: dict[Side, str] = {"primary": "FFNVME-P-0001", "secondary": "FFNVME-S-0001"}
BLOCK_BYTES = 4096
DATA_BYTE = LinuxNvme.node_pair.host_offset_bytes
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33


class Pair:
    """The nodes, a host's shell on the primary, and what a capture of the link shows."""

    def __init__(self, rig: VirtualRig, shell: Shell, tap: socket.socket) -> None:
        self.rig, self.shell, self.tap = rig, shell, tap
        ends = LinkEnds(protocol="nvme_tcp", ports=frozenset({4420}))
        self.view = LinkView(ends, [LinkRule(name="ghost", event="ghost-write")])
        self.frames = 0

    def write(self, text: str, block: int) -> None:
        """Returns once it is acknowledged on both legs."""
        (said,) = self.shell.ask(
            f"yes {text} | head -c {BLOCK_BYTES} >/run/block\n"
            f"dd if=/run/block of=/dev/md0 bs={BLOCK_BYTES} count=1 seek={block} oflag=direct 2>/dev/null && echo ok",
            deadline_in(100),
        )
        assert said == "ok"

    def stored(self, side: Side, block: int) -> bytes:
        with (self.rig.directory / f"{side}.img").open("rb") as disk:
            disk.seek(DATA_BYTE + block * BLOCK_BYTES)
            return disk.read(3)

    def hits(self) -> list[Trigger]:
        found: list[Trigger] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.tap.recv(65536)
                self.frames += 1
                now = MonotonicClock().now()
                found += self.view.feed(now, frame, self.frames, now)
        return found

    def held(self, text: str, block: int) -> None:
        """A write whose bytes are held back; the retry is answered."""
        self.rig.ask({"do": "hold-lane"})
        self.write(text, block)

    def release(self) -> None:
        assert self.rig.ask({"do": "release-lane"})["frames"] > 0


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="ff-") as directory, contextlib.ExitStack() as stack:
        # The target keeps a connection that is silent for so long.
        config = RigConfig(
            directory=directory, pair=LinuxNvme.node_pair, serial_numbers=SERIALS, size_mib=24,
            boot_options={"primary": {"keep_alive_s": "60"}},
        )  # fmt: skip
        rig = stack.enter_context(VirtualRig.start(config))

        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            made.bind(("mirror", 0))
            made.setblocking(False)
            return made

        namespace = Namespace.open(rig.directory / "link.netns")
        stack.callback(namespace.close)
        tap = stack.enter_context(contextlib.closing(namespace.run(opened)))
        line = stack.enter_context(
            contextlib.closing(open_serial(f"unix:{directory}/primary.control"))
        )
        node = LinuxNvme("primary", line, serial_number=SERIALS["primary"])

        def is_whole() -> bool:
            with contextlib.suppress(RigError):
                return node.identify(deadline_in(20)).pair_state == "full duplex"
            return False

        await_true(is_whole, 150, "full duplex")
        made = Pair(rig, Shell(line, MonotonicClock()), tap)
        # The capture did not see the first association begin: the next one is whole in it.
        made.held("one", 1)
        made.release()
        made.hits()
        yield made


@pytest.mark.parametrize("block", [100, 101, 102])
def test_a_ghost_write_lands_and_is_named(block: int, pair: Pair) -> None:
    pair.held("old", block)
    pair.write("new", block)
    assert pair.stored("secondary", block) == b"new"
    pair.release()
    await_true(lambda: pair.stored("secondary", block) == b"old", 60, "the old copy on the disk")
    assert pair.stored("primary", block) == b"new"
    found: list[Trigger] = []
    await_true(lambda: found.extend(pair.hits()) or found, 60, "the link rule")
    (hit,) = found
    assert hit.sector == (DATA_BYTE + block * BLOCK_BYTES) // 512
    assert "an old copy, after its retry" in hit.detail


@pytest.mark.parametrize("block", [200, 201, 202])
def test_an_ordinary_retry_is_none(block: int, pair: Pair) -> None:
    """Its old copy comes, too, and brings the same data; then writes to other places."""
    pair.held("old", block)
    pair.release()
    pair.write("new", block + 50)
    assert pair.stored("secondary", block) == pair.stored("primary", block) == b"old"
    assert pair.hits() == []
