"""A watch of several incidents: what it says of the time between two of them, and that a storm does
not warmstart without end. A run that has come to its end instructs nobody."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from console_adapter import ConsoleAdapter
from journal import journal
from looking import Looking
from waiting import LIMIT_S
from watched_bench import complain, write_bench

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.bench.notifytable import NotifyTable
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import NS_PER_S, SIDES, AnyEvent, LinkStats, Side
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.core.recovery.messages import Compared
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs.campaign import Result, ScenarioRun
from freezeframe.harness.runs.notify import Notifier
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch
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
        self.health_seen: list[HealthStatus] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            complain(self._opened)

    def health(self, status: HealthStatus) -> None:
        self.health_seen.append(status)


def consoles_of(results: list[Result], side: Side) -> bytes:
    return b"".join(
        ((one.incident or Path()) / side / "console.log").read_bytes() for one in results
    )


def test_two_incidents_in_a_row_and_no_byte_between_them_is_lost(tmp_path: Path) -> None:
    """Seen: nothing was recorded for 1.2 to 7 s between two incidents, and each trigger of a storm
    warmstarted both controllers."""
    table = NotifyTable(command=["sh", "-c", "cat >> notices; echo >> notices"], settle_s=0)
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Breaking(opened)
        notifier = Notifier("sim", table, run_dir / "sim.toml", view.told.append)
        with Watch(opened, out_dir=tmp_path, view=view, notifier=notifier) as watched:
            looking = Looking(tmp_path, "secondary")
            results = [next(watched), next(watched)]
        notices = [json.loads(line) for line in (run_dir / "notices").read_text().splitlines()]
        results = watched.results  # and what came until it was stopped
    first, second = results[:2]
    # Somebody who looked on saw every byte, across the cuts.
    assert looking.seen().startswith(consoles_of(results[:2], "secondary"))
    for side in SIDES:
        whole = consoles_of(results, side)
        # The firmware numbers its boots and prints each state of the pair once: nothing is missing
        # at the border, nothing is there twice.
        assert whole.count(b"boot epoch 2, ") == 1 and whole.count(b"warmstart: set") == 1
        complaints = whole.count(b"Digest integrity check FAILED")
        assert complaints == (len(results) if side == "secondary" else 0)
        assert first.record["recheck"][side]["agrees"] and second.record["recheck"][side]["agrees"]
    # The first warmstarts, the second only saves.
    steps = [[(one["side"], one["step"]) for one in r.record["recovery"]] for r in (first, second)]
    for side in SIDES:
        assert (side, "up") in steps[0]
        assert (side, "saved") in steps[1] and (side, "up") not in steps[1]
        assert second.record["sets"][side]["complete"]
    said = "storm guard: only saves, the last warmstart is less than 15 s old"
    assert any(said in note for note in second.record["notes"])
    assert HealthStatus(Health.DEGRADED, said) in view.health_seen
    # Armed again as soon as it was collected; at a load of 10 it takes longer than its 0.1 s.
    last_ns = max(one["t_ns"] for one in first.record["recovery"])
    assert second.record["trigger"]["t_arrival_ns"] - last_ns < 10 * NS_PER_S
    assert second.record["trigger"]["line"].endswith("Digest integrity check FAILED: 0s +4096")
    # Each incident was notified of, and the end.
    noticed = [one["incident"]["folder"] for one in notices if one["event"] == "incident"]
    assert noticed == [str(one.incident) for one in results]
    assert "the end has begun" in [one["why"] for one in notices if not one["incident"]][-1]
    audited = journal()
    seen = [(one["action"], one["about"], one["result"]) for one in audited]
    assert ("strike", "primary", "ok") in seen and ("strike", "secondary", "ok") in seen
    armed = [one["why"] for one in audited if one["action"] == "arm"]
    assert list(dict.fromkeys(armed)) == ["warmstart", "save"]
    assert all(f"pid {os.getpid()}" in one["who"] for one in audited)


class Rehearsing(Silent):
    """Its secondary complains whenever the dry run is ready, until the trigger is reported: a boot
    banner that is read late makes it ask anew who is there."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []
        self.has_fired = threading.Event()
        self.health_seen: list[HealthStatus] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("would have fired: "):
            self.has_fired.set()

    def health(self, status: HealthStatus) -> None:
        self.health_seen.append(status)
        is_ready = status.why.startswith("dry run") and "is not armed" not in status.why
        if is_ready and not self.has_fired.is_set():
            complain(self._opened)


def test_a_dry_run_shows_the_frames_and_sends_none(tmp_path: Path) -> None:
    """The same line that warmstarts both in a watch; see the test above."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Rehearsing(opened)
        with Watch(opened, out_dir=tmp_path, view=view, dry_run=True) as watched:
            assert view.has_fired.wait(LIMIT_S), view.told
        epochs = {side: opened.identify(side, deadline_in(LIMIT_S)).boot_epoch for side in SIDES}
        listed = {side: opened.controllers[side].sets(deadline_in(LIMIT_S)) for side in SIDES}
    assert epochs == {"primary": 1, "secondary": 1} and listed == {"primary": [], "secondary": []}
    assert {one.health for one in view.health_seen} == {Health.DISARMED}
    assert any(one.startswith("watching;") for one in view.told)
    (said,) = {one for one in view.told if one.startswith("would have fired: ")}
    shape = r"would have fired: digest-failed on the secondary: warmstart: frame (\w+) to primary, frame (\w+) to secondary"
    found = re.fullmatch(shape, said)
    assert found is not None, said
    for text, serial in zip(found.groups(), ("FFSIM-P-0001", "FFSIM-S-0001"), strict=True):
        assert serial.encode() in bytes.fromhex(text)
    (result,) = watched.results
    assert result.outcome == "interrupted" and result.record["actions"] == []
    assert said in result.record["notes"]
    audited = journal()
    assert not {"arm", "strike"} & {one["action"] for one in audited}
    assert {one["why"] for one in audited if one["action"] == "would have fired"} == {
        said.removeprefix("would have fired: ")
    }


class Complaining(ScenarioRun):
    """While its volumes are compared the secondary prints what is a trigger."""

    def _compare_at_the_end(self, session: Session, workload: Workload) -> None:
        secondary = session.opened.controllers["secondary"]
        assert isinstance(secondary, Printing)
        line = "block drbd0: Digest integrity check FAILED: 0s +4096"
        assert secondary.print_line(line, deadline_in(LIMIT_S)).ok
        super()._compare_at_the_end(session, workload)


def test_a_trigger_while_the_data_are_compared_instructs_nobody_and_is_reported(
    tmp_path: Path,
) -> None:
    run = Complaining(
        load_bench("sim"), load_scenario("clean"), seed=1, out_dir=tmp_path, view=Silent(), keep=True
    )  # fmt: skip
    result = run.execute()
    assert result.error is None and result.outcome == "fail"
    assert any(
        "unexpected trigger digest-failed on the secondary's console" in one
        for one in result.reasons
    )
    record = result.record
    assert record["actions"] == [] and record["data_equal"] is True
    assert record["trigger"]["rule"] == "digest-failed"
    assert any("nobody was instructed" in note for note in record["notes"])
    for side in SIDES:
        console = (result.incident or tmp_path) / side / "console.log"
        assert b"warmstart: set" not in console.read_bytes()


def kill_child(module: str) -> None:
    """Kill our child process that runs ``module``."""
    for listed in Path("/proc/self/task").glob("*/children"):
        for pid in listed.read_text().split():
            if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                os.kill(int(pid), signal.SIGKILL)
                return
    raise AssertionError(f"no child runs {module}")


class Killing(Silent):
    """Once armed, each watcher is killed, one after the other; once they watch again, the secondary
    complains."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []
        self.health_seen: list[HealthStatus] = []
        self._has_complained = False

    def phase(self, text: str) -> None:
        self.told.append(text)
        assert "nobody was instructed" not in text, self.told
        if text.startswith("watching;"):
            kill_child("freezeframe.harness.watch.reflex")
        elif text.startswith("reflex process: there again"):
            kill_child("freezeframe.harness.watch.linkwatch")

    def health(self, status: HealthStatus) -> None:
        self.health_seen.append(status)
        is_again = any(one.startswith("link capture: there again") for one in self.told)
        if is_again and status.health is Health.ARMED and not self._has_complained:
            self._has_complained = True
            complain(self._opened)


def test_watchers_that_are_killed_are_started_again_and_the_next_failure_is_caught(
    tmp_path: Path,
) -> None:
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Killing(opened)
        with Watch(opened, out_dir=tmp_path, view=view) as watched:
            result = next(watched)
    record, folder = result.record, result.incident or tmp_path
    assert record["trigger"]["rule"] == "digest-failed"
    assert all(record["sets"][side]["complete"] for side in SIDES)
    assert Health.BLIND in [one.health for one in view.health_seen], "without the reflex"
    gaps = [one for one in result.reasons if "nothing was recorded from" in one]
    assert [one.partition(":")[0] for one in gaps] == ["reflex process", "link capture"]
    # The record of the consoles goes on in the same file; what was captured before is kept beside.
    assert all(record["recheck"][side]["agrees"] for side in SIDES)
    assert (folder / "link.before-gap-1.pcapng").stat().st_size > 0
    assert (folder / "link.pcapng").stat().st_size > 0


class KillingLate(Silent):
    """Its host writes; once that is captured, its secondary complains; once frames are out for that, the link's
    watcher is killed."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.has_killed = self.has_complained = False

    def phase(self, text: str) -> None:
        if text.startswith("watching;"):
            self._opened.host("primary").write(0, bytes(4096))

    def happened(self, source: str, event: AnyEvent) -> None:
        is_captured = isinstance(event, LinkStats) and event.writes > 0
        if is_captured and not self.has_complained:
            self.has_complained = True
            complain(self._opened)

    def step(self, side: str, step: str, detail: str) -> None:
        if step == "frame out" and not self.has_killed:
            self.has_killed = True
            kill_child("freezeframe.harness.watch.linkwatch")


def test_an_incident_is_judged_by_the_capture_that_holds_its_trigger(tmp_path: Path) -> None:
    """Seen: "there is no capture of the link", as its watcher had died in the recovery."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        with Watch(opened, out_dir=tmp_path, view=KillingLate(opened)) as watched:
            result = next(watched)
    folder = result.incident or tmp_path
    assert any(bytes(4096) in one.data for one in read_frames(folder / "link.pcapng"))
    # What came later is beside it, where the incident had not ended by then.
    for later in folder.glob("link.*-gap*"):
        assert later.name == "link.after-gap.pcapng"
        assert not any(bytes(4096) in one.data for one in read_frames(later))


class Rebooting(Silent):
    """Once armed, its secondary's power blinks; once armed again, it complains."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            self._opened.power_cycle("secondary")

    def health(self, status: HealthStatus) -> None:
        is_again = "secondary: boot epoch 2, the pair is full duplex" in self.told
        if is_again and status.health is Health.ARMED and "complained" not in self.told:
            self.told.append("complained")
            complain(self._opened)


def test_a_controller_that_rebooted_is_armed_again_and_the_next_failure_is_caught(
    tmp_path: Path,
) -> None:
    """Seen, 5 of 5: the armed frames were for the boot before, and the first failure was lost."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Rebooting(opened)
        with Watch(opened, out_dir=tmp_path, view=view) as watched:
            result = next(watched)
    record = result.record
    said = "secondary: boot epoch 2, the pair is full duplex"
    assert said in view.told and said in record["notes"]
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
            deadline_ns = deadline_in(LIMIT_S)
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
    """Once armed, an adapter of the secondary goes; once it is back, its device complains."""

    def __init__(self, opened: OpenBench, adapter: ConsoleAdapter, part: str) -> None:
        self._opened, self._adapter, self._part = opened, adapter, part
        self.told: list[str] = []
        self.health_seen: list[HealthStatus] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            self._adapter.unplug()
        elif "not opened: " in text:
            self._adapter.plug()  # it could not be opened; now it can

    def health(self, status: HealthStatus) -> None:
        self.health_seen.append(status)
        is_again = any(one.startswith(f"secondary {self._part}: there again") for one in self.told)
        is_whole = status.health.has_frames and "secondary is not armed" not in status.why
        if is_again and is_whole and "complained" not in self.told:
            self.told.append("complained")
            complain(self._opened)


@pytest.mark.parametrize("line", ["console", "control"])
def test_a_watch_outlives_a_line_that_goes_away(line: str, tmp_path: Path) -> None:
    """Seen: "the watch has become blind", exit status 3, and the record deleted."""
    part = "console" if line == "console" else "control line"
    with run_directory() as run_dir:
        adapter = ConsoleAdapter(run_dir / f"secondary.{line}")
        try:
            bench = load_bench(write_bench(tmp_path, line, adapter.port))
            with OpenBench(bench, run_dir) as opened:
                view = Unplugging(opened, adapter, part)
                with Watch(opened, out_dir=tmp_path / "out", view=view) as watched:
                    caught = next(watched)
        finally:
            adapter.close()
    # One incident, in one record of the console, which says what is missing in it.
    assert caught.record["trigger"]["rule"] == "digest-failed"
    assert all(caught.record["sets"][side]["complete"] for side in SIDES)
    gaps = [one for one in caught.record["notes"] if re.search(r"from \S+ UTC to \S+ UTC \(", one)]
    assert len(gaps) == 1 and gaps[0].startswith(f"secondary {part}: ")
    assert ("nothing was recorded" in gaps[0]) == (gaps[0] in caught.reasons) == (line == "console")
    assert all(caught.record["recheck"][side]["agrees"] for side in SIDES)
    # The primary stayed armed.
    lost = [one for one in view.health_seen if f"secondary {part}: " in one.why]
    assert Health.DEGRADED in [one.health for one in lost]
    assert all(one.health.has_frames for one in lost)


class Interrupting(Silent):
    """While the first incident is being collected, the secondary's console has another trigger."""

    def __init__(self, opened: OpenBench, adapter: ConsoleAdapter) -> None:
        self._opened, self._adapter = opened, adapter
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;") and "complained" not in self.told:
            self.told.append("complained")
            complain(self._opened)

    def step(self, side: str, step: str, detail: str) -> None:
        if step == "set pulled" and "interrupted" not in self.told:
            self.told.append("interrupted")
            self._adapter.say(b"\r\nblock drbd0: Digest integrity check FAILED: 64s +4096\r\n")


@pytest.mark.parametrize("policy", ["join", "next"])
def test_a_trigger_during_a_recovery_joins_it_or_becomes_the_next(
    policy: str, tmp_path: Path
) -> None:
    with run_directory() as run_dir:
        adapter = ConsoleAdapter(run_dir / "secondary.console")
        try:
            path = Path(write_bench(tmp_path, "console", adapter.port))
            text = path.read_text()
            path.write_text(
                text.replace(
                    "[policy]\n",
                    f'[policy]\nreaction_budget_us = 0.1\nduring_recovery = "{policy}"\n',
                )
            )
            with OpenBench(load_bench(str(path)), run_dir) as opened:
                view = Interrupting(opened, adapter)
                with Watch(opened, out_dir=tmp_path / "out", view=view) as watched:
                    results = [next(watched) for _ in range(1 if policy == "join" else 2)]
        finally:
            adapter.close()
    first = results[0].record
    assert [one["rule"] for one in first["more_triggers"]] == ["digest-failed"], "it is recorded"
    assert len(first["actions"]) == 2, "and nobody was instructed a second time"
    assert first["recheck"]["secondary"]["agrees"]
    assert any("join" in one for one in view.told) == (policy == "join")
    (slow,) = (one for one in view.told if one.startswith("slow reaction: "))
    assert slow in first["notes"] and slow.endswith(", 0.1 us are allowed")
    audited = journal()
    struck = [one["result"] for one in audited if one["action"] == "strike"]
    # Whoever is saved later, because a recovery was under way, was not slow.
    assert struck == [slow, "ok"] + (["ok", "ok"] if policy == "next" else [])
    if policy == "next":
        second = results[1].record
        assert second["trigger"]["rule"] == "digest-failed"
        assert [(one["side"], one["reply"]["status"]) for one in second["actions"]] == [
            ("primary", "ok"), ("secondary", "ok"),
        ]  # fmt: skip
        steps = {(one["side"], one["step"]) for one in second["recovery"]}
        assert {(side, "saved") for side in SIDES} <= steps
        assert all(second["sets"][side]["complete"] for side in SIDES)


class Signalling(Silent):
    def __init__(self) -> None:
        self.is_watching = threading.Event()

    def phase(self, text: str) -> None:
        if text.startswith("watching;"):
            self.is_watching.set()


def test_a_pair_that_acts_by_itself_is_collected(tmp_path: Path) -> None:
    """Autonomic mode: no frame of ours, and one incident for all that is seen of one failure."""
    fault = {"kind": "bit_flip_receiver", "side": "secondary", "at_write": 1, "count": 1}
    with (
        run_directory() as run_dir,
        OpenBench(load_bench("sim_autonomic"), run_dir) as opened,
        Watch(opened, out_dir=tmp_path, view=(view := Signalling())) as watched,
    ):
        assert view.is_watching.wait(LIMIT_S)
        with opened.dialogue:
            opened.arm_faults({"secondary": {"seed": 1, "faults": [fault | {"delay_ms": 0}]}})
        host = opened.host("primary")
        with contextlib.suppress(HarnessError, OSError):  # it is held while the primary restarts
            host.write(0, bytes(4096))
        result = next(watched)
    record = result.record
    # The console's line and the close on the link are two streams: either may be read first.
    seen = [record["trigger"], *record["more_triggers"]]
    assert "digest-failed" in {one["rule"] for one in seen} and record["actions"] == []
    assert all(record["sets"][side]["complete"] for side in SIDES)
    assert {(side, "up") for side in SIDES} <= {(o["side"], o["step"]) for o in record["recovery"]}
