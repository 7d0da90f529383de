"""The comparison: every kind of wrong is seen, named and counted; nothing right is accused."""

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.blocks.blockstamp import (
    ACK,
    DISCONNECTED,
    FLUSHED,
    INTENT,
    Journal,
    Write,
    journal_header,
    journal_mark,
    journal_record,
    stamp,
)
from freezeframe.harness.core.blocks.compare import Comparison, Reader, compare

SIZE_BYTES = 256 << 10
SECTORS = 128
FIRST_LBA = 64
OLD, NEW, MAYBE = Write(0, 64, 64, 10), Write(1, 96, 32, 20), Write(2, 64, 16, 30)
"""NEW overwrites the second half of OLD; MAYBE, not acknowledged, its first quarter."""


def reader(data: bytes | bytearray) -> Reader:
    return lambda offset, length: bytes(data[offset : offset + length])


def content(write: Write) -> bytes:
    return stamp(3, 9, write.write_id, write.lba, write.sectors, write.time_ns)


def journal(*writes: Write, unacked: tuple[Write, ...] = ()) -> Journal:
    data = journal_header(3, 9, FIRST_LBA, SECTORS)
    for write in (*writes, *unacked):
        data += journal_record(INTENT, write, write.time_ns)
        if write not in unacked:
            data += journal_record(ACK, write, 99)
    return Journal.read(data)


def volume(*writes: Write) -> bytearray:
    data = bytearray(
        b"untouched by the writer, but the same on both sides.".ljust(64) * (SIZE_BYTES // 64)
    )
    data[FIRST_LBA * 512 : (FIRST_LBA + SECTORS) * 512] = bytes(SECTORS * 512)
    for write in writes:
        data[write.lba * 512 : (write.lba + write.sectors) * 512] = content(write)
    return data


JOURNAL = journal(OLD, NEW, unacked=(MAYBE,))


def judge(
    primary: bytes | bytearray, secondary: bytes | bytearray, *, chunk_bytes: int = 1 << 20
) -> Comparison:
    return compare(
        JOURNAL, None, reader(primary), reader(secondary), SIZE_BYTES, chunk_bytes=chunk_bytes
    )


@pytest.mark.parametrize("chunk_bytes", [512, 4096, 10240, 1 << 20])
@pytest.mark.parametrize("writes", [(OLD, NEW), (OLD, NEW, MAYBE)])
def test_all_right_with_and_without_the_write_that_may_have_happened(
    chunk_bytes: int, writes: tuple[Write, ...]
) -> None:
    data = volume(*writes)
    verdict = judge(data, data, chunk_bytes=chunk_bytes)
    assert verdict == Comparison(
        bytes_compared=SIZE_BYTES,
        sides_equal=True,
        data_equal=True,
        sectors_different=0,
        lost_acked_writes=0,
        acked_writes=2,
    )


def test_half_of_the_write_that_may_have_happened_is_right_too() -> None:
    data = volume(OLD, NEW)
    data[64 * 512 : 70 * 512] = content(MAYBE)[: 6 * 512]
    assert judge(data, data).data_equal


def test_sides_that_hold_different_possible_writes_disagree() -> None:
    verdict = judge(volume(OLD, NEW), volume(OLD, NEW, MAYBE))
    assert (verdict.sides_equal, verdict.data_equal, verdict.lost_acked_writes) == (False, False, 0)
    assert verdict.sectors_different == 16
    assert verdict.kinds == {"secondary: disagree": 16}
    assert verdict.first_difference is not None
    assert (verdict.first_difference.side, verdict.first_difference.offset_bytes) == (
        "secondary",
        64 * 512,
    )


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_one_flipped_bit_is_found_to_the_bit(side: str) -> None:
    good, bad = volume(OLD, NEW), volume(OLD, NEW)
    at = 100 * 512 + 77
    bad[at] ^= 0x20
    verdict = judge(bad, good) if side == "primary" else judge(good, bad)
    assert (verdict.sides_equal, verdict.data_equal, verdict.sectors_different) == (False, False, 1)
    first = verdict.first_difference
    assert first is not None
    sector = slice(100 * 512, 101 * 512)
    assert (first.side, first.kind, first.offset_bytes) == (side, "corrupt", 100 * 512)
    assert (first.first_byte, first.bit_mask) == (at, 0x20)
    assert (first.expected_crc32c, first.found_crc32c) == (
        crc32c(good[sector]),
        crc32c(bad[sector]),
    )
    assert verdict.lost_acked_writes == 1
    (lost,) = verdict.lost
    assert (lost.write_id, lost.side, lost.offset_bytes, lost.kind) == (
        1,
        side,
        100 * 512,
        "corrupt",
    )


def test_a_lost_write_on_both_sides_is_seen_though_the_sides_agree() -> None:
    data = volume(OLD)
    verdict = judge(data, data)
    assert (verdict.sides_equal, verdict.data_equal) == (True, False)
    assert (verdict.sectors_different, verdict.lost_acked_writes) == (32, 1)
    assert verdict.kinds == {"primary: stale": 32, "secondary: stale": 32}
    empty = volume()
    verdict = judge(empty, empty)
    assert verdict.kinds == {"primary: lost": 64, "secondary: lost": 64}
    assert [w.write_id for w in verdict.lost] == [0, 1]


def test_a_misdirected_write_is_named() -> None:
    good, bad = volume(OLD, NEW), volume(OLD, NEW)
    bad[70 * 512 : 72 * 512] = content(NEW)[: 2 * 512]
    verdict = judge(good, bad)
    assert verdict.kinds == {"secondary: misdirected": 2}
    assert [(w.write_id, w.side) for w in verdict.lost] == [(0, "secondary")]


def test_a_whole_sector_of_another_run_is_stale() -> None:
    data = volume(OLD, NEW)
    data[96 * 512 : 97 * 512] = stamp(3, 10, NEW.write_id, NEW.lba, 1, NEW.time_ns)
    assert judge(data, data).kinds == {"primary: stale": 1, "secondary: stale": 1}


def test_outside_of_the_writers_span_only_the_sides_are_compared() -> None:
    good, bad = volume(OLD, NEW), volume(OLD, NEW)
    bad[SIZE_BYTES - 1] ^= 1
    verdict = judge(good, bad)
    assert verdict.first_difference is not None
    assert (verdict.first_difference.first_byte, verdict.first_difference.kind) == (
        SIZE_BYTES - 1,
        "disagree",
    )
    assert verdict.lost_acked_writes == 0
    assert judge(bad, bad).data_equal


def test_without_a_journal_and_with_the_hosts_own_view() -> None:
    good, bad = volume(OLD, NEW), volume(OLD, NEW)
    bad[0] ^= 0xFF
    assert compare(None, None, reader(good), reader(good), SIZE_BYTES).data_equal
    assert not compare(None, None, reader(good), reader(bad), SIZE_BYTES).data_equal
    verdict = compare(JOURNAL, reader(bad), reader(good), reader(good), SIZE_BYTES)
    assert (verdict.sides_equal, verdict.data_equal) == (True, False)
    bad = volume(OLD, NEW)
    bad[100 * 512] ^= 1
    verdict = compare(JOURNAL, reader(bad), reader(good), reader(good), SIZE_BYTES)
    assert verdict.first_difference is not None
    assert (verdict.first_difference.side, verdict.kinds) == ("host", {"host: corrupt": 1})


def test_many_losses_are_counted_and_a_bounded_number_listed() -> None:
    writes = [Write(i, FIRST_LBA + i, 1, i) for i in range(SECTORS)]
    empty = volume()
    verdict = compare(journal(*writes), None, reader(empty), reader(empty), SIZE_BYTES)
    assert (verdict.lost_acked_writes, len(verdict.lost)) == (128, 100)


def test_progress_and_short_reads() -> None:
    data = volume(OLD, NEW)
    told: list[int] = []
    compare(
        None,
        None,
        reader(data),
        reader(data),
        SIZE_BYTES,
        chunk_bytes=100 << 10,
        progress=told.append,
    )
    assert told == [100 << 10, 200 << 10, SIZE_BYTES]
    with pytest.raises(ValueError, match="readers gave"):
        compare(None, None, reader(data), reader(data[:-512]), SIZE_BYTES)


@given(st.integers(0, SIZE_BYTES * 8 - 1), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_flipped_bit_anywhere_is_found(bit: int, on_primary: bool) -> None:
    good, bad = volume(OLD, NEW, MAYBE), volume(OLD, NEW, MAYBE)
    bad[bit // 8] ^= 1 << bit % 8
    verdict = judge(bad, good) if on_primary else judge(good, bad)
    assert not verdict.data_equal
    assert verdict.first_difference is not None
    assert (verdict.first_difference.first_byte, verdict.first_difference.bit_mask) == (
        bit // 8,
        1 << bit % 8,
    )


# --- acknowledged is not flushed ------------------------------------------------------------------------------
SAFE, VOLATILE, LATER = Write(0, 64, 16, 10), Write(1, 64, 16, 20), Write(2, 80, 16, 30)
"""VOLATILE overwrites SAFE, which a flush had covered; LATER's place never held anything else."""


def crashed(*, flushed: bool = False) -> Journal:
    """The host port went away behind VOLATILE and LATER; with ``flushed`` a flush had covered
    them."""
    data = journal_header(3, 9, FIRST_LBA, SECTORS)
    for write in (SAFE, VOLATILE, LATER):
        data += journal_record(INTENT, write, write.time_ns) + journal_record(ACK, write, 99)
        if write is SAFE or (flushed and write is LATER):
            data += journal_mark(FLUSHED, 100)
    return Journal.read(data + journal_mark(DISCONNECTED, 101) + journal_mark(FLUSHED, 102))


def after_crash(journal: Journal, data: bytearray) -> Comparison:
    return compare(journal, None, reader(data), reader(data), SIZE_BYTES)


def test_writes_that_were_only_acknowledged_when_the_port_went_away_are_lost_apart_from_flushed_ones() -> (
    None
):
    assert crashed().at_risk == {1, 2}
    assert crashed(flushed=True).at_risk == set()
    told = after_crash(crashed(), volume(SAFE, VOLATILE, LATER))
    assert (told.data_equal, told.lost_acked_writes, told.lost_unflushed_writes) == (True, 0, 0)
    told = after_crash(crashed(), volume(SAFE))
    assert (told.data_equal, told.lost_acked_writes, told.lost_unflushed_writes) == (False, 2, 2)
    assert [one.was_flushed for one in told.lost] == [False, False]
    told = after_crash(crashed(flushed=True), volume(SAFE))
    assert (told.lost_acked_writes, told.lost_unflushed_writes) == (2, 0)


def test_what_was_safe_is_not_excused_by_a_lost_cache() -> None:
    nothing = after_crash(crashed(), volume())
    assert (nothing.lost_acked_writes, nothing.lost_unflushed_writes) == (2, 1), "SAFE is gone, too"
    damaged = volume(SAFE)
    damaged[70 * 512 + 100] ^= 1
    told = after_crash(crashed(), damaged)
    assert (told.lost_acked_writes, told.lost_unflushed_writes) == (2, 1)


def test_a_torn_old_and_new_state_is_what_a_lost_cache_leaves() -> None:
    half = volume(SAFE)
    half[64 * 512 : 70 * 512] = content(VOLATILE)[: 6 * 512]
    told = after_crash(crashed(), half)
    assert (told.lost_acked_writes, told.lost_unflushed_writes) == (2, 2)
