"""LinuxNvme: a node of a Linux mirror over NVMe/TCP. The secondary exports its disk with the kernel's
nvmet-tcp, the primary connects with nvme-tcp, with header and data digests, and mirrors with md.

Both nodes are set up through the kernel's own files, without nvme-cli. On the primary the far leg is
the multipath head ``nvme0n1``; the controller is the first one with a state.
"""

from typing import ClassVar, Final

from freezeframe.drivers.controllers import linux_mirror
from freezeframe.drivers.controllers.linux_node import LinuxNode, LinuxNodeBreak
from freezeframe.drivers.controllers.linux_records import Replication
from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.wire import nvme_tcp

LIVE: Final = """for ff_f in /sys/class/nvme/nvme*/state; do
[ -r "$ff_f" ] && read -r ff_x <"$ff_f" && [ "$ff_x" = live ] && return 0
done"""
REPLICATION: Final = linux_mirror.replication(
    "Linux NVMe/TCP mirror",
    live=LIVE,
    port=nvme_tcp.PORT,
    # nvmet says nothing of a write that its disk refused; the block layer does.
    complaints='*"nvmet_tcp: "*" digest error: "*|*"I/O error, dev "*"(WRITE)"*',
)
NODE_PAIR: Final = linux_mirror.pair(
    "nvme",
    protocol="nvme_tcp",
    modules=("nvme_tcp", "nvmet_tcp"),
    setup=r"""
nqn=nqn.2026-11.local.freezeframe:secondary
far_leg=/dev/nvme0n1
configure() {
    [ "$ff_role" = secondary ] || return
    mount -t configfs configfs /sys/kernel/config
    nvmet=/sys/kernel/config/nvmet
    subsystem=$nvmet/subsystems/$nqn
    port=$nvmet/ports/1
    mkdir $subsystem
    echo 1 >$subsystem/attr_allow_any_host
    mkdir $subsystem/namespaces/1
    echo /dev/vda >$subsystem/namespaces/1/device_path
    echo 1 >$subsystem/namespaces/1/enable
    mkdir $port
    echo tcp >$port/addr_trtype
    echo ipv4 >$port/addr_adrfam
    echo "$ff_address" >$port/addr_traddr
    echo 4420 >$port/addr_trsvcid
    ln -s $subsystem $port/subsystems/$nqn
}
connect() {
    [ -b $far_leg ] && return
    {
        printf %s "transport=tcp,traddr=$ff_peer,trsvcid=4420,nqn=$nqn,hostnqn=nqn.2026-11.local.freezeframe:primary,"
        printf %s "hostid=6f6fa5f1-27b4-4e4b-9c6c-0d2f4a1b7c01,reconnect_delay=1,ctrl_loss_tmo=600,"
        printf %s "keep_alive_tmo=${ff_keep_alive_s:-5},"
        printf %s "nr_io_queues=1,hdr_digest,data_digest"
    } >/run/nvme-options
    # One write is one controller: not in pieces.
    dd if=/run/nvme-options of=/dev/nvme-fabrics bs=4096 count=1 2>/dev/null || return
    tries=0
    until [ -b $far_leg ] || [ $tries -ge 50 ]; do tries=$((tries + 1)); usleep 100000; done
    [ -b $far_leg ]
}
""",
)


class LinuxNvme(LinuxNode):
    """A node of the mirror, by a shell line of its own."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR


class LinuxNvmeBreak(LinuxNodeBreak):
    """A node of the mirror, by its console alone."""

    replication: ClassVar[Replication] = REPLICATION
    node_pair: ClassVar[NodePair] = NODE_PAIR
