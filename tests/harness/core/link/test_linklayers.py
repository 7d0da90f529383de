"""Frames of other link layers, built by scapy, as Ethernet frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Ether, Loopback

from freezeframe.harness.core.link import linklayers

V4 = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"data"
V6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / b"data"


@pytest.mark.parametrize("inner", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("linktype", "outer"),
    [
        (linklayers.LINUX_SLL, CookedLinux(lladdrlen=6, src=b"\x02\x00\x00\x00\x00\x01\x00\x00")),
        (linklayers.LINUX_SLL2, CookedLinuxV2(lladdrlen=6, src=b"\x02\x00\x00\x00\x00\x01\x00\x00")),
        (linklayers.NULL, Loopback()),
        (linklayers.LOOP, Loopback()),
        (101, None),
        (12, None),
    ],
)  # fmt: skip
def test_what_is_inside_stands_under_an_ethernet_header(linktype, outer, inner) -> None:  # type: ignore[no-untyped-def]
    frame = bytes(inner) if outer is None else bytes(outer / inner)
    made = Ether(linklayers.ethernet(linktype, frame))
    assert bytes(made.payload) == bytes(inner)
    if linktype in (linklayers.LINUX_SLL, linklayers.LINUX_SLL2):
        assert made.src == "02:00:00:00:00:01"


def test_ethernet_stays_as_it_is() -> None:
    assert linklayers.ethernet(1, b"anything") == b"anything"


@given(linktype=st.sampled_from(sorted(linklayers.SUPPORTED)), frame=st.binary(max_size=64))
def test_any_bytes_give_a_frame_or_none(linktype: int, frame: bytes) -> None:
    made = linklayers.ethernet(linktype, frame)
    assert made == b"" or linktype == linklayers.ETHERNET or len(made) >= 14
