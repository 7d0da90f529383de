"""Who and what is there: a side that only has a console."""

import pytest
from policy_play import Play, of

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.policy import Health
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONSOLE, CONTROL
from freezeframe.harness.core.policy.messages import BenchPart


def test_a_banner_that_was_read_before_the_question_is_no_restart() -> None:
    """It waited in the line: who answered later is in that boot."""
    play = Play().armed()
    asked_ns = play.machine.presence.sides["secondary"].asked_ns
    banner = m.Rebooted(side="secondary", evidence="a banner", t_read_ns=asked_ns - 1)
    assert not play.settle(banner) and play.machine.loaded is not None
    play.step(m.Rebooted(side="secondary", evidence="a banner", t_read_ns=asked_ns + 1))
    assert play.reports("rebooted")
    assert play.machine.presence.sides["secondary"].epoch is None


@pytest.mark.parametrize("mute", SIDES)
def test_a_side_without_a_control_line_is_listened_to_and_never_asked(mute: Side) -> None:
    """Whatever comes and goes: nobody asks it, opens its control line, or waits for it."""
    (asked,) = (side for side in SIDES if side != mute)
    play = Play(controlled=(asked,), instruct=(asked,)).armed()
    assert play.machine.loaded is not None and set(play.machine.loaded.epochs) == {asked}
    assert play.machine.status.health is Health.UNREHEARSED
    assert f"{mute} console: it has no control line" in play.machine.status.why
    play.settle(m.Lost(part=CONSOLE[mute], reason="gone"))
    assert play.machine.status.health is Health.DEGRADED
    play.settle(m.Lost(part=BenchPart.REFLEX, reason="killed"))
    play.wait(7)
    play.settle(m.PairBroke(evidence="a cut"))
    play.settle(play.strike())
    play.recover()
    play.wait(300)
    assert play.machine.loaded is not None and set(play.machine.loaded.epochs) == {asked}
    questions = [*of(play.log, m.Identify), *of(play.log, m.Canary)]
    assert {one.side for one in questions} == {asked}
    assert CONTROL[mute] not in {one.part for one in of(play.log, m.Reopen)}
    assert play.machine.presence.lost == ()


def test_after_a_kill_an_incident_of_a_side_that_has_lost_its_control_line_goes_on() -> None:
    before = Play().armed()
    before.settle(before.strike())
    play = Play(before.saved, controlled=("primary",), instruct=("primary",))
    play.settle()
    assert of(play.log, m.Collect) and play.machine.open_incident
