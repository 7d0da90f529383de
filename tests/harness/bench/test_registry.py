"""Drivers by name: each step of loading that can fail says so by itself."""

import sys
import tomllib
from pathlib import Path

import pytest

from freezeframe.harness.bench import registry
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import Controller, PowerRail

ROOT = Path(__file__).resolve().parents[3]


def test_the_table_is_the_projects_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][registry.GROUP] == registry.BUILT_IN


def test_a_misspelt_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"did you mean sim_array.*known drivers:.*nbd.*scpi_supply.*sim_array"
    ):
        registry.load("sim_aray", Controller)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path; ``register`` makes distributions in it that bring drivers."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("ff_good", "ff_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "ff_good.py").write_text(
        "VALUE = 3\n"
        "class Psu:\n"
        "    def set_output(self, side, on): ...\n    def output(self, side): ...\n"
        "    def measure(self, side): ...\n    def identify(self): ...\n    def close(self): ...\n"
    )
    (tmp_path / "ff_broken.py").write_text("import a_library_that_is_not_installed\n")
    return tmp_path


def register(folder: Path, distribution: str, **drivers: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in drivers.items())
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{lines}")


def test_a_third_party_driver_is_found_and_checked(third_party: Path) -> None:
    register(
        third_party,
        "lab",
        psu="ff_good:Psu",
        gone="ff_good:Nothing",
        value="ff_good:VALUE",
        dead="ff_broken:Psu",
    )
    assert registry.load("psu", PowerRail).__name__ == "Psu"
    assert "psu" in registry.names()
    with pytest.raises(
        UsageError,
        match=r"does not implement the role Controller: ff_good:Psu has no freeze_frame\(\)",
    ):
        registry.load("psu", Controller)
    with pytest.raises(RigError, match="'gone': ff_good has no Nothing"):
        registry.load("gone", PowerRail)
    with pytest.raises(UsageError, match="ff_good:VALUE is not a class"):
        registry.load("value", PowerRail)
    with pytest.raises(
        RigError, match=r"importing ff_broken failed: ModuleNotFoundError: .*a_library_that"
    ):
        registry.load("dead", PowerRail)


def test_two_packages_with_one_name_are_told(third_party: Path) -> None:
    register(third_party, "lab", psu="ff_good:Psu")
    register(third_party, "shop", psu="ff_broken:Psu")
    with pytest.raises(
        UsageError, match=r"registered twice: .*\((lab|shop)\) and .*\((lab|shop)\)"
    ):
        registry.load("psu", PowerRail)
