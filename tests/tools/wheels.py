"""The wheel of this checkout, built from a copy so that the checkout stays as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
INSTALL_LIMIT_S = 300
"""The packages may have to come from the index first."""
LISTING_LIMIT_S = 90


def copy_of_the_checkout(copy: Path) -> Path:
    """The checkout as git sees it, without what was built in it; a new folder ``copy``."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=LISTING_LIMIT_S,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if os.path.lexists(ROOT / name):  # not one that is deleted and not yet committed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def built(source: Path, directory: Path, **variables: str) -> Path:
    """The wheel of the checkout ``source``, from nothing that an earlier build left there."""
    shutil.rmtree(source / "build", ignore_errors=True)
    run(
        [*PIP, "wheel", "--no-deps", "--wheel-dir", str(directory), str(source)],
        directory.parent,
        **variables,
    )
    (wheel,) = directory.glob("freezeframe-*.whl")
    return wheel


def run(command: list[str], cwd: Path, **variables: str) -> None:
    """Run it with these variables added and without PYTHONPATH; AssertionError with what it said when it
    fails."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    } | variables
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=INSTALL_LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
