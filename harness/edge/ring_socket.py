"""The capture ring as a scapy socket: ``sniff(opened_socket=RingSocket("eth0"))``, ``AsyncSniffer``
likewise.

For looking and for small tools. The link watch reads the ring itself: scapy makes objects of every
frame, which a link at full rate does not leave the time for.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import scapy.layers.inet
import scapy.layers.inet6  # noqa: F401  (both bind IP to Ethernet: without them a frame's payload stays raw)
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.supersocket import SuperSocket

from freezeframe.harness.core.link.skim import blocks
from freezeframe.harness.edge.packet_ring import DEFAULT_RING_BYTES, PacketRing
from freezeframe.harness.errors import UsageError

_NS_PER_S: Final = 1e9


class RingSocket(SuperSocket):  # type: ignore[misc]
    """Reads one frame at a time; frames are copied out of the ring, so that it never has to wait
    for their reader."""

    desc = "read frames from an AF_PACKET TPACKET_V3 ring"

    def __init__(
        self, iface: str, *, namespace: str | None = None, ring_bytes: int = DEFAULT_RING_BYTES
    ) -> None:
        """RigError as PacketRing."""
        self.ring = PacketRing(iface, namespace=namespace, ring_bytes=ring_bytes)
        self.iface = iface
        self.ins = self.outs = self.ring
        self.closed = False
        self._waiting: deque[tuple[int, bytes]] = deque()

    def fileno(self) -> int:
        return self.ring.fileno()

    def recv_raw(self, x: int = 0) -> tuple[type[Packet] | None, bytes | None, float | None]:
        """(Ether, the frame's bytes, its time in seconds); all None when there is no frame."""
        if not self._waiting and (run := self.ring.read_run()) is not None:
            view = memoryview(run.data)
            self._waiting.extend(
                (t_ns, bytes(view[at : at + length])) for at, length, _, t_ns in blocks(view)
            )
        if not self._waiting:
            return None, None, None
        t_ns, frame = self._waiting.popleft()
        return Ether, frame, t_ns / _NS_PER_S

    def send(self, x: Any) -> int:
        raise UsageError("a RingSocket only captures")

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.ring.close()

    @staticmethod
    def select(sockets: list[Any], remain: float | None = None) -> list[Any]:
        """Sockets with frames left of their last block are ready, whatever the kernel says."""
        ready = [one for one in sockets if isinstance(one, RingSocket) and one._waiting]
        return ready or list(SuperSocket.select(sockets, remain))
