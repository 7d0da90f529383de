"""A Linux mirror over a network block device: md RAID1 on the primary, whose far leg is the secondary's
disk. What the nodes of ``linux_nvme`` and ``linux_nbd`` have in common.

md's ``[UU]`` is no proof of equality. A write that the far leg refused is acknowledged to the host
and noted in the leg's list of bad blocks, and the leg stays in sync (md, ``bad_blocks``): so full
duplex is a connected leg, no leg missing, nothing being copied, and empty lists.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from freezeframe.drivers.controllers.linux_records import BOOT_LINE, Replication
from freezeframe.drivers.controllers.linux_scripts import Scripts
from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.control import PairState

SECTORS_PER_KIB: Final = 2
DATA_OFFSET_BYTES: Final = 1 << 20
"""Of md's metadata 1.2 on disks of this size; checked by ``serve``."""
MAX_SECTORS: Final = 1 << 40
_BASE: Final = re.compile(r"^ *(?:array|peer) \S", re.M)

STATE: Final = """ff_state() {
for ff_f in /sys/block/md0/md/array_state /sys/block/md0/md/degraded /sys/block/md0/md/sync_action; do
[ -r "$ff_f" ] && read -r ff_x <"$ff_f" && echo "$1 array ${ff_f##*/} $ff_x"
done
for ff_f in /sys/block/md0/md/dev-*; do
[ -r "$ff_f/state" ] || continue
read -r ff_x <"$ff_f/state" && echo "$1 leg ${ff_f##*/dev-} $ff_x"
for ff_k in bad_blocks unacknowledged_bad_blocks; do
while read -r ff_x; do echo "$1 $ff_k ${ff_f##*/dev-} $ff_x"; done <"$ff_f/$ff_k"
done
done
ff_live && echo "$1 peer live"
[ -d /sys/block/md0/md ] || { ff_served && echo "$1 peer served"; }
true
}"""
"""``array NAME VALUE``, ``leg NAME STATE``, ``bad_blocks LEG SECTOR COUNT``; of the connection ``peer
STATE``."""
LIVE: Final = """ff_live() {
{live}
return 1
}"""
"""On the primary: the far leg is connected."""
SERVED: Final = """ff_served() {
while read -r ff_x ff_f ff_k ff_c ff_y; do
[ "${ff_f##*:}" = {port} ] && [ "$ff_c" = 01 ] && return 0
done </proc/net/tcp
return 1
}"""
"""On the secondary: a connection to its service port is established."""
EVIDENCE: Final = """cat /proc/mdstat /proc/partitions >"$ff_d/status"
grep -r . /sys/block/md0/md/ >"$ff_d/config" 2>/dev/null
true"""


@dataclass(frozen=True, kw_only=True)
class MirrorState:
    """What ``ff_state`` prints. Numbers as in wire.drbd, for which a state record has fields."""

    has_array: bool = False
    degraded: int = 0
    sync_action: str = ""
    leg_states: Mapping[str, str] = field(default_factory=dict)
    bad_sectors: int = 0
    """Sectors that a leg lacks although the host's writes to them were acknowledged."""
    peer: str = ""
    """live: the primary's far leg is connected; served: the secondary has a client; else the word of
    the kernel, or ""."""

    @property
    def role(self) -> int:
        if self.has_array:
            return drbd.Role.PRIMARY
        return drbd.Role.SECONDARY if self.peer == "served" else drbd.Role.UNKNOWN

    @property
    def is_resting(self) -> bool:
        """md copies nothing. A check, which a timer starts each month, only reads."""
        return self.sync_action in ("", "idle", "frozen", "check")

    @property
    def conn(self) -> int:
        if self.peer in ("live", "served"):
            is_copying = not self.is_resting
            return drbd.Conn.SYNC_SOURCE if is_copying else drbd.Conn.CONNECTED
        return drbd.Conn.WF_CONNECTION if self.has_array else drbd.Conn.STANDALONE

    @property
    def disk(self) -> int:
        return drbd.Disk.UP_TO_DATE

    @property
    def peer_disk(self) -> int:
        if self.peer not in ("live", "served"):
            return drbd.Disk.UNKNOWN
        is_whole = not self.degraded and not self.bad_sectors and self.conn == drbd.Conn.CONNECTED
        return drbd.Disk.UP_TO_DATE if is_whole else drbd.Disk.INCONSISTENT

    @property
    def counters(self) -> Mapping[str, int]:
        return {"oos": -(-self.bad_sectors // SECTORS_PER_KIB)}

    @property
    def pair_detail(self) -> str:
        if self.bad_sectors:
            return f"{self.bad_sectors} sectors of acknowledged writes were refused by a leg: md's bad_blocks"
        if self.has_array and self.peer != "live":
            return "the far leg is not connected"
        if self.degraded:
            return f"{self.degraded} leg is missing, md: {self.sync_action}"
        return f"md: {self.sync_action}" if self.sync_action not in ("", "idle") else ""

    @property
    def pair_state(self) -> PairState:
        if not self.has_array:
            return PairState.FULL_DUPLEX if self.peer == "served" else PairState.SIMPLEX
        if self.peer != "live":
            return PairState.SUSPENDED
        has_failed = any("faulty" in state for state in self.leg_states.values())
        if self.degraded and self.is_resting:
            return PairState.SUSPENDED
        is_whole = not self.degraded and self.is_resting and not self.bad_sectors
        return PairState.FULL_DUPLEX if is_whole and not has_failed else PairState.COPY_PENDING


def parse_state(text: str) -> MirrorState:
    """Unknown lines are left out; nothing that is known: a node that stands alone."""
    values: dict[str, str] = {}
    legs: dict[str, str] = {}
    bad_sectors, peer = 0, ""
    for line in text.splitlines():
        match line.split():
            case ["array", name, value]:
                values[name] = value
            case ["leg", name, *states]:
                legs[name] = " ".join(states)
            case ["bad_blocks" | "unacknowledged_bad_blocks", _, _, count]:
                is_number = count.isascii() and count.isdecimal() and len(count) < 14
                bad_sectors += int(count) if is_number else 1
            case ["peer", state]:
                peer = state
            case _:
                pass
    degraded = values.get("degraded", "0")
    return MirrorState(
        has_array=values.get("array_state", "clear") not in ("clear", "inactive"),
        degraded=int(degraded) if degraded.isascii() and degraded.isdecimal() and len(degraded) < 6 else 0,
        sync_action=values.get("sync_action", ""),
        leg_states=legs,
        bad_sectors=min(bad_sectors, MAX_SECTORS),
        peer=peer,
    )  # fmt: skip


def replication(model: str, *, live: str, port: int, complaints: str = "") -> Replication:
    """``live``: shell of builtins that returns 0 on the primary while the far leg is connected;
    ``port``: TCP port that the secondary serves it at; ``complaints``: see Scripts."""
    functions = (LIVE.replace("{live}", live), SERVED.replace("{port}", f"{port:04X}"), STATE)
    return Replication(
        model=model,
        scripts=Scripts(
            state="\n".join(functions),
            whole="""ff_whole() {
ff_live || ff_served
}""",
            evidence=EVIDENCE,
            complaints=complaints,
        ),
        parse=parse_state,
        is_state=_BASE,
        known=(BOOT_LINE,),
    )


SERVE: Final = """
# The mirror: made of two new disks that hold the same zeros, or put together again after a boot. Without a bitmap: md
# changes the bitmap's page while a write of it is under way, and its far leg finds a wrong digest on a healthy link.
serve() {
    # What is copied after a crash does not wait for the host's writes.
    echo 200000 >/proc/sys/dev/raid/speed_limit_min
    until connect; do usleep 300000; done
    if ! mdadm --assemble --run /dev/md0 /dev/vda "$far_leg" >/dev/null 2>&1; then
        mdadm --create /dev/md0 --run --assume-clean --level=1 --metadata=1.2 --data-offset=1M --bitmap=none \\
            --raid-devices=2 /dev/vda --write-mostly "$far_leg" >/dev/null 2>&1 || say "no mirror was made"
        say "new mirror"
    fi
    read -r offset </sys/block/md0/md/dev-vda/offset
    [ "$offset" = 2048 ] || say "the mirror's data begin at sector $offset"
    while :; do mend; sleep 1; done &
}
# A leg that md gave up comes back, and is copied whole.
mend() {
    name=${far_leg##*/}
    state=$(cat /sys/block/md0/md/dev-$name/state 2>/dev/null)
    case ",$state," in
        *,faulty,*|,,) ;;
        *) return ;;
    esac
    mdadm /dev/md0 --remove detached >/dev/null 2>&1
    mdadm /dev/md0 --remove "$far_leg" >/dev/null 2>&1
    connect && mdadm /dev/md0 --add --write-mostly "$far_leg" >/dev/null 2>&1 && say "the far leg is back"
}
"""
"""``connect`` is true once "$far_leg" is there."""


def pair(
    name: str,
    *,
    protocol: str,
    modules: tuple[str, ...],
    setup: str,
    packages: tuple[str, ...] = (),
    binaries: Mapping[str, str] | None = None,
) -> NodePair:
    return NodePair(
        name=name,
        protocol=protocol,
        packages=("mdadm", "libudev1", *packages),
        shown_version_of="mdadm",
        modules=("raid1", *modules),
        binaries={"sbin/mdadm": "sbin/mdadm", **(binaries or {})},
        setup=setup + SERVE,
        host_device="/dev/md0",
        host_offset_bytes=DATA_OFFSET_BYTES,
    )
