"""Find the single flipped bit that explains a wrong CRC.

A CRC is linear: the difference of the CRCs of a message and of the same message with one bit
flipped depends only on the number of bits after the flipped one. It is POLYNOMIAL advanced once
per such bit. Finding the number is a discrete logarithm, solved with baby steps (a table of the
first few) and giant steps (the difference moved back by many steps at a time).
"""

from functools import cache
from typing import Final

CRC32C: Final = 0x82F63B78
"""CRC-32C (Castagnoli), reflected: the replication link's digest."""
CRC32: Final = 0xEDB88320
"""CRC-32 (IEEE 802.3), reflected: zlib's."""
_BABY_STEPS: Final = 4096
_TOP_BIT: Final = 1 << 31


def flipped_bit(
    crc_difference: int, message_bytes: int, *, polynomial: int = CRC32C
) -> tuple[int, int] | None:
    """Return (byte offset, bit) of the flipped bit in a message of that length; bit 0 is the least
    significant.

    Return None when no single bit explains the difference. Takes about a millisecond for 1 MiB.
    """
    babies, back = _tables(polynomial)
    bits, value = message_bytes * 8, crc_difference
    for behind in range(0, bits, _BABY_STEPS):
        small = babies.get(value)
        if small is not None:
            index = bits - 1 - behind - small
            return (index // 8, index % 8) if index >= 0 else None
        value = (
            back[0][value & 0xFF]
            ^ back[1][value >> 8 & 0xFF]
            ^ back[2][value >> 16 & 0xFF]
            ^ back[3][value >> 24]
        )
    return None


@cache
def _tables(polynomial: int) -> tuple[dict[int, int], tuple[list[int], ...]]:
    """Return (value -> steps from the polynomial, for the first few; tables for _BABY_STEPS steps
    back, one per byte)."""
    babies: dict[int, int] = {}
    value = polynomial
    for steps in range(_BABY_STEPS):
        babies[value] = steps
        value = value >> 1 ^ (polynomial if value & 1 else 0)
    columns = []
    for bit in range(32):
        value = 1 << bit
        for _ in range(
            _BABY_STEPS
        ):  # the polynomial has its top bit set, so that a step can be undone
            value = (value ^ polynomial) << 1 | 1 if value & _TOP_BIT else value << 1
        columns.append(value)
    tables = []
    for byte in range(4):
        table = [0]
        for bit in range(8):
            table += [known ^ columns[byte * 8 + bit] for known in table]
        tables.append(table)
    return babies, tuple(tables)
