"""What QEMU is told of a node."""

from pathlib import Path

from freezeframe.drivers.controllers.linux_drbd import NODE_PAIR
from freezeframe.harness.rigs.image import Image
from freezeframe.harness.rigs.node import Node


def test_a_comma_in_a_serial_number_or_path_begins_no_option() -> None:
    image = Image(kernel=Path("/k"), initrd=Path("/i"), description="")
    node = Node(
        side="primary", directory=Path("/a,b"), image=image, pair=NODE_PAIR, serial_number="P,type=3",
        size_mib=1, memory_mib=256, mtu_bytes=1500, taps=(5, 6),
    )  # fmt: skip
    told = node._argv()
    assert told[told.index("-smbios") + 1].endswith(",serial=P,,type=3")
    paths = [one for one in told if "/a," in one]
    assert len(paths) == 4
    assert not any("/a,b" in one.replace(",,", "") for one in paths)
