"""Root cause data sets: a good one is read, a hostile one is a WireError and takes no memory."""

import hashlib
import json
import resource
import tracemalloc
from typing import Any

import cbor2
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core import rootcause
from freezeframe.harness.errors import WireError
from freezeframe.harness.wire.rootcause import FORMAT, HEADER_KEYS, RECORD, STATE_KEYS, EventCode

HEADER: dict[str, Any] = dict.fromkeys(HEADER_KEYS, 1) | {
    "incident_id": bytes(range(16)),
    "model": "SimArray 2",
}
STATE: dict[str, Any] = dict.fromkeys(STATE_KEYS, 0) | {
    "uuids": [2**64 - 1, 0, 0, 0],
    "last_writes": [[1, 8, 4096, 5, b"\1" * 8, 6, 2]],
    "diagnostics": {"self_test": "pass"},
}
RING = RECORD.pack(7, 1_234_567_890, EventCode.HOST_WRITE, 1, 0, 11, 12, 13, 14) + RECORD.pack(
    8, 2_000_000_000, 0x7777, 9, 0, 1, 2, 3, 4
)


def content(**changed: Any) -> dict[str, Any]:
    return {"format": FORMAT, "header": HEADER, "state": STATE, "events": RING} | changed


def stored(value: Any) -> bytes:
    return zstandard.ZstdCompressor().compress(cbor2.dumps(value))


def test_a_good_set() -> None:
    data = stored(content())
    for digest in (hashlib.sha256(data).digest(), hashlib.sha256(data).hexdigest(), None):
        read = rootcause.decode(data, digest)
    assert read.header == HEADER
    assert read.state == STATE
    assert read.events == [
        {
            "seq": 7, "uptime_ns": 1_234_567_890, "name": "HOST_WRITE", "level": "INFO",
            "write_no": 11, "sector": 12, "bytes": 13, "crc32c": 14,
        },
        {
            "seq": 8, "uptime_ns": 2_000_000_000, "name": "EVENT_0x7777", "level": "L9",
            "a0": 1, "a1": 2, "a2": 3, "a3": 4,
        },
    ]  # fmt: skip


def test_for_a_person() -> None:
    read = rootcause.decode(stored(content()))
    assert rootcause.event_lines(read.events) == [
        "       7      1.234567 INFO  HOST_WRITE write_no=11 sector=12 bytes=13 crc32c=14",
        "       8      2.000000 L9    EVENT_0x7777 a0=1 a1=2 a2=3 a3=4",
    ]
    told = json.loads(json.dumps(rootcause.jsonable(read.state)))
    assert told["last_writes"] == [[1, 8, 4096, 5, "0101010101010101", 6, 2]]
    assert told["uuids"][0] == 2**64 - 1


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(65 << 20))
STREAMED = zstandard.ZstdCompressor().compressobj()
NO_SIZE = STREAMED.compress(cbor2.dumps(content())) + STREAMED.flush()
GOOD = stored(content())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a zstd frame"),
        (b"garbage garbage", "not a zstd frame"),
        (GOOD[:-5], "zstd"),
        (GOOD + b"x", "unused data"),
        (GOOD + GOOD, "unused data"),
        (BOMB, "declares no size up to"),
        (NO_SIZE, "declares no size up to"),
        (zstandard.ZstdCompressor().compress(b""), "cut off"),
        (stored([1]), "is a map"),
        (stored({}), "is a map"),
        (stored(content(format="other/2")), "other/2"),
        (stored(content(header=[])), "header is not a map"),
        (stored(content(state={"role": 1})), "state lacks pair_state"),
        (stored(content(events="text")), "whole records"),
        (stored(content(events=RING[:-1])), "whole records"),
        (stored(content(events=RING * 10_000)), "more than 16384"),
        (stored(content(extra=cbor2.CBORTag(1, 0))), "tag"),
    ],
)
def test_a_damaged_or_hostile_set(data: bytes, told: str) -> None:
    with pytest.raises(WireError, match=told):
        rootcause.decode(data)


def test_another_digest() -> None:
    with pytest.raises(WireError, match="SHA-256"):
        rootcause.decode(GOOD, "00" * 32)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff", "too many values"),
        (b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff", "cut off"),
        (b"\x81" * 5000, "too deeply"),
        (b"\x9a\x01\x00\x00\x00" + b"\x80" * (1 << 24), "too many values"),
        (b"\xba\x00\x0f\xff\xff", "too many values"),
        (b"\x9f\x01\xff", "indefinite"),
        (b"\xbf\xff", "indefinite"),
        (b"\xa1\x01\x02", "key"),
        (b"\xa1\x61a", "cut off"),
        (b"\xc1\x00", "tag"),
        (b"\xd8\x1c\x81\xd8\x1d\x00", "tag"),
        (b"\xf7", "simple value"),
        (b"\xf8\x20", "simple value"),
        (b"\x1c", "indefinite"),
        (b"\x18", "cut off"),
        (b"\x01\x02", "follow after"),
        (b"\x61\xff", "not CBOR"),
        (b"", "cut off"),
    ],
)
def test_hostile_cbor(data: bytes, told: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=told):
            rootcause.decode_cbor(data)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_takes_no_memory() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WireError):
        rootcause.decode(BOMB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 << 10


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(VALUES)
def test_every_plain_value_is_read(value: Any) -> None:
    assert rootcause.decode_cbor(cbor2.dumps(value)) == value


@given(st.binary(max_size=64))
def test_noise_is_a_wire_error_or_a_plain_value(noise: bytes) -> None:
    try:
        value = rootcause.decode_cbor(noise)
    except WireError:
        return
    json.dumps(rootcause.jsonable(value))
