"""Capture one interface with an AF_PACKET TPACKET_V3 ring, which the kernel fills and this process
maps.

The kernel timestamps every frame (CLOCK_REALTIME, ns) and hands over whole blocks, when they are
full or after ``RETIRE_MS``. No frame costs a system call. A block is converted into a run of
pcapng enhanced packet blocks and returned to the kernel at once. ``statistics`` counts the frames
that the kernel dropped.

Layouts: ``linux/if_packet.h`` (struct tpacket_req3, tpacket_block_desc), native byte order.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import mmap
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.skim import Run, ring_block
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.edge.netns import Namespace
from freezeframe.harness.errors import RigError

DEFAULT_RING_BYTES: Final = 64 << 20
BLOCK_BYTES: Final = 128 << 10
"""Block size. It holds the largest frame of segmentation offload (64 KiB) and divides the ring
finely: on a quiet link each block covers only RETIRE_MS, so that 512 blocks outlast a stall of
this process of one second."""
RETIRE_MS: Final = 2
"""A block that is not full is handed over after this time. It limits how late a trigger can be
seen."""
CLOCK_STEP_NS: Final = NS_PER_MS
"""A larger change of the difference between CLOCK_REALTIME and CLOCK_MONOTONIC is a step of the
clock. NTP slews both alike."""

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 1, 5, 6, 10
_PACKET_MR_PROMISC: Final = 1
_TPACKET_V3: Final = 2
_TP_STATUS_KERNEL, _TP_STATUS_USER, _TP_STATUS_LOSING = 0, 1, 4
_REQ3: Final = struct.Struct("@7I")
"""block_size, block_nr, frame_size, frame_nr, retire_blk_tov (ms), sizeof_priv,
feature_req_word."""
_FRAME_SIZE: Final = 2048
"""Only used in the arithmetic of the kernel; frames of TPACKET_V3 have individual lengths."""
_BLOCK_STATUS: Final = struct.Struct("@I")
_BLOCK_STATUS_AT: Final = 8
_STATS3: Final = struct.Struct("@III")
"""tp_packets (dropped ones included), tp_drops, tp_freeze_q_cnt; reading resets them."""
_MREQ: Final = struct.Struct("@iHH8s")
_SIOCGIFFLAGS, _SIOCGIFNAME = 0x8913, 0x8910
_IFF_UP, _IFF_RUNNING = 1, 0x40
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A
_ETHTOOL_VALUE = struct.Struct("=II")
_IFREQ_POINTER = struct.Struct("@16sP16x")
_IFREQ: Final = struct.Struct("@16sh22x")
_IFREQ_INDEX: Final = struct.Struct("@16si20x")


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """Counters since the ring was opened."""

    received: int
    """Frames that reached the socket, dropped ones included."""
    dropped: int
    """Of these, frames for which the ring had no room."""
    freezes: int


class InterfaceGone(RigError):
    """The interface no longer exists."""


class PacketRing:
    """The open ring, for one reader. ``fileno`` becomes readable when a block is ready."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, interface: str, *, namespace: str | None = None, ring_bytes: int = DEFAULT_RING_BYTES
    ) -> None:
        """Capture all frames of ``interface`` in the network namespace at the path ``namespace``,
        in promiscuous mode.

        Raises RigError: no such interface (the message lists those that exist), it is down, or
        CAP_NET_RAW is missing.
        """
        self.interface = interface
        self.namespace = namespace
        self._blocks = max(2, ring_bytes // BLOCK_BYTES)
        self._at = 0
        self._received = self._dropped = self._freezes = 0
        self.realtime_offset_ns = _clock_offset_ns()
        """CLOCK_REALTIME minus CLOCK_MONOTONIC, as last measured."""
        self.clock_steps = 0
        """Number of changes of that difference: the clock was set."""
        self.has_lost = False
        """A block read since the last ``statistics`` reports dropped frames."""
        if namespace is None:
            self._socket, self._index = _open_socket(interface, namespace)
        else:
            entry = Namespace.open(namespace)
            with contextlib.closing(entry):
                self._socket, self._index = entry.run(lambda: _open_socket(interface, namespace))
        try:
            self._map = self._make_ring()
            self._socket.bind((interface, _ETH_P_ALL))
            wanted = _MREQ.pack(self._index, _PACKET_MR_PROMISC, 0, bytes(8))
            self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
        except OSError as error:
            self._socket.close()
            raise RigError(f"cannot capture on {interface}: {error.strerror}") from error
        self._view = memoryview(self._map)
        self._out = memoryview(bytearray(BLOCK_BYTES))
        """A frame takes less room in a capture file than in the ring."""
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN | select.POLLERR)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read_run(self, timeout_s: float = 0.0) -> Run | None:
        """Return the frames of the next block, valid until the next call; None when none comes in
        time. If the clock was set during the block, its timestamps are partly from before and
        partly from after.

        Raises InterfaceGone when the interface has vanished. While it is only down, no frames
        come.
        """
        status = self._status()
        if status & _TP_STATUS_USER == 0:
            for _, ready in self._poller.poll(max(0, round(timeout_s * 1000))):
                if ready & select.POLLERR:
                    self._check_error()
            status = self._status()
            if status & _TP_STATUS_USER == 0:
                return None
        self.has_lost = self.has_lost or bool(status & _TP_STATUS_LOSING)
        if abs(time.time_ns() - time.monotonic_ns() - self.realtime_offset_ns) > CLOCK_STEP_NS:
            self._measure_clock()
        at = self._at * BLOCK_BYTES
        try:
            with self._view[at : at + BLOCK_BYTES] as block:
                used, frames, bytes_captured, t_first_ns, t_last_ns = ring_block(block, self._out)
        except ValueError as error:
            raise RigError(f"capture on {self.interface}: {error}") from error
        _BLOCK_STATUS.pack_into(self._map, at + _BLOCK_STATUS_AT, _TP_STATUS_KERNEL)
        self._at = (self._at + 1) % self._blocks
        return Run(self._out[:used], frames, bytes_captured, t_first_ns, t_last_ns)

    def is_drained(self) -> bool:
        """The kernel has handed over no block that was not read."""
        return self._status() & _TP_STATUS_USER == 0

    def down(self) -> str:
        """Return why no frame can come now; "": the interface is up and has a carrier."""
        try:
            flags = _flags(self._socket, self.interface)
        except OSError:
            return ""  # it has gone, which ``read_run`` reports
        if not flags & _IFF_UP:
            return f"the interface {self.interface} was set down"
        if not _has_carrier(self._socket, self.interface, flags):
            return (
                f"the interface {self.interface} has no carrier: its cable is out, or what is at its other end "
                "is off"
            )
        return ""

    def monotonic(self, realtime_ns: int) -> Ns:
        """Convert a frame timestamp to CLOCK_MONOTONIC."""
        return realtime_ns - self.realtime_offset_ns

    def statistics(self) -> RingStatistics:
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATS3.size)
        self.has_lost = False
        received, dropped, freezes = _STATS3.unpack(raw)
        self._received += received
        self._dropped += dropped
        self._freezes += freezes
        return RingStatistics(self._received, self._dropped, self._freezes)

    def close(self) -> None:
        self._view.release()
        self._map.close()
        self._socket.close()

    def _make_ring(self) -> mmap.mmap:
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        size = self._blocks * BLOCK_BYTES
        frames = size // _FRAME_SIZE
        request = _REQ3.pack(BLOCK_BYTES, self._blocks, _FRAME_SIZE, frames, RETIRE_MS, 0, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        return mmap.mmap(
            self._socket.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )

    def _status(self) -> int:
        status: int = _BLOCK_STATUS.unpack_from(
            self._map, self._at * BLOCK_BYTES + _BLOCK_STATUS_AT
        )[0]
        return status

    def _measure_clock(self) -> None:
        offset_ns = _clock_offset_ns()
        if (
            abs(offset_ns - self.realtime_offset_ns) > CLOCK_STEP_NS
        ):  # otherwise this process was delayed in between
            self.realtime_offset_ns = offset_ns
            self.clock_steps += 1

    def _check_error(self) -> None:
        """Handle a socket error: the interface went down or vanished. Both are reported as
        ENETDOWN."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ_INDEX.pack(b"", self._index))
        except OSError as error:
            raise InterfaceGone(f"interface {self.interface} has disappeared") from error
        if number not in (0, errno.ENETDOWN):
            raise RigError(f"capture on {self.interface}: {errno.errorcode.get(number, number)}")


def _clock_offset_ns() -> int:
    reading = read_wall_clock()
    return reading.wall_ns - reading.monotonic_ns


def _flags(any_socket: socket.socket, interface: str) -> int:
    """The interface's flags, in the namespace of the socket."""
    reply = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(interface.encode(), 0))
    flags: int = _IFREQ.unpack(reply)[1]
    return flags


def _has_carrier(any_socket: socket.socket, interface: str, flags: int) -> bool:
    """As the driver sees it now. The flag IFF_RUNNING follows up to a second later (the kernel's
    link watch): it decides only where the driver cannot be asked."""
    value = array.array("B", _ETHTOOL_VALUE.pack(_ETHTOOL_GLINK, 0))
    request = _IFREQ_POINTER.pack(interface.encode(), value.buffer_info()[0])
    try:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    except OSError:
        return bool(flags & _IFF_RUNNING)
    return bool(_ETHTOOL_VALUE.unpack(value)[1])


def _open_socket(interface: str, namespace: str | None) -> tuple[socket.socket, int]:
    """Return an AF_PACKET socket in the namespace of the thread that receives nothing yet, and the
    index of the interface."""
    where = f" in namespace {namespace}" if namespace else ""
    names = [name for _, name in socket.if_nameindex()]
    if interface not in names:
        raise RigError(
            f"there is no interface {interface!r}{where}; there are: {', '.join(sorted(names)) or 'none'}"
        )
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    except PermissionError as error:
        raise RigError(
            f"capturing on {interface} needs the capability CAP_NET_RAW: run as root, or in a user namespace"
        ) from error
    except OSError as error:
        raise RigError(f"no packet socket can be made: {error.strerror}") from error
    try:
        if not _flags(opened, interface) & _IFF_UP:
            raise RigError(f"interface {interface}{where} is down: ip link set {interface} up")
        return opened, socket.if_nametoindex(interface)
    except BaseException:
        opened.close()
        raise
