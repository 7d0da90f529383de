"""The state of a Linux mirror, on each shell: what full duplex is, and that it is not md's [UU]."""

import pytest
from linux_node import NodeOnDisk, soon

from freezeframe.drivers.controllers import linux_mirror
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.drivers.controllers.linux_nbd import LinuxNbd
from freezeframe.drivers.controllers.linux_node import LinuxNode
from freezeframe.drivers.controllers.linux_nvme import LinuxNvme
from freezeframe.drivers.controllers.linux_scripts import functions
from freezeframe.harness.wire.control import PAIR_STATE_NAMES, PairState
from freezeframe.harness.wire.drbd import Role

MD = "sys/block/md0/md"
SERVED = (
    "  sl  local_address rem_address   st tx_queue rx_queue\n"
    "   0: 00000000:1144 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
    "   1: 0202630A:1144 0102630A:D52A 01 00000000:00000000 00:00000000 00000000\n"
)
FAR = {"nvme": "nvme0n1", "nbd": "nbd0"}


def put_mirror(node: NodeOnDisk, kind: str) -> None:
    far = FAR[kind]
    for name, content in {
        f"{MD}/array_state": "active\n",
        f"{MD}/degraded": "0\n",
        f"{MD}/sync_action": "idle\n",
        f"{MD}/dev-vda/state": "in_sync\n",
        f"{MD}/dev-vda/bad_blocks": "",
        f"{MD}/dev-vda/unacknowledged_bad_blocks": "",
        f"{MD}/dev-{far}/state": "in_sync,write_mostly\n",
        f"{MD}/dev-{far}/bad_blocks": "",
        f"{MD}/dev-{far}/unacknowledged_bad_blocks": "",
        "proc/net/tcp": SERVED,
    }.items():
        node.put(name, content)
    if kind == "nvme":
        node.put("sys/class/nvme/nvme0/state", "live\n")
    else:
        node.put("sys/block/nbd0/pid", "150\n")


def mirror(device: LinuxDrbd, kind: str) -> LinuxNode:
    made = LinuxNvme if kind == "nvme" else LinuxNbd
    return made("primary", device.link, serial_number="FFTEST-1")


@pytest.mark.parametrize("kind", FAR)
def test_full_duplex_is_live_whole_idle_and_no_bad_block(
    device: LinuxDrbd, node: NodeOnDisk, kind: str
) -> None:
    put_mirror(node, kind)
    primary = mirror(device, kind)
    seen = primary.identify(soon())
    assert (seen.pair_state, seen.role) == ("full duplex", Role.PRIMARY)
    far = FAR[kind]
    for name, content, state in (
        (f"{MD}/dev-{far}/bad_blocks", "5888 8\n6000 16\n", "copy pending"),
        (f"{MD}/dev-{far}/unacknowledged_bad_blocks", "5888 8\n", "copy pending"),
        (f"{MD}/sync_action", "resync\n", "copy pending"),
        (f"{MD}/dev-{far}/state", "faulty,write_mostly\n", "copy pending"),
        (f"{MD}/degraded", "1\n", "suspended"),
    ):
        before = (node.root / name).read_text()
        node.put(name, content)
        assert primary.identify(soon()).pair_state == state, name
        if name.endswith("/bad_blocks"):
            assert primary.state(soon())["dirty_blocks"] == 3, "24 sectors are 12 KiB"
        node.put(name, before)
    gone = node.root / ("sys/class/nvme/nvme0/state" if kind == "nvme" else "sys/block/nbd0/pid")
    gone.unlink()
    assert primary.identify(soon()).pair_state == "suspended"


def test_a_secondary_is_whole_while_it_is_served(device: LinuxDrbd, node: NodeOnDisk) -> None:
    node.put("proc/net/tcp", SERVED)
    secondary = LinuxNvme("secondary", device.link, serial_number="FFTEST-1")
    seen = secondary.identify(soon())
    assert (seen.pair_state, seen.role) == ("full duplex", Role.SECONDARY)
    node.put("proc/net/tcp", "\n".join(SERVED.splitlines()[:2]) + "\n")
    assert secondary.identify(soon()).pair_state == "simplex"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "array",
        "array degraded x",
        "bad_blocks a b c d",
        "leg",
        "peer",
        "array degraded " + "9" * 99,
    ],
)
def test_anything_else_is_a_node_that_stands_alone(text: str) -> None:
    seen = linux_mirror.parse_state(text)
    assert PAIR_STATE_NAMES[seen.pair_state] == "simplex"
    assert seen.pair_state is PairState.SIMPLEX


@pytest.mark.parametrize("made", [LinuxNvme, LinuxNbd])
def test_no_line_of_the_functions_is_long(made: type[LinuxNode]) -> None:
    lines = functions(made.replication.scripts).splitlines()
    assert max(map(len, lines)) < 450
