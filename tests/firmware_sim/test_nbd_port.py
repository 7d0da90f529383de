"""The NBD server session byte by byte; independent clients prove it in
tests/system/test_nbd_clients.py."""

import random
import struct
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.firmware_sim.nbd_port import NbdSession, Request

SIZE_BYTES = 1 << 20
# Written down from proto.md, not taken from the tables under test.
GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
FLAGS = struct.pack(">I", 3)
REPLY_MAGIC = 0x0003E889045565A9
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES = range(7)
EXPORT_FLAGS = 0x56D  # HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def go(name: bytes = b"", number: int = 7, infos: tuple[int, ...] = (3,)) -> bytes:
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
    return option(number, data + b"".join(struct.pack(">H", info) for info in infos))


def answers(data: bytes) -> list[tuple[int, int, bytes]]:
    """Option replies: (option, type, data)."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == REPLY_MAGIC
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    data: bytes = b"",
    *,
    cookie: int = 1,
    flags: int = 0,
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


def opened(**options: object) -> NbdSession:
    session = NbdSession(SIZE_BYTES, **options)  # type: ignore[arg-type]
    assert session.feed(FLAGS + go()) == []
    session.take_output()
    return session


def test_go_tells_size_flags_and_block_sizes() -> None:
    session = NbdSession(SIZE_BYTES)
    assert session.take_output() == GREETING
    session.feed(FLAGS + go())
    assert answers(session.take_output()) == [
        (7, 3, struct.pack(">HQH", 0, SIZE_BYTES, EXPORT_FLAGS)),
        (7, 3, struct.pack(">HIII", 3, 512, 4096, 32 << 20)),
        (7, 1, b""),
    ]
    assert session.feed(request(FLUSH)) == [Request((1).to_bytes(8, "big"), "flush", 0, 0)]


@pytest.mark.parametrize(("client_flags", "zeroes"), [(1, 124), (3, 0)])
def test_export_name_of_the_old_way(client_flags: int, zeroes: int) -> None:
    session = NbdSession(SIZE_BYTES, read_only=True, export_name="disk")
    session.take_output()
    session.feed(struct.pack(">I", client_flags) + option(1, b"disk"))
    assert session.take_output() == struct.pack(">QH", SIZE_BYTES, EXPORT_FLAGS | 2) + bytes(zeroes)
    assert [r.kind for r in session.feed(request(READ, 0, 512))] == ["read"]


def test_list_info_unknown_names_and_unknown_options() -> None:
    session = NbdSession(SIZE_BYTES, export_name="disk")
    session.take_output()
    starttls, structured_reply = 5, 8
    session.feed(
        FLAGS + option(3) + option(3, b"x") + go(b"disk", number=6) + go(b"other") + go(b"other", number=6)
        + option(starttls) + option(structured_reply) + option(77, b"junk") + option(7, b"\0\0\0\xff\0\0")
    )  # fmt: skip
    replies = answers(session.take_output())
    assert [(number, kind) for number, kind, _ in replies] == [
        (3, 2), (3, 1), (3, 0x80000003), (6, 3), (6, 3), (6, 1), (7, 0x80000006), (6, 0x80000006),
        (5, 0x80000001), (8, 0x80000001), (77, 0x80000001), (7, 0x80000003),
    ]  # fmt: skip
    assert replies[0][2] == b"\0\0\0\x04disk"
    assert not session.closed
    assert session.feed(option(2)) == []
    assert answers(session.take_output()) == [(2, 1, b"")]
    assert session.closed


@pytest.mark.parametrize(
    "bad",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 7),
        FLAGS + b"IHAVEOPX" + bytes(8),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 8193),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF),
        FLAGS + option(1, b"no such export"),
        FLAGS + option(99) * 65,
        FLAGS + go() + bytes(28),
        FLAGS + go() + request(WRITE, 0, (32 << 20) + 512),
        FLAGS + go() + request(WRITE, 0, 0xFFFFFFFF),
        FLAGS + go() + request(DISC),
    ],
    ids=[f"violation{i}" for i in range(11)],
)
def test_violations_and_goodbyes_close_the_session(bad: bytes) -> None:
    session = NbdSession(SIZE_BYTES)
    assert session.feed(bad + request(READ, 0, 512)) == []
    assert session.closed
    assert session.feed(request(READ, 0, 512)) == []


@pytest.mark.parametrize(
    ("bytes_in", "error"),
    [
        (request(READ, SIZE_BYTES, 512), 22),
        (request(READ, SIZE_BYTES - 512, 1024), 22),
        (request(READ, 0xFFFFFFFFFFFFFE00, 512), 22),
        (request(READ, 0, 0), 22),
        (request(READ, 0, 0xFFFFFE00), 22),
        (request(READ, 100, 512), 22),
        (request(READ, 0, 100), 22),
        (request(READ, 0, 512, flags=4), 22),
        (request(READ, 0, 512, flags=2), 22),
        (request(WRITE, SIZE_BYTES, 512, bytes(512)), 28),
        (request(WRITE, 0, 0), 22),
        (request(WRITE, 0, 3, b"abc"), 22),
        (request(WRITE_ZEROES, 0, SIZE_BYTES + 512), 28),
        (request(TRIM, 0, SIZE_BYTES + 512), 22),
        (request(TRIM, 0, 0), 22),
        (request(FLUSH, 512, 0), 22),
        (request(FLUSH, 0, 512), 22),
        (request(7, 0, 512), 22),
        (request(0xFFFF), 22),
    ],
    ids=lambda value: value[4:28].hex() if isinstance(value, bytes) else str(value),
)
def test_wrong_requests_are_refused_and_the_next_is_served(bytes_in: bytes, error: int) -> None:
    session = opened()
    (served,) = session.feed(bytes_in + request(READ, 512, 512, cookie=9))
    assert (served.kind, served.offset_bytes, served.cookie) == (
        "read",
        512,
        (9).to_bytes(8, "big"),
    )
    assert session.take_output() == struct.pack(">IIQ", 0x67446698, error, 1)
    assert not session.closed


def test_a_read_only_export_refuses_changes_also_when_it_turns_read_only_later() -> None:
    changes = (
        request(WRITE, 0, 512, bytes(512)) + request(TRIM, 0, 512) + request(WRITE_ZEROES, 0, 512)
    )
    session = opened()
    assert len(session.feed(changes)) == 3
    session.read_only = True
    assert session.feed(changes) == []
    assert session.take_output() == struct.pack(">IIQ", 0x67446698, 1, 1) * 3
    assert len(session.feed(request(READ, 0, 512) + request(FLUSH) + request(CACHE, 0, 512))) == 3


def test_flags_and_replies() -> None:
    session = opened()
    write, zeroes, read = session.feed(
        request(WRITE, 512, 512, b"d" * 512, flags=1)
        + request(WRITE_ZEROES, 0, SIZE_BYTES, flags=3)
        + request(READ, 0, 512, cookie=2**64 - 1)
    )
    assert (write.fua, write.no_hole, write.data) == (True, False, b"d" * 512)
    assert (zeroes.fua, zeroes.no_hole, zeroes.length_bytes) == (True, True, SIZE_BYTES)
    assert session.reply(write) == struct.pack(">IIQ", 0x67446698, 0, 1)
    assert (
        session.reply(read, b"r" * 512)
        == struct.pack(">IIQ", 0x67446698, 0, 2**64 - 1) + b"r" * 512
    )
    assert session.reply(read, error=5) == struct.pack(">IIQ", 0x67446698, 5, 2**64 - 1)
    for wrong in (b"", b"short"):
        with pytest.raises(ValueError, match="answered with"):
            session.reply(read, wrong)


def a_conversation() -> bytes:
    rng = random.Random(4)
    parts = [FLAGS, option(3), go(b"nope"), go()]
    for cookie in range(40):
        length = 512 * rng.randrange(1, 20)
        offset = 512 * rng.randrange(SIZE_BYTES // 512 + 5)
        match rng.randrange(4):
            case 0:
                parts.append(request(READ, offset, length, cookie=cookie))
            case 1:
                parts.append(request(FLUSH, cookie=cookie))
            case _:
                parts.append(request(WRITE, offset, length, rng.randbytes(length), cookie=cookie))
    return b"".join(parts)


CONVERSATION = a_conversation()


def replay(splits: list[int]) -> tuple[list[Request], bytes]:
    session = NbdSession(SIZE_BYTES)
    requests, out = [], []
    port = bytearray(len(CONVERSATION))
    for start, end in zip([0, *splits], [*splits, len(CONVERSATION)], strict=True):
        # All through one buffer, which the next read overwrites.
        port[: end - start] = CONVERSATION[start:end]
        requests += session.feed(memoryview(port)[: end - start])
        port[: end - start] = b"?" * (end - start)
        out.append(session.take_output())
    return requests, b"".join(out)


WHOLE = replay([])


def test_byte_by_byte_gives_the_same() -> None:
    assert len(WHOLE[0]) > 30
    assert replay(list(range(1, len(CONVERSATION)))) == WHOLE


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=60).map(sorted))
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same(splits: list[int]) -> None:
    assert replay(splits) == WHOLE


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_never_raises(noise: bytes) -> None:
    for prefix in (b"", FLAGS, FLAGS + go()):
        session = NbdSession(SIZE_BYTES)
        session.feed(prefix + noise)
        session.take_output()


def test_an_announced_payload_costs_only_what_arrived() -> None:
    session = opened()
    session.feed(request(WRITE, 0, SIZE_BYTES))
    for _ in range(10_000):
        session.feed(b"x")
    assert sys.getsizeof(session._payload) < 20_000


def test_many_small_requests_are_parsed_quickly() -> None:
    session = opened()
    burst = request(WRITE, 4096, 4096, bytes(4096)) * 64
    started = time.process_time()
    parsed = sum(len(session.feed(burst)) for _ in range(100))
    per_request_us = (time.process_time() - started) / parsed * 1e6
    assert parsed == 6400
    assert per_request_us < 50, "an idle machine needs about 3"
