"""A healthy pair whose host writes what looks like the protocol itself: a capture of a mirror, copied onto the
mirror. Wherever the reader begins or has a hole, nobody is accused, and the pair is understood again; and what a
device says that is no message is found."""

import random

import pytest
from nested_link import PROTOCOLS, Case, play

SEEDS = range(40)
UNDERSTOOD = 0.5
"""Of the writes, at least, in captures with up to two holes of up to 80 exchanges."""


def case(protocol: str, seed: int) -> Case:
    rnd = random.Random(seed)
    return Case(
        protocol, seed, header_digest=rnd.random() < 0.3, data_digest=rnd.random() < 0.4,
        small_numbers=rnd.random() < 0.5, begins_late=rnd.random() < 0.6,
    )  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_healthy_pair_is_accused_of_nothing(protocol: str) -> None:
    writes = answers = holes = 0
    for seed in SEEDS:
        heard = play(case(protocol, seed))
        assert [(one.rule, one.detail) for one in heard.hits] == [], case(protocol, seed)
        writes, answers, holes = (
            writes + heard.writes, answers + heard.answers, holes + heard.holes,
        )  # fmt: skip
    assert holes >= len(SEEDS) and answers >= UNDERSTOOD * writes > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_message_are_found_in_a_stream_that_was_followed(protocol: str) -> None:
    for seed in SEEDS:
        heard = play(case(protocol, seed), exchanges=5, spoil=True)
        assert {one.rule for one in heard.hits} == {"malformed"}, case(protocol, seed)
        assert len(heard.hits) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_message_are_found_after_a_late_start_that_was_proved(
    protocol: str,
) -> None:
    for seed in SEEDS[:12]:
        heard = play(case(protocol, seed), spoil_late=True)
        assert "malformed" in {one.rule for one in heard.hits}, case(protocol, seed)
