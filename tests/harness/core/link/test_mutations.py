"""A small part of ``make mutations``: captures changed as the places where people capture change them. Healthy ones
instruct nobody and what is not seen is named; of faulty ones the fault is hit, or what hides it is named."""

from collections import Counter

import mutations
import pytest
from link_mutations import KINDS, bases

RUNS = 96
SEED = 7


@pytest.fixture(scope="module")
def outcomes() -> list[mutations.Outcome]:
    every = len(bases()) * len(KINDS) // RUNS
    return [mutations.play(number, SEED) for number in range(0, RUNS * every, every)]


def test_nobody_is_instructed_and_what_is_not_seen_is_named(
    outcomes: list[mutations.Outcome],
) -> None:
    wrong = [
        f"run {one.number}, {one.kind} of {one.base}: {one.wrong}" for one in outcomes if one.wrong
    ]
    assert wrong == []
    assert len(Counter(one.kind for one in outcomes)) >= len(KINDS)


def test_a_fault_is_hit_where_nothing_is_lost(outcomes: list[mutations.Outcome]) -> None:
    """The speech to that silence."""
    whole = [one for one in outcomes if one.is_faulty and one.keeps_all]
    assert len(whole) >= 8
    assert sum(one.is_hit for one in whole) >= mutations.HIT_SHARE * len(whole)
