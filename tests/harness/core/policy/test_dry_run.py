"""The policy machine in a dry run: it arms nobody, and says of each trigger what a watch would have
sent."""

from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st
from policy_play import Play, hit, of

from freezeframe.harness.core.events import NS_PER_S, SIDES
from freezeframe.harness.core.policy import Rung
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.messages import BenchPart, Trouble


def frames(arm: m.ArmBench | None) -> object:
    """What a reflex would do with it."""
    return None if arm is None else (arm.epochs, arm.rung, arm.gentle, arm.muted)


HAPPENINGS: Final = st.one_of(
    st.sampled_from(list(BenchPart)).map(lambda part: ("gone", part)),
    st.sampled_from(list(BenchPart)).map(lambda part: ("back", part)),
    st.sampled_from(SIDES).map(lambda side: ("reboot", side)),
    st.sampled_from(SIDES).map(lambda side: ("silent", side)),
    st.sampled_from(SIDES).map(lambda side: ("answers", side)),
    st.sampled_from(["simplex", "full duplex"]).map(lambda state: ("pair", state)),
    st.sampled_from(list(Trouble)).map(lambda trouble: ("trouble", trouble)),
    st.sampled_from(list(Trouble)).map(lambda trouble: ("eased", trouble)),
    st.sampled_from(["disarm", "arm", "expect", "end"]).map(lambda word: (word, None)),
    st.sampled_from([0.1, 1.0, 20.0]).map(lambda seconds: ("wait", seconds)),
)


def happen(play: Play, word: str, what: Any) -> None:
    match word:
        case "gone":
            play.is_gone.add(what)
            play.settle(m.Lost(part=what, reason="gone"))
        case "back":
            play.is_gone.discard(what)
        case "reboot":
            play.epochs[what] += 1
            play.settle(m.Rebooted(side=what, evidence="a banner"))
        case "silent":
            play.silent.add(what)
        case "answers":
            play.silent.discard(what)
        case "pair":
            play.states["primary"] = what
        case "trouble":
            play.settle(m.Troubled(trouble=what, detail="some"))
        case "eased":
            play.settle(m.Eased(trouble=what))
        case "disarm":
            play.settle(m.BenchDisarmed(who="anna", why="a visit"))
        case "arm":
            play.settle(m.BenchArmed(who="anna"))
        case "expect":
            play.settle(m.Expected(rule="digest", until_ns=play.now + 10 * NS_PER_S))
        case "end":
            play.settle(m.Ended(why="stopped"))
        case "wait":
            play.wait(what)


@given(st.lists(HAPPENINGS, max_size=20))
def test_a_dry_run_arms_nobody_and_knows_what_a_watch_would_have_armed(
    story: list[tuple[str, Any]],
) -> None:
    dry, real = Play(dry_run=True).armed(), Play().armed()
    for word, what in story:
        for play in (dry, real):
            happen(play, word, what)
        assert frames(dry.machine.withheld) == frames(real.machine.loaded)
        assert not dry.machine.status.health.has_frames
        sent = of(dry.settle(hit(dry.now)), m.WouldFire)
        assert bool(sent) <= (real.machine.loaded is not None)
    assert not [one for one in dry.log if isinstance(one, m.ArmBench | m.Save | m.Collect)]
    assert not dry.saved.armed


def test_a_dry_run_reports_each_trigger_with_the_frames_that_it_would_have_sent() -> None:
    play = Play(dry_run=True).armed()
    assert str(play.machine.status) == "disarmed: dry run"
    play.states["primary"] = "simplex"  # armed stays armed; that may be the failure's beginning
    play.settle(m.PairBroke(evidence="the link was closed"))
    (fired,) = of(play.settle(hit(play.now)), m.WouldFire)
    assert fired.hit.kind == "digest on the secondary"
    assert (fired.arm.epochs, fired.arm.rung) == ({"primary": 5, "secondary": 7}, Rung.WARMSTART)
    assert not of(play.settle(hit(play.now, instructs=False)), m.WouldFire)


def test_a_hit_is_held_against_what_would_have_been_armed_when_it_came() -> None:
    """Its controller has restarted since, and that was heard of first; see ``intake``."""
    play = Play(dry_run=True).armed()
    hit_ns = play.now
    play.now += NS_PER_S
    play.silent.add("secondary")
    play.silent.add("primary")
    for side in SIDES:
        play.settle(m.Rebooted(side=side, evidence="a banner"))
    assert play.machine.withheld is None
    assert of(play.settle(hit(hit_ns)), m.WouldFire)
    assert not of(play.settle(hit(play.now, "later")), m.WouldFire)
    play.silent.clear()
    play.wait(2)
    assert of(play.settle(hit(play.now, "again")), m.WouldFire)
    assert not of(play.settle(hit(hit_ns + NS_PER_S, "between")), m.WouldFire)
    assert "between" in play.reports("not acted")[-1]


def test_a_storm_in_a_dry_run_is_counted() -> None:
    play = Play(dry_run=True).armed()
    fired = [one for _ in range(1000) for one in of(play.settle(hit(play.now)), m.WouldFire)]
    assert len(fired) == 1
    play.wait(11)
    assert play.reports("not acted") == ["digest on the secondary: 999 more: would have fired"]


def test_a_dry_run_of_a_bench_that_could_not_be_armed_says_why() -> None:
    play = Play(dry_run=True)
    play.silent.update(SIDES)
    play.armed()
    assert play.machine.status.why == "primary: no answer; secondary: no answer"
    assert not of(play.settle(hit(play.now)), m.WouldFire)
    assert "nobody was instructed: disarmed: primary: no answer" in play.reports("not acted")[0]
    play.silent.remove("secondary")
    play.wait(2)
    assert str(play.machine.status) == "disarmed: dry run; primary is not armed: no answer"
    (fired,) = of(play.settle(hit(play.now, "other")), m.WouldFire)
    assert fired.arm.epochs == {"secondary": 7}


def test_a_dry_run_saves_nothing_for_what_a_killed_watch_left_waiting() -> None:
    play = Play(during_recovery="next").armed()
    play.settle(play.strike())
    play.settle(hit(play.now, "other"))
    assert play.saved.waiting and play.saved.open
    dry = Play(saved=play.saved, dry_run=True, during_recovery="next")
    dry.settle()
    dry.wait(11)
    dry.settle(hit(dry.now, "third"))
    dry.recover()
    dry.wait(60)
    assert not of(dry.log, m.Save) and not of(dry.log, m.ArmBench)
    dry.settle(m.Ended(why="stopped"))
    assert "other on the secondary: nobody was instructed" in dry.reports("not acted")[-1]
