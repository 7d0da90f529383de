"""Read a volume from its disk image: what a virtual controller has actually stored. Read-only."""

import os

from freezeframe.harness.errors import RigError, UsageError


class ImageHost:
    """``HostPort`` over a raw image file, while the machine that owns it runs."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RigError(f"disk image {path}: {error.strerror}; is the rig up?") from error
        self.size_bytes = os.fstat(self._fd).st_size

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from the image. Raises RigError: the image is shorter."""
        data = bytearray()
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
