"""Tags and mirrors' tunnels are looked through, what is not understood has a name; scapy, which
knows nothing of us, builds the frames."""

import struct
from pathlib import Path

import pytest
from scapy.contrib.erspan import ERSPAN_I, ERSPAN_II, ERSPAN_III
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from tcp_frames import A, feed, segment, stream

from freezeframe.harness.core.link import skim, skimpure
from freezeframe.harness.core.link.ipheaders import HOSTILE, Foreign, look
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.tcpstream import Reassembler
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames

FIELD = Path(__file__).parents[3] / "golden" / "field"
INNER = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=7788, flags="A")
DATA = b"the replicated bytes"
OUTER = Ether() / IP(src="192.0.2.1", dst="192.0.2.2")
SEEN_THROUGH = {
    "plain": INNER / DATA,
    "802.1Q": Ether() / Dot1Q(vlan=5) / (INNER.payload / DATA),
    "QinQ": Ether() / Dot1AD(vlan=7) / Dot1Q(vlan=5) / (INNER.payload / DATA),
    "GRE with IP": OUTER / GRE() / (INNER.payload / DATA),
    "GRE with key, checksum, sequence number": (
        OUTER / GRE(chksum_present=1, key_present=1, seqnum_present=1) / (INNER.payload / DATA)
    ),
    "GRE with Ethernet": OUTER / GRE(proto=0x6558) / (INNER / DATA),
    "ERSPAN I": OUTER / GRE(proto=0x88BE) / ERSPAN_I() / (INNER / DATA),
    "ERSPAN II": OUTER / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II() / (INNER / DATA),
    "ERSPAN III": OUTER / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III() / (INNER / DATA),
    "ERSPAN over IPv6": (
        Ether() / IPv6() / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II() / (INNER / DATA)
    ),
    "a tag inside of a tagged ERSPAN": (
        Ether() / Dot1Q(vlan=9) / OUTER.payload / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II()
        / Ether() / Dot1Q(vlan=5) / (INNER.payload / DATA)
    ),
}  # fmt: skip
IPV6_IN_GRE = OUTER / GRE() / (IPv6() / TCP(sport=40000, dport=7788, flags="A") / DATA)
BLINDING = {
    Foreign.TAGS: Ether() / Dot1AD() / Dot1Q() / Dot1Q() / (INNER.payload / DATA),
    Foreign.MPLS: Ether() / MPLS(s=1) / (INNER.payload / DATA),
    Foreign.PPPOE: Ether() / PPPoE() / PPP() / (INNER.payload / DATA),
    Foreign.VXLAN: OUTER / UDP(sport=50000, dport=4789) / VXLAN() / (INNER / DATA),
    Foreign.GENEVE: OUTER / UDP(sport=50000, dport=6081) / Raw(bytes(60)),
    Foreign.GTP: OUTER / UDP(dport=2152) / Raw(bytes(60)),
    Foreign.IPSEC: Ether() / IP(proto=50) / Raw(bytes(60)),
    Foreign.IP_IN_IP: OUTER / (INNER.payload / DATA),
    Foreign.L2TP: Ether() / IP(proto=115) / Raw(bytes(60)),
    Foreign.MACSEC: Ether(type=0x88E5) / Raw(bytes(60)),
    Foreign.PBB: Ether(type=0x88E7) / Raw(bytes(60)),
    Foreign.VN_TAG: Ether(type=0x8926) / Raw(bytes(60)),
    Foreign.TRILL: Ether(type=0x22F3) / Raw(bytes(60)),
    Foreign.FABRICPATH: Ether(type=0x8903) / Raw(bytes(60)),
    Foreign.HSR: Ether(type=0x892F) / Raw(bytes(60)),
    Foreign.NSH: Ether(type=0x894F) / Raw(bytes(60)),
    Foreign.FRAGMENT: Ether() / IP(flags="MF", proto=6) / Raw(bytes(60)),
    Foreign.GRE: OUTER / GRE(proto=0x9999) / Raw(bytes(60)),
    Foreign.TUNNELS: (
        OUTER / GRE() / IP() / GRE() / IP() / GRE() / (INNER.payload / DATA)
    ),
}  # fmt: skip
ORDINARY = {
    "ARP": Ether() / ARP() / Raw(bytes(40)),
    "ICMP": Ether() / IP() / ICMP() / Raw(bytes(40)),
    "UDP": Ether() / IP() / UDP(sport=53, dport=53) / Raw(bytes(40)),
    "LLDP": Ether(type=0x88CC) / Raw(bytes(60)),
}


def skimmed(reassembler: Reassembler, frames: list[bytes]) -> bytes:
    run = skim.encode((number, frame, len(frame)) for number, frame in enumerate(frames, 1))
    events = []
    for t_ns, frame, number in reassembler.frames(run, 1, 0):
        events += reassembler.feed(t_ns, frame, number)
    return stream(events, A)


@pytest.mark.parametrize("packet", SEEN_THROUGH.values(), ids=SEEN_THROUGH)
def test_tags_and_mirrors_are_looked_through(packet: Packet) -> None:
    reassembler = Reassembler(ports=frozenset({7788}))
    assert skimmed(reassembler, [bytes(packet)]) == DATA
    assert not reassembler.foreign
    assert reassembler.skipped_frames == 0


@pytest.mark.parametrize(("kind", "packet"), BLINDING.items(), ids=[k.name for k in BLINDING])
def test_what_is_not_looked_into_has_a_name(kind: Foreign, packet: Packet) -> None:
    reassembler = Reassembler(ports=frozenset({7788}))
    assert skimmed(reassembler, [bytes(packet)] * 3) == b""
    assert dict(reassembler.foreign) == {kind: 3}
    assert reassembler.skipped_frames == 3


def test_each_kind_that_blinds_is_tried() -> None:
    assert {*BLINDING, Foreign.OTHER} == set(Foreign)


@pytest.mark.parametrize("packet", ORDINARY.values(), ids=ORDINARY)
def test_other_traffic_hides_nothing(packet: Packet) -> None:
    reassembler = Reassembler(ports=frozenset({7788}))
    assert skimmed(reassembler, [bytes(packet)]) == b""
    assert not reassembler.foreign
    assert reassembler.skipped_frames == 1


@pytest.mark.parametrize("packet", [*SEEN_THROUGH.values(), IPV6_IN_GRE])
def test_a_cut_frame_never_raises(packet: Packet) -> None:
    """It is TCP as far as it goes, or it has a name."""
    whole = bytes(packet)
    for size in range(len(whole)):
        Reassembler().feed(1, whole[:size], 1)
    for size in range(54, len(whole)):  # what is shorter is not looked at
        found = look(memoryview(whole[:size]))
        assert isinstance(found, Foreign) or (len(found) == 3 and found[2])
    assert not isinstance(look(memoryview(whole)), Foreign)


def test_extension_headers_are_passed_and_one_that_leads_out_of_the_packet_lies() -> None:
    head = bytes(Ether() / IPv6(nh=0, plen=48))
    options = bytes([6, 1]) + bytes(14)  # hop by hop, 16 bytes, then TCP
    honest = look(memoryview(head + options + bytes(40)))
    assert honest == (len(head) + 16, len(head) + 48, head[22:54])
    for lie in (bytes([0, 4]) + bytes(46), bytes([0, 0]) * 24, bytes([0, 255]) + bytes(46)):
        assert look(memoryview(head + lie)) == HOSTILE


def test_a_wrong_digest_is_found_in_a_switchs_erspan_session() -> None:
    rules = [LinkRule(name=event, event=event) for event in EVENTS]
    view = LinkView(LinkEnds(ports=frozenset({7788}), integrity_alg="crc32c"), rules)
    found = []
    for number, frame in enumerate(read_frames(FIELD / "erspan-mirror.pcap"), 1):
        found += view.feed(frame.t_ns, frame.data, number, frame.t_ns)
    assert "digest-mismatch" in {one.rule for one in found}


def test_the_plain_way_and_the_looked_through_one_are_the_same() -> None:
    frames = [segment(A, ("10.0.0.2", 7788), 1 + 4 * n, 1, 16, b"data") for n in range(3)]
    wrapped = [bytes(OUTER / GRE(proto=0x6558) / Ether(frame)) for frame in frames]
    assert (
        stream(feed(Reassembler(), wrapped)) == stream(feed(Reassembler(), frames)) == b"data" * 3
    )


@pytest.mark.parametrize("twin", [skimpure, skim])
@pytest.mark.parametrize(
    ("status", "tag"),
    [(1, b""), (0x11, b"\x81\x00\x00\x05"), (0x51, b"\x88\xa8\x00\x05"), (0x41, b"")],
)
def test_a_tag_that_the_kernel_took_out_is_recorded_again(twin, status: int, tag: bytes) -> None:  # type: ignore[no-untyped-def]
    frame, mac = bytes(range(70)), 66
    head = struct.pack(
        "=IIIIIIHHIIHH", 0, 1, 2, len(frame), 90, status, mac, mac + 14, 9, 5, 0x88A8, 0
    )
    block = struct.pack("=IIIII", 3, 0, 1, 1, 48).ljust(48, b"\0") + head.ljust(mac, b"\0") + frame
    out = bytearray(200)
    used, frames, captured, _, _ = twin.ring_block(block, out)
    expected = skim.encode([(10**9 + 2, frame[:12] + tag + frame[12:], 90 + len(tag))])
    assert bytes(out[:used]) == expected
    assert (frames, captured) == (1, 70 + len(tag))
