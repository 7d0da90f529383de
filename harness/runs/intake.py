"""What the watchers of a station report: into which incident it belongs, and what the policy hears of
it."""

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

import msgspec

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import (
    NS_PER_S,
    SIDES,
    AnyEvent,
    Disarmed,
    Event,
    FrameFailed,
    FrameSent,
    LinkStats,
    Note,
    Ns,
    PowerSample,
    ProcessReady,
    Recorded,
    Side,
    StreamEnded,
    Trigger,
)
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONSOLE, CONTROL, SIDE_OF
from freezeframe.harness.core.policy.messages import BenchPart, Trouble
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.capture_ring import join
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.incidents.store import Outcome
from freezeframe.harness.runs import linksight
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.dialogue import Dialogue
from freezeframe.harness.runs.liveness import Liveness
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.powerlog import PowerLog
from freezeframe.harness.runs.recording import MAX_CONSOLE_BYTES, ClosedRecording, Recording
from freezeframe.harness.runs.rulefiles import RulesInForce
from freezeframe.harness.runs.selfcheck import (
    BOOT_RULE_PREFIX,
    CANARY_RULE,
    is_own_rule,
)
from freezeframe.harness.runs.view import View

WATCHERS: Final = {"reflex": BenchPart.REFLEX, "linkwatch": BenchPart.LINK}
CUT_LIMIT_NS: Final = 60 * NS_PER_S
"""For a watcher to answer ``Record``, with its old file on the disk. Only the judgement waits for it."""
POWER_STEADY_NS: Final = 10 * NS_PER_S
"""A supply whose values stay is noted at most so often; each change is."""
POWER_CHANGE: Final = 0.05
"""Of volts or amperes: smaller changes are none."""
DROPS_OVER_NS: Final = 60 * NS_PER_S
"""After so long without a lost frame the capture is well again."""


class Decider(Protocol):
    """The station, as its intake sees it."""

    opened: OpenBench
    audit: AuditJournal
    dialogue: Dialogue

    def step(self, event: m.Event) -> None: ...
    def post(self, work: Any) -> None: ...
    def struck(self, cause: Trigger, attempts: list[FrameSent | FrameFailed]) -> None: ...
    def instructs(self, trigger: Trigger) -> None: ...
    def lost(self, part: BenchPart, reason: str) -> None: ...
    def confirmed(self) -> None: ...
    def heard(self, side: Side) -> None: ...


class Intake:
    """``first``: what is recorded into from the start."""

    def __init__(self, station: Decider, view: View, first: Recording) -> None:
        self._station, self._view = station, view
        self._opened = station.opened
        self._recordings = dict.fromkeys(WATCHERS, first)
        """Watcher -> the recording that its reports belong to."""
        self._next: Recording | None = None
        self._followed_by = first
        """What the watchers that have not answered ``Record`` yet will record into."""
        self._last: Recording | None = None
        """An incident that nothing follows."""
        self._cuts: list[ClosedRecording] = []
        self._late: Counter[str] = Counter()
        """Watcher -> answers to ``Record`` that nobody waits for any more."""
        self._rotations = 0
        """Requests to set console records aside that the reflex has not answered."""
        self._fresh = set(BenchPart)
        """Parts that are as they were opened with the bench."""
        self._observation: Observation | None = None
        self._attempts: list[FrameSent | FrameFailed] = []
        self._cause: Trigger | None = None
        """The trigger for which frames are being reported."""
        self.link: LinkStats | None = None
        self._link_before: LinkStats | None = None
        """The capture's counters when the present recording began."""
        self._link_reason = ""
        self._blindness = linksight.BlindTally(self._opened.bench.link.demand)
        self._unseen: set[str] = set()
        self._drops_ns: Ns = 0
        self.rules = RulesInForce(self._opened)
        self._power = PowerLog(self._opened, self)
        self._liveness = Liveness(first.incident.path.parent, station.step)
        self.samples: dict[Side, PowerSample] = {}
        self.hits: Counter[str] = Counter()
        """Rule -> all its hits so far."""

    @property
    def current(self) -> Recording:
        """What the reflex records into."""
        return self._recordings["reflex"]

    @property
    def target(self) -> Recording:
        """Whose incident the next frames are armed for."""
        return self._next or self._followed_by

    @property
    def _watchers(self) -> Observation:
        assert self._observation is not None
        return self._observation

    def start(self) -> None:
        """Start the watchers. RigError: one does not start."""
        self._observation = Observation(
            self._opened, self.current.incident, self.rules.rules, is_standing=True
        )
        self._watchers.await_ready()
        for note in self._watchers.notes:
            self.current.incident.note(note)
        self._power.start()

    # --- commands -------------------------------------------------------------------------------------------
    def arm(
        self,
        frames: Mapping[str, Mapping[Side, bytes]],
        arm: m.ArmBench,
        gentle: Collection[str],
    ) -> None:
        with contextlib.suppress(RigError):  # its death is being reported
            self._watchers.arm(
                frames, arming=arm.arming, seen=arm.seen, gentle=gentle, muted=arm.muted
            )

    def disarm(self) -> int:
        """Returns how many confirmations will come."""
        try:
            self._watchers.disarm()
        except RigError:  # a reflex that has died has no frames
            return 0
        return 1

    def freeze(self, t_ns: Ns) -> None:
        """The trigger of that time is an incident's: keep the capture's window around it."""
        with contextlib.suppress(RigError):
            self._watchers.freeze(t_ns)

    def prepare_next(self, recording: Recording) -> None:
        """What follows the incident under way is recorded there."""
        self._next = recording

    @property
    def is_next_ready(self) -> bool:
        return self._next is not None

    def cut(self, recording: Recording, *, is_resumed: bool = False) -> None:
        """The incident is collected: what comes from now on belongs to the next one. Without a next
        one it is recorded into until the watch ends. ``is_resumed``: what was reported of it was
        lost with its station."""
        if recording is self.current and self._next is None:
            self._last = recording
            return
        if self._next is None or recording is not self.current:
            if all(one.recording is not recording for one in self._cuts):
                self._cuts.append(self._closed(recording, "fail"))
                if is_resumed:
                    self._cuts[-1].throughout = self._cuts[-1].ever = ()
            return
        cut = self._closed(recording, "fail")
        cut.awaited = {name for name in WATCHERS if self._watchers.is_running(name)}
        self._cuts.append(cut)
        fresh, self._next = self._next, None
        self._watchers.record_into(fresh.incident)
        for name in WATCHERS:
            if name not in cut.awaited:
                self._recordings[name] = fresh
        self._followed_by = fresh
        self.rules.begin()

    def _closed(self, recording: Recording, outcome: Outcome) -> ClosedRecording:
        if recording is self._followed_by:  # of an earlier station's nothing was counted
            recording.count_lines(self._opened)
            recording.end_canaries(self._station.dialogue.canaries.record)
        rules = self.rules
        return ClosedRecording(recording, outcome, rules.throughout, rules.ever)

    def ready(self, limit_ns: Ns) -> list[ClosedRecording]:
        """Return the incidents that were cut before that time and that nobody writes into."""
        now = time.monotonic_ns()
        done = [
            one
            for one in self._cuts
            if one.cut_ns <= limit_ns and (not one.awaited or now - one.cut_ns > CUT_LIMIT_NS)
        ]
        self._cuts = [one for one in self._cuts if one not in done]
        for one in done:
            for source in one.awaited:
                self._late[source] += 1
                self._recordings[source] = self._followed_by
        return done

    def close(self, outcome: Outcome) -> list[ClosedRecording]:
        """Stop the watchers, take their last words, and return all recordings that are left."""
        self._power.stop()
        if self._observation is not None:
            for source, event in self._observation.stop():
                if not isinstance(event, StreamEnded):  # they end one after the other
                    with contextlib.suppress(HarnessError):
                        self._record_only(source, event)
        for one in (self.current, self._followed_by, self._next):
            if one is not None and all(one is not cut.recording for cut in self._cuts):
                self._cuts.append(self._closed(one, "fail" if one is self._last else outcome))
                if one is self._recordings["linkwatch"]:
                    self._cuts[-1].link = self._link_since()
        return self._cuts

    # --- lines and processes --------------------------------------------------------------------------------
    def is_as_opened(self, part: BenchPart) -> bool:
        """Whether there is nothing to be opened: it is there since the bench was opened, or it is
        the other use of a shared line."""
        return part in self._fresh or (self._is_shared(part) and part is not CONSOLE[SIDE_OF[part]])

    def _is_shared(self, part: BenchPart) -> bool:
        return self._opened.is_shared(SIDE_OF[part])

    def use(self, part: BenchPart) -> None:
        """The line was opened again: the reflex goes on with it. RigError: it cannot."""
        if self.is_as_opened(part):
            self._fresh.discard(part)
            return
        side = SIDE_OF[part]
        is_console = part is CONSOLE[side]
        self._watchers.use_line(
            side, console=is_console, control=not is_console or self._is_shared(part)
        )

    def start_again(self, part: BenchPart) -> None:
        """Start a watcher that has ended; ``Back`` is posted once it watches."""
        if part in self._fresh:
            self._fresh.discard(part)
            self._station.post(lambda: self._station.step(m.Back(part=part)))
            return
        try:
            if part is BenchPart.REFLEX:
                self._watchers.start_reflex()
            else:
                self._set_capture_aside()
                self._watchers.start_linkwatch()
        except (RigError, OSError) as error:
            text = str(error)
            self._station.post(lambda: self._station.lost(part, text))

    def _set_capture_aside(self) -> None:
        """What the link's watch that has ended has captured is kept beside."""
        recording, counted = self._recordings["linkwatch"], self._link_since()
        self.link, self._link_before = None, None
        path = recording.incident.link_path
        with contextlib.suppress(RigError):
            join(path)
        number = len(list(path.parent.glob("link.before-gap-*.pcapng"))) + 1
        with contextlib.suppress(FileNotFoundError):
            kept = path.rename(path.with_name(f"link.before-gap-{number}.pcapng"))
            if recording.incident.record["actions"] and recording.capture_of_trigger is None:
                recording.capture_of_trigger = (kept, counted)

    # --- what is reported -----------------------------------------------------------------------------------
    def take_what_comes(self, limit_ns: Ns, wake_fd: int) -> None:
        for source, event in self._watchers.wait(limit_ns, wake_fd):
            self._take(source, event)

    def _take(self, source: str, event: AnyEvent) -> None:
        station = self._station
        match event:
            case Trigger() if source == "reflex":
                self._hit(event)
            case FrameSent() | FrameFailed():
                self._attempted(event)
            case Recorded():
                self._answered(source)
            case Disarmed():
                station.confirmed()
            case ProcessReady():
                station.step(m.Back(part=WATCHERS[source]))
            case StreamEnded():
                self._ended(source, event)
            case Note(level="error"):
                self._recordings[source].lose(event.text)
                station.step(m.Troubled(trouble=Trouble.RECORD, detail=event.text))
            case LinkStats():
                self._counted(event)
            case _:
                self._record_only(source, event)

    def _record_only(self, source: str, event: AnyEvent) -> None:
        recording = self._recordings.get(source, self.current)
        match event:
            case LinkStats():
                self.link = event
            case Trigger() if source == "reflex" and not is_own_rule(event.rule):
                recording.keep(event)
            case Recorded():
                self._answered(source)
            case Trigger() | Disarmed() | ProcessReady():
                pass
            case _:
                recording.incident.append_event(event, source)

    def _hit(self, trigger: Trigger) -> None:
        if trigger.rule == CANARY_RULE.name:
            if (outcome := self._station.dialogue.canaries.heard(trigger)) is not None:
                self._followed_by.canary(trigger.side, outcome)
            self._station.heard(trigger.side)
            return
        if trigger.rule.startswith(BOOT_RULE_PREFIX):
            self._station.step(
                m.Rebooted(
                    side=trigger.side,
                    evidence="it restarted: a boot banner came in",
                    t_read_ns=trigger.t_arrival_ns,
                )
            )
            return
        recording = self.current
        self.hits[trigger.rule] += 1
        if recording.is_counted_only(trigger, is_needed=bool(trigger.struck)):
            return
        recording.keep(trigger)  # what is said is on the disk
        self._view.happened("reflex", trigger)
        if not trigger.struck:
            self._station.instructs(trigger)

    def _attempted(self, event: FrameSent | FrameFailed) -> None:
        """The reflex reports the frames of one hit directly after the hits of its read."""
        self._attempts.append(event)
        if self._cause is None:
            self._cause = self.current.struck_for()
        if self._cause is not None and len(self._attempts) >= len(self._cause.instruct):
            self._strike()

    def _strike(self) -> None:
        cause, attempts = self._cause, self._attempts
        self._cause, self._attempts = None, []
        if cause is not None and attempts:
            self._station.struck(cause, attempts)

    def _answered(self, source: str) -> None:
        if source == "reflex" and self._rotations:
            self._rotations -= 1  # answers come in order; this one is of an earlier request
            return
        if self._late[source]:
            self._late[source] -= 1
            self._link_before = self.link if source == "linkwatch" else self._link_before
            return
        for cut in self._cuts:
            if source in cut.awaited:
                cut.awaited.discard(source)
                if source == "linkwatch":
                    cut.link = self._link_since()
                    self._link_before = self.link
                self._recordings[source] = self._followed_by
                return

    def _answers_no_more(self, source: str) -> None:
        """What follows it is recorded where the others go on."""
        self._late[source] = 0
        if source == "reflex":
            self._rotations = 0
        for cut in self._cuts:
            cut.awaited.discard(source)
        self._recordings[source] = self._followed_by

    def _link_since(self) -> LinkStats | None:
        """The capture's counters of the present recording alone."""
        now, before = self.link, self._link_before
        if now is None or before is None:
            return now
        counted = {
            name: getattr(now, name) - getattr(before, name)
            for name in now.__struct_fields__
            if isinstance(getattr(now, name), int) and name not in ("t_ns", "frames_stored")
        }
        counted["first_packet_no"] = now.first_packet_no - before.packets
        return msgspec.structs.replace(now, **counted)

    def _ended(self, source: str, event: StreamEnded) -> None:
        self._recordings.get(source, self.current).incident.append_event(event, source)
        if event.stream.endswith(" process"):
            self._strike()  # what it had reported of one
            self._answers_no_more(source)
            reason = self._link_reason or event.error
            self._link_reason = ""
            self._station.lost(WATCHERS[source], reason)
        elif event.stream == "link":
            self._link_reason = event.error
        else:
            for side, part in CONSOLE.items():
                if event.stream == f"{side} console":
                    self._fresh.discard(part)
                    self._station.lost(part, event.error)

    def _counted(self, stats: LinkStats) -> None:
        now, before, self.link = stats.t_ns, self.link, stats
        self._view.happened("linkwatch", stats)
        for says in self._blindness.reported(stats):
            self._unseen.add(says)
            detail = "; ".join(sorted(self._unseen))
            self._station.step(m.Troubled(trouble=Trouble.UNSEEN, detail=detail))
        if self._unseen and not stats.blind:
            self._unseen.clear()
            self._station.step(m.Eased(trouble=Trouble.UNSEEN))
        if stats.kernel_drops > (before.kernel_drops if before is not None else 0):
            self._drops_ns = now
            detail = linksight.lost_frames(stats)
            self._station.step(m.Troubled(trouble=Trouble.DROPS, detail=detail))
        elif self._drops_ns and now - self._drops_ns > DROPS_OVER_NS:
            self._drops_ns = 0
            self._station.step(m.Eased(trouble=Trouble.DROPS))

    def was_heard(self, side: Side) -> bool:
        """Whether the last canary that was asked for has come in."""
        return bool(self._station.dialogue.canaries.record.get(side, {}).get("seen"))

    def unheard(self, side: Side, reason: str) -> None:
        """The last canary that was asked for has not come in in time."""
        self._followed_by.canary(side, {"seen": False, "reason": escape(reason)})
        self._station.step(m.NotHeard(side=side, reason=reason))

    def append_event(self, event: Event, source: str) -> None:
        """A sample of the supply, from its own thread."""
        if isinstance(event, PowerSample):
            last = self.samples.get(event.side)
            is_same = last is not None and not (_differs(last, event) or self._next is not None)
            if last is not None and is_same and event.t_ns - last.t_ns < POWER_STEADY_NS:
                return
            self.samples[event.side] = event
        with contextlib.suppress(HarnessError):  # it was closed meanwhile
            self.current.incident.append_event(event, source)

    # --- now and then ---------------------------------------------------------------------------------------
    def look(self, now_ns: Ns, there: Collection[BenchPart]) -> None:
        """Look at what nobody reports. ``there``: parts that the policy believes to be there."""
        self._reload_rules(now_ns)
        if not self._cuts and self._next is None and self.current.rotate(MAX_CONSOLE_BYTES):
            self._watchers.record_into(self.current.incident, consoles_only=True)
            self._rotations += 1
        self._liveness.look(
            now_ns,
            time.time_ns(),
            control_fds={
                side: one.link.fileno()
                for side, one in self._opened.controllers.items()
                if CONTROL[side] in there and not self._opened.is_shared(side)
            },
            consoles={side: self.current.incident.console_path(side) for side in SIDES},
            link=self.link,
        )
        if self._power.failure is not None:
            text = str(self._power.failure)
            self._station.step(m.Troubled(trouble=Trouble.SUPPLY, detail=text))
            self._power.stop()
            self._power = PowerLog(self._opened, self)

    def _reload_rules(self, now_ns: Ns) -> None:
        try:
            text = self.rules.reload(now_ns)
        except UsageError as error:
            text = str(error)
        else:
            if not text:
                return
            with contextlib.suppress(RigError):
                self._watchers.replace_rules(self.rules.rules)
        self._station.audit.add("rules", "bench", "a rule file changed", text)
        self.current.incident.note(text)
        self._view.phase(text)


def _differs(one: PowerSample, other: PowerSample) -> bool:
    pairs = ((one.volts, other.volts), (one.amperes, other.amperes))
    return any(abs(a - b) > POWER_CHANGE * max(abs(a), abs(b), 0.1) for a, b in pairs)
