"""Integrity algorithms of DRBD's replication link: a digest over the data of a packet, in front of
that data."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import crc32c

_U32_LE: Final = struct.Struct("<I")


@dataclass(frozen=True)
class Integrity:
    name: str
    size_bytes: int
    digest: Callable[[bytes | memoryview], bytes] | None
    """None: the size is known and the algorithm is not, so that nothing can be checked."""


def _crc32c(data: bytes | memoryview) -> bytes:
    return _U32_LE.pack(crc32c.crc32c(data))


def _hash(name: str) -> Callable[[bytes | memoryview], bytes]:
    return lambda data: hashlib.new(name, data, usedforsecurity=False).digest()


INTEGRITY: Final[dict[str, Integrity]] = {
    "": Integrity("", 0, None),
    "crc32c": Integrity("crc32c", 4, _crc32c),
    "md5": Integrity("md5", 16, _hash("md5")),
    "sha1": Integrity("sha1", 20, _hash("sha1")),
    "sha224": Integrity("sha224", 28, _hash("sha224")),
    "sha256": Integrity("sha256", 32, _hash("sha256")),
    "sha384": Integrity("sha384", 48, _hash("sha384")),
    "sha512": Integrity("sha512", 64, _hash("sha512")),
}
"""By the kernel's names, as P_PROTOCOL carries them. "" is no integrity check."""
BY_SIZE: Final[dict[int, Integrity]] = {one.size_bytes: one for one in INTEGRITY.values()}
"""The usual algorithm with a digest of so many bytes."""

assert len(BY_SIZE) == len(INTEGRITY)
