"""A column of ``list`` is one row of the table."""

import json
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import RECEIVER
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app
from freezeframe.harness.incidents import columns
from freezeframe.harness.incidents.columns import COLUMNS, Column

RUNNER = CliRunner()


def listed(out: Path, *options: str) -> str:
    done = RUNNER.invoke(app, ["list", "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_row_gives_heading_value_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = golden_incidents.unpack(RECEIVER, tmp_path).id
    before = json.loads(listed(tmp_path, "--json"))["incidents"]
    assert [list(row) for row in before] == [[one.key for one in COLUMNS]]
    assert "probe-of-a-row" not in listed(tmp_path)
    row = Column(
        key="host_writes",
        title="probe-of-a-row",
        read=lambda one: one.workload.writes_acked if one.workload is not None else None,
        shown=lambda value: f"{value} acknowledged",
    )
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, row))
    (after,) = json.loads(listed(tmp_path, "--json"))["incidents"]
    assert after == {**before[0], "host_writes": after["host_writes"]}
    assert type(after["host_writes"]) is int
    head, line = listed(tmp_path).splitlines()
    assert head.endswith("probe-of-a-row") and line.startswith(name)
    assert line.endswith(f"{after['host_writes']} acknowledged")


def test_what_is_stored_of_a_record_is_escaped_and_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden_incidents.unpack(RECEIVER, tmp_path)
    evil = Column(key="evil", title="evil", read=lambda one: "\x1b[31m" * 1000)
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, evil))
    assert "\x1b" not in listed(tmp_path) and "\\x1b[31m" in listed(tmp_path)
    (row,) = json.loads(listed(tmp_path, "--json"))["incidents"]
    assert len(row["evil"]) < 4 * columns.MAX_VALUE_CHARS
