"""``list``, ``search``, ``show`` and ``prune`` as a person types them, on incidents of ours and of
an attacker."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app

RUNNER = CliRunner()
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m[bold red]\u202e\x9b\x00/../../etc/passwd"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in (RECEIVER, SENDER):
        golden_incidents.unpack(name, tmp_path / "incidents")
    return tmp_path / "incidents"


def invoke(*arguments: object) -> Any:
    return RUNNER.invoke(app, [str(one) for one in arguments], env={"COLUMNS": "300"})


def told(*arguments: object) -> Any:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_list_counts_kinds(out: Path) -> None:
    rows = told("list", "--out", out)["incidents"]
    assert [row["scenario"] for row in rows] == [RECEIVER, SENDER] and {
        row["seen"] for row in rows
    } == {2}
    assert rows[0]["seed"] == 1 and rows[0]["data_equal"] is True
    kinds = told("list", "--out", out, "--kinds")["kinds"]
    assert [text[:12] for text in kinds.values()] == ["seen 2 times"]
    done = invoke("list", "--out", out, "--kinds")
    assert "Digest integrity check FAILED: #s +#" in " ".join(done.stdout.split())


def test_search_and_show_tell_of_the_kind(out: Path) -> None:
    found = told("search", "link-digest", "--out", out)["incidents"]
    assert [one["scenario"] for one in found] == [SENDER]
    missed = invoke("search", "nonesuch", "--out", out, "--json")
    assert missed.exit_code == 2 and json.loads(missed.stdout) == {"incidents": []}
    assert invoke("search", "nonesuch", "--out", out).exit_code == 2
    assert told("show", found[0]["id"], "--out", out)["recurrence"].startswith("seen 2 times")
    done = invoke("show", "last", "--out", out)
    assert "this kind: seen 2 times" in done.stdout
    assert invoke("search", "", "--out", out).exit_code == 2
    assert invoke("search", "digest", "--out", out).stdout.count("pass  digest-failed") == 2
    assert told("search", "digest", "integ", "--out", out) == told(
        "search", "digest integ", "--out", out
    )
    assert len(told("search", "digest", "integ", "--out", out)["incidents"]) == 2
    assert invoke("search", "digest", "nonesuch", "--out", out).exit_code == 2


def test_prune_tells_before_it_acts(out: Path) -> None:
    assert told("prune", "--keep-gib", 0, "--dry-run", "--out", out) | {"total_bytes": 0, "left_bytes": 0} == {
        "removed": [], "would_remove": [], "total_bytes": 0, "left_bytes": 0, "enough": False
    }  # fmt: skip
    assert told("prune", "--keep-gib", 1, "--out", out)["enough"] is True
    assert invoke("prune", "--keep-gib", "-1", "--out", out).exit_code == 2
    assert invoke("prune", "--keep-gib", "nan", "--out", out).exit_code == 2


def attack(stored: Path) -> None:
    """Everything that an incident's maker decides, made to hurt."""
    record = json.loads((stored / "incident.json").read_text())

    def poisoned(value: Any) -> Any:
        match value:
            case str():
                return value + ESCAPES
            case list():
                return [poisoned(one) for one in value]
            case dict():
                return {key: poisoned(one) for key, one in value.items()}
        return value

    bad = poisoned(record) | {"outcome": "fail", "id": "../../../etc", ESCAPES: ESCAPES}
    bad["trigger"] |= {"side": "secondary", "source": "console"}
    for side in ("primary", "secondary"):
        bad["sets"][side]["path"] = "/etc/passwd"
    (stored / "incident.json").write_text(json.dumps(bad))
    (stored / "secondary" / "console.log").write_bytes(ESCAPES.encode() * 1000)
    (stored / "SHA256SUMS").write_text("0" * 64 + "  ../../../../etc/passwd\n")
    with (stored / "timeline.jsonl").open("a") as rows:
        rows.write(
            json.dumps({"t_ns": 10**40, "source": ESCAPES, "side": [], "event": {ESCAPES: 1}})
            + "\n"
        )
        rows.write("[" * 100_000 + "\n{\n" + '"' + "\n")


@pytest.mark.parametrize(
    "command", ["list", "list --kinds", "show", "show --timeline", "search etc"]
)
def test_nothing_of_an_attacker_reaches_the_terminal(out: Path, command: str) -> None:
    attack(sorted(path for path in out.iterdir() if path.is_dir())[-1])
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.cli", *command.split(), "--out", str(out)],
        capture_output=True, timeout=200, env=os.environ | {"FORCE_COLOR": "", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    shown = (done.stdout + done.stderr).decode()
    assert not set(shown) & set("\x1b\x07\x00\x9b\u202e")
    assert "Traceback" not in shown and "root:x:0" not in shown
    assert "\\x1b" in shown  # it was there to be shown


@pytest.mark.parametrize(
    "command",
    ["replay last", "replay last --timeline", "adopt last --to ADOPTED", "replay last --json"],
)
def test_an_attackers_incident_is_judged_or_refused(
    out: Path, tmp_path: Path, command: str
) -> None:
    attack(sorted(path for path in out.iterdir() if path.is_dir())[-1])
    argv = [one if one != "ADOPTED" else str(tmp_path / "adopted") for one in command.split()]
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.cli", *argv, "--out", str(out)],
        capture_output=True, timeout=200, env=os.environ | {"FORCE_COLOR": "", "COLUMNS": "200"},
    )  # fmt: skip
    shown = (done.stdout + done.stderr).decode()
    assert not set(shown) & set("\x1b\x07\x00\x9b\u202e")
    assert "Traceback" not in shown and "root:x:0" not in shown
    assert done.returncode in (0, 1, 2, 3, 4)
    for made in (tmp_path / "adopted").glob("*") if "adopt" in command else ():
        assert made.stem.removeprefix("test_").startswith("incident_")
        assert not set(made.read_text()) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize(
    "record",
    [
        {"trigger": []}, {"trigger": {"t_frame_done_ns": "x", "t_arrival_ns": 1}}, {"sets": [1]}, {"sets": {"a": 7}},
        {"capture": "x"}, {"notes": 5}, {"actions": {"a": 1}}, {"workload": [[]]}, {"verdict": "x"},
        {"verdict": {"conclusive": True}}, {"more_triggers": 4}, {"clock": {"wall_ns": 10**30}}, {"seed": {}},
        {"trigger": {"t_frame_done_ns": 10**400, "t_arrival_ns": 1}},
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_shown_not_believed(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    folder = tmp_path / "20260101T000000Z-00000000"
    folder.mkdir()
    (folder / "incident.json").write_text(json.dumps({"outcome": "fail"} | record))
    for command in (["show", "last"], ["list"], ["search", "fail"]):
        done = invoke(*command, "--out", tmp_path)
        assert done.exit_code == 0, (command, done.output, done.exception)
    for form in ("pcapng", "perfetto", "html"):
        done = invoke("export", "last", "--out", tmp_path, f"--{form}", tmp_path / f"x.{form}")
        assert done.exit_code == 0, (form, done.output, done.exception)


def test_exports_of_an_attackers_incident_stay_where_they_were_asked_for(
    out: Path, tmp_path: Path
) -> None:
    attack(sorted(path for path in out.iterdir() if path.is_dir())[-1])
    before = {path for path in tmp_path.rglob("*") if "index.sqlite" not in path.name}
    asked = {tmp_path / f"x.{form}": f"--{form}" for form in ("pcapng", "perfetto", "html", "lua")}
    done = invoke(
        "export",
        "last",
        "--out",
        out,
        *(part for path, name in asked.items() for part in (name, path)),
    )
    assert done.exit_code == 0, done.output
    assert not set(done.output) & set("\x1b\x07\x00\x9b")
    after = {path for path in tmp_path.rglob("*") if "index.sqlite" not in path.name}
    assert after - before == set(asked)
    for path in asked:
        assert b"root:x:0" not in path.read_bytes()


def test_where_to_look_first_is_the_line_of_the_trigger(out: Path) -> None:
    (row,) = (one for one in told("list", "--out", out)["incidents"] if one["scenario"] == RECEIVER)
    folder = out / row["id"]
    said = invoke("show", str(folder), "--out", out).stdout
    at = re.search(r"(primary|secondary)/console.log at byte (\d+)[;,]", said)
    assert at is not None, said
    line = (folder / at[1] / "console.log").read_bytes()[int(at[2]) :].splitlines()[0].decode()
    assert "Digest integrity check FAILED" in line and line.startswith("[")


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_narrow_terminal_leaves_columns_out_and_breaks_no_word(out: Path, columns: int) -> None:
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.cli", "list", "--out", str(out)],
        stdout=other, stderr=subprocess.PIPE, timeout=200, env=environment | {"NO_COLOR": "1", "TERM": "xterm"},
    )  # fmt: skip
    os.close(other)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", os.read(main, 65536).decode()).splitlines()
    os.close(main)
    assert done.returncode == 0 and len(lines) == 3, lines
    assert max(map(len, lines)) <= columns
    rows = told("list", "--out", out)["incidents"]
    assert [line.split()[0] for line in lines[1:]] == [row["id"] for row in rows]
    assert all(row["rule"] in line for row, line in zip(rows, lines[1:], strict=True))
    assert ("kind" in lines[0]) == (b"kind" not in done.stderr) == (columns >= 100)
