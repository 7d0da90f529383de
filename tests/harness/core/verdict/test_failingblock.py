"""On which side of the rejoin a block was read, by what the link shows; and how that is said."""

import pytest

from freezeframe.harness.core.verdict.failingblock import (
    ENDS_EARLY,
    BlockRead,
    FailingBlock,
    differing,
    in_words,
    with_rejoin,
)


def block(t_read_ns: int = 500) -> FailingBlock:
    read = BlockRead(path="primary/block.bin", t_asked_ns=400, t_read_ns=t_read_ns)
    refused = BlockRead(t_asked_ns=400, reason="bad offset")
    return FailingBlock(sector=80, sectors=8, sides={"primary": read, "secondary": refused})


@pytest.mark.parametrize(
    ("rejoins_ns", "seen_until_ns", "rejoin"),
    [
        ([50, 600], 900, "before"),
        ([50, 500], 900, "after"),
        ([50, 300, 600], 900, "after"),
        ([50], 900, "before"),
        ([50], 499, "not known"),
        ([50, 600], 0, "not known"),
        ([50, 450], 0, "after"),
        ([], 0, "not known"),
    ],
)
def test_the_link_tells(rejoins_ns: list[int], seen_until_ns: int, rejoin: str) -> None:
    """Sessions before the failure at 100 do not count; a hole may hide one, and cannot invent one."""
    judged = with_rejoin(block(), since_ns=100, rejoins_ns=rejoins_ns, seen_until_ns=seen_until_ns)
    assert judged.sides["primary"].rejoin == rejoin
    assert judged.sides["primary"].reason == (ENDS_EARLY if rejoin == "not known" else "")
    assert judged.sides["secondary"] == block().sides["secondary"]
    again = with_rejoin(judged, since_ns=100, rejoins_ns=rejoins_ns, seen_until_ns=seen_until_ns)
    assert again == judged


def test_in_words() -> None:
    judged = with_rejoin(block(), since_ns=100, rejoins_ns=[600], seen_until_ns=900)
    assert in_words(judged) == (
        "sectors 80-87: primary read before the sides rejoined, secondary NOT READ (bad offset)"
    )
    read = judged.sides["primary"]
    both = FailingBlock(sector=80, sectors=8, sides={"primary": read, "secondary": read},
                        bytes_different=1, byte_offset=1025)  # fmt: skip
    assert in_words(both) == (
        "sectors 80-87: both sides read before the sides rejoined; 1 of 4096 bytes differs, the first is "
        "byte 1 of sector 82"
    )
    late = with_rejoin(both, since_ns=100, rejoins_ns=[200], seen_until_ns=900)
    assert "both sides read AFTER the rejoin had begun" in in_words(late)
    assert in_words(FailingBlock(sides={"primary": BlockRead()})) == ""


def test_differing() -> None:
    assert differing(b"same", b"same") == (0, None)
    assert differing(b"abcd", b"aBcD") == (2, 1)
