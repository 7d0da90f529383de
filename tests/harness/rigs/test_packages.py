"""Where the packages of the virtual nodes come from."""

from pathlib import Path

import pytest

from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs import packages
from freezeframe.harness.rigs.packages import ARCHIVE_VARIABLE, Archive


@pytest.mark.parametrize(
    ("named", "used"),
    [
        (None, "http://deb.debian.org/debian"),
        ("", "http://deb.debian.org/debian"),
        ("https://mirror.example/debian/", "https://mirror.example/debian"),
    ],
)
def test_a_machine_that_is_no_debian_12_asks_debians_mirror_or_the_one_that_is_named(
    named: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_host_suite", lambda: "noble")
    key = tmp_path / "key.gpg"
    key.touch()
    monkeypatch.setattr(packages, "KEYRING", key)
    monkeypatch.delenv(ARCHIVE_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(ARCHIVE_VARIABLE, named)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(packages, "run", lambda *words, **_: asked.append(words))
    Archive(tmp_path / "apt", "linux-image-cloud-amd64")
    assert [words[0] for words in asked] == ["apt-get"]
    sources = (tmp_path / "apt" / "etc" / "sources.list").read_text()
    assert sources.splitlines() == [
        f"deb [signed-by={key} arch=amd64] {used} bookworm main",
        f"deb [signed-by={key} arch=amd64] {used}-security bookworm-security main",
    ]


@pytest.mark.parametrize(
    "named", ["file:///etc", "http://mirror.example/debian main\ndeb http://other"]
)
def test_what_is_no_url_of_a_mirror_is_refused(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_host_suite", lambda: "noble")
    monkeypatch.setenv(ARCHIVE_VARIABLE, named)
    with pytest.raises(
        RigError, match=f"{ARCHIVE_VARIABLE} is to be the URL of a mirror of Debian"
    ):
        Archive(tmp_path, "linux-image-cloud-amd64")
    assert list(tmp_path.iterdir()) == []
