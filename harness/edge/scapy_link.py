"""The replication link for scapy users: its packets dissected, from a capture file or live.

TCP is followed by the harness's own reassembly, which knows holes and retransmissions; scapy's
TCPSession fills a hole with zeros. Every whole DRBD packet comes out as one scapy packet: the
headers of the frame that completed it, then the layer of ``edge.scapy_layers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from scapy.config import conf
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, bind_layers
from scapy.plist import PacketList
from scapy.sendrecv import AsyncSniffer
from scapy.sendrecv import sniff as scapy_sniff
from scapy.sessions import DefaultSession
from scapy.utils import EDecimal

from freezeframe.harness.core.link import linklayers
from freezeframe.harness.core.link.drbd.stream import DrbdPacket, DrbdStream
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.tcpstream import (
    Reassembler,
    StreamClosed,
    StreamData,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.edge.pcapng import read_runs, run_frames
from freezeframe.harness.edge.ring_socket import RingSocket
from freezeframe.harness.edge.scapy_layers import Drbd, DrbdH80, DrbdH95, DrbdH100
from freezeframe.harness.wire import drbd

NS_PER_S: Final = 1_000_000_000
_NS_EXPONENT: Final = -9
_HEADERS: Final = {80: DrbdH80, 95: DrbdH95, 100: DrbdH100}
_bound: set[int] = set()


def bind_port(port: int) -> None:
    """TCP segments from or to ``port`` are dissected as DRBD, in this process, by any scapy
    function."""
    if port not in _bound:
        bind_layers(TCP, Drbd, sport=port)
        bind_layers(TCP, Drbd, dport=port)
        _bound.add(port)


class DrbdSession(DefaultSession):  # type: ignore[misc]
    """A scapy session: ``sniff(session=DrbdSession([7788]))`` gives one packet for each DRBD packet,
    and none for a segment that completes none. What is not TCP on one of the ports passes as it is.
    """

    def __init__(self, ports: Iterable[int] = (drbd.PORT,), *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ports = frozenset(ports)
        for port in self.ports:
            bind_port(port)
        self._reassembler = Reassembler(ports=self.ports)
        self._streams: dict[int, DrbdStream] = {}
        self._frames = 0

    def recv(self, sock: Any) -> Iterator[Packet]:
        packet = sock.recv()
        if packet is not None:
            yield from self.packets(packet)

    def packets(self, packet: Packet) -> Iterator[Packet]:
        """What a captured frame completes."""
        if TCP not in packet or self.ports.isdisjoint((packet[TCP].sport, packet[TCP].dport)):
            yield packet
            return
        linktype = conf.l2types.layer2num.get(type(packet), linklayers.ETHERNET)
        frame = linklayers.ethernet(linktype, packet.original or bytes(packet))
        for found in self.messages(int(packet.time * NS_PER_S), frame):
            yield _stacked(packet, found)

    def messages(self, t_ns: int, frame: bytes) -> list[DrbdPacket]:
        """The DRBD packets that an Ethernet frame completes, undissected."""
        self._frames += 1
        out: list[DrbdPacket] = []
        for event in self._reassembler.feed(t_ns, frame, self._frames):
            match event:
                case StreamOpened(flow=flow):
                    self._streams[flow.number] = DrbdStream(
                        from_start=event.from_start, fill=flow.fill
                    )
                case StreamData(flow=flow) if flow.number in self._streams:
                    stream = self._streams[flow.number]
                    fed = stream.feed(event.data, event.t_ns, event.packet_no)
                    out += [one for one in fed if isinstance(one, DrbdPacket)]
                case StreamGap(flow=flow) if flow.number in self._streams:
                    self._streams[flow.number].gap(event.length_bytes)
                case StreamClosed(flow=flow):
                    self._streams.pop(flow.number, None)
                case _:
                    pass
        return out


def _stacked(frame: Packet, found: DrbdPacket) -> Packet:
    """The frame's headers, then the packet that it completed."""
    head = frame.copy()
    head[TCP].remove_payload()
    packet = head / _layer(found)
    packet.time, packet.sniffed_on, packet.wirelen = frame.time, frame.sniffed_on, frame.wirelen
    return packet


def _layer(found: DrbdPacket) -> Packet:
    fields: dict[str, object] = {"cmd": found.command, "length": found.length}
    if found.header == 100:
        fields["volume"] = found.volume
    header = bytes(_HEADERS[found.header](**fields))
    return Drbd(header + bytes(found.body))


def read_packets(
    capture: Path | str | Iterable[Run], ports: Iterable[int] = (drbd.PORT,)
) -> Iterator[Packet]:
    """The DRBD packets of a capture file (or of runs of frames), one by one in the order of their
    completion. RigError or WireError as ``edge.pcapng.read_runs``."""
    session = DrbdSession(ports)
    runs = read_runs(Path(capture)) if isinstance(capture, str | Path) else capture
    for run in runs:
        for frame in run_frames(run):
            found = session.messages(frame.t_ns, frame.data)
            if not found:
                continue
            dissected = Ether(frame.data)
            dissected.time = EDecimal(frame.t_ns).scaleb(_NS_EXPONENT)
            dissected.wirelen = frame.original_length
            for one in found:
                yield _stacked(dissected, one)


def sniff(interface: str, **arguments: Any) -> PacketList:
    """``scapy.sendrecv.sniff`` on the kernel's ring of ``interface``, with scapy's own arguments
    (``count``, ``timeout``, ``prn``, ``lfilter``, ``stop_filter``, ``store`` ...), and
    ``namespace``, the path of a network namespace, and ``ports`` of the link, by default DRBD's.

    One packet for each DRBD packet; ``session=DefaultSession`` gives the bare frames. RigError as
    PacketRing.
    """
    socket, arguments = _opened(interface, **arguments)
    try:
        return scapy_sniff(opened_socket=socket, **arguments)
    finally:
        socket.close()


def started_sniffer(interface: str, **arguments: Any) -> AsyncSniffer:
    """The same in a thread, which captures when this returns. Its socket closes when it is stopped,
    or ends by itself."""
    socket, arguments = _opened(interface, **arguments)
    sniffer = _Sniffer(opened_socket=socket, **arguments)
    sniffer.start()
    return sniffer


class _Sniffer(AsyncSniffer):  # type: ignore[misc]
    """Closes the socket that was opened for it; scapy leaves given sockets open."""

    def _run(self, *args: Any, **arguments: Any) -> None:
        try:
            super()._run(*args, **arguments)
        finally:
            arguments["opened_socket"].close()


def _opened(
    interface: str,
    *,
    namespace: str | None = None,
    ports: Iterable[int] = (drbd.PORT,),
    **arguments: Any,
) -> tuple[RingSocket, dict[str, object]]:
    session = arguments.pop("session", None) or DrbdSession(ports)
    return RingSocket(interface, namespace=namespace), {"session": session, **arguments}
