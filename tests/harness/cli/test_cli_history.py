"""``stats``, ``remark``, ``list`` with filters, and ``run --repeat`` as a person types them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app
from freezeframe.harness.incidents import store

RUNNER = CliRunner()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in (RECEIVER, SENDER):
        golden_incidents.unpack(name, tmp_path / "incidents")
    return tmp_path / "incidents"


def invoke(*arguments: object) -> Any:
    return RUNNER.invoke(app, [str(one) for one in arguments], env={"COLUMNS": "300"})


def read(*arguments: object, status: int = 0) -> Any:
    done = invoke(*arguments, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def test_list_and_stats_take_the_same_filters(out: Path) -> None:
    rows = read("list", "--out", out)["incidents"]
    for option, key, value in (
        ("--outcome", "outcome", "pass"), ("--side", "side", "secondary"), ("--bench", "bench", "sim-small"),
        ("--kind", "kind", rows[0]["kind"]), ("--kind", "rule", rows[0]["rule"]), ("--outcome", "outcome", "fail"),
    ):  # fmt: skip
        fitting = [row["id"] for row in rows if row[key] == value]
        found = read("list", "--out", out, option, value)["incidents"]
        assert [row["id"] for row in found] == fitting
        assert read("stats", "--out", out, option, value)["incidents"] == len(fitting)
    day = rows[0]["id"][:4] + "-" + rows[0]["id"][4:6] + "-" + rows[0]["id"][6:8]
    assert len(read("list", "--out", out, "--since", day, "--until", day)["incidents"]) == 2
    assert "no incidents that fit" in invoke("list", "--out", out, "--until", "2020-01-01").stdout
    assert "incidents  2" in invoke("stats", "--out", out).stdout
    waited = read("stats", "--out", out, "--answers")
    assert waited["captures_read"] == 2
    assert 0 < waited["answer_us"]["50"] <= waited["answer_us"]["90"] <= waited["answer_us"]["99"]


def test_a_remark_is_shown_and_found_and_alters_no_evidence(out: Path) -> None:
    name = read("list", "--out", out)["incidents"][0]["id"]
    assert invoke("remark", name, "swapped", "the", "cable", "--out", out).exit_code == 0
    assert invoke("remark", name, "second \x1b[2J", "--out", out).exit_code == 0
    stored = store.find(name, out)
    assert stored.altered() == []
    shown = invoke("show", name, "--out", out).stdout
    assert ": swapped the cable" in shown and "\x1b" not in shown
    assert [one["text"] for one in read("show", name, "--out", out)["remarks"]] == [
        "swapped the cable", "second \\x1b[2J"
    ]  # fmt: skip
    assert [one["id"] for one in read("search", "swapped", "--out", out)["incidents"]] == [name]
    assert invoke("remark", name, " ", "--out", out).exit_code == 2
    assert invoke("remark", "nonesuch", "x", "--out", out).exit_code == 2


@pytest.mark.parametrize("what", ["link", "folder", "garbage"])
def test_a_file_of_remarks_that_is_none(out: Path, what: str) -> None:
    folder = next(path for path in out.iterdir() if path.is_dir())
    path = folder / store.REMARKS
    match what:
        case "link":
            path.symlink_to("/etc/passwd")
        case "folder":
            path.mkdir()
        case _:
            path.write_bytes(b"\xff\n[]\n{}\n" + b'{"text": 3}\n' + b"[" * 99_999 + b"\n")
    assert invoke("list", "--out", out).exit_code == 0
    done = invoke("show", folder.name, "--out", out)
    assert "root:x:0" not in done.output and done.exit_code == (0 if what == "garbage" else 3)
    wrote = invoke("remark", folder.name, "x", "--out", out)
    assert wrote.exit_code == (0 if what == "garbage" else 2), wrote.output


def test_find_reads_only_what_may_be_meant(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert {store.find(name, out).id for name in names} == set(names)
    for name in names:
        digits = store.find(name, out).id_hex
        for what in (name[:20], digits[:6], digits[:8], digits.upper(), digits):
            assert store.find(what, out).id == name
    assert store.find("last", out).id == store.incidents(out)[-1].id
    (out / names[0]).rename(out / "renamed")
    assert store.find("ren", out).id == "renamed"


def test_repeated_runs_are_counted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "freezeframe.harness.cli"]
    environment = os.environ | {"FREEZEFRAME_OUT": str(tmp_path / "out")}
    small = tmp_path / "small.toml"
    small.write_text(
        'name = "small"\ntitle = "small"\nworkload.bytes_mib = 1\nexpect.detected = true\n'
        'faults = [{ kind = "neg_ack", at_write = 3 }]\n'
    )
    done = subprocess.run(
        [*command, "run", str(small), "--repeat", "2", "--json"],
        capture_output=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["runs"] == 2 and told["outcomes"] == {"pass": 2}
    assert [one["seed"] for one in told["each"]] == [1, 2]
    (kind,) = told["kinds"]
    assert kind["rule"] == "link-neg-ack" and kind["count"] == 2
    proof = subprocess.run(
        [*command, "stats", "--prove-fixed", kind["kind"]],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    assert proof.returncode == 4 and "2 of 2" in proof.stdout and "not shown yet" in proof.stdout
    assert "freezeframe run FILE --bench sim --repeat 1 --seed 3 --out " in proof.stdout
    # What is suggested counts. Seen: a run that is repeated once left no line.
    small.write_text(small.read_text().partition("expect")[0] + "expect.detected = false\n")
    subprocess.run(
        [*command, "run", str(small), "--repeat", "1", "--seed", "3"],
        capture_output=True, timeout=120, env=environment, check=True,
    )  # fmt: skip
    proof = subprocess.run(
        [*command, "stats", "--prove-fixed", kind["kind"]],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    assert proof.returncode == 0 and "clean since: 1" in proof.stdout
