"""A small part of ``make mutations``: captures changed as the places where people capture change them. Healthy ones
instruct nobody and what is not seen is named; of faulty ones the fault is hit, or what hides it is named."""

import random
from collections import Counter

import mutations
import pytest
from link_mutations import GOLDEN, KINDS, Base, Mutation, bases, read_capture, strangers

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


def mirror(name: str, *, is_named: bool = True) -> Base:
    protocol, port = {"iscsi": ("iscsi", 3260), "nvme": ("nvme_tcp", 4420), "nbd": ("nbd", 10809)}[
        name.partition("-")[0]
    ]
    ends = ("10.99.0.1", "10.99.0.2") if is_named else ("", "")
    frames = read_capture(GOLDEN / "mirrors" / f"{name}.pcap.gz")
    return Base(name, frames, protocol, port, *ends)


def hits_of(base: Base, mutation: Mutation) -> list[str]:
    both = (mutations.watched(base, mutation), mutations.imported(base, mutation))
    return [one.detail for judged in both for one in judged.hits]


@pytest.mark.parametrize("name", ["iscsi-clean", "iscsi-nodigest", "nvme-nodigest"])
def test_a_mirror_that_is_captured_from_anywhere_accuses_nobody(name: str) -> None:
    """Also where no digest tells a header from the data of a write, or of a read."""
    base = mirror(name)
    for start in range(1, len(base.frames) * 4 // 5, 11):
        mutation = Mutation("late start", list(base.frames[start:]))
        assert hits_of(base, mutation) == [], f"from frame {start + 1}"


@pytest.mark.parametrize("name", ["nvme-clean", "nvme-cut", "nvme-nodigest", "nbd-flip-data"])
def test_a_busy_machines_frames_are_no_clock_that_was_set(name: str) -> None:
    """Frames that were captured late in a bunch make the sender's clock look fast."""
    base = mirror(name)
    judged = mutations.imported(base, Mutation("", list(base.frames)))
    assert not [one for one in judged.says if "clock" in one]


@pytest.mark.parametrize("name", ["iscsi-clean", "iscsi-nodigest", "nvme-clean", "nbd-clean"])
def test_a_stranger_on_a_mirrors_port_is_not_the_pair(name: str) -> None:
    """No addresses are named."""
    base = mirror(name, is_named=False)
    for seed in range(12):
        assert hits_of(base, strangers(random.Random(seed), base)) == []


def test_a_fault_is_hit_where_nothing_is_lost(outcomes: list[mutations.Outcome]) -> None:
    """The speech to that silence."""
    whole = [one for one in outcomes if one.is_faulty and one.keeps_all]
    assert len(whole) >= 8
    assert sum(one.is_hit for one in whole) >= mutations.HIT_SHARE * len(whole)
