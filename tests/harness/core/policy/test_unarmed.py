"""Incidents of a bench of which one side was not armed."""

import pytest
from policy_play import Play, hit, of

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.policy import Rung
from freezeframe.harness.core.policy import messages as m


@pytest.mark.parametrize(
    ("word", "why"), [("silent", "no answer"), ("stranger", "another device answers: X9")]
)
def test_who_was_not_armed_belongs_to_the_incident_with_the_reason(word: str, why: str) -> None:
    """The reflex knows only that it has no frame; the collection asks the side again."""
    play = Play()
    play.silent |= {"primary"} if word == "silent" else set()
    play.serials["primary"] = "X9" if word == "stranger" else play.serials["primary"]
    play.armed()
    arm = play.machine.loaded
    assert arm is not None and set(arm.epochs) == {"secondary"}
    actions = play.step(
        m.Struck(
            arming=arm.arming, rule="digest", side="secondary", t_ns=play.now, rung=Rung.WARMSTART,
            out=("secondary",), failed={"primary": "no frame is armed for it"},
        )
    )  # fmt: skip
    (collect,) = of(actions, m.Collect)
    assert collect.failed == {"primary": f"it was not armed: {why}"}
    assert play.reports("frame")[-1] == f"primary: it was not instructed: it was not armed: {why}"


def test_who_is_not_armed_for_a_save_belongs_to_its_incident_too() -> None:
    play = Play(during_recovery="next").armed()
    play.settle(play.strike())
    play.settle(hit(play.now, "other"))
    play.silent.add("primary")
    (save,) = of([*play.recover(), *play.wait(5)], m.Save)
    assert set(save.epochs) == {"secondary"}
    actions = play.step(
        m.Struck(
            arming=save.arming, rule="other", side="secondary", t_ns=play.now, rung=Rung.SAVE,
            out=("secondary",),
        )
    )  # fmt: skip
    (collect,) = of(actions, m.Collect)
    assert collect.failed == {"primary": "it was not armed: no answer"}


def test_what_both_say_of_the_pair_is_said_once() -> None:
    play = Play()
    play.states |= dict.fromkeys(SIDES, "copy pending")
    assert play.armed().machine.status.why == "the pair is copy pending, say both"
