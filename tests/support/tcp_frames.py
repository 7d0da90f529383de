"""TCP segments as Ethernet frames, and the bytes that reassembly makes of them."""

import socket
import struct
from collections.abc import Sequence

from freezeframe.harness.core.link.tcpstream import (
    Reassembler,
    StreamData,
    StreamEvent,
    StreamGap,
)

A, B = ("10.0.0.1", 40000), ("10.0.0.2", 7788)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def segment(
    src: tuple[str, int],
    dst: tuple[str, int],
    seq: int,
    ack: int,
    flags: int,
    data: bytes = b"",
    vlan: int = 0,
) -> bytes:
    tcp = (
        struct.pack(
            ">HHIIBBHHH", src[1], dst[1], seq % 2**32, ack % 2**32, 5 << 4, flags, 65535, 0, 0
        )
        + data
    )
    if ":" in src[0]:
        ends = socket.inet_pton(socket.AF_INET6, src[0]) + socket.inet_pton(socket.AF_INET6, dst[0])
        packet, kind = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp, 0x86DD
    else:
        ends = socket.inet_aton(src[0]) + socket.inet_aton(dst[0])
        packet, kind = (
            struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + ends + tcp,
            0x0800,
        )
    tags = b"".join(struct.pack(">HH", 0x8100, 5) for _ in range(vlan))
    return bytes(12) + tags + struct.pack(">H", kind) + packet


def feed(
    reassembler: Reassembler, frames: Sequence[bytes], step_ns: int = 1000
) -> list[StreamEvent]:
    return [
        event
        for number, frame in enumerate(frames, 1)
        for event in reassembler.feed(number * step_ns, frame, number)
    ]


def stream(events: Sequence[StreamEvent], source: tuple[str, int] = A) -> bytes:
    """The bytes of one direction, asserting that their offsets are gapless but for the told
    gaps."""
    data, at = b"", 0
    for event in events:
        if event.flow.source != source[0]:
            continue
        if isinstance(event, StreamData):
            assert event.offset == at
            data += bytes(event.data)
            at += len(event.data)
        elif isinstance(event, StreamGap):
            assert event.offset == at
            at += event.length_bytes
    return data


def opening(isn_a: int = 100, isn_b: int = 900) -> list[bytes]:
    return [
        segment(A, B, isn_a, 0, SYN),
        segment(B, A, isn_b, isn_a + 1, SYN | ACK),
        segment(A, B, isn_a + 1, isn_b + 1, ACK),
    ]
