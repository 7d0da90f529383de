"""Redrive: before the warmstart the failing write is sent again, to tell a transient fault from a
deterministic one.

The reflex's frames have saved both controllers' state without disturbing them. Whatever goes wrong
here is recorded in the incident and does not prevent the warmstart. Each wait is bounded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.blocks.blockstamp import Journal, Write
from freezeframe.harness.core.events import (
    NS_PER_S,
    FrameFailed,
    FrameSent,
    Ns,
    Side,
    Trigger,
)
from freezeframe.harness.core.redrive import (
    RedriveResult,
    failed_again,
    failing_write,
    sector_in_line,
    why_not,
)
from freezeframe.harness.core.text import sector_range
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.errors import RigError, WireError, WrongDeviceError
from freezeframe.harness.incidents.consoleline import line_of
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import JOURNAL
from freezeframe.harness.roles import HostPort, Preparable, Tracing
from freezeframe.harness.runs.carry import send
from freezeframe.harness.wire import control
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

SETTLE_S: Final = 0.3
"""The pair is connected when it says so twice, so long apart: a link that is about to drop says it
once."""
WATCH_STEP_S: Final = 0.05
ASK_TIMEOUT_S: Final = 2.0
SOURCE_REASONS: Final = {
    "console": control.Reason.CONSOLE_TRIGGER,
    "link": control.Reason.LINK_TRIGGER,
}


class Redrive:
    """One second try. ``triggers`` is the session's list, which goes on growing; ``wait`` sleeps,
    and says True when all is to be given up; ``tell`` takes (step, detail, side) for the incident's
    history."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        cause: Trigger,
        triggers: Sequence[Trigger],
        wait: Callable[[float], bool],
        tell: Callable[[str, str, Side | None], None],
    ) -> None:
        self._opened = opened
        self._texts = opened.bench.link.console_texts
        self._incident = incident
        self._cause = cause
        self._triggers = triggers
        self._wait = wait
        self._tell = tell

    def carry_out(self, saves: Mapping[Side, bytes], saved: Callable[[], None]) -> None:
        """``saves``: the frames that went out; ``saved`` is called once they are answered. The result is
        in incident.json and in its history afterwards."""
        answered = {side: self._saved(side, frame) for side, frame in saves.items()}
        saved()
        self._trace(control.TraceLevel.DEBUG)
        try:
            result = self._try_again()
        except (RigError, WireError) as error:
            result = RedriveResult(again=None, reason=str(error))
        self._trace(control.TraceLevel.INFO)
        self._incident.update(redrive=result.as_record() | {"saves": answered})
        self._tell("redrive", f"{result.outcome}: {result.reason}", None)

    def warmstart(self, sides: Sequence[Side]) -> list[FrameSent | FrameFailed]:
        """Write the warmstart frames, which the reflex would have written without a redrive."""
        frames = {side: self._warmstart_frame(side) for side in sides}
        return [
            frame
            if isinstance(frame, FrameFailed)
            else send(self._opened.controllers[side].link, side, frame, MonotonicClock())
            for side, frame in frames.items()
        ]

    def _warmstart_frame(self, side: Side) -> bytes | FrameFailed:
        """FrameFailed: another device answers there, and not each frame can tell the two apart."""
        controller = self._opened.controllers[side]
        try:
            identity = controller.identify(deadline_in(ASK_TIMEOUT_S))
            if (
                isinstance(controller, Preparable)
                and identity.boot_epoch != self._opened.identities[side].boot_epoch
            ):
                # It may have booted since the bench was armed, and what was noted there is gone
                # with the boot.
                controller.prepare(identity, self._incident.incident_id, deadline_in(ASK_TIMEOUT_S))
        except WrongDeviceError as error:
            return FrameFailed(t_ns=time.monotonic_ns(), side=side, error=f"not sent: {error}")
        except (RigError, WireError) as error:
            identity = self._opened.identities[side]
            self._incident.note(
                f"{side}: its warmstart frame is for boot {identity.boot_epoch}: {error}"
            )
        is_first = side == self._opened.bench.instruct[0]
        why = SOURCE_REASONS.get(self._cause.source, control.Reason.CONSOLE_TRIGGER)
        reason = why if is_first else control.Reason.SECOND_CONTROLLER
        return controller.freeze_frame(identity, reason, self._incident.incident_id)

    def _saved(self, side: Side, frame: bytes) -> str:
        """What came of the non-disruptive save, in a word."""
        if not frame:
            return "its frame did not go out"
        try:
            timeout_s = self._opened.bench.policy.reply_timeout_s
            reply = self._opened.controllers[side].freeze_reply(frame, deadline_in(timeout_s))
        except (RigError, WireError) as error:
            return str(error)
        self._incident.replied(side, reply, time.monotonic_ns())
        status = "no answer" if reply is None else reply.status
        self._tell(
            "state saved" if reply is not None and reply.ok else "state not saved", status, side
        )
        return status

    def _trace(self, level: control.TraceLevel) -> None:
        for side, controller in self._opened.controllers.items():
            if not isinstance(controller, Tracing):
                self._incident.note(f"{side}: its driver has no trace level")
                continue
            try:
                identity = self._opened.controllers[side].identify(deadline_in(ASK_TIMEOUT_S))
                reply = controller.set_trace_level(identity, level, deadline_in(ASK_TIMEOUT_S))
                refused = "" if reply.ok else reply.status
            except (RigError, WireError) as error:
                refused = str(error)
            if refused:
                self._incident.note(f"{side}: trace level {level.name.lower()} not set: {refused}")

    # --- the second try -----------------------------------------------------------------------------------------
    def _try_again(self) -> RedriveResult:
        journal = self._journal()
        write = failing_write(journal, self._sector(), self._cause.t_arrival_ns)
        if write is None:
            return RedriveResult(
                again=None,
                reason="neither the trigger nor the host's journal names a failing write",
            )
        self._await_answer(write)
        self._await_pair()
        port = self._opened.host("primary")
        try:
            # Read anew: the host has gone on writing meanwhile.
            refusal = why_not(self._journal(), write, self._opened.bench.workload.writes)
            content = journal.content(write, write.lba, write.sectors)
            if not refusal and port.read(write.lba * SECTOR_BYTES, len(content)) != content:
                refusal = "the primary holds other data there"
            if refusal:
                return RedriveResult(
                    again=None,
                    reason=f"write {write.write_id} is not sent again: {refusal}",
                    write=write,
                )
            return self._send_again(port, write, content)
        except (RigError, WireError) as error:
            return RedriveResult(again=None, reason=str(error), write=write)
        finally:
            port.close()

    def _send_again(self, port: HostPort, write: Write, content: bytes) -> RedriveResult:
        since_ns = time.monotonic_ns()
        deadline_ns = since_ns + round(self._opened.bench.policy.redrive_timeout_s * NS_PER_S)
        self._tell(
            "write sent again",
            f"write {write.write_id}, {sector_range(write.lba, write.sectors)}",
            "primary",
        )
        trouble = ""
        try:
            port.write(write.lba * SECTOR_BYTES, content)
        except RigError as error:
            trouble = f"the primary did not take it: {error}"
        said: RedriveResult | None = None
        while True:
            said = failed_again(
                self._triggers, self._cause, write, since_ns, self._line_of, self._texts
            )
            if (said is not None and said.again) or time.monotonic_ns() >= deadline_ns:
                break
            if self._wait(WATCH_STEP_S):
                return RedriveResult(again=None, reason="the run was stopped", write=write)
        if said is not None:
            return said
        return (
            RedriveResult(again=None, reason=trouble, write=write)
            if trouble
            else self._look(write, content)
        )

    def _look(self, write: Write, content: bytes) -> RedriveResult:
        """Nobody complained: that counts only when the write went over the link, and is what the
        secondary holds."""
        if not self._is_connected():
            return RedriveResult(again=None, reason="the pair is no longer connected", write=write)
        secondary = self._opened.host("secondary")
        try:
            held = secondary.read(write.lba * SECTOR_BYTES, len(content))
        finally:
            secondary.close()
        if held != content:
            return RedriveResult(
                again=True, reason="the secondary holds other data again", write=write
            )
        waited_s = self._opened.bench.policy.redrive_timeout_s
        reason = f"sent again, write {write.write_id} was replicated, and nobody complained in {waited_s:g} s"
        return RedriveResult(again=False, reason=reason, write=write)

    def _await_answer(self, write: Write) -> None:
        """The first try must have ended, well or badly, before there is a second."""
        deadline_ns = deadline_in(self._opened.bench.policy.rejoin_timeout_s)
        while write.write_id not in self._journal().acked and time.monotonic_ns() < deadline_ns:
            if self._wait(SETTLE_S):
                raise RigError("the run was stopped")

    def _await_pair(self) -> None:
        deadline_ns = deadline_in(self._opened.bench.policy.rejoin_timeout_s)
        while True:
            self._opened.await_full_duplex(deadline_ns)
            if self._wait(SETTLE_S):
                raise RigError("the run was stopped")
            if self._is_connected():
                return
            if time.monotonic_ns() >= deadline_ns:
                raise RigError("the pair does not stay in full duplex")

    def _is_connected(self) -> bool:
        deadline_ns: Ns = deadline_in(ASK_TIMEOUT_S)
        return all(
            self._opened.identify(side, deadline_ns).pair_state == "full duplex"
            for side in self._opened.controllers
        )

    def _journal(self) -> Journal:
        path = self._incident.path / JOURNAL
        try:
            return Journal.read(path.read_bytes())
        except OSError as error:
            raise RigError(f"there is no journal of the host's writes: {error.strerror}") from error

    def _sector(self) -> int:
        """Of the failing write: the trigger's, its console line's, or that of another trigger
        since; -1: not named."""
        for one in (self._cause, *self._triggers):
            sector = (
                one.sector if one.sector >= 0 else sector_in_line(self._line_of(one), self._texts)
            )
            if sector >= 0 and one.t_arrival_ns >= self._cause.t_arrival_ns:
                return sector
        return -1

    def _line_of(self, trigger: Trigger) -> bytes:
        return line_of(self._incident.path, trigger)
