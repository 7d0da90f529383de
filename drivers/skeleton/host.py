"""The driver of a volume: how FreezeFrame reads and writes it as its host does. A bench file names it:

    host = "skeleton://10.10.7.11:9000"
    host_driver = "skeleton"

The volume of this skeleton answers over TCP, one question at a time, numbers with the high byte first:

    question    operation u8, offset u64, length u32, and behind a write its data
    answer      status u8 (0: done), length u32, and that many bytes: what was read, or why not

Replace these by what your volume speaks; keep what each method does. A driver that never writes has
``read_only = True`` in its class, and no run is started on such a volume.
"""

import socket
import struct
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from freezeframe.driver import RigError, UsageError, WireError

QUESTION = struct.Struct(">BQI")
ANSWER = struct.Struct(">BI")
INFO, READ, WRITE, FLUSH, TRIM = range(5)
SECTOR_BYTES = 512
MAX_ANSWER_BYTES = 8 << 20
"""A length from the wire is bounded before it is believed."""
TIMEOUT_S = 30.0


class VolumeWire(Protocol):
    """What the driver needs of a TCP connection."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, max_bytes: int, /) -> bytes: ...
    def close(self) -> None: ...


def connect(url: str) -> VolumeWire:
    """A connection to the volume at ``url``. UsageError: it is no address; RigError: nobody is there."""
    parts = urlsplit(url)
    if parts.scheme != "skeleton" or not parts.hostname or not parts.port:
        raise UsageError(f"{url!r} is no address of a volume; expected: skeleton://HOST:PORT")
    try:
        return socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)
    except OSError as error:
        raise RigError(f"{url}: {error}; is the volume exported there?") from error


class SkeletonHost:
    """Plays ``HostPort`` of freezeframe.driver."""

    def __init__(self, url: str, connected: Callable[[str], VolumeWire] = connect) -> None:
        self.url = url
        self._wire = connected(url)
        self.size_bytes = int.from_bytes(self._ask(INFO, 0, 0), "big")

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = self._ask(READ, offset_bytes, length_bytes)
        if len(data) != length_bytes:
            raise WireError(f"{self.url}: {len(data)} bytes for {length_bytes} that were asked for")
        return data

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        self._ask(WRITE, offset_bytes, len(data), data)
        if fua:  # this volume has no forced write of its own
            self.flush()

    def flush(self) -> None:
        self._ask(FLUSH, 0, 0)

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        self._ask(TRIM, offset_bytes, length_bytes)

    def close(self) -> None:
        self._wire.close()

    def _ask(
        self, operation: int, offset_bytes: int, length_bytes: int, data: bytes = b""
    ) -> bytes:
        try:
            self._wire.sendall(QUESTION.pack(operation, offset_bytes, length_bytes) + data)
            status, length = ANSWER.unpack(self._receive(ANSWER.size))
            if length > MAX_ANSWER_BYTES:
                raise WireError(f"{self.url}: an answer of {length} bytes")
            answer = self._receive(length)
        except OSError as error:
            raise RigError(f"{self.url}: {error}") from error
        if status:
            raise RigError(f"{self.url}: refused: {answer.decode('ascii', 'backslashreplace')}")
        return answer

    def _receive(self, length_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < length_bytes:
            piece = self._wire.recv(length_bytes - len(data))
            if not piece:
                raise RigError(f"{self.url}: the connection was closed")
            data += piece
        return bytes(data)
