"""The recovery machine: every walk of the table, and that every walk ends."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recovery_walk import BREAK_ONLY, LADDER, NO_POWER, POLICY, S, obedient, pair, walk

from freezeframe.harness.core.recovery.machine import MAX_PULLS, Recovery
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
    SaveLate,
    SendBreak,
    TimedOut,
    TooLate,
)
from freezeframe.harness.core.recovery.table import TABLE, SideStep


def test_both_sides_obey() -> None:
    machine = pair()
    names, finish = walk(machine)
    assert names == [
        "AwaitReply p", "AwaitReply s", "AwaitBoot p", "AwaitBoot s", "Pull p", "Pull s", "AwaitFullDuplex",
        "Compare", "Finish",
    ]  # fmt: skip
    assert finish.rejoined is True and finish.data_equal is True
    assert [(one.side, one.set, one.boot_epoch, one.reply) for one in finish.sides] == [
        ("primary", "complete", 4, "ok"),
        ("secondary", "complete", 9, "ok"),
    ]
    assert [(one.side, one.step) for one in machine.history[:4]] == [
        ("primary", "frame out"), ("secondary", "frame out"), ("primary", "acknowledged"),
        ("secondary", "acknowledged"),
    ]  # fmt: skip
    assert machine.history[-1].step == "data equal"


def test_deadlines_are_the_policys_and_start_when_their_action_does() -> None:
    machine = Recovery(POLICY, {"primary": 0})
    assert machine.next_deadline() is None
    assert machine.on(FrameOut(side="primary"), 5 * S) == [
        AwaitReply(side="primary", deadline_ns=7 * S)
    ]
    assert machine.on(Replied(side="primary", ok=True), 6 * S) == [
        AwaitBoot(side="primary", armed_epoch=0, deadline_ns=16 * S)
    ]
    assert machine.on(Answered(side="primary", boot_epoch=1), 9 * S) == [
        Pull(side="primary", attempt=1, deadline_ns=39 * S)
    ]
    broke = PullBroke(side="primary", reason="silent", arrived_bytes=10)
    assert machine.on(broke, 12 * S) == [Pull(side="primary", attempt=2, deadline_ns=39 * S)]
    assert machine.on(Pulled(side="primary"), 20 * S) == [AwaitFullDuplex(deadline_ns=40 * S)]
    assert machine.on(Rejoined(), 21 * S) == [Compare()]


def test_what_is_done_before_an_action_takes_none_of_its_time() -> None:
    machine = Recovery(POLICY, {"primary": 0})
    machine.on(FrameOut(side="primary"), 5 * S)
    machine.on(Replied(side="primary", ok=True), 6 * S)
    boot = AwaitBoot(side="primary", armed_epoch=0, deadline_ns=23 * S)
    assert machine.postpone(7 * S) == boot and machine.next_deadline() == 23 * S
    machine.on(Answered(side="primary", boot_epoch=1), 20 * S)
    assert machine.postpone(3 * S) == Pull(side="primary", attempt=1, deadline_ns=53 * S)
    broke = PullBroke(side="primary", reason="silent", arrived_bytes=10)
    again = Pull(side="primary", attempt=2, deadline_ns=53 * S)
    assert machine.on(broke, 51 * S) == [again], "all attempts have the time that the first has"
    machine.on(Pulled(side="primary"), 52 * S)
    assert machine.postpone(15 * S) == AwaitFullDuplex(deadline_ns=87 * S)
    machine.on(Rejoined(), 80 * S)
    assert machine.postpone(S) == Compare()
    machine.on(Compared(equal=True), 81 * S)
    assert isinstance(machine.postpone(S), Finish)


def test_a_hung_warmstart_is_power_cycled_once_and_goes_on() -> None:
    names, finish = walk(pair(), hangs("primary", PowerCycle))
    assert names[2:7] == ["AwaitBoot p", "AwaitBoot s", "PowerCycle p", "AwaitBoot p", "Pull p"]
    assert (
        finish.sides[0].set == "complete"
        and finish.sides[0].power_cycled
        and not finish.sides[1].power_cycled
    )


def hangs(side: str, mended_by: type[Action] | None) -> Callable[[Action], RecoveryEvent]:
    """One controller does not come back until that was done to it; None: never."""
    done: set[type] = set()

    def answer(action: Action) -> RecoveryEvent:
        if getattr(action, "side", "") == side:
            done.add(type(action))
            if isinstance(action, AwaitBoot) and mended_by not in done:
                return TimedOut(detail="no answer")
        return obedient(action)

    return answer


@pytest.mark.parametrize(
    ("policy", "mended_by", "walked", "helped_by"),
    [
        (LADDER, SendBreak, ["SendBreak p", "AwaitBoot p", "Pull p"], "a BREAK"),
        (LADDER, PowerCycle,
         ["SendBreak p", "AwaitBoot p", "PowerCycle p", "AwaitBoot p", "Pull p"], "a power cycle"),
        (LADDER, None, ["SendBreak p", "AwaitBoot p", "PowerCycle p", "AwaitBoot p", "Pull s"], "a power cycle"),
        (BREAK_ONLY, None, ["SendBreak p", "AwaitBoot p", "Pull s"], "a BREAK"),
    ],
)  # fmt: skip
def test_a_break_comes_before_the_power_and_once(
    policy: Policy, mended_by: type[Action] | None, walked: list[str], helped_by: str
) -> None:
    names, finish = walk(pair(policy), hangs("primary", mended_by))
    assert names[4 : 4 + len(walked)] == walked
    assert finish.sides[0].helped_by == helped_by and finish.sides[1].helped_by == ""
    assert (finish.sides[0].set == "complete") is (mended_by is not None)


@pytest.mark.parametrize("disruptive", [True, False])
def test_no_break_goes_to_who_was_not_identified_in_this_boot(disruptive: bool) -> None:
    """One has restarted since, another device is in place of the other: a BREAK names no target."""

    def unknown(action: Action) -> RecoveryEvent:
        is_first = getattr(action, "side", "") == "primary"
        if isinstance(action, AwaitReply) and is_first:
            return Replied(side="primary", ok=False, status="stale epoch")
        return (
            TimedOut(is_stranger=not is_first)
            if isinstance(action, AwaitBoot)
            else obedient(action)
        )

    machine = Recovery(LADDER, {"primary": 3, "secondary": 8}, disruptive=disruptive)
    names, _ = walk(machine, unknown)
    assert "AwaitBoot p" in names and not any(name.startswith("SendBreak") for name in names)
    assert "PowerCycle s" not in names, "who answers does not hang, whoever it is"


@pytest.mark.parametrize(
    ("event", "then", "reason"),
    [
        (BreakSent(side="primary", error="the line carries none"), "PowerCycle p", ""),
        (TimedOut(detail="stuck"), "PowerCycle p", ""),
        (
            TimedOut(detail="unplugged", line_gone=True),
            "Pull s",
            "control line gone: unplugged; too late to save: it restarted",
        ),
    ],
)
def test_what_follows_a_break_that_could_not_be_sent(
    event: RecoveryEvent, then: str, reason: str
) -> None:
    """The power, unless the control line is gone: that tells nothing about the controller."""
    hung = hangs("primary", PowerCycle)

    def answer(action: Action) -> RecoveryEvent:
        if isinstance(action, SaveLate):
            return TooLate(side=action.side, reason="it restarted")
        return event if isinstance(action, SendBreak) else hung(action)

    names, finish = walk(pair(LADDER), answer)
    assert names[names.index("SendBreak p") + 1] == then
    assert finish.sides[0].reason == reason and not finish.sides[0].break_sent


@pytest.mark.parametrize(("policy", "cycles"), [(POLICY, 1), (NO_POWER, 0)])
def test_a_controller_that_never_comes_back_ends_it_without_a_comparison(
    policy: Policy, cycles: int
) -> None:
    def dead(action: Action) -> RecoveryEvent:
        return (
            TimedOut()
            if isinstance(action, AwaitBoot) and action.side == "primary"
            else obedient(action)
        )

    names, finish = walk(pair(policy), dead)
    assert names.count("PowerCycle p") == cycles and "Compare" not in names
    assert finish.rejoined is None and finish.data_equal is None
    assert finish.sides[0].set == "missing" and "cannot be cycled" in finish.sides[0].reason
    assert finish.sides[1].set == "complete"


def test_a_supply_that_fails_is_the_reason() -> None:
    def dead(action: Action) -> RecoveryEvent:
        match action:
            case AwaitBoot(side="primary"):
                return TimedOut()
            case PowerCycle():
                return PowerCycled(side=action.side, error="no answer from the supply")
        return obedient(action)

    _, finish = walk(pair(), dead)
    assert finish.sides[0].reason == "power not cycled: no answer from the supply"


def test_a_refusal_is_final_and_the_pair_is_still_compared() -> None:
    def refusing(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitReply) and action.side == "primary":
            return Replied(side="primary", ok=False, status="wrong target")
        return obedient(action)

    names, finish = walk(pair(), refusing)
    assert "AwaitBoot p" not in names and "Compare" in names
    assert (finish.sides[0].set, finish.sides[0].reason) == ("missing", "refused: wrong target")
    assert finish.sides[0].reply == "wrong target"


def test_after_stale_epoch_the_set_is_looked_up() -> None:
    """An earlier copy of the frame may have arrived and only its answer have been lost."""

    def stale(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitReply) and action.side == "primary":
            return Replied(side="primary", ok=False, status="stale epoch")
        return obedient(action)

    names, finish = walk(pair(), stale)
    assert "AwaitBoot p" in names and "Pull p" in names
    assert (finish.sides[0].set, finish.sides[0].reply) == ("complete", "stale epoch")


def test_an_unanswered_frame_is_written_again_as_often_as_the_policy_says() -> None:
    attempts = []

    def silent(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitReply) and action.side == "primary":
            attempts.append(action.attempt)
            return TimedOut()
        return obedient(action)

    _, finish = walk(pair(replace(POLICY, repeats=2)), silent)
    assert attempts == [1, 2, 3]
    assert finish.sides[0].set == "complete"
    attempts.clear()
    walk(pair(), silent)
    assert attempts == [1], "by default a frame is written once"


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_save_restarts_nobody(is_silent: bool) -> None:
    def saving(action: Action) -> RecoveryEvent:
        return TimedOut() if is_silent and isinstance(action, AwaitReply) else obedient(action)

    machine = Recovery(POLICY, {"primary": 3, "secondary": 8}, disruptive=False)
    names, finish = walk(machine, saving)
    assert names == [
        "AwaitReply p", "AwaitReply s", "Pull p", "Pull s", "AwaitFullDuplex", "Compare", "Finish",
    ]  # fmt: skip
    assert [one.set for one in finish.sides] == ["complete", "complete"]


def test_a_line_that_is_gone_is_no_hung_controller() -> None:
    def gone(action: Action) -> RecoveryEvent:
        if getattr(action, "side", "") == "primary":
            return TimedOut(detail="no such device", line_gone=True)
        return obedient(action)

    names, finish = walk(pair(), gone)
    assert "PowerCycle p" not in names and names[-3:-1] == ["Pull s", "SaveLate p"]
    assert finish.sides[0].reason == (
        "control line gone: no such device; cannot be asked to save: no such device"
    )


def test_silence_is_judged_by_the_boot_epoch() -> None:
    def silent(action: Action) -> RecoveryEvent:
        return TimedOut() if isinstance(action, AwaitReply) else obedient(action)

    names, finish = walk(pair(), silent)
    assert (
        "Pull p" in names
        and finish.sides[0].set == "complete"
        and finish.sides[0].reply == "no answer"
    )


def test_a_controller_that_runs_on_did_not_obey() -> None:
    machine = Recovery(POLICY, {"primary": 3})
    machine.on(FrameOut(side="primary"), 0)
    machine.on(Replied(side="primary", ok=True), 1)
    assert machine.on(Answered(side="primary", boot_epoch=3), 2) == []
    assert machine.next_deadline() == 1 + 10 * S
    (action,) = machine.on(TimedOut(), 1 + 10 * S)
    assert isinstance(action, AwaitFullDuplex)
    (finish,) = machine.on(TimedOut(detail="suspended"), 40 * S)
    assert isinstance(finish, Finish) and finish.rejoined is False and finish.data_equal is None
    assert finish.sides[0].reason == "did not restart: deadline passed" and finish.sides[0].up


def test_a_pull_is_resumed_a_bounded_number_of_times() -> None:
    def broken(action: Action) -> RecoveryEvent:
        if isinstance(action, Pull) and action.side == "secondary":
            return PullBroke(side="secondary", reason="line silent", arrived_bytes=4096)
        return obedient(action)

    names, finish = walk(pair(), broken)
    assert names.count("Pull s") == MAX_PULLS
    assert (finish.sides[1].set, finish.sides[1].reason) == (
        "partial",
        "pull given up: line silent",
    )


def test_a_set_that_is_not_there_is_missing() -> None:
    def none(action: Action) -> RecoveryEvent:
        if isinstance(action, Pull):
            return PullBroke(
                side=action.side, reason="no such set", arrived_bytes=0, resumable=False
            )
        return obedient(action)

    names, finish = walk(pair(), none)
    assert names.count("Pull p") == 1
    assert {(one.set, one.reason) for one in finish.sides} == {
        ("missing", "pull given up: no such set")
    }


@pytest.mark.parametrize("repeats", [0, 1, 3])
@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("disruptive", [False, True])
def test_only_a_save_that_was_neither_answered_nor_left_a_set_is_written_again_after_its_pull(
    disruptive: bool, is_silent: bool, repeats: int
) -> None:
    """Else a frame that crashes would go to a controller that has restarted."""
    done: list[Action] = []

    def none(action: Action) -> RecoveryEvent:
        done.append(action)
        if isinstance(action, AwaitReply) and is_silent:
            return TimedOut()
        if isinstance(action, Pull):
            return PullBroke(
                side=action.side, reason="no such set", arrived_bytes=0, resumable=False
            )
        return obedient(action)

    machine = Recovery(replace(POLICY, repeats=repeats), {"primary": 3}, disruptive=disruptive)
    _, finish = walk(machine, none, both=False)
    replies = [at for at, one in enumerate(done) if isinstance(one, AwaitReply)]
    first_pull = next(at for at, one in enumerate(done) if isinstance(one, Pull))
    assert len(replies) == (repeats + 1 if is_silent else 1)
    assert len([at for at in replies if at > first_pull]) == (
        repeats if is_silent and not disruptive else 0
    )
    assert finish.sides[0].set == "missing"


def test_events_that_do_not_fit_change_nothing() -> None:
    machine = pair()
    assert machine.on(Pulled(side="primary"), 0) == []
    machine.on(FrameOut(side="primary", t_ns=-7), 0)
    machine.on(FrameOut(side="secondary"), 0)
    assert [one.t_ns for one in machine.history[-2:]] == [
        -7,
        0,
    ]  # when it was out, not when that was told
    before = len(machine.history)
    for event in (
        FrameOut(side="primary"), Replied(side="secondary", ok=True), Answered(side="primary", boot_epoch=99),
        Pulled(side="primary"), Rejoined(), Compared(equal=False), PowerCycled(side="primary"),
    ):  # fmt: skip
        assert machine.on(event, 1) == []
    assert len(machine.history) == before and machine.next_deadline() == 2 * S


def test_data_that_differ_and_data_that_could_not_be_compared() -> None:
    for event, equal in (
        (Compared(equal=False, detail="sector 8"), False),
        (TimedOut(detail="host gone"), None),
        (Compared(equal=None, detail="host gone"), None),
    ):

        def answer(action: Action, event: RecoveryEvent = event) -> RecoveryEvent:
            return event if isinstance(action, Compare) else obedient(action)

        machine = pair()
        _, finish = walk(machine, answer)
        assert finish.data_equal is equal and finish.detail in ("sector 8", "host gone")
        assert machine.history[-1].step == ("data differ" if equal is False else "not compared")


SIDES = st.sampled_from(["primary", "secondary"])
EVENTS = st.one_of(
    st.builds(Replied, side=SIDES, ok=st.booleans(), status=st.just("busy")),
    st.builds(Answered, side=SIDES, boot_epoch=st.integers(0, 12)),
    st.builds(FrameOut, side=SIDES),
    st.builds(FrameNotOut, side=SIDES, reason=st.just("EIO")),
    st.builds(Kept, side=SIDES, boot_epoch=st.integers(0, 12)),
    st.builds(TooLate, side=SIDES, reason=st.just("it restarted")),
    st.builds(BreakSent, side=SIDES, error=st.sampled_from(["", "no"])),
    st.builds(PowerCycled, side=SIDES, error=st.sampled_from(["", "no"])),
    st.builds(Pulled, side=SIDES),
    st.builds(
        PullBroke,
        side=SIDES,
        reason=st.just("x"),
        arrived_bytes=st.integers(0, 9),
        resumable=st.booleans(),
    ),
    st.just(Rejoined()),
    st.builds(Compared, equal=st.booleans()),
    st.just(TimedOut()),
    st.just(TimedOut(line_gone=True)),
)


@given(
    st.lists(EVENTS, max_size=60),
    st.sampled_from([POLICY, NO_POWER, LADDER, BREAK_ONLY, replace(LADDER, saves_late=True)]),
    st.sampled_from([FrameOut(side="primary"), FrameNotOut(side="primary", reason="line gone")]),
)
def test_whatever_happens_it_ends_by_its_deadlines(
    events: list[RecoveryEvent], policy: Policy, first: RecoveryEvent
) -> None:
    """After any events, timeouts alone end every recovery, within the sum of what the policy
    allows."""
    machine = pair(policy)
    machine.on(first, 0)
    actions = machine.on(FrameOut(side="secondary"), 0)
    for event in events:
        if machine.finished:
            break
        actions = machine.on(event, 1) or actions
    now = 1
    for _ in range(40):
        if machine.finished:
            break
        now = max(now, machine.next_deadline() or now)
        actions = machine.on(TimedOut(), now) or actions
    assert machine.finished and isinstance(actions[0], Finish)
    assert now <= 1 + S * (2 * (2 + 4 * 10 + 2 + 30 + 2 * 22 + 2) + 20)
    for one in actions[0].sides:
        assert (one.set == "complete") == (one.reason == "")


def test_the_table_leads_every_step_to_the_end() -> None:
    reached = {SideStep.SETTLED}
    while more := {
        step for step, row in TABLE.items() if step not in reached and reached & {*row.values()}
    }:
        reached |= more
    assert reached == set(SideStep)


def test_a_pull_that_breaks_off_lets_the_other_side_go_first_and_keeps_its_time() -> None:
    machine = Recovery(POLICY, {"primary": 4, "secondary": 4}, disruptive=False)
    machine.on(FrameOut(side="primary"), 0)
    (action,) = machine.on(FrameOut(side="secondary"), 0)
    while isinstance(action, AwaitReply):
        (action,) = machine.on(obedient(action), 0)
    assert action == Pull(side="primary", attempt=1, deadline_ns=30 * S)
    broke = PullBroke(side="primary", reason="unplugged", arrived_bytes=0)
    (action,) = machine.on(broke, 10 * S)
    assert action == Pull(side="secondary", attempt=1, deadline_ns=40 * S)
    (action,) = machine.on(Pulled(side="secondary"), 39 * S)
    assert action == Pull(side="primary", attempt=2, deadline_ns=59 * S)
    (action,) = machine.on(broke, 49 * S)
    assert action == Pull(side="primary", attempt=3, deadline_ns=59 * S)
