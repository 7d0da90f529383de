"""A rig under watch, from armed to recovered: one incident. The supervisor's side of it, in one
thread."""

import contextlib
import time
from collections.abc import Callable
from typing import Final

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import (
    NS_PER_S,
    SIDES,
    AnyEvent,
    Disarmed,
    FrameFailed,
    FrameSent,
    LinkStats,
    Note,
    Side,
    StreamEnded,
    Trigger,
    WorkloadDone,
    WorkloadProgress,
)
from freezeframe.harness.core.recovery import messages as recovery
from freezeframe.harness.errors import HarnessError, RigError, UsageError, WireError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs import linksight
from freezeframe.harness.runs.arming import Arming
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.runs.healthy import remember_healthy
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.powerlog import PowerLog
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.rulefiles import RulesInForce
from freezeframe.harness.runs.selfcheck import (
    BOOT_RULE_PREFIX,
    CANARY_RULE,
    CANARY_TIMEOUT_S,
    Canaries,
)
from freezeframe.harness.runs.view import View
from freezeframe.harness.runs.waking import Waker
from freezeframe.harness.runs.windows import ExpectedWindow, ExpectedWindows

DISARM_TIMEOUT_S: Final = 5.0
"""For the reflex to confirm that it has no frames; it takes a millisecond."""
REARM_STEP_S: Final = 1.0
"""One try to identify both after a restart; meanwhile the watchers record."""
READY_TIMEOUT_S: Final = 30.0
"""For the pair to reach full duplex before the run."""
WORKLOAD_SILENT_S: Final = 10.0
"""The workload's process tells something each second; one that does not for so long is frozen, or
starved."""


class Session:
    """A rig under watch, from armed to recovered: one incident."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        view: View,
        compare: Callable[[], recovery.Compared],
        *,
        drill_rule: ConsoleRule | None = None,
    ) -> None:
        """``drill_rule``: it is in force beside the bench's, and the frames only save."""
        self.opened = opened
        self.incident = incident
        self.view = view
        self.recording = Recording(incident, view)
        self.triggers = self.recording.triggers
        self.lost_evidence = self.recording.lost_evidence
        self.collector: Collector | None = None
        self.workload_done: WorkloadDone | None = None
        self.progressed_ns = time.monotonic_ns()
        """When the host's data last got further."""
        self._progress = (0, 0)
        self._workload_heard_ns = 0
        """When the workload's process last reported anything; 0: not yet."""
        self._power_log = PowerLog(opened, incident)
        self._steps_told = 0
        self._blindness = linksight.BlindTally(opened.bench.link.demand)
        self.is_autonomic = opened.bench.policy.instructed_by == "secondary"
        self._compare = compare
        self._waker = Waker()
        self._canaries = Canaries()
        self._is_drill = drill_rule is not None
        self._rules = RulesInForce(opened, *([drill_rule] if drill_rule else ()))
        self._rebooted = ""
        """Who restarted since it was identified, until the bench is armed again."""
        self._down = linksight.DownTally()
        self._is_identified = self._was_armed = False
        self.observation = Observation(opened, incident, self._rules.rules)
        self.arming = Arming(opened, incident, self.observation, saves_only=drill_rule is not None)
        self._is_closing = False
        self._windows = ExpectedWindows()

    def expect(self, rule: str, within_s: float) -> ExpectedWindow:
        """Hits of that rule are wanted from now on, for so long: they are recorded, instruct nobody
        and are not among ``unexcused``. UsageError: the bench has no such rule."""
        found = self.opened.bench.rules()
        names = sorted({one.name for one in found.console} | {one.name for one in found.link})
        if rule not in names:
            raise UsageError(f"no rule {rule!r} can be expected; the bench has: {', '.join(names)}")
        now = time.monotonic_ns()
        window = self._windows.open(rule, now, int(within_s * NS_PER_S))
        self.arming.mute(self._windows.muted(now))
        return window

    @property
    def unexcused(self) -> list[Trigger]:
        """Triggers that came outside of their rule's expected windows."""
        return [one for one in self.triggers if not self._windows.is_excused(one)]

    def arm(self) -> None:
        """Identify both controllers, wait for full duplex, encode the frames, and hand them to the
        reflex."""
        self._power_log.start()
        self.view.phase("waiting for full duplex")
        self.observation.await_ready()
        while True:
            rebooted, before = self._rebooted, dict(self.opened.identities)
            self._rebooted = ""
            identities = self.opened.await_full_duplex(deadline_in(READY_TIMEOUT_S))
            # Its banner may be of the boot that was known already, and have waited in the line.
            for side, who in identities.items():
                if side == rebooted and who.boot_epoch != before[side].boot_epoch:
                    self._say(f"the {side} controller restarted before it was armed")
            self._is_identified = True
            remember_healthy(self.opened, self.incident)
            self._sing()
            self.pump(0)
            if not self._rebooted:
                break
        for note in (*self.opened.notes, *self.observation.notes):
            self.incident.note(note)
        if self.is_autonomic:
            self.arming.leave_to_secondary(identities)
        else:
            self.arming.load(identities)
            self._was_armed = True
        self.incident.milestone()

    def _sing(self) -> None:
        """Each controller that can prints a line; RigError when the reflex does not hear it."""
        self.incident.record["canaries"] = self._canaries.record
        for side in SIDES:
            controller = self.opened.controllers.get(side)
            unheard = self.opened.unheard(side)
            if unheard or not isinstance(controller, Printing):
                self._no_canary(side, unheard)
                continue
            reply = controller.print_line(self._canaries.text(side), deadline_in(CANARY_TIMEOUT_S))
            if not reply.ok:
                self._no_canary(side, f"its controller would not print: {reply.status}")
            deadline_ns = deadline_in(CANARY_TIMEOUT_S)
            while side in self._canaries.missing and time.monotonic_ns() < deadline_ns:
                self.pump(0.1)
            if side in self._canaries.missing:
                raise RigError(
                    f"the {side} controller printed a line that did not come in on its console: is the tap "
                    f"({self.opened.bench.controller(side).console}) connected to its running text log?"
                )

    def _no_canary(self, side: Side, why: str) -> None:
        """Some devices cannot: the run goes on, and says so."""
        self._canaries.impossible(side, why)
        self.incident.note(f"{side}: no canary, so that its console is heard is not proved: {why}")

    def _reload_rules(self) -> None:
        """A changed rule file is in force from the next byte on; a wrong one is reported, and changes
        nothing."""
        try:
            says = self._rules.reload(time.monotonic_ns())
        except UsageError as error:
            self.incident.note(str(error))
            return
        if says:
            self.observation.replace_rules(self._rules.rules)
            self.incident.note(says)

    @property
    def causes(self) -> list[Trigger]:
        """What was seen before anything was done; the first is the incident's."""
        return self.recording.causes

    @property
    def recovering(self) -> bool:
        return self.collector is not None and self.collector.finish is None

    def pump(self, seconds: float) -> None:
        """Take what the other processes tell, for at most so long, and act on it."""
        self._reload_rules()
        self.arming.mute(self._windows.muted(time.monotonic_ns()))
        for source, event in self._wait(seconds):
            self.take(source, event)
        if self._rebooted and self._was_armed:
            self._rearm()
        self._waker.drain()
        self._tell_steps()
        if self.collector is not None and self.collector.failure is not None:
            raise self.collector.failure
        if self._power_log.failure is not None:
            raise self._power_log.failure

    def _wait(self, seconds: float) -> list[tuple[str, AnyEvent]]:
        """Once frames are out, a watcher that dies does not end the collection: the sets are on the
        controllers. What it no longer saw is lost evidence."""
        try:
            return self.observation.wait(deadline_in(seconds), self._waker.fileno())
        except RigError as error:
            if not self.recovering:
                raise
            self.recording.lose(str(error))
            return []

    def _booted(self, banner: Trigger) -> None:
        """Frames of the boot before would be refused, and the first failure be lost."""
        is_stale = self._is_identified and self.opened.identified_ns < banner.t_arrival_ns
        if not is_stale or self.collector is not None or self.arming.ended:
            return
        self._rebooted = banner.side
        if self.arming.loaded_ns:
            self.arming.forget()
            self._say(f"the {banner.side} controller restarted: disarmed until it is identified")

    def _rearm(self) -> None:
        """Once both answer and the pair is whole. Until then it is tried with each ``pump``."""
        if self.collector is not None or self.arming.ended:
            self._rebooted = ""
            return
        try:
            identities = self.opened.await_full_duplex(deadline_in(REARM_STEP_S))
            remember_healthy(self.opened, self.incident)
            self.arming.load(identities)
        except (RigError, WireError) as error:
            self.view.phase(f"not armed yet: {error}")
            return
        epoch = identities["primary" if self._rebooted == "primary" else "secondary"].boot_epoch
        self._say(f"armed again: the {self._rebooted} controller is in boot epoch {epoch}")
        self._rebooted = ""

    def _say(self, text: str) -> None:
        self.view.phase(text)
        self.incident.note(text)
        self.incident.milestone()

    def end(self, why: str) -> None:
        """The end has begun: nobody is instructed from here on. Returns when that is sure; what was
        instructed before has been collected by then."""
        self.arming.end(why)
        deadline_ns = deadline_in(DISARM_TIMEOUT_S)
        while not self.arming.is_disarmed and time.monotonic_ns() < deadline_ns:
            self.pump(0.1)
        if not self.arming.is_disarmed:
            self.recording.lose("the reflex did not confirm that it is disarmed")
        while self.recovering:
            self.pump(0.5)

    @property
    def workload_is_frozen(self) -> bool:
        """The workload's process, which tells something each second, has been silent for too
        long."""
        heard_ns = self._workload_heard_ns
        silent_ns = time.monotonic_ns() - heard_ns
        return (
            self.workload_done is None and heard_ns > 0 and silent_ns > WORKLOAD_SILENT_S * NS_PER_S
        )

    def _tell_steps(self) -> None:
        steps = [] if self.collector is None else self.collector.steps[self._steps_told :]
        self._steps_told += len(steps)
        for one in steps:
            self.view.step(one.side, one.step, one.detail)

    def take(self, source: str, event: AnyEvent) -> None:
        if isinstance(event, Trigger) and event.rule == CANARY_RULE.name:
            self._canaries.heard(event)
            return
        if isinstance(event, Trigger) and event.rule.startswith(BOOT_RULE_PREFIX):
            self._booted(event)
            return
        if isinstance(event, Trigger) and source == "reflex" and self._is_counted_only(event):
            return
        self.view.happened(source, event)
        if source == "workload":
            self._workload_heard_ns = time.monotonic_ns()
        match event:
            case Trigger():
                self._triggered(source, event)
            case FrameSent() | FrameFailed():
                self._acted(event)
            case WorkloadProgress():
                if self._progress != (event.bytes_written, event.bytes_verified):
                    self._progress = (event.bytes_written, event.bytes_verified)
                    self.progressed_ns = event.t_ns
                self.view.progress(event.bytes_written, event.bytes_total)
            case WorkloadDone():
                self.workload_done = event
                self.incident.append_event(event, source)
            case StreamEnded():
                self.recording.lose(f"{event.stream} ended: {event.error}")
                self.incident.append_event(event, source)
            case Note():
                if event.level != "info":
                    self.incident.note(f"{event.source}: {event.text}")
                if event.level == "error":
                    self.lost_evidence.append(event.text)
                self.incident.append_event(event, source)
            case LinkStats():
                if says := self._down.reported(event):
                    self._say(says)
                is_explained = self.collector is not None or bool(self._rebooted)
                if says := self._down.counts(event, is_explained=is_explained):
                    self.recording.lose(says)
                for says in self._blindness.reported(event):
                    self.incident.note(f"blind on the link: {says}")
                    self.view.phase(f"blind on the link: {says}")
            case Disarmed():
                self.arming.confirmed()
            case _:
                self.incident.append_event(event, source)

    def _is_counted_only(self, trigger: Trigger) -> bool:
        if self.collector is None:
            is_needed = self.is_autonomic and bool(trigger.instruct)  # which begins the recovery
        else:  # a redrive listens for what is said of its second try
            is_needed = self.opened.bench.policy.redrive and "redrive" not in self.incident.record
        return self.recording.is_counted_only(trigger, is_needed=is_needed)

    def _triggered(self, source: str, trigger: Trigger) -> None:
        if source != "reflex":
            # A link trigger is reported twice, by the link's watch and by the reflex that decides: the
            # reflex's counts.
            return
        if self._windows.excuses(trigger):
            self.recording.leave_out(trigger)
            self.triggers.append(trigger)  # for the second search; the incident is not its
            self.incident.append_event(trigger, source)
            self.incident.note(f"{trigger.rule} on the {trigger.side}: in its expected window")
            return
        self.recording.keep(trigger)
        if self.arming.ended and self.collector is None and trigger.instruct:
            text = (
                f"{trigger.rule} on the {trigger.side}: nobody was instructed: {self.arming.ended}"
            )
            self.view.phase(text)
            self.incident.note(text)
            return
        if self.is_autonomic and trigger.instruct:
            # The pair acts by itself, and when is not known: all that is seen may be what it acted
            # on.
            self.recording.causes.append(trigger)
            if self.collector is None:
                collector = self._collect(trigger)
                for side in trigger.instruct:
                    collector.feed(recovery.FrameOut(side=side))

    def _acted(self, event: FrameSent | FrameFailed) -> None:
        # Not a trigger but its frames begin the recovery: one that came before the bench was armed
        # has none.
        cause = self.recording.struck_for() if self.collector is None else None
        if cause is not None:
            self.arming.struck(event)
            if self._is_closing:
                self.recording.acts_on(cause)
                self.recording.lose(
                    f"{event.side}: a frame went out at the end, its set is still there"
                )
            else:
                self._collect(cause)
        self.recording.acted(event)
        if self.collector is not None and isinstance(event, FrameSent):
            self.collector.feed(
                recovery.FrameOut(side=event.side, t_ns=event.t_done_ns), event.frame
            )
        elif self.collector is not None and isinstance(event, FrameFailed):
            missed = recovery.FrameNotOut(side=event.side, reason=event.error, t_ns=event.t_ns)
            self.collector.feed(missed)

    def _collect(self, trigger: Trigger) -> Collector:
        self.recording.acts_on(trigger)
        armed = {side: self.opened.identities[side].boot_epoch for side in trigger.instruct}
        self.collector = Collector(
            self.opened,
            self.incident,
            armed,
            self._compare,
            self._waker.wake,
            disruptive=not self._is_drill,
            cause=trigger,
            triggers=self.triggers,
        )
        with contextlib.suppress(
            RigError
        ):  # a watch that has died is reported where its events are waited for
            self.observation.freeze(trigger.t_arrival_ns)
        if self.opened.bench.policy.redrive and not self._is_drill:
            self.collector.redrive_first()
        return self.collector

    def close(self) -> None:
        """Stop the watchers and take their last words; nothing writes into the incident
        afterwards."""
        self.arming.end("the watchers are stopped")
        self._is_closing = True
        self._power_log.stop()
        if self.collector is not None:
            self.collector.cancel(wait_s=5.0)
        for source, event in self.observation.stop():
            if isinstance(event, StreamEnded):
                continue  # the watchers end one after the other, and tell it of each other
            with contextlib.suppress(HarnessError):
                self.take(source, event)
        self.recording.count_lines(self.opened)
        self.recording.close(
            self.opened, self._rules.throughout, self._rules.ever, self.observation.link
        )
        self._waker.close()
