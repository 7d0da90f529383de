"""Frames of other link layers -> the Ethernet frames that the rest of the link speaks of.

The payload stays as it is; a header that has no Ethernet addresses gets zeros in their place.
Numbers: https://www.tcpdump.org/linktypes.html.
"""

import struct
from typing import Final

ETHERNET: Final = 1
NULL: Final = 0
"""BSD loopback: the address family in the capturing machine's byte order, then IP."""
LOOP: Final = 108
"""The same in network byte order."""
RAW_IP: Final = frozenset({12, 14, 101})
"""DLT_RAW has two numbers of its own beside LINKTYPE_RAW."""
IPV4, IPV6 = 228, 229
LINUX_SLL, LINUX_SLL2 = 113, 276
SUPPORTED: Final = frozenset({ETHERNET, NULL, LOOP, *RAW_IP, IPV4, IPV6, LINUX_SLL, LINUX_SLL2})
NAMES: Final = {
    ETHERNET: "Ethernet", NULL: "BSD loopback", LOOP: "OpenBSD loopback", IPV4: "IPv4", IPV6: "IPv6",
    LINUX_SLL: "Linux cooked", LINUX_SLL2: "Linux cooked 2",
} | dict.fromkeys(RAW_IP, "raw IP")  # fmt: skip

_NO_ADDRESSES: Final = bytes(12)
_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = b"\x08\x00", b"\x86\xdd"
_SLL_BYTES, _SLL2_BYTES, _FAMILY_BYTES = 16, 20, 4
_SLL_SOURCE: Final = struct.Struct(">4xH8s")
"""packet type, ARPHRD, then address length, address, protocol."""
_SLL2_SOURCE: Final = struct.Struct(">11xB8s")
"""protocol, reserved, interface, ARPHRD, packet type, then address length, address."""
_ADDRESS_BYTES: Final = 6


def ethernet(linktype: int, frame: bytes) -> bytes:
    """``frame`` as an Ethernet frame; b"" when it is shorter than its own header."""
    if linktype == ETHERNET:
        return frame
    if linktype == LINUX_SLL:
        if len(frame) < _SLL_BYTES:
            return b""
        size, address = _SLL_SOURCE.unpack_from(frame)
        return _from(size, address) + frame[_SLL_BYTES - 2 :]
    if linktype == LINUX_SLL2:
        if len(frame) < _SLL2_BYTES:
            return b""
        size, address = _SLL2_SOURCE.unpack_from(frame)
        return _from(size, address) + frame[:2] + frame[_SLL2_BYTES:]
    if linktype in (NULL, LOOP):
        frame = frame[_FAMILY_BYTES:]
    version = frame[0] >> 4 if frame else 0
    if version not in (4, 6):
        return b""
    return _NO_ADDRESSES + (_ETHERTYPE_IPV4 if version == 4 else _ETHERTYPE_IPV6) + frame


def _from(size: int, address: bytes) -> bytes:
    """Both addresses: nobody's, and the sender's where it has the length of Ethernet's."""
    known = address[:_ADDRESS_BYTES] if size == _ADDRESS_BYTES else bytes(_ADDRESS_BYTES)
    return bytes(_ADDRESS_BYTES) + known
