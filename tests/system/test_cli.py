"""The command line as a technician meets it: what it prints, what it leaves, and whose fault it
says it is."""

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
from typing import Any

import pytest

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.roles import Serviceable

COMMAND = [sys.executable, "-m", "freezeframe.harness.cli"]
LIMIT_S = 90


def freezeframe(
    *arguments: str, cwd: Path, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=limit_s
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def read_until(process: subprocess.Popen[bytes], end: bytes, limit_s: float) -> bytes:
    """What ``process`` prints up to ``end``; a bounded wait."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    seen = b""
    deadline = time.monotonic() + limit_s
    while end not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"waited {limit_s} s for {end!r}; there is {seen!r}"
        if select.select([fd], [], [], left)[0]:
            data = os.read(fd, 65536)
            assert data, f"ended before {end!r}; there is {seen!r}"
            seen += data
    return seen


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Path]:
    """The bench file of a simulated pair that runs beside the test."""
    process = subprocess.Popen(
        [*COMMAND, "sim", "--json", "--dir", str(tmp_path / "sim")],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        yield Path(json.loads(read_until(process, b"}\n", 30))["bench"])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def changed(bench: Path, pattern: str, replacement: str) -> Path:
    """A copy of the bench file with one thing changed."""
    text, count = re.subn(pattern, replacement, bench.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    copy = bench.with_name("changed.toml")
    copy.write_text(text)
    return copy


# --- run ------------------------------------------------------------------------------------------------------
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
    assert result["trigger"]["rule"] == "digest-failed"
    assert 0 < result["trigger"]["reaction_us"] < 1e6
    more = json.loads((Path(result["incident"]) / "incident.json").read_text())["more_triggers"]
    assert more[0]["rule"] == "came-up"


def test_without_a_terminal_no_escape_code_is_printed_and_the_incident_is_named(
    tmp_path: Path,
) -> None:
    done = freezeframe("run", "bit_flip_receiver", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "outcome" in done.stdout
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
    read_until(process, b"host writes", 30)
    (path,) = (tmp_path / "found").iterdir()
    deadline = time.monotonic() + 30
    while not (path / "host.journal").exists() or (path / "host.journal").stat().st_size < 4096:
        assert time.monotonic() < deadline, "no host writes"
        select.select([], [], [], 0.01)
    return process, path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_a_run_in_order(number: signal.Signals, tmp_path: Path) -> None:
    process, path = start_run(tmp_path, "lost_ack")
    process.send_signal(number)
    assert process.wait(30) == 130
    stored = StoredIncident.open(path)
    assert stored.outcome == "interrupted"
    assert stored.broken_sums() == []


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
        said, _ = process.communicate(timeout=30)
        # Before its first line Python itself takes the signal.
        assert process.returncode == 130 or b"harness" not in said, said
        assert b"Traceback" not in said or b"harness" not in said, said


def test_what_is_read_by_head_is_one_row_a_line_and_no_failure(tmp_path: Path) -> None:
    done = freezeframe("run", "neg_ack", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    assert [line for line in lines if line.startswith("reaction") and "answered after" in line]
    assert [
        line
        for line in lines
        if line.startswith("look first at  ") and "drbd.block_id == 0x" in line
    ]
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
    deadline = time.monotonic() + 10
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
    assert process.wait(60) == 3
    assert StoredIncident.open(path).outcome == "rig-trouble"
    assert "blind at the end" in (path / "incident.json").read_text()


@pytest.mark.parametrize(
    ("victim", "number", "within_s", "said"),
    [
        ("freezeframe.drivers.hosts.writer", signal.SIGSTOP, 20, "silent for 10 s"),
        ("firmware_sim supply", signal.SIGKILL, 15, "power supply"),
    ],
)
def test_a_frozen_host_and_a_lost_supply_are_told_soon(
    tmp_path: Path, victim: str, number: signal.Signals, within_s: float, said: str
) -> None:
    """10 s for a process that says nothing, and 1 s for an instrument that does not answer; the
    rest is the run's end."""
    process, path = start_run(tmp_path, "clean")
    (pid,) = (pid for pid in _descendants(process.pid) if victim in _command(pid))
    os.kill(pid, number)
    assert process.wait(within_s) == 3
    stored = StoredIncident.open(path)
    assert stored.outcome == "rig-trouble"
    assert said in " ".join(stored.record["reasons"])


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


# --- usage and rig --------------------------------------------------------------------------------------------
def test_a_wrong_bench_file_names_file_line_key_and_what_is_allowed(tmp_path: Path) -> None:
    source = load_bench("sim").path.read_text()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(
        source.replace('on_hung_warmstart = "power-cycle"', 'on_hung_warmstart = "pray"')
    )
    for command in (["check", str(wrong)], ["run", "clean", "--bench", str(wrong)]):
        done = freezeframe(*command, cwd=tmp_path)
        assert done.returncode == 2
        line = wrong.read_text().splitlines().index('on_hung_warmstart = "pray"') + 1
        assert f"wrong.toml:{line}: policy.on_hung_warmstart" in (
            done.stdout + done.stderr
        ).replace("\n", "")
        assert "power-cycle" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no_such_scenario"], "no such scenario"),
        (["run", "clean", "--bench", "no_such_bench"], "no such bench"),
        (["show", "last", "--out", "nowhere"], "no incidents here"),
        (["save", "tertiary", "--bench", "sim"], "allowed: primary, secondary"),
        (["run", "clean", "--seed", "-1"], "--seed"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = freezeframe(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--seed", "x"], "--seed"),
        (["frobnicate"], "frobnicate"),
        (["warmstart", "primary"], "--bench"),
        (["pull", "primary", "--bench", "sim", "--set", "-1"], "--set"),
        (["run", "no_such_scenario"], "no such scenario"),
    ],
)
def test_a_usage_error_with_json_is_one_object_too(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = freezeframe(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert told(done)["outcome"] == "usage"
    assert said in told(done)["error"]["text"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "no such folder" in freezeframe("list", "--out", "nowhere", cwd=tmp_path).stdout


def test_doctor_and_check_say_what_is_there(tmp_path: Path) -> None:
    done = freezeframe("doctor", "--json", cwd=tmp_path)
    names = {one["name"] for one in told(done)["findings"]}
    assert {"python", "kernel", "tshark", "capabilities"} <= names
    done = freezeframe("check", "sim", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for kind in ("clean", "neg_ack", "hung_warmstart"):
        assert f"scenario {kind}" in done.stdout


def test_a_missing_port_is_named(bench: Path, tmp_path: Path) -> None:
    wrong = changed(
        bench, r'^console = ".*secondary\.console"', 'console = "/dev/serial/by-id/usb-none"'
    )
    done = freezeframe("run", "clean", "--bench", str(wrong), "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert "/dev/serial/by-id/usb-none is not there" in told(done)["error"]["text"]
    assert told(done)["incident"] is None


def test_a_port_in_use_names_its_holder(bench: Path, tmp_path: Path) -> None:
    with _opened(load_bench(bench), tmp_path) as opened:
        assert opened.identities["primary"].serial_number == "FFSIM-P-0001"
        done = freezeframe("save", "primary", "--bench", str(bench), cwd=tmp_path)
    assert done.returncode == 3
    assert "in use" in done.stderr
    assert str(os.getpid()) in done.stderr


def test_a_wrong_device_is_not_touched(bench: Path, tmp_path: Path) -> None:
    wrong = changed(bench, "FFSIM-P-0001", "FFSIM-P-9999")
    done = freezeframe("warmstart", "primary", "--bench", str(wrong), cwd=tmp_path)
    assert done.returncode == 3
    assert "FFSIM-P-0001" in done.stderr
    assert "FFSIM-P-9999" in done.stderr
    with _opened(load_bench(bench), tmp_path) as opened:
        assert opened.identities["primary"].boot_epoch == 1


def test_a_dead_controller_is_rig_trouble_within_its_bound(bench: Path, tmp_path: Path) -> None:
    with _opened(load_bench(bench), tmp_path) as opened:
        assert opened.power is not None
        opened.power.set_output("secondary", False)
    # Without its supply nobody switches it on again.
    dark = changed(bench, r"^\[power\]\n(.+\n)*", "")
    dark.write_text(dark.read_text().replace('"power-cycle"', '"give-up"'))
    began = time.monotonic()
    done = freezeframe("run", "clean", "--bench", str(dark), cwd=tmp_path)
    assert done.returncode == 3
    assert "the secondary controller does not answer" in done.stderr.replace("\n", " ")
    assert time.monotonic() - began < 40


def test_a_link_without_traffic_is_rig_trouble_not_a_healthy_pair(
    bench: Path, tmp_path: Path
) -> None:
    elsewhere = changed(bench, '^interface = "repl0"', 'interface = "lo"')
    done = freezeframe("run", "clean", "--bench", str(elsewhere), "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "saw no replicated write" in told(done)["error"]["text"]


# --- one controller by hand, and the watch --------------------------------------------------------------------
@contextlib.contextmanager
def _opened(bench: Bench, tmp_path: Path) -> Iterator[OpenBench]:
    with OpenBench(bench, tmp_path) as opened:
        yield opened


def test_save_warmstart_and_pull_by_hand(bench: Path, tmp_path: Path) -> None:
    saved = told(freezeframe("save", "primary", "--bench", str(bench), "--json", cwd=tmp_path))
    assert (saved["ok"], saved["boot_epoch"]) == (True, 1)
    warm = told(freezeframe("warmstart", "primary", "--bench", str(bench), "--json", cwd=tmp_path))
    assert (warm["ok"], warm["boot_epoch"]) == (True, 2)
    assert warm["set"] > saved["set"]
    done = freezeframe("pull", "primary", "--bench", str(bench), "--json", cwd=tmp_path)
    pulled = told(done)
    assert (pulled["set"], pulled["complete"]) == (warm["set"], True)
    stored = StoredIncident.open(Path(pulled["incident"]))
    assert stored.broken_sums() == []
    state = json.loads((stored.path / "primary" / "state.json").read_text())
    assert state["header"]["serial_number"] == "FFSIM-P-0001"
    older = freezeframe(
        "pull", "primary", "--set", str(saved["set"]), "--bench", str(bench), "--json", cwd=tmp_path
    )
    assert told(older)["set"] == saved["set"]
    assert freezeframe("pull", "secondary", "--bench", str(bench), cwd=tmp_path).returncode == 2


def test_watch_makes_an_incident_of_each_trigger_until_stopped(bench: Path, tmp_path: Path) -> None:
    with _opened(load_bench(bench), tmp_path) as opened:
        secondary = opened.controllers["secondary"]
        assert isinstance(secondary, Serviceable)
        plan = {
            "seed": 1,
            "faults": [
                {
                    "kind": "bit_flip_receiver",
                    "side": "secondary",
                    "at_write": 2,
                    "count": 1,
                    "delay_ms": 0,
                }
            ],
        }
        assert secondary.set_faults(opened.identities["secondary"], plan, deadline_in(5)).ok
    process = subprocess.Popen(
        [*COMMAND, "watch", "--bench", str(bench)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        read_until(process, b"watching", 30)
        uri = load_bench(bench).primary.host
        subprocess.run(["nbdcopy", str(_blob(tmp_path)), uri], check=True, timeout=60)
        seen = read_until(process, b"incident: ", 60) + read_until(process, b"watching", 30)
        assert b"digest-failed" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
    (path,) = (tmp_path / "incidents").iterdir()
    stored = StoredIncident.open(path)
    assert {side: one["complete"] for side, one in stored.record["sets"].items()} == {
        "primary": True,
        "secondary": True,
    }
    assert stored.broken_sums() == []


def _blob(tmp_path: Path) -> Path:
    """As many bytes as the volume holds."""
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(1 << 20) * 128)
    return blob
