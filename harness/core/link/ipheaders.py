"""Where TCP begins and ends in an Ethernet frame, through tags and mirrors' tunnels: 802.1Q and
802.1ad, IPv4 with options, IPv6 with extension headers, GRE, ERSPAN types I to III; and the name of
what is not looked into.

RFC 2784 and 2890 (GRE), draft-foschiano-erspan (ERSPAN).
"""

import struct
from enum import StrEnum
from typing import Final

ETHERTYPE_IPV4: Final = 0x0800
IPPROTO_TCP: Final = 6
NOT_FRAGMENTED_MASK: Final = 0x3FFF
"""More-fragments bit and offset of IPv4's fragment field."""
_ETHERTYPE_IPV6: Final = 0x86DD
_ETHERTYPES_VLAN: Final = frozenset({0x8100, 0x88A8, 0x9100})
_MAX_VLAN_TAGS: Final = 2
_MAX_TUNNELS: Final = 2
"""A mirror's, and one of the network that carries it."""
_ETHERNET_BYTES: Final = 14
_IPV4_HEADER_BYTES: Final = 20
_IPV6_HEADER_BYTES: Final = 40
_IPV6_EXTENSIONS: Final = frozenset({0, 43, 60})
"""Hop-by-hop, routing, destination options: skipped by their own length. A fragment (44) is not
looked into."""
_IPPROTO_UDP: Final = 17
_IPPROTO_GRE: Final = 47
_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE = 0x8000, 0x2000, 0x1000
_GRE_VERSION_MASK: Final = 0x4007
"""Routing and version: what is not RFC 2890's GRE (1 is PPTP's)."""
_TRANSPARENT_ETHERNET: Final = 0x6558
_ERSPAN_1_2: Final = 0x88BE
_ERSPAN_3: Final = 0x22EB
_ERSPAN_2_BYTES: Final = 8
_ERSPAN_3_BYTES: Final = 12
_ERSPAN_3_SUBHEADER_BYTES: Final = 8
_IPV6: Final = struct.Struct(">IHBB")
_COMMON: Final = struct.Struct(">12xHBxHxxHxB")
"""Ethernet and IPv4 at once: ethertype, version and IHL, total length, fragment field, protocol."""
_U16: Final = struct.Struct(">H")

Located = tuple[int, int, bytes]
"""(offset of the TCP header, end of the IP packet in the frame, source and destination address)."""
HOSTILE: Final[Located] = (-1, -1, b"")
"""Lengths that cannot be true."""


class Foreign(StrEnum):
    """What a frame that was not understood is, by the name of what hides its content."""

    FRAGMENT = "IP fragments"
    TAGS = "more than two VLAN tags"
    TUNNELS = "more than two tunnels in each other"
    MPLS = "MPLS"
    PPPOE = "PPPoE"
    MACSEC = "MACsec"
    PBB = "provider backbone bridging (802.1ah)"
    VN_TAG = "VN-Tag (802.1BR)"
    TRILL = "TRILL"
    FABRICPATH = "FabricPath"
    HSR = "HSR"
    NSH = "NSH"
    VXLAN = "VXLAN"
    GENEVE = "GENEVE"
    GTP = "GTP"
    IPSEC = "IPsec"
    IP_IN_IP = "IP in IP"
    L2TP = "L2TP"
    GRE = "GRE of a kind that is not understood"
    OTHER = "other traffic"
    """Nothing hidden: ARP, ICMP, plain UDP and the like."""


_BY_ETHERTYPE: Final = {
    0x8847: Foreign.MPLS, 0x8848: Foreign.MPLS, 0x8863: Foreign.PPPOE, 0x8864: Foreign.PPPOE,
    0x88E5: Foreign.MACSEC, 0x88E7: Foreign.PBB, 0x8926: Foreign.VN_TAG, 0x893F: Foreign.VN_TAG, 0x22F3: Foreign.TRILL,
    0x8903: Foreign.FABRICPATH, 0x892F: Foreign.HSR, 0x894F: Foreign.NSH,
}  # fmt: skip
_BY_IP_PROTOCOL: Final = {
    4: Foreign.IP_IN_IP, 41: Foreign.IP_IN_IP, 50: Foreign.IPSEC, 51: Foreign.IPSEC,
    115: Foreign.L2TP, 137: Foreign.MPLS, 44: Foreign.FRAGMENT,
}  # fmt: skip
TUNNEL_PORTS: Final = {
    4789: Foreign.VXLAN, 8472: Foreign.VXLAN, 4790: Foreign.VXLAN, 6081: Foreign.GENEVE,
    2152: Foreign.GTP, 4500: Foreign.IPSEC, 1701: Foreign.L2TP, 6635: Foreign.MPLS,
}  # fmt: skip
"""UDP ports of tunnels; 8472 is what Linux used for VXLAN before its number was assigned."""


def locate_tcp(view: memoryview) -> Located | None:
    """TCP in a frame of at least 54 bytes; None: it is something else, or a fragment; HOSTILE: it
    lies."""
    found = look(view)
    return None if isinstance(found, Foreign) else found


def look(view: memoryview) -> Located | Foreign:
    """As ``locate_tcp``, with the name of what is not looked into."""
    try:
        ethertype, version_ihl, total, fragment, protocol = _COMMON.unpack_from(view)
        if (
            ethertype == ETHERTYPE_IPV4
            and version_ihl == 0x45
            and protocol == IPPROTO_TCP
            and total >= _IPV4_HEADER_BYTES
            and not fragment & NOT_FRAGMENTED_MASK
        ):  # nearly all
            return 34, 14 + total, bytes(view[26:34])
        return _in_ethernet(view, 0, _MAX_TUNNELS)
    except (struct.error, IndexError):
        return Foreign.OTHER  # too short for what it says it is


def _in_ethernet(view: memoryview, at: int, tunnels: int) -> Located | Foreign:
    at += _ETHERNET_BYTES - 2
    ethertype = _U16.unpack_from(view, at)[0]
    for _ in range(_MAX_VLAN_TAGS):
        if ethertype in _ETHERTYPES_VLAN:
            at += 4
            ethertype = _U16.unpack_from(view, at)[0]
    if ethertype in _ETHERTYPES_VLAN:
        return Foreign.TAGS
    return _by_ethertype(view, at + 2, ethertype, tunnels)


def _by_ethertype(view: memoryview, at: int, ethertype: int, tunnels: int) -> Located | Foreign:
    if ethertype == ETHERTYPE_IPV4:
        return _in_ipv4(view, at, tunnels)
    if ethertype == _ETHERTYPE_IPV6:
        return _in_ipv6(view, at, tunnels)
    return _BY_ETHERTYPE.get(ethertype, Foreign.OTHER)


def _in_ipv4(view: memoryview, at: int, tunnels: int) -> Located | Foreign:
    if at + _IPV4_HEADER_BYTES > len(view):
        return Foreign.OTHER
    header_bytes = (view[at] & 0x0F) * 4
    # A total length of 0 is a frame above 64 KiB that segmentation offload has built.
    total = _U16.unpack_from(view, at + 2)[0] or len(view) - at
    if view[at] >> 4 != 4 or header_bytes < _IPV4_HEADER_BYTES or total < header_bytes:
        return HOSTILE
    if _U16.unpack_from(view, at + 6)[0] & NOT_FRAGMENTED_MASK:
        return Foreign.FRAGMENT
    if view[at + 9] != IPPROTO_TCP:
        return _by_protocol(view, at + header_bytes, view[at + 9], tunnels)
    return at + header_bytes, at + total, bytes(view[at + 12 : at + 20])


def _in_ipv6(view: memoryview, at: int, tunnels: int) -> Located | Foreign:
    if at + _IPV6_HEADER_BYTES > len(view):
        return Foreign.OTHER
    _, payload_bytes, following, _ = _IPV6.unpack_from(view, at)
    tcp_at = at + _IPV6_HEADER_BYTES
    end = tcp_at + payload_bytes if payload_bytes else len(view)
    while following in _IPV6_EXTENSIONS:  # each step moves on by at least 8 bytes
        if tcp_at + 8 > min(end, len(view)):
            return HOSTILE
        following, units = view[tcp_at], view[tcp_at + 1]
        tcp_at += 8 + units * 8
    if following != IPPROTO_TCP:
        return _by_protocol(view, tcp_at, following, tunnels)
    return tcp_at, end, bytes(view[at + 8 : at + 40])


def _by_protocol(view: memoryview, at: int, protocol: int, tunnels: int) -> Located | Foreign:
    if protocol == _IPPROTO_GRE:
        return _in_gre(view, at, tunnels - 1) if tunnels else Foreign.TUNNELS
    if protocol == _IPPROTO_UDP:
        ports = _U16.unpack_from(view, at + 2)[0], _U16.unpack_from(view, at)[0]
        return next((TUNNEL_PORTS[one] for one in ports if one in TUNNEL_PORTS), Foreign.OTHER)
    return _BY_IP_PROTOCOL.get(protocol, Foreign.OTHER)


def _in_gre(view: memoryview, at: int, tunnels: int) -> Located | Foreign:
    flags, kind = _U16.unpack_from(view, at)[0], _U16.unpack_from(view, at + 2)[0]
    if flags & _GRE_VERSION_MASK:
        return Foreign.GRE
    at += 4 + 4 * sum(bool(flags & bit) for bit in (_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE))
    if kind == _TRANSPARENT_ETHERNET:
        return _in_ethernet(view, at, tunnels)
    if kind == _ERSPAN_1_2:  # type I has no header of its own, and no sequence number
        at += _ERSPAN_2_BYTES if flags & _GRE_SEQUENCE else 0
        return _in_ethernet(view, at, tunnels)
    if kind == _ERSPAN_3:
        options = _U16.unpack_from(view, at + 10)[0]
        at += _ERSPAN_3_BYTES + (_ERSPAN_3_SUBHEADER_BYTES if options & 1 else 0)
        if options >> 10 & 0x1F == 2:  # frame type: an IP packet without Ethernet
            is_ipv6 = view[at] >> 4 == 6
            return _by_ethertype(view, at, _ETHERTYPE_IPV6 if is_ipv6 else ETHERTYPE_IPV4, tunnels)
        return _in_ethernet(view, at, tunnels)
    if kind in (ETHERTYPE_IPV4, _ETHERTYPE_IPV6):
        return _by_ethertype(view, at, kind, tunnels)
    return _BY_ETHERTYPE.get(kind, Foreign.GRE)
