"""Where the packages of the virtual nodes come from."""

from pathlib import Path

import pytest

from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs import packages
from freezeframe.harness.rigs.packages import ARCHIVE_VARIABLE, Archive


@pytest.mark.parametrize(
    "named", [None, "", "file:///etc", "http://mirror.example/debian main\ndeb http://other"]
)
def test_a_machine_that_is_no_debian_12_is_told_what_to_set(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_host_suite", lambda: "noble")
    monkeypatch.delenv(ARCHIVE_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(ARCHIVE_VARIABLE, named)
    with pytest.raises(RigError, match=f"set {ARCHIVE_VARIABLE} to the URL of a mirror of Debian"):
        Archive(tmp_path, "linux-image-cloud-amd64")
    assert list(tmp_path.iterdir()) == []
