"""Rule files that change while a run goes on."""

import shutil
from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.errors import UsageError
from freezeframe.harness.runs.rulefiles import LOOK_EVERY_NS, RuleFiles

SOURCE = Path(__file__).resolve().parents[3] / "bench_configs"
RULE = '[[rule]]\nname = "{}"\nsource = "console"\nliteral = "x"\n'


def test_a_change_is_told_once_and_a_wrong_file_too(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "configs")
    path = tmp_path / "configs" / "rules" / "sim.toml"
    files = RuleFiles(load_bench(str(tmp_path / "configs" / "sim.toml")))
    assert files.changed(0) is None
    fresh = path.with_name("fresh")
    fresh.write_text(RULE.format("new"))
    fresh.replace(path)
    assert files.changed(1) is None, "not yet looked at again"
    rules = files.changed(LOOK_EVERY_NS)
    assert rules is not None
    assert next(rule.name for rule in rules.console) == "new"
    assert files.changed(2 * LOOK_EVERY_NS) is None
    path.write_text(RULE.format("Not A Name"))
    with pytest.raises(UsageError, match=r"sim\.toml"):
        files.changed(3 * LOOK_EVERY_NS)
    assert files.changed(4 * LOOK_EVERY_NS) is None
    path.unlink()
    with pytest.raises(UsageError, match=r"sim\.toml"):
        files.changed(5 * LOOK_EVERY_NS)
