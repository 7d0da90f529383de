"""The pytest plugin as a user meets it: a test file of their own, one that fails among it."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from freezeframe.harness.incidents.store import StoredIncident

pytestmark = pytest.mark.system

TESTS = """
from freezeframe.harness.bench.benchfile import FaultTable

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
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--ff-seed",
            "5",
            "--ff-out",
            str(found),
            "--junitxml",
            str(tmp_path / "junit.xml"),
        ],
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
    assert (incident.outcome, incident.altered()) == ("fail", [])
    assert incident.record.triggers[0].rule == "link-neg-ack"
    assert "pytest 'test_mine.py::test_named_wrongly' --ff-bench sim --ff-seed 5" in done.stdout
    # The report alone says what happened.
    for said in (
        "result  FAIL: test test_named_wrongly: AssertionError: assert 'link-neg-ack' == 'digest-failed'",
        "Trigger link-neg-ack",
        "cause   The secondary's answer of write",
        "next    read ",
    ):
        assert said in done.stdout
    assert done.stdout.count("freezeframe: console of the") == 2
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    # So does the file that a CI job keeps: seen without the next step, the consoles and the command.
    (failure,) = suite.iter("failure")
    for said in (
        "cause   The secondary's",
        "next    read ",
        "console of the primary",
        "--ff-seed 5",
    ):
        assert said in (failure.text or "")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    found_properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert found_properties["freezeframe.incident"] == str(incident.path)
    assert found_properties["freezeframe.outcome"] == "fail"
    assert found_properties["freezeframe.trigger"] == "link-neg-ack"
    assert "neg-ack" in (found_properties["freezeframe.verdict"] or "")
    assert (
        found_properties["freezeframe.seed"] == "5"
        and found_properties["freezeframe.bench"] == "sim"
    )
    assert found_properties["freezeframe.firmware.secondary"]


UNASKED = """
def test_sees_nothing(pair, secondary):
    secondary.print_line("block drbd0: Digest integrity check FAILED: 0s +4096")

def test_is_content(pair, primary, secondary):
    assert {primary.identity.pair_state, secondary.identity.pair_state} == {"full duplex"}
"""


def test_an_unexpected_trigger_fails_a_test_that_passed_and_only_that(tmp_path: Path) -> None:
    mine, found = tmp_path / "mine", tmp_path / "found"
    mine.mkdir()
    found.mkdir()
    (mine / "test_mine.py").write_text(UNASKED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-out", str(found)],
        cwd=mine,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "unexpected trigger: digest-failed on the secondary's console" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    (incident,) = found.iterdir()  # the quiet pair left none
    assert str(incident) in done.stdout
    assert StoredIncident.open(incident).record.triggers[0].rule == "digest-failed"


BLIND = """
import os
import pytest
from freezeframe.harness.errors import UsageError

def test_whose_record_was_lost(pair, secondary):
    secondary.print_line("block drbd0: Digest integrity check FAILED: 0s +4096")
    pair.await_trigger()
    pair.await_recovery()
    os.truncate(pair.incident.console_path("secondary"), 0)

def test_writes_twice(pair):
    pair.write()
    with pytest.raises(UsageError, match="runs only once"):
        pair.write()
"""


def test_a_blind_watch_and_a_second_workload_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(BLIND)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-out", str(tmp_path / "found")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "evidence was lost: the record of the secondary console and what the reflex reported differ"
        in done.stdout
    )
    assert "1 passed, 1 error" in done.stdout
    (incident,) = (tmp_path / "found").glob("2*")
    assert StoredIncident.open(incident).outcome == "rig-trouble"


SEES_NOTHING = """
def test_writes(pair):
    pair.write()

def test_writes_nothing(pair, primary):
    assert primary.identity.pair_state == "full duplex"
"""


def test_a_test_that_writes_fails_where_the_capture_sees_no_write(tmp_path: Path) -> None:
    """What the command line refuses, a test must not pass."""
    configs = Path(__file__).parents[2] / "bench_configs"
    text = (configs / "sim.toml").read_text().replace('"rules/', f'"{configs}/rules/')
    elsewhere = text.replace('interface = "repl0"', 'interface = "lo"')
    assert elsewhere != text
    (tmp_path / "elsewhere.toml").write_text(elsewhere)
    (tmp_path / "test_mine.py").write_text(SEES_NOTHING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-out", str(tmp_path / "found"),
         "--ff-bench", str(tmp_path / "elsewhere.toml")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "inconclusive: the capture saw no frame at all" in done.stdout
    assert "saw no replicated write of protocol drbd on TCP port 7788" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    (incident,) = (tmp_path / "found").glob("2*")
    assert StoredIncident.open(incident).outcome == "inconclusive"


WANTED = """
import pytest

LINE = "block drbd0: Digest integrity check FAILED: 0s +4096"

def test_wants_it(pair, secondary):
    with pair.expects("digest-failed", within_s=200) as window:
        secondary.print_line(LINE)
    assert [one.side for one in window.triggers] == ["secondary"]
    assert pair.session.collector is None

def test_wants_it_once(pair, secondary):
    with pair.expects("digest-failed", within_s=200) as window:
        secondary.print_line(LINE)
    assert window.triggers
    secondary.print_line(LINE)
    pair.await_recovery()
"""


def test_an_expected_window_excuses_what_it_names_while_it_lasts(tmp_path: Path) -> None:
    mine, found = tmp_path / "mine", tmp_path / "found"
    mine.mkdir()
    found.mkdir()
    (mine / "test_mine.py").write_text(WANTED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-out", str(found)],
        cwd=mine, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    # The trigger after the window fails the second at its end.
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "unexpected trigger: digest-failed on the secondary" in done.stdout
    (incident,) = (StoredIncident.open(path) for path in found.iterdir())
    assert len(incident.record.actions) == 2, "both were instructed, for the second line"


REUSED = """
import pytest
from freezeframe import FaultTable

def test_quiet(pair, ff_standing):
    assert ff_standing.openings == 1

@pytest.mark.expects_trigger("link-neg-ack")
def test_fault(pair, faults, ff_standing):
    faults.arm(FaultTable(kind="neg_ack", at_write=3))
    pair.write()
    assert pair.await_recovery().rejoined

@pytest.mark.expects_trigger("link-neg-ack")
def test_nothing_comes(pair, ff_standing):
    assert ff_standing.openings == 1

def test_after_a_failure(pair, ff_standing):
    assert ff_standing.openings == 2
    pair.write()
    assert pair.compare().data_equal
"""


def test_the_bench_stays_open_until_a_test_leaves_an_incident(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(REUSED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--ff-out", str(tmp_path / "found")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "no trigger of link-neg-ack; seen: none" in done.stdout
    (incident,) = (tmp_path / "found").glob("2*")
    assert StoredIncident.open(incident).outcome == "fail"
