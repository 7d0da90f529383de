"""Frames made by hand: what two ends say on one TCP connection, as a capture of the link has it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns

SEGMENT_BYTES: Final = 1000
CLIENT_PORT: Final = 40_000
BEGIN_NS: Final = 10**18
_SYN, _ACK, _PUSH = 2, 16, 8


def conversation(
    port: int,
    said: Iterable[tuple[bool, bytes]],
    *,
    primary: str = "10.0.0.1",
    secondary: str = "10.0.0.2",
) -> list[tuple[Ns, bytes]]:
    """(time, Ethernet frame) of a connection that the primary opens to ``port`` of the secondary.

    ``said``: (whether the primary says it, bytes), in order. A frame each millisecond.
    """
    wire = _Wire(port, primary, secondary)
    for is_primary, data in said:
        wire.send(is_primary, data)
    return wire.frames


class _Wire:
    def __init__(self, port: int, primary: str, secondary: str) -> None:
        self.frames: list[tuple[Ns, bytes]] = []
        self._ports = {True: CLIENT_PORT, False: port}
        self._addresses = {True: _packed(primary), False: _packed(secondary)}
        self._seq = {True: 1000, False: 5000}
        self._segment(True, _SYN)
        self._seq[True] += 1
        self._segment(False, _SYN | _ACK)
        self._seq[False] += 1
        self._segment(True, _ACK)

    def send(self, is_primary: bool, data: bytes) -> None:
        for at in range(0, len(data), SEGMENT_BYTES):
            piece = data[at : at + SEGMENT_BYTES]
            self._segment(is_primary, _PUSH | _ACK, piece)
            self._seq[is_primary] += len(piece)
        self._segment(not is_primary, _ACK)

    def _segment(self, is_primary: bool, flags: int, data: bytes = b"") -> None:
        ends = self._addresses[is_primary] + self._addresses[not is_primary]
        tcp = struct.pack(
            ">HHIIBBHHH", self._ports[is_primary], self._ports[not is_primary], self._seq[is_primary],
            self._seq[not is_primary] if flags & _ACK else 0, 0x50, flags, 65535, 0, 0,
        ) + data  # fmt: skip
        summed = _checksum(ends + struct.pack(">HH", 6, len(tcp)) + tcp)
        tcp = tcp[:16] + struct.pack(">H", summed) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends
        ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
        t_ns = BEGIN_NS + len(self.frames) * NS_PER_MS
        self.frames.append((t_ns, bytes(12) + b"\x08\x00" + ip + tcp))


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
