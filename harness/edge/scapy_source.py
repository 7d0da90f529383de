"""Frames that scapy sniffs, as the link watch takes them: scapy's AsyncSniffer on a socket ->
runs of frames.

The sniffer has a thread of its own. What it captures waits in a bounded queue; when the queue is
full the thread waits, so that frames are lost, and counted, only where the socket itself loses
them. An eventfd wakes the reader.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, Final

from scapy.config import conf
from scapy.packet import Packet, Raw
from scapy.sendrecv import AsyncSniffer
from scapy.sessions import DefaultSession

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link import linklayers
from freezeframe.harness.core.link.skim import Run, encode
from freezeframe.harness.core.link.skimpure import MAX_FRAME_BYTES
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.edge.netns import Namespace
from freezeframe.harness.edge.packet_ring import InterfaceGone, RingStatistics
from freezeframe.harness.edge.ring_socket import RingSocket
from freezeframe.harness.errors import HarnessError, RigError

MAX_QUEUED_BYTES: Final = 64 << 20
MAX_QUEUED_FRAMES: Final = 1 << 16
RUN_FRAMES: Final = 256
"""Most frames given out at once."""
CLOCK_STEP_NS: Final = NS_PER_MS
FOREIGN_CLOCK_NS: Final = NS_PER_S
"""A first frame whose time is further than this from ours was timed by another clock: a file, or a
remote machine. All its times are moved by the same amount."""
_LONGEST_BYTES: Final = 1 << 18
"""Scapy's own limit, 65,535 bytes, cuts the end off the frames that segmentation offload makes."""
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_STATISTICS: Final = struct.Struct("@II")
"""struct tpacket_stats: received (dropped ones included), dropped; reading resets them."""

_Queued = tuple[Ns, bytes, int]
"""Time, the Ethernet frame, its length on the wire."""


def open_socket(
    interface: str, *, namespace: str | None, ring_bytes: int, scapy_socket: str
) -> Any:
    """The ring as a scapy socket, or what the callable MODULE:ATTRIBUTE makes of ``interface``.
    RigError when that fails."""
    if not scapy_socket:
        # The judge reads the frames' bytes: dissecting each would cost most of the rate.
        return RingSocket(interface, namespace=namespace, ring_bytes=ring_bytes, layer=Raw)
    module, _, attribute = scapy_socket.partition(":")
    try:
        make: Any = importlib.import_module(module)
        for part in attribute.split("."):
            make = getattr(make, part)
        if namespace is None:
            opened = make(interface)
        else:
            entry = Namespace.open(namespace)
            with contextlib.closing(entry):
                opened = entry.run(lambda: _made_there(make, interface))
    except HarnessError:
        raise
    except Exception as error:
        raise RigError(
            f"scapy socket {scapy_socket} cannot be opened on {interface}: {type(error).__name__}: {error}"
        ) from error
    inner = getattr(opened, "ins", None)
    if isinstance(inner, socket.socket):
        # Scapy asks for 64 KiB, which one burst fills. Without the right to it, it stays so.
        with contextlib.suppress(OSError):
            inner.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, ring_bytes)
    return opened


def _made_there(make: Any, interface: str) -> Any:
    """In a thread inside the namespace, whose interfaces scapy has to read first."""
    conf.ifaces.reload()
    return make(interface)


class _Tap(DefaultSession):  # type: ignore[misc]
    """Counts what scapy has begun to read and what has been queued: when both are equal, nothing
    is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.done = 0
        self.error: Exception | None = None
        """Why the socket gives no more; scapy itself only prints it."""

    def recv(self, sock: Any) -> Any:
        self.begun += 1
        try:
            packet = sock.recv(_LONGEST_BYTES)
            if packet is not None:
                yield packet
        except Exception as error:
            self.error = error
            raise
        finally:
            self.done += 1


class ScapySource:
    """A FrameSource. Closes the socket that it was given."""

    def __init__(self, scapy_socket: Any, name: str) -> None:
        self._socket = scapy_socket
        self._name = name
        self._ring = scapy_socket.ring if isinstance(scapy_socket, RingSocket) else None
        self.realtime_offset_ns: Ns = _clock_offset_ns()
        self.clock_steps = 0
        self._received = self._dropped = 0
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._room = threading.Condition()
        self._closed = False
        self.notes: tuple[str, ...] = ()
        if self._ring is None and _packet_statistics(scapy_socket) is None:
            self.notes = (
                f"scapy's {type(scapy_socket).__name__} does not say how many frames it drops: a loss shows as a "
                "gap of the TCP streams only",
            )
        self._moved_ns: Ns | None = None
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._tap = _Tap()
        self._sniffer = AsyncSniffer(
            opened_socket=scapy_socket, store=False, prn=self._take, session=self._tap, quiet=True
        )
        self._sniffer.start()

    # --- the sniffer's thread ---------------------------------------------------------------------------
    def _take(self, packet: Packet) -> None:
        """Queue one frame, as soon as there is room for it."""
        t_ns = int(packet.time * NS_PER_S)
        if self._ring is None:
            t_ns = self._on_our_clock(t_ns)
        data = _ethernet(packet)
        with self._room:
            while not self._closed and (
                self._queued_bytes + len(data) > MAX_QUEUED_BYTES
                or len(self._queue) >= MAX_QUEUED_FRAMES
            ):
                self._room.wait()
            if self._closed:
                return
            self._queue.append((t_ns, data, max(packet.wirelen or 0, len(data))))
            self._queued_bytes += len(data)
            if len(self._queue) == 1:
                os.eventfd_write(self._event_fd, 1)

    def _on_our_clock(self, t_ns: Ns) -> Ns:
        if self._moved_ns is None:
            apart_ns = time.time_ns() - t_ns
            self._moved_ns = apart_ns if abs(apart_ns) > FOREIGN_CLOCK_NS else 0
        return t_ns + self._moved_ns

    # --- the reader's -----------------------------------------------------------------------------------
    def fileno(self) -> int:
        return self._event_fd

    def read_run(self, timeout_s: float = 0.0) -> Run | None:
        if not self._queue:
            if not self._sniffer.thread.is_alive() and not self._queue:
                why = self._tap.error
                if isinstance(why, InterfaceGone):
                    raise why
                reason = f": {why}" if why is not None and not isinstance(why, EOFError) else ""
                raise InterfaceGone(f"scapy's capture on {self._name} has ended{reason}")
            if timeout_s > 0:
                select.select([self._event_fd], [], [], timeout_s)
        self._measure_clock()
        with self._room:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)
            taken = [self._queue.popleft() for _ in range(min(RUN_FRAMES, len(self._queue)))]
            captured_bytes = sum(len(data) for _, data, _ in taken)
            self._queued_bytes -= captured_bytes
            if self._queue:
                os.eventfd_write(self._event_fd, 1)
            self._room.notify()
        if not taken:
            return None
        return Run(encode(taken), len(taken), captured_bytes, taken[0][0], taken[-1][0])

    def down(self) -> str:
        return self._ring.down() if self._ring is not None else ""

    def is_drained(self) -> bool:
        # In this order: a frame goes from the socket to the tap, and from the tap to the queue.
        waiting = self._socket_waits()
        return not waiting and self._tap.begun == self._tap.done and not self._queue

    def _socket_waits(self) -> bool:
        if isinstance(self._socket, RingSocket):
            return bool(self._socket.has_frames)
        try:
            return bool(select.select([self._socket], [], [], 0)[0])
        except (OSError, ValueError, TypeError):
            # Closed at its end, or without a descriptor: then only what was read counts.
            return False

    @property
    def has_lost(self) -> bool:
        return self._ring is not None and self._ring.has_lost

    def statistics(self) -> RingStatistics:
        if self._ring is not None:
            return self._ring.statistics()
        counted = _packet_statistics(self._socket)
        if counted is not None:
            self._received += counted[0]
            self._dropped += counted[1]
        return RingStatistics(self._received, self._dropped, 0)

    def close(self) -> None:
        with self._room:
            self._closed = True
            self._room.notify_all()
        with contextlib.suppress(Exception):  # scapy raises when the sniffer has ended by itself
            self._sniffer.stop(join=False)
        with contextlib.suppress(Exception):
            self._sniffer.join(5.0)
        with contextlib.suppress(Exception):
            self._socket.close()
        os.close(self._event_fd)

    def _measure_clock(self) -> None:
        if abs(time.time_ns() - time.monotonic_ns() - self.realtime_offset_ns) <= CLOCK_STEP_NS:
            return
        offset_ns = _clock_offset_ns()
        if abs(offset_ns - self.realtime_offset_ns) > CLOCK_STEP_NS:
            self.realtime_offset_ns = offset_ns
            self.clock_steps += 1


def _clock_offset_ns() -> Ns:
    reading = read_wall_clock()
    return reading.wall_ns - reading.monotonic_ns


def _ethernet(packet: Packet) -> bytes:
    """The frame's bytes as they came, under an Ethernet header where it came without one."""
    data: bytes = packet.original or bytes(packet)
    linktype = conf.l2types.layer2num.get(type(packet), linklayers.ETHERNET)
    return bytes(linklayers.ethernet(linktype, data))[:MAX_FRAME_BYTES]


def _packet_statistics(scapy_socket: Any) -> tuple[int, int] | None:
    """(received, dropped) since it was last asked; None: it is no packet socket."""
    inner = getattr(scapy_socket, "ins", None)
    if not isinstance(inner, socket.socket) or inner.family != socket.AF_PACKET:
        return None
    try:
        raw = inner.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
    except OSError:
        return None
    received, dropped = _STATISTICS.unpack(raw)
    return received, dropped
