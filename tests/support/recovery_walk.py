"""A recovery that is walked from its frames to its end, with a bench that obeys."""

from collections.abc import Callable
from dataclasses import replace

from freezeframe.harness.core.recovery.machine import Recovery
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
    FrameOut,
    Policy,
    PowerCycle,
    PowerCycled,
    Pull,
    Pulled,
    RecoveryEvent,
    Rejoined,
    Replied,
    SaveLate,
    SendBreak,
    TimedOut,
)

S = 1_000_000_000
POLICY = Policy(
    reply_timeout_s=2, boot_timeout_s=10, pull_timeout_s=30, rejoin_timeout_s=20, power_cycle=True
)
NO_POWER = Policy(
    reply_timeout_s=2, boot_timeout_s=10, pull_timeout_s=30, rejoin_timeout_s=20, power_cycle=False
)
LADDER = replace(POLICY, breaks=frozenset({"primary", "secondary"}))
BREAK_ONLY = replace(NO_POWER, breaks=LADDER.breaks)


def obedient(action: Action) -> RecoveryEvent:
    """What a healthy bench answers to each action."""
    match action:
        case AwaitReply():
            return Replied(side=action.side, ok=True)
        case AwaitBoot():
            return Answered(side=action.side, boot_epoch=action.armed_epoch + 1)
        case SaveLate():
            return FrameOut(side=action.side)
        case SendBreak():
            return BreakSent(side=action.side)
        case PowerCycle():
            return PowerCycled(side=action.side)
        case Pull():
            return Pulled(side=action.side)
        case AwaitFullDuplex():
            return Rejoined()
        case Compare():
            return Compared(equal=True)
        case Finish():
            raise AssertionError("finished")


def walk(
    machine: Recovery,
    answer: Callable[[Action], RecoveryEvent] = obedient,
    *,
    both: bool = True,
    actions: list[Action] | None = None,
) -> tuple[list[str], Finish]:
    """Play a bench; one second passes with each event, or the action's time when it times out.
    ``actions``: what follows from frames that went out already."""
    now = 0
    if actions is None:
        actions = machine.on(FrameOut(side="primary"), now)
        if both:
            assert actions == []
            actions = machine.on(FrameOut(side="secondary"), now)
    names = []
    for _ in range(100):
        (action,) = actions
        names.append(f"{type(action).__name__} {getattr(action, 'side', '')[:1]}".strip())
        if isinstance(action, Finish):
            assert machine.finished and machine.next_deadline() is None
            assert machine.on(TimedOut(), now) == []
            return names, action
        event = answer(action)
        deadline = machine.next_deadline()
        assert deadline is None or deadline > now
        now = deadline if isinstance(event, TimedOut) and deadline is not None else now + S
        actions = machine.on(event, now)
    raise AssertionError("the walk does not end")


def pair(policy: Policy = POLICY) -> Recovery:
    return Recovery(policy, {"primary": 3, "secondary": 8})
