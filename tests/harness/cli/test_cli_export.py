"""``freezeframe export`` as a person types it."""

import json
from pathlib import Path

import golden_incidents
import pytest
import typer
from golden_incidents import RECEIVER
from typer.testing import CliRunner

from freezeframe.harness.cli import exports, output
from freezeframe.harness.cli.app import app
from freezeframe.harness.cli.formats import FORMATS, Format, Source, with_options
from freezeframe.harness.cli.output import reported

RUNNER = CliRunner()
FORMS = tuple(one.name for one in FORMATS)


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
        ([], "choose at least one format"),
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


def test_a_format_is_one_row(out: Path, tmp_path: Path) -> None:
    """Of a row of the table come the option, its help, the file, and what --json says of it."""

    def write(source: Source, path: Path) -> dict[str, object]:
        path.write_text(source().trigger_text.decode())
        return {"words": 1}

    row = Format(name="sample", help="All of it as a table.", write=write, redacts=False)
    scratch = typer.Typer()

    @scratch.command()
    @with_options((*FORMATS, row))
    def export_(incident: str = "last", redact: bool = False, **targets: Path | None) -> None:
        with reported(False):
            exports.export(
                incident, out, targets, redact=redact, as_json=True, formats=(*FORMATS, row)
            )

    shown = RUNNER.invoke(scratch, ["--help"]).stdout
    assert "--sample" in shown and "All of it as a table." in shown and "--html" in shown
    path = tmp_path / "a.sample"
    done = RUNNER.invoke(scratch, ["--sample", str(path)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["words"] == 1 and report["written"]["sample"]["bytes"] == path.stat().st_size > 0
    refused = RUNNER.invoke(scratch, ["--sample", str(path), "--redact"])
    assert refused.exit_code == 2 and "--sample does not support --redact" in refused.stderr


def test_a_watch_ends_with_the_status_of_its_worst_incident() -> None:
    assert output.worst([]) == output.EXIT_PASS
    assert output.worst([1, 3, 0]) == 1, "a device failed, whatever the bench did since"
    assert output.worst([3, 0]) == 3 and output.worst([4, 3]) == 3 and output.worst([0, 4]) == 4
