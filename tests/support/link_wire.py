"""A healthy replicating pair as Ethernet frames."""

import random
import socket
import struct
from collections.abc import Collection, Sequence

from link_script import (
    UNPLUG,
    P,
    S,
    features,
    h80,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    p_data,
    protocol,
)

MSS = 1448


class Wire:
    """Two TCP connections as frames: each send is cut into segments, each is acknowledged by the
    other end."""

    def __init__(self, kinds: Collection[str] = ("data", "meta")) -> None:
        """``kinds``: its connections; the primary opens "data"."""
        self.frames: list[bytes] = []
        self.seq: dict[tuple[str, str], int] = {}
        for kind in kinds:
            opener, other = (P, S) if kind == "data" else (S, P)
            self.seq[kind, opener], self.seq[kind, other] = 1000, 5000
            self._segment(kind, opener, 2, b"")
            self.seq[kind, opener] += 1
            self._segment(kind, other, 18, b"")
            self.seq[kind, other] += 1

    def send(self, kind: str, sender: str, *packets: bytes) -> None:
        data = b"".join(packets)
        for at in range(0, len(data), MSS):
            piece = data[at : at + MSS]
            self._segment(kind, sender, 24, piece)
            self.seq[kind, sender] += len(piece)
        self._segment(kind, S if sender == P else P, 16, b"")

    def _segment(self, kind: str, sender: str, flags: int, data: bytes) -> None:
        receiver = S if sender == P else P
        opener = P if kind == "data" else S
        ports = (40000, 7788) if sender == opener else (7788, 40000)
        seq, ack = self.seq[kind, sender], self.seq[kind, receiver]
        options = b"\x01\x03\x03\x08" if flags & 2 else b""  # windows of up to 16 MiB
        head = (5 + len(options) // 4) << 4
        tcp = struct.pack(">HHIIBBHHH", *ports, seq, ack, head, flags, 65535, 0, 0) + options + data
        ends = socket.inet_aton(sender) + socket.inet_aton(receiver)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
        self.frames.append(bytes(12) + b"\x08\x00" + ip + ends + tcp)


def handshake(wire: Wire) -> None:
    wire.send("data", P, h80(0xFFF2))
    wire.send("meta", S, h80(0xFFF1))
    for end in (P, S):
        wire.send("data", end, features())
    for end in (P, S):
        wire.send("data", end, protocol())


def healthy_exchange(
    epochs: int, sizes: Sequence[int] = (512, 4096, 8192), *, unanswered: Collection[int] = ()
) -> list[bytes]:
    """Not so healthy with ``unanswered`` writes, which count from 1."""
    wire, rnd = Wire(), random.Random(5)
    handshake(wire)
    number = 0
    for epoch in range(epochs):
        writes = [(number := number + 1, rnd.choice(sizes)) for _ in range(rnd.randrange(1, 6))]
        for one, size in writes:
            wire.send("data", P, p_data(one % 7, one * 16, rnd.randbytes(size)))
        for one, size in [write for write in writes if write[0] not in unanswered]:
            wire.send("meta", S, p_ack(one % 7, one * 16, size))
        wire.send("data", P, p_barrier(epoch + 1), h100(UNPLUG))
        wire.send("meta", S, p_barrier_ack(epoch + 1, len(writes)))
    return wire.frames
