"""The SimArray driver against a device written here from the wire's description, in virtual
time."""

import hashlib
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from sim_array_device import (
    ACK,
    FAULTS,
    IDENTIFY,
    NO_SUCH_SET,
    PRINT,
    READ,
    SAVE,
    SERIAL,
    STALE_EPOCH,
    TRACE,
    WARMSTART,
    WRONG_TARGET,
    Device,
    stored_set,
)

from freezeframe.drivers.controllers.sim_array import MAX_TEXT_BYTES, SILENCE_NS, SimArray
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.rootcause import decode
from freezeframe.harness.errors import RigError, UsageError, WireError
from freezeframe.harness.roles import Identity, SetEntry


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
