"""`freezeframe run` as a technician meets it: what it prints, what it leaves, how it ends."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import COMMAND, Output, freezeframe, told
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.incidents.store import StoredIncident


def test_run_prints_one_object(tmp_path: Path) -> None:
    done = freezeframe(
        "run", "bit_flip_sender", "--seed", "4", "--json", "--out", "found", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = told(done)
    assert {
        "outcome",
        "incident",
        "trigger",
        "actions",
        "sets",
        "data_equal",
        "lost_acked_writes",
        "capture_drops",
        "digests_checked",
    } <= set(result)
    assert result["outcome"] == "pass"
    assert Path(result["incident"]).parent == tmp_path / "found"
    assert {"rule", "side", "offset", "times"} <= set(result["trigger"])
    times = result["trigger"]["times"]
    assert (
        times["t_arrival_ns"]
        <= times["t_match_ns"]
        <= times["t_frame_ns"]
        <= times["t_frame_done_ns"]
        <= times["t_ack_ns"]
    )
    for one in result["sets"].values():
        assert one["complete"] is True
        assert one["bytes"] > 0
        assert re.fullmatch("[0-9a-f]{64}", one["sha256"])


def test_a_clean_run_leaves_nothing_unless_asked(tmp_path: Path) -> None:
    done = freezeframe("run", "clean", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert told(done)["incident"] is None
    assert list((tmp_path / "incidents").iterdir()) == []


def test_a_trigger_from_before_the_bench_was_armed_fails_the_run_and_hangs_nothing(
    tmp_path: Path,
) -> None:
    """It has no frames, so no recovery follows; what is in the log of a pair that just came up is
    no secret either."""
    shutil.copytree(load_bench("sim").path.parent, tmp_path / "bench")
    (tmp_path / "bench/rules/sim.toml").write_text(
        '[[rule]]\nname = "came-up"\nsource = "console"\nliteral = "pair state"\n'
    )
    (tmp_path / "small.toml").write_text(
        'name = "small"\ntitle = "small"\nworkload.bytes_mib = 1\nexpect.detected = false\n'
    )
    done = freezeframe("run", "small.toml", "--bench", "bench/sim.toml", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert told(done)["actions"] == []
    assert "unexpected trigger came-up" in told(done)["reasons"][0]


def test_an_early_trigger_is_not_taken_for_the_one_that_is_acted_on(tmp_path: Path) -> None:
    shutil.copytree(load_bench("sim").path.parent, tmp_path / "bench")
    rules = tmp_path / "bench/rules/sim.toml"
    came_up = '[[rule]]\nname = "came-up"\nsource = "console"\nliteral = "pair state"\n\n'
    rules.write_text(came_up + rules.read_text())
    done = freezeframe(
        "run", "bit_flip_receiver", "--bench", "bench/sim.toml", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    result = told(done)
    assert result["trigger"]["rule"] in load_scenario("bit_flip_receiver").expect.rules
    assert 0 < result["trigger"]["reaction_us"] < 1e6
    more = json.loads((Path(result["incident"]) / "incident.json").read_text())["more_triggers"]
    assert more[0]["rule"] == "came-up"


def test_without_a_terminal_no_escape_code_is_printed_and_the_incident_is_named(
    tmp_path: Path,
) -> None:
    done = freezeframe("run", "bit_flip_receiver", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "result" in done.stdout
    path = Path(done.stdout.rpartition("incident: ")[2].strip())
    shown = freezeframe("show", "last", cwd=tmp_path)
    assert shown.returncode == 0
    assert str(path) in shown.stdout
    listed = told(freezeframe("list", "--json", cwd=tmp_path))["incidents"]
    assert [(one["id"], one["outcome"]) for one in listed] == [(path.name, "pass")]
    rows = told(freezeframe("show", path.name[:20], "--timeline", "--json", cwd=tmp_path))[
        "timeline"
    ]
    assert any(row["event"] == "frame-sent" for row in rows)


def start_run(tmp_path: Path, scenario: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A run under way: its host writes have begun."""
    process = subprocess.Popen(
        [*COMMAND, "run", scenario, "--out", "found"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    Output(process).until(b"host writes")
    (path,) = (tmp_path / "found").iterdir()
    deadline = time.monotonic() + LIMIT_S
    while not (path / "host.journal").exists() or (path / "host.journal").stat().st_size < 4096:
        assert time.monotonic() < deadline, "no host writes"
        select.select([], [], [], 0.01)
    return process, path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_a_run_in_order(number: signal.Signals, tmp_path: Path) -> None:
    process, path = start_run(tmp_path, "lost_ack")
    process.send_signal(number)
    assert process.wait(LIMIT_S) == 130
    stored = StoredIncident.open(path)
    assert stored.outcome == "interrupted"
    assert stored.altered() == []


def test_ctrl_c_at_any_moment_of_the_start_shows_no_traceback(tmp_path: Path) -> None:
    for delay_s in (0.12, 0.25, 0.5, 1.0):
        process = subprocess.Popen(
            [*COMMAND, "run", "clean", "--out", "found"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        select.select([], [], [], delay_s)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT_S)
        # Before the command's first line Python itself takes the signal, and shows what it was
        # importing: of the package only what leads there.
        shown = set(re.findall(rb"freezeframe/([\w/]+)\.py", said))
        early = {b"__init__", b"harness/__init__", b"harness/cli/__init__", b"harness/cli/__main__"}
        assert process.returncode == 130 or shown <= early | {b"harness/cli/interrupt"}, said
        assert b"Traceback" not in said or shown <= early | {b"harness/cli/interrupt"}, said


def test_what_is_read_by_head_is_one_row_a_line_and_no_failure(tmp_path: Path) -> None:
    done = freezeframe("run", "neg_ack", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    assert [line.split("  ")[0] for line in lines[:3]] == ["result", "cause", "next"]
    assert "Trigger link-neg-ack on the secondary link" in lines[0]
    assert "drbd.block_id == 0x" in lines[2]
    assert [line for line in lines if line.startswith("instructed") and "after the trigger" in line]
    for step in ("frame out", "up", "set pulled"):
        assert f"primary: {step}" in done.stderr
    assert "pair: full duplex" in done.stderr
    pipe = subprocess.run(
        [
            "bash",
            "-c",
            f"{' '.join(COMMAND)} show last --timeline | head -1; echo ${{PIPESTATUS[0]}}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert pipe.stdout.splitlines()[-1] == "0"
    assert pipe.stderr == ""


def test_a_killed_run_leaves_a_readable_incident_and_no_process(tmp_path: Path) -> None:
    process, path = start_run(tmp_path, "lost_ack")
    children = set(_descendants(process.pid))
    assert len(children) >= 6  # reflex, linkwatch, workload, supply and two controllers
    process.kill()
    process.wait()
    deadline = time.monotonic() + LIMIT_S
    while left := [_command(pid) for pid in children if not _is_zombie(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        select.select([], [], [], 0.05)
    done = freezeframe("list", "--out", "found", "--json", cwd=tmp_path)
    assert [one["outcome"] for one in told(done)["incidents"]] == ["interrupted"]
    shown = freezeframe("show", str(path), "--timeline", cwd=tmp_path)
    assert shown.returncode == 0
    assert "INTERRUPTED" in shown.stdout
    assert (path / "link.pcapng").stat().st_size > 1000
    assert (path / "primary" / "console.log").stat().st_size > 100


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.parametrize(
    "watcher", ["freezeframe.harness.watch.reflex", "freezeframe.harness.watch.linkwatch"]
)
def test_a_watcher_that_hangs_is_rig_trouble_not_a_healthy_pair(
    tmp_path: Path, watcher: str
) -> None:
    process, path = start_run(tmp_path, "clean")
    (pid,) = (pid for pid in _descendants(process.pid) if watcher in _command(pid))
    os.kill(pid, signal.SIGSTOP)
    assert process.wait(LIMIT_S) == 3
    assert StoredIncident.open(path).outcome == "rig-trouble"
    assert "blind at the end" in (path / "incident.json").read_text()


def test_no_write_goes_out_before_the_link_is_watched(tmp_path: Path) -> None:
    """The link's watch stops itself before its first step."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'freezeframe.harness.watch.linkwatch' in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    done = subprocess.run(
        [*COMMAND, "run", "clean", "--out", "found"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "linkwatch did not become ready" in done.stderr
    assert "waiting for full duplex" in done.stderr and "host writes" not in done.stderr


@pytest.mark.parametrize(
    ("victim", "number", "said"),
    [
        ("freezeframe.drivers.hosts.writer", signal.SIGSTOP, "silent for 10 s"),
        ("firmware_sim supply", signal.SIGKILL, "power supply"),
    ],
)
def test_a_frozen_host_and_a_lost_supply_end_the_run(
    tmp_path: Path, victim: str, number: signal.Signals, said: str
) -> None:
    """After 10 s for a process that says nothing, and 1 s for an instrument that does not answer:
    neither would ever end by itself."""
    process, path = start_run(tmp_path, "clean")
    (pid,) = (pid for pid in _descendants(process.pid) if victim in _command(pid))
    os.kill(pid, number)
    assert process.wait(LIMIT_S) == 3
    stored = StoredIncident.open(path)
    assert stored.outcome == "rig-trouble"
    assert said in " ".join(stored.record.reasons)


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    script = "mount -t tmpfs -o size=8m tmpfs small && " + " ".join(
        [*COMMAND, "run", "clean", "--json", "--keep", "--out", "small"]
    )
    # The mount is the test's own: it is gone with the namespace.
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--map-root-user",
            "sh",
            "-c",
            f"{script}; code=$?; cat small/*/incident.json >&2; exit $code",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 3, done.stdout + done.stderr
    assert "No space left on device" in done.stdout
    assert '"outcome": "' in done.stderr


@pytest.mark.parametrize("moment", ["command", "exit"])
def test_ctrl_c_outside_of_a_commands_body_has_its_exit_status(moment: str) -> None:
    """Between the lines of two commands, and while the interpreter ends with the result printed."""
    code = (
        "import atexit, os, signal\n"
        "from freezeframe.harness.cli import app\n"
        "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "app.app.command('interrupted')(interrupt)\n"
        f"{'atexit.register(interrupt)' if moment == 'exit' else ''}\n"
        "app.main()\n"
    )
    name = "interrupted" if moment == "command" else "doctor"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, timeout=LIMIT_S)
    assert done.returncode == (130 if moment == "command" else 0), done.stderr
    assert b"Traceback" not in done.stderr
