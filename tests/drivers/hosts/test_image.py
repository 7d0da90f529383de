"""A volume in a disk image: whole, or after a mirror's metadata."""

from pathlib import Path

import pytest

from freezeframe.drivers.hosts.image import ImageHost
from freezeframe.harness.errors import RigError, UsageError


def test_a_volume_may_begin_inside_the_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    whole, volume = ImageHost(str(path)), ImageHost(f"{path}?offset=1024")
    try:
        assert (whole.size_bytes, volume.size_bytes) == (4096, 3072)
        assert volume.read(512, 700) == whole.read(1536, 700)
        with pytest.raises(RigError, match="ends at byte 4096"):
            volume.read(3000, 100)
        with pytest.raises(UsageError, match="read-only"):
            volume.write(0, b"x")
    finally:
        whole.close()
        volume.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [("4096", "ends before byte 4096"), ("-1", "write a number"), ("1k", "write a number")],
)
def test_an_offset_that_cannot_be_is_refused(tmp_path: Path, query: str, text: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with pytest.raises(UsageError, match=text):
        ImageHost(f"{tmp_path}/disk.img?offset={query}")
