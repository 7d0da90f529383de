"""One incident's recovery as a table: from the frames that went out to the pair that has been
compared.

Each instructed side walks its own steps:

    armed -> instructed -> restarting -> pulling -> settled
                               ^  |
                               |  v
                           power cycling            at most once, when the policy allows it

* A refusal settles the side at once: the controller told that it will not restart; nothing is waited for.
* Silence does not: the frame may have been obeyed and its answer lost. Only the boot epoch tells. A newer
  one is a warmstart; the old one, still there when the boot timeout ends, is a controller that did not
  obey; no answer at all is a hung warmstart, and power is what is left.
* A pull that breaks off is resumed behind what has arrived, MAX_PULLS times at most. What arrived stays: a
  set is complete, partial or missing, and the last two say why.
* When all sides are settled the pair gets its time to return to full duplex, and then the data is compared. A
  side that is not up, or a pair that stays apart, ends the recovery without a comparison, which would tell
  nothing.

One action is under way at a time, with its own deadline: whoever carries the actions out may block
in each until then, and answers with one event (``TimedOut`` when nothing came). The machine itself
never waits. Every walk ends: each step is entered a bounded number of times, and each action ends
by its deadline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Literal, assert_never

from freezeframe.harness.core.events import NS_PER_S, Ns, Side

MAX_PULLS: Final = 5
"""A line that breaks off more often in one pull is not coming back in this incident."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long each thing may take, and what a hung warmstart is answered with."""

    reply_timeout_s: float
    boot_timeout_s: float
    pull_timeout_s: float
    """For one side's whole set, resumed pulls included."""
    rejoin_timeout_s: float
    power_cycle: bool
    """Whether a controller that does not come back gets its power cycled, once."""


# --- what happened ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class FrameOut:
    side: Side
    t_ns: Ns | None = None
    """When its write returned; None: when that is told, for nobody knows."""


@dataclass(frozen=True, kw_only=True)
class FrameNotOut:
    side: Side
    reason: str


@dataclass(frozen=True, kw_only=True)
class Replied:
    side: Side
    ok: bool
    status: str = "ok"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """It answered to identify."""

    side: Side
    boot_epoch: int


@dataclass(frozen=True, kw_only=True)
class PowerCycled:
    side: Side
    error: str = ""
    """Why it could not be; empty when it was."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    side: Side


@dataclass(frozen=True, kw_only=True)
class PullBroke:
    side: Side
    reason: str
    arrived_bytes: int
    resumable: bool = True
    """False: the controller has no such set, or says that there will never be more."""


@dataclass(frozen=True, kw_only=True)
class Rejoined:
    """The pair is in full duplex again."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    equal: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class TimedOut:
    """The deadline of the action under way has passed."""

    detail: str = ""


SideEvent = FrameOut | FrameNotOut | Replied | Answered | PowerCycled | Pulled | PullBroke
RecoveryEvent = SideEvent | Rejoined | Compared | TimedOut


# --- what to do ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class AwaitReply:
    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class AwaitBoot:
    """Ask for its identity until it answers with a newer boot epoch than ``armed_epoch``."""

    side: Side
    armed_epoch: int
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class PowerCycle:
    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Read its set of this incident, from behind what has arrived on."""

    side: Side
    attempt: int
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class AwaitFullDuplex:
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Read host journal, primary and secondary against each other. Its length is the data's: no
    deadline."""


@dataclass(frozen=True, kw_only=True)
class SideResult:
    side: Side
    set: Literal["complete", "partial", "missing"]
    reason: str = ""
    """Why the set is not complete."""
    reply: str = ""
    """ "ok", the refusal by name, or "no answer"."""
    boot_epoch: int = 0
    """After the restart; 0 when it was not seen up again."""
    up: bool = False
    power_cycled: bool = False


@dataclass(frozen=True, kw_only=True)
class Finish:
    sides: tuple[SideResult, ...]
    rejoined: bool | None
    """None: not waited for, because a side is not up."""
    data_equal: bool | None
    """None: not compared."""
    detail: str = ""


Action = AwaitReply | AwaitBoot | PowerCycle | Pull | AwaitFullDuplex | Compare | Finish


# --- the table ----------------------------------------------------------------------------------------------
class SideStep(IntEnum):
    """Where a side stands. The lowest is seen to first: both are asked before either is waited
    for."""

    INSTRUCTED = 0
    RESTARTING = 1
    POWER_CYCLING = 2
    PULLING = 3
    ARMED = 4
    SETTLED = 5


class Signal(StrEnum):
    """What an event means for a side in its step."""

    OUT = "frame out"
    NOT_OUT = "frame not out"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    SILENT = "no answer"
    UP = "up"
    DID_NOT_RESTART = "did not restart"
    HUNG = "hung, power can be cycled"
    LOST = "hung, power cannot be cycled"
    CYCLED = "power cycled"
    NOT_CYCLED = "power not cycled"
    PULLED = "set pulled"
    BROKE_OFF = "pull broke off"
    GAVE_UP = "pull given up"


TABLE: Final[Mapping[SideStep, Mapping[Signal, SideStep]]] = {
    SideStep.ARMED: {Signal.OUT: SideStep.INSTRUCTED, Signal.NOT_OUT: SideStep.SETTLED},
    SideStep.INSTRUCTED: {
        Signal.ACKNOWLEDGED: SideStep.RESTARTING,
        Signal.SILENT: SideStep.RESTARTING,
        Signal.REFUSED: SideStep.SETTLED,
    },
    SideStep.RESTARTING: {
        Signal.UP: SideStep.PULLING,
        Signal.DID_NOT_RESTART: SideStep.SETTLED,
        Signal.HUNG: SideStep.POWER_CYCLING,
        Signal.LOST: SideStep.SETTLED,
    },
    SideStep.POWER_CYCLING: {
        Signal.CYCLED: SideStep.RESTARTING,
        Signal.NOT_CYCLED: SideStep.SETTLED,
    },
    SideStep.PULLING: {
        Signal.PULLED: SideStep.SETTLED,
        Signal.BROKE_OFF: SideStep.PULLING,
        Signal.GAVE_UP: SideStep.SETTLED,
    },
    SideStep.SETTLED: {},
}
assert set(TABLE) == set(SideStep)
assert {signal for row in TABLE.values() for signal in row} == set(Signal)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One line of the recovery's history, for the incident."""

    t_ns: Ns
    side: Side | Literal[""]
    step: str
    detail: str = ""


@dataclass
class _Side:
    side: Side
    armed_epoch: int
    step: SideStep = SideStep.ARMED
    reply: str = ""
    boot_epoch: int = 0
    up: bool = False
    """It answers, though perhaps it did not restart."""
    power_cycled: bool = False
    pulls: int = 0
    pull_deadline_ns: Ns = 0
    arrived_bytes: int = 0
    complete: bool = False
    reason: str = ""


class Recovery:
    """The recovery of one incident. ``armed``: the instructed sides in their order, with the boot
    epochs that the frames were armed for."""

    def __init__(self, policy: Policy, armed: Mapping[Side, int]) -> None:
        self._policy = policy
        self._sides = {side: _Side(side, epoch) for side, epoch in armed.items()}
        self._action: Action | None = None
        self.history: list[Transition] = []
        """Grows with every event; who writes the incident remembers how far it has read."""

    @property
    def finished(self) -> bool:
        return isinstance(self._action, Finish)

    def next_deadline(self) -> Ns | None:
        """When the action under way is to be answered with TimedOut; None: it has no deadline."""
        return getattr(self._action, "deadline_ns", None)

    def on(self, event: RecoveryEvent, now: Ns) -> list[Action]:
        """Take what happened, return what to do next: nothing while sides are armed or an action
        goes on.

        Events that do not fit the action under way (a late answer, a second one) change nothing.
        """
        if self.finished:
            return []
        if isinstance(event, TimedOut | Rejoined | Compared):
            return self._pair_event(event, now)
        state = self._sides.get(event.side)
        if state is None or (
            self._action is not None and getattr(self._action, "side", "") != event.side
        ):
            return []
        signal, detail = self._signal(state, event, now)
        t_ns = event.t_ns if isinstance(event, FrameOut) and event.t_ns is not None else now
        return self._apply(state, signal, detail, now, t_ns)

    def _apply(
        self, state: _Side, signal: Signal | None, detail: str, now: Ns, t_ns: Ns
    ) -> list[Action]:
        """``t_ns``: when it happened."""
        after = TABLE[state.step].get(signal) if signal is not None else None
        if signal is None or after is None:
            return []
        self.history.append(
            Transition(t_ns=t_ns, side=state.side, step=signal.value, detail=detail)
        )
        state.step = after
        if after is SideStep.SETTLED and not state.complete:
            state.reason = f"{signal.value}: {detail}" if detail else signal.value
        if any(one.step is SideStep.ARMED for one in self._sides.values()):
            return []
        return self._next(now)

    def _signal(self, state: _Side, event: SideEvent, now: Ns) -> tuple[Signal | None, str]:
        """What ``event`` means for its side, and its details; None: nothing."""
        match event:
            case FrameOut():
                return Signal.OUT, ""
            case FrameNotOut():
                return Signal.NOT_OUT, event.reason
            case Replied() if state.step is SideStep.INSTRUCTED:
                state.reply = event.status
                return (Signal.ACKNOWLEDGED, "") if event.ok else (Signal.REFUSED, event.status)
            case Answered() if state.step is SideStep.RESTARTING:
                state.up = True
                if event.boot_epoch <= state.armed_epoch:
                    return None, ""  # perhaps it has not gone down yet
                state.boot_epoch = event.boot_epoch
                state.pull_deadline_ns = 0
                return Signal.UP, f"boot epoch {event.boot_epoch}"
            case PowerCycled() if state.step is SideStep.POWER_CYCLING:
                state.power_cycled = not event.error
                return (Signal.NOT_CYCLED, event.error) if event.error else (Signal.CYCLED, "")
            case Pulled() if state.step is SideStep.PULLING:
                state.complete = True
                return Signal.PULLED, ""
            case PullBroke() if state.step is SideStep.PULLING:
                state.arrived_bytes = event.arrived_bytes
                again = event.resumable and state.pulls < MAX_PULLS and now < state.pull_deadline_ns
                return Signal.BROKE_OFF if again else Signal.GAVE_UP, event.reason
        return None, ""

    def _timeout_signal(self, action: AwaitReply | AwaitBoot | PowerCycle | Pull) -> Signal:
        state = self._sides[action.side]
        match action:
            case AwaitReply():
                state.reply = Signal.SILENT.value
                return Signal.SILENT
            case AwaitBoot():
                if state.up:
                    return Signal.DID_NOT_RESTART
                can_cycle = self._policy.power_cycle and not state.power_cycled
                return Signal.HUNG if can_cycle else Signal.LOST
            case PowerCycle():
                return Signal.NOT_CYCLED
            case Pull():
                return Signal.GAVE_UP
        assert_never(action)

    def _pair_event(self, event: TimedOut | Rejoined | Compared, now: Ns) -> list[Action]:
        action = self._action
        match action, event:
            case ((AwaitReply() | AwaitBoot() | PowerCycle() | Pull()), TimedOut()):
                detail = event.detail or "deadline passed"
                return self._apply(
                    self._sides[action.side], self._timeout_signal(action), detail, now, t_ns=now
                )
            case AwaitFullDuplex(), Rejoined():
                return self._pair_step("full duplex", "", Compare(), now)
            case AwaitFullDuplex(), TimedOut():
                finish = self._finish(rejoined=False, data_equal=None, detail=event.detail)
                return self._pair_step("not in full duplex", event.detail, finish, now)
            case Compare(), Compared():
                finish = self._finish(rejoined=True, data_equal=event.equal, detail=event.detail)
                return self._pair_step(
                    "data equal" if event.equal else "data differ", event.detail, finish, now
                )
            case Compare(), TimedOut():
                finish = self._finish(rejoined=True, data_equal=None, detail=event.detail)
                return self._pair_step("not compared", event.detail, finish, now)
        return []

    def _pair_step(self, step: str, detail: str, action: Action, now: Ns) -> list[Action]:
        self.history.append(Transition(t_ns=now, side="", step=step, detail=detail))
        self._action = action
        return [action]

    def _next(self, now: Ns) -> list[Action]:
        """The next action: of the side that is least far, or of the pair when all sides are
        settled."""
        state = min(self._sides.values(), key=lambda one: one.step, default=None)
        action: Action
        match state.step if state is not None else SideStep.SETTLED:
            case SideStep.INSTRUCTED:
                assert state is not None
                action = AwaitReply(
                    side=state.side, deadline_ns=now + _ns(self._policy.reply_timeout_s)
                )
            case SideStep.RESTARTING:
                assert state is not None
                deadline_ns = now + _ns(self._policy.boot_timeout_s)
                action = AwaitBoot(
                    side=state.side, armed_epoch=state.armed_epoch, deadline_ns=deadline_ns
                )
            case SideStep.POWER_CYCLING:
                assert state is not None
                action = PowerCycle(
                    side=state.side, deadline_ns=now + _ns(self._policy.boot_timeout_s)
                )
            case SideStep.PULLING:
                assert state is not None
                state.pulls += 1
                state.pull_deadline_ns = state.pull_deadline_ns or now + _ns(
                    self._policy.pull_timeout_s
                )
                action = Pull(
                    side=state.side, attempt=state.pulls, deadline_ns=state.pull_deadline_ns
                )
            case _:
                action = self._pair_action(now)
        self._action = action
        return [action]

    def _pair_action(self, now: Ns) -> Action:
        if all(
            one.up or one.reply not in ("", "ok", Signal.SILENT.value)
            for one in self._sides.values()
        ):
            return AwaitFullDuplex(deadline_ns=now + _ns(self._policy.rejoin_timeout_s))
        return self._finish(rejoined=None, data_equal=None, detail="")

    def _finish(self, *, rejoined: bool | None, data_equal: bool | None, detail: str) -> Finish:
        return Finish(
            sides=tuple(_result(one) for one in self._sides.values()),
            rejoined=rejoined,
            data_equal=data_equal,
            detail=detail,
        )


def _result(state: _Side) -> SideResult:
    return SideResult(
        side=state.side,
        set="complete" if state.complete else "partial" if state.arrived_bytes else "missing",
        reason=state.reason,
        reply=state.reply,
        boot_epoch=state.boot_epoch,
        up=state.up,
        power_cycled=state.power_cycled,
    )


def _ns(seconds: float) -> Ns:
    return round(seconds * NS_PER_S)
