"""What the shell offers at TAB, asked as a shell asks, and the short helps, which must not be cut
off."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app


def offered(*words: str) -> list[str]:
    environment = {
        "_FREEZEFRAME_COMPLETE": "complete_bash",
        "COMP_WORDS": "freezeframe " + " ".join(words),
        "COMP_CWORD": str(len(words)),
    }
    return CliRunner().invoke(app, env=environment, prog_name="freezeframe").stdout.split()


def test_scenarios_benches_sides_and_incidents_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered("run", "bit_") == ["bit_flip_receiver", "bit_flip_sender", "bit_flip_store"]
    assert {"sim", "pi_pair"} <= set(offered("run", "--bench", ""))
    assert offered("save", "s") == ["secondary"]
    assert offered("show", "") == ["last"]
    for name in ("incidents/20261123T032704Z-64782385", "benches/old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lab.toml").touch()
    (tmp_path / "benches" / "two.toml").touch()
    assert offered("show", "2026") == ["20261123T032704Z-64782385"]
    assert offered("check", "la") == ["lab.toml"]
    assert offered("check", "benches/") == ["benches/old", "benches/two.toml"]
    assert offered("check", "nowhere/") == []


def test_no_short_help_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["--help"], env=dict(os.environ)).stdout
    assert "..." not in shown.partition("Commands:")[2]
