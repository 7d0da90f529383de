"""Collect the versions of the software for the incident."""

import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
PACKAGES: Final = ("scapy", "pyserial", "pyvisa", "hyperscan", "crc32c", "msgspec", "pydantic")


@cache
def versions() -> dict[str, object]:
    """Return the versions of FreezeFrame, Python, the kernel, and the packages that can influence
    an incident."""
    return {
        "freezeframe": _version("freezeframe"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


@cache
def commit() -> str:
    """Return the commit of the checkout that this program runs from, in hex; "" when it was installed from a
    package. Uncommitted changes are not visible here."""
    for folder in Path(__file__).resolve().parents:
        if (folder / ".git").exists():
            return _head(folder / ".git")
    return ""


def _head(git: Path) -> str:
    """Return what HEAD of a git directory, or of a worktree's ``.git`` file, points to."""
    try:
        if git.is_file():
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        shared = git / "commondir"
        common = (git / shared.read_text().strip()).resolve() if shared.is_file() else git
        if head.startswith("ref: "):
            head = _ref(common, head.removeprefix("ref: "))
    except OSError:
        return ""
    return head if _COMMIT.fullmatch(head) else ""


def _ref(common: Path, name: str) -> str:
    loose, packed = common / name, common / "packed-refs"
    if loose.is_file():
        return loose.read_text().strip()
    for line in packed.read_text().splitlines():
        if line.endswith(f" {name}"):
            return line.split(" ", 1)[0]
    return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
