"""Find the process that uses a device, so that the error "in use" can name it. Reads only /proc."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def holder(path: str) -> str | None:
    """Return another process that has the file at ``path`` open, as ``python (pid 123)``; a
    process that holds a lock on it first.

    None: there is none, or none that this user may see.
    """
    try:
        wanted = Path(path).stat()
    except OSError:
        return None
    locking = set(_locking_pids(wanted))
    own = os.getpid()
    holding = [pid for pid in _pids() if pid != own and _has_open(pid, wanted)]
    for pid in sorted(holding, key=lambda pid: pid not in locking):
        name = _name(pid)
        if name:
            return f"{name} (pid {pid})"
    return None


def _pids() -> Iterator[int]:
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            yield int(entry.name)


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            try:
                found = entry.stat()
            except OSError:  # closed meanwhile, or not visible to this user
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except OSError:
        return False
    return False


def _locking_pids(wanted: os.stat_result) -> Iterator[int]:
    device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}:{wanted.st_ino}"
    yield from (pid for where, pid in _flocks() if where == device)


def _flocks() -> Iterator[tuple[str, int]]:
    """(device and inode, process id) of each line of /proc/locks: ``1: FLOCK  ADVISORY  WRITE 123
    00:1b:5 0 EOF``. The device numbers are hexadecimal."""
    try:
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[4].isdecimal():
            yield words[5], int(words[4])


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def locked_files(name: str) -> Iterator[Path]:
    """Files of this name that processes of this user have locked (flock), by their paths."""
    for pid in {pid for _, pid in _flocks()} - {os.getpid()}:
        try:
            links = [str(entry.readlink()) for entry in (PROC / str(pid) / "fd").iterdir()]
        except OSError:  # ended, or not visible to this user
            continue
        yield from (Path(one) for one in links if one.endswith(f"/{name}"))


def locker(path: Path) -> tuple[int, str]:
    """Return (process id, ``python (pid 123)``) of who has locked the file; (0, "a process"): it
    is not visible who."""
    with contextlib.suppress(OSError):
        for pid in _locking_pids(path.stat()):
            return pid, f"{_name(pid) or 'a process'} (pid {pid})"
    return 0, "a process"
