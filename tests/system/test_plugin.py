"""The pytest plugin as a user meets it: a test file of their own, one that fails among it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store import StoredIncident

pytestmark = pytest.mark.system

TESTS = """
from harness.benchfile import FaultTable

def test_named_wrongly(pair, faults):
    faults.arm(FaultTable(kind="neg_ack", at_write=3))
    pair.write()
    assert pair.await_trigger().rule == "digest-failed"
"""


def test_a_failing_test_names_its_incident_and_how_to_repeat_it(tmp_path: Path) -> None:
    mine, found = tmp_path / "mine", tmp_path / "found"
    mine.mkdir()
    found.mkdir()  # pytest takes the common ancestor of what is there for its root, and counts node ids from it
    (mine / "test_mine.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-seed", "5", "--ff-out", str(found)],
        cwd=mine,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "assert 'link-neg-ack' == 'digest-failed'" in done.stdout
    named = re.search(r"- freezeframe incidents -+\n(.+)", done.stdout)
    assert named, done.stdout
    incident = StoredIncident.open(Path(named[1]))
    assert incident.path.parent == found
    assert (incident.outcome, incident.broken_sums()) == ("fail", [])
    assert incident.record["trigger"]["rule"] == "link-neg-ack"
    assert "pytest 'test_mine.py::test_named_wrongly' --ff-bench sim --ff-seed 5" in done.stdout
