"""Create the cables of a virtual rig: tap devices in an unnamed namespace, and raw sockets on
them.

Each node has two: ``repl-SIDE`` is its end of the replication link, which the injector connects
with the other one; ``host-SIDE`` is the cable of the host, with an address of the harness on it.
All of it disappears with the last process that holds the namespace open.
"""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge.netns import INTERFACE, Namespace, disable_offloads
from freezeframe.harness.errors import RigError

TUN_DEVICE: Final = "/dev/net/tun"
TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("@16sH22x")
ETH_P_ALL: Final = 0x0003
SOL_PACKET: Final = 263
PACKET_IGNORE_OUTGOING: Final = 23
"""<linux/if_packet.h>: the injector does not receive its own frames."""
PACKET_BUFFER_BYTES: Final = 8 << 20
"""Socket buffer: many times the send window of a node."""

REPLICATION_ADDRESSES: Final[dict[Side, str]] = {"primary": "10.77.0.1", "secondary": "10.77.0.2"}
HOST_NETWORKS: Final[dict[Side, str]] = {"primary": "10.78.1", "secondary": "10.78.2"}
"""Addresses on the cable of the host: the host is .1, the node .2."""


MIRROR: Final = "mirror"
"""Interface on which the link is captured, like the mirror port of a switch: every frame as
delivered, after the injector."""
_MIRROR_IN: Final = "mirror-in"


def replication_interface(side: Side) -> str:
    return f"repl-{side}"


@dataclass
class Wiring:
    """All cables, connected at the end of the harness."""

    namespace: Namespace
    taps: dict[Side, tuple[int, int]] = field(default_factory=dict)
    """Descriptors of the replication and host devices of each node, for QEMU."""
    packets: dict[Side, socket.socket] = field(default_factory=dict)
    """Raw sockets on both ends of the replication link, for frames from and to the node of that
    side."""
    mirror: socket.socket | None = None
    """Frames sent into it come out of MIRROR."""
    outside: Namespace | None = None
    """Namespace in which another controller can replace one node: its end of the link is INTERFACE
    there."""

    def close(self) -> None:
        if self.outside is not None:
            self.outside.close()
        for end in self.packets.values():
            end.close()
        if self.mirror is not None:
            self.mirror.close()
        for pair in self.taps.values():
            for fd in pair:
                os.close(fd)
        self.taps.clear()
        self.namespace.close()


def lay(mtu_bytes: int, outside: Side | None = None) -> Wiring:
    """Create namespace, devices and sockets. ``outside`` is the side without a node. Raises
    RigError: what the kernel refused."""
    wiring = Wiring(Namespace.create())
    try:
        wiring.mirror = wiring.namespace.run(lambda: _mirror(mtu_bytes))
        for side in SIDES:
            if side == outside:
                wiring.outside = Namespace.create()
                _lay_outside(wiring.namespace, wiring.outside, side, mtu_bytes)
            else:
                wiring.taps[side] = wiring.namespace.run(partial(_tap_pair, side, mtu_bytes))
            wiring.packets[side] = wiring.namespace.run(
                partial(_packet_socket, replication_interface(side))
            )
    except BaseException:
        wiring.close()
        raise
    return wiring


def _mirror(mtu_bytes: int) -> socket.socket:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            route.link("add", ifname=_MIRROR_IN, kind="veth", peer={"ifname": MIRROR})
            for name in (_MIRROR_IN, MIRROR):
                with contextlib.suppress(OSError):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
                disable_offloads(name)
                route.link(
                    "set", index=route.link_lookup(ifname=name)[0], mtu=mtu_bytes, state="up"
                )
    except (NetlinkError, OSError) as error:
        raise RigError(f"cannot set up the link's mirror port: {error}") from error
    return _packet_socket(_MIRROR_IN)


def _lay_outside(inner: Namespace, outer: Namespace, side: Side, mtu_bytes: int) -> None:
    """Create a veth pair in place of the tap of a node; frames are sent and received in the same
    way."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    name = replication_interface(side)

    def inside() -> None:
        with IPRoute() as route:
            peer = {"ifname": INTERFACE, "net_ns_fd": outer.fd}
            route.link("add", ifname=name, kind="veth", peer=peer)
            disable_offloads(name)
            route.link("set", index=route.link_lookup(ifname=name)[0], mtu=mtu_bytes, state="up")

    def outside() -> None:
        with IPRoute() as route:
            disable_offloads(INTERFACE)
            (index,) = route.link_lookup(ifname=INTERFACE)
            route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
            route.link("set", index=index, mtu=mtu_bytes)
            route.addr("add", index=index, address=REPLICATION_ADDRESSES[side], prefixlen=24)
            route.link("set", index=index, state="up")

    try:
        inner.run(inside)
        outer.run(outside)
    except (NetlinkError, OSError) as error:
        raise RigError(f"cannot set up the outside end of the link: {error}") from error


def _tap_pair(side: Side, mtu_bytes: int) -> tuple[int, int]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    names = (replication_interface(side), f"host-{side}")
    fds = tuple(_tap(name) for name in names)
    try:
        with IPRoute() as route:
            for name in names:
                with contextlib.suppress(OSError):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
                (index,) = route.link_lookup(ifname=name)
                if name == names[0]:
                    route.link("set", index=index, mtu=mtu_bytes)
                else:
                    route.addr("add", index=index, address=f"{HOST_NETWORKS[side]}.1", prefixlen=24)
                route.link("set", index=index, state="up")
    except (NetlinkError, OSError) as error:
        raise RigError(f"cannot set up the cables of the {side} node: {error}") from error
    return fds[0], fds[1]


def _tap(name: str) -> int:
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise RigError(
            f"{TUN_DEVICE}: {error.strerror}: the rig's cables are tap devices (module tun)"
        ) from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise RigError(f"cannot make the tap device {name}: {error.strerror}") from error
    return fd


def _packet_socket(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, option, PACKET_BUFFER_BYTES)
    end.bind((interface, ETH_P_ALL))
    end.setblocking(False)
    return end
