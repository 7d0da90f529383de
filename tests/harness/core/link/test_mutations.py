"""A small part of ``make mutations``: captures changed as the places where people capture change them. Healthy ones
instruct nobody and what is not seen is named; of faulty ones the fault is hit, or what hides it is named."""

from collections import Counter

import mutations
import pytest
from link_mutations import KINDS, Mutation, bases

from freezeframe.harness.core.events import NS_PER_S

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


@pytest.mark.parametrize("number", [2261, 8658])
def test_runs_that_were_wrong_once(number: int) -> None:
    """An answer right after the clock was set, in a stream that has shown no clock of its sender since; and
    a hole of the first frames, which nothing tells from a capture that begins later."""
    assert mutations.play(number, 0).wrong == []


def test_a_clock_that_is_set_before_any_frame_makes_no_answer_late() -> None:
    base = next(one for one in bases() if one.protocol == "nvme_tcp" and not one.fault)
    for at in range(7, len(base.frames), 11):
        frames = [
            one._replace(t_ns=one.t_ns + 300 * NS_PER_S * (number >= at))
            for number, one in enumerate(base.frames)
        ]
        hits = mutations.imported(base, Mutation("clock stepped", frames, step_no=at + 1)).hits
        assert [one.detail for one in hits] == [], f"set before frame {at + 1}"


def test_a_fault_is_hit_where_nothing_is_lost(outcomes: list[mutations.Outcome]) -> None:
    """The speech to that silence."""
    whole = [one for one in outcomes if one.is_faulty and one.keeps_all]
    assert len(whole) >= 8
    assert sum(one.is_hit for one in whole) >= mutations.HIT_SHARE * len(whole)
