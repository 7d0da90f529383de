import hashlib
import random
from dataclasses import dataclass, field

import cbor2
import pytest
from cobs import cobs
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.firmware_sim.control import (
    MAX_COBS_BYTES,
    Frame,
    Frozen,
    Operations,
    Receiver,
    decode,
    encode,
)
from freezeframe.firmware_sim.faults import PlanError
from freezeframe.firmware_sim.rootcause import MemoryNvram, NoSpace, SetStore
from freezeframe.harness.wire import control as wire
from freezeframe.harness.wire.control import Op, Reason, SetKind, Status
from freezeframe.harness.wire.rootcause import HEADER_KEYS, STATE_KEYS

SERIAL = "FFSIM-P-0001"
INCIDENT = bytes(range(16))

frames = st.builds(
    Frame,
    type=st.integers(0, 255),
    seq=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=wire.MAX_PAYLOAD_BYTES),
    flags=st.integers(0, 255),
)


def split(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(data):
        step = rng.randrange(1, 40)
        pieces.append(data[at : at + step])
        at += step
    return pieces


# --- codec --------------------------------------------------------------------------------------------------
def test_golden_bytes_of_an_identify_request() -> None:
    # f5 01 01 00 0007 0000, CRC-32C of it (checked with an independent table-driven computation
    # below).
    body = bytes.fromhex("f501010000070000")
    crc = 0xFFFFFFFF
    for byte in body:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    body += (crc ^ 0xFFFFFFFF).to_bytes(4, "big")
    assert encode(Frame(Op.IDENTIFY, 7, b"")) == b"\0" + cobs.encode(body) + b"\0"


@given(frames)
def test_what_is_encoded_is_decoded(frame: Frame) -> None:
    line = encode(frame)
    assert line[0] == line[-1] == 0 and 0 not in line[1:-1]
    assert len(line) <= wire.MAX_FRAME_BYTES
    assert decode(line[1:-1]) == frame


@settings(max_examples=30)
@given(
    st.lists(frames, max_size=4),
    st.lists(st.binary(max_size=50), min_size=5, max_size=5),
    st.integers(),
)
def test_frames_among_text_arrive_however_the_line_is_split(
    sent: list[Frame], noise: list[bytes], seed: int
) -> None:
    text = [bytes(byte % 0x5F + 0x20 for byte in part) for part in noise]
    line = text[0] + b"".join(
        encode(frame) + between for frame, between in zip(sent, text[1:], strict=False)
    )
    for pieces in ([line], [line[at : at + 1] for at in range(len(line))], split(line, seed)):
        receiver = Receiver()
        got = [frame for piece in pieces for frame in receiver.feed(piece)]
        assert got == sent
        assert receiver.damaged == 0


def test_a_lost_delimiter_costs_at_most_one_frame() -> None:
    receiver = Receiver()
    one = encode(Frame(1, 1, b"a"))
    assert receiver.feed(one[:-1] + one + one) == [Frame(1, 1, b"a")] * 3
    assert receiver.feed(one[1:] + one) == [Frame(1, 1, b"a")] * 2


def test_a_line_without_delimiters_is_bounded() -> None:
    receiver = Receiver()
    receiver.feed(b"\0\x02\xf5")
    for _ in range(100):
        receiver.feed(b"\x55" * 1000)
    assert len(receiver._held) <= MAX_COBS_BYTES + 1
    assert receiver.feed(b"\0" + encode(Frame(1, 2, b""))) == [Frame(1, 2, b"")]
    assert receiver.damaged == 1


@given(st.binary(max_size=300), st.integers(0, 10_000))
def test_damage_is_never_taken_for_a_frame(payload: bytes, where: int) -> None:
    line = bytearray(encode(Frame(4, 1, payload)))
    at = 1 + where % (len(line) - 2)
    line[at] ^= 0x10
    for frame in Receiver().feed(bytes(line)):
        raise AssertionError(f"accepted {frame}")


@pytest.mark.parametrize("length", [0, 5, 4097, 65535])
def test_a_length_that_is_not_the_payloads_is_dropped(length: int) -> None:
    body = wire.HEADER.pack(wire.MAGIC, wire.VERSION, 1, 0, 1, length) + b"abcd"
    assert decode(cobs.encode(body + wire.CRC.pack(crc32c(body)))) is None


# --- operations ---------------------------------------------------------------------------------------------
@dataclass
class FakeFirmware:
    serial_number: str = SERIAL
    boot_epoch: int = 3
    sets: SetStore = field(default_factory=lambda: SetStore(MemoryNvram()))
    calls: list[tuple[object, ...]] = field(default_factory=list)
    full: bool = False

    def identity(self) -> tuple[object, ...]:
        return (b"SimArray", SERIAL.encode(), b"1.0", self.boot_epoch, 1, 2, 99, 5, 4096, 7)

    def freeze(self, kind: SetKind, reason: Reason, incident_id: bytes) -> Frozen:
        if self.full:
            raise NoSpace("full")
        self.calls.append(("freeze", kind, reason, incident_id))
        return Frozen(12, self.boot_epoch + 1, 55, 66)

    def state_record(self, max_bytes: int) -> bytes:
        return cbor2.dumps({"role": 1})

    def read_blocks(self, offset_bytes: int, length_bytes: int) -> bytes:
        if self.full:
            raise OSError(5, "Input/output error")
        if offset_bytes + length_bytes > 8192:
            raise ValueError("outside of the volume")
        return bytes(length_bytes)

    def print_line(self, text: str) -> None:
        self.calls.append(("print", text))

    def set_trace_level(self, level: int) -> None:
        self.calls.append(("level", level))

    def arm_faults(self, plan: object) -> None:
        if plan == "wrong":
            raise PlanError("wrong plan")
        self.calls.append(("faults", plan))

    def control_seen(self, op: int, seq: int) -> None:
        pass

    def control_refused(self, op: int, status: Status, text: str) -> None:
        self.calls.append(("refused", op, status, text))


def ask(
    operations: Operations, op: int, payload: bytes = b"", seq: int = 1
) -> list[tuple[Status, bytes]]:
    replies = []
    for line in operations.feed(encode(Frame(op, seq, payload))):
        (frame,) = Receiver().feed(line)
        assert (frame.type, frame.seq) == (op | wire.REPLY, seq)
        replies.append((Status(frame.payload[0]), frame.payload[1:]))
    return replies


def target(serial: str = SERIAL, epoch: int = 3) -> bytes:
    return wire.TARGET.pack(serial.encode(), epoch)


def freeze(serial: str = SERIAL, epoch: int = 3, reason: int = 1) -> bytes:
    return wire.FREEZE.pack(serial.encode(), epoch, reason, INCIDENT)


def test_identify() -> None:
    ((status, payload),) = ask(Operations(FakeFirmware()), Op.IDENTIFY)
    assert status is Status.OK
    assert wire.IDENTITY.unpack(payload)[1].rstrip(b"\0") == SERIAL.encode()


@pytest.mark.parametrize(
    ("op", "kind"), [(Op.WARMSTART, SetKind.WARMSTART), (Op.STATE_SAVE, SetKind.STATE_SAVE)]
)
def test_freeze_acts_once_and_answers_each_time(op: Op, kind: SetKind) -> None:
    firmware = FakeFirmware()
    operations = Operations(firmware)
    first = ask(operations, op, freeze(), seq=9)
    firmware.boot_epoch = 4
    assert ask(operations, op, freeze(), seq=9) == first, "the same frame again, after the restart"
    assert firmware.calls == [("freeze", kind, Reason.CONSOLE_TRIGGER, INCIDENT)]
    assert wire.FREEZE_REPLY.unpack(first[0][1]) == (12, 4, 55, 66)


def test_a_new_dialogue_forgets_all_but_warmstarts() -> None:
    firmware = FakeFirmware()
    operations = Operations(firmware)
    for _ in range(2):
        ask(operations, Op.IDENTIFY, seq=1)
        ask(operations, Op.WARMSTART, freeze(), seq=2)
        ask(operations, Op.SET_FAULTS, target() + cbor2.dumps({}), seq=3)
    assert [call[0] for call in firmware.calls] == ["freeze", "faults", "faults"]


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (freeze(serial="FFSIM-S-0001"), Status.WRONG_TARGET),
        (freeze(epoch=2), Status.STALE_EPOCH),
        (freeze()[:-1], Status.BAD_LENGTH),
        (freeze() + b"x", Status.BAD_LENGTH),
        (b"", Status.BAD_LENGTH),
        (freeze(reason=999), Status.BAD_ARGUMENT),
    ],
)
def test_a_wrong_freeze_frame_is_refused(payload: bytes, status: Status) -> None:
    firmware = FakeFirmware()
    ((got, text),) = ask(Operations(firmware), Op.WARMSTART, payload)
    assert got is status
    assert 0 < len(text) <= 200
    assert not any(call[0] == "freeze" for call in firmware.calls)
    if status in (Status.WRONG_TARGET, Status.STALE_EPOCH):
        assert firmware.calls == [("refused", Op.WARMSTART, status, text.decode())]


@pytest.mark.parametrize("op", sorted(wire.DESTRUCTIVE))
def test_every_destructive_operation_checks_its_target(op: Op) -> None:
    firmware = FakeFirmware()
    ((status, _),) = ask(Operations(firmware), op, target("OTHER") + bytes(100))
    assert status is Status.WRONG_TARGET


def test_no_space_and_unknown_operation() -> None:
    assert (
        ask(Operations(FakeFirmware(full=True)), Op.STATE_SAVE, freeze())[0][0] is Status.NO_SPACE
    )
    assert ask(Operations(FakeFirmware()), 0x7E)[0][0] is Status.UNKNOWN_OP


def with_set() -> tuple[FakeFirmware, Operations, int, bytes]:
    firmware = FakeFirmware()
    values = dict.fromkeys(HEADER_KEYS, 0) | {
        "set_id": 1, "kind": 2, "reason": 1, "incident_id": INCIDENT, "boot_epoch": 3,
    }  # fmt: skip
    noise = random.Random(1).randbytes(100_000)
    entry = firmware.sets.add(
        {key: values[key] for key in HEADER_KEYS}, dict.fromkeys(STATE_KEYS, 0), noise
    )
    blob = firmware.sets.read(entry.set_id)
    assert blob is not None
    return firmware, Operations(firmware), entry.set_id, blob


def test_sets_are_listed_read_in_windows_and_acknowledged() -> None:
    firmware, operations, set_id, blob = with_set()
    ((_, listed),) = ask(operations, Op.LIST_SETS)
    fields = wire.SET_ENTRY.unpack(listed)
    assert (
        fields[0] == set_id
        and fields[6] == len(blob)
        and fields[8] == hashlib.sha256(blob).digest()
    )
    pulled = b""
    while len(pulled) < len(blob):
        request = wire.READ_SET.pack(set_id, len(pulled), wire.MAX_WINDOW_BYTES)
        for status, payload in ask(operations, Op.READ_SET, request):
            assert status is Status.OK
            got_id, offset = wire.SET_DATA.unpack_from(payload)
            assert (got_id, offset) == (set_id, len(pulled))
            pulled += payload[wire.SET_DATA.size :]
    assert pulled == blob
    wrong = target() + set_id.to_bytes(4, "big") + bytes(32)
    assert ask(operations, Op.ACK_SET, wrong)[0][0] is Status.WRONG_DIGEST
    right = target() + set_id.to_bytes(4, "big") + hashlib.sha256(blob).digest()
    assert ask(operations, Op.ACK_SET, right, seq=2)[0][0] is Status.OK
    assert firmware.sets.entries() == []
    assert ask(operations, Op.ACK_SET, right, seq=2)[0][0] is Status.OK, "the same frame again"
    assert ask(operations, Op.ACK_SET, right, seq=3)[0][0] is Status.NO_SUCH_SET


@pytest.mark.parametrize(
    ("set_id", "offset", "length", "status"),
    [
        (99, 0, 1, Status.NO_SUCH_SET),
        (1, 1 << 63, 1, Status.BAD_OFFSET),
        (1, 0, wire.MAX_WINDOW_BYTES + 1, Status.BAD_ARGUMENT),
        (1, 0, 0, Status.OK),
    ],
)
def test_a_window_beyond_the_set_is_refused(
    set_id: int, offset: int, length: int, status: Status
) -> None:
    _, operations, _, _ = with_set()
    ((got, _),) = ask(operations, Op.READ_SET, wire.READ_SET.pack(set_id, offset, length))
    assert got is status


def test_the_end_of_a_set_answers_an_empty_window() -> None:
    _, operations, set_id, blob = with_set()
    ((status, payload),) = ask(operations, Op.READ_SET, wire.READ_SET.pack(set_id, len(blob), 4096))
    assert status is Status.OK and len(payload) == wire.SET_DATA.size


def test_print_trace_level_and_faults() -> None:
    firmware = FakeFirmware()
    operations = Operations(firmware)
    assert ask(operations, Op.PRINT, b"canary")[0][0] is Status.OK
    assert ask(operations, Op.PRINT, b"")[0][0] is Status.BAD_LENGTH
    assert ask(operations, Op.PRINT, b"x" * 201)[0][0] is Status.BAD_LENGTH
    assert ask(operations, Op.SET_TRACE_LEVEL, target() + b"\x02", seq=2)[0][0] is Status.OK
    assert (
        ask(operations, Op.SET_TRACE_LEVEL, target() + b"\x09", seq=3)[0][0] is Status.BAD_ARGUMENT
    )
    plan = {"seed": 1, "faults": []}
    assert ask(operations, Op.SET_FAULTS, target() + cbor2.dumps(plan), seq=4)[0][0] is Status.OK
    assert (
        ask(operations, Op.SET_FAULTS, target() + cbor2.dumps("wrong"), seq=5)[0][0]
        is Status.BAD_ARGUMENT
    )
    assert (
        ask(operations, Op.SET_FAULTS, target() + b"\xff\xff", seq=6)[0][0] is Status.BAD_ARGUMENT
    )
    assert firmware.calls == [("print", "canary"), ("level", 2), ("faults", plan)]


@settings(max_examples=200)
@given(st.integers(0, 127), st.binary(max_size=80))
def test_any_payload_gets_a_reply_or_a_refusal(op: int, payload: bytes) -> None:
    for data in (payload, target() + payload):
        assert ask(Operations(FakeFirmware()), op, data)


def test_replies_of_others_are_not_answered() -> None:
    assert Operations(FakeFirmware()).feed(encode(Frame(Op.IDENTIFY | wire.REPLY, 1, b""))) == []


def test_blocks_are_read_inside_the_volume_and_one_reply_at_a_time() -> None:
    operations = Operations(FakeFirmware())

    def read(offset_bytes: int, length_bytes: int) -> tuple[Status, bytes]:
        request = wire.READ_BLOCKS.pack(offset_bytes, length_bytes)
        ((status, payload),) = ask(operations, Op.READ_BLOCKS, request)
        return status, payload

    assert read(512, 1024) == (Status.OK, wire.BLOCK_DATA.pack(512) + bytes(1024))
    assert read(7680, 1024)[0] is Status.BAD_OFFSET
    assert read(0, wire.MAX_BLOCK_DATA_BYTES + 512)[0] is Status.BAD_ARGUMENT
    assert ask(operations, Op.READ_BLOCKS, b"short")[0][0] is Status.BAD_LENGTH
    failed = Operations(FakeFirmware(full=True))
    assert ask(failed, Op.READ_BLOCKS, wire.READ_BLOCKS.pack(0, 512))[0][0] is Status.BUSY


def test_the_boot_loader_reads_blocks_and_is_silent_to_all_else() -> None:
    firmware = FakeFirmware()
    operations = Operations(firmware)
    asked = encode(Frame(Op.READ_BLOCKS, 7, wire.READ_BLOCKS.pack(0, 512)))
    (reply,) = operations.feed_boot_loader(encode(Frame(Op.IDENTIFY, 6, b"")) + asked)
    (frame,) = Receiver().feed(reply)
    assert (frame.seq, frame.payload[0]) == (7, Status.OK)
    warmstart = encode(Frame(Op.WARMSTART, 8, freeze()))
    assert (operations.feed_boot_loader(warmstart), firmware.calls) == ([], [])
    beyond = encode(Frame(Op.READ_BLOCKS, 9, wire.READ_BLOCKS.pack(8192, 512)))
    (refused,) = operations.feed_boot_loader(beyond)
    assert Receiver().feed(refused)[0].payload[0] == Status.BAD_OFFSET
