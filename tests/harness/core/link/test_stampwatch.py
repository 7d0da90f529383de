"""Stamps on the link: any changed byte, any wrong place and any old copy is found, and nothing while
others write."""

import random

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.blocks.blockstamp import stamp
from freezeframe.harness.core.link.stampwatch import AGREED, SoleWriter, StampWatch

SEED, VOLUME = 0xABCD1234, 3
WRITER = SoleWriter(VOLUME, SEED, 64, 4096)


def data_of(write_id: int, lba: int, sectors: int, seed: int = SEED) -> bytes:
    return stamp(VOLUME, seed, write_id, lba, sectors, 1_000 + write_id)


def watch() -> StampWatch:
    return StampWatch(WRITER, same_addresses=True)


@pytest.mark.parametrize("sectors", [1, 2, 8, 128])
def test_any_single_changed_byte_of_any_sector_is_found(sectors: int) -> None:
    good, found = data_of(7, 64, sectors), 0
    places = range(len(good)) if sectors <= 2 else random.Random(1).sample(range(len(good)), 3000)
    edges = [at + edge for at in range(0, len(good), 512) for edge in (*range(8), 508, 511)]
    for at in {*places, *edges}:
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        fault = watch().judge(64, bytes(bad), crc32c(bytes(bad)))
        assert fault is not None and fault.kind == "broken", at
        found += 1
    assert found >= min(len(good), 3000) and watch().judge(64, good) is None


@given(
    sectors=st.integers(1, 64), lba=st.integers(64, 4000), off_by=st.integers(-63, 500), write_id=st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_copy_at_another_place_is_found_and_one_at_its_own_is_not(
    sectors: int, lba: int, off_by: int, write_id: int
) -> None:
    data = data_of(write_id, lba, sectors)
    fault = watch().judge(lba + off_by, data)
    inside = lba + off_by >= 64 and lba + off_by + sectors <= 64 + 4096
    if off_by == 0 or not inside:
        assert fault is None
    else:
        assert fault is not None and fault.kind == "misplaced"
        assert f"of sector {lba}" in fault.detail


def test_the_end_of_a_write_from_elsewhere_is_found() -> None:
    data = data_of(5, 100, 7) + data_of(4, 300, 1)
    fault = watch().judge(100, data)
    assert fault is not None and fault.kind == "misplaced" and "sector 300" in fault.detail


def test_an_old_copy_after_a_newer_write_is_stale_and_a_retry_is_not() -> None:
    one, old, new = watch(), data_of(5, 100, 8), data_of(9, 100, 8)
    assert one.judge(100, old) is None
    assert one.judge(100, old) is None  # an ordinary retry
    assert one.judge(100, new) is None
    ghost = one.judge(100, old)
    assert ghost is not None and ghost.kind == "stale"
    assert "write 5's" in ghost.detail and "write 9 was here" in ghost.detail
    assert one.judge(100, data_of(10, 100, 8)) is None


def test_an_old_volume_of_another_run_is_stale() -> None:
    fault = watch().judge(100, data_of(5, 100, 8, seed=1))
    assert fault is not None and fault.kind == "stale" and "another writer" in fault.detail


def test_outside_of_its_range_nothing_is_expected() -> None:
    for lba, sectors in ((0, 8), (60, 8), (64 + 4096, 8), (64 + 4090, 8)):
        assert watch().judge(lba, bytes(sectors * 512)) is None
        assert watch().judge(lba, data_of(1, 999, sectors)) is None


def test_a_mirrors_distance_is_learnt_before_a_place_is_judged() -> None:
    one, distance = StampWatch(WRITER, same_addresses=False), 2048
    metadata = bytes(512)
    for number in range(AGREED):
        assert one.judge(16, metadata) is None
        lba = 64 + 8 * number
        assert one.judge(lba + distance, data_of(number, lba, 8)) is None
    assert one.judge(16, metadata) is None
    assert one.judge(1000 + distance, data_of(50, 1000, 8)) is None
    fault = one.judge(1000 + distance, data_of(51, 1008, 8))
    assert fault is not None and fault.kind == "misplaced"


def mirror() -> StampWatch:
    """A mirror whose data lie 2048 sectors behind the host's, learnt from other places."""
    made = StampWatch(WRITER, same_addresses=False)
    for number in range(AGREED):
        lba = 64 + 8 * number + 2048
        assert made.judge(lba + 2048, data_of(number, lba, 8)) is None
    return made


@given(
    runs=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    at=st.integers(0, 200),
    flip=st.integers(0, 511),
)
@settings(max_examples=60)
def test_a_mirror_may_send_several_writes_and_unwritten_sectors_as_one(
    runs: list[tuple[int, bool]], at: int, flip: int
) -> None:
    lba, data, stamped = 64 + at, b"", []
    for number, (sectors, is_written) in enumerate(runs):
        here = lba + len(data) // 512
        if is_written:
            stamped += range(len(data) // 512, len(data) // 512 + sectors)
        data += data_of(100 + number, here, sectors) if is_written else bytes(512 * sectors)
    assert mirror().judge(lba + 2048, data) is None
    if stamped:
        bad = bytearray(data)
        bad[stamped[len(stamped) // 2] * 512 + flip] ^= 0x10
        fault = mirror().judge(lba + 2048, bytes(bad))
        assert fault is not None and fault.kind == "broken"


def test_a_mirrors_old_copy_lost_sector_and_wrong_place_are_found() -> None:
    watch_of_mirror = mirror()
    assert watch_of_mirror.judge(2112, data_of(200, 64, 8)) is None
    assert watch_of_mirror.judge(2112, data_of(200, 64, 8)) is None, "the mirror's own retry"
    old = watch_of_mirror.judge(2112, data_of(150, 64, 8))
    assert old is not None and (old.kind, "write 200 was here" in old.detail) == ("stale", True)
    lost = watch_of_mirror.judge(2112, bytes(4096))
    assert lost is not None and (lost.kind, "is lost" in lost.detail) == ("stale", True)
    moved = watch_of_mirror.judge(2120, data_of(201, 64, 8))
    assert moved is not None and moved.kind == "misplaced"
    assert watch_of_mirror.judge(2200, data_of(1, 152, 8, seed=9)) is None, "an older run's"
