"""What is done to a controller that hangs: in the audit journal, and shown by a dry run."""

import json
from pathlib import Path
from typing import Literal

import pytest

from freezeframe.harness.bench.benchfile import PolicyTable
from freezeframe.harness.core.policy import Rung
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.recovery.messages import Transition
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.dialogue import would_write
from freezeframe.harness.runs.strike import HUNG, tell_steps
from freezeframe.harness.runs.view import Silent


@pytest.mark.parametrize(
    ("step", "detail", "audited"),
    [
        ("BREAK sent", "", ("break", "ok")),
        ("hung, power can be cycled", "no BREAK could be sent: gone", ("break", "no BREAK could be sent: gone")),
        ("hung, power can be cycled", "no answer", None),
        ("power cycled", "", ("power cycle", "ok")),
        ("power not cycled", "the supply is silent", ("power cycle", "the supply is silent")),
        ("set pulled", "", None),
    ],
)  # fmt: skip
def test_each_rung_is_audited_with_its_result(
    step: str, detail: str, audited: tuple[str, str] | None
) -> None:
    journal = AuditJournal("test_ladder", "watch", Path("bench.toml"))
    journal.add("begin")
    tell_steps([Transition(t_ns=1, side="primary", step=step, detail=detail)], Silent(), journal)
    last = json.loads(journal.path.read_text().splitlines()[-1])
    if audited is None:
        assert last["action"] == "begin"
        return
    assert (last["action"], last["result"]) == audited
    assert (last["about"], last["why"]) == ("primary", HUNG)


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
