"""Talks with the controllers for a station, in a thread of its own: one question at a time, so that no
answer is taken for another's. What comes of it is posted to the station as events of the policy."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from freezeframe.harness.bench.benchfile import PolicyTable
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONTROL
from freezeframe.harness.core.policy.guard import Rung
from freezeframe.harness.errors import HarnessError, LineGoneError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Identity, Preparable, Printing
from freezeframe.harness.runs.arming import PREPARE_TIMEOUT_S, REASONS
from freezeframe.harness.runs.healthy import remember_healthy
from freezeframe.harness.runs.rehearsal import rehearse
from freezeframe.harness.runs.selfcheck import Canaries
from freezeframe.harness.runs.selfmonitor import arm_secondary
from freezeframe.harness.watch.reflex_io import sequence_number
from freezeframe.harness.wire.control import Reason

ASK_S: Final = 1.0
"""One question to a controller."""


class SideFrames:
    """The frames of one side for one boot and one incident, encoded before they are armed."""

    def __init__(self, incident: Incident, unrehearsed: str) -> None:
        self.incident = incident
        self.unrehearsed = unrehearsed
        """Why they could not be tried out; "": they were."""
        self.by_reason: dict[tuple[str, bool], bytes] = {}
        """(console or link, whether it warmstarts) -> frame."""


class Dialogue:
    """``post`` takes what is to be done in the station's thread."""

    def __init__(
        self,
        opened: OpenBench,
        post: Callable[[Callable[[], None]], None],
        give: Callable[[m.Event], None],
    ) -> None:
        """``give`` takes an event of the policy, in the station's thread."""
        self.frames: dict[tuple[Side, int], SideFrames] = {}
        """(side, boot epoch) -> its frames, of the newest incident only."""
        self.canaries = Canaries()
        for side in SIDES:
            if side not in opened.controllers:
                self.canaries.impossible(side, opened.unheard(side))
        self._opened = opened
        self._post = post
        self._give = give
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dialogue", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Do this after what was put before. It must not raise."""
        self._work.put(work)

    def stop(self, wait_s: float) -> None:
        """End after the question under way."""
        self._work.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _answer(self, event: m.Event) -> None:
        self._post(lambda: self._give(event))

    # --- frames ---------------------------------------------------------------------------------------------
    def ready(self, epochs: Mapping[Side, int]) -> dict[Side, SideFrames]:
        """Of each of these sides that has frames for that boot."""
        known = self.frames
        return {side: known[side, at] for side, at in epochs.items() if (side, at) in known}

    def in_hex(self, epochs: Mapping[Side, int]) -> dict[str, str]:
        """Side -> the frame that a console's trigger sends."""
        key = ("console", not self._opened.bench.policy.redrive)
        ready = self.ready(epochs)
        return {
            side: ready[side].by_reason.get(key, b"").hex() if side in ready else ""
            for side in epochs
        }

    def forget(self, side: Side) -> None:
        """It was used by hand: its frames are made anew. In this thread."""
        self.frames = {key: one for key, one in self.frames.items() if key[0] != side}

    # --- questions ------------------------------------------------------------------------------------------
    def identify(self, action: m.Identify, incident: Incident) -> None:
        """Ask who is there. In a new boot, or for another ``incident``, its frames are encoded and
        tried out before the answer counts."""
        side, asked_ns = action.side, time.monotonic_ns()
        try:
            with self._opened.dialogue:
                seen = self._opened.controllers[side].identify(action.deadline_ns)
                self._opened.identities = {**self._opened.identities, side: seen}
                ready = self.frames.get((side, seen.boot_epoch))
                is_new = ready is None or ready.incident is not incident
                if ready is None or is_new:
                    ready = self._make_ready(side, seen, incident)
        except HarnessError as error:
            self._answer(m.NotIdentified(side=side, reason=_in_short(error, side)))
            if isinstance(error, LineGoneError):
                self._answer(m.Lost(part=CONTROL[side], reason=str(error)))
            return
        self._answer(
            m.Identified(
                side=side, serial_number=seen.serial_number, boot_epoch=seen.boot_epoch,
                pair_state=seen.pair_state, t_asked_ns=asked_ns, unrehearsed=ready.unrehearsed,
            )
        )  # fmt: skip
        if is_new:
            self.put(lambda: self._remember(side, incident))

    def _make_ready(self, side: Side, seen: Identity, incident: Incident) -> SideFrames:
        if self._opened.bench.policy.instructed_by != "harness":
            # The pair acts by itself: no frame of ours.
            known, limit_ns = self._opened.identities, deadline_in(PREPARE_TIMEOUT_S)
            arm_secondary(self._opened.controllers, known, incident.incident_id, limit_ns)
            self.frames[side, seen.boot_epoch] = SideFrames(incident, "")
            return self.frames[side, seen.boot_epoch]
        controller, deadline_ns = self._opened.controllers[side], deadline_in(PREPARE_TIMEOUT_S)
        if isinstance(controller, Preparable):
            controller.prepare(seen, incident.incident_id, deadline_ns)
        made = {}
        for source, reason in REASONS.items():
            is_first = side == self._opened.bench.instruct[0]
            why = reason if is_first else Reason.SECOND_CONTROLLER
            for disruptive in (False, True):
                made[source, disruptive] = controller.freeze_frame(
                    seen, why, incident.incident_id, disruptive=disruptive
                )
        disruptive = not self._opened.bench.policy.redrive
        tried = {side: made["console", disruptive]}
        record = {"armed": dict(incident.record.get("armed", {}))}
        for note in rehearse(self._opened.controllers, tried, deadline_ns, record):
            incident.note(note)
        incident.update(**record)
        ready = SideFrames(incident, record["armed"][side].get("why", ""))
        ready.by_reason = made
        self.frames = {key: one for key, one in self.frames.items() if one.incident is incident}
        self.frames[side, seen.boot_epoch] = ready
        return ready

    def _remember(self, side: Side, incident: Incident) -> None:
        """What a verdict needs of the healthy pair. An extra: its loss is a note."""
        try:
            with self._opened.dialogue:
                remember_healthy(self._opened, incident, (side,), ASK_S)
        except HarnessError:
            return  # it is asked who it is again, which reports it

    def canary(self, action: m.Canary, heard_by: Callable[[Side, int, str], None]) -> None:
        """Have a line printed. ``heard_by(side, deadline_ns, reason)``, in the station's thread:
        wait for it until then, else give the reason."""
        side = action.side
        controller = self._opened.controllers[side]
        reason = self._opened.unheard(side)
        if reason or not isinstance(controller, Printing):
            self.canaries.impossible(side, reason)
            self._answer(m.NotHeard(side=side, reason=reason, can_print=False))
            return
        reason = "it printed a line that did not come in: is the tap connected to its console?"
        try:
            with self._opened.dialogue:
                text = self.canaries.text(side)
                reply = controller.print_line(text, deadline_in(ASK_S))
            if not reply.ok:
                reason = f"it would not print: {reply.status}"
        except HarnessError as error:
            reason = f"it could not be asked to print: {_in_short(error, side)}"
        self._post(lambda: heard_by(side, action.deadline_ns, reason))

    def look_up(self, action: m.LookUp, incident_id: bytes) -> None:
        """Ask whether they keep a set of that incident."""
        found: dict[Side, bool | None] = {}
        for side in action.sides:
            try:
                with self._opened.dialogue:
                    entries = self._opened.controller(side).sets(deadline_in(ASK_S))
            except HarnessError:  # it did not answer, or has no control line any more
                found[side] = None
            else:
                found[side] = any(one.incident_id == incident_id for one in entries)
        self._answer(m.LookedUp(incident=action.incident, found=found))

    def save(
        self, action: m.Save, written: Callable[[list[FrameSent | FrameFailed]], None]
    ) -> None:
        """Write save frames now; ``written`` takes what came of it, in the station's thread."""
        attempts: list[FrameSent | FrameFailed] = []
        for side, epoch in action.epochs.items():
            ready = self.frames.get((side, epoch))
            t_ns, error, frame = time.monotonic_ns(), "no frame is encoded for it", b""
            if ready is not None and ("console", False) in ready.by_reason:
                frame, error = ready.by_reason["console", False], ""
                try:
                    with self._opened.dialogue:
                        self._opened.controllers[side].link.write(frame)
                except HarnessError as problem:
                    error = str(problem)
            if error:
                attempts.append(
                    FrameFailed(t_ns=t_ns, side=side, error=error, arming=action.arming)
                )
                continue
            attempts.append(
                FrameSent(
                    t_ns=t_ns, side=side, seq=sequence_number(frame), frame=frame,
                    t_done_ns=time.monotonic_ns(), arming=action.arming,
                )
            )  # fmt: skip
        self._post(lambda: written(attempts))


def _in_short(error: HarnessError, side: Side) -> str:
    """Return what a driver says of the side, which is named beside it, without how often it was asked."""
    return str(error).removeprefix(f"{side}: ").partition(" (asked")[0]


def would_write(action: m.WouldFire, ready: Mapping[Side, SideFrames], policy: PolicyTable) -> str:
    """Say what the reflex would have written for the hit of a dry run, and what would have followed a
    hung warmstart."""
    hit, arm, redrive = action.hit, action.arm, policy.redrive
    rung = Rung.SAVE if hit.rule in arm.gentle_rules else arm.rung
    frames = frames_of(ready, rung, redrive=redrive).get(hit.source, {})
    out = (
        f"frame {frames[side].hex()} to {side}"
        if side in frames
        else f"none to {side}, which is not armed"
        for side in hit.sides
    )
    word = "warmstart" if rung is Rung.WARMSTART and not redrive else "save"
    text = f"{hit.kind}: {word}: {', '.join(out)}"
    if rung is Rung.WARMSTART and "break" in policy.on_hung_warmstart:
        text += f"; to one that hangs: {policy.on_hung_warmstart.replace('break', 'BREAK')}"
    return text


def frames_of(
    ready: Mapping[Side, SideFrames], rung: Rung, *, redrive: bool
) -> dict[str, dict[Side, bytes]]:
    """Return what the reflex is armed with: reason -> side -> frame, and the same with " save"."""
    warmstarts = rung is Rung.WARMSTART and not redrive
    found: dict[str, dict[Side, bytes]] = {}
    for source in REASONS:
        found[source] = {side: one.by_reason[source, warmstarts] for side, one in ready.items()}
        found[f"{source} save"] = {
            side: one.by_reason[source, False] for side, one in ready.items()
        }
    return found
