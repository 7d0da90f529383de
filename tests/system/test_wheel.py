"""The same as logic on a storage medium: built into a wheel, installed into an empty environment,
and run there."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_LIMIT_S = 300
"""The packages may have to come from the index first."""
RUN_LIMIT_S = 90

pytestmark = pytest.mark.timeout(INSTALL_LIMIT_S + 2 * RUN_LIMIT_S)


class Installed:
    """A clean environment that holds the wheel and what it asks for, and nothing of the
    checkout."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        wheels = directory / "wheels"
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], directory)
        (wheel,) = wheels.glob("freezeframe-*.whl")
        venv = directory / "venv"
        _run([sys.executable, "-m", "venv", "--without-pip", str(venv)], directory)
        _run([*pip, "--python", str(venv / "bin" / "python"), "install", str(wheel)], directory)
        self.command = venv / "bin" / "freezeframe"
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


def _run(command: list[str], cwd: Path, **variables: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    } | variables
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=INSTALL_LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_without_a_compiler_it_is_built_and_reads_captures_all_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    kept_out = shutil.ignore_patterns(
        ".*", "build", "dist", "incidents", "*.egg-info", "*.so", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=kept_out)
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source)],
        tmp_path,
        CC="/bin/false",
    )
    (wheel,) = wheels.glob("freezeframe-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    program = (
        "import os; from freezeframe.harness.core.link import linkview, skim; assert linkview; "
    )
    program += "assert not skim.NATIVE and skim.__file__.startswith(os.getcwd())"
    _run([sys.executable, "-c", program], tmp_path / "installed")


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
