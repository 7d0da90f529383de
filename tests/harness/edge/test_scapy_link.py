"""The link for scapy users: every packet of real nodes once, with its headers and its bytes."""

import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.sendrecv import sniff as scapy_sniff
from scapy.utils import rdpcap, wrpcap

from freezeframe.harness.core.link.drbd.stream import DrbdPacket, DrbdStream
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamData
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.edge.scapy_layers import BODIES, Drbd
from freezeframe.harness.edge.scapy_link import DrbdSession, read_packets
from freezeframe.harness.wire.drbd import Cmd

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"


def by_hand(path: Path) -> list[tuple[int, bytes]]:
    """(frame, body) of every packet, from the streams alone."""
    reassembler, streams, found = Reassembler(), {}, []
    for number, frame in enumerate(read_frames(path), 1):
        for event in reassembler.feed(frame.t_ns, frame.data, number):
            if isinstance(event, StreamData):
                stream = streams.setdefault(
                    event.flow.number, DrbdStream(from_start=event.offset == 0)
                )
                for one in stream.feed(bytes(event.data), event.t_ns, event.packet_no):
                    assert isinstance(one, DrbdPacket)
                    found.append((event.packet_no, bytes(one.body)))
    return found


@pytest.mark.parametrize("name", ["small-handshake", "small-failure"])
def test_each_packet_of_a_capture_comes_once_under_the_headers_of_its_frame(name: str) -> None:
    path = GOLDEN / f"{name}.pcap"
    frames = rdpcap(str(path))
    found = list(read_packets(path))
    expected = by_hand(path)
    assert [bytes(packet[Drbd].payload) for packet in found] == [body for _, body in expected]
    for packet, (number, _) in zip(found, expected, strict=True):
        frame = frames[number - 1]
        assert packet.time == frame.time
        assert (packet[IP].src, packet[TCP].sport) == (frame[IP].src, frame[TCP].sport)
        assert bytes(packet[TCP])[:20] == bytes(frame[TCP])[:20]


def test_a_write_that_spans_segments_is_dissected_whole() -> None:
    writes = [
        one
        for one in read_packets(GOLDEN / "small-failure.pcap")
        if one[Drbd].cmd == Cmd.DATA and one[Drbd].length > 60_000
    ]
    assert writes
    for packet in writes:
        body = packet[BODIES[Cmd.DATA]]
        assert packet[Drbd].length == len(bytes(body))
        assert body.sector > 0


def test_scapys_own_sniff_takes_the_session_also_from_a_cooked_capture(tmp_path: Path) -> None:
    source = GOLDEN / "small-handshake.pcap"
    found = scapy_sniff(offline=str(source), session=DrbdSession([7788]), quiet=True)
    expected = [bytes(packet[Drbd]) for packet in read_packets(source)]
    assert [bytes(packet[Drbd]) for packet in found if Drbd in packet] == expected
    bare = tmp_path / "bare.pcap"
    wrpcap(str(bare), [frame[IP] for frame in rdpcap(str(source)) if IP in frame])
    again = scapy_sniff(offline=str(bare), session=DrbdSession([7788]), quiet=True)
    assert [bytes(packet[Drbd]) for packet in again if Drbd in packet] == expected


def test_the_port_of_the_link_is_the_callers() -> None:
    other = list(read_packets(GOLDEN / "small-handshake.pcap", ports=[7789]))
    assert other == []


def test_plugin_and_public_module_import_scapy_only_when_it_is_used() -> None:
    code = (
        "import sys\n"
        "import freezeframe.fixtures.plugin, freezeframe.fixtures.pair, freezeframe.link\n"
        "import freezeframe.harness.watch.linkwatch\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'scapy'])\n"
        "freezeframe.link.read_packets\n"
        "print('scapy' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[:2] == ["[]", "True"]
