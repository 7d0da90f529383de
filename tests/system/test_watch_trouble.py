"""A watch whose disk is full, and a line that has gone: what is there is used, and nothing else."""

import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from console_adapter import ConsoleAdapter
from full_disk import limit_files
from reflex_bench import FRAMES, Bench, Line
from waiting import LIMIT_S, await_true
from watched_bench import complain, write_bench

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import SIDES, FrameFailed
from freezeframe.harness.core.frames import encode
from freezeframe.harness.core.policy import Health, HealthStatus, Rung
from freezeframe.harness.core.policy.guard import Acted
from freezeframe.harness.core.policy.messages import Saved
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.edge.serial_link import silent_line
from freezeframe.harness.errors import LineGoneError, RigError
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.roles import ByteLink
from freezeframe.harness.runs.policyfile import PolicyFile, WatchStart
from freezeframe.harness.runs.recording import ClosedRecording, new_recording
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch
from freezeframe.harness.watch.reflex_io import NewLine, ReflexConfig, write_frames
from freezeframe.harness.wire.control import Op

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


class Filling(Silent):
    """Once armed, its secondary complains, the first time while this process can write no file."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []
        self.is_back = threading.Event()

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            if not self.is_back.is_set():
                limit_files(0)
            complain(self._opened)

    def step(self, side: str, step: str, detail: str) -> None:
        self.told.append(step)
        if step == "full duplex":
            self.is_back.set()


class Telling(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)


def test_a_full_disk_ends_no_watch_and_the_next_incident_is_whole(tmp_path: Path) -> None:
    """Seen: the watch ended at the first hit."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Filling(opened)
        try:
            with Watch(opened, out_dir=tmp_path, view=view) as watched:
                assert view.is_back.wait(LIMIT_S), view.told
                limit_files(None)
                first, second = next(watched), next(watched)
        finally:
            limit_files(None)
    # It was instructed and restarted; what of it could be kept is its record in memory.
    record = first.record
    assert first.outcome == "fail" and record["trigger"]["rule"] == "digest-failed"
    assert [(one["side"], one["reply"]["status"]) for one in record["actions"]] == [
        ("primary", "ok"), ("secondary", "ok"),
    ]  # fmt: skip
    assert any("timeline.jsonl: File too large" in one for one in first.reasons)
    for side in SIDES:
        assert not record["sets"][side]["complete"]
        assert "File too large" in record["sets"][side]["reason"]
        assert (side, "up") in [(one["side"], one["step"]) for one in record["recovery"]]
    assert any(one.startswith("a recording has ended: /") for one in view.told)
    no_folder = [one for one in view.told if "no folder of an incident can be made" in one]
    assert len(no_folder) == 1 and "File too large" in no_folder[0]
    assert "a recording has ended: over" in view.told
    # Its folder is closed, and so is the next one's, which is of a bench that is well again.
    for result in (first, second):
        stored = StoredIncident.open(result.incident or tmp_path)
        assert stored.altered() == [] and stored.outcome == "fail"
    assert all(second.record["sets"][side]["complete"] for side in SIDES)
    assert not any("File too large" in one for one in second.reasons)
    assert len(list(tmp_path.glob("2*"))) == len(watched.results)


class Starting(Silent):
    """It waits for the storm guard's word, or for frames."""

    def __init__(self) -> None:
        self.health_seen: list[HealthStatus] = []
        self.is_decided = threading.Event()

    def health(self, status: HealthStatus) -> None:
        self.health_seen.append(status)
        if status.health.has_frames or status.why.startswith("storm guard"):
            self.is_decided.set()


def test_an_open_breaker_outlives_each_start_that_no_person_made(tmp_path: Path) -> None:
    """Seen: each start closed it, that of a service manager after a failure, too, and an orderly end
    forgot it."""
    acted = Acted(time.monotonic_ns(), "a kind", Rung.SAVE)
    file = PolicyFile(load_bench("sim"))
    file.write(Saved(ended="Ctrl-C", broken="12 saves in one hour", guard_log=(acted,)), {})

    def saved() -> Saved:
        found = file.read()
        assert found is not None
        return found[0]

    def started(start: WatchStart, *, dry_run: bool = False) -> Starting:
        view = Starting()
        with (
            run_directory() as run_dir,
            OpenBench(load_bench("sim"), run_dir) as opened,
            Watch(opened, out_dir=tmp_path, view=view, dry_run=dry_run, start=start),
        ):
            assert view.is_decided.wait(LIMIT_S), view.health_seen
        return view

    kept = "storm guard: 12 saves in one hour; recording until a person arms again"
    for dry_run in (False, True):
        view = started(WatchStart.UNATTENDED, dry_run=dry_run)
        assert view.health_seen[0] == HealthStatus(Health.DISARMED, kept)
        assert not any(one.health.has_frames for one in view.health_seen)
        assert (saved().broken, saved().guard_log) == ("12 saves in one hour", (acted,))
    # The process before was killed: nobody has ended it, so nobody has looked.
    file.write(replace(saved(), ended=""), {})
    view = started(WatchStart.TYPED)
    assert view.health_seen[0] == HealthStatus(Health.DISARMED, kept)
    # It has ended in order by now.
    view = started(WatchStart.TYPED)
    assert any(one.health.has_frames for one in view.health_seen)
    assert (saved().broken, saved().guard_log) == ("", ())


def test_an_incident_that_cannot_be_judged_ends_no_watch(tmp_path: Path) -> None:
    """Whatever is wrong with one: what was recorded of it stays, and the next is judged."""
    broken: list[dict[str, Any]] = [
        {"actions": [{}]},  # KeyError
        {"actions": None},  # TypeError
        {},
    ]
    view = Telling()
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        watched = Watch(opened, out_dir=tmp_path, view=view)
        with watched:
            for wrong in broken:
                recording = new_recording(opened, tmp_path, view)
                recording.incident.record |= wrong
                watched.station.closed.put(ClosedRecording(recording, "fail", (), ()))
            results = [next(watched) for _ in broken]
    assert watched.station.failure is None
    *wrongs, well = results
    assert well.outcome == "fail" and well.error is None
    for one in wrongs:
        assert one.outcome == "rig-trouble" and isinstance(one.error, RigError)
        assert one.incident is not None and one.incident.is_dir()
        assert str(one.error) in one.reasons and str(one.error) in view.told
    assert [str(one.error).partition(" could not be closed: ")[2] for one in wrongs] == [
        "internal error: KeyError: 'side'",
        "internal error: TypeError: 'NoneType' object is not iterable",
    ]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def refuses_what_is_written(opened: OpenBench, link: ByteLink) -> None:
    """A controller is not judged hung, and its power is not switched, because its adapter is out."""
    with pytest.raises(LineGoneError):
        link.write(b"frame")
    with pytest.raises(LineGoneError):
        link.read(1, time.monotonic_ns())
    controller = opened.controllers["secondary"]
    with pytest.raises(LineGoneError):
        controller.identify(deadline_in(LIMIT_S))
    with pytest.raises(LineGoneError):
        controller.freeze_reply(encode(Op.WARMSTART, 1, b""), deadline_in(LIMIT_S))
    (attempt,) = write_frames([("secondary", b"frame", link.fileno())])  # as the reflex does
    assert isinstance(attempt.event(1), FrameFailed)


@pytest.mark.parametrize("line", ["console", "control", "shared"])
def test_the_number_of_a_lost_line_is_passed_to_nobody(line: str, tmp_path: Path) -> None:
    """Seen: the next file that was opened had it, and a reflex that was started meanwhile read that
    file, or wrote its frame there."""
    is_shared = line == "shared"
    is_console = line == "console" or is_shared
    with run_directory() as run_dir:
        adapter = ConsoleAdapter(run_dir / f"secondary.{'console' if is_shared else line}")
        strangers: list[int] = []
        try:
            bench = load_bench(write_bench(tmp_path, line, adapter.port))
            with OpenBench(bench, run_dir) as opened:
                adapter.unplug()
                await_true(lambda: not listens(adapter.port), LIMIT_S, "the adapter to go")
                for _ in range(3):
                    with pytest.raises(RigError):
                        opened.reopen_line("secondary", console=is_console)
                    strangers += os.pipe()  # the lowest free numbers
                    link = opened.controllers["secondary"].link
                    used = opened.consoles["secondary"] if is_console else link
                    assert used.fileno() not in strangers
                    assert opened.is_shared("secondary") is is_shared
                    if is_console:  # nothing comes, and nothing ends
                        assert used.read(1, time.monotonic_ns()) == b""
                    if not is_console or is_shared:
                        refuses_what_is_written(opened, link)
                adapter.plug()
                await_true(lambda: listens(adapter.port), LIMIT_S, "the adapter")
                opened.reopen_line("secondary", console=is_console)
                assert opened.identify("secondary", deadline_in(LIMIT_S)).serial_number
                complain(opened)
                again = opened.consoles["secondary"]
                if line == "console":  # a shared line's bytes were read with the answers
                    assert again.read(64, deadline_in(LIMIT_S))
        finally:
            adapter.close()
            for fd in strangers:
                os.close(fd)


class WithoutAdapter(Bench):
    """Of its secondary's line, which is console and control, only the stand-in is there."""

    def config(self, rules: list[ConsoleRule]) -> ReflexConfig:
        self.stand_in = silent_line("secondary")
        made = super().config(rules)
        primary, secondary = made.streams
        streams = [primary, msgspec.structs.replace(secondary, fd=self.stand_in.fileno())]
        control = made.control | {"secondary": self.stand_in.fileno()}
        return msgspec.structs.replace(made, streams=streams, control=control)

    def fds(self) -> list[int]:
        return [*super().fds(), self.stand_in.fileno()]


def test_what_stands_in_for_a_line_takes_no_frame_and_does_not_end(tmp_path: Path) -> None:
    """Also when the line is back."""
    bench, again = WithoutAdapter(tmp_path), Line()
    try:
        bench.arm()
        bench.console["primary"].say(b"Digest integrity check FAILED\r\n")
        (failed,), (sent,) = bench.until(events.FrameFailed), bench.until(events.FrameSent)
        assert (failed.side, sent.side) == ("secondary", "primary")
        assert failed.error == "Broken pipe"
        message = msgspec.json.encode(
            NewLine(side="secondary", console="secondary console", fds=["console", "control"])
        )
        socket.send_fds(bench.lines, [message], [again.rig, again.rig])
        text = b"second is ill\r\n"
        again.say(text)
        assert bench.recorded("secondary", len(text)) == text
        bench.arm()
        again.say(text)
        frame = FRAMES["console"]["secondary"]
        assert again.hear(len(frame)) == frame
        bench.stop()
        assert bench.count(events.StreamEnded) == 0 and bench.reflex.exit_status == 0
    finally:
        bench.reflex.kill_if_running()
        bench.stand_in.close()
        again.close()
        for line in (*bench.console.values(), *bench.control.values()):
            line.close()
        os.close(bench.trigger_read)
        os.close(bench.trigger_write)
