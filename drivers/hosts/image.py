"""Read a volume from its disk image: what a virtual controller has actually stored. Read-only."""

import os

from freezeframe.harness.errors import RigError, UsageError


class ImageHost:
    """``HostPort`` over a raw image file, while the machine that owns it runs.

    ``PATH?offset=BYTES&size_bytes=BYTES``: the volume begins at that offset (a mirror's metadata lie
    before it) and has that size (DRBD's internal metadata lie after it). Either may be left out.
    """

    read_only = True

    def __init__(self, path: str) -> None:
        path, _, query = path.partition("?")
        place = dict.fromkeys(("offset", "size_bytes"), 0)
        for word in query.split("&") if query else ():
            key, _, value = word.partition("=")
            if key not in place:
                raise UsageError(f"disk image {path}: {key}: allowed: {', '.join(place)}")
            if not (value.isascii() and value.isdecimal() and len(value) < 16):
                raise UsageError(f"disk image {path}: {key}={value}: write a number of bytes")
            place[key] = int(value)
        self._path, self._offset_bytes = path, place["offset"]
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RigError(f"disk image {path}: {error.strerror}; is the rig up?") from error
        self.size_bytes = os.fstat(self._fd).st_size - self._offset_bytes
        if self.size_bytes <= 0:
            self.close()
            raise UsageError(f"disk image {path} ends before byte {self._offset_bytes}")
        if place["size_bytes"] > self.size_bytes:
            self.close()
            raise UsageError(
                f"disk image {path}: size_bytes={place['size_bytes']}: it has {self.size_bytes} from "
                f"byte {self._offset_bytes} on"
            )
        self.size_bytes = place["size_bytes"] or self.size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from the image. Raises RigError: the image is shorter."""
        data = bytearray()
        end_bytes = self._offset_bytes + self.size_bytes
        offset_bytes += self._offset_bytes
        while len(data) < length_bytes:
            at_bytes = offset_bytes + len(data)
            wanted = min(length_bytes - len(data), end_bytes - at_bytes)
            piece = os.pread(self._fd, wanted, at_bytes) if wanted > 0 else b""
            if not piece:
                raise RigError(f"disk image {self._path}: the volume ends at byte {at_bytes}")
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
