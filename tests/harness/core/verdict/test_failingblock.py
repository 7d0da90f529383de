"""On which side of the rejoin a block was read, by what the link shows; and how that is said."""

import msgspec
import pytest

from freezeframe.harness.core.link.resync import Rejoin
from freezeframe.harness.core.verdict.failingblock import (
    ENDS_EARLY,
    NOT_SHOWN,
    UNDER_WAY,
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
    ("rejoins_ns", "seen_until_ns", "rejoin", "reason"),
    [
        ([(600, 600)], 900, "before", ""),
        ([(500, 500)], 900, "after", ""),
        ([(300, 300), (600, 600)], 900, "after", ""),
        ([], 900, "before", ""),
        ([], 499, "not known", ENDS_EARLY),
        ([(600, 600)], 0, "not known", ENDS_EARLY),
        ([(450, 450)], 0, "after", ""),
        ([], 0, "not known", ENDS_EARLY),
        ([(100, 700)], 900, "not known", UNDER_WAY),
        ([(100, 500)], 900, "after", ""),
        ([(100, 700), (450, 450)], 900, "after", ""),
    ],
)
def test_the_link_tells(
    rejoins_ns: list[tuple[int, int]], seen_until_ns: int, rejoin: str, reason: str
) -> None:
    """A hole may hide a rejoin, and cannot invent one."""
    judged = with_rejoin(
        block(), shows_rejoins=True, rejoins_ns=rejoins_ns, seen_until_ns=seen_until_ns
    )
    assert judged.sides["primary"].rejoin == rejoin
    assert judged.sides["primary"].reason == reason
    assert judged.sides["secondary"] == block().sides["secondary"]
    again = with_rejoin(
        judged, shows_rejoins=True, rejoins_ns=rejoins_ns, seen_until_ns=seen_until_ns
    )
    assert again == judged


def test_of_a_protocol_that_shows_no_rejoin_nothing_is_concluded() -> None:
    judged = with_rejoin(block(), shows_rejoins=False, rejoins_ns=[], seen_until_ns=900)
    read = judged.sides["primary"]
    assert (read.rejoin, read.reason) == ("not known", NOT_SHOWN)
    assert "primary read and whether before the rejoin is not known" in in_words(judged)


@pytest.mark.parametrize(
    ("t_first_ns", "t_copied_first_ns", "t_copied_last_ns", "began"),
    [
        (101, 0, 0, (101, 101)),
        (101, 150, 160, (101, 101)),
        (100, 0, 0, None),
        (50, 60, 70, None),
        (50, 150, 160, (150, 150)),
        (50, 60, 160, (100, 160)),
    ],
)
def test_a_rejoin_since_the_failure_is_a_new_session_or_copies_in_an_old_one(
    t_first_ns: int, t_copied_first_ns: int, t_copied_last_ns: int, began: tuple[int, int] | None
) -> None:
    rejoin = Rejoin(1, ("a", "b"), 0, t_first_ns)
    rejoin.t_copied_first_ns, rejoin.t_copied_last_ns = t_copied_first_ns, t_copied_last_ns
    assert rejoin.began_after(100) == began


def test_in_words() -> None:
    judged = with_rejoin(block(), shows_rejoins=True, rejoins_ns=[(600, 600)], seen_until_ns=900)
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
    late = with_rejoin(both, shows_rejoins=True, rejoins_ns=[(200, 200)], seen_until_ns=900)
    assert "both sides read AFTER the rejoin had begun" in in_words(late)
    empty = {
        **both.sides,
        "secondary": msgspec.structs.replace(both.sides["secondary"], is_zero=True),
    }
    assert in_words(msgspec.structs.replace(both, sides=empty)).endswith(
        "differs: the secondary holds zeros only"
    )
    assert in_words(FailingBlock(sides={"primary": BlockRead()})) == ""


def test_differing() -> None:
    assert differing(b"same", b"same") == (0, None)
    assert differing(b"abcd", b"aBcD") == (2, 1)
