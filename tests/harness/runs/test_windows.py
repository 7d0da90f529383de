"""Expected windows: a hit is excused by its rule and the time at which its bytes came in."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.runs.windows import ExpectedWindows

TIMES = st.integers(0, 50)
RULES = st.sampled_from(["one", "two"])


def hit(rule: str, t_ns: int, *, is_cause: bool = False) -> Trigger:
    return Trigger(
        t_ns=t_ns + 100, t_match_ns=t_ns + 100, t_arrival_ns=t_ns, rule=rule, source="console",
        side="primary", offset_bytes=0, instruct=["primary"], struck=7,
        is_cause=is_cause,
    )  # fmt: skip


@given(
    st.lists(st.tuples(RULES, TIMES, st.integers(1, 20)), max_size=4),
    st.lists(st.tuples(RULES, TIMES, st.booleans()), max_size=8),
)
def test_hits_of_the_rule_in_the_time_are_excused_and_no_others(
    windows: list[tuple[str, int, int]], hits: list[tuple[str, int, bool]]
) -> None:
    made = ExpectedWindows()
    for rule, from_ns, within_ns in windows:
        made.open(rule, from_ns, within_ns)
    for rule, t_ns, is_cause in hits:
        one = hit(rule, t_ns, is_cause=is_cause)
        wanted = any(r == rule and at <= t_ns < at + within for r, at, within in windows)
        # Frames that went out for it make an incident of it, wanted or not; those that went out for
        # another hit of the same read do not.
        assert made.excuses(one) == made.is_excused(one) == (wanted and not is_cause)
        assert (rule in made.muted(t_ns)) == wanted


def test_a_window_that_is_closed_early_excuses_nothing_later() -> None:
    made = ExpectedWindows()
    window = made.open("one", 10, 100)
    window.until_ns = 20
    assert made.excuses(hit("one", 19)) and not made.excuses(hit("one", 20))
    assert [one.t_arrival_ns for one in window.triggers] == [19]
