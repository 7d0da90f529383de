"""The recovery of an incident in which no frame reached one side."""

from dataclasses import replace

import pytest
from recovery_walk import LADDER, POLICY, S, obedient, pair, walk

from freezeframe.harness.core.recovery.machine import Recovery
from freezeframe.harness.core.recovery.messages import (
    Action,
    Answered,
    AwaitBoot,
    AwaitReply,
    BreakSent,
    FrameNotOut,
    FrameOut,
    Kept,
    PowerCycle,
    RecoveryEvent,
    Replied,
    SaveLate,
    SendBreak,
    TimedOut,
    TooLate,
)


def unreached(machine: Recovery) -> list[Action]:
    """No frame reached the primary."""
    assert machine.on(FrameNotOut(side="primary", reason="line gone"), 0) == []
    return machine.on(FrameOut(side="secondary"), 0)


def test_a_frame_that_did_not_go_out() -> None:
    (action,) = unreached(pair())
    assert action == AwaitReply(side="secondary", deadline_ns=2 * S)


def test_a_side_that_no_frame_reached_saves_as_soon_as_it_answers() -> None:
    machine = Recovery(replace(POLICY, saves_late=True), {"primary": 0, "secondary": 8})
    names, finish = walk(machine, obedient, actions=unreached(machine))
    assert names == [
        "AwaitReply s", "SaveLate p", "AwaitReply p", "AwaitBoot s", "Pull p", "Pull s", "AwaitFullDuplex",
        "Compare", "Finish",
    ]  # fmt: skip
    assert [(one.set, one.boot_epoch) for one in finish.sides] == [("complete", 0), ("complete", 9)]
    late = [(one.step, one.detail) for one in machine.history if one.side == "primary"]
    assert ("asked to save now", "2.000 s after the trigger's frames") in late


def test_it_gets_a_last_chance_when_all_else_is_collected() -> None:
    machine, asked = Recovery(POLICY, {"primary": 3, "secondary": 8}), 0

    def later(action: Action) -> RecoveryEvent:
        nonlocal asked
        if isinstance(action, SaveLate):
            assert action.since_ns is None and action.armed_epoch == 3
            asked += 1
            return TimedOut() if asked == 1 else Kept(side="primary", boot_epoch=3)
        return obedient(action)

    names, finish = walk(machine, later, actions=unreached(machine))
    assert names == [
        "AwaitReply s", "SaveLate p", "AwaitBoot s", "Pull s", "SaveLate p", "Pull p", "AwaitFullDuplex",
        "Compare", "Finish",
    ]  # fmt: skip
    assert finish.sides[0].set == "complete" and finish.sides[0].boot_epoch == 0


@pytest.mark.parametrize(
    ("event", "asked", "reason"),
    [
        (TimedOut(detail="no answer"), 2, "cannot be asked to save: no answer"),
        (FrameNotOut(side="primary", reason="EIO"), 2, "cannot be asked to save: EIO"),
        (TooLate(side="primary", reason="it restarted"), 1, "too late to save: it restarted"),
    ],
)
def test_why_a_set_is_missing_is_said(event: RecoveryEvent, asked: int, reason: str) -> None:
    machine = Recovery(replace(POLICY, saves_late=True), {"primary": 3, "secondary": 8})

    def answer(action: Action) -> RecoveryEvent:
        return event if isinstance(action, SaveLate) else obedient(action)

    names, finish = walk(machine, answer, actions=unreached(machine))
    assert names.count("SaveLate p") == asked
    assert finish.sides[0].set == "missing"
    assert finish.sides[0].reason == f"frame not out: line gone; {reason}"


def test_a_late_save_is_asked_for_once() -> None:
    """It restarted between its answer and the frame, and its line is gone again: it does not begin anew."""
    machine = Recovery(replace(POLICY, saves_late=True), {"primary": 3, "secondary": 8})

    def answer(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitReply) and action.side == "primary":
            return Replied(side="primary", ok=False, status="stale epoch")
        return obedient(action)

    names, finish = walk(machine, answer, actions=unreached(machine))
    assert names.count("SaveLate p") == 1 and "AwaitBoot p" not in names
    assert finish.sides[0].reason == "frame not out: line gone; refused: stale epoch"


@pytest.mark.parametrize("rung", [SendBreak, PowerCycle])
@pytest.mark.parametrize(("boot_epoch", "kept"), [(4, "complete"), (3, "missing")])
def test_what_came_up_while_the_other_side_was_waited_for_is_left_alone(
    rung: type[Action], boot_epoch: int, kept: str
) -> None:
    """Seen in a played history: its power was switched seconds after it had come back by itself."""

    def answer(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitBoot) and action.side == "primary":
            return TimedOut(detail="no answer")
        if isinstance(action, rung):
            return Answered(side="primary", boot_epoch=boot_epoch)
        if isinstance(action, SendBreak):
            return BreakSent(side="primary", error="the line carries none")
        return obedient(action)

    machine = pair(LADDER)
    names, finish = walk(machine, answer)
    assert names.index("AwaitBoot s") < names.index(f"{rung.__name__} p")
    assert names.count("PowerCycle p") == (rung is PowerCycle)
    first = finish.sides[0]
    assert (first.set, first.up, first.power_cycled, first.break_sent) == (kept, True, False, False)
    assert [one.rung for one in machine.history if one.rung] == (
        ["break"] if rung is PowerCycle else []
    )
