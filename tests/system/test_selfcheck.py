"""A run proves that its watching works: canaries before, the record searched again afterwards, rules read again."""

import shutil
import time
from pathlib import Path

import pytest

from fixtures.pair import Incidents, Pair
from harness.benchfile import load_bench
from harness.edge.netns import missing_capabilities

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
CONFIGS = Path(__file__).resolve().parents[2] / "bench_configs"
RULE = '\n[[rule]]\nname = "late-comer"\nsource = "console"\nliteral = "after the reload"\ninstruct = []\n'
LIMIT_S = 10.0


def test_canaries_reload_and_recheck(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    bench = load_bench(tmp_path / "configs" / "sim.toml")
    run = tmp_path / "r"
    run.mkdir()
    pair = Pair(bench, run, Incidents(tmp_path / "incidents"), 1, "selfcheck")
    try:
        assert {side: one["seen"] for side, one in pair.incident.record["canaries"].items()} == {
            "primary": True,
            "secondary": True,
        }
        rules = tmp_path / "configs" / "rules" / "sim.toml"
        with rules.open("a") as file:
            file.write(RULE)
        deadline = time.monotonic() + LIMIT_S
        while not pair.session.triggers and time.monotonic() < deadline:
            pair.primary.print_line("after the reload")
            pair.settle(0.1)
        assert pair.session.triggers[0].rule == "late-comer"
        pair.expected = pair.session.triggers
    finally:
        unexpected = pair.close(failed=False)
    assert unexpected == []
    for side in ("primary", "secondary"):
        found = pair.incident.record["recheck"][side]
        assert found["agrees"], found
        assert found["checked_bytes"] > 0
