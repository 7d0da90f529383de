"""What is done to a controller that hangs: in the audit journal, and shown by a dry run."""

import json
from pathlib import Path
from typing import Literal

import pytest
from recovery_walk import BREAK_ONLY, LADDER, obedient, pair, walk

from freezeframe.harness.bench.benchfile import PolicyTable
from freezeframe.harness.core.policy import Rung
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.recovery.messages import (
    Action,
    AwaitBoot,
    BreakSent,
    PowerCycle,
    PowerCycled,
    RecoveryEvent,
    SendBreak,
    TimedOut,
)
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.dialogue import would_write
from freezeframe.harness.runs.strike import HUNG, tell_steps
from freezeframe.harness.runs.view import Silent


@pytest.mark.parametrize(
    ("to_break", "to_power", "audited"),
    [
        (BreakSent(side="primary"), None, [("break", "ok")]),
        (
            BreakSent(side="primary", error="the line carries none"),
            PowerCycled(side="primary"),
            [("break", "no BREAK could be sent: the line carries none"), ("power cycle", "ok")],
        ),
        (
            TimedOut(detail="the driver does not return"),
            PowerCycled(side="primary", error="the supply is silent"),
            [("break", "the driver does not return"), ("power cycle", "the supply is silent")],
        ),
        (TimedOut(detail="unplugged", line_gone=True), None, [("break", "unplugged")]),
    ],
)
def test_each_rung_is_audited_with_its_result(
    to_break: RecoveryEvent, to_power: RecoveryEvent | None, audited: list[tuple[str, str]]
) -> None:
    """Also of a BREAK that timed out: it was known by its text alone, and left out."""

    def answer(action: Action) -> RecoveryEvent:
        if isinstance(action, AwaitBoot) and action.side == "primary":
            return TimedOut()
        if isinstance(action, SendBreak):
            return to_break
        return to_power if isinstance(action, PowerCycle) and to_power else obedient(action)

    machine = pair(LADDER if to_power else BREAK_ONLY)
    walk(machine, answer)
    journal = AuditJournal("test_ladder", "watch", Path("bench.toml"))
    journal.add("begin")
    before = len(journal.path.read_text().splitlines())
    tell_steps(machine.history, Silent(), journal)
    lines = [json.loads(one) for one in journal.path.read_text().splitlines()[before:]]
    assert [(one["action"], one["result"]) for one in lines][: len(audited)] == audited
    assert {(one["about"], one["why"]) for one in lines} == {("primary", HUNG)}
    assert len(lines) == len(audited)


@pytest.mark.parametrize(
    ("setting", "rung", "shown"),
    [
        ("break, power-cycle", Rung.WARMSTART, "; to one that hangs: BREAK, power-cycle"),
        ("break", Rung.WARMSTART, "; to one that hangs: BREAK"),
        ("power-cycle", Rung.WARMSTART, ""),
        ("break", Rung.SAVE, ""),
    ],
)
def test_a_dry_run_shows_the_break_that_it_would_send(
    setting: Literal["break, power-cycle", "break", "power-cycle"], rung: Rung, shown: str
) -> None:
    hit = m.TriggerSeen(rule="digest", side="secondary", instructs=True, t_ns=1, sides=("primary",))
    arm = m.ArmBench(arming=1, incident="000001", epochs={}, rung=rung)
    policy = PolicyTable(rules=["rules.toml"], on_hung_warmstart=setting)
    text = would_write(m.WouldFire(hit=hit, arm=arm), {}, policy)
    word = "warmstart" if rung is Rung.WARMSTART else "save"
    assert text == f"digest on the secondary: {word}: none to primary, which is not armed{shown}"
