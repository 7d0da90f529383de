"""Where TCP begins and ends in an Ethernet frame: VLAN tags, IPv4 with options, IPv6 with extension
headers."""

import struct
from typing import Final

ETHERTYPE_IPV4: Final = 0x0800
IPPROTO_TCP: Final = 6
NOT_FRAGMENTED_MASK: Final = 0x3FFF
"""More-fragments bit and offset of IPv4's fragment field."""
_ETHERTYPE_IPV6: Final = 0x86DD
_ETHERTYPES_VLAN: Final = frozenset({0x8100, 0x88A8, 0x9100})
_MAX_VLAN_TAGS: Final = 2
_ETHERNET_BYTES: Final = 14
_IPV4_HEADER_BYTES: Final = 20
_IPV6_HEADER_BYTES: Final = 40
_IPV6_EXTENSIONS: Final = frozenset({0, 43, 60})
"""Hop-by-hop, routing, destination options: skipped by their own length. A fragment (44) is not
looked into."""
_IPV6: Final = struct.Struct(">IHBB")
_U16: Final = struct.Struct(">H")

Located = tuple[int, int, bytes]
"""(offset of the TCP header, end of the IP packet in the frame, source and destination address)."""
HOSTILE: Final[Located] = (-1, -1, b"")
"""Lengths that cannot be true."""


def locate_tcp(view: memoryview) -> Located | None:
    """TCP in a frame of at least 54 bytes; None: it is something else, or a fragment; HOSTILE: it
    lies."""
    at = _ETHERNET_BYTES - 2
    ethertype = _U16.unpack_from(view, at)[0]
    for _ in range(_MAX_VLAN_TAGS):
        if ethertype in _ETHERTYPES_VLAN:
            at += 4
            ethertype = _U16.unpack_from(view, at)[0]
    at += 2
    if ethertype == ETHERTYPE_IPV4:
        return _in_ipv4(view, at)
    return _in_ipv6(view, at) if ethertype == _ETHERTYPE_IPV6 else None


def _in_ipv4(view: memoryview, at: int) -> Located | None:
    if at + _IPV4_HEADER_BYTES > len(view):
        return None
    header_bytes = (view[at] & 0x0F) * 4
    total = _U16.unpack_from(view, at + 2)[0] or len(view) - at
    if view[at] >> 4 != 4 or header_bytes < _IPV4_HEADER_BYTES or total < header_bytes:
        return HOSTILE
    fragment = _U16.unpack_from(view, at + 6)[0]
    if view[at + 9] != IPPROTO_TCP or fragment & NOT_FRAGMENTED_MASK:
        return None
    return at + header_bytes, at + total, bytes(view[at + 12 : at + 20])


def _in_ipv6(view: memoryview, at: int) -> Located | None:
    if at + _IPV6_HEADER_BYTES > len(view):
        return None
    _, payload_bytes, following, _ = _IPV6.unpack_from(view, at)
    tcp_at = at + _IPV6_HEADER_BYTES
    end = tcp_at + payload_bytes if payload_bytes else len(view)
    while following in _IPV6_EXTENSIONS:  # each step moves on by at least 8 bytes
        if tcp_at + 8 > min(end, len(view)):
            return HOSTILE
        following, units = view[tcp_at], view[tcp_at + 1]
        tcp_at += 8 + units * 8
    return (tcp_at, end, bytes(view[at + 8 : at + 40])) if following == IPPROTO_TCP else None
