"""The directory that a killed command leaves is removed by the next; that of one that lives is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.harness.runs.rundirectory import LOCK, remove_abandoned, run_directory

HOLD = """
import sys
from freezeframe.harness.runs.rundirectory import run_directory
with run_directory() as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_command_left_is_removed_and_a_living_ones_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    killed, living = started
    try:
        paths = [Path((one.stdout.readline() if one.stdout else "").strip()) for one in started]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert all((path / LOCK).is_file() for path in paths)
        with run_directory() as own:
            assert sorted(tmp_path.iterdir()) == sorted([paths[1], own])
        living.communicate("")
        assert list(tmp_path.iterdir()) == []
    finally:
        for one in started:
            one.kill()
            one.communicate()


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """A folder of another name, one without a lock, a link to a folder, and a lock that is none."""
    other = tmp_path / "other"
    (tmp_path / "freezeframe-plain").mkdir()
    (tmp_path / "freezeframe-fifo").mkdir()
    os.mkfifo(tmp_path / "freezeframe-fifo" / LOCK)
    other.mkdir()
    (other / LOCK).touch()
    (tmp_path / "freezeframe-link").symlink_to(other)
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
