"""Autonomic mode: the secondary watches the replication and its own responses, and instructs the
primary itself.

It identifies its partner with IDENTIFY, repeated as a heartbeat, so that serial number and boot
epoch are known when a problem occurs and the WARMSTART frame can be sent at once. After the answer
(or without one) it warmstarts itself too.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from freezeframe.firmware_sim.control import Frame, Receiver, encode
from freezeframe.harness.wire import control as wire
from freezeframe.harness.wire.control import Op, Reason, Status
from freezeframe.harness.wire.rootcause import EventCode

NS_PER_MS: Final = 1_000_000
HEARTBEAT_NS: Final = 500 * NS_PER_MS
ANSWER_NS: Final = 400 * NS_PER_MS
"""Time for the answer of the primary before the frame is sent again; it stores its set first."""
ATTEMPTS: Final = 3
ACK_OVERDUE_NS: Final = 1_500 * NS_PER_MS
"""A replicated write not answered after this time is a wrong response of this controller. A
healthy controller answers in milliseconds, but its machine may stall for a second."""
QUIET_NS: Final = 3_000 * NS_PER_MS
"""Time after an incident in which further problems are treated as its consequences."""
PROBLEMS: Final = frozenset(
    {EventCode.REPL_DIGEST_FAILED, EventCode.SCRUB_MISMATCH, EventCode.REPL_NEG_ACK}
)
NO_ANSWER: Final = 0xFF
"""Status in PEER_INSTRUCTED when the primary did not answer."""


@dataclass(slots=True)
class Instruction:
    """A WARMSTART frame for the primary that is not answered yet."""

    incident_id: bytes
    seq: int
    frame: bytes
    sent_ns: int
    attempts: int = 1


class Autonomic:
    """The monitor. Its output goes to control port "peer"; ``freeze_self`` warmstarts this
    controller."""

    def __init__(
        self,
        serial_number: str,
        log: Callable[[str], None],
        trace: Callable[..., None],
        freeze_self: Callable[[Reason, bytes], None],
    ) -> None:
        self._serial_number = serial_number
        self._log = log
        self._trace = trace
        self._freeze_self = freeze_self
        self._receiver = Receiver()
        self._out: list[bytes] = []
        self._seq = 0
        self._partner: tuple[bytes, int] | None = None
        self._heartbeat_ns = 0
        self._problem = ""
        self._quiet_until_ns = 0
        self._incidents = 0
        self._instruction: Instruction | None = None
        self._unanswered: dict[int, int] = {}
        self._last_acked = 0
        self._epochs: dict[int, int] = {}
        """Barrier received -> writes before it, until it is answered."""

    def watch(self, now_ns: int, event: EventCode, args: tuple[int, ...]) -> None:
        """Process one event of this controller's own log."""
        if event is EventCode.REPL_RECEIVE:
            self._unanswered[args[0]] = now_ns
        elif event is EventCode.REPL_ACK_SENT:
            self._unanswered.pop(args[0], None)
            if args[0] == self._last_acked:
                self._report("acknowledged twice")
            self._last_acked = args[0]
        elif event is EventCode.REPL_BARRIER_RECEIVED:
            self._epochs[args[0]] = args[1]
        elif event is EventCode.REPL_BARRIER_ACK:
            if self._epochs.pop(args[0], args[1]) != args[1]:
                self._report("wrong barrier count")
        elif event in PROBLEMS:
            if event is EventCode.REPL_NEG_ACK:
                self._unanswered.pop(args[0], None)
            self._report(event.name.lower().replace("_", " "))

    def link_lost(self) -> None:
        """Handle the loss of the replication link: no response is expected any more."""
        self._unanswered.clear()
        self._epochs.clear()
        self._last_acked = 0

    def _report(self, problem: str) -> None:
        if not self._problem:
            self._problem = problem

    def feed(self, now_ns: int, data: bytes) -> None:
        """Process bytes from the control port of the primary."""
        for frame in self._receiver.feed(data):
            if not frame.payload:
                continue
            status = frame.payload[0]
            if frame.type == Op.IDENTIFY | wire.REPLY and status == Status.OK:
                if len(frame.payload) == wire.STATUS.size + wire.IDENTITY.size:
                    fields = wire.IDENTITY.unpack_from(frame.payload, wire.STATUS.size)
                    self._partner = (fields[1], fields[3])
            elif frame.type == Op.WARMSTART | wire.REPLY:
                self._answered(now_ns, frame.seq, status)

    def _answered(self, now_ns: int, seq: int, status: int) -> None:
        instruction = self._instruction
        if instruction is None or seq != instruction.seq:
            return
        if status == Status.STALE_EPOCH and instruction.attempts < ATTEMPTS:
            # The primary has booted since the last heartbeat: ask again who it is, then instruct
            # that boot.
            self._partner = None
            self._heartbeat_ns = now_ns
            return
        self._finish(now_ns, status)

    def tick(self, now_ns: int) -> None:
        if now_ns >= self._heartbeat_ns:
            self._send(Op.IDENTIFY, b"")
            self._heartbeat_ns = now_ns + HEARTBEAT_NS
        if self._unanswered and now_ns >= self._oldest_ns() + ACK_OVERDUE_NS:
            self._unanswered.clear()
            self._report("acknowledgement overdue")
        if self._problem and (self._instruction is not None or now_ns < self._quiet_until_ns):
            self._problem = ""
        if (
            self._problem and self._partner is not None
        ):  # wait for the answer of the heartbeat: no frame to an unidentified controller
            self._begin(now_ns)
            self._problem = ""
        instruction = self._instruction
        if instruction is not None and now_ns >= instruction.sent_ns + ANSWER_NS:
            if instruction.attempts >= ATTEMPTS:
                self._finish(now_ns, NO_ANSWER)
            else:
                self._instruct(now_ns, instruction.incident_id, instruction.attempts + 1)

    def next_deadline(self) -> int:
        deadlines = [self._heartbeat_ns]
        if self._unanswered:
            deadlines.append(self._oldest_ns() + ACK_OVERDUE_NS)
        if self._instruction is not None:
            deadlines.append(self._instruction.sent_ns + ANSWER_NS)
        return min(deadlines)

    def take_output(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data

    def _oldest_ns(self) -> int:
        return next(iter(self._unanswered.values()))

    def _begin(self, now_ns: int) -> None:
        self._incidents += 1
        what = f"{self._serial_number}/{now_ns}/{self._incidents}"
        incident_id = hashlib.sha256(what.encode()).digest()[: wire.INCIDENT_ID_BYTES]
        self._log(
            f"autonomic: {self._problem}, instructing the primary, incident {incident_id.hex()}"
        )
        self._instruct(now_ns, incident_id, 1)

    def _instruct(self, now_ns: int, incident_id: bytes, attempts: int) -> None:
        """Send WARMSTART to the known boot; send the same frame again while it is the same boot."""
        before = self._instruction
        if self._partner is None:
            # It has booted since and its new epoch is unknown: use this attempt to ask again.
            self._instruction = Instruction(
                incident_id, self._send(Op.IDENTIFY, b""), b"", now_ns, attempts
            )
            return
        payload = wire.FREEZE.pack(*self._partner, Reason.PEER_TRIGGER, incident_id)
        if before is not None and before.frame == payload:
            seq = before.seq
            self._out.append(encode(Frame(Op.WARMSTART, seq, payload)))
        else:
            seq = self._send(Op.WARMSTART, payload)
        self._instruction = Instruction(incident_id, seq, payload, now_ns, attempts)

    def _finish(self, now_ns: int, status: int) -> None:
        instruction = self._instruction
        assert instruction is not None
        self._instruction = None
        self._problem = ""
        self._quiet_until_ns = now_ns + QUIET_NS
        self._trace(EventCode.PEER_INSTRUCTED, Reason.PEER_TRIGGER, status)
        outcome = "no answer" if status == NO_ANSWER else f"status {status}"
        self._log(f"autonomic: primary instructed, {outcome}")
        self._freeze_self(Reason.SELF, instruction.incident_id)

    def _send(self, op: Op, payload: bytes) -> int:
        self._seq = (self._seq + 1) & 0xFFFF
        self._out.append(encode(Frame(op, self._seq, payload)))
        return self._seq
