"""`driver new`: the package that it writes names nothing of the skeleton, and nothing is overwritten."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.scaffold import TEMPLATES, scaffold, write_scaffold
from freezeframe.harness.errors import UsageError


@pytest.mark.parametrize("name", ["acme", "two_words", "x9"])
def test_the_package_is_whole_and_has_the_new_name_throughout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_scaffold(name, tmp_path)
    assert len(written) == len(scaffold(name)) == 10
    for path in written:
        text = path.read_text()
        assert "skeleton" not in text.lower(), path
        if path.suffix == ".py":
            ast.parse(text)
    project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]) == {
        "freezeframe.drivers", "freezeframe.links", "freezeframe.cases",
    }  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path / name)  # its metadata is found there
    bench = load_bench(tmp_path / name / "bench.toml")
    assert bench.primary.driver == name and bench.primary.options == {"read_bytes": 2048}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_kind_is_a_package_whose_own_test_passes(kind: str, tmp_path: Path) -> None:
    """As a stranger runs it, with the folder on the path and nothing installed."""
    name = f"odd_{kind}er"
    written = write_scaffold(name, tmp_path, kind)
    names = {path.relative_to(tmp_path / name).as_posix() for path in written}
    assert ("bench.toml" in names) is (kind == "pair")
    for path in written:
        assert "skeleton" not in path.read_text().lower(), path
    environment = os.environ | {"PYTHONPATH": str(tmp_path / name)}
    program = (
        f"from freezeframe.testing import check_case\n"
        f"from freezeframe.harness.bench.registry import cases, find\n"
        f"made = cases({name!r})\n"
        f"held = []\n"
        f"for one in made: check_case(one, passed=held.append)\n"
        f"print(find({name!r}).value, len(made), len(held))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    where, made, held = done.stdout.split()
    assert where.startswith(f"{name}_{kind}.") and int(made) >= 1 and int(held) >= 8


def test_a_kind_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'switch' is no kind of package; allowed: pair, host, su"):
        write_scaffold("acme", tmp_path, "switch")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Acme", "no name of a driver"),
        ("../acme", "no name of a driver"),
        ("a" * 41, "no name of a driver"),
        ("sim_array", "choose another"),
        ("drbd", "choose another"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        write_scaffold(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    with pytest.raises(UsageError, match="File exists"):
        write_scaffold("acme", tmp_path)
    assert list((tmp_path / "acme").iterdir()) == []
