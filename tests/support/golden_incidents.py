"""The recorded incidents of ``tests/golden/incidents``, unpacked for a test."""

import io
import tarfile
from pathlib import Path

import zstandard

from freezeframe.harness.incidents.store import StoredIncident

FOLDER = Path(__file__).parents[1] / "golden" / "incidents"
RECEIVER, SENDER, LINUX = "bit_flip_receiver", "bit_flip_sender", "linux_flip"


def unpack(name: str, out_dir: Path) -> StoredIncident:
    """Unpack one into ``out_dir``, as a run would have left it there."""
    data = zstandard.ZstdDecompressor().decompress(
        (FOLDER / f"{name}.tar.zst").read_bytes(), max_output_size=16 << 20
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        if hasattr(
            tarfile, "data_filter"
        ):  # not in Debian 12's Python 3.11.2, where it is the only way anyway
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(out_dir)
        folder = archive.getnames()[0]
    return StoredIncident.open(out_dir / folder)
