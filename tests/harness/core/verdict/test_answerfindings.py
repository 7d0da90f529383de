"""Barriers by the two event logs, which begin at different times and tell of several
connections."""

from typing import Any

import pytest

from freezeframe.harness.core.rootcause import ALL_EVENTS, RootCauseSet
from freezeframe.harness.core.verdict.answerfindings import answer_findings
from freezeframe.harness.core.verdict.evidence import gather
from freezeframe.harness.core.verdict.record import IncidentRecord
from freezeframe.harness.wire.drbd import Conn

Told = tuple[str, int, int]
CONNECTED: Told = ("CONN_STATE", Conn.WF_REPORT_PARAMS, Conn.CONNECTED)
LOST: Told = ("CONN_STATE", Conn.CONNECTED, Conn.BROKEN_PIPE)
FIELDS = {
    "CONN_STATE": ("from", "to"),
    "REPL_BARRIER_SENT": ("barrier", "writes"),
    "REPL_BARRIER_ACK": ("barrier", "writes"),
}


def sent(barrier: int, writes: int) -> Told:
    return "REPL_BARRIER_SENT", barrier, writes


def answered(barrier: int, writes: int) -> Told:
    return "REPL_BARRIER_ACK", barrier, writes


def log(*told: Told) -> RootCauseSet:
    events: list[dict[str, Any]] = [
        {
            "seq": seq,
            "uptime_ns": seq,
            "name": name,
            "level": "INFO",
            **dict(zip(FIELDS[name], values, strict=True)),
        }
        for seq, (name, *values) in enumerate(told)
    ]
    return RootCauseSet(header={}, state={}, events=events, tells=ALL_EVENTS)


def kinds(primary: RootCauseSet, secondary: RootCauseSet) -> list[str]:
    return [
        one.kind
        for one in answer_findings(
            gather(IncidentRecord(), sets={"primary": primary, "secondary": secondary})
        )
    ]


@pytest.mark.parametrize(
    "oldest", [(sent(1, 10),), ()], ids=["whole", "the primary's log has wrapped"]
)
def test_each_connection_counts_its_own_barriers(oldest: tuple[Told, ...]) -> None:
    primary = log(*oldest, LOST, CONNECTED, sent(1, 1))
    secondary = log(CONNECTED, answered(1, 10), LOST, CONNECTED, answered(1, 1))
    assert kinds(primary, secondary) == []


@pytest.mark.parametrize("newer", [0, 1, 2])
def test_a_wrong_count_is_found_also_in_an_earlier_connection(newer: int) -> None:
    again = (LOST, CONNECTED)
    primary = log(CONNECTED, sent(1, 10), sent(2, 4), *again * newer)
    secondary = log(CONNECTED, answered(1, 10), answered(2, 5), *again * newer)
    assert kinds(primary, secondary) == ["wrong barrier"]
