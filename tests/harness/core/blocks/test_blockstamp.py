"""Stamps and the write journal."""

import random
import struct
import time
import zlib

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.blocks.blockstamp import (
    ACK,
    INTENT,
    JOURNAL_HEADER,
    RECORD_BYTES,
    Journal,
    Kind,
    Stamp,
    Write,
    check,
    decode,
    journal_header,
    journal_record,
    stamp,
)
from freezeframe.harness.errors import WireError

BLOCK = stamp(1, 42, 7, 100, 4, 999)
SECTOR = BLOCK[512:1024]


def test_layout() -> None:
    assert len(BLOCK) == 4 * 512
    assert SECTOR[:48] == struct.pack("<8sIIQQQQ", b"FFSTAMP1", 1, 42, 101, 7, 100, 999)
    assert SECTOR[508:] == struct.pack("<I", crc32c(SECTOR[:508]))
    assert BLOCK[48:508] == SECTOR[48:508], "the fill belongs to the write"
    assert stamp(1, 42, 8, 100, 1, 999)[48:508] != SECTOR[48:508]
    assert stamp(1, 43, 7, 100, 1, 999)[48:508] != SECTOR[48:508]
    # The same bytes on every machine and in every version: an old incident must stay readable.
    assert zlib.crc32(BLOCK) == GOLDEN_CRC32


GOLDEN_CRC32 = 3311797777


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**50),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(volume: int, seed: int, write_id: int, lba: int, sectors: int) -> None:
    block = stamp(volume, seed, write_id, lba, sectors, 5)
    for i in range(sectors):
        sector = block[i * 512 : i * 512 + 512]
        assert decode(sector) == Stamp(volume, seed & 0xFFFFFFFF, lba + i, write_id, lba, 5)
        assert check(sector, lba + i, (write_id,)) is Kind.OK


def test_kinds() -> None:
    other = stamp(1, 42, 6, 100, 4, 500)[512:1024]
    assert check(SECTOR, 101) is Kind.OK
    assert check(SECTOR, 101, (7, 9)) is Kind.OK
    assert check(SECTOR, 101, (9,)) is Kind.STALE
    assert check(SECTOR, 102) is Kind.MISDIRECTED
    assert check(bytes(512), 101) is Kind.LOST
    for seam in (52, 200, 400, 460):
        assert check(SECTOR[:seam] + other[seam:], 101) is Kind.TORN
        assert check(SECTOR[:seam] + bytes(512 - seam), 101) is Kind.TORN
    assert check(b"\xff" * 512, 101) is Kind.CORRUPT
    assert check(random.Random(1).randbytes(512), 101) is Kind.CORRUPT
    assert check(b"short", 101) is Kind.CORRUPT


def test_every_single_bit_flip_is_corruption() -> None:
    for bit in range(512 * 8):
        damaged = bytearray(SECTOR)
        damaged[bit // 8] ^= 1 << bit % 8
        assert check(bytes(damaged), 101, (7,)) is Kind.CORRUPT, bit


def test_speed() -> None:
    started = time.process_time()
    for i in range(64):
        stamp(0, 1, i, i * 128, 128, 0)
    per_64_mib_s = (time.process_time() - started) * 16
    assert per_64_mib_s < 3, "an idle machine needs about 0.1"


# --- journal ----------------------------------------------------------------------------------------------

FIRST = Write(0, 16, 8, 1000)
SECOND = Write(1, 20, 8, 2000)
THIRD = Write(2, 16, 8, 3000)
HEADER = journal_header(1, 42, 16, 64)


def intent(write: Write) -> bytes:
    return journal_record(INTENT, write, write.time_ns)


def ack(write: Write) -> bytes:
    return journal_record(ACK, write, 12345)


JOURNAL = HEADER + intent(FIRST) + intent(SECOND) + ack(FIRST) + ack(SECOND) + intent(THIRD)


def test_journal_tells_the_last_acked_write_of_each_sector_and_what_may_follow() -> None:
    journal = Journal.read(JOURNAL)
    assert (journal.volume, journal.seed, journal.first_lba, journal.sectors) == (1, 42, 16, 64)
    assert (journal.acked, journal.unacked, journal.acked_bytes) == ({0, 1}, [THIRD], 8192)
    assert journal.expected(16) == (FIRST, [THIRD])
    assert journal.expected(20) == (SECOND, [THIRD])
    assert journal.expected(24) == (SECOND, [])
    assert journal.expected(28) == (None, [])
    assert journal.expected(0) == journal.expected(1000) == (None, [])
    assert list(journal.runs(0, 100)) == [
        (0, 16, None), (16, 4, FIRST), (20, 8, SECOND), (28, 52, None), (80, 20, None),
    ]  # fmt: skip
    assert list(journal.runs(18, 3)) == [(18, 2, FIRST), (20, 1, SECOND)]
    assert journal.content(SECOND, 22, 3) == stamp(1, 42, 1, 20, 8, 2000)[1024:2560]


def test_a_torn_tail_is_tolerated_at_every_length() -> None:
    for length in range(JOURNAL_HEADER.size, len(JOURNAL)):
        journal = Journal.read(JOURNAL[:length])
        whole, torn = divmod(length - JOURNAL_HEADER.size, RECORD_BYTES)
        assert journal.torn_bytes == torn
        assert len(journal.writes) + len(journal.acked) == whole


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a write journal"),
        (HEADER[:-1], "not a write journal"),
        (b"X" + HEADER[1:], "not a write journal"),
        (journal_header(1, 1, 0, 0), "journal of 0 sectors"),
        (journal_header(1, 1, 0, 1 << 60), "journal of"),
        (HEADER + bytes(RECORD_BYTES), "damaged"),
        (JOURNAL[:60] + b"?" + JOURNAL[61:], "damaged"),
        (HEADER + intent(Write(0, 15, 8, 0)), "outside"),
        (HEADER + intent(Write(0, 76, 8, 0)), "outside"),
        (HEADER + intent(Write(0, 16, 0, 0)), "outside"),
        (HEADER + intent(Write(1 << 63, 16, 8, 0)), "without sense"),
        (HEADER + ack(FIRST), "without sense"),
        (HEADER + intent(FIRST) + intent(FIRST), "without sense"),
        (HEADER + intent(FIRST) + ack(Write(0, 17, 8, 0)), "without sense"),
        (HEADER + journal_record(3, FIRST, 0), "without sense"),
        (HEADER + journal_record(5, FIRST, 0), "without sense"),
    ],
    ids=range(16),
)
def test_a_damaged_journal_is_told(data: bytes, what: str) -> None:
    with pytest.raises(WireError, match=what):
        Journal.read(data)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_a_wire_error_or_a_journal(noise: bytes) -> None:
    for data in (noise, HEADER + noise):
        try:
            Journal.read(data)
        except WireError as error:
            assert len(error.excerpt) <= 32
