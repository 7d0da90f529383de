"""A pair of which one side has no control line: it is listened to, never instructed, and its set is said
to be missing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import freezeframe
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench, load_scenario
from freezeframe.harness.bench.opened import NO_CONTROL, NOT_COLLECTED, OpenBench, deadline_in
from freezeframe.harness.core.events import Side
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.errors import UsageError
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs import campaign
from freezeframe.harness.runs.drill import drill
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
LACKS = f"root cause data set cannot be used: {NOT_COLLECTED}"


def bench_without(side: Side, folder: Path, *, mib: int = 20) -> Path:
    """The simulated bench with a smaller workload, and without that side's control line."""
    text = (builtin_folder() / "sim.toml").read_text()
    line = f'control = "{{run}}/{side}.control"\n'
    assert line in text
    text = text.replace(line, "").replace("bytes_mib = 64", f"bytes_mib = {mib}")
    rules = json.dumps([str(one) for one in load_bench("sim").rule_paths()])
    path = folder / f"without-{side}.toml"
    path.write_text(re.sub(r"(?m)^rules = .*$", f"rules = {rules}", text))
    return path


def run(name: str, bench: Path, *, status: int) -> dict[str, Any]:
    done = freezeframe(
        "run", name, "--bench", str(bench), "--seed", "7", "--keep", "--json", cwd=bench.parent
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_healthy_pair_passes_and_what_was_not_seen_is_said(tmp_path: Path) -> None:
    bench = bench_without("secondary", tmp_path, mib=2)
    checked = freezeframe("check", str(bench), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    said = " ".join(checked.stdout.split())
    assert "control of secondary: none is named: this side is never instructed" in said
    assert "its fault is armed over the secondary's control line, and the bench names none" in said
    told = run("clean", bench, status=0)
    assert told["outcome"] == "pass" and told["data_equal"] is True
    assert told["canaries"]["primary"]["seen"] and not told["canaries"]["secondary"]["seen"]
    assert "names no control line" in told["canaries"]["secondary"]["reason"]


@pytest.mark.parametrize(
    ("mute", "fault"), [("secondary", "bit_flip_sender"), ("primary", "bit_flip_receiver")]
)
def test_only_the_other_side_is_instructed_and_collected(
    mute: Side, fault: str, tmp_path: Path
) -> None:
    """Whoever complains: both faults show on the secondary's console first."""
    bench = bench_without(mute, tmp_path)
    told = run(fault, bench, status=0)
    asked: Side = "primary" if mute == "secondary" else "secondary"
    assert [one["side"] for one in told["actions"]] == [asked], told["actions"]
    assert told["sets"][asked]["complete"] and not told["sets"][mute]["complete"]
    assert told["sets"][mute]["reason"] == NOT_COLLECTED
    lacks = told["verdict"]["evidence_lacks"]
    assert any(one == f"the {mute}'s {LACKS}" for one in lacks), lacks
    assert told["verdict"]["evidence_grade"] > "A"
    if mute == "primary":
        return  # what a person reads is the same
    shown = freezeframe("show", told["incident"], "--verbose", cwd=tmp_path)
    assert shown.returncode == 0 and NOT_COLLECTED in " ".join(shown.stdout.split()), shown.stdout
    page = tmp_path / "page.html"
    exported = freezeframe("export", told["incident"], "--html", str(page), cwd=tmp_path)
    assert exported.returncode == 0 and "names no control line for it" in page.read_text()


def test_what_needs_the_line_is_refused_before_the_bench_is_opened(tmp_path: Path) -> None:
    bench = load_bench(bench_without("secondary", tmp_path))
    with pytest.raises(UsageError, match="its fault is armed over the secondary's control line"):
        campaign.run(bench, load_scenario("bit_flip_receiver"), seed=1, out_dir=tmp_path)
    with pytest.raises(UsageError, match=f"the secondary cannot be asked: {NO_CONTROL}"):
        OpenBench(bench, tmp_path, only="secondary")
    assert not list(tmp_path.glob("*.netns")), "nothing was started"


def test_a_drill_tries_the_other_side_alone(tmp_path: Path) -> None:
    bench = load_bench(bench_without("primary", tmp_path))
    record = drill(bench, out_dir=tmp_path, view=Silent()).record
    assert record["outcome"] == "drill", record["reasons"]
    assert {one["side"] for one in record["actions"]} == {"secondary"}
    assert record["sets"]["primary"]["reason"] == NOT_COLLECTED


class Complaining(Silent):
    """The primary prints, once the pair is watched, what is a trigger."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened

    def phase(self, text: str) -> None:
        if text.startswith("watching;"):
            primary = self._opened.controllers["primary"]
            assert isinstance(primary, Printing)
            line = "block drbd0: Digest integrity check FAILED: 0s +4096"
            with self._opened.dialogue:
                assert primary.print_line(line, deadline_in(LIMIT_S)).ok


def test_a_watch_instructs_the_other_side_alone(tmp_path: Path) -> None:
    bench = load_bench(bench_without("secondary", tmp_path))
    with run_directory() as run_dir, OpenBench(bench, run_dir) as opened:
        with Watch(opened, out_dir=tmp_path, view=Complaining(opened)) as watched:
            record = next(watched).record
    assert {one["side"] for one in record["actions"]} == {"primary"}
    assert record["sets"]["primary"]["complete"]
    assert record["sets"]["secondary"]["reason"] == NOT_COLLECTED
    assert "names no control line" in record["canaries"]["secondary"]["reason"]
