"""What the control operations do to a controller: it tells who it is, freezes, prints, is armed
with faults.

``Management`` is the ``control.Firmware`` of a running controller.
"""

from contextlib import suppress
from typing import Any, Final

from freezeframe.firmware_sim.control import Frozen
from freezeframe.firmware_sim.managed import Managed
from freezeframe.firmware_sim.rootcause import NoSpace, SetStore
from freezeframe.firmware_sim.staterecord import live_record, state_record
from freezeframe.harness.wire.control import (
    INCIDENT_ID_BYTES,
    MAX_PAYLOAD_BYTES,
    Capability,
    Op,
    Reason,
    SetKind,
    Status,
)
from freezeframe.harness.wire.rootcause import HEADER_KEYS, EventCode

MODEL: Final = "SimArray 2"
FIRMWARE_VERSION: Final = "1.0.0"


class Management:
    """Lives as long as its controller object; acts only while the firmware runs."""

    def __init__(self, controller: Managed) -> None:
        self.controller = controller
        self.serial_number = controller.config.serial_number

    @property
    def boot_epoch(self) -> int:
        return self.controller.boot_epoch

    @property
    def sets(self) -> SetStore:
        return self.controller.sets

    def identity(self) -> tuple[object, ...]:
        own = self.controller
        capabilities = Capability.STATE_SAVE | Capability.WARMSTART | Capability.FAULTS
        if own.config.autonomic:
            capabilities |= Capability.AUTONOMIC
        return (
            MODEL.encode(),
            self.serial_number.encode(),
            FIRMWARE_VERSION.encode(),
            own.boot_epoch,
            own.peer.role,
            own.peer.pair_state,
            own.trace.uptime_ns,
            own.trace.next_seq,
            MAX_PAYLOAD_BYTES,
            capabilities,
        )

    def freeze(self, kind: SetKind, reason: Reason, incident_id: bytes) -> Frozen:
        """Store state record and event log as a set. A warmstart also destages the cache, then
        restarts.

        The state is recorded first: it is the state at the moment of the instruction. What was written
        and not yet read back is verified before: the next resync may copy over it.
        """
        own = self.controller
        set_id = own.sets.next_id
        warm = kind is SetKind.WARMSTART
        own.trace.add(EventCode.WARMSTART if warm else EventCode.STATE_SAVE, set_id, reason)
        word = "warmstart" if warm else "state save"
        why = reason.name.lower().replace("_", " ")
        own.console.line(f"{word}: set {set_id}, reason {why}, incident {incident_id.hex()}")
        own.peer.audit()
        own.verify()
        state = state_record(own)
        if warm:
            dirty_bytes = own.store.dirty_bytes
            own.store.flush()
            own.trace.add(EventCode.DESTAGE, dirty_bytes)
        header: dict[str, Any] = {
            "set_id": set_id,
            "kind": int(kind),
            "reason": int(reason),
            "incident_id": incident_id,
            "model": MODEL,
            "serial_number": self.serial_number,
            "firmware_version": FIRMWARE_VERSION,
            "boot_epoch": own.boot_epoch,
            "uptime_ns": own.trace.uptime_ns,
            "wall_ns": own.now_ns + own.config.wall_offset_ns,
            "first_seq": own.trace.first_seq,
            "next_seq": own.trace.next_seq,
        }
        own.sets.add({key: header[key] for key in HEADER_KEYS}, state, own.trace.linear())
        if warm:
            own.restart_soon()
        return Frozen(set_id, own.boot_epoch + warm, own.trace.next_seq, own.trace.uptime_ns)

    def store_at_nmi(self) -> None:
        """A set of no incident, where there is room for one; then the restart."""
        with suppress(NoSpace):
            self.freeze(SetKind.WARMSTART, Reason.OPERATOR, bytes(INCIDENT_ID_BYTES))

    def state_record(self, max_bytes: int) -> bytes:
        return live_record(state_record(self.controller), max_bytes)

    def read_blocks(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self.controller.store.read(offset_bytes, length_bytes)

    def print_line(self, text: str) -> None:
        self.controller.console.line(text)

    def set_trace_level(self, level: int) -> None:
        self.controller.trace.level = level

    def arm_faults(self, plan: object) -> None:
        self.controller.faults.arm(plan)

    def control_seen(self, op: int, seq: int) -> None:
        self.controller.trace.add(EventCode.CONTROL_FRAME, op, seq)

    def control_refused(self, op: int, status: Status, text: str) -> None:
        self.controller.trace.add(EventCode.CONTROL_REFUSED, op, status)
        name = Op(op).name.lower().replace("_", " ")
        self.controller.console.line(f"control: {name} refused: {text}")
