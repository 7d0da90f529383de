"""The bit that a CRC-32C difference names is the bit that was flipped."""

import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.blocks.crcbits import flipped_bit


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=5000), st.integers(min_value=0))
def test_one_flipped_bit_is_found(data: bytes, which: int) -> None:
    bit = which % (8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    assert flipped_bit(crc32c.crc32c(data) ^ crc32c.crc32c(changed), len(data)) == (
        bit // 8,
        bit % 8,
    )


def test_first_and_last_bit_of_a_mebibyte() -> None:
    data = bytes(1 << 20)
    for at, bit in ((0, 0), ((1 << 20) - 1, 7), (123456, 3)):
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        assert flipped_bit(crc32c.crc32c(data) ^ crc32c.crc32c(changed), len(data)) == (at, bit)


def test_two_bits_are_not_taken_for_one() -> None:
    data = bytes(4096)
    changed = bytearray(data)
    changed[5] ^= 1
    changed[4000] ^= 1
    assert flipped_bit(crc32c.crc32c(data) ^ crc32c.crc32c(changed), 4096) is None
    assert flipped_bit(0, 4096) is None
