"""The NBD client session against hand-made server bytes; NbdHost against nbdkit is in
tests/system/test_nbd_host.py."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.drivers.hosts.nbd import NbdAddress, parse_uri
from freezeframe.drivers.hosts.nbd_client import Completion, NbdClientSession
from freezeframe.harness.errors import UsageError, WireError

# Written down from proto.md, not taken from the tables under test.
GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
FLAGS = 0x0D  # HAS_FLAGS, FLUSH, FUA


def option_reply(
    kind: int, data: bytes = b"", option: int = 7, magic: int = 0x0003E889045565A9
) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(data)) + data


EXPORT = option_reply(3, struct.pack(">HQH", 0, 1 << 20, FLAGS))
BLOCK_SIZE = option_reply(3, struct.pack(">HIII", 3, 512, 4096, 65536))
ACK = option_reply(1)
HANDSHAKE = GREETING + option_reply(3, b"\0\x01name") + EXPORT + BLOCK_SIZE + ACK


def reply(cookie: int, data: bytes = b"", error: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def opened() -> NbdClientSession:
    session = NbdClientSession("disk")
    session.feed(HANDSHAKE)
    session.take_output()
    return session


def test_handshake_asks_for_the_export_and_learns_its_values() -> None:
    session = NbdClientSession("disk")
    assert session.feed(GREETING) == []
    go = b"\0\0\0\x04disk" + b"\0\x02\0\0\0\x03"
    assert session.take_output() == b"\0\0\0\x03IHAVEOPT" + struct.pack(">II", 7, len(go)) + go
    assert not session.ready
    session.feed(EXPORT + BLOCK_SIZE + ACK)
    assert session.ready
    assert (session.size_bytes, session.flags, session.min_block_bytes) == (1 << 20, FLAGS, 512)
    assert session.max_request_bytes == 65536


def test_requests_on_the_wire() -> None:
    session = opened()
    _, header = session.request("write", 512, 1024, fua=True)
    assert header == struct.pack(">IHHQQI", 0x25609513, 1, 1, 1, 512, 1024)
    _, header = session.request("flush", 0, 0)
    assert header == struct.pack(">IHHQQI", 0x25609513, 0, 3, 2, 0, 0)
    assert session.outstanding == 2


REPLIES = (
    HANDSHAKE
    + reply(3)
    + reply(1, b"abcd" * 256)
    + reply(4, error=28)
    + reply(2, b"z" * 512)
    + reply(5, error=5)
)
ANSWERED = [
    Completion(3, 0), Completion(1, 0, b"abcd" * 256), Completion(4, 28), Completion(2, 0, b"z" * 512),
    Completion(5, 5),
]  # fmt: skip


@given(st.lists(st.integers(0, len(REPLIES)), max_size=50).map(sorted))
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same(splits: list[int]) -> None:
    assert answered(splits) == ANSWERED


def test_a_read_whose_data_is_still_coming_is_outstanding() -> None:
    session = opened()
    session.request("read", 0, 512)
    session.feed(reply(1) + bytes(511))
    assert session.outstanding == 1
    session.feed(b"x")
    assert session.outstanding == 0


def test_byte_by_byte_and_whole_give_the_same() -> None:
    assert answered([]) == answered(list(range(1, len(REPLIES)))) == ANSWERED


def answered(splits: list[int]) -> list[Completion]:
    session = NbdClientSession("")
    session.request("read", 0, 1024)
    session.request("read", 0, 512)
    session.request("write", 0, 512)
    session.request("write", 0, 512)
    session.request("read", 0, 512)
    done = []
    for start, end in zip([0, *splits], [*splits, len(REPLIES)], strict=True):
        done += session.feed(REPLIES[start:end])
    assert session.outstanding == 0
    return done


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "no newstyle greeting"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + bytes(136), "no newstyle greeting"),
        (b"NBDMAGICIHAVEOPT\x00\x00", "fixed newstyle"),
        (GREETING + option_reply(1, magic=1), "damaged option reply"),
        (GREETING + option_reply(1, option=6), "damaged option reply"),
        (
            GREETING + struct.pack(">QIII", 0x0003E889045565A9, 7, 3, 0xFFFFFFFF),
            "damaged option reply",
        ),
        (GREETING + option_reply(3, b"\0\7") * 65, "endless"),
        (GREETING + ACK, "said nothing"),
        (GREETING + option_reply(3, b"\0\0short"), "damaged export"),
        (GREETING + option_reply(3, b"\0\3short"), "damaged block size"),
        (GREETING + option_reply(3, struct.pack(">HIII", 3, 0, 1, 1)), "impossible block sizes"),
        (GREETING + option_reply(2), "unknown type"),
        (GREETING + option_reply(0x80000006, b"no\x1b[31m"), "unknown export"),
        (GREETING + option_reply(0x80000001), "option error 0x80000001"),
        (HANDSHAKE + bytes(16), "damaged reply"),
        (HANDSHAKE + reply(77), "not made"),
        (HANDSHAKE + reply(1) + reply(1), "not made"),
    ],
)
def test_what_the_protocol_does_not_allow_is_told(data: bytes, what: str) -> None:
    session = NbdClientSession("disk")
    session.request("flush", 0, 0)
    with pytest.raises(WireError, match=what) as caught:
        session.feed(data)
    assert "\x1b" not in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from([b"", GREETING, HANDSHAKE]))
@settings(max_examples=200, deadline=None)
def test_noise_is_a_wire_error_or_waited_for(noise: bytes, prefix: bytes) -> None:
    session = NbdClientSession("")
    with contextlib.suppress(WireError):
        session.feed(prefix + noise)


def test_addresses() -> None:
    assert parse_uri("nbd+unix:///?socket=/run/a.sock") == NbdAddress("/run/a.sock", "", 0, "")
    assert parse_uri("nbd+unix:///disk%201?socket=/tmp/a%20b") == NbdAddress(
        "/tmp/a b", "", 0, "disk 1"
    )
    assert parse_uri("nbd://10.0.0.1:10810/disk") == NbdAddress("", "10.0.0.1", 10810, "disk")
    assert parse_uri("nbd://pi4") == NbdAddress("", "pi4", 10809, "")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "x",
        "nbd:",
        "nbd://",
        "nbd://h:port/",
        "nbd://h:99999/",
        "nbd+unix:///",
        "nbd+unix:///?sock=a",
        "http://h/",
    ],
)
def test_wrong_addresses_are_usage_errors(uri: str) -> None:
    with pytest.raises(UsageError, match=r"allowed: nbd\+unix"):
        parse_uri(uri)
