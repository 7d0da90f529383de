"""The backing store of a controller: a medium behind a volatile write-back cache, with protection
information.

Guarantee for the host: data is durable after ``flush``. Before it, a power loss (a new Store over
the same medium) loses the data, a warmstart (the same Store) does not.

Protection information is a CRC-32 of the *intended* content of every 4-KiB block, kept apart from
the data. It is not CRC-32C, which hosts often put into their blocks: blocks that end in their own
CRC all have the same CRC, so that an old block would pass for a new one. It covers everything
written since power-on.

``scrub`` finds blocks whose content is not the intended one: lost, misdirected and rotten writes,
which were all acknowledged as good.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from isal.isal_zlib import crc32

from freezeframe.firmware_sim.medium import Buffer, Medium

BLOCK_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
CACHE_LIMIT_BYTES: Final = 32 << 20
DESTAGE_BYTES: Final = 1 << 20
"""Destaged at once when the cache is over its limit: a few milliseconds of a slow medium."""
ZEROES: Final = bytes(1 << 20)
"""One step of a trim."""

Checksums: TypeAlias = "array[int]"
FaultMode = Literal["lost", "misdirected", "rotten"]


class HasBytes(Protocol):
    def to_bytes(self) -> bytes: ...


M = TypeVar("M", bound=HasBytes)


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
    """One controller's volume. Offsets and lengths are bytes and multiples of 512; ValueError
    outside of the volume.

    OSError from the medium comes through; what could not be destaged stays in the cache.

    The cache is a log of writes, each in whole blocks, and for every block the number of the write
    that holds its newest content. What a block is known for is kept in arrays over all blocks, so
    that a long write costs little more than a short one.
    """

    def __init__(self, medium: Medium, size_bytes: int, metadata: M) -> None:
        if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
            raise ValueError(f"size of {size_bytes} bytes: must be a multiple of {BLOCK_BYTES}")
        self.size_bytes = size_bytes
        self.metadata = metadata
        self.flushes = 0
        self._medium = medium
        blocks = size_bytes // BLOCK_BYTES
        # Number of a write -> its first block and its content, oldest first; overwritten content
        # counts until destaged.
        self._log: dict[int, tuple[int, bytes]] = {}
        self._log_bytes = 0
        self._next_number = 1
        # Of every block: the number of the write that holds what the medium has not got yet, or 0.
        self._newest = array("Q", (0,)) * blocks
        # Of every block: CRC-32 of the intended content; whether there is one (it was written since
        # power-on), and whether it was written since it was last verified.
        self._intended = array("I", (0,)) * blocks
        self._protected = bytearray(blocks)
        self._unscrubbed = bytearray(blocks)
        # Where there are unscrubbed blocks: first block and number of blocks, oldest first.
        self._to_scrub: deque[tuple[int, int]] = deque()

    # --- counters -----------------------------------------------------------------------------------------

    @property
    def dirty_bytes(self) -> int:
        return len(self._dirty()) * BLOCK_BYTES

    @property
    def dirty_extents(self) -> int:
        """Contiguous runs of dirty blocks."""
        dirty = self._dirty()
        return sum(block - 1 not in dirty for block in dirty)

    def _dirty(self) -> set[int]:
        """Blocks that the medium has not got yet. The work is bounded by the cache, not by the
        volume."""
        return {
            block
            for number, (first, content) in self._log.items()
            for block in range(first, first + len(content) // BLOCK_BYTES)
            if self._newest[block] == number
        }

    # --- the volume ---------------------------------------------------------------------------------------

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._check(offset_bytes, length_bytes)
        first, skipped_bytes = divmod(offset_bytes, BLOCK_BYTES)
        whole = b"".join(self._pieces(first, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)))
        return whole[skipped_bytes : skipped_bytes + length_bytes]

    def write(self, offset_bytes: int, data: Buffer) -> None:
        self._check(offset_bytes, len(data))
        first, content, checksums = self._whole_blocks(offset_bytes, data)
        self._protect(first, checksums)
        self._keep(first, content)

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """Afterwards these bytes read as zeroes: what NBD allows for TRIM and asks of
        WRITE_ZEROES."""
        self._check(offset_bytes, length_bytes)
        # In steps, so that trimming the whole volume neither takes its size in memory nor overruns
        # the cache.
        for at in range(offset_bytes, offset_bytes + length_bytes, len(ZEROES)):
            self.write(at, ZEROES[: offset_bytes + length_bytes - at])

    def flush(self) -> None:
        """Everything written so far is on the medium when this returns."""
        while self._log:
            self._destage(DESTAGE_BYTES * 16)
        self._medium.sync()
        self.flushes += 1

    def save_metadata(self) -> None:
        self._medium.write_metadata(self.metadata.to_bytes())

    # --- protection information ---------------------------------------------------------------------------

    @property
    def unscrubbed_blocks(self) -> int:
        return self._unscrubbed.count(1)

    @property
    def needs_scrub(self) -> bool:
        """Whether there are any unscrubbed blocks: asked at every write, so it must cost
        nothing."""
        return bool(self._to_scrub)

    def scrub(self, max_blocks: int) -> list[ScrubMismatch]:
        """Verify up to ``max_blocks`` of the blocks written since they were last verified, oldest
        first."""
        mismatches = []
        while self._to_scrub and max_blocks > 0:
            first, blocks = self._to_scrub.popleft()
            if blocks > max_blocks:
                self._to_scrub.appendleft((first + max_blocks, blocks - max_blocks))
                blocks = max_blocks
            behind = first + blocks
            due = self._unscrubbed[first:behind]
            if 1 not in due:
                continue  # An older entry held them, too.
            max_blocks -= blocks
            self._unscrubbed[first:behind] = bytes(blocks)
            found, intended = _checksums(*self._pieces(first, behind)), self._intended[first:behind]
            if found == intended:
                continue
            for at in range(blocks):
                if due[at] and found[at] != intended[at]:
                    offset_bytes = (first + at) * BLOCK_BYTES
                    content = self.read(offset_bytes, BLOCK_BYTES)
                    mismatches.append(
                        ScrubMismatch(offset_bytes, BLOCK_BYTES, intended[at], found[at], content)
                    )
        return mismatches

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
        """A write that goes wrong unnoticed: the protection information says what was meant, the
        content differs.

        lost: nothing is stored. misdirected: all is stored at ``landing_bytes`` instead (default:
        where the highest bit of the address that can be flipped leads to; nowhere, when there is
        none). rotten: bit number ``bit`` (modulo the length) of the data is stored inverted.
        """
        self._check(offset_bytes, len(data))
        length = len(data)
        if mode == "misdirected":
            if landing_bytes is None:
                landing_bytes = self._misled(offset_bytes, length)
            else:
                self._check(landing_bytes, length)
        first, _, checksums = self._whole_blocks(offset_bytes, data)
        self._protect(first, checksums)
        if mode == "misdirected" and landing_bytes is not None:
            self._damage(landing_bytes, data)
        elif mode == "rotten":
            rotten = bytearray(data)
            rotten[bit // 8 % length] ^= 1 << bit % 8
            self._damage(offset_bytes, rotten)

    def _misled(self, offset_bytes: int, length_bytes: int) -> int | None:
        """The address with its highest bit flipped that still leads into the volume, and not to
        where it should."""
        bit = 1 << (self.size_bytes.bit_length() - 1)
        while bit >= length_bytes:
            landing_bytes = offset_bytes ^ bit
            if landing_bytes + length_bytes <= self.size_bytes:
                return landing_bytes
            bit >>= 1
        return None

    def _damage(self, offset_bytes: int, data: Buffer) -> None:
        """Store ``data`` without a word to the protection information; the victims will be
        scrubbed."""
        first, content, _ = self._whole_blocks(offset_bytes, data)
        blocks = len(content) // BLOCK_BYTES
        meant = self._intended[first : first + blocks]
        before = _checksums(self.read(first * BLOCK_BYTES, blocks * BLOCK_BYTES))
        for at in range(blocks):
            if not self._protected[first + at]:
                meant[at] = before[at]
        self._protect(first, meant)
        self._keep(first, content)

    # --- inside -------------------------------------------------------------------------------------------

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes <= 0 or offset_bytes + length_bytes > self.size_bytes:
            raise ValueError(
                f"{length_bytes} bytes at {offset_bytes}: outside of {self.size_bytes} bytes"
            )
        if (offset_bytes | length_bytes) % SECTOR_BYTES:
            raise ValueError(f"{length_bytes} bytes at {offset_bytes}: not whole sectors")

    def _whole_blocks(self, offset_bytes: int, data: Buffer) -> tuple[int, bytes, Checksums]:
        """The blocks that a write touches: the first one, their new content, CRC-32 of each one's
        intended new content.

        CRCs of equal length are linear: the damage outside of a partial write changes the new CRC
        by the same XOR as the old one. Carried over, it keeps a mismatch visible that recomputing
        from the damaged content would hide.
        """
        first, start = divmod(offset_bytes, BLOCK_BYTES)
        end = offset_bytes + len(data)
        behind = -(-end // BLOCK_BYTES)
        rest = behind * BLOCK_BYTES - end
        if not start and not rest:
            content = bytes(data)
            return first, content, _checksums(content)
        partial = {first} if start else set()
        partial |= {behind - 1} if rest else set()
        old = {block: self.read(block * BLOCK_BYTES, BLOCK_BYTES) for block in partial}
        head = old[first][:start] if start else b""
        tail = old[behind - 1][BLOCK_BYTES - rest :] if rest else b""
        content = b"".join((head, data, tail))
        checksums = _checksums(content)
        for block, was in old.items():
            if self._protected[block]:
                checksums[block - first] ^= crc32(was) ^ self._intended[block]
        return first, content, checksums

    def _protect(self, first: int, checksums: Checksums) -> None:
        """What these blocks are meant to be from now on; they are to be scrubbed."""
        blocks = len(checksums)
        behind = first + blocks
        yes = b"\1" * blocks
        self._intended[first:behind] = checksums
        self._protected[first:behind] = yes
        if self._unscrubbed[first:behind] != yes:
            self._unscrubbed[first:behind] = yes
            self._to_scrub.append((first, blocks))

    def _keep(self, first: int, content: bytes) -> None:
        """Take the new content of whole blocks into the cache; make room when it is full."""
        number = self._next_number
        self._next_number = number + 1
        blocks = len(content) // BLOCK_BYTES
        self._log[number] = first, content
        self._log_bytes += len(content)
        self._newest[first : first + blocks] = array("Q", (number,)) * blocks
        while self._log_bytes > CACHE_LIMIT_BYTES:
            self._destage(DESTAGE_BYTES)

    def _pieces(self, first: int, behind: int) -> list[Buffer]:
        """The content of blocks ``first`` to ``behind`` - 1, as it lies in the cache and on the
        medium."""
        number, blocks = self._newest[first], behind - first
        if blocks == 1 or self._newest[first:behind] == array("Q", (number,)) * blocks:
            return [self._content(number, first, blocks)]
        return [self._content(*run) for run in self._runs(first, behind)]

    def _runs(self, first: int, behind: int) -> list[tuple[int, int, int]]:
        """(number of the write that holds them or 0, first block, blocks) of each run of blocks."""
        runs = []
        for number, run in groupby(self._newest[first:behind]):
            blocks = sum(1 for _ in run)
            runs.append((number, first, blocks))
            first += blocks
        return runs

    def _content(self, number: int, first: int, blocks: int) -> Buffer:
        """What write ``number`` (0: the medium) holds of some blocks."""
        if not number:
            return self._medium.pread(first * BLOCK_BYTES, blocks * BLOCK_BYTES)
        start, content = self._log[number]
        if len(content) == blocks * BLOCK_BYTES:
            return content
        at = (first - start) * BLOCK_BYTES
        return memoryview(content)[at : at + blocks * BLOCK_BYTES]

    def _destage(self, max_bytes: int) -> None:
        """Write the oldest part of the cache to the medium, neighbours together."""
        numbers: list[int] = []
        extents: list[tuple[int, int, Buffer]] = []
        taken_bytes = 0
        for number, (first, content) in self._log.items():
            numbers.append(number)
            blocks = len(content) // BLOCK_BYTES
            behind = first + blocks
            if self._newest[first:behind] == array("Q", (number,)) * blocks:
                extents.append((first, behind, content))
            else:
                for owner, start, some in self._runs(first, behind):
                    if owner == number:
                        extents.append((start, start + some, self._content(number, start, some)))
            taken_bytes += len(content)
            if taken_bytes >= max_bytes:
                break
        runs: list[tuple[int, int, list[Buffer]]] = []
        for first, behind, data in sorted(extents):
            if runs and runs[-1][1] == first:
                first, _, neighbours = runs.pop()
                neighbours.append(data)
                runs.append((first, behind, neighbours))
            else:
                runs.append((first, behind, [data]))
        try:
            for first, behind, pieces in runs:
                self._medium.pwrite(first * BLOCK_BYTES, b"".join(pieces))
                self._newest[first:behind] = array("Q", (0,)) * (behind - first)
        except OSError:
            # Nothing is lost, but what has been overwritten must not pile up until the medium is
            # well again.
            self._forget(number for number in list(self._log) if not self._holds_any(number))
            raise
        self._forget(numbers)

    def _holds_any(self, number: int) -> bool:
        """Whether a write holds the newest content of any block."""
        first, content = self._log[number]
        return number in self._newest[first : first + len(content) // BLOCK_BYTES]

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._log_bytes -= len(self._log.pop(number)[1])


def _checksums(*pieces: Buffer) -> Checksums:
    """CRC-32 of each block."""
    if len(pieces) == 1 and len(pieces[0]) == BLOCK_BYTES:
        return array("I", (crc32(pieces[0]),))
    views = [memoryview(piece) for piece in pieces]
    return array(
        "I",
        [
            crc32(view[at : at + BLOCK_BYTES])
            for view in views
            for at in range(0, len(view), BLOCK_BYTES)
        ],
    )


assert array("I").itemsize == 4 and array("Q").itemsize == 8
