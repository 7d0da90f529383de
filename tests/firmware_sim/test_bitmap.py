"""The out-of-sync bitmap against a set of block numbers, and its forms on the wire."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.firmware_sim.bitmap import (
    BLOCK_BYTES,
    Bitmap,
    BitmapReceiver,
    decode_rle,
    encode_rle,
    plain_payloads,
    statistics,
)

BLOCKS = 200


def bitmap_of(blocks: set[int], size: int = BLOCKS) -> Bitmap:
    bitmap = Bitmap(size * BLOCK_BYTES)
    for block in blocks:
        bitmap.set_blocks(block, 1)
    return bitmap


def members(bitmap: Bitmap) -> set[int]:
    return {block for first, blocks in bitmap.runs() for block in range(first, first + blocks)}


ranges = st.tuples(st.booleans(), st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(
    lambda r: (r[0], min(r[1:]), max(r[1:]))
)
block_sets = st.sets(st.integers(0, BLOCKS - 1))


@given(st.lists(ranges, max_size=20))
def test_ranges_like_a_set(changes: list[tuple[bool, int, int]]) -> None:
    bitmap, model = Bitmap(BLOCKS * BLOCK_BYTES), set[int]()
    for value, first, behind in changes:
        span = set(range(first, behind))
        if value:
            assert bitmap.set_blocks(first, behind - first) == len(span - model)
            model |= span
        else:
            assert bitmap.clear_blocks(first, behind - first) == len(span & model)
            model -= span
    assert members(bitmap) == model
    assert bitmap.count == len(model)
    runs = list(bitmap.runs())
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(runs))


def test_a_long_run_is_one_run() -> None:
    bitmap = Bitmap(50_000 * BLOCK_BYTES)
    bitmap.set_blocks(3, 40_000)
    assert list(bitmap.runs()) == [(3, 40_000)]


@given(st.integers(0, 100), st.integers(1, 100))
def test_bytes_set_outwards_and_clear_inwards(sector: int, sectors: int) -> None:
    size = 101 * 512 * 8 + 1024
    offset, length = sector * 512, sectors * 512
    bitmap = Bitmap(size)
    bitmap.set_bytes(offset, length)
    assert members(bitmap) == {at // BLOCK_BYTES for at in range(offset, offset + length, 512)}
    bitmap.set_all()
    bitmap.clear_bytes(offset, length)
    touched = {block for block in range(bitmap.blocks) if not bitmap.is_set(block)}
    assert touched == {
        block
        for block in range(bitmap.blocks)
        if block * BLOCK_BYTES >= offset
        and min(block * BLOCK_BYTES + BLOCK_BYTES, size) <= offset + length
    }


def test_the_short_last_block_is_cleared() -> None:
    bitmap = Bitmap(BLOCK_BYTES + 512)
    bitmap.set_all()
    assert bitmap.clear_bytes(BLOCK_BYTES, 512) == 1


@pytest.mark.parametrize(("first", "blocks"), [(-1, 1), (BLOCKS, 1), (0, BLOCKS + 1), (0, -1)])
def test_outside_is_refused(first: int, blocks: int) -> None:
    with pytest.raises(ValueError):
        Bitmap(BLOCKS * BLOCK_BYTES).set_blocks(first, blocks)


# --- run lengths --------------------------------------------------------------------------------------------------


def test_the_real_node_s_vector() -> None:
    bitmap = Bitmap(16374 * BLOCK_BYTES)
    bitmap.set_all()
    assert encode_rle(bitmap, 4000) == bytes.fromhex("b27fc51e00")


@given(block_sets, block_sets)
def test_rle_there_and_back(blocks: set[int], already: set[int]) -> None:
    payload = encode_rle(bitmap_of(blocks), 4000)
    assert payload is not None
    other = bitmap_of(already)
    assert decode_rle(payload, other) == BLOCKS
    assert members(other) == blocks | already


@pytest.mark.parametrize(
    "length", [1, 2, 3, 6, 7, 14, 15, 46, 47, 558, 559, 8750, 8751, 2_105_902, 2_105_903]
)
def test_every_level_of_the_code(length: int) -> None:
    bitmap = Bitmap((length + 5) * BLOCK_BYTES)
    bitmap.set_blocks(0, length)
    payload = encode_rle(bitmap, 100)
    assert payload is not None
    other = Bitmap(bitmap.size_bytes)
    decode_rle(payload, other)
    assert list(other.runs()) == [(0, length)]


def test_what_does_not_fit_is_not_encoded() -> None:
    assert encode_rle(bitmap_of(set(range(0, BLOCKS, 2))), 20) is None


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_are_refused(payload: bytes) -> None:
    bitmap = Bitmap(BLOCKS * BLOCK_BYTES)
    try:
        behind = decode_rle(payload, bitmap)
    except ValueError:
        return
    assert behind <= BLOCKS and bitmap.count <= behind


@pytest.mark.parametrize(
    "payload", [b"", b"\x02", b"\x01\x00\x00", b"\xb2\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_damaged_run_lengths(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_rle(payload, Bitmap(BLOCKS * BLOCK_BYTES))


# --- plain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header_bytes", [8, 16])
@pytest.mark.parametrize("blocks", [1, 63, 64, 65, 32640, 32641, 70_000])
def test_plain_there_and_back(header_bytes: int, blocks: int) -> None:
    bitmap = Bitmap(blocks * BLOCK_BYTES)
    for block in range(0, blocks, 3):
        bitmap.set_blocks(block, 1)
    payloads = plain_payloads(bitmap, header_bytes)
    assert payloads[-1] == b""
    assert all(
        0 < len(payload) <= 4096 - header_bytes and len(payload) % 8 == 0
        for payload in payloads[:-1]
    )
    other = Bitmap(bitmap.size_bytes)
    receiver = BitmapReceiver(other, header_bytes)
    done = [receiver.plain(memoryview(payload)) for payload in payloads]
    assert done == [False] * (len(payloads) - 1) + [True]
    assert other.to_bytes() == bitmap.to_bytes() and other.count == bitmap.count


def test_plain_of_the_wrong_length() -> None:
    receiver = BitmapReceiver(Bitmap(BLOCKS * BLOCK_BYTES), 16)
    with pytest.raises(ValueError, match=r"want \(32\) != size \(40\)"):
        receiver.plain(memoryview(bytes(40)))


def test_bits_behind_the_end_are_ignored() -> None:
    bitmap = Bitmap(3 * BLOCK_BYTES)
    BitmapReceiver(bitmap, 16).plain(memoryview(b"\xff" * 8))
    assert bitmap.count == 3


def test_statistics_as_a_real_node_prints_them() -> None:
    bitmap = Bitmap(16374 * BLOCK_BYTES)
    assert (
        statistics(bitmap, 16, (0, 0), (26, 1))
        == "plain 0(0), RLE 26(1), total 26; compression: 98.8%"
    )
    assert (
        statistics(bitmap, 16, (0, 0), (33, 1))
        == "plain 0(0), RLE 33(1), total 33; compression: 98.5%"
    )
