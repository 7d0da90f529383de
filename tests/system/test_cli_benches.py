"""The command line on wrong benches, on a controller by hand, and `freezeframe watch`: what it says,
and whose fault it says it is."""

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import COMMAND, Output, changed, freezeframe, simulated_bench, told
from journal import journal
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.roles import Serviceable


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Path]:
    """The bench file of a simulated pair that runs beside the test."""
    with simulated_bench(tmp_path) as path:
        yield path


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
        (["watch", "--dry-run", "--bench", "sim_autonomic"], "the pair would really act"),
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
    done = freezeframe("warmstart", "primary", "--yes", "--bench", str(wrong), cwd=tmp_path)
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
    done = freezeframe("run", "clean", "--bench", str(dark), cwd=tmp_path)
    assert done.returncode == 3
    assert "the secondary controller does not answer" in done.stderr.replace("\n", " ")


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
    line = ["warmstart", "primary", "--yes", "--bench", str(bench), "--json"]
    warm = told(freezeframe(*line, cwd=tmp_path))
    assert (warm["ok"], warm["boot_epoch"]) == (True, 2)
    assert warm["set"] > saved["set"]
    audited = journal()
    assert [(one["action"], one["about"], one["why"], one["result"]) for one in audited] == [
        ("frame", "primary", "save by hand, boot epoch 1", "ok"),
        ("frame", "primary", "warmstart by hand, confirmed with --yes, boot epoch 1", "ok"),
    ]
    assert {one["bench"] for one in audited} == {str(bench)}, "another one has that name, too"
    done = freezeframe("pull", "primary", "--bench", str(bench), "--json", cwd=tmp_path)
    pulled = told(done)
    assert (pulled["set"], pulled["complete"]) == (warm["set"], True)
    stored = StoredIncident.open(Path(pulled["incident"]))
    assert stored.altered() == []
    state = json.loads((stored.path / "primary" / "state.json").read_text())
    assert state["header"]["serial_number"] == "FFSIM-P-0001"
    older = freezeframe(
        "pull", "primary", "--set", str(saved["set"]), "--bench", str(bench), "--json", cwd=tmp_path
    )
    assert told(older)["set"] == saved["set"]
    assert freezeframe("pull", "secondary", "--bench", str(bench), cwd=tmp_path).returncode == 2


def _typed(answer: bytes, *arguments: str, cwd: Path) -> tuple[int, str]:
    """The status of a command on a terminal on which the answer was typed, and what it showed there."""
    terminal, its_end = pty.openpty()
    try:
        os.write(terminal, answer)
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=cwd, stdin=its_end, stderr=its_end, stdout=subprocess.PIPE,
            timeout=LIMIT_S,
        )  # fmt: skip
        return done.returncode, os.read(terminal, 65536).decode()
    finally:
        os.close(its_end)
        os.close(terminal)


def test_a_warmstart_by_hand_is_confirmed_and_aimed_on_its_own_line(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["warmstart", "primary", "--bench", str(bench)]
    done = freezeframe(*line, cwd=tmp_path)  # no terminal
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "add --yes" in done.stderr
    for answer in (b"n\n", b"\n", b"\x04"):
        status, shown = _typed(answer, *line, cwd=tmp_path)
        assert status == 2 and "nothing was sent" in shown
        assert "warmstart the primary controller of bench sim (FFSIM-P-0001 on " in shown
    monkeypatch.setenv("FREEZEFRAME_BENCH", str(bench))
    done = freezeframe("warmstart", "primary", "--yes", cwd=tmp_path)
    assert done.returncode == 2 and "--bench" in done.stderr
    # The variable aims what restarts nobody; and nobody has restarted by now.
    assert told(freezeframe("save", "primary", "--json", cwd=tmp_path))["boot_epoch"] == 1
    status, shown = _typed(b"y\n", *line, cwd=tmp_path)
    assert status == 0, shown
    audited = journal()
    assert [(one["why"], one["result"]) for one in audited] == [
        ("save by hand, boot epoch 1", "ok"),
        ("warmstart by hand, confirmed at the terminal, boot epoch 1", "ok"),
    ]


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
        assert secondary.set_faults(opened.identities["secondary"], plan, deadline_in(LIMIT_S)).ok
    process = subprocess.Popen(
        [*COMMAND, "watch", "--bench", str(bench)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output = Output(process)
        output.until(b"watching")
        uri = load_bench(bench).primary.host
        subprocess.run(["nbdcopy", str(_blob(tmp_path)), uri], check=True, timeout=200)
        # Armed again first, judged then.
        seen = output.until(b"watching") + output.until(b"incident: ")
        assert b"digest-failed" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 1
    finally:
        process.kill()
        process.wait()
    (path,) = (tmp_path / "incidents").iterdir()
    stored = StoredIncident.open(path)
    assert {side: one.complete for side, one in stored.record.sets.items()} == {
        "primary": True,
        "secondary": True,
    }
    assert stored.altered() == []


def test_a_watch_that_saw_no_write_proves_nothing(bench: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "watch", "--bench", str(bench)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output = Output(process)
        output.until(b"watching")
        process.send_signal(signal.SIGINT)
        assert b"stopped; 0 incidents" in output.until(b"saw no replicated write")
        assert process.wait(LIMIT_S) == 4
    finally:
        process.kill()
        process.wait()


def _blob(tmp_path: Path) -> Path:
    """As many bytes as the volume holds."""
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(1 << 20) * 128)
    return blob


def touched(bench: Path) -> dict[str, dict[str, str]]:
    done = freezeframe("check", str(bench), "--touch", "--json", cwd=bench.parent)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 3), done.stderr
    return {one["name"]: one for one in found["findings"]}


def exchanged(bench: Path, tmp_path: Path, key: str) -> Path:
    """The bench file with both sides' ``key`` exchanged."""
    described = load_bench(bench)
    first, second = (getattr(described.controller(side), key) for side in ("primary", "secondary"))
    text = (
        bench.read_text()
        .replace(first, "<first>")
        .replace(second, first)
        .replace("<first>", second)
    )
    path = tmp_path / f"{key}.toml"
    path.write_text(text)
    return path


def test_a_touched_bench_reports_all_that_is_wrong_at_once(bench: Path, tmp_path: Path) -> None:
    good = touched(bench)
    for side in ("primary", "secondary"):
        assert good[f"{side} controller"]["status"] == "ok"
        assert good[f"{side} console heard"]["detail"] == "the canary came"
    assert "frames received and sent" in good["link"]["detail"]
    assert good["setting protocol_version"]["status"] == "ok"
    assert ", primary, full duplex" in good["primary controller"]["detail"]

    consoles = touched(exchanged(bench, tmp_path, "console"))
    controls = touched(exchanged(bench, tmp_path, "control"))
    for side in ("primary", "secondary"):
        assert (
            "console lines of primary and secondary are exchanged"
            in consoles[f"{side} console heard"]["remedy"]
        )
        assert (
            "control lines of primary and secondary are exchanged"
            in controls[f"{side} controller"]["remedy"]
        )

    # A busy port and a line to nowhere, in one report; the other side is looked at all the same.
    described = load_bench(bench)
    with contextlib.closing(open_serial(described.primary.console)):
        lost = tmp_path / "lost.toml"
        lost.write_text(
            bench.read_text().replace(described.secondary.control, "/dev/there-is-none")
        )
        found = touched(lost)
    assert "in use" in found["primary console"]["detail"]
    assert "/dev/there-is-none" in found["secondary control"]["detail"]
    assert found["primary controller"]["status"] == "ok" and found["link"]["detail"]


def test_ports_lists_what_is_asked_for_and_listens(bench: Path) -> None:
    console = load_bench(bench).primary.console
    done = freezeframe("ports", console, "--listen", "0.1", "--json", cwd=bench.parent)
    (port,) = json.loads(done.stdout)["ports"]
    assert port["name"] == console and port["heard"]["kind"] in ("silent", "text")
    with contextlib.closing(open_serial(console)):
        said = freezeframe("ports", console, "--listen", "0.1", cwd=bench.parent).stdout
    assert "in use" in said
    assert freezeframe("ports", "socket://there:1", cwd=bench.parent).returncode == 2
