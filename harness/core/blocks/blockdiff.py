"""Reconstruct the bytes of a wrong block from the evidence. Pure: bytes to bytes."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from freezeframe.harness.core.blocks import crcbits

ROW_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class BlockDiff:
    """What a block should hold, and what it held."""

    sector: int
    """First sector of the block on the volume."""
    expected: bytes
    found: bytes
    """Same length as ``expected``."""
    expected_from: str
    found_from: str
    """Source of the bytes, as text."""

    @property
    def offsets(self) -> list[int]:
        """Return the offsets of the differing bytes from the start of the block."""
        pairs = zip(self.expected, self.found, strict=True)
        return [at for at, (one, other) in enumerate(pairs) if one != other]


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum that a device reports."""

    name: str
    polynomial: int
    compute: Callable[[bytes], int]


CRC32C: Final = Checksum("CRC-32C", crcbits.CRC32C, crc32c)
"""Used by the digest of the link and by event logs for writes."""
CRC32: Final = Checksum("CRC-32", crcbits.CRC32, zlib.crc32)
"""Used by scrubs for blocks."""


def rebuilt(
    expected: bytes, expected_crc: int, found_crc: int, checksum: Checksum = CRC32C
) -> tuple[bytes, str] | None:
    """Reconstruct the bytes for which a device computed ``found_crc`` instead of ``expected_crc``.

    Return None unless ``expected_crc`` is the checksum of ``expected`` and a single cause explains
    ``found_crc``: all zeroes, or one flipped bit. The result is verified against ``found_crc``.
    """
    if not expected or checksum.compute(expected) != expected_crc or found_crc == expected_crc:
        return None
    zeroes = bytes(len(expected))
    if checksum.compute(zeroes) == found_crc:
        return zeroes, f"nothing but zeroes gives that {checksum.name}"
    place = crcbits.flipped_bit(
        expected_crc ^ found_crc, len(expected), polynomial=checksum.polynomial
    )
    if place is None:
        return None
    offset, bit = place
    found = bytearray(expected)
    found[offset] ^= 1 << bit
    if checksum.compute(bytes(found)) != found_crc:
        return None
    return bytes(found), f"only bit {bit} of byte {offset} flipped gives that {checksum.name}"


@dataclass(frozen=True, kw_only=True)
class HexRow:
    """One line of a hex view. ``offset`` counts from the start of the block."""

    offset: int
    expected: bytes
    found: bytes


def hex_rows(diff: BlockDiff, *, context: int = 2, limit: int = 48) -> list[HexRow | None]:
    """Return the differing rows with ``context`` equal rows around them. None marks omitted rows."""
    wanted: set[int] = set()
    for at in diff.offsets:
        row = at // ROW_BYTES
        wanted.update(range(max(row - context, 0), row + context + 1))
    last = (len(diff.expected) - 1) // ROW_BYTES
    rows: list[HexRow | None] = []
    previous = -1
    for row in sorted(row for row in wanted if row <= last)[:limit]:
        if row != previous + 1:
            rows.append(None)
        at = row * ROW_BYTES
        rows.append(
            HexRow(
                offset=at,
                expected=diff.expected[at : at + ROW_BYTES],
                found=diff.found[at : at + ROW_BYTES],
            )
        )
        previous = row
    if rows and previous != last:
        rows.append(None)
    return rows
