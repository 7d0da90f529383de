"""Download and unpack Debian 12 packages with apt on any machine; nothing is installed.

On Debian 12 the apt configuration of the machine is used. Elsewhere (Ubuntu, a later Debian) apt
works in a private folder with Debian's key and Debian's own mirror, or the one whose URL is in
``FREEZEFRAME_DEBIAN_ARCHIVE``.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from freezeframe.harness.errors import RigError

SUITE: Final = "bookworm"
ARCHIVE_VARIABLE: Final = "FREEZEFRAME_DEBIAN_ARCHIVE"
DEFAULT_ARCHIVE: Final = "http://deb.debian.org/debian"
"""Debian's own mirror; http, because the packages are signed."""
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS: Final = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}
TIMEOUT_S: Final = 300.0


class Archive:
    """apt with one configuration for all calls."""

    def __init__(self, folder: Path, kernel_meta: str) -> None:
        """``folder``: for private apt state. Raises RigError: a tool is missing, or the archive is
        unreachable."""
        for tool, package in TOOLS.items():
            if shutil.which(tool) is None:
                raise RigError(
                    f"{tool} is missing; it is needed to build the image of the rig: apt install {package}"
                )
        self._options: list[str] = []
        self._kernel_meta = kernel_meta
        if _host_suite() != SUITE:
            self._options = own_state(folder, mirror())
            if not list((folder / "state/lists").glob("*_Packages*")):
                self.update()

    def update(self) -> None:
        """Fetch the package lists of a private state. The lists of the machine itself are not
        touched."""
        if self._options:
            run("apt-get", *self._options, "update", "-q")

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Return the candidate version of the kernel package and of each of ``names``."""
        kernel = self._kernel()
        if not kernel:
            raise RigError(f"apt knows no {self._kernel_meta}; try: apt-get update")
        wanted, found, name = [kernel, *names], {}, ""
        for block in run("apt-cache", *self._options, "policy", *wanted).split("\n"):
            if block and not block.startswith(" "):
                name = block.rstrip(":")
            elif (candidate := re.match(r"\s+Candidate: (\S+)", block)) and candidate[
                1
            ] != "(none)":
                found[name] = candidate[1]
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise RigError(f"apt knows no package {', '.join(missing)}; try: apt-get update")
        return found

    def unpack(self, versions: dict[str, str], scratch: Path, root: Path) -> None:
        """Download into ``scratch``, unpack into ``root``."""
        wanted = [f"{name}={version}" for name, version in versions.items()]
        run("apt-get", *self._options, "download", "-q", *wanted, cwd=scratch)
        for package in sorted(scratch.glob("*.deb")):
            run("dpkg-deb", "-x", str(package), str(root))

    def _kernel(self) -> str:
        try:
            depends = run("apt-cache", *self._options, "depends", "--important", self._kernel_meta)
        except RigError:  # apt-cache fails for an unknown name
            return ""
        found = re.search(r"Depends: (linux-image-[\w.+-]+)", depends)
        return found[1] if found else ""


def _host_suite() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def mirror() -> str:
    """Return the URL of the mirror of Debian. Raises RigError: the variable holds something else."""
    archive = os.environ.get(ARCHIVE_VARIABLE, "").rstrip("/") or DEFAULT_ARCHIVE
    if not re.fullmatch(r"https?://[\w.:/~-]+", archive):
        raise RigError(
            f"{ARCHIVE_VARIABLE} is to be the URL of a mirror of Debian, or empty for {DEFAULT_ARCHIVE}; "
            f"it is now {archive!r}"
        )
    return archive


def own_state(folder: Path, archive: str, *, architecture: str = "amd64") -> list[str]:
    """Return the options with which apt works in ``folder``, for Debian 12 and this architecture only, and
    takes no package as installed. Raises RigError: Debian's key is missing."""
    if not KEYRING.exists():
        raise RigError(f"{KEYRING} is missing: apt install debian-archive-keyring")
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    sources = "".join(
        f"deb [signed-by={KEYRING} arch={architecture}] {one} {suite} main\n"
        for one, suite in ((archive, SUITE), (f"{archive}-security", f"{SUITE}-security"))
    )
    (folder / "etc/sources.list").write_text(sources)
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "etc/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def run(*argv: str, cwd: Path | None = None) -> str:
    """Return what the program prints. Raises RigError: it failed, or did not end in time."""
    try:
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{argv[0]} did not end within {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        words = " ".join(word for word in argv if "=" not in word and word != "-o")
        raise RigError(f"{words[:60]} failed: {done.stderr.strip()[-400:]}")
    return done.stdout
