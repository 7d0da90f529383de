"""Which write is sent again, when it must not be, and what counts as failing again."""

from typing import Literal

import pytest

from freezeframe.harness.core.blocks.blockstamp import (
    ACK,
    INTENT,
    Journal,
    Write,
    journal_header,
    journal_record,
)
from freezeframe.harness.core.events import Trigger
from freezeframe.harness.core.link.drbd.protocol import CONSOLE_TEXTS
from freezeframe.harness.core.redrive import (
    UNANSWERED_NS,
    RedriveResult,
    failed_again,
    failing_write,
    sector_in_line,
    why_not,
)

SPAN = 64
FIRST, SECOND = Write(0, 0, 8, 100), Write(1, 8, 8, 200)


def journal(*records: tuple[int, Write]) -> Journal:
    return Journal.read(
        journal_header(0, 1, 0, SPAN)
        + b"".join(journal_record(kind, one, one.time_ns) for kind, one in records)
    )


def trigger(
    rule: str,
    t_ns: int,
    *,
    sector: int = -1,
    block_id: str = "",
    source: Literal["console", "link"] = "link",
) -> Trigger:
    return Trigger(
        t_ns=t_ns, rule=rule, source=source, side="secondary", offset_bytes=0, t_arrival_ns=t_ns, t_match_ns=t_ns,
        sector=sector, block_id=block_id,
    )  # fmt: skip


WRITTEN = journal((INTENT, FIRST), (ACK, FIRST), (INTENT, SECOND), (ACK, SECOND))


@pytest.mark.parametrize(
    ("sector", "write"), [(0, FIRST), (7, FIRST), (8, SECOND), (16, None), (1 << 40, None)]
)
def test_the_write_over_the_sector_that_was_named(sector: int, write: Write | None) -> None:
    assert failing_write(WRITTEN, sector, 1000) == write


def test_the_last_write_before_the_trigger_and_not_one_after_it() -> None:
    again = Write(2, 0, 8, 300)
    written = journal((INTENT, FIRST), (ACK, FIRST), (INTENT, again))
    assert failing_write(written, 3, 250) == FIRST
    assert failing_write(written, 3, 300) == again


def test_where_no_sector_is_named_the_oldest_write_that_waits_for_its_answer_too_long() -> None:
    long_after = SECOND.time_ns + UNANSWERED_NS
    assert failing_write(WRITTEN, -1, long_after) is None
    waiting = journal((INTENT, FIRST), (ACK, FIRST), (INTENT, SECOND))
    assert failing_write(waiting, -1, long_after) == SECOND
    assert failing_write(waiting, -1, long_after - 1) is None, (
        "any write waits a little: that would be a guess"
    )


@pytest.mark.parametrize("kind", [INTENT, ACK])
def test_never_over_a_newer_write_acknowledged_or_under_way(kind: int) -> None:
    newer = Write(2, 4, 8, 300)
    records = [(INTENT, FIRST), (ACK, FIRST), (INTENT, newer)] + (
        [(ACK, newer)] if kind == ACK else []
    )
    assert "newer write, 2" in why_not(journal(*records), FIRST, 3)


def test_never_beside_an_older_write_still_under_way() -> None:
    newer = Write(2, 4, 8, 300)
    assert "older write" in why_not(
        journal((INTENT, FIRST), (INTENT, newer), (ACK, newer)), newer, 3
    )


def test_never_while_the_write_itself_waits_for_its_answer() -> None:
    assert "still in flight" in why_not(journal((INTENT, FIRST)), FIRST, 3)


def test_never_while_the_host_will_come_round_to_the_place() -> None:
    laps = SPAN // FIRST.sectors
    assert why_not(WRITTEN, FIRST, laps) == ""
    assert "repeatedly" in why_not(WRITTEN, FIRST, laps + 1)
    full = [Write(number, 8 * number, 8, 100 + number) for number in range(laps)]
    second_lap = [Write(laps, 0, 8, 900)]
    ended = journal(*((kind, one) for one in full + second_lap for kind in (INTENT, ACK)))
    assert why_not(ended, full[1], laps + 1) == ""
    assert "newer" in why_not(ended, full[0], laps + 1)


@pytest.mark.parametrize(
    ("line", "sector"),
    [
        (b"drbd0: Digest integrity check FAILED: 18944s +65536", 18944),
        (b"Out of sync: start=128, size=8 (sectors)", 128),
        (b"got_BlockAck: failed to find request 0x3c00000000000000, sector 7552s", 7552),
        (b"BAD! BarrierAck #7", -1),
        (b"Digest integrity check FAILED: s", -1),
        (b"", -1),
    ],
)
def test_the_sector_of_a_console_line(line: bytes, sector: int) -> None:
    assert sector_in_line(line, CONSOLE_TEXTS) == sector


CAUSE = trigger("link-neg-ack", 100, sector=8, block_id="0xa")


def again(*later: Trigger, line: bytes = b"") -> RedriveResult | None:
    return failed_again([CAUSE, *later], CAUSE, SECOND, 500, lambda _: line, CONSOLE_TEXTS)


def test_a_trigger_on_the_same_sectors_says_again() -> None:
    found = again(trigger("link-neg-ack", 600, sector=15, block_id="0xb"))
    assert found is not None
    assert (found.again, found.outcome) == (True, "deterministic")
    assert again(
        trigger("digest", 600, source="console"), line=b"Digest integrity check FAILED: 8s +4096"
    ) == RedriveResult(again=True, reason="digest names sector 8 again", write=SECOND)


@pytest.mark.parametrize(
    "later",
    [
        trigger("link-neg-ack", 600, sector=16, block_id="0xb"),
        trigger("link-missing-ack", 600, sector=8, block_id="0xa"),
        trigger("link-neg-ack", 400, sector=8, block_id="0xb"),
        trigger("receive-error", 600, source="console"),
    ],
    ids=[
        "another sector",
        "late news of the first try",
        "before it",
        "another rule that names no sector",
    ],
)
def test_what_is_not_about_the_second_try_says_nothing(later: Trigger) -> None:
    assert again(later) is None


def test_the_same_rule_without_a_sector_leaves_it_open() -> None:
    found = again(trigger("link-neg-ack", 600))
    assert found is not None
    assert (found.again, found.outcome) == (None, "not possible")


def test_a_stale_report_of_the_volume_says_nothing_for_the_volume_itself_is_read() -> None:
    assert (
        again(trigger("out-of-sync", 600, source="console"), line=b"Out of sync: start=8, size=8")
        is None
    )


def test_the_record_names_the_write() -> None:
    told = RedriveResult(again=False, reason="nobody complained", write=SECOND).as_record()
    assert told == {
        "write_id": 1, "sector": 8, "sectors": 8, "again": False, "outcome": "transient",
        "reason": "nobody complained",
    }  # fmt: skip
    assert RedriveResult(again=None, reason="no journal").as_record()["outcome"] == "not possible"
