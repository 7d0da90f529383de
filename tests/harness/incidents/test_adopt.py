"""Adopted incidents: valid scenarios and tests that name what the verdict named; nothing hostile
gets into them."""

import ast
import random
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from truths import CLEAN, KINDS
from verdictrun import Outcome, virtual_run
from virtualbench import evidence

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.core.verdict.record import IncidentRecord, Verdict
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.adopt import FAULT_OF, SAME_STAGE, adopt
from freezeframe.harness.incidents.inquest import plain
from freezeframe.harness.incidents.record import read_record

RECORD = IncidentRecord(incident_id_hex="0123456789abcdef" * 2)
NOT_SIMULATED = {"host_buffer", "primary_before_digest"}


@cache
def incident(kind: str) -> Outcome:
    return virtual_run(kind, 2, load_bench("sim").rules())


@pytest.mark.parametrize("kind", sorted(set(KINDS) - NOT_SIMULATED - {CLEAN}))
def test_an_incident_becomes_a_scenario_with_its_fault_and_a_test_with_its_verdict(
    kind: str, tmp_path: Path
) -> None:
    outcome = incident(kind)
    made = adopt(RECORD, outcome.verdict, evidence(outcome.parts))
    assert made.name == "incident_01234567"
    path = tmp_path / f"{made.name}.toml"
    path.write_text(made.scenario)
    scenario = load_scenario(str(path))
    faults = {fault.kind for fault in scenario.faults}
    caused = {"console_garble_alone": "console_garble", "on_the_link": "bit_flip_sender"}.get(
        kind, kind
    )
    assert caused in faults
    assert scenario.expect.detected and scenario.expect.power_cycle == (kind == "hung_warmstart")
    simulated = SAME_STAGE.get(outcome.verdict.stage or "", outcome.verdict.stage)
    _run_adopted(made.test, msgspec.structs.replace(outcome.verdict, stage=simulated))
    with pytest.raises(AssertionError):
        _run_adopted(made.test, msgspec.structs.replace(outcome.verdict, kind="something else"))
    delays = [fault.delay_ms for fault in scenario.faults if fault.kind in ("late_ack", "stall")]
    assert all(delay >= 1500 for delay in delays)


def _run_adopted(source: str, verdict: Verdict) -> None:
    """The made test, with a run that gave this verdict; a run keeps it as incident.json does."""
    names: dict[str, Any] = {"__file__": "test_incident_01234567.py"}
    exec(compile(source, "adopted", "exec"), names)  # noqa: S102 - it is what adopt wrote
    given = SimpleNamespace(outcome="pass", reasons=[], record={"verdict": plain(verdict)})
    names["test_incident_01234567"](lambda _scenario: given)


@pytest.mark.parametrize("kind", [*sorted(NOT_SIMULATED), CLEAN])
def test_what_cannot_be_simulated_is_told(kind: str) -> None:
    outcome = incident(kind)
    with pytest.raises(UsageError, match=r"no fault for|nothing to adopt"):
        adopt(RECORD, outcome.verdict, evidence(outcome.parts))


@pytest.mark.parametrize("told", [None, 7, "", "../../etc", "0123", "01234567; import os"])
def test_a_hostile_id_is_not_believed(told: Any) -> None:
    outcome = incident("neg_ack")
    if str(told).startswith("01234567"):
        assert (
            adopt(
                read_record({"incident_id_hex": told})[0], outcome.verdict, evidence(outcome.parts)
            ).name
            == "incident_01234567"
        )
        return
    with pytest.raises(UsageError, match="no id"):
        adopt(read_record({"incident_id_hex": told})[0], outcome.verdict, evidence(outcome.parts))


def test_hostile_words_stay_words() -> None:
    outcome = incident("neg_ack")
    dice = random.Random(1)
    words = '"""\nimport os\nos.system("x")\n\\"""{0}{name}' + "".join(
        chr(dice.randrange(1, 0x3000)) for _ in range(200)
    )
    made = adopt(
        RECORD, msgspec.structs.replace(outcome.verdict, text=words), evidence(outcome.parts)
    )
    tree = ast.parse(made.test)
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
    assert "\nos.system" not in made.test


def test_every_fault_has_its_verdict() -> None:
    assert len(set(FAULT_OF.values())) == 14, (
        "hung_warmstart and the resync's faults come with what else the verdict tells"
    )
