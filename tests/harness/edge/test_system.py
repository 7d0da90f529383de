"""What doctor shows: every finding says what it found, and every fault what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.harness.edge import system
from freezeframe.harness.edge.system import CheckResult

ROOT = Path(__file__).resolve().parents[3]


def by_name(out_dir: Path) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in system.examine(out_dir)}


def test_this_machine(tmp_path: Path) -> None:
    found = by_name(tmp_path / "not" / "there" / "yet")
    assert found["python"].status == found["kernel"].status == found["packages"].status == "ok"
    assert {
        "capabilities",
        "real-time priority",
        "locked memory",
        "disk space",
        *system.TOOLS,
    } <= set(found)
    assert str(tmp_path) in found["disk space"].detail
    assert all(finding.remedy for finding in found.values() if finding.status != "ok")


def test_missing_tools_are_one_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert system.missing_tools() == ["fio", "libnbd-bin", "qemu-utils", "tshark", "util-linux"]
    found = by_name(tmp_path)
    assert found["tshark"].status == "warning"
    assert found["fio"].remedy.endswith(
        "apt-get install -y fio libnbd-bin qemu-utils tshark util-linux"
    )


def test_an_unprivileged_user_is_told_what_is_slower(tmp_path: Path) -> None:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    prefix = drop if os.geteuid() == 0 else []
    script = (
        "import resource, sys, pathlib\nfrom freezeframe.harness.edge import system\n"
        "resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))\n"
        "for f in system.examine(pathlib.Path(sys.argv[1])): print(f.name, f.status, f.detail, sep='|')"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    lines = {line.split("|")[0]: line for line in done.stdout.splitlines()}
    assert "CAP_NET_RAW" in lines["capabilities"] and "|warning|" in lines["capabilities"], (
        done.stderr
    )
    assert "|warning|SCHED_FIFO: Operation not permitted" in lines["real-time priority"]
    assert "user namespaces" in lines


def test_examining_changes_nothing(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    system.examine(tmp_path)
    assert os.sched_getscheduler(0) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("timer", "said"),
    [("16\n", "up to 16 ms"), ("1\n", "low-latency mode (1 ms)"), ("?", ""), (None, "")],
)
def test_how_long_an_adapter_holds_bytes_back(tmp_path: Path, timer: str | None, said: str) -> None:
    (tmp_path / "device").mkdir()
    if timer is not None:
        (tmp_path / "device" / "latency_timer").write_text(timer)
    told = system.latency(tmp_path)
    assert said in told
    assert bool(said) == bool(told)
