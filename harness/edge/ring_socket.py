"""The capture ring as a scapy socket: ``sniff(opened_socket=RingSocket("eth0"))``, ``AsyncSniffer``
likewise.

``[link] capture = "scapy"`` has the link watch sniff on it (``edge.scapy_source``). By default the
link watch reads the ring itself: scapy makes an object of every frame, which a link at full rate
does not leave the time for.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import scapy.layers.inet
import scapy.layers.inet6  # noqa: F401  (both bind IP to Ethernet: without them a frame's payload stays raw)
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.supersocket import SuperSocket
from scapy.utils import EDecimal

from freezeframe.harness.core.link.skim import blocks
from freezeframe.harness.edge.packet_ring import DEFAULT_RING_BYTES, PacketRing
from freezeframe.harness.errors import UsageError

_NS_EXPONENT: Final = -9


class RingSocket(SuperSocket):  # type: ignore[misc]
    """Reads one frame at a time; frames are copied out of the ring, so that it never has to wait
    for their reader."""

    desc = "read frames from an AF_PACKET TPACKET_V3 ring"

    def __init__(
        self,
        iface: str,
        *,
        namespace: str | None = None,
        ring_bytes: int = DEFAULT_RING_BYTES,
        layer: type[Packet] = Ether,
    ) -> None:
        """``layer``: what each frame becomes; Raw leaves it undissected. RigError as PacketRing."""
        self.ring = PacketRing(iface, namespace=namespace, ring_bytes=ring_bytes)
        self.iface = iface
        self._layer = layer
        self.ins = self.outs = self.ring
        self.closed = False
        self._waiting: deque[tuple[int, bytes]] = deque()

    def fileno(self) -> int:
        return self.ring.fileno()

    @property
    def has_frames(self) -> bool:
        """Frames wait here, or a block of them in the ring."""
        return not self.ring.is_drained() or bool(self._waiting)

    def recv_raw(self, x: int = 0) -> tuple[type[Packet] | None, bytes | None, EDecimal | None]:
        """(layer, the frame's bytes, its time in seconds, exactly); all None when there is no
        frame."""
        if not self._waiting and (run := self.ring.read_run()) is not None:
            view = memoryview(run.data)
            self._waiting.extend(
                (t_ns, bytes(view[at : at + length])) for at, length, _, t_ns in blocks(view)
            )
        if not self._waiting:
            return None, None, None
        t_ns, frame = self._waiting.popleft()
        return self._layer, frame, EDecimal(t_ns).scaleb(_NS_EXPONENT)

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
