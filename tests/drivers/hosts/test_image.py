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
        with pytest.raises(RigError, match="the volume ends at byte 4096"):
            volume.read(3000, 100)
        with pytest.raises(UsageError, match="read-only"):
            volume.write(0, b"x")
    finally:
        whole.close()
        volume.close()


def test_metadata_may_follow_the_volume(tmp_path: Path) -> None:
    """DRBD's internal metadata: the image is larger than the volume, and nobody reads into them."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    volume = ImageHost(f"{path}?size_bytes=1024")
    inside = ImageHost(f"{path}?offset=512&size_bytes=1024")
    try:
        assert volume.size_bytes == inside.size_bytes == 1024
        assert inside.read(0, 512) == volume.read(512, 512)
        with pytest.raises(RigError, match="the volume ends at byte 1024"):
            volume.read(512, 1024)
    finally:
        volume.close()
        inside.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("offset=4096", "ends before byte 4096"),
        ("offset=-1", "write a number"),
        ("offset=1k", "write a number"),
        ("offset=512&size_bytes=3585", "it has 3584 from byte 512 on"),
        ("size=512", "size: allowed: offset, size_bytes"),
        ("offset", "offset=: write a number"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, query: str, text: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with pytest.raises(UsageError, match=text):
        ImageHost(f"{tmp_path}/disk.img?{query}")
