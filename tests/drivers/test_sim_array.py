"""The SimArray driver against a device written here from the wire's description, in virtual
time."""

import functools
import hashlib
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
import zstandard

from freezeframe.drivers.controllers.sim_array import MAX_TEXT_BYTES, SILENCE_NS, SimArray
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.rootcause import decode
from freezeframe.harness.errors import RigError, UsageError, WireError
from freezeframe.harness.roles import Identity, SetEntry
from freezeframe.harness.wire.rootcause import FORMAT, HEADER_KEYS, RECORD, STATE_KEYS

SERIAL = "FFSIM-P-0001"
IDENTIFY, TRACE, SAVE, WARMSTART, LIST, READ, ACK, STATE, PRINT, FAULTS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    0x10,
)
NO_SUCH_SET, WRONG_TARGET, STALE_EPOCH = 6, 3, 4


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_table_entry(index) for index in range(256)]


def cobs(data: bytes) -> bytes:
    out = bytearray()
    for run in (data + b"\0").split(b"\0")[:-1]:
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out += bytes([len(run) + 1]) + run
    return bytes(out)


def uncobs(data: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        out += data[at + 1 : at + code]
        at += code
        if code < 0xFF and at < len(data):
            out.append(0)
    return bytes(out)


def frame(kind: int, seq: int, payload: bytes) -> bytes:
    body = struct.pack(">BBBBHH", 0xF5, 1, kind, 0, seq, len(payload)) + payload
    return b"\0" + cobs(body + struct.pack(">I", crc32c(body))) + b"\0"


@functools.cache
def stored_set(events: int = 5000) -> bytes:
    noise = random.Random(1)
    ring = b"".join(
        RECORD.pack(n, n * 1000, 0x22, 1, 0, n, noise.getrandbits(64), noise.getrandbits(64), 0)
        for n in range(events)
    )
    content = {
        "format": FORMAT,
        "header": dict.fromkeys(HEADER_KEYS, 0),
        "state": dict.fromkeys(STATE_KEYS, 0),
        "events": ring,
    }
    return zstandard.ZstdCompressor(level=1).compress(cbor2.dumps(content))


class Device:
    """A ByteLink with a controller behind it. Time passes only when nobody has anything to say."""

    name = "fake line"

    def __init__(self) -> None:
        self.now_ns = 1_000_000
        self.to_rig = bytearray()
        self.from_rig = bytearray()
        self.requests: list[tuple[int, int, bytes]] = []
        self.blob = stored_set()
        self.mangle: Callable[[int, bytes], bytes] = lambda number, reply: reply
        """Given the number of a reply frame (from 0) and its bytes: what really reaches the rig."""
        self.replies = 0
        self.status = 0
        self.epoch = 7
        self.serial = SERIAL
        self.model = "SimArray 2"
        self.piece_bytes = 1 << 20

    def now(self) -> int:
        return self.now_ns

    def fileno(self) -> int:
        raise AssertionError("the driver reads through the link")

    def close(self) -> None: ...

    def read(self, max_bytes: int, deadline_ns: int) -> bytes:
        if not self.to_rig:
            self.now_ns = max(self.now_ns, deadline_ns)
            return b""
        piece = bytes(self.to_rig[: min(max_bytes, self.piece_bytes)])
        del self.to_rig[: len(piece)]
        return piece

    def write(self, data: bytes) -> None:
        self.from_rig += data
        *whole, rest = bytes(self.from_rig).split(b"\0")
        self.from_rig[:] = rest
        for coded in filter(None, whole):
            body = uncobs(coded)
            assert struct.unpack(">I", body[-4:])[0] == crc32c(body[:-4])
            magic, version, kind, _, seq, length = struct.unpack(">BBBBHH", body[:8])
            assert (magic, version, length) == (0xF5, 1, len(body) - 12)
            self.requests.append((kind, seq, body[8:-4]))
            for payload in self.answers(kind, body[8:-4]):
                self.say(frame(kind | 0x80, seq, payload))

    def say(self, reply: bytes) -> None:
        self.to_rig += self.mangle(self.replies, reply)
        self.replies += 1

    def answers(self, kind: int, payload: bytes) -> list[bytes]:
        if self.status:
            return [bytes([self.status]) + b"because \x1b[31mof it"]
        if kind == IDENTIFY:
            names = (self.model.encode(), self.serial.encode(), b"2.1")
            return [
                b"\0" + struct.pack(">16s16s16sIBBQQHI", *names, self.epoch, 1, 2, 5, 6, 4096, 7)
            ]
        if kind in (SAVE, WARMSTART):
            return [b"\0" + struct.pack(">IIQQ", 3, self.epoch + (kind == WARMSTART), 99, 1234)]
        if kind == LIST:
            return [b"\0" + self.listed()]
        if kind == READ:
            set_id, offset, length = struct.unpack(">IQI", payload)
            window = self.blob[offset : offset + length]
            step = 4096 - 1 - 12
            return [
                b"\0" + struct.pack(">IQ", set_id, offset + at) + window[at : at + step]
                for at in range(0, max(len(window), 1), step)
            ]
        if kind == STATE:
            return [b"\0" + cbor2.dumps({"role": 1, "uuids": [1, 2, 3, 4]})]
        return [b"\0"]

    def listed(self) -> bytes:
        digest = hashlib.sha256(self.blob).digest()
        return struct.pack(
            ">IBBH16sQQI32s", 3, 2, 1, 1, b"i" * 16, 200_000, len(self.blob), 7, digest
        )

    def kinds(self) -> list[int]:
        return [kind for kind, _, _ in self.requests]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def driver(device: Device) -> SimArray:
    return SimArray("primary", device, serial_number=SERIAL, clock=device)


def soon(device: Device, seconds: float = 10.0) -> int:
    return device.now_ns + int(seconds * NS_PER_S)


def identity(driver: SimArray, device: Device) -> Identity:
    return driver.identify(soon(device))


def test_identify(driver: SimArray, device: Device) -> None:
    assert identity(driver, device) == Identity(
        model="SimArray 2", serial_number=SERIAL, firmware_version="2.1", boot_epoch=7, role=1,
        pair_state="full duplex", uptime_ns=5, events_logged=6, capabilities=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "serial"), [("SimArray 2", "FFSIM-S-0001"), ("OtherBox", SERIAL)]
)
def test_another_device_is_named(driver: SimArray, device: Device, model: str, serial: str) -> None:
    device.model, device.serial = model, serial
    with pytest.raises(RigError, match=f"{model} {serial}.*{SERIAL}"):
        identity(driver, device)


def test_silence_is_asked_again_then_told(driver: SimArray, device: Device) -> None:
    device.mangle = lambda number, reply: b"" if number < 3 else reply
    identity(driver, device)
    assert device.kinds() == [IDENTIFY] * 4
    assert len({seq for _, seq, _ in device.requests}) == 1
    device.mangle = lambda number, reply: b""
    before_ns = device.now_ns
    with pytest.raises(RigError, match="fake line does not answer IDENTIFY"):
        driver.identify(soon(device, 2))
    assert device.now_ns == before_ns + 2 * NS_PER_S


def test_damaged_replies_and_text_around_them(driver: SimArray, device: Device) -> None:
    def mangle(number: int, reply: bytes) -> bytes:
        damaged = bytearray(reply)
        damaged[20] ^= 0x55
        return b"boot text\r\n" + (bytes(damaged) if number == 0 else reply) + b"more\r\n"

    device.mangle = mangle
    device.piece_bytes = 3
    assert identity(driver, device).boot_epoch == 7
    driver.state(soon(device))
    text = driver.take_text()
    assert (b"boot text\r\nmore\r\n" * 3).startswith(text)
    assert len(text) >= 2 * 17 + 11, "the rest behind the last frame has not been read yet"
    assert driver.take_text() == b""
    assert driver.bad_frames == 1


def test_endless_text_ends_at_the_deadline(driver: SimArray, device: Device) -> None:
    """A console that never stops must not be taken for an answer on its way."""
    reads = 0

    def chatter(max_bytes: int, deadline_ns: int) -> bytes:
        nonlocal reads
        reads += 1
        device.now_ns += 10_000_000
        return b"x" * 10_000

    device.read = chatter  # type: ignore[method-assign]
    with pytest.raises(RigError, match="does not answer"):
        driver.identify(soon(device, 3))
    assert reads <= 3 * 100 + 5
    assert len(driver.take_text()) <= MAX_TEXT_BYTES


def test_freeze_frame_is_made_without_io(driver: SimArray, device: Device) -> None:
    who = identity(driver, device)
    before = len(device.requests)
    frames = [
        driver.freeze_frame(who, reason, b"i" * 16, disruptive=reason == 1) for reason in (1, 2)
    ]
    assert len(device.requests) == before
    for made in frames:
        device.write(made)
    (one, first, payload), (two, second, _) = device.requests[-2:]
    assert (one, two) == (WARMSTART, SAVE) and first != second
    assert payload == SERIAL.encode().ljust(16, b"\0") + struct.pack(">IH", 7, 1) + b"i" * 16
    with pytest.raises(UsageError, match="16"):
        driver.freeze_frame(who, 1, b"short")


def test_freeze_reply_is_found_though_another_was_waited_for(
    driver: SimArray, device: Device
) -> None:
    made = driver.freeze_frame(identity(driver, device), 1, b"i" * 16)
    device.write(made)
    driver.state(soon(device))
    reply = driver.freeze_reply(made, soon(device))
    assert reply is not None and reply.ok
    assert (reply.set_id, reply.boot_epoch, reply.events_logged, reply.uptime_ns) == (
        3,
        8,
        99,
        1234,
    )
    before_ns = device.now_ns
    assert driver.freeze_reply(made, soon(device, 1)) is None
    assert device.now_ns == before_ns + NS_PER_S


@pytest.mark.parametrize(
    ("status", "name"),
    [(WRONG_TARGET, "wrong target"), (STALE_EPOCH, "stale epoch"), (99, "status 99")],
)
def test_a_refusal_is_a_value(driver: SimArray, device: Device, status: int, name: str) -> None:
    who = identity(driver, device)
    device.status = status
    made = driver.freeze_frame(who, 1, b"i" * 16)
    device.write(made)
    reply = driver.freeze_reply(made, soon(device))
    assert reply is not None
    assert (reply.ok, reply.status, reply.text) == (False, name, "because \\x1b[31mof it")
    assert driver.set_trace_level(who, 2, soon(device)).status == name
    with pytest.raises(WireError, match=name):
        driver.state(soon(device))


def test_services(driver: SimArray, device: Device) -> None:
    who = identity(driver, device)
    (entry,) = driver.sets(soon(device))
    for reply in (
        driver.acknowledge(entry, who, soon(device)),
        driver.set_faults(who, {"seed": 1, "faults": []}, soon(device)),
        driver.print_line("canary", soon(device)),
        driver.set_trace_level(who, 2, soon(device)),
    ):
        assert (reply.ok, reply.status) == (True, "ok")
    target = SERIAL.encode().ljust(16, b"\0") + struct.pack(">I", 7)
    assert [(kind, payload) for kind, _, payload in device.requests[-4:]] == [
        (ACK, target + struct.pack(">I", 3) + hashlib.sha256(device.blob).digest()),
        (FAULTS, target + cbor2.dumps({"seed": 1, "faults": []})),
        (PRINT, b"canary"),
        (TRACE, target + b"\x02"),
    ]
    assert driver.state(soon(device)) == {"role": 1, "uuids": [1, 2, 3, 4]}
    with pytest.raises(UsageError, match="200"):
        driver.print_line("x" * 201, soon(device))


def entry_of(device: Device, **changed: Any) -> SetEntry:
    entry = SetEntry(
        set_id=3, kind="warmstart", complete=True, reason=1, incident_id=b"i" * 16, raw_bytes=200_000,
        stored_bytes=len(device.blob), boot_epoch=7, sha256=hashlib.sha256(device.blob).hexdigest(),
    )  # fmt: skip
    return replace(entry, **changed)


def test_sets(driver: SimArray, device: Device) -> None:
    assert driver.sets(soon(device)) == [entry_of(device)]


def lose(*numbers: int) -> Callable[[int, bytes], bytes]:
    return lambda number, reply: b"" if number in numbers else reply


def damage(*numbers: int) -> Callable[[int, bytes], bytes]:
    return lambda number, reply: reply[:50] + b"\x01" + reply[51:] if number in numbers else reply


def lossy(number: int, reply: bytes) -> bytes:
    chance = random.Random(number).random()
    if chance < 0.1:
        return b""
    if chance < 0.2:
        return reply[: len(reply) // 2]
    if chance < 0.3:
        return b"noise \x00\xf5\xf5 " + reply + b"text\r\n"
    if chance < 0.4:
        return reply + reply
    return reply


@pytest.mark.parametrize(
    "mangle",
    [
        lose(),
        lose(0),
        lose(1, 2, 3),
        lose(15),
        lose(15, 16, 17),
        lose(18),
        damage(0, 5, 18),
        lossy,
        lose(*range(19)),
    ],
    ids=[
        "clean",
        "first",
        "row",
        "window end",
        "across windows",
        "last",
        "damaged",
        "lossy",
        "whole window",
    ],
)
@pytest.mark.parametrize("have_bytes", [0, 5000, 65_000])
def test_pull(
    driver: SimArray, device: Device, mangle: Callable[[int, bytes], bytes], have_bytes: int
) -> None:
    assert len(device.blob) > 65_000
    device.mangle = mangle
    got = bytearray(device.blob[:have_bytes])
    progressed = driver.pull(entry_of(device), bytes(got), soon(device, 60), got.extend)
    assert bytes(got) == device.blob
    assert progressed == decode(device.blob)
    assert len(progressed.events) == 5000


def test_windows_are_asked_ahead(driver: SimArray, device: Device) -> None:
    device.blob = stored_set(16_000)
    driver.pull(entry_of(device), b"", soon(device), lambda data: None)
    asked = [struct.unpack(">IQI", payload) for kind, _, payload in device.requests if kind == READ]
    assert all(length <= 64 << 10 for _, _, length in asked)
    assert [offset for _, offset, _ in asked] == sorted({offset for _, offset, _ in asked})
    assert sum(length for _, _, length in asked) == len(device.blob)


def test_a_line_that_dies_can_be_resumed(driver: SimArray, device: Device) -> None:
    device.mangle = lambda number, reply: reply if number < 5 else b""
    got = bytearray()
    with pytest.raises(RigError, match=r"silent, \d+ of \d+ bytes of set 3"):
        driver.pull(entry_of(device), b"", soon(device, 60), got.extend)
    assert got == device.blob[: 5 * 4083]
    device.mangle = lambda number, reply: reply
    driver.pull(entry_of(device), bytes(got), soon(device), got.extend)
    assert got == device.blob


def test_pull_keeps_to_its_deadline(driver: SimArray, device: Device) -> None:
    device.mangle = lambda number, reply: b""
    before_ns = device.now_ns
    with pytest.raises(RigError, match="silent"):
        driver.pull(entry_of(device), b"", soon(device, 1), lambda data: None)
    assert device.now_ns <= before_ns + NS_PER_S + SILENCE_NS


def test_pull_of_a_set_that_is_gone(driver: SimArray, device: Device) -> None:
    device.status = NO_SUCH_SET
    with pytest.raises(WireError, match="no such set"):
        driver.pull(entry_of(device), b"", soon(device), lambda data: None)


def test_pull_of_another_content(driver: SimArray, device: Device) -> None:
    with pytest.raises(WireError, match="SHA-256"):
        driver.pull(entry_of(device, sha256="00" * 32), b"", soon(device), lambda data: None)


@pytest.mark.parametrize(
    ("stored_bytes", "have"),
    [(65 << 20, b""), (10, b"x" * 11)],
    ids=["too large", "have more than there is"],
)
def test_pull_of_an_impossible_size(
    driver: SimArray, device: Device, stored_bytes: int, have: bytes
) -> None:
    with pytest.raises(WireError, match="cannot be"):
        driver.pull(
            entry_of(device, stored_bytes=stored_bytes), have, soon(device), lambda data: None
        )
    assert device.requests == []


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"\0" + struct.pack(">IQ", 3, 1 << 60) + b"abc", "a chunk ends at"),
        (b"\0" + struct.pack(">IQ", 3, 0) + bytes(4000), "SHA-256|a chunk ends at|zstd"),
        (b"\0\0\0", "are left"),
        (b"", "without a status"),
    ],
)
def test_hostile_chunks(driver: SimArray, device: Device, payload: bytes, told: str) -> None:
    device.blob = device.blob[:3000]
    device.answers = lambda kind, request: [payload]  # type: ignore[method-assign]
    with pytest.raises(WireError, match=told):
        driver.pull(entry_of(device), b"", soon(device), lambda data: None)


@pytest.mark.parametrize("payload", [struct.pack(">IQ", 4, 0) + b"abc", struct.pack(">IQ", 3, 0)])
def test_useless_chunks_are_silence(driver: SimArray, device: Device, payload: bytes) -> None:
    device.answers = lambda kind, request: [b"\0" + payload]  # type: ignore[method-assign]
    with pytest.raises(RigError, match="silent"):
        driver.pull(entry_of(device), b"", soon(device, 100), lambda data: None)


@pytest.mark.parametrize("body", [bytes(75), bytes(82 * 65)])
def test_a_list_that_is_none(driver: SimArray, device: Device, body: bytes) -> None:
    device.listed = lambda: body[:4000]  # type: ignore[method-assign]
    with pytest.raises(WireError, match="not a list"):
        driver.sets(soon(device))


@pytest.mark.parametrize(
    "body", [b"", b"\x01", b"\xff", b"\xd8\x1c\x81\xd8\x1d\x00", b"\x81" * 500]
)
def test_a_state_that_is_none(driver: SimArray, device: Device, body: bytes) -> None:
    device.answers = lambda kind, request: [b"\0" + body]  # type: ignore[method-assign]
    with pytest.raises(WireError):
        driver.state(soon(device))


@pytest.mark.parametrize("serial", ["", "x" * 17, "é"])
def test_a_serial_number_that_cannot_be(device: Device, serial: str) -> None:
    with pytest.raises(UsageError, match="serial_number"):
        SimArray("primary", device, serial_number=serial)
