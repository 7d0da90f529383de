"""Kinds of incidents: the same fault is the same kind, whatever its numbers."""

import pytest

from freezeframe.harness.core.verdict.signature import (
    ALWAYS_FROM,
    GARBLED,
    Member,
    Recurrence,
    contexts,
    normalised,
    signature,
    stage_of,
)
from freezeframe.harness.incidents.record import read_record


def test_numbers_times_and_ids_do_not_count() -> None:
    one = normalised("[    1.574543] block drbd0: Digest integrity check FAILED: 18944s +65536")
    other = normalised("[  812.000001] block drbd1: Digest integrity check FAILED: 8s +4096")
    assert one == other == "block drbd#: Digest integrity check FAILED: #s +#"
    assert (
        normalised("sector 8, block_id 0x9500ab, uuid 7A30F1F7F426AD44")
        == "sector #, block_id #, uuid #"
    )
    assert normalised("facade dead beef") == "facade dead beef"
    assert normalised("[ \\xe4\\xab 0.40716]\\xbabl") == GARBLED
    assert len(normalised("x" * 100_000)) <= 300


FAULT = "block drbd0: Digest integrity check FAILED: 72304s +4096, uuid {uuid} of {date}"
STAMPS = (
    "", "[    1.000000] ", "[    1.000000][ T1826] ", "[    1.000001][    C3] ", "[Tue Nov 24 16:34:22 2026] ",
    "[Wed Nov 25 06:34:22 2026] ", "Nov 24 16:34:22 node-b kernel: ", "May  1 00:00:01 node-b kernel: [   12.345678] ",
    "2026-11-29T16:34:22+0000 node-b kernel: ", "<4>1 2026-11-29T16:34:22.345678Z node-b kernel - - - ",
    "[   12.345678] node-b kernel: ", r"\x1b[33m[    1.000000] \x1b[0m",
)  # fmt: skip
UUIDS = (
    "11111111-2222-3333-4444-555555555555", "abcdefab-cdef-abcd-efab-cdefabcdefab",
    "ABCDEFABCDEFABCD", "41438F7D06F0FC11",
)  # fmt: skip
DATES = (
    "Tue Nov 24 16:34:22 2026", "Wed Dec  2 06:34:22 UTC 2026",
    "2026-11-29T16:34:22.1Z", "Sun, 29 Nov 2026", "Thursday, May 7 2026",
)  # fmt: skip


def test_one_fault_is_one_kind_whatever_its_stamp_date_and_uuid() -> None:
    kinds = {
        normalised(stamp + FAULT.format(uuid=uuid, date=date) + end)
        for stamp in STAMPS
        for uuid in UUIDS
        for date in DATES
        for end in ("", "\\r", "\\r\\r")
    }
    assert kinds == {"block drbd#: Digest integrity check FAILED: #s +#, uuid # of #"}


def test_two_faults_stay_two_kinds() -> None:
    one, other = (
        f"[    1.000000][    T1] block drbd0: {what}" for what in ("may fail", "May fail")
    )
    assert normalised(one) != normalised(other)
    assert normalised("Nov 24 16:34:22 node-b kernel: a") != normalised(
        "Nov 24 16:34:22 b kernel: b"
    )
    assert normalised("sat down on Monday") == "sat down on Monday"


def test_a_kind_is_rule_stage_and_line() -> None:
    assert signature("a", "", "b") == signature("a", "", "b")
    assert (
        len(
            {
                signature("a", "", "b"),
                signature("a", "b", ""),
                signature("", "a", "b"),
                signature("ab", "", ""),
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    ("verdict", "stage"),
    [
        (None, ""), ("x", ""), ({"stage": "on the link"}, ""), ({"stage": 7, "conclusive": True}, ""),
        ({"stage": "on the link", "conclusive": True}, "on the link"),
    ],
)  # fmt: skip
def test_only_a_conclusive_verdict_makes_a_kind(verdict: object, stage: str) -> None:
    assert stage_of(read_record({"verdict": verdict})[0].verdict) == stage


def member(number: int, *before: str, firmware: str = "1.0.0") -> Member:
    return Member(
        name=f"i{number}",
        started=f"2026-01-{number:02d}T00:00:00Z",
        firmware=firmware,
        contexts=frozenset(before),
    )


def test_recurrence_says_how_often_since_when_and_behind_what() -> None:
    members = [
        member(1, "resync", firmware="1.8.2"),
        member(2, "resync", "a warmstart"),
        member(3, "resync"),
    ]
    assert Recurrence(members=members[:1]).text == "seen once on firmware 1.8.2"
    assert ALWAYS_FROM == 3 and Recurrence(members=members[:2]).always == []
    said = "seen 3 times, first 2026-01-01 on firmware 1.8.2, last 2026-01-03 on firmware 1.0.0, always after resync"
    assert Recurrence(members=members, others=1).text == said
    # What comes before every incident says nothing of this kind.
    assert Recurrence(members=members, others=1, others_after={"resync": 1}).always == []


def test_contexts_are_read_from_the_consoles() -> None:
    assert contexts(b"No resync, but 32768 bits in bitmap!") == []
    assert contexts(b"block drbd0: Resync done (total 1 sec)\nboot epoch 2, warmstart\n") == [
        "resync",
        "a warmstart",
    ]
    assert contexts(b"conn( Connected -> BrokenPipe )") == ["a lost connection"]
