"""What a capture shows before it is understood: ports, and frames that are not whole."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether

from freezeframe.harness.core.link.sighting import Sighting
from freezeframe.harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"


def seen(*frames: bytes, cut: int = 0) -> Sighting:
    made = Sighting(frozenset({7788}))
    for frame in frames:
        made.add(frame, len(frame) + cut)
    return made


def tcp(port: int) -> bytes:
    inner = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=port) / b"data"
    return bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / inner)


def test_a_real_link_is_seen_whole() -> None:
    frames = [one.data for one in read_frames(GOLDEN / "small-failure.pcap")]
    found = seen(*frames)
    assert found.sentences() == []
    assert found.link_frames == len(frames) - 1  # one is a router solicitation


def test_other_ports_are_named() -> None:
    (told,) = seen(tcp(3260)).sentences()
    assert told.startswith("no frame of TCP port 7788 was captured: the ports seen most are")
    assert "3260" in told
    (told,) = seen(bytes(Ether() / ARP() / bytes(40))).sentences()
    assert told.endswith("there is no TCP at all")


def test_cut_frames_are_counted() -> None:
    (told,) = seen(tcp(7788), tcp(7788), cut=4).sentences()
    assert told.startswith("2 of 2 frames were cut short")


@given(frames=st.lists(st.binary(max_size=120), min_size=1, max_size=5))
def test_any_frames_are_described(frames: list[bytes]) -> None:
    assert seen(*frames).sentences()
