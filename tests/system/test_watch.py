"""A watch of several incidents: what it says of the time between two of them, and that a storm does
not warmstart without end. A run that has come to its end instructs nobody."""

import re
import time
from pathlib import Path

import pytest
from console_adapter import ConsoleAdapter

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench, load_scenario
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.recovery.messages import Compared
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs.campaign import ScenarioRun, run_directory
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import watch_opened
from freezeframe.harness.runs.workload import Workload

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


class Breaking(Silent):
    """Each time the pair is watched, its secondary complains."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            secondary = self._opened.controllers["secondary"]
            assert isinstance(secondary, Printing)
            secondary.print_line(
                "block drbd0: Digest integrity check FAILED: 0s +4096", deadline_in(5.0)
            )


def test_the_next_incident_says_how_long_nothing_was_watched(tmp_path: Path) -> None:
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Breaking(opened)
        results = watch_opened(opened, out_dir=tmp_path, view=view)
        first, second = next(results), next(results)
    gaps = [
        [note for note in one.record["notes"] if note.startswith("not armed")]
        for one in (first, second)
    ]
    assert gaps[0] == [] and len(gaps[1]) == 1
    found = re.match(
        r"not armed from \S+ to \S+ UTC \((\d+\.\d) s\), .* from \S+ on its watchers", gaps[1][0]
    )
    assert found is not None
    between_s = (
        second.record["trigger"]["t_arrival_ns"] - first.record["trigger"]["t_match_ns"]
    ) / 1e9
    # Armed again, and soon triggered again; it is rounded.
    assert between_s - 5 < float(found[1]) <= between_s + 0.05
    # It is printed, too, once, where the watch goes on.
    at = view.told.index(gaps[1][0])
    assert view.told[at + 1].startswith("watching;") and view.told.count(gaps[1][0]) == 1


def test_a_second_trigger_within_the_interval_only_saves(tmp_path: Path) -> None:
    """Seen: a line that comes back after each warmstart warmstarted both controllers each time."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Breaking(opened)
        results = watch_opened(opened, out_dir=tmp_path, view=view)
        first, second = next(results), next(results)
    steps = [
        [(one["side"], one["step"]) for one in result.record["recovery"]]
        for result in (first, second)
    ]
    for side in SIDES:
        assert (side, "up") in steps[0], "the first trigger warmstarts"
        assert (side, "saved") in steps[1] and (side, "up") not in steps[1]
        assert second.record["sets"][side]["complete"]
        held = b"warmstart: set"
        console = (second.incident or tmp_path) / side / "console.log"
        assert held not in console.read_bytes(), "the second did not restart anybody"
    said = "storm guard: only saves, the last warmstart is less than 15 s old"
    assert said in second.record["notes"] and said in view.told


class Complaining(ScenarioRun):
    """While its volumes are compared the secondary prints what is a trigger."""

    def _compare_at_the_end(self, session: Session, workload: Workload) -> None:
        secondary = session.opened.controllers["secondary"]
        assert isinstance(secondary, Printing)
        line = "block drbd0: Digest integrity check FAILED: 0s +4096"
        assert secondary.print_line(line, deadline_in(5.0)).ok
        super()._compare_at_the_end(session, workload)


def test_a_trigger_while_the_data_are_compared_instructs_nobody_and_is_reported(
    tmp_path: Path,
) -> None:
    run = Complaining(
        load_bench("sim"), load_scenario("clean"), seed=1, out_dir=tmp_path, view=Silent(), keep=True
    )  # fmt: skip
    result = run.execute()
    assert result.error is None and result.outcome == "fail"
    assert "unexpected trigger digest-failed (secondary)" in result.reasons
    record = result.record
    assert record["actions"] == [] and record["data_equal"] is True
    assert record["trigger"]["rule"] == "digest-failed"
    assert any("nobody was instructed" in note for note in record["notes"])
    for side in SIDES:
        console = (result.incident or tmp_path) / side / "console.log"
        assert b"warmstart: set" not in console.read_bytes()


class Rebooting(Silent):
    """Once armed, its secondary's power blinks; once armed again, it complains."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            self._opened.power_cycle("secondary")
        elif text.startswith("armed again"):
            complain(self._opened)


def complain(opened: OpenBench) -> None:
    secondary = opened.controllers["secondary"]
    assert isinstance(secondary, Printing)
    line = "block drbd0: Digest integrity check FAILED: 0s +4096"
    assert secondary.print_line(line, deadline_in(5.0)).ok


def test_a_controller_that_rebooted_is_armed_again_and_the_next_failure_is_caught(
    tmp_path: Path,
) -> None:
    """Seen, 5 of 5: the armed frames were for the boot before, and the first failure was lost."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Rebooting(opened)
        result = next(watch_opened(opened, out_dir=tmp_path, view=view))
    record = result.record
    assert "the secondary controller restarted: disarmed until it is identified" in view.told
    assert "armed again: the secondary controller is in boot epoch 2" in record["notes"]
    assert record["controllers"]["secondary"]["boot_epoch"] == 2
    assert [(one["side"], one["reply"]["status"]) for one in record["actions"]] == [
        ("primary", "ok"), ("secondary", "ok"),
    ]  # fmt: skip
    assert all(record["sets"][side]["complete"] for side in SIDES)


class Blinking(Session):
    """While its canaries are asked for, after it was identified, the secondary's power blinks."""

    blinked = False

    def _sing(self) -> None:
        super()._sing()
        if not self.blinked:
            self.blinked = True
            self.opened.power_cycle("secondary")
            deadline_ns = deadline_in(30.0)
            while not self._rebooted and time.monotonic_ns() < deadline_ns:
                self.pump(0.1)


def test_a_restart_between_identity_and_arming_is_not_armed_for_the_boot_before(
    tmp_path: Path,
) -> None:
    """Seen: its banner was ignored, and frames were armed that the controller would have refused."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        incident = Incident.create(tmp_path, bench="sim", seed=0)
        session = Blinking(opened, incident, Silent(), lambda: Compared(equal=True))
        try:
            session.arm()
        finally:
            session.close()
    said = "the secondary controller restarted before it was armed"
    assert said in incident.record["notes"]
    assert opened.identities["secondary"].boot_epoch == 2
    assert incident.record["controllers"]["secondary"]["boot_epoch"] == 2


class Unplugging(Silent):
    """Once armed, the secondary's console adapter goes; at the next arming its device complains."""

    def __init__(self, opened: OpenBench, adapter: ConsoleAdapter) -> None:
        self._opened, self._adapter = opened, adapter
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            if sum(one.startswith("watching;") for one in self.told) == 1:
                self._adapter.unplug()
            else:
                complain(self._opened)
        elif text.startswith("blind: "):
            self._adapter.plug()  # it could not be opened; now it can


def test_a_watch_outlives_a_console_that_goes_away(tmp_path: Path) -> None:
    """Seen: "the watch has become blind", exit status 3, and the record deleted."""
    with run_directory() as run_dir:
        adapter = ConsoleAdapter(run_dir / "secondary.console")
        try:
            bench = load_bench(write_bench(tmp_path, adapter.port))
            with OpenBench(bench, run_dir) as opened:
                view = Unplugging(opened, adapter)
                results = watch_opened(opened, out_dir=tmp_path / "out", view=view)
                lost, caught = next(results), next(results)
        finally:
            adapter.close()
    assert lost.outcome == "rig-trouble" and lost.incident is not None
    assert "secondary console ended" in str(lost.error)
    assert (lost.incident / "primary" / "console.log").stat().st_size > 0, "the record is kept"
    assert "all lines are open again" in view.told
    assert caught.record["trigger"]["rule"] == "digest-failed"
    assert all(caught.record["sets"][side]["complete"] for side in SIDES)
    assert any(note.startswith("not armed from") for note in caught.record["notes"])


def write_bench(tmp_path: Path, port: int) -> str:
    """The simulated bench with the secondary's console behind a TCP port."""
    source = builtin_folder()
    text = (source / "sim.toml").read_text()
    line = 'console = "{run}/secondary.console"'
    assert line in text
    text = text.replace(line, f'console = "socket://127.0.0.1:{port}"')
    text = text.replace('"rules/', f'"{source}/rules/')
    path = tmp_path / "unplugged.toml"
    path.write_text(text)
    return str(path)
