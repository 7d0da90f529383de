"""A path that cannot be written: whose fault it is follows from the error, not from the command."""

import errno
import os
from pathlib import Path

import pytest

from freezeframe.harness.edge.wholefile import make_folder, path_error, write_whole
from freezeframe.harness.errors import RigError, UsageError


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_a_wrong_path_is_the_callers_fault_and_a_full_disk_the_machines(number: int) -> None:
    error = path_error(Path("/some/where"), OSError(number, os.strerror(number)))
    assert str(error).startswith("/some/where: ")
    wrong = {
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EACCES",
        "EPERM",
        "EROFS",
        "ENAMETOOLONG",
        "ELOOP",
        "EEXIST",
    }
    expected = UsageError if errno.errorcode[number] in wrong else RigError
    assert type(error) is expected


def test_what_is_written_is_whole_and_what_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    with pytest.raises(UsageError, match="no such folder"):
        write_whole(tmp_path / "none" / "a", b"x")
    with pytest.raises(UsageError, match="name a file"):
        write_whole(tmp_path, b"x")
    with pytest.raises(UsageError, match="is a file"):
        write_whole(tmp_path / "a" / "b", b"x")
    with pytest.raises(UsageError, match="already a file"):
        make_folder(tmp_path / "a")
    assert make_folder(tmp_path / "b" / "c").is_dir()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"two"
