"""Capture files in every form that is read, written here from their specifications: pcap
(draft-ietf-opsawg-pcap), pcapng (draft-ietf-opsawg-pcapng), link types (tcpdump.org/linktypes.html).
"""

import struct
from collections.abc import Sequence

Frames = Sequence[tuple[int, bytes]]
"""(nanoseconds since 1970, Ethernet frame) each."""


def pcap(
    frames: Frames, *, order: str = "<", nanoseconds: bool = False, linktype: int = 1
) -> bytes:
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, linktype)
    for t_ns, frame in frames:
        data = under(linktype, frame)
        seconds, rest = divmod(t_ns, 10**9)
        out += struct.pack(order + "IIII", seconds, rest // unit, len(data), len(data)) + data
    return out


def pcapng(
    frames: Frames, *, order: str = "<", tsresol: int = 6, linktype: int = 1, interfaces: int = 1
) -> bytes:
    """The frames on the last of its interfaces."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + size + body + size

    out = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    resolution = struct.pack(order + "HHB3xHH", 9, 1, tsresol, 0, 0)
    for _ in range(interfaces):
        out += block(1, struct.pack(order + "HHI", linktype, 0, 0) + resolution)
    for t_ns, frame in frames:
        data = under(linktype, frame)
        ticks = t_ns * 10**tsresol // 10**9
        head = (interfaces - 1, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
        out += block(6, struct.pack(order + "IIIII", *head) + data)
    return out


def under(linktype: int, frame: bytes) -> bytes:
    """The frame's packet under another link layer."""
    protocol, packet = frame[12:14], frame[14:]
    if linktype == 1:
        return frame
    if linktype == 113:
        return struct.pack(">HHH8s", 0, 1, 6, frame[6:12]) + protocol + packet
    if linktype == 276:
        return protocol + struct.pack(">HIHBB8s", 0, 2, 1, 0, 6, frame[6:12]) + packet
    assert linktype in (12, 101)
    return packet
