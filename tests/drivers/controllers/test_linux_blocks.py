"""The failing block of a Linux node, read from the disk under its replication."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from linux_node import NodeOnDisk, soon

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.drivers.controllers.linux_node import LinuxNode
from freezeframe.harness.bench import boundary
from freezeframe.harness.errors import RigError, UsageError, WireError
from freezeframe.harness.roles import BlockReading, ByteLink, Controller

CONTENT = random.Random(7).randbytes(128 << 10)


@pytest.fixture
def reader(device: LinuxDrbd, node: NodeOnDisk) -> LinuxDrbd:
    (node.root / "disk").write_bytes(CONTENT)
    return made(device.link, node)


def made(link: ByteLink, node: NodeOnDisk, disk: str = "disk") -> LinuxDrbd:
    options = LinuxNode.Options(backing_device=f"{node.root}/{disk}")
    return LinuxDrbd("primary", link, serial_number="FFTEST-1", options=options)


def test_only_a_node_whose_disk_is_named_plays_the_role(
    reader: LinuxDrbd, device: LinuxDrbd
) -> None:
    assert isinstance(reader, BlockReading) and not isinstance(device, BlockReading)
    bound = boundary.guarded(reader, Controller, "linux_drbd", "primary")
    assert isinstance(bound, BlockReading)
    assert bound.read_blocks(512, 1024, soon()) == CONTENT[512:1536]
    assert not isinstance(
        boundary.guarded(device, Controller, "linux_drbd", "primary"), BlockReading
    )


def test_what_lies_on_the_disk_is_read_and_nothing_is_left_on_the_node(
    reader: LinuxDrbd, node: NodeOnDisk
) -> None:
    assert isinstance(reader, BlockReading)
    for first, length in ((0, 512), (4096, 65536), (len(CONTENT) - 512, 512)):
        assert reader.read_blocks(first, length, soon()) == CONTENT[first : first + length]
    assert not (node.root / "run/freezeframe/block").exists()


@pytest.mark.parametrize(("disk", "given"), [("disk", 512), ("no-such-disk", 0)])
def test_a_disk_that_is_too_short_or_not_there_is_named(
    disk: str, given: int, reader: LinuxDrbd, node: NodeOnDisk
) -> None:
    reader = made(reader.link, node, disk)
    assert isinstance(reader, BlockReading)
    with pytest.raises(WireError, match=rf"{disk} gives {given} of 4096 bytes at sector 255"):
        reader.read_blocks(len(CONTENT) - 512, 4096, soon())


HALFWAY = """#!/bin/sh
# The direct read fails halfway; the read through the cache does as the test wants.
case "$*" in
*iflag=direct*) echo direct >>{log}; {dd} "$1" "$2" "$3" count=24; exit 1 ;;
esac
echo cached >>{log}
exec {dd} {then}
"""


def with_dd(reader: LinuxDrbd, node: NodeOnDisk, then: str) -> Path:
    """Let the node's shell call a dd that fails as a disk does. Returns the log of its calls."""
    real, log, failing = shutil.which("dd"), node.root / "dd.log", node.root / "failing-dd"
    assert real is not None
    failing.write_text(HALFWAY.format(dd=real, then=then, log=log))
    failing.chmod(0o755)
    # A function: busybox ash has a dd of its own, which it prefers to any in its path.
    reader.link.write(f'dd() {{ {failing} "$@"; }}\n'.encode())
    return log


def test_a_direct_read_that_fails_halfway_leaves_nothing_in_the_block(
    reader: LinuxDrbd, node: NodeOnDisk
) -> None:
    log = with_dd(reader, node, '"$@"')
    assert isinstance(reader, BlockReading)
    assert reader.read_blocks(4096, 48 * 512, soon()) == CONTENT[4096 : 4096 + 48 * 512]
    assert log.read_text().split()[:2] == ["direct", "cached"]


def test_a_disk_that_fails_halfway_in_both_reads_gives_no_block(
    reader: LinuxDrbd, node: NodeOnDisk
) -> None:
    with_dd(reader, node, '"$1" "$2" "$3" count=24')
    assert isinstance(reader, BlockReading)
    with pytest.raises(
        WireError, match=r"gives 12288 of 24576 bytes at sector 8: .* can it be read"
    ):
        reader.read_blocks(4096, 48 * 512, soon())


@dataclass
class Noisy:
    """A line on which one character of some answers becomes another."""

    line: ByteLink
    damaged: int
    """So many answers, from the first on."""
    name: str = "noisy"

    def fileno(self) -> int:
        return self.line.fileno()

    def write(self, data: bytes) -> None:
        self.line.write(data)

    def close(self) -> None:
        self.line.close()

    def read(self, max_bytes: int, deadline_ns: int) -> bytes:
        data = self.line.read(max_bytes, deadline_ns)
        if self.damaged and WORD in data:
            self.damaged -= 1
            return data.replace(WORD, b"QUFC", 1)
        return data


WORD = b"QUFB"
"""AAA, as base64."""


def test_a_character_that_the_line_changed_is_noticed_and_asked_for_again(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    (node.root / "disk").write_bytes(b"AAA" * 512)
    reader = made(Noisy(device.link, damaged=1), node)
    assert isinstance(reader, BlockReading)
    assert reader.read_blocks(0, 1536, soon()) == b"AAA" * 512
    reader = made(Noisy(device.link, damaged=1000), node)
    assert isinstance(reader, BlockReading)
    with pytest.raises(RigError, match="does not arrive whole"):
        reader.read_blocks(0, 1536, soon())


def test_a_disk_that_could_be_a_command_is_refused(device: LinuxDrbd) -> None:
    options = LinuxNode.Options(backing_device="/dev/vda;reboot")
    with pytest.raises(UsageError, match=r"backing_device .*: allowed is an absolute path"):
        LinuxDrbd("primary", device.link, serial_number="A", options=options)
