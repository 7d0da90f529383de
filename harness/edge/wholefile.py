"""Write a file whole or not at all; say whose fault it is when a path cannot be written."""

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Final

from freezeframe.harness.errors import HarnessError, RigError, UsageError

_OF_THE_PATH: Final = {
    errno.ENOENT: "there is no such folder",
    errno.ENOTDIR: "a part of it is a file, not a folder",
    errno.EISDIR: "is a folder; name a file",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "that file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "symbolic links in it lead to themselves",
    errno.EEXIST: "there is already a file of that name",
}
"""Errors that another path would not have: the caller named the wrong one. All others, such as a
full disk, are the machine's."""


def path_error(path: Path, error: OSError) -> HarnessError:
    """Return the error to raise for ``path``, which the caller named: UsageError if the path is
    wrong, else RigError."""
    said = _OF_THE_PATH.get(error.errno or 0)
    if said is not None:
        return UsageError(f"{path}: {said}")
    return RigError(f"{path}: {error.strerror or error}")


def make_folder(path: Path) -> Path:
    """Make the folder that the caller named, with its parents, unless it is there. Raises
    UsageError or RigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise path_error(path, error) from error
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step: an existing file stays until all of it is written.

    Raises UsageError if the path is wrong, RigError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        raise path_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_synced(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write ``path`` whole or not at all, also over a power cut: temporary file, fsync, rename,
    fsync. ``mode``: of a new file, before the umask. OSError: what was there before stays."""
    temporary = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
