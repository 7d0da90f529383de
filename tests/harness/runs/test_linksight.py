"""A link that goes down, by the counters of its capture, in virtual time."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.events import NS_PER_S, LinkStats
from freezeframe.harness.core.link.blindness import BlindKind
from freezeframe.harness.runs.linksight import DOWN_NS, DownTally, Lacks

STEP_NS = NS_PER_S // 4


SPANS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 20)), max_size=8)


@given(SPANS.map(lambda spans: [(down, why) for down, why, count in spans for _ in range(count)]))
def test_it_counts_once_when_it_lasts_and_nothing_explains_it(
    steps: list[tuple[bool, bool]],
) -> None:
    """Each step: whether the link is down, and whether a controller restarts."""
    tally, said, counted = DownTally(), [], []
    for number, (is_down, is_explained) in enumerate(steps):
        stats = LinkStats(t_ns=number * STEP_NS, down="no carrier" if is_down else "")
        if tally.reported(stats):
            said.append(number)
        if tally.counts(stats, is_explained=is_explained):
            counted.append(number)
    falls = [
        number
        for number, (is_down, _) in enumerate(steps)
        if is_down and (number == 0 or not steps[number - 1][0])
    ]
    assert said == falls
    lasts = DOWN_NS // STEP_NS
    enough = [
        number
        for number, (_, is_explained) in enumerate(steps)
        if number >= lasts
        and all(is_down for is_down, _ in steps[number - lasts : number + 1])
        and not is_explained
    ]
    assert counted == enough[:1]


@given(st.lists(st.sets(st.sampled_from(BlindKind)), max_size=5))
def test_that_nobody_wrote_in_one_part_is_no_lack_of_the_whole(parts: list[set[BlindKind]]) -> None:
    whole = Lacks()
    for part in parts:
        whole.add({kind: f"says {kind}" for kind in part})
    of_silence = {BlindKind.NO_WRITE, BlindKind.NOTHING_CAPTURED, BlindKind.NO_CONNECTION}
    has_seen_write = any(BlindKind.NO_WRITE not in part for part in parts)
    found = set().union(*parts) - (of_silence if has_seen_write else set())
    assert sorted(whole.of_the_whole) == sorted(f"says {kind}" for kind in found)
