"""The seam between a capture and the link watch: who captures is chosen by ``[link] capture``.

``ring`` reads the kernel's capture ring itself. ``scapy`` lets scapy sniff, on the ring or on a
scapy socket that a driver makes; scapy is imported only then.
"""

from __future__ import annotations

from typing import Protocol

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.edge.packet_ring import PacketRing, RingStatistics


class FrameSource(Protocol):
    """Captured frames in the order of capture, each once. One reader.

    Every frame has the time at which it was on the wire (CLOCK_REALTIME, ns). The reader concludes
    something from silence only when ``is_drained`` says that nothing older is still to be read.
    """

    realtime_offset_ns: Ns
    """CLOCK_REALTIME - CLOCK_MONOTONIC, as last measured."""
    clock_steps: int
    """How often the clock was set."""
    notes: tuple[str, ...]
    """What a person should know about this way of capturing."""

    @property
    def has_lost(self) -> bool:
        """Frames were lost since ``statistics`` was last asked."""
        ...

    def fileno(self) -> int:
        """Readable when ``read_run`` has something to give."""
        ...

    def read_run(self, timeout_s: float = 0.0) -> Run | None:
        """The next frames; None when none come in time. Valid until the next call. InterfaceGone
        when no more can come."""
        ...

    def is_drained(self) -> bool:
        """Every frame that the kernel had handed over when this was called has been given out by
        ``read_run``."""
        ...

    def down(self) -> str:
        """Why no frame can come now; "": as far as this source knows, the link is up."""
        ...

    def statistics(self) -> RingStatistics: ...
    def close(self) -> None: ...


def open_source(
    capture: str,
    interface: str,
    *,
    namespace: str | None = None,
    ring_bytes: int,
    scapy_socket: str = "",
) -> FrameSource:
    """``capture``: "ring" or "scapy"; ``scapy_socket``: MODULE:ATTRIBUTE of a callable that makes a
    scapy socket of an interface's name, "" for the ring's. RigError when it cannot be opened."""
    if capture == "ring":
        return PacketRing(interface, namespace=namespace, ring_bytes=ring_bytes)
    from freezeframe.harness.edge.scapy_source import ScapySource, open_socket

    socket = open_socket(
        interface, namespace=namespace, ring_bytes=ring_bytes, scapy_socket=scapy_socket
    )
    return ScapySource(socket, interface)
