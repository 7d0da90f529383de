"""Check what this machine offers a bench: tools, permissions, devices, disk space. Used by
``freezeframe doctor``."""

import contextlib
import os
import platform
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from freezeframe.harness.core.link import skim
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge import netns

DISTRIBUTION: Final = "freezeframe"
TOOLS: Final = {
    "tshark": ("tshark", "reads captures, and checks our DRBD dissection"),
    "nbdinfo": ("libnbd-bin", "checks a host port"),
    "qemu-io": ("qemu-utils", "checks a host port"),
    "fio": ("fio", "writes as a host does"),
    "unshare": ("util-linux", "a simulated bench without root"),
}
"""Command -> its Debian package and purpose. A bench runs without any of them; the tests need all.
"""
MIN_PYTHON: Final = (3, 11)
MIN_FREE_BYTES: Final = 1 << 30
"""Free space below which a warning is given. An incident with 64 MiB of writes takes about 200
MiB."""
BYTES_A_GIB: Final = 1 << 30

LOW_LATENCY_MS: Final = 1
"""Shortest latency timer of FTDI adapters, which their driver treats as low-latency mode; the
default is 16."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check."""

    name: str
    status: Literal["ok", "warning", "problem"]
    """warning: a feature is missing or slower. problem: no bench can run."""
    detail: str
    remedy: str = ""
    """What to do, if possible as one command line."""


def examine(out_dir: Path) -> list[CheckResult]:
    """Run all checks of ``doctor``. They change nothing. ``out_dir`` is the folder of the
    incidents."""
    parts: tuple[Callable[[], Iterator[CheckResult]], ...] = (
        _python, _kernel, _packages, _native, _tools, _rights, _realtime, _memory_lock, _serial_devices
    )  # fmt: skip
    return [finding for part in parts for finding in part()] + [_space(out_dir)]


def missing_tools() -> list[str]:
    """Return the Debian packages of missing TOOLS."""
    return sorted({package for tool, (package, _) in TOOLS.items() if shutil.which(tool) is None})


def apt_line(packages: list[str]) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install -y {' '.join(packages)}"


def _requirements() -> list[str]:
    """Return the names of the packages that FreezeFrame requires."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    names = (line for line in wanted if "extra ==" not in line)
    return sorted(
        line.split(";")[0].split(">")[0].split("=")[0].split("<")[0].strip() for line in names
    )


# --- the checks ----------------------------------------------------------------------------------------------
def _python() -> Iterator[CheckResult]:
    enough = sys.version_info[:2] >= MIN_PYTHON
    detail = f"{platform.python_version()} ({sys.executable})"
    remedy = "" if enough else f"install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer"
    yield CheckResult(
        name="python", status="ok" if enough else "problem", detail=detail, remedy=remedy
    )


def _kernel() -> Iterator[CheckResult]:
    wide = sys.maxsize > 1 << 32
    detail = f"{platform.system()} {platform.release()} {platform.machine()}"
    remedy = "" if wide else "use a 64-bit system: Hyperscan has no 32-bit build"
    yield CheckResult(
        name="kernel", status="ok" if wide else "problem", detail=detail, remedy=remedy
    )


def _packages() -> Iterator[CheckResult]:
    missing = [name for name in _requirements() if not _installed(name)]
    if _installed(DISTRIBUTION) and not missing:
        detail = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)} and all that it needs"
        yield CheckResult(name="packages", status="ok", detail=detail)
    else:
        detail = f"missing: {', '.join(missing or [DISTRIBUTION])}"
        yield CheckResult(name="packages", status="problem", detail=detail, remedy="make setup")


def _native() -> Iterator[CheckResult]:
    yield CheckResult(
        name="C module",
        status="ok" if skim.NATIVE else "warning",
        detail="in use: the link is watched at its full rate"
        if skim.NATIVE
        else "not built: the link is watched by the Python code, several times slower",
        remedy="" if skim.NATIVE else f"{apt_line(['gcc', 'python3-dev'])}, then make setup again",
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _tools() -> Iterator[CheckResult]:
    missing = missing_tools()
    for tool, (package, purpose) in TOOLS.items():
        path = shutil.which(tool)
        if path is not None:
            yield CheckResult(name=tool, status="ok", detail=path)
        else:
            yield CheckResult(
                name=tool,
                status="warning",
                detail=f"not found ({purpose}; Debian package {package})",
                remedy=apt_line(missing),
            )


def _rights() -> Iterator[CheckResult]:
    missing = netns.missing_capabilities()
    if not missing:
        yield CheckResult(name="capabilities", status="ok", detail=", ".join(netns.CAPABILITIES))
        return
    yield CheckResult(
        name="capabilities",
        status="warning",
        detail=f"missing: {', '.join(missing)}; a real replication link cannot be captured",
        remedy="run as root, or give the interpreter the capabilities (docs/pi.md)",
    )
    problem = netns.user_namespace_problem()
    yield CheckResult(
        name="user namespaces",
        status="problem" if problem else "ok",
        detail=problem or "a simulated bench runs without root",
        remedy="see the setting named here, or run as root" if problem else "",
    )


def _realtime() -> Iterator[CheckResult]:
    refused: list[str] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            refused.append(error.strerror or str(error))

    # The policy applies to this thread, which ends here; the process keeps its own.
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    yield CheckResult(
        name="real-time priority",
        status="warning" if refused else "ok",
        detail=f"SCHED_FIFO: {refused[0]}; the reflex is slower under load"
        if refused
        else "allowed",
        remedy="run as root, or set rtprio in /etc/security/limits.d/freezeframe.conf"
        if refused
        else "",
    )


def _memory_lock() -> Iterator[CheckResult]:
    limits = soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = soft == resource.RLIM_INFINITY
    if not enough:
        # The reflex raises the limit where it may: root may, but not in every container.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
            enough = True
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 20} MiB"
    yield CheckResult(
        name="locked memory",
        status="ok" if enough else "warning",
        detail=f"limit {shown}" + ("" if enough else "; the reflex may be paged out"),
        remedy=""
        if enough
        else "set `memlock unlimited` in /etc/security/limits.d/freezeframe.conf, log in again",
    )


def _described(name: str, device: str, description: str) -> str:
    """Return what a port is, and its device unless ``name`` is that. pyserial calls a port without
    a description "n/a"."""
    what = description if description != "n/a" else "a serial port"
    return what if name == device else f"{device}: {what}"


def _serial_devices() -> Iterator[CheckResult]:
    from serial.tools import list_ports

    by_id = {str(path.resolve()): str(path) for path in sorted(Path("/dev/serial/by-id").glob("*"))}
    ports = sorted(list_ports.comports(), key=lambda port: str(port.device))
    if not ports:
        yield CheckResult(
            name="serial devices", status="ok", detail="none; a simulated bench needs none"
        )
    for port in ports:
        usable = os.access(port.device, os.R_OK | os.W_OK)
        name = escape(by_id.get(port.device, port.device))
        yield CheckResult(
            name=name,
            status="ok" if usable else "warning",
            detail=escape(
                _described(by_id.get(port.device, port.device), port.device, port.description)
            )
            + latency(Path("/sys/class/tty") / Path(port.device).name)
            + ("" if usable else "; no permission"),
            remedy="" if usable else "sudo usermod -aG dialout $USER, then log in again",
        )


def latency(sysfs: Path) -> str:
    """Return how long a USB adapter delays bytes, if its driver (FTDI) reports it; "": unknown."""
    try:
        timer_ms = int((sysfs / "device" / "latency_timer").read_text())
    except (OSError, ValueError):
        return ""
    if timer_ms <= LOW_LATENCY_MS:
        return f"; low-latency mode ({timer_ms} ms)"
    return f"; delays bytes by up to {timer_ms} ms, until a bench opens it and asks for low-latency mode"


def _space(out_dir: Path) -> CheckResult:
    folder = out_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        return CheckResult(
            name="disk space", status="problem", detail=f"{folder}: {error.strerror}"
        )
    if not os.access(folder, os.W_OK):
        return CheckResult(
            name="disk space",
            status="problem",
            detail=f"{folder}: not writable",
            remedy="give --out DIR",
        )
    enough = free_bytes >= MIN_FREE_BYTES
    return CheckResult(
        name="disk space",
        status="ok" if enough else "warning",
        detail=f"{free_bytes / BYTES_A_GIB:.1f} GiB free for incidents in {folder}",
        remedy="" if enough else "remove old incidents, or give --out DIR on another disk",
    )
