"""The out-of-sync bitmap (one bit per 4 KiB of storage) and its two wire formats.

Plain: little-endian bit stream in P_BITMAP payloads of whole 8-byte words, with an empty packet at
the end. RLE-VLI: P_COMPRESSED_BITMAP; byte 0: bits 0-3 code, bits 4-6 unused bits in the last
byte, bit 7 "the first run is set"; then run lengths of alternating polarity, each in the
variable-length code of ``drbd.VLI_LEVELS``, LSB first.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from freezeframe.harness.wire import drbd

BLOCK_BYTES: Final = drbd.BITMAP_BLOCK_BYTES
WORD_BYTES: Final = 8
MAX_RUN_BLOCKS: Final = 4096
"""Limit for one ``next_run``, which bounds its work."""
_NOT_ZERO: Final = re.compile(rb"[^\x00]")


class Bitmap:
    """Blocks of a volume of ``size_bytes`` that are out of sync."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.blocks = -(-size_bytes // BLOCK_BYTES)
        self.words = -(-self.blocks // (8 * WORD_BYTES))
        self.count = 0
        """Number of set bits."""
        self._bytes = bytearray(self.words * WORD_BYTES)

    def set_blocks(self, first: int, blocks: int) -> int:
        """Set a range inside the volume; return the number of bits that were clear."""
        return self._change(first, blocks, True)

    def clear_blocks(self, first: int, blocks: int) -> int:
        """Clear a range inside the volume; return the number of bits that were set."""
        return self._change(first, blocks, False)

    def set_bytes(self, offset_bytes: int, length_bytes: int) -> int:
        """Set every block that the range touches."""
        first = offset_bytes // BLOCK_BYTES
        return self.set_blocks(first, -(-(offset_bytes + length_bytes) // BLOCK_BYTES) - first)

    def clear_bytes(self, offset_bytes: int, length_bytes: int) -> int:
        """Clear every block that the range covers completely (the last block of the volume may be
        short)."""
        end = offset_bytes + length_bytes
        first = -(-offset_bytes // BLOCK_BYTES)
        behind = self.blocks if end >= self.size_bytes else end // BLOCK_BYTES
        return self.clear_blocks(first, behind - first) if behind > first else 0

    def set_all(self) -> None:
        self.set_blocks(0, self.blocks)

    def clear_all(self) -> None:
        self.clear_blocks(0, self.blocks)

    def is_set(self, block: int) -> bool:
        return bool(self._bytes[block >> 3] >> (block & 7) & 1)

    def next_run(self, first: int, max_blocks: int = MAX_RUN_BLOCKS) -> tuple[int, int] | None:
        """Return the first run of set bits from ``first`` on: (block, blocks <= max_blocks); None:
        there is none."""
        if first >= self.blocks:
            return None
        at = first >> 3
        bits = self._bytes[at] >> (first & 7)
        if bits:
            start = first + (bits & -bits).bit_length() - 1
        else:
            found = _NOT_ZERO.search(self._bytes, at + 1)
            if found is None:
                return None
            bits = self._bytes[found.start()]
            start = found.start() * 8 + (bits & -bits).bit_length() - 1
        window = int.from_bytes(
            self._bytes[start >> 3 : (start + max_blocks + 7) >> 3], "little"
        ) >> (start & 7)
        ones = (~window & (window + 1)).bit_length() - 1
        return start, min(ones, max_blocks)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Return all runs of set bits as (first block, blocks), each of maximum length."""
        held_first, held = 0, 0
        run = self.next_run(0)
        while run is not None:
            first, blocks = run
            if held and first == held_first + held:
                held += blocks
            else:
                if held:
                    yield held_first, held
                held_first, held = first, blocks
            run = self.next_run(first + blocks)
        if held:
            yield held_first, held

    def to_bytes(self) -> bytes:
        """Return the little-endian bit stream, in whole words."""
        return bytes(self._bytes)

    def merge(self, data: bytes | memoryview, offset_bytes: int = 0) -> None:
        """OR a part of another bitmap's ``to_bytes`` into this one. Raises ValueError when it does
        not fit."""
        end = offset_bytes + len(data)
        if end > len(self._bytes):
            raise ValueError(f"bitmap of {end} bytes, expected {len(self._bytes)}")
        inside = (1 << max(0, min(self.blocks, end * 8) - offset_bytes * 8)) - 1
        old = int.from_bytes(self._bytes[offset_bytes:end], "little")
        new = old | int.from_bytes(data, "little") & inside
        self._bytes[offset_bytes:end] = new.to_bytes(len(data), "little")
        self.count += (old ^ new).bit_count()

    def _change(self, first: int, blocks: int, value: bool) -> int:
        if first < 0 or blocks < 0 or first + blocks > self.blocks:
            raise ValueError(f"blocks {first} +{blocks} of {self.blocks}")
        low, high = first >> 3, (first + blocks + 7) >> 3
        old = int.from_bytes(self._bytes[low:high], "little")
        mask = (1 << blocks) - 1 << (first & 7)
        new = old | mask if value else old & ~mask
        self._bytes[low:high] = new.to_bytes(high - low, "little")
        changed = (old ^ new).bit_count()
        self.count += changed if value else -changed
        return changed


# --- the wire: plain ----------------------------------------------------------------------------------------------


def plain_payload_bytes(header_bytes: int) -> int:
    """Return the longest payload of a P_BITMAP after a header of that length."""
    return (drbd.BITMAP_PACKET_BYTES - header_bytes) // WORD_BYTES * WORD_BYTES


def plain_payloads(bitmap: Bitmap, header_bytes: int) -> list[bytes]:
    """Yield the payloads of the P_BITMAP packets of the bitmap, including the empty one at the
    end."""
    data = bitmap.to_bytes()
    step = plain_payload_bytes(header_bytes)
    return [data[at : at + step] for at in range(0, len(data), step)] + [b""]


# --- the wire: run lengths ----------------------------------------------------------------------------------------


def _levels() -> Iterator[tuple[int, int, int, int, int]]:
    first = 1
    for total_bits, prefix_bits, prefix in drbd.VLI_LEVELS:
        behind = first + (1 << total_bits - prefix_bits)
        yield first, behind, total_bits, prefix_bits, prefix
        first = behind


LEVELS: Final = tuple(_levels())
"""(shortest run, one past the longest run, total bits, prefix bits, prefix) of each level."""
_MAX_CODE_BYTES: Final = 9
"""A 64-bit code that starts inside a byte covers this many bytes."""


def encode_rle(bitmap: Bitmap, max_bytes: int) -> bytes | None:
    """Return the payload of a single P_COMPRESSED_BITMAP for the bitmap; None when it needs more
    than ``max_bytes``."""
    code, used_bits, max_bits = 0, 0, (max_bytes - 1) * 8
    for length in _run_lengths(bitmap):
        for first, behind, total_bits, prefix_bits, prefix in LEVELS:
            if length < behind:
                code |= (prefix | length - first << prefix_bits) << used_bits
                used_bits += total_bits
                break
        if used_bits > max_bits:
            return None
    code_bytes = -(-used_bits // 8)
    first_is_set = bitmap.blocks > 0 and bitmap.is_set(0)
    lead = drbd.BITMAP_CODE_RLE_VLI | code_bytes * 8 - used_bits << 4 | first_is_set << 7
    return bytes((lead,)) + code.to_bytes(code_bytes, "little")


def _run_lengths(bitmap: Bitmap) -> Iterator[int]:
    """Yield the lengths of the runs of alternating polarity over all blocks."""
    at = 0
    for first, blocks in bitmap.runs():
        if first > at:
            yield first - at
        yield blocks
        at = first + blocks
    if at < bitmap.blocks:
        yield bitmap.blocks - at


def decode_rle(payload: bytes | memoryview, bitmap: Bitmap, first_block: int = 0) -> int:
    """OR the runs of one P_COMPRESSED_BITMAP into ``bitmap``, from ``first_block`` on; return the
    block after them.

    Raises ValueError on an invalid payload.
    """
    if len(payload) < 2:
        raise ValueError("compressed bitmap is too short")
    lead, data = payload[0], bytes(payload[1:])
    if lead & 0x0F != drbd.BITMAP_CODE_RLE_VLI:
        raise ValueError(f"unknown bitmap encoding {lead & 0x0F}")
    is_set, end_bits, at_bits, block = (
        bool(lead & 0x80),
        len(data) * 8 - (lead >> 4 & 7),
        0,
        first_block,
    )
    while at_bits < end_bits:
        window = data[at_bits >> 3 : (at_bits >> 3) + _MAX_CODE_BYTES]
        length, code_bits = _decode_length(int.from_bytes(window, "little") >> (at_bits & 7))
        at_bits += code_bits
        if at_bits > end_bits or block + length > bitmap.blocks:
            raise ValueError("bitmap overflow while decoding")
        if is_set:
            bitmap.set_blocks(block, length)
        block += length
        is_set = not is_set
    return block


def _decode_length(code: int) -> tuple[int, int]:
    """Return the run length at the low end of ``code``, and its number of bits."""
    for first, _, total_bits, prefix_bits, prefix in LEVELS:
        if code & (1 << prefix_bits) - 1 == prefix:
            return first + (code >> prefix_bits & (1 << total_bits - prefix_bits) - 1), total_bits
    raise ValueError("bitmap decoding error: no such code")


class BitmapReceiver:
    """A bitmap transfer in progress. Both kinds of packets may be mixed; everything is OR-ed into
    ``bitmap``."""

    def __init__(self, bitmap: Bitmap, header_bytes: int) -> None:
        self._bitmap = bitmap
        self._header_bytes = header_bytes
        self._block = 0
        self.plain_bytes = self.plain_packets = self.rle_bytes = self.rle_packets = 0
        """Bytes received so far, including headers."""

    def plain(self, payload: memoryview) -> bool:
        """Process one P_BITMAP; True: the transfer is complete. Raises ValueError on an impossible
        length."""
        word = self._block // (8 * WORD_BYTES)
        want = min(
            plain_payload_bytes(self._header_bytes), (self._bitmap.words - word) * WORD_BYTES
        )
        if len(payload) != want:
            raise ValueError(f"want ({want}) != size ({len(payload)})")
        self.plain_packets += 1
        self.plain_bytes += self._header_bytes + len(payload)
        if not want:
            return True
        self._bitmap.merge(payload, word * WORD_BYTES)
        self._block = (word * WORD_BYTES + len(payload)) * 8
        return False

    def compressed(self, payload: memoryview) -> bool:
        """Process one P_COMPRESSED_BITMAP; True: the transfer is complete. Raises ValueError."""
        self._block = decode_rle(payload, self._bitmap, self._block)
        self.rle_packets += 1
        self.rle_bytes += self._header_bytes + len(payload)
        return self._block >= self._bitmap.blocks


def statistics(
    bitmap: Bitmap, header_bytes: int, plain: tuple[int, int], rle: tuple[int, int]
) -> str:
    """Return the summary line of the kernel; ``plain`` and ``rle`` are (bytes with headers,
    packets)."""
    total = plain[0] + rle[0]
    words_bytes = bitmap.words * WORD_BYTES
    as_plain = (
        header_bytes * (-(-words_bytes // plain_payload_bytes(header_bytes)) + 1) + words_bytes
    )
    saved = max(0, 1000 - 1000 * total // as_plain)
    return (
        f"plain {plain[0]}({plain[1]}), RLE {rle[0]}({rle[1]}), total {total}; "
        f"compression: {saved // 10}.{saved % 10}%"
    )


assert LEVELS[0][0] == 1 and all(a[1] == b[0] for a, b in pairwise(LEVELS))
