"""Redrive on the simulated pair: the same fault once is transient, and again and again it is
deterministic."""

from pathlib import Path
from typing import Any

import pytest

from freezeframe.fixtures.pair import Incidents
from freezeframe.harness.bench.benchfile import Bench, builtin_folder, load_bench, load_scenario
from freezeframe.harness.core import rootcause
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.frames import decode
from freezeframe.harness.incidents.inquest import plain, verdict_of
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.runs import campaign
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.wire.control import Op, SetKind

SETS = ("set.zst", "save.zst")
STAGES = {
    "bit_flip_receiver": "secondary before check",
    "neg_ack": "response",
    "lost_write": "lost write",
}
SCENARIO = """
name = "again"
title = "A fault that strikes {count} times"

[[faults]]
kind = "{kind}"
at_write = 60
count = {count}

[workload]
bytes_mib = 8

[expect]
detected = true
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """The simulated bench, with a redrive."""
    rules = builtin_folder() / "rules"
    text = (builtin_folder() / "sim.toml").read_text().replace('"rules/', f'"{rules}/')
    path = tmp_path / "redrive.toml"
    path.write_text(text.replace("[policy]\n", "[policy]\nredrive = true\nredrive_timeout_s = 1\n"))
    return load_bench(path)


def run(bench: Bench, kind: str, count: int, incidents: Incidents, tmp_path: Path) -> Result:
    path = tmp_path / "again.toml"
    path.write_text(SCENARIO.format(kind=kind, count=count))
    return campaign.run(bench, load_scenario(path), seed=3, out_dir=incidents.out_dir, keep=True)


@pytest.mark.parametrize(
    ("kind", "count", "outcome"),
    [
        ("bit_flip_receiver", 1, "transient"),
        ("bit_flip_receiver", 1000, "deterministic"),
        ("neg_ack", 1, "transient"),
        ("neg_ack", 1000, "deterministic"),
        ("lost_write", 1000, "deterministic"),
    ],
)
def test_a_write_that_failed_is_sent_again_before_the_warmstart(
    kind: str, count: int, outcome: str, bench: Bench, incidents: Incidents, tmp_path: Path
) -> None:
    result = run(bench, kind, count, incidents, tmp_path)
    record: dict[str, Any] = result.record
    redrive = record["redrive"]
    assert redrive["outcome"] == outcome, redrive
    assert redrive["again"] is (outcome == "deterministic")
    assert redrive["saves"] == {"primary": "ok", "secondary": "ok"}
    assert result.outcome == "pass", result.reasons
    asked = [decode(bytes.fromhex(one["frame_hex"])).type for one in record["actions"]]
    assert asked == [Op.STATE_SAVE] * 2 + [Op.WARMSTART] * 2
    assert [one["reply"]["ok"] for one in record["actions"]] == [True] * 4
    steps = [one["step"] for one in record["recovery"]]
    assert steps.index("write sent again") < steps.index("redrive") < steps.index("frame out")
    assert result.incident is not None
    for side in SIDES:
        kinds = [
            rootcause.decode((result.incident / side / name).read_bytes()).header["kind"]
            for name in SETS
        ]
        assert kinds == [SetKind.WARMSTART, SetKind.STATE_SAVE]
    assert [one for one in record["notes"] if "set" in one.split() or "trace" in one] == []
    assert plain(verdict_of(StoredIncident.open(result.incident))) == record["verdict"]
    found = record["verdict"]
    assert (found["conclusive"], found["stage"], found["write_id"]) == (
        True,
        STAGES[kind],
        redrive["write_id"],
    )
