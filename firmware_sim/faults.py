"""Fault injection: a plan (``wire/faults.py``) armed by SET_FAULTS, fired at the n-th replicated
write after that.

The replication peer asks these hooks at the places where a fault can act; without a plan each of
them is a no-op. Everything random comes from the plan's seed, so that the same plan on the same
writes does the same.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from freezeframe.firmware_sim.bitmap import Bitmap
from freezeframe.firmware_sim.drbd_contract import AckPlan
from freezeframe.firmware_sim.store import FaultMode, Store
from freezeframe.harness.wire.faults import FAULT_KEYS, FAULTS, MAX_FAULTS, FaultKind
from freezeframe.harness.wire.rootcause import EventCode

NS_PER_MS: Final = 1_000_000
MAX_AT_WRITE: Final = 1 << 40
MAX_DELAY_MS: Final = 600_000
MAX_SEED: Final = 1 << 64
KINDS: Final = tuple(FaultKind)
"""FAULT_FIRED's first argument is an index into this."""
GARBLE_SHARE: Final = 0.3
"""Part of a garbled line's bytes that become noise."""
RESYNC_KINDS: Final = {
    FaultKind.RESYNC_DENIED: "handshake",
    FaultKind.RESYNC_BITS_DROPPED: "bitmap",
    FaultKind.RESYNC_EMPTY: "begin",
}
MAX_REMEMBERED: Final = 64
"""Places whose old content is kept for STALE_COPY."""
ON_WRITE: Final = frozenset(kind for kind in KINDS if FAULTS[kind].on_write)
_NO_ACK_FAULT: Final = AckPlan("ack", 0)
ACK_KINDS: Final = {
    FaultKind.NEG_ACK: "neg",
    FaultKind.LOST_ACK: "lost",
    FaultKind.LATE_ACK: "ack",
    FaultKind.REPEATED_ACK: "repeated",
}
STORE_KINDS: Final[dict[FaultKind, FaultMode]] = {
    FaultKind.BIT_FLIP_STORE: "rotten",
    FaultKind.LOST_WRITE: "lost",
    FaultKind.MISDIRECTED_WRITE: "misdirected",
}


class PlanError(ValueError):
    """A fault plan that this firmware refuses; the text goes back in the reply."""


@dataclass(slots=True)
class Fault:
    """One entry of the plan; fires at writes ``at_write <= n < at_write + count``."""

    kind: FaultKind
    side: str
    at_write: int
    count: int
    delay_ms: int
    fired: int = 0

    def as_map(self) -> dict[str, object]:
        return {key: getattr(self, key) for key in (*FAULT_KEYS, "fired")} | {
            "kind": str(self.kind)
        }


def _integer(entry: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = entry.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanError(f"{key} must be a number from {low} to {high}")
    return value


def parse_fault(entry: object, side: str) -> Fault:
    """One entry as it came over the wire. Raises PlanError."""
    if not isinstance(entry, Mapping):
        raise PlanError("a fault must be a map")
    unknown = [str(key)[:20] for key in entry if key not in FAULT_KEYS]
    if unknown:
        raise PlanError(f"unknown key {unknown[0]}")
    try:
        kind = FaultKind(str(entry.get("kind")))
    except ValueError:
        raise PlanError(f"unknown kind {str(entry.get('kind'))[:40]}") from None
    if entry.get("side", side) != side:
        raise PlanError(f"fault {kind} is for the other side")
    if FAULTS[kind].side != side and not FAULTS[kind].either_side:
        raise PlanError(f"{kind} exists on the {FAULTS[kind].side} only")
    return Fault(
        kind=kind,
        side=side,
        at_write=_integer(entry, "at_write", 1, 1, MAX_AT_WRITE),
        count=_integer(entry, "count", 1, 1, MAX_AT_WRITE),
        delay_ms=_integer(entry, "delay_ms", 0, 0, MAX_DELAY_MS),
    )


class Faults:
    """The hooks. ``trace`` logs each firing (EventCode.FAULT_FIRED)."""

    def __init__(self, side: str, trace: Callable[..., None]) -> None:
        self._side = side
        self._trace = trace
        self._random = random.Random(0)
        self._plan: list[Fault] = []
        self._seen = 0
        self._last_write_no = -1
        self._due: dict[int, list[Fault]] = {}
        self._garble_next = 0
        self._before: dict[tuple[int, int], bytes] = {}
        """(offset, length) -> what stood there before the newest write to it; only while a
        STALE_COPY waits."""

    def arm(self, plan: object) -> None:
        """Replace the plan. Raises PlanError and keeps the old one when anything in it is wrong."""
        if not isinstance(plan, Mapping) or not set(plan) <= {"seed", "faults"}:
            raise PlanError("a plan is a map of seed and faults")
        entries = plan.get("faults", [])
        if (
            not isinstance(entries, Sequence)
            or isinstance(entries, str | bytes)
            or len(entries) > MAX_FAULTS
        ):
            raise PlanError(f"faults must be a list of at most {MAX_FAULTS}")
        seed = _integer(plan, "seed", 0, 0, MAX_SEED)
        self._plan = [parse_fault(entry, self._side) for entry in entries]
        self._random = random.Random(seed)
        self._seen = 0
        self._last_write_no = -1
        self._due.clear()
        self._garble_next = 0
        self._before.clear()

    def armed(self) -> list[dict[str, object]]:
        """The plan with its firings, for the state record."""
        return [fault.as_map() for fault in self._plan]

    # --- hooks of the replication peer ----------------------------------------------------------------------
    def copied(self, write_no: int, offset_bytes: int, data: bytes) -> tuple[int, bytes]:
        """Primary: where the copy goes and what it holds, before its digest is computed."""
        if not self._plan:
            return offset_bytes, data
        self._see(write_no)
        if self._take(write_no, (FaultKind.MISPLACED_COPY,)):
            length = len(data)
            return (
                offset_bytes - length if offset_bytes >= length else offset_bytes + length
            ), data
        old = self._before.pop((offset_bytes, len(data)), b"")
        for fault in self._plan:
            due = fault.kind is FaultKind.STALE_COPY and fault.fired < fault.count
            if due and self._seen >= fault.at_write and any(old) and old != data:
                self._fire(fault, write_no)
                return offset_bytes, old
        return offset_bytes, data

    def sent_data(self, write_no: int, data: bytes) -> bytes:
        """Primary: what really leaves, after the digest was computed."""
        if not self._plan:
            return data
        self._see(write_no)
        due = self._take(write_no, (FaultKind.BIT_FLIP_SENDER,))
        return self._flip(data) if due else data

    def received_data(self, write_no: int, data: bytes) -> bytes:
        """Secondary: what really arrived, before the digest is checked."""
        if not self._plan:
            return data
        self._see(write_no)
        due = self._take(write_no, (FaultKind.BIT_FLIP_RECEIVER,))
        return self._flip(data) if due else data

    def store(self, write_no: int, offset_bytes: int, data: bytes, backend: Store[Any]) -> None:
        """Secondary: carry the write out, or not."""
        due = self._take(write_no, tuple(STORE_KINDS)) if self._due else None
        if due is None:
            backend.write(offset_bytes, data)
            return
        bit = self._random.randrange(max(1, len(data)) * 8)
        backend.write_faulty(offset_bytes, data, STORE_KINDS[due.kind], bit=bit)

    def ack(self, write_no: int) -> AckPlan:
        """Secondary: how the write is answered."""
        due = self._take(write_no, tuple(ACK_KINDS)) if self._due else None
        if due is None:
            return _NO_ACK_FAULT
        return AckPlan(ACK_KINDS[due.kind], due.delay_ms * NS_PER_MS)

    def barrier_count(self, count: int) -> int:
        """Secondary: set_size of a BARRIER_ACK."""
        for fault in self._plan:
            if (
                fault.kind is FaultKind.WRONG_BARRIER_COUNT
                and fault.fired < fault.count
                and self._seen >= fault.at_write
            ):
                self._fire(fault, self._last_write_no)
                return count + 1
        return count

    def resync(self, moment: str, bitmap: Bitmap) -> bool:
        """Primary at "handshake" and "bitmap", secondary at "begin": whether the resync that is due
        goes wrong; its bits are gone then, or some of them."""
        for fault in self._plan:
            if (
                RESYNC_KINDS.get(fault.kind) == moment
                and fault.fired < fault.count
                and bitmap.count
            ):
                self._fire(fault, 0)
                if moment == "bitmap":
                    self._drop_bits(bitmap)
                else:
                    bitmap.clear_all()
                return True
        return False

    def _drop_bits(self, bitmap: Bitmap) -> None:
        blocks = [block for first, count in bitmap.runs() for block in range(first, first + count)]
        for block in self._random.sample(blocks, self._random.randint(1, len(blocks))):
            bitmap.clear_blocks(block, 1)

    def stall_ns(self, write_no: int) -> int:
        """Secondary: how long the data socket is left alone from this write on; 0 = not at all."""
        if not self._plan:
            return 0
        self._see(write_no)
        due = self._take(write_no, (FaultKind.STALL,))
        return due.delay_ms * NS_PER_MS if due else 0

    # --- hooks of the controller ----------------------------------------------------------------------------
    def before_write(
        self, offset_bytes: int, length_bytes: int, read: Callable[[int, int], bytes]
    ) -> None:
        """Primary: the host is about to write there."""
        if self._plan and any(
            one.kind is FaultKind.STALE_COPY and not one.fired for one in self._plan
        ):
            self._before[offset_bytes, length_bytes] = read(offset_bytes, length_bytes)
            while len(self._before) > MAX_REMEMBERED:
                del self._before[next(iter(self._before))]

    def garble(self, line: bytes) -> bytes:
        """A console line as it leaves."""
        if not self._garble_next:
            return line
        self._garble_next -= 1
        noisy = bytearray(line)
        hit = [at for at in range(len(noisy)) if self._random.random() < GARBLE_SHARE] or [0]
        for at in hit:
            noisy[at] = self._random.randrange(0x80, 0x100)
        return bytes(noisy)

    def hangs(self) -> bool:
        """Whether the warmstart that begins now never comes back."""
        for fault in self._plan:
            if fault.kind is FaultKind.HUNG_WARMSTART and fault.fired < fault.count:
                self._fire(fault, 0)
                return True
        return False

    # --- inside ---------------------------------------------------------------------------------------------
    def _see(self, write_no: int) -> None:
        """Count a replicated write once, and note which faults are due at it."""
        if write_no == self._last_write_no:
            return
        self._last_write_no = write_no
        self._seen += 1
        for fault in self._plan:
            if (
                fault.kind in ON_WRITE
                and fault.at_write <= self._seen < fault.at_write + fault.count
            ):
                if fault.kind is FaultKind.CONSOLE_GARBLE:
                    self._garble_next += 1
                    self._fire(fault, write_no)
                else:
                    self._due.setdefault(write_no, []).append(fault)

    def _take(self, write_no: int, kinds: tuple[FaultKind, ...]) -> Fault | None:
        due = self._due.get(write_no)
        if due is None:
            return None
        for fault in due:
            if fault.kind in kinds:
                due.remove(fault)
                if not due:
                    del self._due[write_no]
                self._fire(fault, write_no)
                return fault
        return None

    def _fire(self, fault: Fault, write_no: int) -> None:
        fault.fired += 1
        self._trace(EventCode.FAULT_FIRED, KINDS.index(fault.kind), write_no)

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        flipped = bytearray(data)
        bit = self._random.randrange(len(flipped) * 8)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)
