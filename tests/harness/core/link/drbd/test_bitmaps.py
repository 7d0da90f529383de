"""Bitmaps on the link: as a real node sends them, as the simulated firmware does, and damaged."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.firmware_sim.bitmap import BLOCK_BYTES, Bitmap, encode_rle, plain_payloads
from freezeframe.harness.core.link.drbd.bitmaps import BitmapTransfer
from freezeframe.harness.core.link.ranges import Ranges


def test_a_real_nodes_bitmap_of_16374_bits_all_set() -> None:
    transfer = BitmapTransfer()
    assert transfer.compressed(bytes.fromhex("b27fc51e00")) == [(0, 16374 * BLOCK_BYTES)]
    assert transfer.block == 16374 and not transfer.broken


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=20),
)
def test_both_forms_give_the_ranges_that_were_marked(
    blocks: int, runs: list[tuple[int, int]]
) -> None:
    bitmap, marked = Bitmap(blocks * BLOCK_BYTES), Ranges()
    for first, count in runs:
        if first < blocks:
            count = min(count, blocks - first)
            bitmap.set_blocks(first, count)
            marked.add(first * BLOCK_BYTES, (first + count) * BLOCK_BYTES)
    plain, found = BitmapTransfer(), Ranges()
    for payload in plain_payloads(bitmap, 16):
        for start, end in plain.plain(payload):
            found.add(start, end)
    assert found == marked and plain.is_over
    encoded = encode_rle(bitmap, 1 << 20)
    assert encoded is not None
    assert Ranges(BitmapTransfer().compressed(encoded)) == marked


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_are_broken_or_a_bitmap_and_never_raise(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(100):
        transfer = BitmapTransfer()
        found = transfer.compressed(dice.randbytes(dice.randrange(60)))
        assert all(0 <= start < end for start, end in found)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b"", []),
        (b"\x82", []),  # no code
        (b"\x83\xc5\x1e", []),  # another code than run lengths
        (bytes.fromhex("b27fc51e"), []),  # the code of one long run, cut
        # four runs of one block each, then no code at all
        (b"\x92\x00\xff\xff\xff", [(0, BLOCK_BYTES), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES)]),
    ],
)
def test_what_is_no_bitmap_is_broken_and_what_was_read_before_is_kept(
    payload: bytes, found: list[tuple[int, int]]
) -> None:
    transfer = BitmapTransfer()
    assert transfer.compressed(payload) == found
    assert transfer.broken
