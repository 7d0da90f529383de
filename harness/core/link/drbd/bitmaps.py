"""DRBD's out-of-sync bitmap on the link: P_BITMAP (plain words) and P_COMPRESSED_BITMAP (run lengths)
-> the ranges of the volume whose bits are set.

One bit stands for 4 KiB. A transfer has no number and no length: packets follow each other, plain
ones of whole 8-byte words with an empty one at the end, compressed ones until their runs cover the
volume; both kinds may be mixed. Formats: design facts of DRBD 8.4, ``drbd_vli.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from freezeframe.harness.wire import drbd

MAX_RUNS: Final = 1 << 16
"""Of one packet: more than its bits can hold."""
_BLOCK_BYTES: Final = drbd.BITMAP_BLOCK_BYTES
_MAX_CODE_BYTES: Final = 9
"""A code of 64 bits that begins within a byte lies in so many bytes."""


def _levels() -> Iterator[tuple[int, int, int, int]]:
    """(total bits, prefix bits, prefix, the shortest run) of each level of the code."""
    first = 1
    for total_bits, prefix_bits, prefix in drbd.VLI_LEVELS:
        yield total_bits, prefix_bits, prefix, first
        first += 1 << total_bits - prefix_bits


_LEVELS: Final = tuple(_levels())


class BitmapTransfer:
    """One bitmap on its way. Each packet gives its ranges in bytes, or None when it is no part of a
    bitmap: nothing is concluded from a transfer that is ``broken``."""

    def __init__(self) -> None:
        self.block = 0
        """The next bit."""
        self.broken = False
        self.is_over = False
        """It is whole: the next packet begins another one."""

    def plain(self, payload: bytes | memoryview) -> list[tuple[int, int]]:
        if not len(payload):
            self.is_over = True
            return []
        bits = len(payload) * 8
        found = _set_runs(int.from_bytes(payload, "little"), self.block)
        self.block += bits
        return found

    def compressed(self, payload: bytes | memoryview) -> list[tuple[int, int]]:
        data = bytes(payload[1:])
        lead = payload[0] if len(payload) else 0
        if not data or lead & 0x0F != drbd.BITMAP_CODE_RLE_VLI:
            self.broken = True
            return []
        is_set, at, end = bool(lead & 0x80), 0, len(data) * 8 - (lead >> 4 & 7)
        found: list[tuple[int, int]] = []
        while at < end:
            window = int.from_bytes(data[at >> 3 : (at >> 3) + _MAX_CODE_BYTES], "little") >> (
                at & 7
            )
            run = _decoded(window)
            if run is None or at + run[1] > end or self.block + run[0] > 1 << 52:
                self.broken = True
                break
            length, code_bits = run
            if is_set:
                found.append((self.block * _BLOCK_BYTES, (self.block + length) * _BLOCK_BYTES))
            self.block += length
            at += code_bits
            is_set = not is_set
        return found


def _decoded(code: int) -> tuple[int, int] | None:
    """(run length, bits of its code) at the low end of ``code``."""
    for total_bits, prefix_bits, prefix, first in _LEVELS:
        if code & (1 << prefix_bits) - 1 == prefix:
            return first + (code >> prefix_bits & (1 << total_bits - prefix_bits) - 1), total_bits
    return None


def _set_runs(bits: int, first_block: int) -> list[tuple[int, int]]:
    """The runs of ones in ``bits``, whose lowest stands for ``first_block``."""
    found = []
    at = 0
    while bits:
        zeroes = (bits & -bits).bit_length() - 1
        bits >>= zeroes
        at += zeroes
        ones = (~bits & (bits + 1)).bit_length() - 1
        start = first_block + at
        found.append((start * _BLOCK_BYTES, (start + ones) * _BLOCK_BYTES))
        bits >>= ones
        at += ones
    return found
