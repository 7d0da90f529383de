"""The control frame codec, against bytes put together here by hand from the published formats."""

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core import frames
from freezeframe.harness.core.frames import (
    BadFrame,
    Frame,
    FrameReceiver,
    TextRun,
    decode,
    encode,
    pack,
    unpack,
)
from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Op


def crc32c_bitwise(data: bytes) -> int:
    """CRC-32C as in RFC 3720, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def cobs_by_hand(data: bytes) -> bytes:
    """Cheshire and Baker's COBS: each run of up to 254 non-zero bytes behind its length + 1."""
    out = bytearray()
    for run in (data + b"\0").split(b"\0")[:-1]:
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out += bytes([len(run) + 1]) + run
    return bytes(out)


def by_hand(op: int, seq: int, payload: bytes) -> bytes:
    body = struct.pack(">BBBBHH", 0xF5, 1, op, 0, seq, len(payload)) + payload
    return b"\0" + cobs_by_hand(body + struct.pack(">I", crc32c_bitwise(body))) + b"\0"


def test_the_hand_is_right() -> None:
    assert crc32c_bitwise(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert cobs_by_hand(b"\x11\x22\0\x33") == b"\x03\x11\x22\x02\x33"


@given(
    st.sampled_from(Op),
    st.integers(0, 0xFFFF),
    st.binary(max_size=300).filter(lambda p: len(p) % 254 < 240),
)
def test_as_by_hand_and_back(op: Op, seq: int, payload: bytes) -> None:
    frame = encode(op, seq, payload)
    if len(payload) < 200:
        assert frame == by_hand(op, seq, payload)
    assert decode(frame) == decode(frame.strip(b"\0")) == Frame(op, 0, seq, payload)


def test_the_longest_frame() -> None:
    frame = encode(Op.READ_SET, 1, b"\xff" * control.MAX_PAYLOAD_BYTES)
    assert len(frame) <= control.MAX_FRAME_BYTES
    assert [type(one) for one in FrameReceiver().feed(frame)] == [Frame]
    with pytest.raises(WireError, match="4097"):
        encode(Op.READ_SET, 1, bytes(control.MAX_PAYLOAD_BYTES + 1))


RECORDS = [
    frames.TargetPayload("FFSIM-P-0001", 7),
    frames.FreezePayload("FFSIM-P-0001", 7, 2, bytes(range(16))),
    frames.TraceLevelPayload("S", 0xFFFFFFFF, 2),
    frames.ReadSetPayload(1, 1 << 40, 65536),
    frames.AcknowledgeSetPayload("0123456789abcdef", 1, 2, bytes(range(32))),
    frames.IdentityPayload("SimArray 2", "FFSIM-P-0001", "1.0", 7, 1, 2, 3, 4, 4096, 7),
    frames.FreezeReplyPayload(1, 2, 3, 4),
    frames.SetEntryPayload(1, 2, 1, 3, bytes(16), 4, 5, 6, bytes(range(32))),
    frames.SetDataPayload(1, 2),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_payloads_go_there_and_back(record: frames.Payload) -> None:
    data = pack(record)
    assert len(data) == control.FIELDS[frames.LAYOUT_OF[type(record)]][0].size
    assert unpack(type(record), b"xy" + data + b"more", 2) == record
    with pytest.raises(WireError, match="are left"):
        unpack(type(record), data[:-1])


def test_payload_bytes_are_the_published_ones() -> None:
    packed = pack(frames.FreezePayload("AB", 0x01020304, 5, b"i" * 16))
    assert packed == b"AB" + bytes(14) + bytes.fromhex("01020304 0005") + b"i" * 16


@pytest.mark.parametrize(
    "record",
    [
        frames.TargetPayload("seventeen letters", 1),
        frames.TargetPayload("A", 1 << 32),
        frames.TargetPayload("A", -1),
        frames.TargetPayload("é", 1),
        frames.FreezePayload("A", 1, 1, bytes(17) + b"x"),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused(record: frames.Payload) -> None:
    with pytest.raises(WireError):
        pack(record)


@pytest.mark.parametrize("name", [b"\x1b[2Jx", b"\xff", b"a\nb"])
def test_a_name_that_is_no_text_is_refused(name: bytes) -> None:
    record = pack(frames.TargetPayload("A", 1))
    with pytest.raises(WireError, match="printable"):
        unpack(frames.TargetPayload, name + record[len(name) :])


def join(received: list[frames.Received]) -> list[frames.Received]:
    """Neighbouring pieces of text as one; where text is cut depends on the reads."""
    joined: list[frames.Received] = []
    for one in received:
        last = joined[-1] if joined else None
        if (
            isinstance(one, TextRun)
            and isinstance(last, TextRun)
            and last.offset_bytes + len(last.data) == one.offset_bytes
        ):
            joined[-1] = dataclasses.replace(last, data=last.data + one.data)
        else:
            joined.append(one)
    return joined


def receive(chunks: list[bytes]) -> list[frames.Received]:
    receiver = FrameReceiver()
    return join([one for chunk in chunks for one in receiver.feed(chunk)])


PIECES = [
    by_hand(Op.IDENTIFY, 1, b""),
    by_hand(Op.WARMSTART, 2, b"a\0b\0\0"),
    by_hand(Op.READ_SET | 0x80, 3, bytes(range(256)) * 2),
    by_hand(Op.PRINT, 4, b"x")[:-3] + b"!!\0",
    by_hand(Op.PRINT, 5, b"x")[:-1],
    by_hand(Op.PRINT, 6, b"x")[1:],
    b"\0", b"\0\0", b"T", b"[   1.0] text\r\n", b"\xf5\xf5", b"\0\x05\xf5",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10), st.data())
def test_the_same_however_it_is_split(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    whole = receive([stream])
    assert receive([stream[at : at + 1] for at in range(len(stream))]) == whole
    assert (
        receive([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
        == whole
    )
    for one in whole:
        if not isinstance(one, Frame):
            assert stream[one.offset_bytes :].startswith(one.data)


def test_frames_between_text() -> None:
    frame = by_hand(Op.IDENTIFY, 9, b"pay")
    got = receive([b"boot\r\n" + frame + frame + b"more text\r\n" + frame + b"ok"])
    assert got == [
        TextRun(b"boot\r\n", 0),
        Frame(Op.IDENTIFY, 0, 9, b"pay"),
        Frame(Op.IDENTIFY, 0, 9, b"pay"),
        TextRun(b"more text\r\n", 6 + 2 * len(frame)),
        Frame(Op.IDENTIFY, 0, 9, b"pay"),
        TextRun(b"ok", 6 + 3 * len(frame) + 11),
    ]


def test_a_lost_delimiter_costs_one_frame() -> None:
    frame = by_hand(Op.IDENTIFY, 9, b"")
    got = receive([frame[:-1] + b"text" + frame + frame])
    assert [type(one) for one in got] == [BadFrame, Frame, Frame]


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\x02\xf5\x09ab", "not COBS"),
        (cobs_by_hand(b"\xf5\x01\x01"), "too short"),
        (by_hand(1, 1, b"abc")[1:-3] + b"zz", "CRC"),
        (by_hand(1, 1, b"abc").replace(b"\xf5\x01", b"\xf5\x02"), "CRC"),
    ],
)
def test_damage_is_told(frame: bytes, why: str) -> None:
    (bad,) = receive([b"\0" + frame.strip(b"\0") + b"\0"])
    assert isinstance(bad, BadFrame)
    assert why in bad.why


@pytest.mark.parametrize(
    ("header", "payload", "why"),
    [
        ((0xF5, 1, 1, 0, 1, 65535), b"abc", "payload of 65535 bytes"),
        ((0xF5, 1, 1, 0, 1, 2), b"abc", "payload of 2 bytes"),
        ((0xF5, 2, 1, 0, 1, 3), b"abc", "version 2"),
    ],
)
def test_a_header_that_lies_under_a_right_crc(
    header: tuple[int, ...], payload: bytes, why: str
) -> None:
    body = struct.pack(">BBBBHH", *header) + payload
    frame = b"\0" + cobs_by_hand(body + struct.pack(">I", crc32c_bitwise(body))) + b"\0"
    (bad,) = receive([frame])
    assert isinstance(bad, BadFrame)
    assert why in bad.why


def test_a_frame_without_end_is_bounded() -> None:
    receiver = FrameReceiver()
    got = receiver.feed(b"\0\x05\xf5")
    assert receiver.in_frame
    for _ in range(100):
        got += receiver.feed(b"A" * 1000)
    assert isinstance(got[0], BadFrame) and len(got[0].data) <= control.MAX_FRAME_BYTES + 1000
    assert not receiver.in_frame
    assert sum(len(one.data) for one in got if not isinstance(one, Frame)) == 100_002
    assert receiver.feed(by_hand(1, 1, b""))[-1] == Frame(1, 0, 1, b"")


@given(st.binary(max_size=200))
def test_noise_never_raises_and_never_is_lost(noise: bytes) -> None:
    got = receive([b"x" + noise + b"\0" + by_hand(1, 7, b"")])
    assert got[-1] == Frame(1, 0, 7, b"")


def test_names() -> None:
    assert frames.status_name(3) == "wrong target"
    assert frames.status_name(77) == "status 77"
    assert frames.op_name(Op.READ_SET | control.REPLY) == "READ_SET"
    assert frames.op_name(0x7F) == "operation 0x7f"
