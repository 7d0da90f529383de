"""The SimArray driver against the simulated firmware's own control port: two codecs, one table."""

from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import pytest

from freezeframe import testing
from freezeframe.drivers.controllers.sim_array import SimArray
from freezeframe.firmware_sim.control import Frozen, Operations
from freezeframe.firmware_sim.rootcause import MemoryNvram, SetStore
from freezeframe.harness.core import frames
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.errors import RigError, WireError
from freezeframe.harness.roles import (
    MAX_BLOCK_READ_BYTES,
    REHEARSED,
    Identity,
    Rehearsing,
    Reply,
    RootCauseSet,
    SetEntry,
)
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Reason, SetKind, Status
from freezeframe.harness.wire.rootcause import HEADER_KEYS, RECORD, STATE_KEYS

SERIAL = "FFSIM-S-0001"
RING = b"".join(
    RECORD.pack(n, n, 0x22 if n else 0x01, 1, 0, n * 0x9E3779B97F4A7C15 % 2**64, n**7 % 2**64, n, 0)
    for n in range(9000)
)


class Firmware:
    """What the control port's operations need of a controller."""

    serial_number = SERIAL

    def __init__(self) -> None:
        self.boot_epoch = 4
        self.obeys_breaks = True
        self.sets = SetStore(MemoryNvram())
        self.lines: list[str] = []
        self.level = 0
        self.plan: object = None
        self.refused: list[Status] = []
        self.volume = b"".join(n.to_bytes(4, "big") for n in range(32768))

    def identity(self) -> tuple[object, ...]:
        return (b"SimArray 2", SERIAL.encode(), b"1.0", self.boot_epoch, 2, 2, 10, 20, 4096, 7)

    def freeze(self, kind: SetKind, reason: Reason, incident_id: bytes) -> Frozen:
        header: dict[str, Any] = dict.fromkeys(HEADER_KEYS, 0)
        header |= {
            "set_id": self.sets.next_id,
            "serial_number": SERIAL,
            "kind": int(kind),
            "reason": int(reason),
            "boot_epoch": self.boot_epoch,
        }
        entry = self.sets.add(
            header | {"incident_id": incident_id}, dict.fromkeys(STATE_KEYS, 0), RING
        )
        if kind is SetKind.WARMSTART:
            self.boot_epoch += 1
        return Frozen(entry.set_id, self.boot_epoch, 9000, 77)

    def state_record(self, max_bytes: int) -> bytes:
        return cbor2.dumps(dict.fromkeys(STATE_KEYS, 0) | {"role": 2})

    def read_blocks(self, offset_bytes: int, length_bytes: int) -> bytes:
        if offset_bytes + length_bytes > len(self.volume) or (offset_bytes | length_bytes) % 512:
            raise ValueError("outside of the volume")
        return self.volume[offset_bytes : offset_bytes + length_bytes]

    def print_line(self, text: str) -> None:
        self.lines.append(text)

    def set_trace_level(self, level: int) -> None:
        self.level = level

    def arm_faults(self, plan: object) -> None:
        self.plan = plan

    def control_seen(self, op: int, seq: int) -> None: ...
    def control_refused(self, op: int, status: Status, text: str) -> None:
        self.refused.append(status)


class Line:
    """A ByteLink to the operations, in virtual time."""

    name = "virtual line"

    def __init__(self, firmware: Firmware) -> None:
        self.firmware = firmware
        self.operations = Operations(firmware)
        self.to_rig = bytearray()
        self.now_ns = 0
        self.is_booting = False
        self.spoil: list[Callable[[bytes], bytes]] = []
        """What the line makes of the next replies."""

    def now(self) -> int:
        return self.now_ns

    def fileno(self) -> int:
        raise AssertionError("no descriptor")

    def send_break(self) -> None:
        self.firmware.boot_epoch += self.firmware.obeys_breaks

    def close(self) -> None: ...

    def write(self, data: bytes) -> None:
        operations = self.operations
        feed = operations.feed_boot_loader if self.is_booting else operations.feed
        for reply in feed(data):
            self.to_rig += self.spoil.pop(0)(reply) if self.spoil else reply

    def read(self, max_bytes: int, deadline_ns: int) -> bytes:
        if not self.to_rig:
            self.now_ns = max(self.now_ns, deadline_ns)
        data = bytes(self.to_rig[:1000])
        del self.to_rig[:1000]
        return data


@pytest.fixture
def rig() -> Iterator[tuple[Firmware, SimArray, Line]]:
    firmware = Firmware()
    line = Line(firmware)
    yield firmware, SimArray("secondary", line, serial_number=SERIAL, clock=line), line


def test_freeze_pull_acknowledge(rig: tuple[Firmware, SimArray, Line]) -> None:
    firmware, driver, line = rig
    limit = 60 * NS_PER_S
    before = driver.identify(limit)
    assert (before.boot_epoch, before.pair_state) == (4, "full duplex")
    made = driver.freeze_frame(before, Reason.CONSOLE_TRIGGER, b"incident-number!")
    line.write(made)
    reply = driver.freeze_reply(made, limit)
    assert reply is not None and reply.ok and reply.boot_epoch == 5

    (entry,) = driver.sets(limit)
    assert (entry.set_id, entry.kind, entry.complete) == (reply.set_id, "warmstart", True)
    assert entry.incident_id == b"incident-number!"
    got = bytearray()
    pulled = driver.pull(entry, b"", limit, got.extend)
    assert bytes(got) == firmware.sets.read(entry.set_id)
    assert len(got) == entry.stored_bytes > 64 << 10
    assert pulled.header["reason"] == Reason.CONSOLE_TRIGGER
    assert [event["seq"] for event in pulled.events] == list(range(9000))

    stale = driver.acknowledge(entry, before, limit)
    assert (stale.ok, stale.status) == (False, "stale epoch")
    assert driver.acknowledge(entry, driver.identify(limit), limit).ok
    assert driver.sets(limit) == []
    with pytest.raises(WireError, match="no such set"):
        driver.pull(entry, b"", limit, got.extend)


def test_services(rig: tuple[Firmware, SimArray, Line]) -> None:
    firmware, driver, _ = rig
    limit = 60 * NS_PER_S
    who = driver.identify(limit)
    assert driver.state(limit) == dict.fromkeys(STATE_KEYS, 0) | {"role": 2}
    assert driver.print_line("canary", limit).ok and driver.print_line("canary", limit).ok
    assert firmware.lines == ["canary", "canary"]
    assert driver.set_trace_level(who, 2, limit).ok and firmware.level == 2
    assert driver.set_trace_level(who, 9, limit).status == "bad argument"
    plan = {"seed": 1, "faults": [{"kind": "late_ack", "delay_ms": 5}]}
    assert driver.set_faults(who, plan, limit).ok and firmware.plan == plan


def test_a_frame_for_another_target_is_refused(rig: tuple[Firmware, SimArray, Line]) -> None:
    firmware, _, line = rig
    other = SimArray("primary", line, serial_number="FFSIM-P-0001", clock=line)
    real = SimArray("secondary", line, serial_number=SERIAL, clock=line).identify(NS_PER_S)
    wrong = type(real)(**{**real.__dict__, "serial_number": "FFSIM-P-0001"})
    made = other.freeze_frame(wrong, 0, bytes(16))
    line.write(made)
    reply = other.freeze_reply(made, 2 * NS_PER_S)
    assert reply is not None and reply.status == "wrong target"
    assert firmware.refused == [Status.WRONG_TARGET]
    assert firmware.boot_epoch == 4


def test_the_driver_keeps_the_promises_of_its_role(
    rig: tuple[Firmware, SimArray, Line],
) -> None:
    firmware, driver, line = rig
    testing.check_controller(driver, clock=line)
    assert firmware.boot_epoch == 4


@pytest.mark.parametrize("obeys", [True, False])
def test_a_break_restarts_the_device_or_the_driver_is_named(
    obeys: bool, rig: tuple[Firmware, SimArray, Line]
) -> None:
    firmware, driver, line = rig
    firmware.obeys_breaks = obeys
    case = testing.ControllerCase(controller=driver, clock=line, timeout_s=5.0, breaks=True)
    if obeys:
        testing.check_case(case)
        assert firmware.boot_epoch == 5
        return
    with pytest.raises(testing.ConformanceError, match="the device begins a new boot"):
        testing.check_case(case)


def test_blocks_are_read_while_it_boots_in_any_length_up_to_64_kib(
    rig: tuple[Firmware, SimArray, Line],
) -> None:
    firmware, driver, line = rig
    limit = 60 * NS_PER_S
    line.is_booting = driver.reads_while_booting
    for offset, length in ((0, 512), (512, 4096), (1024, MAX_BLOCK_READ_BYTES)):
        assert (
            driver.read_blocks(offset, length, limit) == firmware.volume[offset : offset + length]
        )
    with pytest.raises(RigError, match="does not answer IDENTIFY"):
        driver.identify(line.now_ns + NS_PER_S)


def test_a_side_that_refuses_to_read_and_one_that_does_not_answer(
    rig: tuple[Firmware, SimArray, Line],
) -> None:
    firmware, driver, line = rig
    with pytest.raises(WireError, match=r"bad offset \(outside of the volume\)"):
        driver.read_blocks(len(firmware.volume), 512, 60 * NS_PER_S)
    line.spoil = [lambda reply: b""] * 100
    with pytest.raises(RigError, match="does not answer READ_BLOCKS"):
        driver.read_blocks(0, 512, line.now_ns + NS_PER_S)
    assert line.now_ns <= 3 * NS_PER_S


def test_a_damaged_answer_is_asked_for_again_and_one_of_another_place_is_not_taken(
    rig: tuple[Firmware, SimArray, Line],
) -> None:
    firmware, driver, line = rig
    line.spoil = [
        lambda reply: reply,
        lambda reply: reply[:900] + bytes([reply[900] ^ 4 or 1]) + reply[901:],
        lambda reply: b"",
    ]
    assert driver.read_blocks(0, 8192, 60 * NS_PER_S) == firmware.volume[:8192]
    assert driver.bad_frames >= 1

    def moved(reply: bytes) -> bytes:
        sent = frames.decode(reply)
        payload = sent.payload[:1] + control.BLOCK_DATA.pack(4096) + sent.payload[9:]
        return frames.encode(sent.type, sent.seq, payload)

    def cut(reply: bytes) -> bytes:
        sent = frames.decode(reply)
        return frames.encode(sent.type, sent.seq, sent.payload[:-512])

    for wrong in (moved, cut):
        line.spoil = [wrong]
        with pytest.raises(WireError, match="another place or length"):
            driver.read_blocks(0, 1024, line.now_ns + 60 * NS_PER_S)


class Wrong(SimArray):
    """The driver with one method that breaks the role: ``fault``."""

    fault = ""

    def state(self, deadline_ns: int) -> dict[str, Any]:
        return {} if self.fault == "state" else super().state(deadline_ns)

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        if self.fault == "warmstart":
            disruptive = not disruptive
        if self.fault == "alike":
            return super().freeze_frame(identity, reason, incident_id)[:4]
        return super().freeze_frame(identity, reason, incident_id, disruptive=disruptive)

    def freeze_reply(self, frame: bytes, deadline_ns: int) -> Reply | None:
        if self.fault == "invented":
            return Reply(ok=True, status="ok")
        return super().freeze_reply(frame, deadline_ns)

    def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: int) -> bytes:
        if self.fault == "short":
            length_bytes -= 512
        if self.fault == "elsewhere" and length_bytes == 512:
            offset_bytes += 1024
        if self.fault == "endless" and offset_bytes > 1 << 40:
            return bytes(length_bytes)
        return super().read_blocks(offset_bytes, length_bytes, deadline_ns)

    def sets(self, deadline_ns: int) -> list[SetEntry]:
        return [] if self.fault == "sets" else super().sets(deadline_ns)

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        if self.fault == "from-the-start":
            have = b""
        if self.fault == "silent":
            return super().pull(entry, have, deadline_ns, lambda _: None)
        if self.fault == "damaged":
            return super().pull(entry, have, deadline_ns, lambda piece: progress(piece[::-1]))
        return super().pull(entry, have, deadline_ns, progress)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("state", "missing: bitmap"),
        ("alike", "others for a warmstart"),
        ("invented", "None at its deadline"),
        ("warmstart", "does not begin a new boot"),
        ("sets", "one new set"),
        ("silent", "it passed 0"),
        ("damaged", "SHA-256"),
        ("from-the-start", "passes on the second, no more"),
        ("short", "returns the 65536 bytes"),
        ("elsewhere", "one sector returns that sector"),
        ("endless", "beyond the end of the volume"),
    ],
)
def test_a_driver_that_breaks_its_role_is_named(fault: str, words: str) -> None:
    line = Line(Firmware())
    driver = Wrong("secondary", line, serial_number=SERIAL, clock=line)
    driver.fault = fault
    with pytest.raises(testing.ConformanceError, match=words):
        testing.check_controller(driver, clock=line)


@pytest.mark.parametrize("disruptive", [False, True])
def test_a_rehearsed_frame_has_no_effect_but_is_as_long_and_checked(
    rig: tuple[Firmware, SimArray, Line], disruptive: bool
) -> None:
    firmware, driver, line = rig
    role: Rehearsing = driver
    limit = 60 * NS_PER_S
    before = driver.identify(limit)
    frame = driver.freeze_frame(before, Reason.CONSOLE_TRIGGER, bytes(16), disruptive=disruptive)
    reply = role.rehearse(frame, limit)
    assert (reply.ok, reply.status) == (True, REHEARSED)
    assert (firmware.boot_epoch, list(driver.sets(limit)), firmware.lines) == (4, [], [])
    firmware.boot_epoch = 9
    assert (role.rehearse(frame, limit).ok, firmware.refused) == (False, [Status.STALE_EPOCH])
    firmware.boot_epoch = 4
    line.write(frame)
    assert len(driver.sets(limit)) == 1, "and the frame itself still has its effect"
