"""A controller's backing store: a medium behind a volatile write-back cache, with protection information.

What the host may rely on: data is durable after ``flush``; before it, a power loss (a new Store over the
same medium) loses it, a warmstart (the same Store) does not.

Protection information is a CRC-32 of every 4-KiB block's *intended* content, kept apart from the data. It is not
the CRC-32C that hosts like to put into their blocks: blocks that end in their own CRC have all the same one, so that
an old block would pass for a new one. It covers what was written since power-on.

A block whose content is not what was intended is found
by ``scrub``: that is how lost, misdirected and rotten writes, which all were acknowledged as good, come to
light.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar
from zlib import crc32

BLOCK_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
CACHE_LIMIT_BYTES: Final = 32 << 20
DESTAGE_BLOCKS: Final = 256
"""Blocks destaged at once when the cache is over its limit: 1 MiB, a few milliseconds of a slow medium."""
MAX_METADATA_BYTES: Final = 16 << 20
ZEROES: Final = memoryview(bytes(1 << 20))
"""One step of a trim."""

Buffer = bytes | bytearray | memoryview
FaultMode = Literal["lost", "misdirected", "rotten"]


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


class HasBytes(Protocol):
    def to_bytes(self) -> bytes: ...


M = TypeVar("M", bound=HasBytes)


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


@dataclass(frozen=True, slots=True)
class ScrubMismatch:
    """A block whose content is not what the last write to it intended."""

    offset_bytes: int
    length_bytes: int
    expected_crc32: int
    found_crc32: int
    content: bytes
    """As it was found."""


class Store(Generic[M]):
    """One controller's volume. Offsets and lengths are bytes and multiples of 512; ValueError outside of
    the volume.

    OSError from the medium comes through; what could not be destaged stays in the cache.
    """

    def __init__(self, medium: Medium, size_bytes: int, metadata: M) -> None:
        if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
            raise ValueError(f"size of {size_bytes} bytes: must be a multiple of {BLOCK_BYTES}")
        self.size_bytes = size_bytes
        self.metadata = metadata
        self.flushes = 0
        self._medium = medium
        # Block number -> content that the medium has not got yet, oldest first.
        self._dirty: dict[int, Buffer] = {}
        # Block number -> CRC-32 of the intended content, for every block written since power-on.
        self._intended: dict[int, int] = {}
        # Blocks written since they were last verified, oldest first (the values mean nothing).
        self._to_scrub: dict[int, None] = {}

    # --- counters -----------------------------------------------------------------------------------------

    @property
    def dirty_bytes(self) -> int:
        return len(self._dirty) * BLOCK_BYTES

    @property
    def dirty_extents(self) -> int:
        """Contiguous runs of dirty blocks."""
        return sum(block - 1 not in self._dirty for block in self._dirty)

    # --- the volume ---------------------------------------------------------------------------------------

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._check(offset_bytes, length_bytes)
        first = offset_bytes // BLOCK_BYTES
        behind = -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        if not any(block in self._dirty for block in range(first, behind)):
            return self._medium.pread(offset_bytes, length_bytes)
        pieces: list[Buffer] = []
        clean_from = first
        for block in range(first, behind):
            content = self._dirty.get(block)
            if content is not None:
                pieces += self._clean(clean_from, block)
                pieces.append(content)
                clean_from = block + 1
        pieces += self._clean(clean_from, behind)
        start = offset_bytes - first * BLOCK_BYTES
        if start or length_bytes % BLOCK_BYTES:
            return b"".join(pieces)[start : start + length_bytes]
        return b"".join(pieces)

    def write(self, offset_bytes: int, data: Buffer) -> None:
        self._check(offset_bytes, len(data))
        if offset_bytes % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            for block, content, intended in self._merged(offset_bytes, data):
                self._intended[block] = intended
                self._dirty[block] = content
                self._to_scrub[block] = None
        else:
            first = offset_bytes // BLOCK_BYTES
            contents = [bytes(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
            blocks = range(first, first + len(contents))
            self._intended.update(zip(blocks, map(crc32, contents), strict=True))
            self._dirty.update(zip(blocks, contents, strict=True))
            self._to_scrub.update(dict.fromkeys(blocks))
        self._make_room()

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """Afterwards these bytes read as zeroes: what NBD allows for TRIM and asks of WRITE_ZEROES."""
        self._check(offset_bytes, length_bytes)
        # In steps, so that trimming the whole volume neither takes its size in memory nor overruns the cache.
        for at in range(offset_bytes, offset_bytes + length_bytes, len(ZEROES)):
            self.write(at, ZEROES[: offset_bytes + length_bytes - at])

    def flush(self) -> None:
        """Everything written so far is on the medium when this returns."""
        while self._dirty:
            self._destage(DESTAGE_BLOCKS * 16)
        self._medium.sync()
        self.flushes += 1

    def save_metadata(self) -> None:
        self._medium.write_metadata(self.metadata.to_bytes())

    # --- protection information ---------------------------------------------------------------------------

    def scrub(self, max_blocks: int) -> list[ScrubMismatch]:
        """Verify up to ``max_blocks`` of the blocks written since they were last verified, oldest first."""
        blocks = list(islice(self._to_scrub, max_blocks))
        mismatches = []
        for block in blocks:
            del self._to_scrub[block]
            content = self._content(block)
            found = crc32(content)
            if found != self._intended[block]:
                at = block * BLOCK_BYTES
                mismatches.append(
                    ScrubMismatch(at, BLOCK_BYTES, self._intended[block], found, bytes(content))
                )
        return mismatches

    @property
    def unscrubbed_blocks(self) -> int:
        return len(self._to_scrub)

    def repair(self, offset_bytes: int, data: Buffer) -> None:
        """Write the right data over a mismatch; nothing else is needed."""
        self.write(offset_bytes, data)

    def write_faulty(
        self,
        offset_bytes: int,
        data: Buffer,
        mode: FaultMode,
        *,
        bit: int = 0,
        landing_bytes: int | None = None,
    ) -> None:
        """A write that goes wrong unnoticed: the protection information says what was meant, the content
        differs.

        lost: nothing is stored. misdirected: all is stored at ``landing_bytes`` instead (default: where the highest
        bit of the address that can be flipped leads to). rotten: bit number ``bit`` (modulo the length)
        of the data is stored inverted.
        """
        self._check(offset_bytes, len(data))
        length = len(data)
        if landing_bytes is None:
            landing_bytes = self._misled(offset_bytes, length)
        if mode == "misdirected":
            self._check(landing_bytes, length)
        for block, _, intended in self._merged(offset_bytes, data):
            self._to_scrub[block] = None
            self._intended[block] = intended
        if mode == "misdirected":
            self._damage(landing_bytes, data)
        elif mode == "rotten":
            rotten = bytearray(data)
            rotten[bit // 8 % length] ^= 1 << bit % 8
            self._damage(offset_bytes, rotten)

    def _misled(self, offset_bytes: int, length_bytes: int) -> int:
        """The address with its highest bit flipped that still leads into the volume, and not to where it should."""
        bit = 1 << (self.size_bytes.bit_length() - 1)
        while bit >= length_bytes:
            landing_bytes = offset_bytes ^ bit
            if landing_bytes + length_bytes <= self.size_bytes:
                return landing_bytes
            bit >>= 1
        raise ValueError(f"{length_bytes} bytes have no other place in {self.size_bytes} bytes")

    def _damage(self, offset_bytes: int, data: Buffer) -> None:
        """Store ``data`` without a word to the protection information; the victims will be scrubbed."""
        for block, _, _ in self._merged(offset_bytes, data):
            self._intended.setdefault(block, crc32(self._content(block)))
            self._to_scrub[block] = None
        for block, content, _ in self._merged(offset_bytes, data):
            self._dirty[block] = content
        self._make_room()

    # --- inside -------------------------------------------------------------------------------------------

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes <= 0 or offset_bytes + length_bytes > self.size_bytes:
            raise ValueError(f"{length_bytes} bytes at {offset_bytes}: outside of {self.size_bytes} bytes")
        if (offset_bytes | length_bytes) % SECTOR_BYTES:
            raise ValueError(f"{length_bytes} bytes at {offset_bytes}: not whole sectors")

    def _content(self, block: int) -> Buffer:
        content = self._dirty.get(block)
        return self._medium.pread(block * BLOCK_BYTES, BLOCK_BYTES) if content is None else content

    def _clean(self, first: int, behind: int) -> list[Buffer]:
        """What the medium holds of blocks ``first`` to ``behind`` - 1."""
        if first == behind:
            return []
        return [self._medium.pread(first * BLOCK_BYTES, (behind - first) * BLOCK_BYTES)]

    def _merged(self, offset_bytes: int, data: Buffer) -> Iterator[tuple[int, Buffer, int]]:
        """Each block that a write touches: number, its whole new content, CRC-32 of the intended new
        content."""
        at = 0
        end = len(data)
        block, start = divmod(offset_bytes, BLOCK_BYTES)
        while at < end:
            if not start and end - at >= BLOCK_BYTES:
                content: Buffer = bytes(data[at : at + BLOCK_BYTES])
                yield block, content, crc32(content)
                at += BLOCK_BYTES
            else:
                taken = min(BLOCK_BYTES - start, end - at)
                old = self._content(block)
                merged = b"".join((old[:start], data[at : at + taken], old[start + taken :]))
                yield block, merged, crc32(merged) ^ self._damage_of(block, old)
                at += taken
            start = 0
            block += 1

    def _damage_of(self, block: int, content: Buffer) -> int:
        """By how much the CRC of a block's content differs from the intended one: 0 when all is well.

        CRCs of equal length are linear: the damage outside of a partial write changes the new CRC by the
        same XOR. Carried over, it keeps a mismatch visible that recomputing from the damaged content would
        hide.
        """
        intended = self._intended.get(block)
        return 0 if intended is None else crc32(content) ^ intended

    def _make_room(self) -> None:
        while len(self._dirty) * BLOCK_BYTES > CACHE_LIMIT_BYTES:
            self._destage(DESTAGE_BLOCKS)

    def _destage(self, max_blocks: int) -> None:
        """Write the oldest dirty blocks to the medium, neighbours together."""
        blocks = sorted(islice(self._dirty, max_blocks))
        at = 0
        while at < len(blocks):
            end = at + 1
            while end < len(blocks) and blocks[end] == blocks[end - 1] + 1:
                end += 1
            run = blocks[at:end]
            self._medium.pwrite(run[0] * BLOCK_BYTES, b"".join(self._dirty[block] for block in run))
            for block in run:
                del self._dirty[block]
            at = end
