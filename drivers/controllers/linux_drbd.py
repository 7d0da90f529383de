"""LinuxDrbd: a Linux node that replicates with DRBD 8.4 or 9. All that is DRBD's about such a node: its
state, its lines, and the pair of virtual nodes (``freezeframe.harness.rigs``)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from freezeframe.drivers.controllers.linux_node import LinuxNode, LinuxNodeBreak
from freezeframe.drivers.controllers.linux_records import BOOT_LINE, Replication
from freezeframe.drivers.controllers.linux_scripts import Scripts
from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.wire import drbd, drbdnames
from freezeframe.harness.wire.control import PairState

SCRIPTS: Final = Scripts(
    state="""ff_state() {
while read -r ff_x; do echo "$1 $ff_x"; done </proc/drbd
}""",
    complaints='*"Digest integrity check FAILED"*|*"Local IO failed in drbd_endio_write_sec"*',
    whole="""ff_whole() {
ff_c=
while read -r ff_x ff_y ff_z; do [ "$ff_x" = 0: ] && ff_c=$ff_y; done </proc/drbd
[ "$ff_c" = cs:Connected ]
}""",
    evidence="""drbdsetup show >"$ff_d/config"
drbdsetup status --verbose --statistics >"$ff_d/status" || drbdsetup events all --now >"$ff_d/status"
true""",
)
NODE_PAIR: Final = NodePair(
    name="drbd",
    protocol="drbd",
    packages=("drbd-utils",),
    shown_version_of="drbd-utils",
    modules=("drbd",),
    module_options={"drbd": "usermode_helper=/bin/true"},
    # This drbdsetup controls the 8.4 module of the kernel.
    binaries={"sbin/drbdmeta": "sbin/drbdmeta", "lib/drbd/drbdsetup-84": "sbin/drbdsetup"},
    has_metadata_disk=True,
    host_device="/dev/drbd0",
    setup=r"""
configure() {
    if ! drbdmeta 0 v08 /dev/vdb flex-external get-gi >/dev/null 2>&1; then
        drbdmeta --force 0 v08 /dev/vdb flex-external create-md >/dev/null 2>&1
        say "new metadata"
    fi
    # After a crash: what the activity log covers is marked out of sync, as drbdadm does before it attaches.
    drbdmeta --force 0 v08 /dev/vdb flex-external apply-al >/dev/null 2>&1
    drbdsetup new-resource r0
    drbdsetup new-minor r0 0 0
    drbdsetup attach 0 /dev/vda /dev/vdb flexible
    drbdsetup connect r0 "ipv4:$ff_address:7788" "ipv4:$ff_peer:7788" --protocol C --data-integrity-alg crc32c \
        --ping-int 2 --timeout 20 --ko-count 2 --connect-int 1
}
drbd() { grep -q "^ 0: .*$1" /proc/drbd; }
serve() {
    tries=0
    until drbd cs:Connected || [ $tries -ge ${ff_peer_wait:-100} ]; do tries=$((tries + 1)); usleep 100000; done
    # Two new disks hold the same zeros: no need to copy them.
    drbd 'cs:Connected .*ds:Inconsistent/Inconsistent' && drbdsetup new-current-uuid 0 --clear-bitmap
    until drbd 'ds:\(UpToDate\|Consistent\)/' && drbdsetup primary 0; do usleep 100000; done
}
""",
)

CONN: Final[dict[str, int]] = {
    **{name: int(conn) for conn, name in drbdnames.CONN_NAMES.items()},
    # DRBD 9 (not run here): its names where they differ.
    "Connecting": drbd.Conn.WF_CONNECTION,
    "Established": drbd.Conn.CONNECTED,
}
DISK: Final[dict[str, int]] = {
    **{name: int(disk) for disk, name in drbdnames.DISK_NAMES.items()},
    "Detaching": drbd.Disk.FAILED,  # DRBD 9
}
ROLE: Final[dict[str, int]] = {"Unknown": 0, "Primary": 1, "Secondary": 2}
_STATE: Final = re.compile(r"^ *\d+: cs:(\w+) ro:(\w+)/(\w+) ds:(\w+)/(\w+)(?: |$)", re.M)
_COUNTER: Final = re.compile(r"\b(ns|nr|dw|dr|al|bm|lo|pe|ua|ap|ep|oos):(\d+)")


@dataclass(frozen=True, kw_only=True)
class DrbdState:
    """The first volume of /proc/drbd (8.4). Numbers as in wire.drbd."""

    role: int = drbd.Role.UNKNOWN
    peer_role: int = drbd.Role.UNKNOWN
    conn: int = drbd.Conn.STANDALONE
    disk: int = drbd.Disk.DISKLESS
    peer_disk: int = drbd.Disk.UNKNOWN
    counters: Mapping[str, int] = field(default_factory=dict)
    """Documented in drbdsetup(8): oos is in KiB."""

    @property
    def pair_detail(self) -> str:
        return ""

    @property
    def pair_state(self) -> PairState:
        """Full duplex only when one of them is primary: before that the pair serves no host."""
        if self.conn in (drbd.Conn.STANDALONE, drbd.Conn.DISCONNECTING):
            return PairState.SIMPLEX
        if self.conn < drbd.Conn.CONNECTED:
            return PairState.SUSPENDED
        in_sync = (
            self.conn == drbd.Conn.CONNECTED and self.disk == self.peer_disk == drbd.Disk.UP_TO_DATE
        )
        has_primary = drbd.Role.PRIMARY in (self.role, self.peer_role)
        return PairState.FULL_DUPLEX if in_sync and has_primary else PairState.COPY_PENDING


def parse_proc_drbd(text: str) -> DrbdState:
    """An absent volume, or unknown words, read as a node that stands alone without a disk."""
    found = _STATE.search(text)
    if found is None:
        return DrbdState()
    conn, role, peer_role, disk, peer_disk = found.groups()
    counters = {name: int(value[:18]) for name, value in _COUNTER.findall(text[found.end() :])}
    return DrbdState(
        role=ROLE.get(role, 0),
        peer_role=ROLE.get(peer_role, 0),
        conn=CONN.get(conn, drbd.Conn.STANDALONE),
        disk=DISK.get(disk, drbd.Disk.DISKLESS),
        peer_disk=DISK.get(peer_disk, drbd.Disk.UNKNOWN),
        counters=counters,
    )


KNOWN: Final = (
    BOOT_LINE,
    ("REPL_DIGEST_FAILED", re.compile(r"Digest integrity check FAILED: (\d{1,18})s \+(\d{1,9})")),
    (
        "REPL_BUFFER_CHANGED",
        re.compile(
            r"Digest mismatch, buffer modified by upper layers during write: (\d{1,18})s \+(\d{1,9})"
        ),
    ),
)
"""Lines that prove something of one write. The last is the sender's second look: with an
integrity-alg it makes the digest again when the data are in the socket (drbd_send_dblock, 8.4 and
9), and tells when its buffer has changed meanwhile."""


_CHANGE: Final = re.compile(r"\b(role|peer|conn|disk|pdsk)\( \w+ -> (\w+) \)")


def state_of_log(log: str) -> str:
    """The last state that DRBD told of itself, in the words of /proc/drbd; empty: it told of
    none."""
    seen = {
        "conn": "StandAlone",
        "role": "Secondary",
        "peer": "Unknown",
        "disk": "Diskless",
        "pdsk": "DUnknown",
    }
    changes = [
        found for line in log.splitlines() if "drbd" in line for found in _CHANGE.findall(line)
    ]
    if not changes:
        return ""
    seen |= dict(changes)
    return (
        f" 0: cs:{seen['conn']} ro:{seen['role']}/{seen['peer']} ds:{seen['disk']}/{seen['pdsk']}"
    )


REPLICATION: Final = Replication(
    model="Linux DRBD",
    scripts=SCRIPTS,
    parse=parse_proc_drbd,
    is_state=_STATE,
    state_of_log=state_of_log,
    known=KNOWN,
)


class LinuxDrbd(LinuxNode):
    """A node with DRBD, by a shell line of its own."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR


class LinuxDrbdBreak(LinuxNodeBreak):
    """A node with DRBD, by its console alone."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR
