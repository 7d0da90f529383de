"""The recovery of one incident as a state table: from the control frames to the compared data.

Each instructed side goes through its own steps:

    armed -> instructed -> restarting -> pulling -> settled
      |          ^             ^  |
      v          |             |  v
    missed ------+          breaking in             at most once, when policy and driver allow it
      |          |         power cycling            after that, at most once, when the policy allows it
      v          |
    last chance -+

* No frame reached a side that was not armed, or whose line was gone. It is asked who it is while the others
  restart, and once more when all else is collected. One that answers in the boot of the trigger is
  asked to save, which restarts nobody, unless it keeps a set of the incident already. A boot since then has
  lost what a save would tell.
* A refusal settles the side at once: the controller reported that it will not restart. "stale epoch"
  is the exception: it has restarted since it was armed, perhaps because an earlier copy of the frame
  arrived. Its set, if there is one, is looked up by the incident's id.
* Silence is answered with the same frame again, ``repeats`` times, where the device type makes that
  harmless: the boot epoch in the frame refuses the copy that comes second.
* Silence settles nothing: the controller may have obeyed and its reply may be lost. The boot epoch
  decides. A newer epoch is a warmstart. The old epoch after the boot timeout is a controller that did
  not obey. No answer at all is a hung warmstart, which a BREAK may end, and else only a power cycle. A
  control line that is gone tells nothing about its controller, which is left alone until its last
  chance.
* Before a BREAK, and before its power is switched, it is asked once more: the other side may have been waited for since
  it was last asked, and what came up meanwhile is left alone.
* A BREAK names no target. It is sent only while nobody has answered since the controller was last
  identified: not after "stale epoch", not where another device answers, and not for a save.
* A save restarts nobody: the side goes from its reply, or its silence, straight to the pull. Nothing
  refuses a second save, so the frame is written again only on evidence: the controller was silent, and
  lists no set of the incident.
* An interrupted pull is resumed from the bytes that have arrived, at most MAX_PULLS times, after the
  other side's: one dead line does not delay the other's set. A side's time for its set runs only while
  that is being pulled. Received bytes
  are kept: a set is complete, partial or missing; for the last two a reason is recorded.
* When all sides are settled, the pair gets its time to return to full duplex, and then the data is
  compared. If a side is not up or the pair does not rejoin, the recovery ends without a comparison.

One action runs at a time, with its own deadline. The caller may block in it until then, and answers
with one event (``TimedOut`` if nothing happened). The state machine itself never waits. It always
ends: each step is entered a bounded number of times, and each action ends by its deadline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, assert_never

from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.recovery.messages import (
    Action,
    Answered,
    AwaitBoot,
    AwaitFullDuplex,
    AwaitReply,
    BreakSent,
    Compare,
    Compared,
    Finish,
    FrameNotOut,
    FrameOut,
    Kept,
    Policy,
    PowerCycle,
    PowerCycled,
    Pull,
    PullBroke,
    Pulled,
    RecoveryEvent,
    Rejoined,
    Replied,
    Rung,
    SaveLate,
    SendBreak,
    SideEvent,
    SideResult,
    TimedOut,
    TooLate,
    Transition,
)
from freezeframe.harness.core.recovery.table import TABLE, SideStep, Signal

SideAction = AwaitReply | SaveLate | AwaitBoot | SendBreak | PowerCycle | Pull
UNREACHED: Final = (SideStep.MISSED, SideStep.LAST_CHANCE)
STALE_EPOCH: Final = "stale epoch"
"""The refusal of a frame that was armed for an earlier boot."""
RUNGS: Final[Mapping[SideStep, Rung]] = {
    SideStep.BREAKING: "break",
    SideStep.POWER_CYCLING: "power cycle",
}
DONE: Final = (Signal.BROKEN_IN, Signal.CYCLED)
ANSWERED: Final = (Signal.UP, Signal.DID_NOT_RESTART)
SAVE_LATE_S: Final = 20.0
"""For a side that has answered to be prepared and asked to save: some kilobytes over a serial line."""
MAX_PULLS: Final = 5
"""Attempts per pull. A line that fails more often is treated as lost for this incident."""


@dataclass
class _Side:
    side: Side
    armed_epoch: int
    is_disruptive: bool
    """What was asked of it last."""
    step: SideStep = SideStep.ARMED
    out_ns: Ns = 0
    """When its frame went out, or could not."""
    missed: str = ""
    """Why no frame is known to have reached it."""
    saves_late: bool = False
    """It was asked to save after all."""
    reply: str = ""
    boot_epoch: int = 0
    up: bool = False
    """It answers identify requests. It may not have restarted yet."""
    break_tried: bool = False
    break_sent: bool = False
    is_stranger: bool = False
    """Another device answered in its place."""
    power_cycled: bool = False
    replies_awaited: int = 0
    pulls: int = 0
    pull_deadline_ns: Ns = 0
    pull_left_ns: Ns | None = None
    """What a pull that broke off has left of its time. None: all."""
    arrived_bytes: int = 0
    complete: bool = False
    reason: str = ""


class Recovery:
    """The recovery of one incident.

    ``armed``: the instructed sides in order, each with the boot epoch its frame was armed for.
    ``disruptive``: the frames warmstart; else they only save.
    """

    def __init__(
        self, policy: Policy, armed: Mapping[Side, int], *, disruptive: bool = True
    ) -> None:
        self._policy = policy
        self._sides = {side: _Side(side, epoch, disruptive) for side, epoch in armed.items()}
        self._action: Action | None = None
        self.history: list[Transition] = []
        """Grows with every event. The writer of the incident keeps its own read position."""

    @property
    def finished(self) -> bool:
        return isinstance(self._action, Finish)

    def next_deadline(self) -> Ns | None:
        """Deadline of the current action, at which the caller reports TimedOut; None: no deadline."""
        return getattr(self._action, "deadline_ns", None)

    def postpone(self, by_ns: Ns) -> Action:
        """Move the deadline of the current action by ``by_ns`` and return the action. What was done
        before it was carried out takes none of its time."""
        action = self._action
        assert action is not None
        if isinstance(action, Compare | Finish):
            return action
        if isinstance(action, Pull):
            self._sides[action.side].pull_deadline_ns += by_ns
        self._action = replace(action, deadline_ns=action.deadline_ns + by_ns)
        return self._action

    def on(self, event: RecoveryEvent, now: Ns) -> list[Action]:
        """Process one event and return the next actions: none while a side is still armed or an
        action is running.

        Events that do not belong to the current action (a late or repeated reply) are ignored.
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
        given_ns = event.t_ns if isinstance(event, FrameOut | FrameNotOut) else None
        t_ns = now if given_ns is None else given_ns
        return self._apply(state, signal, detail, now, t_ns)

    def _apply(
        self, state: _Side, signal: Signal | None, detail: str, now: Ns, t_ns: Ns
    ) -> list[Action]:
        """Move ``state`` by the table. ``t_ns`` is the time of the event."""
        after = TABLE[state.step].get(signal) if signal is not None else None
        if signal is None or after is None:
            return []
        rung: Rung = RUNGS.get(state.step, "") if signal not in ANSWERED else ""
        result = "ok" if signal in DONE else (detail or signal.value) if rung else ""
        self.history.append(
            Transition(
                t_ns=t_ns,
                side=state.side,
                step=signal.value,
                detail=detail,
                rung=rung,
                result=result,
            )
        )
        if state.step is SideStep.ARMED:
            state.out_ns = t_ns
        state.step = after
        reason = f"{signal.value}: {detail}" if detail else signal.value
        if signal in (Signal.NOT_OUT, Signal.UNREACHABLE):
            state.missed = reason
        elif after is SideStep.SETTLED and not state.complete:
            state.reason = "; ".join(filter(None, (state.missed, reason)))
        if any(one.step is SideStep.ARMED for one in self._sides.values()):
            return []
        return self._next(now)

    def _signal(self, state: _Side, event: SideEvent, now: Ns) -> tuple[Signal | None, str]:
        """Return the meaning of ``event`` for its side, with details. None: it has none."""
        if state.step in UNREACHED:
            return self._late_signal(state, event, now)
        match event:
            case FrameOut() if state.step is SideStep.ARMED:
                return Signal.OUT, ""
            case FrameNotOut() if state.step is SideStep.ARMED:
                return Signal.NOT_OUT, event.reason
            case Replied() if state.step is SideStep.INSTRUCTED:
                state.reply = event.status
                if event.ok:
                    state.up = not state.is_disruptive
                    return (Signal.ACKNOWLEDGED if state.is_disruptive else Signal.SAVED), ""
                if event.status == STALE_EPOCH and not state.saves_late:
                    return Signal.STALE, event.status
                return Signal.REFUSED, event.status
            case Answered() if state.step is SideStep.RESTARTING:
                state.up = True
                if event.boot_epoch <= state.armed_epoch:
                    return None, ""  # it may not have gone down yet
                state.boot_epoch = event.boot_epoch
                state.pull_left_ns = None
                return Signal.UP, f"boot epoch {event.boot_epoch}"
            case Answered() if state.step in RUNGS:
                state.up, state.pull_left_ns = True, None
                if event.boot_epoch <= state.armed_epoch:
                    return Signal.DID_NOT_RESTART, f"still in boot epoch {event.boot_epoch}"
                state.boot_epoch = event.boot_epoch
                return Signal.UP, f"boot epoch {event.boot_epoch}"
            case BreakSent() if state.step is SideStep.BREAKING:
                if event.error:
                    return self._without_break(state), f"no BREAK could be sent: {event.error}"
                state.break_sent = True
                return Signal.BROKEN_IN, ""
            case PowerCycled() if state.step is SideStep.POWER_CYCLING:
                state.power_cycled = not event.error
                return (Signal.NOT_CYCLED, event.error) if event.error else (Signal.CYCLED, "")
            case Pulled() if state.step is SideStep.PULLING:
                state.complete = state.up = True
                return Signal.PULLED, ""
            case PullBroke() if state.step is SideStep.PULLING:
                state.arrived_bytes = event.arrived_bytes
                state.up = state.up or not event.resumable
                is_absent = not (event.resumable or event.arrived_bytes)
                if is_absent and self._never_arrived(state):
                    return Signal.AGAIN, event.reason
                again = event.resumable and state.pulls < MAX_PULLS and now < state.pull_deadline_ns
                state.pull_left_ns = max(0, state.pull_deadline_ns - now)
                return Signal.BROKE_OFF if again else Signal.GAVE_UP, event.reason
        return None, ""

    @staticmethod
    def _late_signal(state: _Side, event: SideEvent, now: Ns) -> tuple[Signal | None, str]:
        """The same for a side that no frame has reached."""
        match event:
            case FrameOut():
                state.saves_late, state.is_disruptive, state.replies_awaited = True, False, 0
                t_ns = now if event.t_ns is None else event.t_ns
                return (
                    Signal.SAVED_LATE,
                    f"{(t_ns - state.out_ns) / NS_PER_S:.3f} s after the trigger's frames",
                )
            case FrameNotOut():
                return Signal.NO_ANSWER_YET, event.reason
            case Answered():
                state.up = True
                return None, ""
            case Kept():
                if 0 < state.armed_epoch < event.boot_epoch:
                    state.boot_epoch = event.boot_epoch
                return Signal.KEPT, f"boot epoch {event.boot_epoch}"
            case TooLate():
                return Signal.TOO_LATE, event.reason
        return None, ""

    def _never_arrived(self, state: _Side) -> bool:
        """A save was not answered and left no set: its frame may be written again."""
        is_silent = state.reply == Signal.SILENT.value
        return (
            not state.is_disruptive and is_silent and state.replies_awaited <= self._policy.repeats
        )

    def _may_break(self, state: _Side) -> bool:
        """Whether a BREAK would be the first of this incident, and reach who was identified."""
        is_known = state.is_disruptive and state.reply != STALE_EPOCH and not state.is_stranger
        return is_known and state.side in self._policy.breaks and not state.break_tried

    def _without_break(self, state: _Side) -> Signal:
        # Another device that answers in its place does not hang.
        can_cycle = self._policy.power_cycle and not state.power_cycled and not state.is_stranger
        return Signal.HUNG if can_cycle else Signal.LOST

    def _timeout_signal(self, action: SideAction, *, line_gone: bool) -> Signal:
        state = self._sides[action.side]
        match action:
            case AwaitReply():
                if state.is_disruptive and state.replies_awaited <= self._policy.repeats:
                    return Signal.AGAIN
                state.reply = Signal.SILENT.value
                # A save may have been stored and only its answer lost: the pull tells.
                return Signal.SILENT if state.is_disruptive else Signal.SAVED
            case SaveLate():
                return Signal.NO_ANSWER_YET
            case AwaitBoot():
                if state.up:
                    return Signal.DID_NOT_RESTART
                if line_gone:
                    return Signal.UNREACHABLE
                if self._may_break(state):
                    return Signal.BREAKABLE
                return self._without_break(state)
            case SendBreak():
                return Signal.UNREACHABLE if line_gone else self._without_break(state)
            case PowerCycle():
                return Signal.NOT_CYCLED
            case Pull():
                return Signal.GAVE_UP
        assert_never(action)

    def _pair_event(self, event: TimedOut | Rejoined | Compared, now: Ns) -> list[Action]:
        action = self._action
        match action, event:
            case (
                (AwaitReply() | SaveLate() | AwaitBoot() | SendBreak() | PowerCycle() | Pull()),
                TimedOut(),
            ):
                detail = event.detail or "deadline passed"
                self._sides[action.side].is_stranger |= event.is_stranger
                signal = self._timeout_signal(action, line_gone=event.line_gone)
                return self._apply(self._sides[action.side], signal, detail, now, t_ns=now)
            case AwaitFullDuplex(), Rejoined():
                return self._pair_step("full duplex", "", Compare(), now)
            case AwaitFullDuplex(), TimedOut():
                finish = self._finish(rejoined=False, data_equal=None, detail=event.detail)
                return self._pair_step("not in full duplex", event.detail, finish, now)
            case Compare(), Compared():
                finish = self._finish(rejoined=True, data_equal=event.equal, detail=event.detail)
                step = {True: "data equal", False: "data differ", None: "not compared"}[event.equal]
                return self._pair_step(step, event.detail, finish, now)
            case Compare(), TimedOut():
                finish = self._finish(rejoined=True, data_equal=None, detail=event.detail)
                return self._pair_step("not compared", event.detail, finish, now)
        return []

    def _pair_step(self, step: str, detail: str, action: Action, now: Ns) -> list[Action]:
        self.history.append(Transition(t_ns=now, side="", step=step, detail=detail))
        self._action = action
        return [action]

    def _next(self, now: Ns) -> list[Action]:
        """Return the next action: of the side with the lowest step, or of the pair when all sides
        are settled."""
        state = min(self._sides.values(), key=lambda one: (one.step, one.pulls), default=None)
        action: Action
        match state.step if state is not None else SideStep.SETTLED:
            case SideStep.INSTRUCTED:
                assert state is not None
                state.replies_awaited += 1
                action = AwaitReply(
                    side=state.side,
                    deadline_ns=now + _ns(self._policy.reply_timeout_s),
                    attempt=state.replies_awaited,
                )
            case SideStep.MISSED | SideStep.LAST_CHANCE:
                assert state is not None
                action = self._save_late(state, now)
            case SideStep.RESTARTING:
                assert state is not None
                deadline_ns = now + _ns(self._policy.boot_timeout_s)
                action = AwaitBoot(
                    side=state.side, armed_epoch=state.armed_epoch, deadline_ns=deadline_ns
                )
            case SideStep.BREAKING:
                assert state is not None
                state.break_tried = True
                action = SendBreak(
                    side=state.side, deadline_ns=now + _ns(self._policy.reply_timeout_s)
                )
            case SideStep.POWER_CYCLING:
                assert state is not None
                action = PowerCycle(
                    side=state.side, deadline_ns=now + _ns(self._policy.boot_timeout_s)
                )
            case SideStep.PULLING:
                assert state is not None
                state.pulls += 1
                left_ns = state.pull_left_ns
                state.pull_deadline_ns = now + (
                    _ns(self._policy.pull_timeout_s) if left_ns is None else left_ns
                )
                action = Pull(
                    side=state.side, attempt=state.pulls, deadline_ns=state.pull_deadline_ns
                )
            case _:
                action = self._pair_action(now)
        self._action = action
        return [action]

    def _save_late(self, state: _Side, now: Ns) -> SaveLate:
        answer_ns = _ns(self._policy.reply_timeout_s)
        return SaveLate(
            side=state.side,
            armed_epoch=state.armed_epoch,
            since_ns=state.out_ns if self._policy.saves_late else None,
            answer_ns=answer_ns,
            deadline_ns=now + answer_ns + _ns(SAVE_LATE_S),
        )

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
        break_sent=state.break_sent,
    )


def _ns(seconds: float) -> Ns:
    return round(seconds * NS_PER_S)
