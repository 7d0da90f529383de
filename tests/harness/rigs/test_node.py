"""What QEMU is told of a node."""

from pathlib import Path

from freezeframe.drivers.controllers.linux_drbd import NODE_PAIR
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.rigs.image import Image
from freezeframe.harness.rigs.node import Node

IMAGE = Image(kernel=Path("/k"), initrd=Path("/i"), description="")


def argv(side: Side, bad_sector: int | None = None) -> list[str]:
    return Node(
        side=side, directory=Path("/a,b"), image=IMAGE, pair=NODE_PAIR, serial_number="P,type=3",
        size_mib=1, memory_mib=256, mtu_bytes=1500, taps=(5, 6), bad_sector=bad_sector,
    )._argv()  # fmt: skip


def test_a_comma_in_a_serial_number_or_path_begins_no_option() -> None:
    told = argv("primary", 16)
    assert told[told.index("-smbios") + 1].endswith(",serial=P,,type=3")
    paths = [one for one in told if "/a," in one]
    assert len(paths) == 5
    assert not any("/a,b" in one.replace(",,", "") for one in paths)


def test_the_line_between_the_nodes_has_one_listener_and_a_disk_fails_only_when_asked_to() -> None:
    lines = {side: next(one for one in argv(side) if "id=peer," in one) for side in SIDES}
    assert [side for side in SIDES if "server=on" in lines[side]] == ["secondary"]
    data, metadata = (one for one in argv("secondary", 16) if "node-name=disk" in one)
    assert "file.inject-error.0.sector=16," in data and "blkdebug" not in metadata
    assert not any("blkdebug" in one for one in argv("secondary"))
