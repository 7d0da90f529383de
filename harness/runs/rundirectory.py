"""The directory of one command's sockets and logs. A killed command leaves it; the next one removes it."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "freezeframe-"
LOCK: Final = "run.lock"
"""Locked by the command whose directory it is, as long as it lives."""


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A short-lived directory with a short path (a unix socket's has at most 107 bytes)."""
    remove_abandoned(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock_fd = _locked(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock_fd)


def _locked(path: Path) -> int:
    """It gets its name once it is locked: nobody finds it free before that."""
    fresh = path / f"{LOCK}.new"
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: nobody will find it free
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(path / LOCK)
    return fd


def remove_abandoned(folder: Path) -> None:
    """Remove this user's directories whose command has ended without removing them."""
    for lock in folder.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):  # somebody else's, or just being removed
            fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _is_ours(lock.parent) and stat.S_ISREG(os.fstat(fd).st_mode):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(fd)


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
