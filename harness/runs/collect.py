"""One incident's recovery under way, in a thread of its own beside the supervisor, which goes on
reading what the other processes tell. ``carry.py`` does what the recovery asks for."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from freezeframe.harness.bench.opened import NOT_COLLECTED, OpenBench
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Side, Trigger
from freezeframe.harness.core.recovery import messages as recovery
from freezeframe.harness.core.recovery.machine import Recovery
from freezeframe.harness.core.recovery.messages import Action, Compared, Finish, Transition
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import BreakingIn
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.blockreads import BlockReads
from freezeframe.harness.runs.carry import Carrier
from freezeframe.harness.runs.redrive import Redrive


def _breakable(opened: OpenBench, sides: Iterable[Side]) -> frozenset[Side]:
    """Those whose driver sends a BREAK."""
    return frozenset(one for one in sides if isinstance(opened.controllers.get(one), BreakingIn))


def _policy(
    opened: OpenBench, armed: Iterable[Side], *, is_resumed: bool, switches_power: bool
) -> recovery.Policy:
    """What the bench file allows, as far as it can be done and is right now."""
    policy = opened.bench.policy.recovery()
    power_cycle = policy.power_cycle and switches_power
    if is_resumed:
        # A killed process does not know in which boot they are, and a BREAK names no target. Minutes after the
        # trigger nobody is instructed.
        return replace(policy, power_cycle=power_cycle, breaks=frozenset())
    makers = [opened.controllers.get(side) for side in armed]
    return replace(
        policy,
        power_cycle=power_cycle,
        breaks=_breakable(opened, policy.breaks if switches_power else ()),
        repeats=min((getattr(one, "frame_repeats", 0) for one in makers), default=0),
        # A pair that acts by itself has an incident id of its own.
        saves_late=opened.bench.policy.instructed_by == "harness",
    )


class Collector:
    """One incident's recovery under way. ``feed`` gives it the frames that went out; ``finish`` is
    set at its end."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        armed: Mapping[Side, int],
        compare: Callable[[], Compared],
        changed: Callable[[], None],
        *,
        disruptive: bool = True,
        is_resumed: bool = False,
        switches_power: bool = True,
        cause: Trigger | None = None,
        triggers: Sequence[Trigger] = (),
        audit: AuditJournal | None = None,
    ) -> None:
        """``armed``: the instructed sides in their order with the boot epochs of their frames.
        ``compare`` is called once the pair is whole; ``changed`` after each step, from the
        collector's thread. In autonomic mode the sides instruct themselves: there is no frame of
        ours to be answered, and their newest sets are this incident's. Not ``disruptive``: the
        frames only saved. ``is_resumed``: the answers to the frames were lost with the process that
        wrote them, and are not waited for. Not ``switches_power``: a side that does not restart is
        lost and gets no BREAK, whatever the policy says; a dry run acts on nothing. ``cause``: what
        the frames went out for; None: the failing block is not read. ``triggers``, all that were
        reported, goes on growing. ``audit`` gets each frame that is written from here."""
        self.finish: Finish | None = None
        self.failure: Exception | None = None
        """What the bench did that no action foresaw; the recovery ended there."""
        self._opened = opened
        self._incident = incident
        self._armed = dict(armed)
        policy = _policy(opened, armed, is_resumed=is_resumed, switches_power=switches_power)
        self._recovery = Recovery(policy, armed, disruptive=disruptive)
        self._changed = changed
        self._triggers = triggers
        self._cause = cause
        self._audit = audit
        self._blocks = (
            BlockReads(opened, incident, self._named, armed) if cause is not None else None
        )
        self._redrive: Redrive | None = None
        self._told = 0
        for side in SIDES:
            if side not in opened.controllers:
                incident.missing_set(side, NOT_COLLECTED)
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._carrier = Carrier(
            opened,
            incident,
            MonotonicClock(),
            armed=armed,
            is_autonomic=opened.bench.policy.instructed_by == "secondary",
            has_no_replies=is_resumed,
            acted=self._acted,
            compare=compare,
            heard=self._on,
            pause=self._cancelled.wait,
            is_cancelled=self._cancelled.is_set,
        )

    def redrive_first(self) -> None:
        """The frames that will be reported only save: the failing write is sent again, and the
        warmstart frames are written here."""
        assert self._cause is not None
        self._carrier.keeps_saves = True
        self._redrive = Redrive(
            self._opened,
            self._incident,
            self._cause,
            self._triggers,
            self._cancelled.wait,
            self._tell_step,
        )

    def _named(self) -> Sequence[Trigger]:
        """The triggers that may name the failing block."""
        return [one for one in (self._cause, *self._triggers) if one is not None]

    def feed(self, event: recovery.FrameOut | recovery.FrameNotOut, frame: bytes = b"") -> None:
        """A frame went out or could not; the first action starts once all sides have been reported
        of."""
        self._carrier.frames[event.side] = frame
        if self._redrive is not None:
            if self._carrier.frames.keys() >= self._armed.keys():
                self._start(self._run_redrive, self._redrive)
            return
        actions = self._on(event)
        if actions:
            self._start(self._run, actions)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._thread = threading.Thread(target=target, args=args, name="collector", daemon=True)
        self._thread.start()

    @property
    def steps(self) -> list[recovery.Transition]:
        """What the recovery has come to so far; it only grows."""
        return self._recovery.history

    def wait(self) -> None:
        """Until its thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self, wait_s: float) -> None:
        """Give up: the action under way ends by its own bound, and nothing follows it."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _run_redrive(self, redrive: Redrive) -> None:
        actions: list[Action] = []
        try:
            redrive.carry_out(self._carrier.frames, self._saved)
            if self._cancelled.is_set():
                return
            for sent in redrive.warmstart(list(self._armed)):
                self._acted(sent, "redrive")
                if isinstance(sent, FrameSent):
                    self._carrier.frames[sent.side] = sent.frame
                    actions = self._on(recovery.FrameOut(side=sent.side, t_ns=sent.t_done_ns))
                else:
                    actions = self._on(recovery.FrameNotOut(side=sent.side, reason=sent.error))
        except Exception as error:  # noqa: BLE001 - as in _run
            self.failure = error
            self._changed()
            return
        self._run(actions)

    def _acted(self, sent: FrameSent | FrameFailed, what_for: str) -> None:
        """A frame was written from here, or could not be."""
        self._incident.acted(sent, "recovery")
        if self._audit is not None:
            cause = "" if self._cause is None else f"{self._cause.rule} on the {self._cause.side}: "
            came = sent.error if isinstance(sent, FrameFailed) else "ok"
            self._audit.add("frame", sent.side, f"{cause}{what_for}", came)

    def _saved(self) -> None:
        if self._blocks is not None:
            self._blocks.saved()

    def _run(self, actions: list[Action]) -> None:
        try:
            while actions and not self._cancelled.is_set():
                action = actions[-1]
                if self._blocks is not None:
                    began_ns = time.monotonic_ns()
                    self._blocks.before(action)
                    action = self._recovery.postpone(time.monotonic_ns() - began_ns)
                if isinstance(action, Finish):
                    self.finish = action
                    break
                actions = self._on(self._carrier.carry_out(action))
        except Exception as error:  # noqa: BLE001 - passed to the supervisor, which raises it in its own thread
            self.failure = error
        self._changed()

    def _tell_step(self, step: str, detail: str, side: Side | None) -> None:
        self._recovery.history.append(
            Transition(t_ns=time.monotonic_ns(), side=side or "", step=step, detail=detail)
        )
        self._tell()

    def _on(self, event: recovery.RecoveryEvent) -> list[Action]:
        actions = self._recovery.on(event, time.monotonic_ns())
        self._tell()
        return actions

    def _tell(self) -> None:
        for line in self._recovery.history[self._told :]:
            self._incident.step(line.t_ns, line.side, line.step, line.detail)
        self._told = len(self._recovery.history)
        self._changed()
