"""A controller that hangs in its warmstart, as processes: a BREAK on its line mends it, and its power
is cycled only where that does not help."""

import json
from pathlib import Path

import pytest
from waiting import LIMIT_S
from watched_bench import complain

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.roles import FaultArming
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


class Hanging(Silent):
    """Once the pair is watched, its primary is made to hang ``times`` times, and its secondary
    complains."""

    def __init__(self, opened: OpenBench, times: int) -> None:
        self._opened = opened
        self._plan = {
            "seed": 1,
            "faults": [{"kind": "hung_warmstart", "side": "primary", "count": times}],
        }
        self._has_begun = False

    def phase(self, text: str) -> None:
        if not text.startswith("watching;") or self._has_begun:
            return
        self._has_begun = True
        primary = self._opened.controllers["primary"]
        assert isinstance(primary, FaultArming)
        with self._opened.dialogue:
            seen = primary.identify(deadline_in(LIMIT_S))
            assert primary.set_faults(seen, self._plan, deadline_in(LIMIT_S)).ok
        complain(self._opened)


@pytest.mark.parametrize(
    ("name", "times", "helped"),
    [
        ("sim", 1, ["break"]),
        ("sim_shared", 1, ["break"]),
        ("sim", 2, ["break", "power cycle"]),
    ],
)
def test_a_break_comes_before_the_power(
    name: str, times: int, helped: list[str], tmp_path: Path
) -> None:
    source = builtin_folder()
    text = (source / f"{name}.toml").read_text().replace('"rules/', f'"{source}/rules/')
    text = text.replace('= "power-cycle"', '= "break, power-cycle"')
    path = tmp_path / "ladder.toml"
    path.write_text(text.replace(f'name = "{name}"', 'name = "ladder"'))
    with run_directory() as run_dir, OpenBench(load_bench(path), run_dir) as opened:
        with Watch(opened, out_dir=tmp_path, view=Hanging(opened, times)) as watched:
            result = next(watched)
    steps = [(one["side"], one["step"]) for one in result.record["recovery"]]
    assert ("primary", "BREAK sent") in steps and ("secondary", "BREAK sent") not in steps
    assert (("primary", "power cycled") in steps) is ("power cycle" in helped)
    assert all(one["complete"] for one in result.record["sets"].values())
    assert steps[-1] == ("", "not compared"), "the pair came back to full duplex"
    audited = [
        json.loads(line)
        for line in AuditJournal("ladder", "", Path()).path.read_text().splitlines()
    ]
    done = [one for one in audited if one["action"] in ("break", "power cycle")]
    assert [(one["action"], one["about"], one["result"]) for one in done] == [
        (action, "primary", "ok") for action in helped
    ]
