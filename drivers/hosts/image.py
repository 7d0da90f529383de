"""Read a volume from its disk image: what a virtual controller has actually stored. Read-only."""

import os

from freezeframe.harness.errors import RigError, UsageError


class ImageHost:
    """``HostPort`` over a raw image file, while the machine that owns it runs.

    ``PATH?offset=BYTES``: the volume begins there; a mirror's metadata lie before it.
    """

    read_only = True

    def __init__(self, path: str) -> None:
        path, _, query = path.partition("?offset=")
        if query and not (query.isascii() and query.isdecimal() and len(query) < 16):
            raise UsageError(f"disk image {path}: offset={query}: write a number of bytes")
        self._path, self._offset_bytes = path, int(query or 0)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RigError(f"disk image {path}: {error.strerror}; is the rig up?") from error
        self.size_bytes = os.fstat(self._fd).st_size - self._offset_bytes
        if self.size_bytes <= 0:
            self.close()
            raise UsageError(f"disk image {path} ends before byte {self._offset_bytes}")

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from the image. Raises RigError: the image is shorter."""
        data = bytearray()
        offset_bytes += self._offset_bytes
        while len(data) < length_bytes:
            piece = os.pread(self._fd, length_bytes - len(data), offset_bytes + len(data))
            if not piece:
                raise RigError(f"disk image {self._path} ends at byte {offset_bytes + len(data)}")
            data += piece
        return bytes(data)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        raise UsageError(f"disk image {self._path} is read-only: only its controller writes it")

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        raise UsageError(f"disk image {self._path} is read-only: only its controller writes it")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
