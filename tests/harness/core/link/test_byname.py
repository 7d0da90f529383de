"""Protocols by name: each step of loading that can fail says so by itself."""

import sys
import tomllib
from pathlib import Path

import pytest

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.protocol import LinkOptions, Tell
from freezeframe.harness.errors import RigError, UsageError

ROOT = Path(__file__).resolve().parents[4]
MODULE = """
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
class Vendor(DrbdLink):
    name = "vendor"
class Old(DrbdLink):
    api_version = 0
class Half:
    def __init__(self, options): ...
    name = "half"
class Raises(DrbdLink):
    def __init__(self, options): raise OSError("no table")
VALUE = 3
"""


def test_the_table_is_the_projects_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][byname.GROUP] == byname.BUILT_IN


def test_what_comes_with_freezeframe_is_found() -> None:
    assert byname.find("drbd")(LinkOptions()).tells == frozenset(Tell)
    assert byname.find("none")(LinkOptions()).tells == frozenset()


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("ff_links", "ff_dead"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "ff_links.py").write_text(MODULE)
    (tmp_path / "ff_dead.py").write_text("import a_library_that_is_not_installed\n")
    return tmp_path


def register(folder: Path, distribution: str, **links: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in links.items())
    (info / "entry_points.txt").write_text(f"[{byname.GROUP}]\n{lines}")


def test_a_third_partys_protocol_is_found_and_checked(third_party: Path) -> None:
    register(
        third_party, "lab", vendor="ff_links:Vendor", old="ff_links:Old", half="ff_links:Half",
        value="ff_links:VALUE", gone="ff_links:Gone", raises="ff_links:Raises", dead="ff_dead:Vendor",
    )  # fmt: skip
    assert byname.find("vendor")(LinkOptions()).name == "vendor"
    with pytest.raises(
        RigError, match=r"'raises': its constructor raised OSError: no table \(ff_links"
    ):
        byname.find("raises")
    assert {"vendor", "drbd", "none"} <= set(byname.names())
    for name, error, words in (
        ("old", UsageError, "was made for version 0 of the seam"),
        ("half", UsageError, "has no .*connection"),
        ("value", UsageError, "is not a class"),
        ("gone", RigError, "has no Gone"),
        ("dead", RigError, "importing ff_dead failed"),
        ("vender", UsageError, "did you mean vendor"),
    ):
        with pytest.raises(error, match=words):
            byname.find(name)


def test_one_name_in_two_packages_is_not_guessed_at(third_party: Path) -> None:
    register(third_party, "one", vendor="ff_links:Vendor")
    register(third_party, "two", vendor="ff_dead:Vendor")
    with pytest.raises(UsageError, match="registered twice"):
        byname.find("vendor")
