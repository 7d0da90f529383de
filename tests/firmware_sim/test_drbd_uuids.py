"""The UUID decision table, rule by rule, and seen from both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.firmware_sim.drbd_uuids import Generations, decide

A, B, C, D, E = 0x10, 0x20, 0x30, 0x40, 0x50
NEXT = 1 << 48
NEW = 4

# own UUIDs, peer's UUIDs, other facts, result, rule
TABLE = [
    ((NEW, 0, 0, 0), (NEW, 0, 0, 0), {}, 0, 10),
    ((NEW, 0, 0, 0), (A, 0, 0, 0), {}, -2, 20),
    ((A, NEW, 0, 0), (NEW, 0, 0, 0), {}, 2, 30),
    ((A, 0, 0, 0), (0, 0, 0, 0), {}, 2, 30),
    ((A, B + NEXT, B, 0), (A, 0, B + NEXT, B), {}, 1, 34),
    ((A, 0, B + NEXT, B), (A, B + NEXT, B, 0), {}, -1, 35),
    ((A, B, 0, 0), (A, 0, 0, 0), {}, 1, 36),
    ((A, 0, 0, 0), (A, B, 0, 0), {}, -1, 37),
    ((A, 0, 0, 0), (A | 1, 0, 0, 0), {}, 0, 40),
    ((A, B, 0, 0), (A, C, 0, 0), {}, 0, 40),
    ((A, 0, 0, 0), (A, 0, 0, 0), {"own_crashed": True}, 1, 40),
    ((A, 0, 0, 0), (A, 0, 0, 0), {"peer_crashed": True}, -1, 40),
    ((A, 0, 0, 0), (A, 0, 0, 0), {"own_crashed": True, "peer_crashed": True}, 1, 40),
    (
        (A, 0, 0, 0),
        (A, 0, 0, 0),
        {"own_crashed": True, "peer_crashed": True, "resolver": True},
        -1,
        40,
    ),
    ((A, 0, 0, 0), (A, 0, 0, 0), {"own_crashed": True, "own_primary": True}, 1, 41),
    ((A, 0, 0, 0), (A, 0, 0, 0), {"own_crashed": True, "peer_primary": True}, -1, 41),
    (
        (A, 0, 0, 0),
        (A, 0, 0, 0),
        {"own_crashed": True, "own_primary": True, "peer_primary": True},
        -100,
        41,
    ),
    (
        (A, 0, 0, 0),
        (A, 0, 0, 0),
        {"own_crashed": True, "own_primary": True, "rule_41": False},
        -10000,
        41,
    ),
    ((A, 0, 0, 0), (B, A | 1, 0, 0), {}, -1, 50),
    ((A, 0, 0, 0), (B, A + NEXT, A, 0), {}, -1, 51),
    ((A, 0, C, 0), (B, A + 9, A, C), {"version": 95}, -1, 51),
    ((A, 0, 0, 0), (B, C, D, A), {}, -2, 60),
    ((B, A | 1, 0, 0), (A, 0, 0, 0), {}, 1, 70),
    ((B, A + NEXT, A, 0), (A, 0, 0, 0), {}, 1, 71),
    ((B, C, D, A), (A, 0, 0, 0), {}, 2, 80),
    ((A, C, 0, 0), (B, C, 0, 0), {}, 100, 90),
    ((A, 0, C, 0), (B, 0, D, C), {}, -100, 100),
    ((A, 0, 0, 0), (B, 0, 0, 0), {}, -1000, 100),
]


@pytest.mark.parametrize(("own", "peer", "facts", "result", "rule"), TABLE)
def test_the_table(
    own: tuple[int, ...], peer: tuple[int, ...], facts: dict[str, bool], result: int, rule: int
) -> None:
    verdict = decide(Generations(own=own, peer=peer, **facts))  # type: ignore[arg-type]
    assert (verdict.result, verdict.rule) == (result, rule)


def test_what_got_lost_is_corrected() -> None:
    missed_end = decide(Generations(own=(A, B + NEXT, B, 0), peer=(A, 0, B + NEXT, B)))
    assert missed_end.own == (A, 0, B + NEXT, B)
    lost_start = decide(Generations(own=(B, A + NEXT, A, C), peer=(A, 0, 0, 0)))
    assert lost_start.own == (B, A, C, C)


uuids = st.tuples(*[st.sampled_from([0, NEW, A, A | 1, B, C, D, A + NEXT, B + NEXT])] * 4)
flags = st.booleans()


@given(uuids, uuids, flags, flags, flags, flags, st.sampled_from([95, 101]))
def test_both_sides_agree(
    own: tuple[int, ...], peer: tuple[int, ...], own_crashed: bool, peer_crashed: bool, primary: bool, mine: bool,
    version: int,
) -> None:  # fmt: skip
    """A side that would be source meets one that would be target, whatever the UUIDs are."""
    here = Generations(
        own=own, peer=peer, own_crashed=own_crashed, peer_crashed=peer_crashed, own_primary=primary and mine,
        peer_primary=primary and not mine, resolver=True, version=version,
    )  # fmt: skip
    there = Generations(
        own=peer, peer=own, own_crashed=peer_crashed, peer_crashed=own_crashed, own_primary=here.peer_primary,
        peer_primary=here.own_primary, resolver=False, version=version,
    )  # fmt: skip
    result, other = decide(here).result, decide(there).result
    if (
        abs(result) < 100
        and own[0] not in (0, NEW)
        and peer[0] not in (0, NEW)
        and own[0] | 1 == peer[0] | 1
    ):
        assert result == -other
    if abs(result) >= 100:
        assert abs(result) == abs(other)
