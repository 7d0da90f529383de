"""Durable storage under a controller's store: a file, or memory for virtual time."""

import os
from pathlib import Path
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview
MAX_METADATA_BYTES: Final = 16 << 20


class Medium(Protocol):
    """Durable storage. ``pread`` beyond what was ever written gives zeroes. Errors are OSError."""

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes: ...
    def pwrite(self, offset_bytes: int, data: Buffer) -> None: ...
    def sync(self) -> None: ...
    def read_metadata(self) -> bytes | None:
        """What ``write_metadata`` stored last; None when it never did."""
        ...

    def write_metadata(self, data: bytes) -> None:
        """Replace the metadata: afterwards the old or the new is there, never a mixture."""
        ...


class FileMedium:
    """A sparse file, and the metadata in a file beside it (``NAME.meta``)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._metadata_path = self._path.with_name(self._path.name + ".meta")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = os.pread(self._fd, length_bytes, offset_bytes)
        return data if len(data) == length_bytes else data + bytes(length_bytes - len(data))

    def pwrite(self, offset_bytes: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset_bytes)
            view, offset_bytes = view[written:], offset_bytes + written

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def read_metadata(self) -> bytes | None:
        try:
            with self._metadata_path.open("rb") as file:
                return file.read(MAX_METADATA_BYTES)
        except FileNotFoundError:
            return None

    def write_metadata(self, data: bytes) -> None:
        fresh = self._metadata_path.with_name(self._metadata_path.name + ".new")
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        fresh.replace(self._metadata_path)

    def close(self) -> None:
        os.close(self._fd)


class MemoryMedium:
    """A medium for virtual time: survives a Store as a file would."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._metadata: bytes | None = None
        self.syncs = 0

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = bytes(self._data[offset_bytes : offset_bytes + length_bytes])
        return data + bytes(length_bytes - len(data))

    def pwrite(self, offset_bytes: int, data: Buffer) -> None:
        end = offset_bytes + len(data)
        if end > len(self._data):
            self._data += bytes(end - len(self._data))
        self._data[offset_bytes:end] = data

    def sync(self) -> None:
        self.syncs += 1

    def read_metadata(self) -> bytes | None:
        return self._metadata

    def write_metadata(self, data: bytes) -> None:
        self._metadata = data
