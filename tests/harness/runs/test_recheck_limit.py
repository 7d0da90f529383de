"""What a search of the recorded bytes may cost."""

from freezeframe.harness.core.console.recheck import recheck
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.runs.selfcheck import Limit

DATA = b"x" * 40 + b"\nFAILED 7\n"


def test_a_regex_that_takes_re_for_ever_is_not_judged_and_the_others_are() -> None:
    rules = [
        ConsoleRule(name="before", regex=r"FAILED \d"),
        ConsoleRule(name="for ever", regex=r"(\w+\s?)+:"),
        ConsoleRule(name="behind", literal="FAILED"),
    ]
    found = recheck(rules, "primary", DATA, [(0, 0)], [("before", 49), ("behind", 47)], Limit(0.2))
    assert (found.agrees, found.hits, found.not_checked) == (True, 2, ["for ever"])


def test_when_the_time_is_used_up_no_other_regex_is_judged() -> None:
    rules = [
        ConsoleRule(name="for ever", regex=r"(\w+\d?)+!"),
        ConsoleRule(name="quick", regex="FAILED"),
    ]
    found = recheck(rules, "primary", DATA, [(0, 0)], [], Limit(0.2))
    assert (found.agrees, found.not_checked) == (True, ["for ever", "quick"])
