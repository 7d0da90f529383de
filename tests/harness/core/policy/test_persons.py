"""What persons decide, and what they have in hand: the bench is left alone meanwhile, and a disarm outlives a
restart that no person made."""

import random

import pytest
from policy_play import Play, of

from freezeframe.harness.core.policy import messages as m


def asks(actions: list[m.Action]) -> list[m.Action]:
    kinds = (m.ArmBench, m.Save, m.Identify, m.Canary, m.LookUp)
    return [one for one in actions if isinstance(one, kinds)]


def held(key: str = "hand") -> m.Held:
    return m.Held(key=key, who="anna", what="warmstarts the primary by hand")


def test_what_is_in_hand_is_disarmed_first_left_alone_and_asked_anew() -> None:
    play = Play().armed()
    first, *_ = play.settle(held())
    assert first == m.DisarmBench(why="anna warmstarts the primary by hand")
    assert str(play.machine.status) == "disarmed: anna warmstarts the primary by hand"
    assert asks(play.wait(600)) == [], "no question, though the time for many has come"
    hit = m.TriggerSeen(rule="digest", side="secondary", instructs=True, t_ns=play.now)
    assert asks(play.settle(hit)) == []
    assert "nobody was instructed: disarmed: anna warmstarts" in play.reports("not acted")[-1]
    play.epochs["primary"] += 1
    done = play.settle(m.Released(key="hand"))
    assert {one.side for one in of(done, m.Identify)} == {"primary", "secondary"}
    assert of(done, m.ArmBench)[-1].epochs == {"primary": 6, "secondary": 7}
    assert play.reports("person")[-1] == "anna: warmstarts the primary by hand"


@pytest.mark.parametrize("seed", range(20))
def test_several_hands_in_any_order_leave_it_alone_until_the_last_one(seed: int) -> None:
    dice, play = random.Random(seed), Play().armed()
    held_now: set[str] = set()
    for _ in range(40):
        key = dice.choice("abc")
        match dice.randrange(5):
            case 0:
                held_now.add(key)
                event: m.Event = held(key)
            case 1:
                held_now.discard(key)
                event = m.Released(key=key)
            case 2:
                side = dice.choice(("primary", "secondary"))
                event = m.Rebooted(side=side, evidence="a banner")
            case 3:
                event = m.BenchDisarmed(who="otto", why="lunch")
            case _:
                event = m.BenchArmed(who="otto")
        done = play.settle(event) + play.wait(dice.choice((0, 1, 90)))
        assert not (held_now and asks(done)), (held_now, done)
        assert not (held_now and play.machine.loaded)
    for key in "abc":
        play.settle(m.Released(key=key))
    play.settle(m.BenchArmed(who="otto"))
    assert play.machine.loaded is not None, play.machine.status


def test_what_has_begun_is_collected_while_something_is_in_hand() -> None:
    play = Play().armed()
    struck = play.strike()
    play.settle(held())
    (collect,) = of(play.settle(struck), m.Collect)
    assert collect.incident == play.machine.open_incident
    assert play.machine.under_way == "an incident is being collected"
    play.recover()
    assert play.machine.under_way == "" and play.machine.loaded is None
    play.settle(m.Released(key="hand"))
    assert play.machine.loaded is not None


def test_after_a_kill_nothing_is_looked_up_while_something_is_in_hand() -> None:
    killed = Play().armed()
    play = Play(saved=killed.saved)
    play.settle(held())
    assert asks(play.wait(100)) == []
    assert of(play.settle(m.Released(key="hand")), m.LookUp) != []


@pytest.mark.parametrize("was_killed", [True, False])
@pytest.mark.parametrize("by_person", [True, False])
def test_a_disarm_outlives_a_restart_that_no_person_made(was_killed: bool, by_person: bool) -> None:
    before = Play().armed()
    before.settle(m.BenchDisarmed(who="anna", why="a visit"))
    if was_killed:
        play = Play(saved=before.saved)
    else:
        play = Play()
        play.machine.persons.recall(before.machine.persons.last_words("Ctrl-C"))
    play.settle()
    play.settle(m.BenchArmed(who="a start", closes_breaker=by_person))
    for one in of(play.log, m.LookUp):
        play.settle(m.LookedUp(incident=one.incident, found=dict.fromkeys(one.sides, False)))
    if by_person:
        assert play.machine.loaded is not None
        return
    assert str(play.machine.status) == "disarmed: by anna: a visit"
    assert (
        play.reports("person")[-1] == "a start: starts; the bench stays disarmed by anna: a visit"
    )
    assert play.saved.why_not == "by anna: a visit"
    play.settle(m.BenchArmed(who="otto", why="the visit is over"))
    assert play.machine.loaded is not None and play.saved.why_not == ""
    assert play.reports("person")[-1] == "otto: arms: the visit is over"


def test_one_that_nobody_has_armed_yet_is_no_disarm_after_a_kill() -> None:
    before = Play()
    before.settle()
    play = Play(saved=before.saved)
    play.settle(m.BenchArmed(who="a service", closes_breaker=False))
    assert play.machine.loaded is not None
