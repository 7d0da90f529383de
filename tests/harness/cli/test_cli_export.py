"""``freezeframe export`` as a person types it."""

import json
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import RECEIVER
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app

RUNNER = CliRunner()
FORMS = ("pcapng", "lua", "perfetto", "html")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incidents")
    golden_incidents.unpack(RECEIVER, folder)
    return folder


def test_export_names_what_it_wrote(out: Path, tmp_path: Path) -> None:
    files = {form: tmp_path / f"a.{form}" for form in FORMS}
    asked = [part for form, path in files.items() for part in (f"--{form}", str(path))]
    done = RUNNER.invoke(app, ["export", "last", "--out", str(out), *asked, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["problems"] == [] and set(told["written"]) == set(files)
    for form, path in files.items():
        assert told["written"][form] == {"path": str(path), "bytes": path.stat().st_size}


def test_the_dissector_needs_no_incident(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["export", "--out", str(tmp_path), "--lua", str(tmp_path / "a.lua")])
    assert done.exit_code == 0, done.output
    assert "Proto(" in (tmp_path / "a.lua").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to write"),
        (["--pcapng", "."], "is a directory"),
        (["none", "--pcapng", "x.pcapng"], "no such incident"),
    ],
)
def test_wrong_use_is_told(out: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = RUNNER.invoke(app, ["export", "--out", str(out), *arguments])
    assert done.exit_code == 2 and said in done.stderr


def test_a_place_that_cannot_be_written_is_rig_trouble(out: Path, tmp_path: Path) -> None:
    done = RUNNER.invoke(
        app, ["export", "--out", str(out), "--pcapng", str(tmp_path / "none" / "x.pcapng")]
    )
    assert done.exit_code == 3 and "No such file" in done.stderr
