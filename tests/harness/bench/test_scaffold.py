"""`driver new`: the package that it writes names nothing of the skeleton, and nothing is overwritten."""

import ast
import tomllib
from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.scaffold import scaffold, write_scaffold
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
