"""The policy machine, event by event: arming, health, storm guard, incidents, the end, a kill."""

import pytest
from policy_play import Play, hit, of

from freezeframe.harness.core.events import NS_PER_S, SIDES, Side
from freezeframe.harness.core.policy import Health, Limits, Rung
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONTROL
from freezeframe.harness.core.policy.messages import BenchPart, Trouble


# --- arming -------------------------------------------------------------------------------------------------
def test_it_arms_both_once_all_is_there_and_a_person_wants_it() -> None:
    play = Play()
    play.settle()
    assert play.machine.loaded is None
    assert "nobody has armed it" in play.machine.status.why
    actions = play.settle(m.BenchArmed(who="anna"))
    (arm,) = of(actions, m.ArmBench)
    assert arm.epochs == {"primary": 5, "secondary": 7}
    assert arm.rung is Rung.WARMSTART
    assert play.machine.status.health is Health.ARMED


def test_what_is_armed_is_written_down_first() -> None:
    play = Play()
    play.settle()
    actions = play.step(m.BenchArmed(who="anna"))
    kinds = [type(one) for one in actions]
    assert kinds.index(m.Persist) < kinds.index(m.ArmBench)
    (arm,) = of(actions, m.ArmBench)
    assert arm in play.saved.armed


@pytest.mark.parametrize("state", ["simplex", "copy pending", "suspended"])
def test_it_waits_for_full_duplex_and_says_what_the_pair_is(state: str) -> None:
    play = Play()
    play.states["secondary"] = state
    play.armed()
    assert play.machine.loaded is None
    assert play.machine.status.why == f"the pair is {state}, says the secondary"
    play.states["secondary"] = "full duplex"
    play.wait(2)
    assert play.machine.status.health is Health.ARMED


def test_it_stays_armed_when_the_pair_leaves_full_duplex() -> None:
    play = Play().armed()
    before = play.machine.loaded
    play.states["primary"] = "simplex"
    play.settle(m.PairBroke(evidence="the link was closed"))
    assert play.machine.loaded == before
    assert play.machine.status.health is Health.DEGRADED
    assert "simplex" in play.machine.status.why


def test_another_device_on_the_line_is_reported_and_never_armed() -> None:
    play = Play(instruct=("primary",))
    play.serials["primary"] = "X9"
    play.armed()
    play.wait(10)
    assert not of(play.log, m.ArmBench)
    assert "another device answers: X9" in play.machine.status.why
    assert play.reports("identity")[0] == "primary: another device answers: X9"


def test_a_silent_side_degrades_and_the_other_stays_armed() -> None:
    play = Play()
    play.silent.add("primary")
    play.armed()
    assert play.machine.loaded is not None
    assert play.machine.loaded.epochs == {"secondary": 7}
    assert play.machine.status.health is Health.DEGRADED
    assert "primary is not armed: no answer" in play.machine.status.why


def test_no_canary_yet_is_unrehearsed() -> None:
    play = Play()
    play.settle()
    play.step(m.BenchArmed(who="test"))
    fresh = Play()
    fresh.mute = set(SIDES)
    for part in BenchPart:
        fresh.step(m.Back(part=part))
    fresh.step(m.BenchArmed(who="test"))
    for side in SIDES:
        fresh.step(
            m.Identified(
                side=side, serial_number=fresh.serials[side], boot_epoch=fresh.epochs[side],
                pair_state="full duplex", t_asked_ns=fresh.now,
            )
        )  # fmt: skip
    assert fresh.machine.loaded is not None
    assert fresh.machine.status.health is Health.UNREHEARSED
    fresh.step(m.NotHeard(side="primary", reason="no canary came"))
    assert fresh.machine.status.health is Health.DEGRADED
    for side in SIDES:
        fresh.step(m.Heard(side=side))
    assert fresh.machine.status.health is Health.ARMED


def test_a_device_that_cannot_print_stays_unrehearsed_and_is_not_asked_again() -> None:
    play = Play().armed()
    play.settle(m.NotHeard(side="primary", reason="cannot print", can_print=False))
    assert play.machine.status.health is Health.UNREHEARSED
    asked = of(play.wait(300), m.Canary)
    assert {one.side for one in asked} == {"secondary"}


# --- lines, boots, liveness ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "part", [BenchPart.PRIMARY_CONSOLE, BenchPart.SECONDARY_CONSOLE, BenchPart.LINK]
)
def test_a_lost_eye_degrades_is_reopened_and_its_gap_is_marked(part: BenchPart) -> None:
    play = Play().armed()
    play.is_gone.add(part)
    lost_ns = play.now
    play.settle(m.Lost(part=part, reason="Input/output error"))
    assert play.machine.status.health is Health.DEGRADED
    assert part.value in play.machine.status.why
    play.wait(7)
    play.is_gone.clear()
    play.wait(6)
    (gap,) = of(play.log, m.MarkGap)
    assert (gap.part, gap.from_ns) == (part, lost_ns)
    assert 7 * NS_PER_S <= gap.to_ns - gap.from_ns <= 13 * NS_PER_S
    assert play.machine.status.health is Health.ARMED
    assert play.reports("lost") and play.reports("back")


def test_a_line_is_reopened_with_back_off() -> None:
    play = Play().armed()
    play.is_gone.add(BenchPart.LINK)
    play.settle(m.Lost(part=BenchPart.LINK, reason="gone"))
    # 0.1, 0.2, 0.4, 0.8 s, then each second.
    assert 55 <= len(of(play.wait(60), m.Reopen)) <= 62


@pytest.mark.parametrize("side", SIDES)
def test_a_lost_control_line_takes_its_side_out_of_the_arming(side: Side) -> None:
    play = Play().armed()
    play.is_gone.add(CONTROL[side])
    play.settle(m.Lost(part=CONTROL[side], reason="unplugged"))
    assert play.machine.loaded is not None
    assert set(play.machine.loaded.epochs) == set(SIDES) - {side}
    play.is_gone.clear()
    play.wait(6)
    assert set(play.machine.loaded.epochs) == set(SIDES)


def test_without_a_reflex_nothing_is_armed_and_the_bench_is_blind() -> None:
    play = Play().armed()
    play.is_gone.add(BenchPart.REFLEX)
    actions = play.settle(m.Lost(part=BenchPart.REFLEX, reason="killed"))
    assert isinstance(actions[0], m.DisarmBench)
    assert play.machine.status.health is Health.BLIND
    play.is_gone.clear()
    play.wait(1)
    assert play.machine.status.health is Health.ARMED


def test_with_neither_console_nor_link_it_is_blind() -> None:
    play = Play().armed()
    for part in (BenchPart.PRIMARY_CONSOLE, BenchPart.SECONDARY_CONSOLE, BenchPart.LINK):
        play.is_gone.add(part)
        play.settle(m.Lost(part=part, reason="gone"))
    assert play.machine.status.health is Health.BLIND
    assert play.machine.loaded is None


def test_a_reboot_disarms_that_side_at_once_and_its_new_boot_is_armed() -> None:
    play = Play().armed()
    play.silent.add("secondary")
    play.settle(m.Rebooted(side="secondary", evidence="a boot banner"))
    assert play.machine.loaded is not None and set(play.machine.loaded.epochs) == {"primary"}
    assert play.reports("rebooted") == ["secondary: a boot banner"]
    play.wait(20)
    play.silent.clear()
    play.epochs["secondary"] = 8
    play.wait(1)
    assert play.machine.loaded.epochs == {"primary": 5, "secondary": 8}


def test_an_answer_asked_for_before_the_boot_is_worth_nothing() -> None:
    play = Play().armed()
    asked_ns = play.now
    play.now += NS_PER_S
    play.step(m.Rebooted(side="primary", evidence="a boot banner"))
    play.step(
        m.Identified(
            side="primary", serial_number="P1", boot_epoch=5, pair_state="full duplex",
            t_asked_ns=asked_ns,
        )
    )  # fmt: skip
    assert play.machine.loaded is not None and "primary" not in play.machine.loaded.epochs


def test_the_poll_finds_a_reboot_that_nobody_saw() -> None:
    play = Play().armed()
    play.epochs["primary"] = 6
    play.wait(61)
    assert play.machine.loaded is not None and play.machine.loaded.epochs["primary"] == 6
    assert "it restarted unseen" in play.reports("rebooted")[0]


def test_it_polls_once_a_minute_while_all_is_well() -> None:
    play = Play().armed()
    done = play.wait(600)
    assert len(of(done, m.Identify)) == len(of(done, m.Canary)) == 20
    assert not of(done, m.HealthIs) and not of(done, m.ArmBench)


def test_a_full_disk_disarms_and_a_low_one_degrades() -> None:
    play = Play().armed()
    play.settle(m.Troubled(trouble=Trouble.DISK_LOW, detail="2 GiB"))
    assert play.machine.status.health is Health.DEGRADED
    play.settle(m.Troubled(trouble=Trouble.DISK_FULL))
    assert play.machine.loaded is None
    for trouble in (Trouble.DISK_FULL, Trouble.DISK_LOW):
        play.settle(m.Eased(trouble=trouble))
    assert play.machine.status.health is Health.ARMED


# --- incidents ----------------------------------------------------------------------------------------------
def test_a_strike_is_collected_and_the_bench_is_armed_again_at_once() -> None:
    play = Play().armed()
    incident = play.strike()
    actions = play.settle(incident)
    (collect,) = of(actions, m.Collect)
    assert collect.out == SIDES and collect.rung is Rung.WARMSTART and not collect.resumed
    assert "is being collected" in play.machine.status.why
    ended_ns = play.now
    play.recover()
    assert play.now == ended_ns, "arming again took no time but that of the answers"
    assert play.machine.loaded is not None
    assert play.machine.loaded.epochs == {"primary": 6, "secondary": 8}
    assert play.machine.loaded.incident != collect.incident


def test_the_restart_of_an_instructed_side_is_no_news() -> None:
    play = Play().armed()
    play.settle(play.strike())
    play.settle(m.Rebooted(side="primary", evidence="a boot banner"))
    assert not play.reports("rebooted")


@pytest.mark.parametrize("times", [1, 3])
def test_triggers_during_a_recovery_join_it(times: int) -> None:
    play = Play().armed()
    play.settle(play.strike())
    for _ in range(times):
        play.settle(hit(play.now, "other"))
    joined = of(play.log, m.Join)
    assert len(joined) == times and {one.incident for one in joined} == {play.machine.open_incident}
    play.recover()
    assert len(of(play.log, m.Collect)) == 1


def test_or_they_become_the_next_incident_which_only_saves() -> None:
    play = Play(during_recovery="next").armed()
    play.settle(play.strike())
    play.settle(hit(play.now, "other"))
    assert not of(play.log, m.Join)
    actions = play.recover()
    (save,) = of(actions, m.Save)
    assert save.cause.rule == "other" and save.epochs == {"primary": 6, "secondary": 8}
    play.settle(
        m.Struck(
            arming=save.arming, rule="other", side="secondary", t_ns=play.now, rung=Rung.SAVE,
            out=SIDES,
        )
    )  # fmt: skip
    assert play.machine.open_incident == save.incident
    play.recover()
    assert play.machine.loaded is not None


def test_a_strike_that_crosses_its_disarming_is_collected_all_the_same() -> None:
    play = Play().armed()
    struck = play.strike()
    play.step(m.BenchDisarmed(who="anna", why="lunch"))
    actions = play.settle(struck)
    assert len(of(actions, m.Collect)) == 1
    assert play.reports("crossed")


def test_two_strikes_that_cross_a_new_arming_are_two_incidents_one_after_the_other() -> None:
    play = Play().armed()
    first = play.strike()
    play.step(m.Expected(rule="other", until_ns=play.now + NS_PER_S))
    second = play.strike("third")
    assert first.arming != second.arming
    play.settle(first)
    play.settle(second)
    assert len(of(play.log, m.Collect)) == 1
    play.recover()
    collects = of(play.log, m.Collect)
    assert len({one.incident for one in collects}) == len(collects) == 2


def test_a_frame_that_could_not_go_out_is_rig_trouble_and_is_saved_later() -> None:
    play = Play().armed()
    play.settle(play.strike(out=(), failed={"primary": "I/O error", "secondary": "I/O error"}))
    assert [one for one in play.reports("frame") if "rig trouble" in one]
    assert not of(play.log, m.Collect)
    assert [one.cause.rule for one in of(play.log, m.Save)] == ["digest"]
    assert play.machine.guard.log == ()


def test_when_one_frame_could_go_out_that_side_is_collected() -> None:
    play = Play().armed()
    actions = play.settle(play.strike(out=("secondary",), failed={"primary": "gone"}))
    (collect,) = of(actions, m.Collect)
    assert collect.out == ("secondary",) and collect.failed == {"primary": "gone"}


def test_a_trigger_that_nobody_was_armed_for_is_reported_with_the_reason() -> None:
    play = Play()
    play.states["primary"] = "copy pending"
    play.armed()
    play.settle(hit(play.now))
    assert play.reports("not acted") == [
        "digest on the secondary: nobody was instructed: "
        "disarmed: the pair is copy pending, says the primary"
    ]


def test_ten_thousand_triggers_are_two_reports() -> None:
    play = Play()
    play.settle()
    for _ in range(10_000):
        play.step(hit(play.now))
    play.wait(11)
    assert len(play.reports("not acted")) == 2
    assert "9999 more" in play.reports("not acted")[1]


def test_a_rule_that_instructs_nobody_is_none_of_its_business() -> None:
    play = Play().armed()
    before = len(play.log)
    assert play.settle(hit(play.now, instructs=False)) == []
    assert len(play.log) == before


def test_an_expected_window_excuses_its_rule_in_its_time_only() -> None:
    play = Play().armed()
    play.settle(m.Expected(rule="digest", until_ns=play.now + 5 * NS_PER_S))
    assert play.machine.loaded is not None and play.machine.loaded.muted == {"digest"}
    play.settle(hit(play.now))
    play.settle(hit(play.now, "other"))
    assert len(play.reports("expected")) == 1 and len(play.reports("not acted")) == 1
    play.wait(5)
    assert play.machine.loaded.muted == frozenset()
    play.settle(hit(play.now + 1))
    assert len(play.reports("expected")) == 1


# --- the storm guard ----------------------------------------------------------------------------------------
def test_inside_the_interval_the_frames_only_save_and_then_they_warmstart_again() -> None:
    play = Play().armed()
    play.settle(play.strike())
    play.recover()
    assert play.machine.loaded is not None and play.machine.loaded.rung is Rung.SAVE
    assert play.machine.status.health is Health.DEGRADED
    assert "only saves" in play.machine.status.why
    play.wait(15)
    assert play.machine.loaded.rung is Rung.WARMSTART
    assert play.machine.status.health is Health.ARMED


def test_a_storm_ends_with_an_open_breaker_that_a_person_closes() -> None:
    play = Play(limits=Limits(free_saves=1_000, max_saves=1_000, per_day=9)).armed()
    warmstarts = []
    for _ in range(10_000):
        if play.machine.loaded is None:
            break
        play.settle(play.strike(f"rule {len(warmstarts)}"))
        if of(play.log, m.Collect)[-1].rung is Rung.WARMSTART:
            warmstarts.append(play.now)
        play.recover()
        play.wait(5)
    assert len(warmstarts) == 9
    assert sum(one < warmstarts[0] + 120 * NS_PER_S for one in warmstarts) <= 6
    assert play.machine.status.health is Health.DISARMED
    assert "9 warmstarts in 24 hours" in play.machine.status.why
    play.wait(3 * 86_400)
    assert play.machine.loaded is None
    play.settle(hit(play.now))
    assert "storm guard" in play.reports("not acted")[-1]
    play.settle(m.BenchArmed(who="anna"))
    assert play.machine.status.health is Health.ARMED


def test_a_known_kind_only_saves_while_others_warmstart() -> None:
    play = Play(limits=Limits(min_interval_s=0, caps=(), per_kind_per_hour=2)).armed()
    for _ in range(2):
        play.settle(play.strike("same"))
        play.recover()
    assert play.machine.loaded is not None
    assert play.machine.loaded.rung is Rung.WARMSTART
    assert play.machine.loaded.gentle == {"same on the secondary"}
    play.settle(play.strike("same"))
    assert of(play.log, m.Collect)[-1].rung is Rung.SAVE


# --- the end, and a kill ------------------------------------------------------------------------------------
def test_the_end_disarms_before_anything_else_and_nothing_arms_again() -> None:
    play = Play().armed()
    actions = play.settle(m.Ended(why="the workload is done"))
    assert isinstance(actions[0], m.DisarmBench)
    play.settle(hit(play.now))
    assert "the end has begun: the workload is done" in play.reports("not acted")[0]
    later = play.wait(3600)
    assert not of(later, m.ArmBench) and not of(later, m.Identify) and not of(later, m.Reopen)


def test_a_strike_that_crosses_the_end_is_collected() -> None:
    play = Play().armed()
    struck = play.strike()
    play.step(m.Ended(why="stopped"))
    assert len(of(play.settle(struck), m.Collect)) == 1
    play.recover()
    assert play.machine.loaded is None


def test_what_waits_at_the_end_is_reported() -> None:
    play = Play(during_recovery="next").armed()
    play.settle(play.strike())
    play.settle(hit(play.now, "other"))
    play.settle(m.Ended(why="stopped"))
    assert "other" in play.reports("not acted")[0]
    play.recover()
    assert not of(play.log, m.Save)


@pytest.mark.parametrize("ended", ["", "stopped"])
def test_after_a_kill_an_open_incident_goes_on(ended: str) -> None:
    play = Play().armed()
    play.settle(play.strike())
    play.settle(m.Ended(why=ended) if ended else m.Tick())
    resumed = Play(saved=play.saved.begun_anew)
    actions = resumed.settle()
    (collect,) = of(actions, m.Collect)
    assert collect.resumed and collect.incident == play.machine.open_incident
    assert not of(actions, m.LookUp), "what is armed was struck: there is nothing to look up"
    resumed.recover()
    assert resumed.machine.loaded is not None
    assert resumed.machine.loaded.rung is Rung.SAVE, "the guard remembers the warmstart"


@pytest.mark.parametrize(
    ("found", "collects"),
    [
        ({"primary": True, "secondary": True}, 1),
        ({"primary": None, "secondary": True}, 1),
        ({"primary": False, "secondary": False}, 0),
    ],
)
def test_after_a_kill_the_sets_tell_whether_the_frames_went_out(
    found: dict[Side, bool | None], collects: int
) -> None:
    play = Play().armed()
    resumed = Play(saved=play.saved)
    actions = resumed.settle()
    (look_up,) = of(actions, m.LookUp)
    assert look_up.incident == play.saved.armed[0].incident
    assert resumed.machine.loaded is None, "nothing is armed before that is known"
    actions = resumed.settle(m.LookedUp(incident=look_up.incident, found=found))
    assert len(of(actions, m.Collect)) == collects
    assert resumed.reports("resumed")
    if collects:
        resumed.recover()
    assert resumed.machine.loaded is not None


def test_sides_that_never_answer_after_a_kill_are_asked_a_bounded_number_of_times() -> None:
    play = Play().armed()
    resumed = Play(saved=play.saved)
    resumed.settle()
    for _ in range(100):
        if not resumed.machine.status.why.startswith("whether"):
            break
        incident = of(resumed.log, m.LookUp)[-1].incident
        resumed.settle(m.LookedUp(incident=incident, found=dict.fromkeys(SIDES)))
        resumed.wait(1)
    assert "not known whether they went out" in resumed.reports("resumed")[-1]
    assert resumed.machine.loaded is not None


def test_an_open_breaker_outlives_the_process() -> None:
    play = Play(limits=Limits(max_saves=1, min_interval_s=100)).armed()
    for _ in range(2):
        play.settle(play.strike())
        play.recover()
    assert play.machine.guard.broken
    resumed = Play(saved=play.saved)
    resumed.settle()
    assert resumed.machine.loaded is None
    assert "saves in one hour" in resumed.machine.status.why
