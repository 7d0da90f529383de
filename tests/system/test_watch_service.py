"""`freezeframe watch` under a service manager: a datagram socket in its place."""

import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from command import COMMAND
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.bench.opened import IDENTIFY_TIMEOUT_S
from freezeframe.harness.cli.app import app
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.errors import RigError, UsageError, WireError
from freezeframe.harness.runs.arming import PREPARE_TIMEOUT_S
from freezeframe.harness.runs.service import BEATS_PER_LIMIT
from freezeframe.harness.runs.station import DISARM_TIMEOUT_S, STOP_S, TICK_S
from freezeframe.harness.runs.watching import END_S

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]

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


def accepted(command_line: str) -> dict[str, Any]:
    """The parameters of that command line, as the program's own parser reads them; it does nothing.
    UsageError of the parser: it does not."""
    program, *arguments = shlex.split(command_line)
    root: Any = typer.main.get_command(app)
    context = root.make_context(program, list(arguments))
    name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
    found: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return {"command": name} | found


def test_the_unit_keeps_what_the_code_promises() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    # systemd itself puts in the instance and the folder.
    line = service["ExecStart"].replace("%i", "lab")
    line = line.replace("${STATE_DIRECTORY}", "/var/lib/freezeframe")
    found = accepted(line)
    assert (found["command"], found["bench"]) == ("watch", "/etc/freezeframe/lab.toml")
    assert found["out"] == Path("/var/lib/freezeframe/incidents") and not found["dry_run"]
    with pytest.raises(Exception, match="--bank"):  # the parser does refuse
        accepted(line.replace("--bench", "--bank"))
    # The watchdog is fed between two turns of the station, each of which has these bounds; a start
    # identifies both; an end lets a recovery come to its own.
    longest_turn_s = max(PREPARE_TIMEOUT_S, DISARM_TIMEOUT_S, STOP_S, TICK_S)
    assert service.getint("WatchdogSec") > BEATS_PER_LIMIT * longest_turn_s
    assert service.getint("TimeoutStartSec") > 2 * (IDENTIFY_TIMEOUT_S + PREPARE_TIMEOUT_S)
    assert service.getint("TimeoutStopSec") > END_S
    # Its children have sessions of their own, and are ended by it.
    assert (service["Type"], service["KillMode"]) == ("notify", "mixed")
    mends_nothing = service["RestartPreventExitStatus"].split()
    is_good = service["SuccessExitStatus"].split()
    assert mends_nothing == [str(UsageError.exit_code)]
    assert str(RigError.exit_code) not in (*mends_nothing, *is_good), "it is started again"
    assert str(WireError.exit_code) in is_good
