"""Sets of ranges against sets of numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.link import ranges
from freezeframe.harness.core.link.ranges import Ranges

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)


def numbers(pairs: list[tuple[int, int]]) -> set[int]:
    return {one for start, length in pairs for one in range(start, start + length)}


def made(pairs: list[tuple[int, int]]) -> Ranges:
    return Ranges((start, start + length) for start, length in pairs)


def held(found: Ranges) -> set[int]:
    pairs = list(found)
    assert pairs == sorted(pairs) and all(start < end for start, end in pairs)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(pairs))
    return {one for start, end in pairs for one in range(start, end)}


@given(PAIRS, PAIRS)
def test_as_sets_of_numbers(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = made(one), made(other)
    assert held(a) == numbers(one) and a.bytes == len(numbers(one))
    assert held(a | b) == numbers(one) | numbers(other)
    assert held(a - b) == numbers(one) - numbers(other)
    assert held(a & b) == numbers(one) & numbers(other)
    assert held(a) == numbers(one), "the operators change neither"
    for start, length in other:
        within = set(range(start, start + length))
        assert a.touches(start, start + length) == bool(within & numbers(one)) or not length
        assert a.covers(start, start + length) == (within <= numbers(one)) or not length


@given(PAIRS, st.sampled_from([1, 4, 8]))
def test_rounded_to_blocks(pairs: list[tuple[int, int]], block: int) -> None:
    whole = {one // block for one in numbers(pairs)}
    assert held(made(pairs).rounded(block)) == {
        one * block + at for one in whole for at in range(block)
    }


def test_too_many_ranges_are_cut_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MAX_RANGES", 3)
    found = Ranges((at, at + 1) for at in range(0, 20, 2))
    assert len(found) == 3 and found.is_cut
    assert (found | Ranges()).is_cut and (Ranges() - found).is_cut and found.copy().is_cut
