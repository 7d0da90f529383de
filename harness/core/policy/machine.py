"""The policy of one bench under watch: what is armed, and what is said about it. No I/O; time is an
argument.

The machine keeps facts: which parts are there, who was identified in which boot, what the storm
guard allows, which incident is under way. After each event it derives what follows from the facts
and returns only the differences. So nothing can be forgotten on the way from one state to another:
there is no way, only the facts.

Armed are the sides that were identified in their present boot, on a control line that is there, by
the serial number of the bench file, while

* a person wants it, the end has not begun, and the breaker is closed;
* no person has a controller in hand, or a line that carries its frames;
* no incident is being collected: its recovery owns the control lines;
* something can be seen: the reflex runs, and one console or the link's capture is there;
* there is room on disk for two sets;
* the pair was in full duplex when it was armed. It stays armed when it leaves full duplex: that may
  be the failure's beginning.

What becomes of a trigger:

    | the bench is           | then                                                                 |
    |------------------------|----------------------------------------------------------------------|
    | armed                  | the reflex writes the frames: Struck -> Collect                      |
    | collecting             | joins the incident, or becomes the next one (``during_recovery``)    |
    | in an expected window  | reported as expected                                                 |
    | in a dry run           | reported with the frames that would have gone out: WouldFire         |
    | otherwise              | reported with the reason why nobody was instructed                   |

* An arming is good for one action. ``Disarm`` and ``Arm`` may cross a ``Struck`` on their way: the
  frames are out then, so the incident is collected, whatever the policy has decided since. The
  reflex drops an ``Arm`` that was sent without knowing of its newest strike: two strikes that cross
  would be two warmstarts at once.
* A trigger that became the next incident, and one whose frames could not go out, is answered as soon
  as the bench could be armed again, with ``Save``. A warmstart so long after its trigger would
  tell nothing that a save does not.
* The end disarms first. What is seen afterwards is reported, never acted on.
* After a kill the frames may have gone out unseen. What is stored on the devices under the armed
  incident id tells: ``LookUp`` comes before anything else, and a set that is found is collected.
"""

from dataclasses import dataclass, replace
from typing import Final, assert_never

from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.guard import UNTIL_A_PERSON, Guard, Rung
from freezeframe.harness.core.policy.health import Health, HealthInputs, HealthStatus, status
from freezeframe.harness.core.policy.persons import Persons
from freezeframe.harness.core.policy.presence import Due, Presence
from freezeframe.harness.core.policy.settings import Settings, ns
from freezeframe.harness.core.policy.tally import Tally

MAX_WAITING: Final = 16
"""Triggers that wait to become incidents. More of them say nothing new."""
MAX_ARMINGS: Final = 16
"""Past armings that a late ``Struck`` may belong to."""
MAX_LOOK_UPS: Final = 10
"""Questions for the set of an incident that may have begun before a kill."""
RESUME_WAIT_NS: Final = 10 * NS_PER_S
"""For the control lines after a kill, before an open incident is collected without them."""


@dataclass(frozen=True)
class Withheld:
    """What the reflex would have in a dry run, since that time; None: nothing."""

    since_ns: Ns
    arm: m.ArmBench | None


class Machine:
    """``saved``: what the policy of a process that was killed had persisted."""

    def __init__(self, settings: Settings, now: Ns, saved: m.Saved | None = None) -> None:
        old = saved or m.Saved()
        self._out: list[m.Action] = []
        self.settings = settings
        self.guard = Guard(settings.limits, old.guard_log, old.broken)
        lost = None if saved is None else dict(old.down)
        self.presence = Presence(settings, now, self._out, lost)
        self.status = HealthStatus(Health.DISARMED, "not started")
        self._troubles: dict[m.Trouble, str] = {}
        self._expected: list[m.Expected] = []
        self._tally = Tally()
        self.persons = Persons(old, self.guard, self._out)
        self._ended = old.ended
        self._arming = old.arming
        self._loaded: m.ArmBench | None = None
        self._before: m.ArmBench | None = None
        """The frames before those: the reflex may have written them when they were replaced."""
        self._withheld: list[Withheld] = []
        """The newest last."""
        self._armings: dict[int, m.ArmBench] = {}
        self._seen = 0
        """The newest arming that has struck."""
        self._open: m.OpenIncident | None = None
        self._next: list[m.OpenIncident] = []
        """Incidents whose frames are out, to be collected after the open one."""
        self._waiting = list(old.waiting)
        self._saving: int | None = None
        """The arming of the ``Save`` that is out."""
        self._resume = list(old.open)
        """Incidents that a killed process was collecting."""
        self._resume_ns = now + RESUME_WAIT_NS
        self._unsure = list(old.armed)
        """Frames that a killed process may have written."""
        self._looking = False
        self._look_ups = 0
        self._look_ns = now
        self._guard_ns: Ns | None = None
        """When what the storm guard allows next changes by itself, as of the last step. It stays due until
        a step has taken it, however late that is."""
        self._saved = old
        self._is_resumed = saved is not None

    # --- the edge -------------------------------------------------------------------------------------------
    def step(self, now: Ns, event: m.Event) -> list[m.Action]:
        """Take what happened; return what to do, in order: ``Disarm`` first, then ``Persist``."""
        if self._is_resumed:
            self._is_resumed = False
            text = "the process before was killed: nothing was recorded since"
            self._report("resumed", "bench", text)
        self._take(event, now)
        self._expected = [one for one in self._expected if one.until_ns > now]
        for about, text, count in self._tally.due(now, all_of_it=isinstance(event, m.Ended)):
            self._report("not acted", about, f"{count} more: {text}")
        first = self._rearm(now)
        for due_ns, ask in self._dues():
            if due_ns <= now:
                ask(now)
        self._say_health(now)
        self._guard_ns = self.guard.next_change_ns(now)
        actions = [*first, *self._persist(), *self._out]
        self._out.clear()
        return actions

    def next_deadline_ns(self) -> Ns | None:
        """When to step although nothing has happened; None: never. Time that passes does not change it:
        what is due stays due until the next step."""
        dues = [due_ns for due_ns, _ in self._dues()]
        dues += [one.until_ns for one in self._expected]
        dues += [one for one in (self._guard_ns, self._tally.next_ns()) if one is not None]
        return min(dues, default=None)

    @property
    def loaded(self) -> m.ArmBench | None:
        """The frames that the reflex has, or will have when ``Arm`` reaches it."""
        return self._loaded

    @property
    def withheld(self) -> m.ArmBench | None:
        """In a dry run: the frames that the reflex would have now."""
        return self._withheld[-1].arm if self._withheld else None

    @property
    def open_incident(self) -> str:
        """The incident that is being collected; "" when there is none."""
        return self._open.incident if self._open is not None else ""

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with the bench beside what is lost."""
        return tuple(": ".join(filter(None, one)) for one in self._troubles.items())

    def incident_of(self, arming: int) -> str:
        """The incident that the frames of that arming are for; "": it is not known."""
        arm = self._armings.get(arming)
        return arm.incident if arm is not None else ""

    # --- what happened --------------------------------------------------------------------------------------
    def _take(self, event: m.Event, now: Ns) -> None:
        match event:
            case (
                m.Lost() | m.Back() | m.Identified() | m.NotIdentified() | m.Rebooted() | m.PairBroke() | m.Heard()
                | m.NotHeard()
            ):  # fmt: skip
                self.presence.take(event, now, self._instructed)
            case m.TriggerSeen():
                self._take_hit(event, now)
            case m.Struck():
                self._take_struck(event, now)
            case m.Collected():
                self._take_collected(event, now)
            case m.LookedUp():
                self._take_looked_up(event, now)
            case m.Troubled():
                if self._troubles.get(event.trouble) != event.detail:
                    self._report("trouble", event.trouble.value, event.detail)
                self._troubles[event.trouble] = event.detail
            case m.Eased():
                if self._troubles.pop(event.trouble, None) is not None:
                    self._report("eased", event.trouble.value, "over")
            case m.BenchArmed() | m.BenchDisarmed() | m.Held() | m.Released():
                if self.persons.take(event):
                    self._forget_all("a person had it in hand", now)
            case m.Expected():
                self._expected.append(event)
            case m.Ended():
                self._take_ended(event, now)
            case m.Tick():
                pass
            case _:
                assert_never(event)

    @property
    def _instructed(self) -> tuple[Side, ...]:
        """Whose restart belongs to the incident that is being collected."""
        one = self._open
        return one.out if one is not None and one.rung is Rung.WARMSTART else ()

    def _take_hit(self, hit: m.TriggerSeen, now: Ns) -> None:
        if any(one.rule == hit.rule and hit.t_ns <= one.until_ns for one in self._expected):
            self._report("expected", hit.rule, f"on the {hit.side}, in its expected window")
        elif not hit.instructs:
            return
        elif self._ended:
            self._not_acted(hit, f"the end has begun: {self._ended}", now)
        elif (arm := self._withheld_at(hit.t_ns)) is not None:
            self._would_fire(hit, arm, now)
        elif self._open is None:
            self._not_acted(hit, self._unarmed_reason(now), now)
        elif self.settings.during_recovery == "join" or self.settings.dry_run:
            self._out.append(m.Join(incident=self._open.incident, hit=hit))
            if self._tally.is_new(hit.rule, f"{hit.kind}, in incident {self._open.incident}", now):
                self._report("incident", self._open.incident, f"joined by {hit.kind}")
        else:
            self._wait(hit, now)

    def _would_fire(self, hit: m.TriggerSeen, arm: m.ArmBench, now: Ns) -> None:
        if self._tally.is_new(hit.kind, "would have fired", now):
            self._out.append(m.WouldFire(hit=hit, arm=arm))

    def _withheld_at(self, t_ns: Ns) -> m.ArmBench | None:
        """What the reflex would have had then: a hit is heard of after what followed it."""
        return next((one.arm for one in reversed(self._withheld) if one.since_ns <= t_ns), None)

    def _unarmed_reason(self, now: Ns) -> str:
        if self._loaded is not None:
            return "it came before its frames had reached the reflex, or its rule is not armed"
        return str(self._judge(now))

    def _not_acted(self, hit: m.TriggerSeen, why: str, now: Ns) -> None:
        text = f"nobody was instructed: {why}"
        if self._tally.is_new(hit.kind, text, now):
            self._report("not acted", hit.kind, text)

    def _wait(self, hit: m.TriggerSeen, now: Ns) -> None:
        """It becomes an incident of its own as soon as the bench could be armed."""
        if len(self._waiting) >= MAX_WAITING:
            self._not_acted(hit, f"{MAX_WAITING} triggers wait already", now)
            return
        self._waiting.append(hit)
        self._report("incident", hit.kind, "becomes the next incident")

    def _take_struck(self, event: m.Struck, now: Ns) -> None:
        arm = self._armings.get(event.arming)
        if arm is None:
            self._report("crossed", event.rule, f"arming {event.arming} is not known")
            return
        self._seen = max(self._seen, event.arming)
        is_save = self._saving == event.arming
        if is_save:
            self._saving = None
        elif self._loaded is None or self._loaded.arming != event.arming:
            self._report("crossed", event.rule, f"the frames of arming {event.arming} were out")
        else:
            self._loaded = None
        if self._before is not None and self._before.arming <= event.arming:
            self._before = None
        hit = m.TriggerSeen(rule=event.rule, side=event.side, instructs=True, t_ns=event.t_ns)
        failed = self.presence.unreached(arm, event.failed, now, is_save=is_save)
        if not event.out:
            if is_save or self._ended:
                self._not_acted(hit, "the frames could not go out", now)
            else:
                self._wait(hit, now)
            return
        if event.rung is Rung.WARMSTART:
            for side in event.out:
                self.presence.sides[side].forget("it was instructed to restart", now)
        self._guard_acted(now, hit.kind, event.rung)
        incident = m.OpenIncident(
            incident=arm.incident, cause=hit.kind, epochs=arm.epochs, out=event.out,
            failed=failed, rung=event.rung,
        )  # fmt: skip
        if self._open is None:
            self._begin(incident)
        else:
            self._next.append(incident)

    def _guard_acted(self, now: Ns, kind: str, rung: Rung) -> None:
        was_broken = self.guard.broken
        self.guard.acted(now, kind, rung)
        if self.guard.broken and not was_broken:
            text = f"{self.guard.broken}: disarmed {UNTIL_A_PERSON}"
            self._report("guard", "storm guard", text)

    def _begin(self, incident: m.OpenIncident, *, resumed: bool = False) -> None:
        self._open = incident
        word = "save" if incident.rung is Rung.SAVE else "warmstart"
        text = f"{word} of {' and '.join(incident.out)} for {incident.cause}"
        self._report("resumed" if resumed else "incident", incident.incident, text)
        self._out.append(
            m.Collect(
                incident=incident.incident, cause=incident.cause, epochs=incident.epochs,
                out=incident.out, failed=incident.failed, rung=incident.rung, resumed=resumed,
            )
        )  # fmt: skip

    def _take_collected(self, event: m.Collected, now: Ns) -> None:
        if self._open is None or self._open.incident != event.incident:
            return
        word = "collected" if event.well else f"not collected whole: {event.detail}"
        self._report("incident", event.incident, word)
        self._forget_all("an incident has just been collected", now)
        self._open = None
        if self._next:
            self._begin(self._next.pop(0))

    def _forget_all(self, why: str, now: Ns) -> None:
        for facts in self.presence.sides.values():
            facts.forget(why, now)

    def _take_looked_up(self, event: m.LookedUp, now: Ns) -> None:
        self._looking = False
        if not self._unsure or event.incident != self._unsure[0].incident:
            return
        arm = self._unsure[0]
        self._look_ups += 1
        unknown = tuple(side for side in arm.epochs if event.found.get(side) is None)
        if not any(event.found.values()) and unknown and self._look_ups < MAX_LOOK_UPS:
            self._look_ns = now + ns(self.settings.look_max_s)
            return
        self._unsure.pop(0)
        self._look_ups = 0
        if not any(event.found.values()):
            text = "no set of it: its frames had not gone out, or did not arrive"
            if unknown:
                text = f"{' and '.join(unknown)} did not answer: not known whether they went out"
            self._report("resumed", arm.incident, text)
            return
        # Whoever has no set may still be on its way: a frame for one was a frame for all.
        self._guard_acted(now, f"incident {arm.incident}", arm.rung)
        incident = m.OpenIncident(
            incident=arm.incident, cause="a trigger before the kill", epochs=arm.epochs,
            out=tuple(arm.epochs), failed={}, rung=arm.rung,
        )  # fmt: skip
        self._begin(incident, resumed=True)

    def _take_ended(self, event: m.Ended, now: Ns) -> None:
        if self._ended:
            return
        self._ended = event.why
        self._report("end", "bench", event.why)
        for hit in self._waiting:
            self._not_acted(hit, f"the end has begun: {event.why}", now)
        self._waiting.clear()

    # --- what follows from the facts ------------------------------------------------------------------------
    def _judge(self, now: Ns) -> HealthStatus:
        return status(self._inputs(now))

    def _inputs(self, now: Ns) -> HealthInputs:
        decided = f"the end has begun: {self._ended}" if self._ended else ""
        allowed, presence = self.guard.allowed(now), self.presence
        decided = decided or self.persons.decided
        if not decided and allowed.rung is Rung.NOTHING:
            waits = "" if allowed.until_ns else f" {UNTIL_A_PERSON}"
            decided = f"{allowed.why}; recording{waits}"
        return HealthInputs(
            decided=decided, unseen=presence.unseen, busy=self.under_way or self.persons.in_hand, unready=self._unready(),
            missing=(*presence.missing, *self.troubles, allowed.why), unheard=presence.unheard,
            withheld="dry run" if self.settings.dry_run else "",
        )  # fmt: skip

    @property
    def under_way(self) -> str:
        """What has begun and uses the control lines; "": nothing."""
        if self._open is not None:
            return "an incident is being collected"
        if self._resume:
            return "an incident of the watch before is to be collected further"
        if self._unsure:
            return "whether an incident began before the kill is not known"
        return "a save is being written" if self._saving is not None else ""

    def _unready(self) -> tuple[str, ...]:
        if m.Trouble.DISK_FULL in self._troubles:
            return (m.Trouble.DISK_FULL.value,)
        if not self.presence.armable:
            return tuple(
                f"{side}: {self.presence.sides[side].why}" for side in self.settings.instruct
            )
        if self._loaded is not None or self.withheld is not None:
            return ()
        if self.presence.pending:  # one of two armed alone would be half an incident
            what = "a trigger" if self._waiting else "arming"
            return (f"{what} waits for the answer of {' and '.join(self.presence.pending)}",)
        return self.presence.apart

    def _rearm(self, now: Ns) -> list[m.Action]:
        """Bring what the reflex has to what it should have; what it returns stands first."""
        if self.settings.dry_run:
            would = status(replace(self._inputs(now), withheld="")).health.has_frames
            desired = self._desired(now, None) if would else None
            if desired != self.withheld:
                self._withheld = [*self._withheld[1 - MAX_ARMINGS :], Withheld(now, desired)]
            return []
        judged, before = self._judge(now), self._loaded
        if not judged.health.has_frames or self._waiting:
            self._loaded, self._before = None, before or self._before
            if judged.health.has_frames:
                self._save()
            waited = "a trigger that waited is answered first"
            why = waited if judged.health.has_frames else judged.why
            return [m.DisarmBench(why=why)] if before is not None else []
        desired = self._desired(now, before)
        if desired != before:
            self._loaded, self._before = self._remember(desired), before or self._before
            self._out.insert(0, self._loaded)
        return []

    def _desired(self, now: Ns, before: m.ArmBench | None) -> m.ArmBench:
        return m.ArmBench(
            arming=before.arming if before else 0,
            incident=before.incident if before else "",
            epochs=self.presence.armable,
            rung=self.guard.allowed(now).rung,
            gentle=self.guard.known_kinds(now),
            muted=frozenset(one.rule for one in self._expected),
            seen=self._seen,
        )

    def _save(self) -> None:
        hit = self._waiting.pop(0)
        arm = self._remember(
            m.ArmBench(arming=0, incident="", epochs=self.presence.armable, rung=Rung.SAVE)
        )
        self._saving = arm.arming
        self._out.append(
            m.Save(arming=arm.arming, incident=arm.incident, cause=hit, epochs=arm.epochs)
        )

    def _remember(self, arm: m.ArmBench) -> m.ArmBench:
        """Number it. Each arming has an incident id of its own: two that cross are two incidents."""
        self._arming += 1
        numbered = replace(arm, arming=self._arming, incident=f"{self._arming:06d}")
        self._armings[self._arming] = numbered
        while len(self._armings) > MAX_ARMINGS:
            del self._armings[min(self._armings)]
        return numbered

    def _dues(self) -> list[Due]:
        """All that is to be asked for, and when. After the end the record goes on, and what has
        begun is collected; nobody is asked anything else."""
        dues = self.presence.openings()
        if self.persons.in_hand:
            return dues
        if self._resume and self._open is None:
            is_there = self.presence.can_ask(self._resume[0].out)
            dues.append((0 if is_there else self._resume_ns, self._resume_next))
        elif self._unsure and self._open is None and not self._looking:
            dues.append((self._look_ns, self._look_up))
        return dues if self.under_way or self._ended else [*dues, *self.presence.questions()]

    def _resume_next(self, _now: Ns) -> None:
        self._begin(self._resume.pop(0), resumed=True)

    def _look_up(self, _now: Ns) -> None:
        arm, self._looking = self._unsure[0], True
        self._out.append(m.LookUp(incident=arm.incident, sides=tuple(arm.epochs)))

    def _say_health(self, now: Ns) -> None:
        fresh = self._judge(now)
        assert fresh.health.has_frames is (self._loaded is not None)
        if fresh != self.status:
            self.status = fresh
            self._out.append(m.HealthIs(status=fresh))

    def _persist(self) -> list[m.Action]:
        opened = [self._open] if self._open is not None else []
        saving = self._armings.get(self._saving or 0)
        armed = [one for one in (self._loaded, self._before, saving) if one is not None]
        fresh = m.Saved(
            wanted=self.persons.is_wanted, why_not=self.persons.why_not, ended=self._ended, guard_log=self.guard.log,
            broken=self.guard.broken, arming=self._arming,
            armed=(*self._unsure, *armed), open=(*opened, *self._next, *self._resume),
            down=self.presence.lost,
            waiting=tuple(self._waiting),
        )  # fmt: skip
        if fresh == self._saved:
            return []
        self._saved = fresh
        return [m.Persist(saved=fresh)]

    def _report(self, kind: m.ReportKind, about: str, text: str) -> None:
        self._out.append(m.Announcement(kind=kind, about=about, text=text))
