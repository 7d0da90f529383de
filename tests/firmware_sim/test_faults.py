from collections.abc import Mapping
from typing import Any

import pytest

from freezeframe.firmware_sim.bitmap import Bitmap
from freezeframe.firmware_sim.faults import KINDS, Faults, PlanError
from freezeframe.harness.wire.faults import FaultKind
from freezeframe.harness.wire.rootcause import EventCode


class Backend:
    """Remembers what it was told to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def write(self, offset_bytes: int, data: bytes) -> None:
        self.calls.append(("write", offset_bytes, data))

    def write_faulty(self, offset_bytes: int, data: bytes, mode: str, *, bit: int = 0) -> None:
        self.calls.append((mode, offset_bytes, data))


def armed(
    side: str, *entries: Mapping[str, Any], seed: int = 1
) -> tuple[Faults, list[tuple[Any, ...]]]:
    fired: list[tuple[Any, ...]] = []
    faults = Faults(side, lambda *args: fired.append(args))
    faults.arm({"seed": seed, "faults": list(entries)})
    return faults, fired


def marked(blocks: int) -> Bitmap:
    bitmap = Bitmap(1 << 20)
    bitmap.set_blocks(8, blocks)
    return bitmap


@pytest.mark.parametrize(
    ("side", "kind", "moment"),
    [
        ("primary", FaultKind.RESYNC_DENIED, "handshake"),
        ("primary", FaultKind.RESYNC_BITS_DROPPED, "bitmap"),
        ("secondary", FaultKind.RESYNC_EMPTY, "begin"),
    ],
)
def test_a_resync_goes_wrong_once_at_its_own_moment_and_only_with_something_to_lose(
    side: str, kind: FaultKind, moment: str
) -> None:
    faults, fired = armed(side, {"kind": kind})
    bitmap = marked(20)
    for other in {"handshake", "bitmap", "begin"} - {moment}:
        assert not faults.resync(other, bitmap) and bitmap.count == 20
    assert not faults.resync(moment, marked(0)) and fired == []
    assert faults.resync(moment, bitmap) and bitmap.count < 20
    assert (bitmap.count == 0) or kind is FaultKind.RESYNC_BITS_DROPPED
    assert fired == [(EventCode.FAULT_FIRED, KINDS.index(kind), 0)]
    assert not faults.resync(moment, marked(20))


def test_a_misplaced_copy_goes_to_its_neighbour_and_a_stale_one_holds_what_was_there() -> None:
    faults, _ = armed("primary", {"kind": FaultKind.MISPLACED_COPY, "at_write": 2})
    data = b"x" * 512
    assert [faults.copied(no, 1024, data) for no in (1, 2, 3)] == [
        (1024, data), (512, data), (1024, data),
    ]  # fmt: skip
    faults, _ = armed("primary", {"kind": FaultKind.STALE_COPY, "at_write": 2})
    old = b"o" * 512
    sent = []
    for no, before in enumerate((old, bytes(512), data, old, old), 1):
        faults.before_write(1024, 512, lambda _at, _length, before=before: before)  # type: ignore[misc]
        sent.append(faults.copied(no, 1024, data))
    assert sent == [(1024, data)] * 3 + [(1024, old), (1024, data)]


def test_without_a_plan_every_hook_is_a_no_op() -> None:
    faults, fired = armed("secondary")
    backend = Backend()
    data = b"x" * 512
    assert faults.copied(1, 512, data) == (512, data)
    assert not faults.resync("bitmap", marked(4))
    assert faults.sent_data(1, data) is data
    assert faults.received_data(1, data) is data
    faults.store(1, 0, data, backend)
    assert backend.calls == [("write", 0, data)]
    plan = faults.ack(1)
    assert (plan.kind, plan.delay_ns) == ("ack", 0)
    assert faults.barrier_count(5) == 5
    assert faults.stall_ns(1) == 0
    assert faults.garble(b"line") == b"line"
    assert not faults.hangs()
    assert fired == [] and faults.armed() == []


@pytest.mark.parametrize(
    ("side", "kind"),
    [("primary", FaultKind.BIT_FLIP_SENDER), ("secondary", FaultKind.BIT_FLIP_RECEIVER)],
)
def test_exactly_one_bit_of_exactly_the_named_write_flips(side: str, kind: FaultKind) -> None:
    faults, fired = armed(side, {"kind": kind, "side": side, "at_write": 3})
    hook = faults.sent_data if side == "primary" else faults.received_data
    results = [hook(write_no, bytes(4096)) for write_no in (10, 11, 12, 13)]
    ones = [sum(byte.bit_count() for byte in data) for data in results]
    assert ones == [0, 0, 1, 0]
    assert fired == [(EventCode.FAULT_FIRED, KINDS.index(kind), 12)]
    assert faults.armed()[0]["fired"] == 1


def test_the_same_seed_flips_the_same_bit() -> None:
    def flipped(seed: int) -> bytes:
        faults, _ = armed("primary", {"kind": "bit_flip_sender"}, seed=seed)
        return faults.sent_data(1, bytes(65536))

    assert flipped(5) == flipped(5) != flipped(6)


@pytest.mark.parametrize(
    ("kind", "done"),
    [("lost_write", "lost"), ("bit_flip_store", "rotten"), ("misdirected_write", "misdirected")],
)
def test_store_faults_reach_the_store(kind: str, done: str) -> None:
    faults, _ = armed("secondary", {"kind": kind, "at_write": 2, "count": 2})
    backend = Backend()
    for write_no in range(4):
        faults.received_data(write_no, b"d")
        faults.store(write_no, write_no * 512, b"d", backend)
    assert [call[0] for call in backend.calls] == ["write", done, done, "write"]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("neg_ack", "neg"), ("lost_ack", "lost"), ("late_ack", "ack"), ("repeated_ack", "repeated")],
)
def test_ack_faults(kind: str, answer: str) -> None:
    faults, _ = armed("secondary", {"kind": kind, "at_write": 2, "delay_ms": 40})
    for write_no in (1, 2):
        faults.received_data(write_no, b"d")
    plans = [faults.ack(write_no) for write_no in (1, 2)]
    assert [(plan.kind, plan.delay_ns) for plan in plans] == [("ack", 0), (answer, 40_000_000)]


def test_the_next_barrier_after_the_write_counts_wrong_once() -> None:
    faults, _ = armed("secondary", {"kind": "wrong_barrier_count", "at_write": 2})
    faults.received_data(1, b"d")
    assert faults.barrier_count(1) == 1
    faults.received_data(2, b"d")
    assert [faults.barrier_count(1), faults.barrier_count(1)] == [2, 1]


def test_a_stall_is_told_once_whatever_hook_comes_first() -> None:
    faults, _ = armed("secondary", {"kind": "stall", "delay_ms": 700})
    assert faults.stall_ns(9) == 700_000_000
    assert faults.stall_ns(9) == 0
    assert faults.received_data(9, b"d") == b"d"


def test_garble_leaves_noise_that_is_no_text() -> None:
    faults, _ = armed("secondary", {"kind": "console_garble", "at_write": 1})
    line = b"[    1.000000] hello\r\n"
    assert faults.garble(line) == line
    faults.received_data(1, b"d")
    noisy = faults.garble(line)
    assert len(noisy) == len(line) and noisy != line
    assert all(byte >= 0x80 for byte, was in zip(noisy, line, strict=True) if byte != was)
    assert faults.garble(line) == line


def test_a_warmstart_hangs_once() -> None:
    faults, fired = armed("primary", {"kind": "hung_warmstart"})
    assert [faults.hangs(), faults.hangs()] == [True, False]
    assert len(fired) == 1


@pytest.mark.parametrize(
    "plan",
    [
        [],
        {"faults": "x"},
        {"faults": [1]},
        {"faults": [{"kind": "nonsense"}]},
        {"faults": [{"kind": "neg_ack", "at_write": 0}]},
        {"faults": [{"kind": "neg_ack", "at_write": True}]},
        {"faults": [{"kind": "neg_ack", "at_write": "1"}]},
        {"faults": [{"kind": "neg_ack", "delay_ms": 1 << 60}]},
        {"faults": [{"kind": "neg_ack", "colour": 1}]},
        {"faults": [{"kind": "neg_ack", "side": "primary"}]},
        {"faults": [{"kind": "bit_flip_sender"}]},
        {"faults": [{"kind": "neg_ack"}] * 65},
        {"seed": -1},
        {"other": 1},
    ],
)
def test_a_wrong_plan_is_refused_and_the_old_one_stays(plan: object) -> None:
    faults, _ = armed("secondary", {"kind": "neg_ack"})
    with pytest.raises(PlanError):
        faults.arm(plan)
    assert len(faults.armed()) == 1
