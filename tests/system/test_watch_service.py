"""`freezeframe watch` under a service manager: a datagram socket in its place."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from command import COMMAND

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.edge.netns import missing_capabilities

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]

LIMIT_S = 120.0
UNIT = Path(__file__).parents[2] / "docs/systemd/freezeframe-watch@.service"


def test_a_watch_reports_to_its_service_manager_and_prints_plain_lines(tmp_path: Path) -> None:
    source = builtin_folder()
    text = (source / "sim.toml").read_text().replace('"rules/', f'"{source}/rules/')
    notify = '[notify]\ncommand = ["sh", "-c", "cat > notice"]\n'
    (tmp_path / "lab.toml").write_text(f"{text}\n{notify}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1500000",
            "STATE_DIRECTORY": str(tmp_path / "state"), "TERM": "xterm-256color",
        }  # fmt: skip
        with (
            (tmp_path / "lines").open("wb") as lines,
            subprocess.Popen(
                [*COMMAND, "watch", "--bench", "lab.toml", "--out", "found"],
                cwd=tmp_path, env=environment, stdout=lines, stderr=lines,
            ) as process,
        ):  # fmt: skip
            try:
                seen: list[str] = []

                def until(pattern: str) -> None:
                    while not any(re.fullmatch(pattern, one) for one in seen):
                        seen.extend(manager.recv(65536).decode().split("\n"))

                until("READY=1")
                until(r"STATUS=armed( \(unrehearsed\).*)?")
                seen.clear()
                until("WATCHDOG=1")
                process.send_signal(signal.SIGTERM)
                until("STOPPING=1")
                assert process.wait(LIMIT_S) in (0, 4)  # nobody wrote, so the link showed nothing
            finally:
                process.kill()
    printed = (tmp_path / "lines").read_text()
    assert "\x1b" not in printed and "\r" not in printed
    assert "watching;" in printed and "stopped; 0 incidents\n" in printed
    assert (tmp_path / "state/sim.audit.jsonl").exists()
    notice = json.loads((tmp_path / "notice").read_text())
    assert (notice["event"], notice["bench"]) == ("disarmed", "sim")


def test_the_unit_keeps_what_the_code_promises(tmp_path: Path) -> None:
    rows = [one.partition("=") for one in UNIT.read_text().splitlines()]
    unit = {key: value for key, _, value in rows}
    assert unit["Type"] == "notify" and int(unit["WatchdogSec"]) > 0
    # Its children have sessions of their own, and are ended by it.
    assert unit["KillMode"] == "mixed" and unit["StateDirectory"] == "freezeframe"
    assert "watch --bench" in unit["ExecStart"] and "${STATE_DIRECTORY}" in unit["ExecStart"]
