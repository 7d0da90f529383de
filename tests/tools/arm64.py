"""FreezeFrame on 64-bit ARM without such a machine: Debian 12's Python for arm64 in a folder, its
programs run by QEMU's user-mode emulation.

    python tests/tools/arm64.py                  makes the folder, if it does not exist
    python tests/tools/arm64.py run COMMAND...   runs a command there, in this checkout

The folder is in the cache directory of the user, beside the images of the rig, and is named by all
it depends on. /opt/freezeframe in it is what docs/pi.md installs on a Pi: an environment with the
wheels of PyPI for arm64, and in each use the wheel for any processor, built from this checkout.
pytest and what the tests of the core and of the simulator need lie beside them.

Nothing is registered on the machine and nothing stays mounted: each command has a user and a mount
namespace of its own, and Linux 6.7 and newer keep a register of interpreters (binfmt_misc) per user
namespace. An older kernel uses the machine's own register.
"""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
from wheels import INSTALL_LIMIT_S, PIP, ROOT, built, copy_of_the_checkout

from freezeframe.harness.edge.netns import user_namespace_problem
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs import packages

RECIPE: Final = "1"
"""Version of this recipe, so that older folders are not used for its product."""
DEBIAN: Final = ("python3", "dash", "coreutils", "libstdc++6")
"""With all that they depend on. They are unpacked and not configured, which is enough for Python.
Hyperscan's wheel needs libstdc++6."""
FOR_TESTS: Final = ("hypothesis", "perfetto", "pytest-timeout", "pytest-xdist")
PYTHON: Final = "3.11"
"""Of Debian 12."""
PLATFORMS: Final = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")
PREFIX: Final = "/opt/freezeframe"
"""Where docs/pi.md installs, and the units of docs/systemd start."""
INTERPRETER: Final = f"{PREFIX}/bin/python"
PRODUCT: Final = f"{PREFIX}/product"
"""Where the wheel of this checkout is shown; the environment has it on its path."""
REGISTRATION: Final = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
"""The line for the register, from qemu-user-static: with flag F the kernel opens the emulator now, and
it need not be in the new root."""
OF_THE_MACHINE: Final = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
EXIT_RIG: Final = 3

ENTER: Final = """
set -eu
PATH=$PATH:/usr/sbin:/sbin
root=$1 new=$2 line=$3 machine=$4
shift 4
mount -t tmpfs -o mode=755 arm64 "$new"
for one in "$root"/*; do
    mkdir "$new/${one##*/}"
    mount --bind "$one" "$new/${one##*/}"
done
for one in proc dev sys; do
    mkdir "$new/$one"
    mount --rbind "/$one" "$new/$one"
done
mkdir -m 1777 "$new/tmp"
mkdir "$new/root" "$new/run" "$new/run/binfmt"
if ! { mount -t binfmt_misc arm64 "$new/run/binfmt" && cat "$line" >"$new/run/binfmt/register"; } 2>/dev/null &&
    ! [ -e "$machine" ]; then
    echo "arm64: this kernel ($(uname -r)) has no register of interpreters per user namespace (Linux 6.7 and" \
        "newer have), and the machine's has no qemu-aarch64. As root: apt-get install qemu-user-static, then" \
        "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc; cat $line >/proc/sys/fs/binfmt_misc/register" >&2
    exit 3
fi
while [ "$1" != -- ]; do
    mkdir -p "$new$2"
    mount --rbind "$1" "$new$2"
    shift 2
done
shift
exec chroot "$new" "$@"
"""
"""Becomes a program of the new root, without a process in between: who kills this process kills the
program. Its arguments: the new root, a folder to mount it on, the line for the register, the
machine's entry, then pairs of a folder and where it is shown, --, and the command."""


@dataclass(frozen=True, kw_only=True)
class Arm64:
    """The root for arm64, with the wheel of one checkout in it."""

    folder: Path
    """Made by ``ensure``."""
    product: Path
    """The unpacked wheel."""
    line: Path = REGISTRATION
    machine: Path = OF_THE_MACHINE

    def command(
        self,
        *argv: str,
        cwd: Path | str = "/root",
        shown: Sequence[Path] = (),
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return what runs ``argv`` in the root. ``shown``: folders of this machine that are there under the
        same path. It sees these variables and none of this process."""
        folders = [(self.product, PRODUCT), *((path, path) for path in shown)]
        environment = {
            "PATH": f"{PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
        }
        return [
            "unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", ENTER, "arm64",
            *(str(path) for path in (self.folder / "root", self.folder / "new", self.line, self.machine)),
            *(str(path) for pair in folders for path in pair), "--",
            "/usr/bin/env", "-i", "-C", str(cwd),
            *(f"{name}={value}" for name, value in (environment | dict(variables or {})).items()),
            *argv,
        ]  # fmt: skip


def opened(scratch: Path) -> Arm64:
    """Make the root, and in the folder ``scratch`` the wheel of this checkout. Raises RigError: what is
    missing, and how to get it."""
    folder = ensure()
    wheel = built(
        copy_of_the_checkout(scratch / "source"), scratch / "wheels", FREEZEFRAME_PURE="1"
    )
    _pip("--no-deps", str(wheel), target=scratch / "product")
    return Arm64(folder=folder, product=scratch / "product")


def ensure() -> Path:
    """Return the folder with the root; make it if it does not exist. Raises RigError."""
    if why := user_namespace_problem():
        raise RigError(f"arm64: no namespace for the emulated programs: {why}")
    if not REGISTRATION.exists():
        raise RigError(f"arm64: {REGISTRATION} is missing: apt-get install qemu-user-static")
    cache = Path(platformdirs.user_cache_dir("freezeframe")) / "arm64"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        apt = packages.own_state(cache / "apt", packages.mirror(), architecture="arm64")
        if not list((cache / "apt/state/lists").glob("*_Packages*")):
            packages.run("apt-get", *apt, "update", "-q")

        def made() -> Path:
            debs = re.findall(r"^'\S+' (\S+\.deb)", _install(apt, "--print-uris"), re.M)
            target = cache / _key(debs)
            if not target.is_dir():
                _make(target, apt)
            return target

        return with_new_lists(made, lambda: packages.run("apt-get", *apt, "update", "-q"))


class OldListsError(RigError):
    """The archive does not give what the lists of packages name."""


def with_new_lists(work: Callable[[], Path], update: Callable[[], object]) -> Path:
    """Return what ``work`` returns. Where the lists of packages are old, they are made new, and it is done once
    more."""
    try:
        return work()
    except OldListsError:
        update()
        return work()


def _install(apt: Sequence[str], *options: str) -> str:
    """Have apt do it, or only a part of it, on a system without any package."""
    return packages.run(
        "apt-get", *apt, "install", "-qy", "--no-install-recommends", *options, *DEBIAN
    )


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *FOR_TESTS]


def _key(debs: Sequence[str]) -> str:
    parts = (RECIPE, PYTHON, *PLATFORMS, *debs, *_requirements())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _make(target: Path, apt: Sequence[str]) -> None:
    began = time.monotonic()
    print(f"arm64: making {target} (half a minute)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as scratch:
        debs, root = Path(scratch) / "debs", Path(scratch) / "made/root"
        (debs / "partial").mkdir(parents=True)
        try:
            _install(apt, "--download-only", "-o", f"Dir::Cache::archives={debs}")
        except RigError as error:
            # Usual reason: the archive has newer packages now and keeps no old ones.
            raise OldListsError(str(error)) from error
        root.mkdir(parents=True)
        (root.parent / "new").mkdir()
        for deb in sorted(debs.glob("*.deb")):
            packages.run("dpkg-deb", "-x", str(deb), str(root))
        # Of base-passwd, which makes it when it is configured.
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        environment = root / PREFIX.removeprefix("/")
        site = environment / f"lib/python{PYTHON}/site-packages"
        _pip(
            "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}",
            *(f"--platform={name}" for name in PLATFORMS), *_requirements(), target=site,
        )  # fmt: skip
        (site / "product.pth").write_text(f"{PRODUCT}\n")
        (environment / "product").mkdir()
        (environment / "bin").mkdir()
        (environment / "bin/python").symlink_to(f"/usr/bin/python{PYTHON}")
        (environment / "pyvenv.cfg").write_text(
            "home = /usr/bin\ninclude-system-site-packages = false\n"
        )
        root.parent.rename(target)
    print(f"arm64: made in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _pip(*arguments: str, target: Path) -> None:
    done = subprocess.run(
        [*PIP, "install", f"--target={target}", *arguments],
        capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RigError(f"arm64: the Python packages could not be installed: {done.stderr[-800:]}")


def main(argv: Sequence[str]) -> int:
    try:
        match argv:
            case []:
                print(f"arm64: {ensure()}", file=sys.stderr)
                return 0
            case ["run", program, *arguments]:
                with tempfile.TemporaryDirectory(prefix="arm64-") as scratch:
                    arm64 = opened(Path(scratch))
                    return subprocess.call(
                        arm64.command(program, *arguments, cwd=ROOT, shown=[ROOT]),
                    )
    except RigError as error:
        print(error, file=sys.stderr)
        return EXIT_RIG
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    sys.exit(main(sys.argv[1:]))
