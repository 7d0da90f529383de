"""A text that repeats is reported once, then as a number."""

from freezeframe.harness.core.policy.tally import MAX_TEXTS, PERIOD_NS, Tally


def test_the_first_is_new_and_the_rest_are_a_number() -> None:
    tally = Tally()
    assert [tally.is_new("rule", "why", 5) for _ in range(4)] == [True, False, False, False]
    assert tally.next_ns() == 5 + PERIOD_NS
    assert tally.due(4 + PERIOD_NS) == []
    assert tally.due(5 + PERIOD_NS) == [("rule", "why", 3)]


def test_after_a_quiet_period_it_is_new_again() -> None:
    tally = Tally()
    tally.is_new("rule", "why", 0)
    assert tally.due(PERIOD_NS) == []
    assert tally.next_ns() is None
    assert tally.is_new("rule", "why", PERIOD_NS)


def test_the_end_reports_what_was_only_counted() -> None:
    tally = Tally()
    tally.is_new("rule", "why", 0)
    tally.is_new("rule", "why", 1)
    assert tally.due(2, all_of_it=True) == [("rule", "why", 1)]


def test_texts_without_end_are_counted_together() -> None:
    tally = Tally()
    new = sum(tally.is_new("rule", f"text {number}", 0) for number in range(10_000))
    assert new == MAX_TEXTS
    assert ("", "others", 10_000 - MAX_TEXTS) in tally.due(PERIOD_NS)
