"""The station of a watch: one owner of the lines, from the first byte to the last.

It drives the policy (``core/policy``) with what the watchers report, and carries out what the policy
asks for. The watchers record without interruption; an incident is cut from their record by telling
them, between two reads, to go on in the folder of the next one:

    console, link --> watchers --> incident 1 | incident 2 | incident 3 (waits for its trigger)
                                              ^ both sides are collected: ``Record``

Three threads: this one, which never waits for a device; ``dialogue``, which asks the controllers and
collects; ``opening``, which opens lines again. The caller's judges what ``closed`` gives.

What cannot be recorded ends no watch: it is ``Trouble.RECORD`` and lost evidence, the pair is instructed,
and what can be had of it is collected. An incident stays open until what follows it has a folder.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import (
    NS_PER_S,
    FrameFailed,
    FrameSent,
    Ns,
    Side,
    Trigger,
)
from freezeframe.harness.core.policy import Health, HealthStatus, Machine, Rung
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONTROL
from freezeframe.harness.core.policy.messages import Trouble
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.reopening import reopen
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.byhand import Hands
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.runs.dialogue import Dialogue, frames_of, would_write
from freezeframe.harness.runs.intake import Intake
from freezeframe.harness.runs.opening import LineOpening
from freezeframe.harness.runs.policyfile import ArmedIncidents, WatchStart, settings_of
from freezeframe.harness.runs.recording import ClosedRecording, Recording, new_recording, not_made
from freezeframe.harness.runs.strike import (
    Strike,
    epochs_of,
    gap_in_words,
    not_compared,
    restarted_in,
    seen_before,
    seen_before_kill,
    tell_steps,
    what_is_missing,
)
from freezeframe.harness.runs.view import View
from freezeframe.harness.runs.waking import Later, Waker

TICK_S: Final = 0.5
"""At the latest so often the rule files and the end are looked at."""
DISARM_TIMEOUT_S: Final = 5.0
"""For the reflex to confirm that it has no frames; it takes a millisecond."""
ARM_FIRST_S: Final = 2.0
"""A finished incident is judged once the bench is armed again (that needs the processor), at the latest now."""
STOP_S: Final = 10.0


class Station(threading.Thread):
    """One watch. ``stop`` ends it in order; ``closed`` then gives None after the last incident."""

    def __init__(
        self, opened: OpenBench, *, out_dir: Path, view: View, dry_run: bool = False,
        start: WatchStart = WatchStart.UNATTENDED,
    ) -> None:  # fmt: skip
        super().__init__(name="station", daemon=True)
        self.opened = opened
        self.closed: queue.SimpleQueue[ClosedRecording | None] = queue.SimpleQueue()
        self.failure: Exception | None = None
        """Why the station ended by itself."""
        self._out_dir, self._view, self._start = out_dir, view, start
        self._settings = settings_of(opened.bench, dry_run=dry_run)
        self.audit = AuditJournal(opened.bench.name, "watch", opened.bench.path)
        self._armed_incidents = ArmedIncidents(opened.bench)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waker = Waker()
        self._is_autonomic = opened.bench.policy.instructed_by == "secondary"
        self.dialogue = Dialogue(opened, self.post, self.step)
        self._opening = LineOpening(opened, self._opened_again)
        self._health = HealthStatus(Health.DISARMED, "not started")
        self._has_begun = False
        self._is_news = True
        """Whether the next arming is reported as the beginning of a watch."""
        self._arm: m.ArmBench | None = None  # the newest; it may be disarmed by now
        self._rungs: dict[bytes, Rung] = {}
        """Armed frame -> what it does."""
        self._strikes: dict[str, Strike] = {}
        """The policy's name of an incident -> what went out for it."""
        self._collector: Collector | None = None
        self._steps_told = 0
        self._restarted: dict[Side, int] = {}
        """The boot epoch in which the last incident's recovery left a side."""
        self._later = Later()
        """A part of the open incident for which no folder could be made."""
        self._ending = ""
        self._has_ended = False
        self.unconfirmed = 0
        """``Disarm`` that the reflex has not confirmed yet."""
        self._listening: dict[Side, tuple[Ns, str]] = {}
        """Canaries on their way: until when, and what is said if it does not come."""
        self.hands = Hands(self)
        self.intake = Intake(self, view, self._new_recording())

    # --- from other threads ---------------------------------------------------------------------------------
    def post(self, work: Callable[[], None]) -> None:
        """Have this done in the station's thread."""
        self._posted.put(work)
        self._waker.wake()

    def stop(self, why: str) -> None:
        """Begin the end: nobody is instructed from here on; what was instructed is collected."""
        self._ending = self._ending or why
        self._waker.wake()

    def expect(self, rule: str, within_s: float) -> None:
        """Hits of that rule are wanted for that time: nobody is instructed for them."""
        until_ns = deadline_in(within_s)
        self.post(lambda: self.step(m.Expected(rule=rule, until_ns=until_ns)))

    # --- the loop -------------------------------------------------------------------------------------------
    def run(self) -> None:
        self._opening.start()
        try:
            self.intake.start()
            self._begin()
            while not self._is_over():
                self._turn()
        except Exception as error:  # noqa: BLE001 - passed to the caller, who raises it in its own thread
            self.failure = error
        finally:
            self._opening.stop()
            try:
                self._close()
            finally:
                self.closed.put(None)

    def _begin(self) -> None:
        saved, now = self._armed_incidents.read(), time.monotonic_ns()
        was_killed = saved is not None and saved.was_killed
        old = saved.begun_anew if saved is not None and was_killed else None
        self.machine = Machine(self._settings, now, old)
        if saved is not None and not was_killed:
            self.machine.persons.recall(saved)
        for part in list(self.machine.presence.parts):
            self.step(m.Back(part=part))
        closes_breaker = self._start.closes_breaker(was_killed=was_killed)
        self.step(m.BenchArmed(who=self.audit.who, closes_breaker=closes_breaker))
        self._has_begun = True
        self._say_health(self.machine.status)

    def _turn(self) -> None:
        """Wait for what comes next, and deal with it."""
        now = time.monotonic_ns()
        dues = [self.machine.next_deadline_ns(), *(one[0] for one in self._listening.values())]
        limit_ns = min([one for one in dues if one is not None], default=now + NS_PER_S)
        limit_ns = max(now, min(limit_ns, deadline_in(TICK_S)))
        self.intake.take_what_comes(limit_ns, self._waker.fileno())
        self._waker.drain()
        while not self._posted.empty():
            self._posted.get_nowait()()
        self.hands.turn()
        self._later.turn(time.monotonic_ns(), at_once=bool(self._ending))
        now = time.monotonic_ns()
        for side, (until_ns, reason) in list(self._listening.items()):
            if now >= until_ns:
                del self._listening[side]
                self.intake.unheard(side, reason)
        due_ns = self.machine.next_deadline_ns()
        if due_ns is not None and due_ns <= now:
            self.step(m.Tick())
        self._tell_steps()
        parts = self.machine.presence.parts.items()
        self.intake.look(now, [part for part, facts in parts if facts.up])
        is_armed = self._health.health.has_frames
        for one in self.intake.ready(now if is_armed else now - int(ARM_FIRST_S * NS_PER_S)):
            self.closed.put(one)
        if self._ending and not self._has_ended:
            self._has_ended = True
            self._end_ns = deadline_in(DISARM_TIMEOUT_S)
            self.step(m.Ended(why=self._ending))

    def _is_over(self) -> bool:
        if not self._has_ended or self.machine.open_incident:
            return False
        return self.unconfirmed <= 0 or time.monotonic_ns() > self._end_ns

    def _close(self) -> None:
        if self._collector is not None:
            self._collector.cancel(wait_s=5.0)
        self.dialogue.stop(STOP_S)
        for one in self.intake.close("rig-trouble" if self.failure else "interrupted"):
            self.closed.put(one)
        if self._has_ended:
            with contextlib.suppress(RigError):
                self._armed_incidents.write(self.machine.persons.last_words(self._ending))
        self.audit.add("end", "watch", self._ending or str(self.failure))
        self._waker.close()

    # --- the policy -----------------------------------------------------------------------------------------
    def step(self, event: m.Event) -> None:
        """One event into the policy; do at once what is done at once."""
        actions = self.machine.step(time.monotonic_ns(), event)
        fresh = next((one for one in actions if isinstance(one, m.ArmBench | m.Save)), None)
        for action in actions:
            self._do(action, fresh)

    def _do(self, action: m.Action, fresh: m.ArmBench | m.Save | None) -> None:
        incident = self.intake.target.incident
        match action:
            case m.ArmBench():
                self._load(action)
            case m.DisarmBench():
                self.unconfirmed += self.intake.disarm()
                self.audit.add("disarm", "bench", action.why)
            case m.Persist():
                self._persist(action.saved, fresh)
            case m.Reopen():
                self._reopen(action.part)
            case m.Identify():
                self.dialogue.put(lambda: self.dialogue.identify(action, incident))
            case m.Canary():
                self.dialogue.put(lambda: self.dialogue.canary(action, self._listen))
            case m.LookUp():
                wanted = self._armed_incidents.id_of(action.incident)
                self.dialogue.put(lambda: self.dialogue.look_up(action, wanted))
            case m.Save():
                cause = seen_before(action)
                self.dialogue.put(
                    lambda: self.dialogue.save(
                        action, lambda sent: self.struck(cause, sent, saves_only=True)
                    )
                )
            case m.Collect():
                self._collect(action)
            case m.Join():
                self._say(f"{action.hit.rule} on the {action.hit.side} joins the open incident")
            case m.WouldFire():
                ready = self.dialogue.ready(action.arm.epochs)
                text = would_write(action, ready, self.opened.bench.policy)
                self.audit.add("would have fired", action.hit.rule, text)
                self._say(f"would have fired: {text}")
            case m.MarkGap():
                self._mark_gap(action)
            case m.Announcement():
                about = self._armed_incidents.folder_of(action.about)
                self.audit.add(action.kind, about, action.text)
                self._say(f"{about}: {action.text}")
            case m.HealthIs():
                self._say_health(action.status)

    def _persist(self, saved: m.Saved, arm: m.ArmBench | m.Save | None) -> None:
        """Before ``arm`` is armed, or saves, which follows."""
        if arm is not None:
            frames = self.dialogue.in_hex(arm.epochs if isinstance(arm, m.ArmBench) else {})
            self._armed_incidents.arm(arm.incident, self.intake.target.incident, frames)
        try:
            self._armed_incidents.write(saved, self._strikes)
        except RigError as error:
            self._say(str(error))

    def _load(self, arm: m.ArmBench) -> None:
        self._arm = arm
        if not self._is_autonomic:
            self._hand_over(arm)
        what = "warmstart" if arm.rung is Rung.WARMSTART else "save"
        epochs = ", ".join(f"{side} in boot epoch {epoch}" for side, epoch in arm.epochs.items())
        self.audit.add("arm", epochs, what)

    def _hand_over(self, arm: m.ArmBench) -> None:
        """The reflex gets the frames, which were encoded when their side was identified."""
        ready = self.dialogue.ready(arm.epochs)
        frames = frames_of(ready, arm.rung, redrive=self.opened.bench.policy.redrive)
        for reason in sorted(frames, key=len, reverse=True):
            rung = Rung.SAVE if reason.endswith("save") else arm.rung
            self._rungs |= dict.fromkeys(frames[reason].values(), rung)
        self.intake.arm(frames, arm, arm.gentle_rules)

    def _say_health(self, status: HealthStatus) -> None:
        if not self._has_begun:
            return
        self._health = status
        self.audit.add("health", "bench", str(status))
        self._view.health(status)
        if status.why:
            with contextlib.suppress(HarnessError):
                self.intake.target.incident.note(f"the bench is {status}")
        if (status.health.has_frames or self.machine.withheld) and self._is_news:
            self._is_news = False
            host = self.opened.bench.primary.host
            port = f"the host's port is {host}; " if host is not None else ""
            self._view.phase(f"watching; {port}stop with Ctrl-C")

    def _say(self, text: str) -> None:
        self._view.phase(text)
        with contextlib.suppress(HarnessError):
            self.intake.target.incident.note(text)

    def _mark_gap(self, gap: m.MarkGap) -> None:
        text, is_control = gap_in_words(gap, read_wall_clock()), gap.part in CONTROL.values()
        self.audit.add("gap", gap.part.value, text)
        if is_control or gap.from_ns is None:  # a kill before the first byte is no hole
            self._say(text)
        else:
            self.intake.current.lose(text)

    def _listen(self, side: Side, until_ns: Ns, reason: str) -> None:
        self._listening[side] = (until_ns, reason)
        if self.intake.was_heard(side):
            self.heard(side)

    def heard(self, side: Side) -> None:
        """A canary came in; the answer to the request for it may still be on its way."""
        if self._listening.pop(side, None) is not None and self.intake.was_heard(side):
            self.step(m.Heard(side=side))

    # --- strikes and incidents ------------------------------------------------------------------------------
    def struck(
        self,
        cause: Trigger,
        attempts: list[FrameSent | FrameFailed],
        *,
        saves_only: bool = False,
    ) -> None:
        """All frames of one trigger are out, or could not go out."""
        recording = self.intake.current
        arming = attempts[0].arming if attempts else (self._arm.arming if self._arm else 0)
        recording.acts_on(cause, self.machine.troubles)
        for one in attempts:
            slow = recording.acted(one)
            came = one.error if isinstance(one, FrameFailed) else slow or "ok"
            self.audit.add("strike", one.side, f"{cause.rule} on the {cause.side}", came)
        sent = {one.side: one.frame for one in attempts if isinstance(one, FrameSent)}
        out = tuple(sent) if attempts else tuple(cause.instruct)
        rungs = [self._rungs.get(frame, Rung.SAVE) for frame in sent.values() if not saves_only]
        self._strikes[self.machine.incident_of(arming)] = Strike(recording, cause, attempts)
        self.step(
            m.Struck(
                arming=arming, rule=cause.rule, side=cause.side, t_ns=cause.t_match_ns, out=out,
                rung=max(rungs, default=Rung.WARMSTART if self._is_autonomic else Rung.SAVE),
                failed={one.side: one.error for one in attempts if isinstance(one, FrameFailed)},
            )
        )  # fmt: skip

    def instructs(self, trigger: Trigger) -> None:
        """A rule that instructs somebody hit, and no frame went out for it."""
        is_open = self.machine.open_incident or self._has_ended
        if self._is_autonomic and self._arm is not None and trigger.instruct and not is_open:
            # The pair acts by itself, armed or not; when is not known.
            self.intake.current.causes.append(trigger)
            self.struck(trigger, [])
        else:
            seen = m.TriggerSeen(
                rule=trigger.rule, side=trigger.side, instructs=bool(trigger.instruct),
                t_ns=trigger.t_match_ns, sides=tuple(trigger.instruct), source=trigger.source,
            )  # fmt: skip
            self.step(seen)

    def _collect(self, action: m.Collect) -> None:
        if (strike := self._strikes.get(action.incident) or self._resumed(action)) is None:
            return
        disruptive = action.rung is Rung.WARMSTART
        oldest = epochs_of(action, self._restarted if self._is_autonomic else {})
        epochs = {one: at for one, at in oldest.items() if one in self.opened.controllers}
        collector = self._collector = Collector(
            self.opened, strike.recording.incident, epochs, not_compared, self._waker.wake,
            disruptive=disruptive, is_resumed=strike.resumed, audit=self.audit, switches_power=not self._settings.dry_run,
            cause=None if strike.resumed else strike.cause, triggers=strike.recording.triggers,
        )  # fmt: skip
        self._steps_told = 0
        if strike.recording is self.intake.current:
            self.intake.freeze(strike.cause.t_arrival_ns)
            self._prepare_next(strike.recording)
        if self.opened.bench.policy.redrive and disruptive and not strike.resumed:
            collector.redrive_first()

        def work() -> None:
            try:
                strike.feed(collector, list(epochs), action.failed)
                collector.wait()
            except HarnessError as error:  # a full disk, say: the incident ends, not the watch
                collector.failure = collector.failure or error
            finally:
                self.post(lambda: self._collected(action, strike, collector))

        self.dialogue.put(work)

    def _prepare_next(self, recording: Recording) -> bool:
        """Whether there is a folder for what follows that incident."""
        if recording is not self.intake.current or self.intake.is_next_ready:
            return True
        try:
            self.intake.prepare_next(self._new_recording())
        except HarnessError as error:
            self._cannot_record(not_made(self._out_dir, error))
            return False
        return True

    def _cannot_record(self, text: str) -> None:
        """From any thread."""
        self.post(lambda: self.step(m.Troubled(trouble=Trouble.RECORD, detail=text)))

    def _collected(self, action: m.Collect, strike: Strike, collector: Collector) -> None:
        recording, wrong = strike.recording, what_is_missing(collector.finish)
        if not (self._prepare_next(recording) or self._ending):
            self._later.put(time.monotonic_ns(), lambda: self._collected(action, strike, collector))
            return
        self._tell_steps()
        self._collector = None
        self._restarted |= restarted_in(collector.finish)
        if collector.failure is not None:
            recording.lose(f"the recovery broke off: {collector.failure}")
        self._strikes.pop(action.incident, None)
        self._is_news = True
        if recording is self.intake.current and self.intake.is_next_ready:
            self.step(m.Eased(trouble=Trouble.RECORD))
        self.intake.cut(recording, is_resumed=strike.resumed)
        self.step(m.Collected(incident=action.incident, well=not wrong, detail="; ".join(wrong)))

    def _resumed(self, action: m.Collect) -> Strike | None:
        """An incident of a station that was killed; its folder may be gone. None: another one cannot
        be made now."""
        known = self._armed_incidents.get(action.incident)
        try:
            if known is None:
                raise RigError("its id is not known")
            recording = Recording(reopen(Path(known.folder)), self._view, self._cannot_record)
        except HarnessError as error:
            self._say(f"an incident of the watch that was killed: {error}")
            try:
                recording = self._new_recording(self._armed_incidents.id_of(action.incident))
            except HarnessError as problem:
                self._not_resumed(action, not_made(self._out_dir, problem))
                return None
        self._strikes[action.incident] = strike = Strike(
            recording, seen_before_kill(action), [], resumed=True
        )
        return strike

    def _not_resumed(self, action: m.Collect, why: str) -> None:
        self._cannot_record(why)
        if self._ending:
            over = m.Collected(incident=action.incident, well=False, detail=why)
            self.post(lambda: self.step(over))
        else:
            self._later.put(time.monotonic_ns(), lambda: self._collect(action))

    def _tell_steps(self) -> None:
        steps = [] if self._collector is None else self._collector.steps[self._steps_told :]
        self._steps_told += len(steps)
        tell_steps(steps, self._view, self.audit)

    def _new_recording(self, incident_id: bytes = b"") -> Recording:
        lost = self._cannot_record
        return new_recording(self.opened, self._out_dir, self._view, incident_id, on_loss=lost)

    # --- lines ----------------------------------------------------------------------------------------------
    def lost(self, part: m.BenchPart, reason: str) -> None:
        if part is m.BenchPart.REFLEX:
            self.unconfirmed = 0  # a dead one has no frames, and confirms nothing
        self.step(m.Lost(part=part, reason=reason))

    def confirmed(self) -> None:
        """The reflex has read a ``Disarm``."""
        self.unconfirmed -= 1

    def _reopen(self, part: m.BenchPart) -> None:
        if part in (m.BenchPart.REFLEX, m.BenchPart.LINK):
            self.intake.start_again(part)
        elif self.intake.is_as_opened(part):
            self.post(lambda: self._use(part, ""))
        else:
            self._opening.put(part)

    def _opened_again(self, part: m.BenchPart, error: str) -> None:
        """In the thread ``opening``."""
        self.post(lambda: self._use(part, error))

    def _use(self, part: m.BenchPart, error: str) -> None:
        try:
            if not error:
                self.intake.use(part)
        except RigError as problem:
            error = str(problem)
        self.step(m.Lost(part=part, reason=error) if error else m.Back(part=part))
