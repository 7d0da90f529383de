"""The same as logic on a storage medium: built into a wheel, installed into an empty environment,
and run there."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from wheels import INSTALL_LIMIT_S, PIP, built, copy_of_the_checkout, run

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 90

pytestmark = [
    pytest.mark.timeout(INSTALL_LIMIT_S + 2 * RUN_LIMIT_S),
    pytest.mark.xdist_group("wheel"),  # built and installed once
]


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMESAKES = ("fixtures", "drivers", "harness", "firmware_sim", "bench_configs", "tests")
"""Packages that the repository of a user may have: our folders have these names too."""


def _environment(directory: Path, *packages: str) -> Path:
    """The Python of a new environment in which only ``packages`` and what they need are
    installed."""
    run([sys.executable, "-m", "venv", "--without-pip", str(directory)], directory.parent)
    python = directory / "bin" / "python"
    run([*PIP, "--python", str(python), "install", *packages], directory.parent)
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as git sees it, without what was built in it."""
    return copy_of_the_checkout(tmp_path_factory.mktemp("copy") / "source")


class Installed:
    """A clean environment that holds the wheel and what it asks for, beside the packages from PyPI
    whose names are those of our folders, and nothing of the checkout."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.directory = directory
        self.wheel = built(source, directory / "wheels")
        self.python = _environment(directory / "venv", "fixtures", "testtools", str(self.wheel))
        self.command = self.python.parent / "freezeframe"
        self.refusal = self.incident("neg_ack")
        self.flip = self.incident("bit_flip_receiver")

    def incident(self, scenario: str) -> dict[str, Any]:
        """incident.json of a run by the installed command, in an environment without anything
        else."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory)}
        done = subprocess.run(
            [str(self.command), "run", scenario, "--seed", "2", "--json"],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        path = Path(json.loads(done.stdout)["incident"])
        record: dict[str, Any] = json.loads((path / "incident.json").read_text())
        return record | {"path": path}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"), source)


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_one_package(installed: Installed) -> None:
    names = _names(installed.wheel)
    assert {name.partition("/")[0] for name in names} == {
        "freezeframe",
        f"freezeframe-{VERSION}.dist-info",
    }
    inside = {name.split("/")[1] for name in names if name.startswith("freezeframe/")}
    assert inside == {
        "__init__.py", "driver.py", "link.py", "testing.py", "py.typed",
        "harness", "drivers", "firmware_sim", "fixtures", "bench_configs",
    }  # fmt: skip
    not_ours = {"tests", "tools", "support", "benchmarks", "docs"}
    assert not {name for name in names if not_ours & set(name.split("/"))}


def test_packages_of_the_same_name_stay_whole(installed: Installed) -> None:
    program = "import fixtures, testtools; fixtures.TestWithFixtures; testtools.TestCase"
    run([str(installed.python), "-c", program], installed.directory)


def test_a_repository_with_packages_of_our_folders_names_uses_the_plugin(
    installed: Installed, tmp_path: Path
) -> None:
    for name in NAMESAKES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    imports = "".join(f"import {name}\n" for name in NAMESAKES if name != "tests")
    (tmp_path / "tests" / "test_mine.py").write_text(
        f"{imports}from freezeframe import FaultTable\n\n\n"
        "def test_a_refused_write_is_seen(pair, faults):\n"
        "    assert (fixtures.MINE, harness.MINE) == ('fixtures', 'harness')\n"
        '    faults.arm(FaultTable(kind="neg_ack", at_write=3))\n'
        "    pair.write()\n"
        '    assert pair.await_trigger().rule == "link-neg-ack"\n'
        "    assert pair.await_recovery().rejoined\n"
    )
    run([str(installed.python), "-m", "pytest", "-q", "tests"], tmp_path)


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory, source: Path) -> tuple[Path, Path]:
    """The wheel for any processor, and a Python that has it."""
    directory = tmp_path_factory.mktemp("pure")
    wheel = built(source, directory / "wheels", FREEZEFRAME_PURE="1")
    return wheel, _environment(directory / "venv", str(wheel))


NATIVE_IS = "from freezeframe.harness.core.link import skim; assert skim.NATIVE is "


def test_the_pure_wheel_is_for_any_processor_and_reads_a_capture(
    installed: Installed, pure: tuple[Path, Path], tmp_path: Path
) -> None:
    """`replay` reads the incident's capture again; both wheels give one verdict."""
    wheel, python = pure
    assert wheel.name == f"freezeframe-{VERSION}-py3-none-any.whl"
    assert _names(wheel) == {name for name in _names(installed.wheel) if not name.endswith(".so")}
    run([str(python), "-c", NATIVE_IS + "False"], tmp_path)
    run([str(installed.python), "-c", NATIVE_IS + "True"], tmp_path)
    verdicts = [
        json.loads(
            subprocess.run(
                [str(one), "-m", "freezeframe.harness.cli", "replay", str(path), "--json"],
                cwd=tmp_path, capture_output=True, text=True, check=True, timeout=RUN_LIMIT_S,
            ).stdout
        )
        for path in (installed.flip["path"], installed.refusal["path"])
        for one in (python, installed.python)
    ]  # fmt: skip
    assert verdicts[0] == verdicts[1] and verdicts[2] == verdicts[3] != verdicts[0]


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_on_a_raspberry_pi_nothing_is_compiled(
    pure: tuple[Path, Path], tmp_path: Path, version: str
) -> None:
    """docs/pi.md: every package that the pure wheel asks for has a wheel for 64-bit ARM, for the
    Python of bookworm (3.11, glibc 2.36) and of trixie (3.13)."""
    platforms = [f"--platform=manylinux{name}_aarch64" for name in ("2014", "_2_17", "_2_28")]
    resolved = ["--dry-run", "--ignore-installed", "--target", str(tmp_path / "pi")]
    run(
        [
            *PIP, "install", *resolved, "--only-binary=:all:", *platforms,
            f"--python-version={version}", str(pure[0]),
        ],
        tmp_path,
    )  # fmt: skip


def test_without_a_compiler_it_is_built_all_the_same(source: Path, tmp_path: Path) -> None:
    wheel = built(source, tmp_path / "wheels", CC="/bin/false")
    assert not [name for name in _names(wheel) if name.endswith(".so")]
    assert "py3-none-any" not in wheel.name, "pip does not know that the optional module is absent"


def state(record: dict[str, Any], side: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((record["path"] / side / "state.json").read_text())
    return document


@pytest.mark.claim(15)
@pytest.mark.claim(18)
def test_it_monitors_the_copy_instructs_and_gets_the_set(installed: Installed) -> None:
    record = installed.flip
    assert record["trigger"]["rule"] in (
        "digest-failed",
        "link-unacked-close",
    )  # they race each other
    assert record["actions"][0]["side"] == "primary"
    assert record["actions"][0]["reply"]["ok"] is True
    assert record["sets"]["primary"]["complete"] is True
    assert state(record, "primary")["header"]["incident_id"] == record["incident_id_hex"]
    assert record["data_equal"] is True


@pytest.mark.claim(16)
def test_its_instruction_takes_another_link_than_the_copy(installed: Installed) -> None:
    captured = (installed.flip["path"] / "link.pcapng").read_bytes()
    for action in installed.flip["actions"]:
        assert bytes.fromhex(action["frame_hex"])[10:30] not in captured


@pytest.mark.claim(17)
@pytest.mark.claim(19)
def test_its_control_frames_warmstart_both_controllers(installed: Installed) -> None:
    record = installed.flip
    assert [action["side"] for action in record["actions"]] == ["primary", "secondary"]
    for action in record["actions"]:
        before = state(record, action["side"])["header"]["boot_epoch"]
        assert action["reply"]["boot_epoch"] == before + 1
        console = (record["path"] / action["side"] / "console.log").read_text(errors="replace")
        assert f"boot epoch {before + 1}, warmstart" in console


@pytest.mark.claim(20)
def test_it_makes_the_secondary_recover_from_a_wrong_response(installed: Installed) -> None:
    record = installed.refusal
    assert (record["trigger"]["source"], record["trigger"]["rule"]) == ("link", "link-neg-ack")
    console = (record["path"] / "secondary" / "console.log").read_text(errors="replace")
    assert "boot epoch 2, warmstart" in console
    assert record["data_equal"] is True
