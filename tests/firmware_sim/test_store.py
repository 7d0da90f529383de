"""The store against a flat model, its protection information, and what power loss and warmstart
leave."""

import contextlib
import random
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.firmware_sim import store as store_module
from freezeframe.firmware_sim.medium import FileMedium, Medium, MemoryMedium
from freezeframe.firmware_sim.store import BLOCK_BYTES, SECTOR_BYTES, Store

SIZE_BYTES = 16 * BLOCK_BYTES


@dataclass
class Text:
    """The smallest thing that can be a store's metadata."""

    text: str = ""

    def to_bytes(self) -> bytes:
        return self.text.encode()


def make(medium: Medium | None = None, size_bytes: int = SIZE_BYTES) -> Store[Text]:
    return Store(medium or MemoryMedium(), size_bytes, Text())


def pattern(length_bytes: int, seed: int = 1) -> bytes:
    return bytes((seed * 31 + i * 7 + i // 251) & 0xFF for i in range(length_bytes))


extents = st.tuples(st.integers(0, SIZE_BYTES // SECTOR_BYTES - 1), st.integers(1, 40)).map(
    lambda e: (e[0] * SECTOR_BYTES, min(e[1] * SECTOR_BYTES, SIZE_BYTES - e[0] * SECTOR_BYTES))
)
actions = st.lists(
    st.tuples(
        st.sampled_from(["write", "trim", "read", "flush", "scrub", "power"]),
        extents,
        st.integers(0, 255),
    ),
    max_size=30,
)


@given(actions)
@settings(max_examples=150, deadline=None)
def test_store_equals_a_flat_model_and_power_loss_gives_back_at_least_what_was_flushed(
    steps: list[tuple[str, tuple[int, int], int]],
) -> None:
    medium = MemoryMedium()
    store = make(medium)
    model = bytearray(SIZE_BYTES)
    durable = bytes(model)
    for action, (offset, length), seed in steps:
        match action:
            case "write":
                data = pattern(length, seed)
                store.write(offset, data)
                model[offset : offset + length] = data
            case "trim":
                store.trim(offset, length)
                model[offset : offset + length] = bytes(length)
            case "read":
                assert store.read(offset, length) == model[offset : offset + length]
            case "flush":
                store.flush()
                durable = bytes(model)
                assert (store.dirty_bytes, store.dirty_extents) == (0, 0)
            case "scrub":
                assert store.scrub(3) == []
            case "power":
                # This small volume never fills the cache, so exactly what was flushed is left.
                store = make(medium)
                model[:] = durable
                assert store.read(0, SIZE_BYTES) == durable
    assert store.read(0, SIZE_BYTES) == model
    assert store.scrub(1000) == []


whole_blocks = st.tuples(st.integers(0, 15), st.integers(1, 5)).map(
    lambda e: (e[0] * BLOCK_BYTES, min(e[1], 16 - e[0]) * BLOCK_BYTES)
)
faulty_actions = st.lists(
    st.tuples(
        st.sampled_from(["write", "lost", "misdirected", "rotten", "flush", "scrub"]),
        whole_blocks,
        st.integers(0, 255),
    ),
    max_size=30,
)


@given(faulty_actions)
@settings(max_examples=150, deadline=None)
def test_a_cache_that_overflows_and_faulty_writes_against_two_flat_models(
    steps: list[tuple[str, tuple[int, int], int]],
) -> None:
    """One model holds what was meant, one what is there; where they differ in a block, the next
    scrub says so, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CACHE_LIMIT_BYTES", 6 * BLOCK_BYTES)
        patch.setattr(store_module, "DESTAGE_BYTES", 2 * BLOCK_BYTES)
        medium = MemoryMedium()
        store = make(medium)
        meant, there = bytearray(SIZE_BYTES), bytearray(SIZE_BYTES)
        due: set[int] = set()

        def put(model: bytearray, at: int, data: bytes) -> None:
            model[at : at + len(data)] = data
            due.update(range(at // BLOCK_BYTES, -(-(at + len(data)) // BLOCK_BYTES)))

        for action, (offset, length), seed in [*steps, ("scrub", (0, 0), 0)]:
            data = random.Random(seed).randbytes(length)
            match action:
                case "write":
                    store.write(offset, data)
                    put(meant, offset, data)
                    put(there, offset, data)
                case "lost":
                    store.write_faulty(offset, data, "lost")
                    put(meant, offset, data)
                case "misdirected":
                    landing = SIZE_BYTES - offset - length
                    store.write_faulty(offset, data, "misdirected", landing_bytes=landing)
                    put(meant, offset, data)
                    put(there, landing, data)
                case "rotten":
                    store.write_faulty(offset, data, "rotten", bit=seed * 8)
                    put(meant, offset, data)
                    put(there, offset, data)
                    there[offset + seed % length] ^= 1
                case "flush":
                    store.flush()
                    assert medium.pread(0, SIZE_BYTES) == there
                case "scrub":
                    assert store.unscrubbed_blocks == len(due)
                    found = {
                        one.offset_bytes // BLOCK_BYTES: one.content for one in store.scrub(1000)
                    }
                    at = {
                        block: slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
                        for block in due
                    }
                    wrong = {block for block, where in at.items() if meant[where] != there[where]}
                    assert found == {block: there[at[block]] for block in wrong}
                    assert not store.needs_scrub and not store.unscrubbed_blocks
                    due.clear()
            assert store.read(0, SIZE_BYTES) == there
            assert store.dirty_bytes <= 6 * BLOCK_BYTES


def test_dirty_counters() -> None:
    store = make()
    store.write(0, bytes(2 * BLOCK_BYTES))
    store.write(5 * BLOCK_BYTES, b"x" * SECTOR_BYTES)
    assert (store.dirty_bytes, store.dirty_extents, store.flushes) == (3 * BLOCK_BYTES, 2, 0)
    store.flush()
    assert (store.dirty_bytes, store.dirty_extents, store.flushes) == (0, 0, 1)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (-512, 512),
        (0, 0),
        (0, 100),
        (100, 512),
        (SIZE_BYTES, 512),
        (SIZE_BYTES - 512, 1024),
        (0, SIZE_BYTES + 512),
    ],
)
def test_requests_outside_of_the_volume_are_refused(offset: int, length: int) -> None:
    store = make()
    for call in (store.read, store.trim):
        with pytest.raises(ValueError, match="bytes at"):
            call(offset, length)
    with pytest.raises(ValueError, match="bytes at"):
        store.write(offset, bytes(length))


def test_cache_is_bounded_and_destages_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CACHE_LIMIT_BYTES", 8 * BLOCK_BYTES)
    monkeypatch.setattr(store_module, "DESTAGE_BYTES", 2 * BLOCK_BYTES)
    medium = MemoryMedium()
    store = make(medium)
    for block in range(12):
        store.write(block * BLOCK_BYTES, pattern(BLOCK_BYTES, block + 1))
        assert store.dirty_bytes <= 8 * BLOCK_BYTES
    assert medium.pread(0, BLOCK_BYTES) == pattern(BLOCK_BYTES, 1)
    assert medium.pread(11 * BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)
    assert store.read(11 * BLOCK_BYTES, BLOCK_BYTES) == pattern(BLOCK_BYTES, 12)


@pytest.mark.parametrize("flushed", [False, True])
def test_scrub_finds_a_lost_write_and_repair_ends_it(flushed: bool) -> None:
    store = make()
    old, new = pattern(BLOCK_BYTES, 1), pattern(BLOCK_BYTES, 2)
    store.write(0, old)
    if flushed:
        store.flush()
    store.write_faulty(0, new, "lost")
    assert store.read(0, BLOCK_BYTES) == old
    (found,) = store.scrub(100)
    assert (found.offset_bytes, found.length_bytes) == (0, BLOCK_BYTES)
    assert (found.expected_crc32, found.found_crc32) == (crc32(new), crc32(old))
    assert store.scrub(100) == [], "told once"
    store.repair(0, new)
    assert store.scrub(100) == []
    assert store.read(0, BLOCK_BYTES) == new


def test_scrub_finds_both_ends_of_a_misdirected_write() -> None:
    store = make()
    data = pattern(2 * BLOCK_BYTES, 3)
    store.write_faulty(4 * BLOCK_BYTES, data, "misdirected")
    assert store.read(4 * BLOCK_BYTES, len(data)) == bytes(len(data))
    assert store.read(12 * BLOCK_BYTES, len(data)) == data
    assert sorted(m.offset_bytes // BLOCK_BYTES for m in store.scrub(100)) == [4, 5, 12, 13]


def test_a_misdirected_write_lands_inside_and_an_impossible_landing_is_refused() -> None:
    store = make()
    store.write_faulty(SIZE_BYTES - BLOCK_BYTES, pattern(BLOCK_BYTES), "misdirected")
    assert store.read(SIZE_BYTES // 2 - BLOCK_BYTES, BLOCK_BYTES) == pattern(BLOCK_BYTES)
    with pytest.raises(ValueError, match="outside"):
        store.write_faulty(0, pattern(BLOCK_BYTES), "misdirected", landing_bytes=SIZE_BYTES)


def test_a_misdirected_write_that_has_no_other_place_is_lost() -> None:
    store = make()
    store.write_faulty(0, pattern(SIZE_BYTES), "misdirected")
    assert store.read(0, SIZE_BYTES) == bytes(SIZE_BYTES)
    assert len(store.scrub(100)) == SIZE_BYTES // BLOCK_BYTES


def test_scrub_finds_one_rotten_bit() -> None:
    store = make()
    data = pattern(2 * BLOCK_BYTES, 5)
    store.write_faulty(0, data, "rotten", bit=8 * BLOCK_BYTES + 3)
    differing = [
        i for i, (a, b) in enumerate(zip(store.read(0, len(data)), data, strict=True)) if a != b
    ]
    assert differing == [BLOCK_BYTES]
    assert [m.offset_bytes for m in store.scrub(100)] == [BLOCK_BYTES]


def test_a_partial_write_does_not_hide_a_mismatch_and_keeps_the_exact_expectation() -> None:
    store = make()
    data = pattern(BLOCK_BYTES, 7)
    store.write_faulty(0, data, "rotten", bit=8 * 3000)
    store.write(SECTOR_BYTES, b"n" * SECTOR_BYTES)
    intended = data[:SECTOR_BYTES] + b"n" * SECTOR_BYTES + data[2 * SECTOR_BYTES :]
    (found,) = store.scrub(100)
    assert found.expected_crc32 == crc32(intended)
    assert found.found_crc32 == crc32(store.read(0, BLOCK_BYTES)) != found.expected_crc32


def test_scrub_takes_recent_extents_in_order_and_stops_at_its_limit() -> None:
    store = make()
    for block in (9, 2, 5):
        store.write_faulty(block * BLOCK_BYTES, pattern(BLOCK_BYTES, block), "lost")
    assert store.unscrubbed_blocks == 3
    assert [m.offset_bytes // BLOCK_BYTES for m in store.scrub(2)] == [9, 2]
    assert [m.offset_bytes // BLOCK_BYTES for m in store.scrub(2)] == [5]


def test_file_medium_keeps_data_and_metadata_over_a_power_loss(tmp_path: Path) -> None:
    path = tmp_path / "primary.disk"
    medium = FileMedium(path)
    assert medium.read_metadata() is None
    store = Store(medium, SIZE_BYTES, Text("uuids"))
    store.write(BLOCK_BYTES, pattern(BLOCK_BYTES))
    store.save_metadata()
    store.flush()
    store.write(3 * BLOCK_BYTES, pattern(BLOCK_BYTES))
    medium.close()  # and the unflushed write with it

    again = FileMedium(path)
    raw = again.read_metadata()
    assert raw == b"uuids"
    store = Store(again, SIZE_BYTES, Text(raw.decode()))
    assert store.read(BLOCK_BYTES, BLOCK_BYTES) == pattern(BLOCK_BYTES)
    assert store.read(3 * BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["primary.disk", "primary.disk.meta"]
    again.close()


class FullMedium(MemoryMedium):
    full = True

    def pwrite(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().pwrite(offset_bytes, data)


def test_a_full_medium_fails_the_flush_and_loses_nothing() -> None:
    medium = FullMedium()
    store = make(medium)
    store.write(0, pattern(BLOCK_BYTES))
    with pytest.raises(OSError, match="No space"):
        store.flush()
    assert store.flushes == 0
    medium.full = False
    store.flush()
    assert medium.pread(0, BLOCK_BYTES) == pattern(BLOCK_BYTES)


def test_what_a_full_medium_keeps_in_the_cache_is_bounded_by_the_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "CACHE_LIMIT_BYTES", 2 * BLOCK_BYTES)
    medium = FullMedium()
    store = make(medium)
    tracemalloc.start()
    try:
        for seed in range(400):
            with contextlib.suppress(OSError):
                store.write(seed % 4 * BLOCK_BYTES, bytes((seed & 0xFF,)) * (4 * BLOCK_BYTES))
        assert tracemalloc.get_traced_memory()[0] < 8 * SIZE_BYTES
    finally:
        tracemalloc.stop()
    assert store.read(3 * BLOCK_BYTES, 4 * BLOCK_BYTES) == bytes((399 & 0xFF,)) * (4 * BLOCK_BYTES)
    medium.full = False
    store.flush()
    assert medium.pread(3 * BLOCK_BYTES, 4 * BLOCK_BYTES) == bytes((399 & 0xFF,)) * (
        4 * BLOCK_BYTES
    )
    assert store.dirty_bytes == 0


def test_a_flush_reaches_the_medium_before_it_returns() -> None:
    """Also with nothing in the cache: what was destaged before may still be in the medium's own."""
    medium = MemoryMedium()
    store = make(medium)
    store.write(0, bytes(BLOCK_BYTES))
    before = medium.syncs
    store.flush()
    assert medium.syncs > before
    between = medium.syncs
    store.flush()
    assert medium.syncs > between
