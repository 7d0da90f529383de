"""Create and enter network namespaces without names or mounts. An open descriptor holds each, so a
killed run leaves nothing.

Each of the two simulated controllers has a namespace. A veth pair joins them as the replication
link. Another process enters a namespace through ``/proc/PID/fd/N`` of the process that holds it.
Without root everything works inside a user namespace, in which ``ensure_privileges`` starts the
command again.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from freezeframe.harness.errors import RigError

INTERFACE: Final = "repl0"
"""Name of the interface of the replication link in both namespaces."""
PRIMARY_ADDRESS: Final = "10.77.0.1"
SECONDARY_ADDRESS: Final = "10.77.0.2"
PREFIX_BITS: Final = 24

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWNS: Final = 0x00020000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
"""Capabilities needed for namespaces, addresses and AF_PACKET sockets; bit numbers of
<linux/capability.h>."""
SIOCETHTOOL: Final = 0x8946
OFFLOADS: Final = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C, "rx-checksum": 0x15, "tx-checksum": 0x17}
"""ETHTOOL_S* commands of <linux/ethtool.h>, in the order in which the offloads are switched off."""
REEXEC_MARKER: Final = "FREEZEFRAME_USER_NAMESPACE"
"""Set in the environment of the command inside the user namespace, so that it does not start
again."""
PROBE_TIMEOUT_S: Final = 10.0

_IFREQ: Final = struct.Struct("@16sP")
_ETHTOOL_VALUE: Final = struct.Struct("@II")
_libc: Final = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Namespace:
    """One network namespace. It exists as long as a process is in it or a descriptor of it is
    open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "Namespace":
        """Create an empty namespace (its ``lo`` is down). Raises RigError when the kernel refuses."""

        def unshared() -> Namespace:
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise _refused("make a network namespace")
            return cls.open("/proc/thread-self/ns/net")

        return _in_thread(unshared)

    @classmethod
    def open(cls, path: str | Path) -> "Namespace":
        """Open the namespace at ``path``: /proc/PID/fd/N of the process that holds it,
        /run/netns/NAME, ..."""
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise RigError(f"network namespace {path}: {error.strerror}") from error

    @property
    def path(self) -> str:
        """Path by which other processes of this user open it, as long as this process holds it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a new thread inside the namespace. Sockets that it opens stay in
        the namespace.

        The thread ends afterwards: without root no thread may return to its previous namespace.
        """

        def inside() -> T:
            _set_namespace(self.fd)
            return function()

        return _in_thread(inside)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True, kw_only=True)
class LinkPair:
    """Both ends of a replication link."""

    primary: Namespace
    secondary: Namespace
    notes: tuple[str, ...] = ()
    """Settings that the kernel refused, for the incident: "primary: tx-checksum offload stays on:
    ..."."""
    keeps_order: bool = True
    """Whether frames arrive in the order in which they were sent, on any processor. If the kernel
    did not allow the setting, both ends must run on one processor, because other tools cannot read
    a capture with reordered segments well."""

    def close(self) -> None:
        self.primary.close()
        self.secondary.close()


def make_pair(*, mtu_bytes: int | None = None) -> LinkPair:
    """Create two namespaces joined by a veth pair, with addresses, up, offloads off: frames are
    captured at wire size and with valid checksums. Raises RigError when the kernel refuses a step.
    """
    primary = Namespace.create()
    try:
        secondary = Namespace.create()
    except RigError:
        primary.close()
        raise
    notes: list[str] = []
    try:
        primary.run(lambda: _add_veth(secondary.fd))
        for side, namespace, address in (
            ("primary", primary, PRIMARY_ADDRESS),
            ("secondary", secondary, SECONDARY_ADDRESS),
        ):
            # Offloads first, so that frames sent when the link comes up are segmented too.
            notes += [
                f"{side}: {note}" for note in namespace.run(lambda: disable_offloads(INTERFACE))
            ]
            namespace.run(lambda address=address: _bring_up(address, mtu_bytes))  # type: ignore[misc]
    except BaseException:
        primary.close()
        secondary.close()
        raise
    keeps_order = all(namespace.run(_steer_to_one_processor) for namespace in (primary, secondary))
    return LinkPair(
        primary=primary, secondary=secondary, notes=tuple(notes), keeps_order=keeps_order
    )


def _add_veth(peer_namespace_fd: int) -> None:
    with _netlink("join the namespaces") as route:
        route.link(
            "add",
            ifname=INTERFACE,
            kind="veth",
            peer={"ifname": INTERFACE, "net_ns_fd": peer_namespace_fd},
        )


def _bring_up(address: str, mtu_bytes: int | None) -> None:
    with _netlink(f"set up {INTERFACE}") as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
        (index,) = route.link_lookup(ifname=INTERFACE)
        if mtu_bytes is not None:
            route.link("set", index=index, mtu=mtu_bytes)
        route.addr("add", index=index, address=address, prefixlen=PREFIX_BITS)
        # No router solicitations between the replicated writes.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6").write_text("1")
        route.link("set", index=index, state="up")


def _steer_to_one_processor() -> bool:
    """Let one queue carry all frames of ``interface``. False: not allowed.

    A veth processes each frame on the processor that sends it, so two frames of a stream can be
    reordered. Receive packet steering puts them into one queue. Its setting is in sysfs, which
    shows the devices of the namespace in which it was mounted, so it is mounted again for this
    thread only.
    """
    try:
        if _libc.unshare(CLONE_NEWNS) != 0:
            return False
        private = _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        if not private or _libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None) != 0:
            return False
        with Path(f"/sys/class/net/{INTERFACE}/queues/rx-0/rps_cpus").open("w") as switch:
            switch.write("1")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    """Open a route socket in the namespace of the calling thread. Turns errors of pyroute2 into
    RigError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except (NetlinkError, OSError) as error:
        raise RigError(f"cannot {what}: {error}") from error


def disable_offloads(interface: str) -> list[str]:
    """Switch off the offloads of ``interface`` that hide the frames of the wire from a capture.

    Returns the settings that the driver refused. Offloads that the device does not have are not
    mentioned.
    """
    notes = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        for name, command in OFFLOADS.items():
            value = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(command, 0))
            request = _IFREQ.pack(interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(channel, SIOCETHTOOL, request)
            except OSError as error:
                notes.append(f"{name} offload stays on: {error.strerror}")
    return notes


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise _refused("enter a network namespace")


def _refused(what: str) -> RigError:
    number = ctypes.get_errno()
    return RigError(f"cannot {what}: {os.strerror(number)} (needs CAP_SYS_ADMIN)")


def _in_thread(function: Callable[[], T]) -> T:
    """Call ``function`` in a new thread, which ends with its namespace: the caller's is
    untouched."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=call, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


# --- privileges ---------------------------------------------------------------------------------------------
def missing_capabilities() -> list[str]:
    """Return the names of the CAPABILITIES that this process does not have."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    return list(CAPABILITIES)


def ensure_privileges(argv: Sequence[str]) -> None:
    """Return if this process may create namespaces; otherwise run ``argv`` in its place inside a
    user namespace.

    Call it before any thread or child exists, and only for a simulated bench: the interfaces of
    the machine are not reachable from inside. Raises RigError that names the missing setting or
    capability.
    """
    missing = missing_capabilities()
    if not missing:
        return
    why = (
        "the user namespace gave no capabilities"
        if REEXEC_MARKER in os.environ
        else user_namespace_problem()
    )
    if why:
        raise RigError(
            f"cannot make a simulated bench's network namespaces: {', '.join(missing)} missing, and {why}"
        )
    os.execvpe("unshare", [*_UNSHARE, "--", *argv], {**os.environ, REEXEC_MARKER: "1"})


def join_holder(namespace: str, argv: Sequence[str]) -> None:
    """Return if this process may enter the network namespace at ``namespace``; otherwise run
    ``argv`` in its place inside the user namespace of the process that holds it. This happens when
    the same user simulated the bench without root.

    Call it before any thread or child exists. A namespace that cannot be joined is reported when
    it is entered.
    """
    path = Path(namespace)
    holder = re.match(r"/proc/(\d+)/", str(path.readlink() if path.is_symlink() else path))
    if holder is None or not missing_capabilities() or REEXEC_MARKER in os.environ:
        return
    with contextlib.suppress(OSError):
        theirs, ours = (Path("/proc", pid, "ns/user").stat().st_ino for pid in (holder[1], "self"))
        if theirs != ours:
            nsenter = ["nsenter", "--user", "--preserve-credentials", "--target", holder[1], "--"]
            os.execvpe(nsenter[0], [*nsenter, *argv], {**os.environ, REEXEC_MARKER: "1"})


_UNSHARE: Final = ("unshare", "--user", "--map-root-user")


def user_namespace_problem() -> str:
    """Return why no user namespace that can hold network namespaces can be created; "": it can."""
    if shutil.which(_UNSHARE[0]) is None:
        return "the command unshare is not there (Debian package util-linux)"
    try:
        probe = subprocess.run(
            [*_UNSHARE, "--net", "--", "true"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"unshare did not answer within {PROBE_TIMEOUT_S:.0f} s"
    if probe.returncode == 0:
        return ""
    return explain_refusal(probe.stderr.strip(), _settings())


_FORBIDDING: Final = {
    "kernel.unprivileged_userns_clone": (0, 1),
    "user.max_user_namespaces": (0, 10000),
    "user.max_net_namespaces": (0, 10000),
    "kernel.apparmor_restrict_unprivileged_userns": (1, 0),
}
"""Kernel setting -> (value that forbids user namespaces, value to set)."""


def _settings() -> dict[str, int]:
    values = {}
    for name in _FORBIDDING:
        with contextlib.suppress(OSError, ValueError):
            values[name] = int(Path("/proc/sys", *name.split(".")).read_text())
    return values


def explain_refusal(message: str, settings: Mapping[str, int]) -> str:
    """Return the message of unshare, then the kernel setting that explains it, or else the missing
    capability."""
    for name, (forbidding, remedy) in _FORBIDDING.items():
        if settings.get(name) == forbidding:
            return (
                f"the kernel forbids user namespaces ({message}): {name} = {forbidding}; "
                f"`sudo sysctl -w {name}={remedy}` allows them, or run as root"
            )
    return f"the kernel forbids user namespaces ({message}): run as root or give CAP_SYS_ADMIN to the container"
