"""Files that people bring: captures and logs, plain or compressed. Read with a limit, never believed.

gzip and Zstandard are known by their first bytes, whatever the file is called.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

import zstandard

from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.edge.pcapng import runs_of
from freezeframe.harness.errors import UsageError, WireError

MAX_CAPTURE_BYTES: Final = 64 << 30
"""Unpacked."""
MAX_LOG_BYTES: Final = 64 << 20
"""Unpacked: as much of a console as an incident's readers read."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_ZSTD_WINDOW_BYTES: Final = 128 << 20
"""What ``zstd --long`` makes; a header may ask for exabytes."""
_BROKEN: Final = (OSError, EOFError, zlib.error, zstandard.ZstdError)


class _Bounded(io.RawIOBase):
    """Reads ``inner`` as far as it can be unpacked, and no further than the limit."""

    def __init__(self, inner: BinaryIO, limit_bytes: int) -> None:
        self._inner = inner
        self._left = self._limit = limit_bytes
        self.problem = ""
        """Why the file ends early; "": it does not."""

    def read(self, size: int = -1, /) -> bytes:
        if self.problem:
            return b""
        wanted = self._left + 1 if size < 0 else size
        parts: list[bytes] = []
        try:
            while wanted > 0 and (data := self._inner.read(min(wanted, 1 << 20))):
                parts.append(data)
                wanted -= len(data)
        except _BROKEN as error:
            self.problem = f"cannot be unpacked further: {error}"
        whole = b"".join(parts)
        if len(whole) > self._left:
            whole = whole[: self._left]
            self.problem = "only its first bytes are read: it is longer than the limit"
        self._left -= len(whole)
        return whole

    def tell(self) -> int:
        return self._limit - self._left


def _unpacked(path: Path, limit_bytes: int) -> tuple[BinaryIO, _Bounded]:
    """(what is to be closed, what is to be read). UsageError: it cannot be read."""
    try:
        if not path.is_file():
            raise UsageError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        file = path.open("rb")
        magic = file.read(4)
        file.seek(0)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    inner: BinaryIO = file
    if magic[:2] == _GZIP:
        inner = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    elif magic == _ZSTD:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        inner = cast(BinaryIO, unpacker.stream_reader(file, read_across_frames=True))
    return file, _Bounded(inner, limit_bytes)


class CaptureInput:
    """A capture file. ``runs`` may be read more than once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        """Why its end is missing, once it was read; "": it is not."""

    def runs(self) -> Iterator[Run]:
        """UsageError: it cannot be read, or is no capture. Damage behind the first frames is a
        ``problem``: what stands before it is evidence."""
        file, bounded = _unpacked(self.path, MAX_CAPTURE_BYTES)
        frames = 0
        with file:
            try:
                for run in runs_of(cast(BinaryIO, bounded), "it"):
                    frames += run.frames
                    yield run
            except WireError as error:
                if not frames:
                    raise UsageError(f"{self.path}: {bounded.problem or error}") from error
                self.problem = f"damaged after frame {frames}: {error}"
        if bounded.problem:
            if not frames:
                raise UsageError(f"{self.path}: {bounded.problem}")
            self.problem = f"{bounded.problem}; {frames} frames were read"


def read_log(path: Path) -> tuple[bytes, str]:
    """(bytes of a log, why its end is missing). UsageError: it cannot be read."""
    file, bounded = _unpacked(path, MAX_LOG_BYTES)
    with file:
        data = bounded.read(-1)
    if bounded.problem and not data:
        raise UsageError(f"{path}: {bounded.problem}")
    return data, bounded.problem
