"""LinuxNbd: a node of a Linux mirror over NBD. The secondary serves its disk with nbdkit, the primary
connects with the kernel's NBD client and mirrors with md.

NBD has no digest: nobody complains of a byte that changed on the way. The kernel's client does not
come back by itself after its connection broke; the rig's primary connects it again.
"""

from typing import ClassVar, Final

from freezeframe.drivers.controllers import linux_mirror
from freezeframe.drivers.controllers.linux_node import LinuxNode, LinuxNodeBreak
from freezeframe.drivers.controllers.linux_records import Replication
from freezeframe.harness.core.nodepair import NodePair

PORT: Final = 10809
LIVE: Final = "[ -r /sys/block/nbd0/pid ] && return 0"
REPLICATION: Final = linux_mirror.replication("Linux NBD mirror", live=LIVE, port=PORT)
NODE_PAIR: Final = linux_mirror.pair(
    "nbd",
    protocol="nbd",
    packages=("nbd-client", "libnl-3-200", "libnl-genl-3-200"),
    binaries={"sbin/nbd-client": "sbin/nbd-client"},
    modules=("nbd",),
    setup=r"""
far_leg=/dev/nbd0
configure() {
    [ "$ff_role" = secondary ] || return
    # A write is answered once it is on the disk.
    (while :; do
        /bin/nbdkit -f -i "$ff_address" -p 10809 --filter=/lib/nbdkit/fua.so /lib/nbdkit/file.so /dev/vda fuamode=force
        say "nbdkit ended with status $?"
        usleep 500000
    done) &
}
connect() {
    [ -r /sys/block/nbd0/pid ] && return
    nbd-client -d $far_leg >/dev/null 2>&1
    nbd-client "$ff_peer" 10809 $far_leg -timeout 10 >/dev/null 2>&1
}
""",
)


class LinuxNbd(LinuxNode):
    """A node of the mirror, by a shell line of its own."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR


class LinuxNbdBreak(LinuxNodeBreak):
    """A node of the mirror, by its console alone."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR
