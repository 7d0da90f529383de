"""Self-describing host blocks, and the journal of their writer. Pure: bytes to bytes.

Every 512-byte sector carries a stamp (table: ``harness/wire/blockstamp.py``), so that one sector
is enough to decide whether it is complete and in the right place. The journal records requests and
replies. Together they define the required content of the volume to the byte, however the writer
ended.
"""

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final, Self

from crc32c import crc32c

from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import blockstamp as wire

MAX_WRITE_SECTORS: Final = (32 << 20) // wire.SECTOR_BYTES
MAX_SECTORS: Final = 1 << 26
"""32 GiB. A journal with a higher sector number is damaged; its map would not fit into memory."""
MIN_TORN_BYTES: Final = 32
"""Minimum number of foreign bytes at the end of a torn sector; fewer count as damage."""
MIN_OWN_BYTES: Final = 4
"""Minimum number of fill bytes of the write named in the header; fewer mean a damaged header."""
_FILL_AT: Final = wire.HEADER.size
_FILL_END: Final = wire.HEADER.size + wire.FILL_BYTES
_SEED: Final = struct.Struct("<IQ")
_ZERO_SECTOR: Final = bytes(wire.SECTOR_BYTES)


class Kind(StrEnum):
    """The result of checking one sector."""

    OK = "ok"
    LOST = "lost"
    """All zeroes, as if never written."""
    STALE = "stale"
    """Complete and in its place, but from an earlier write than the acknowledged one."""
    TORN = "torn"
    """Begins with one write and ends with another."""
    MISDIRECTED = "misdirected"
    """Complete, but belongs to another sector."""
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The header of a sector: the fields of ``wire.FIELDS`` without the magic."""

    volume: int
    seed: int
    lba: int
    write_id: int
    write_lba: int
    time_ns: int


@lru_cache(maxsize=1024)
def _fill(seed: int, write_id: int) -> bytes:
    return hashlib.shake_128(_SEED.pack(seed, write_id)).digest(wire.FILL_BYTES)


def stamp(volume: int, seed: int, write_id: int, lba: int, sectors: int, time_ns: int) -> bytes:
    """Return the data of one write: ``sectors`` stamped sectors from ``lba``. Only the low 32 bits
    of ``seed`` are used."""
    return _stamped(Stamp(volume, seed & 0xFFFFFFFF, lba, write_id, lba, time_ns), sectors)


def _stamped(first: Stamp, sectors: int) -> bytes:
    """Return ``sectors`` sectors of one write; ``first`` is the header of the first one."""
    block = bytearray(sectors * wire.SECTOR_BYTES)
    view = memoryview(block)
    volume, seed, write_id, write_lba, time_ns = (
        first.volume,
        first.seed,
        first.write_id,
        first.write_lba,
        first.time_ns,
    )
    fill = _fill(seed, write_id)
    pack_header, pack_crc = wire.HEADER.pack_into, wire.CRC.pack_into
    at = 0
    for lba in range(first.lba, first.lba + sectors):
        pack_header(block, at, wire.MAGIC, volume, seed, lba, write_id, write_lba, time_ns)
        view[at + _FILL_AT : at + _FILL_END] = fill
        pack_crc(block, at + _FILL_END, crc32c(view[at : at + _FILL_END]))
        at += wire.SECTOR_BYTES
    return bytes(block)


@lru_cache(maxsize=4096)
def stamped_crc(sectors: int) -> int:
    """Return the CRC-32C of ``sectors`` complete stamped sectors. It does not depend on their
    content, because each sector ends with its own CRC."""
    whole: int = crc32c(stamp(0, 0, 0, 0, sectors, 0))
    return whole


def decode(sector: bytes) -> Stamp | None:
    """Decode the stamp of a sector. None: not a stamped sector, or damaged."""
    if len(sector) != wire.SECTOR_BYTES or sector[:8] != wire.MAGIC:
        return None
    if crc32c(sector[:_FILL_END]) != wire.CRC.unpack_from(sector, _FILL_END)[0]:
        return None
    _, volume, seed, lba, write_id, write_lba, time_ns = wire.HEADER.unpack_from(sector)
    return Stamp(volume, seed, lba, write_id, write_lba, time_ns)


def is_unbroken(data: bytes | memoryview, data_crc32c: int) -> bool:
    """Return whether each sector is as its writer stamped it, whoever that was, or all zeroes. A
    mirror copies what was never written, and several writes as one."""
    if data_crc32c == stamped_crc(len(data) // wire.SECTOR_BYTES):
        return True
    for at in range(0, len(data), wire.SECTOR_BYTES):
        sector = bytes(data[at : at + wire.SECTOR_BYTES])
        if sector != _ZERO_SECTOR and decode(sector) is None:
            return False
    return True


def check(sector: bytes, lba: int, allowed: Collection[int] | None = None) -> Kind:
    """Check a sector found at ``lba``. ``allowed``: write ids that may be there; other ids are
    stale."""
    if sector == _ZERO_SECTOR:
        return Kind.LOST
    found = decode(sector)
    if found is None:
        return Kind.TORN if _is_torn(sector, lba) else Kind.CORRUPT
    if found.lba != lba:
        return Kind.MISDIRECTED
    if allowed is not None and found.write_id not in allowed:
        return Kind.STALE
    return Kind.OK


def _is_torn(sector: bytes, lba: int) -> bool:
    """Return whether a damaged sector follows the write of its header up to a seam and is foreign
    from there on."""
    if len(sector) != wire.SECTOR_BYTES or sector[:8] != wire.MAGIC:
        return False
    _, _, seed, found_lba, write_id, _, _ = wire.HEADER.unpack_from(sector)
    if found_lba != lba:
        return False
    differs = [
        a != b for a, b in zip(sector[_FILL_AT:_FILL_END], _fill(seed, write_id), strict=True)
    ]
    if True not in differs or True in differs[:MIN_OWN_BYTES]:
        return False
    foreign = differs[differs.index(True) :]
    # One in 256 foreign bytes agrees by chance; bit rot leaves most bytes unchanged.
    return len(foreign) >= MIN_TORN_BYTES and sum(foreign) > len(foreign) * 3 // 4


# --- journal ----------------------------------------------------------------------------------------------

JOURNAL_MAGIC: Final = b"FFJRNL01"
JOURNAL_HEADER: Final = struct.Struct("<8sIIQQ")
"""magic, volume, seed (low 32 bits), first sector and number of sectors of the range that the
writer may write."""
RECORD: Final = struct.Struct("<BxxxIQQQ")
"""kind, sectors, write_id, lba, time_ns; then a CRC-32C of these. time_ns: time in the stamps; in
an ACK, time of the reply."""
RECORD_BYTES: Final = RECORD.size + 4
INTENT: Final = 1
ACK: Final = 2
FLUSHED: Final = 3
"""A flush was answered: everything acknowledged before it is on stable storage. This kind and the
next one name no write."""
DISCONNECTED: Final = 4
"""The host port disconnected: acknowledged writes not yet covered by a flush may have been in a
volatile cache."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the journal."""

    write_id: int
    lba: int
    sectors: int
    time_ns: int


def journal_header(volume: int, seed: int, first_lba: int, sectors: int) -> bytes:
    return JOURNAL_HEADER.pack(JOURNAL_MAGIC, volume, seed & 0xFFFFFFFF, first_lba, sectors)


def journal_span(data: bytes) -> tuple[int, int, int, int] | None:
    """Volume, seed, first sector and sectors of a journal's header; None: this is no journal."""
    if len(data) < JOURNAL_HEADER.size or data[:8] != JOURNAL_MAGIC:
        return None
    _, volume, seed, first_lba, sectors = JOURNAL_HEADER.unpack_from(data)
    return (volume, seed, first_lba, sectors) if 0 < sectors <= MAX_SECTORS else None


def journal_record(kind: int, write: Write, time_ns: int) -> bytes:
    """Encode a record. INTENT is written to disk before the write is sent, ACK after its reply."""
    body = RECORD.pack(kind, write.sectors, write.write_id, write.lba, time_ns)
    return body + wire.CRC.pack(crc32c(body))


def journal_mark(kind: int, time_ns: int) -> bytes:
    """Encode a record without a write: FLUSHED or DISCONNECTED."""
    body = RECORD.pack(kind, 0, 0, 0, time_ns)
    return body + wire.CRC.pack(crc32c(body))


@dataclass
class Journal:
    """The requests of a writer and their replies, read from its journal."""

    volume: int
    seed: int
    first_lba: int
    sectors: int
    """Range of the writer: ``first_lba`` <= lba < ``first_lba + sectors``. It never touched other
    sectors."""
    writes: dict[int, Write] = field(default_factory=dict)
    """Every write that may have been sent, by write id, in the order of sending."""
    acked: set[int] = field(default_factory=set)
    acked_ns: dict[int, int] = field(default_factory=dict)
    """When each of them was first acknowledged."""
    at_risk: set[int] = field(default_factory=set)
    """Acknowledged writes that were not flushed when the host port disconnected."""
    torn_bytes: int = 0
    """Bytes of an incomplete last record, left by a killed writer."""
    _last_acked: "array[int]" = field(default_factory=lambda: array("q"))
    _unflushed: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Decode a journal. An incomplete last record is tolerated; other damage raises WireError."""
        if len(data) < JOURNAL_HEADER.size or data[:8] != JOURNAL_MAGIC:
            raise WireError("not a write journal", 0, data)
        _, volume, seed, first_lba, sectors = JOURNAL_HEADER.unpack_from(data)
        if not 0 < sectors <= MAX_SECTORS:
            raise WireError(f"journal of {sectors} sectors", 0, data)
        journal = cls(volume, seed, first_lba, sectors)
        journal._last_acked = array("q", [-1]) * sectors
        whole = (len(data) - JOURNAL_HEADER.size) // RECORD_BYTES
        end = JOURNAL_HEADER.size + whole * RECORD_BYTES
        journal.torn_bytes = len(data) - end
        for at in range(JOURNAL_HEADER.size, end, RECORD_BYTES):
            journal._take(data, at)
        return journal

    def _take(self, data: bytes, at: int) -> None:
        record = data[at : at + RECORD_BYTES]
        kind, sectors, write_id, lba, time_ns = RECORD.unpack_from(record)
        start = lba - self.first_lba
        if crc32c(record[: RECORD.size]) != wire.CRC.unpack_from(record, RECORD.size)[0]:
            raise WireError("damaged journal record", at, record)
        if kind in (FLUSHED, DISCONNECTED) and not (sectors or write_id or lba):
            if kind == DISCONNECTED:
                self.at_risk |= self._unflushed
            self._unflushed.clear()
            return
        if not (
            0 < sectors <= MAX_WRITE_SECTORS and start >= 0 and start + sectors <= self.sectors
        ):
            raise WireError("journal record outside of its span", at, record)
        asked = self.writes.get(write_id)
        if kind == INTENT and asked is None and write_id < 1 << 63:
            self.writes[write_id] = Write(write_id, lba, sectors, time_ns)
        elif kind == ACK and asked is not None and (asked.lba, asked.sectors) == (lba, sectors):
            self.acked.add(write_id)
            self.acked_ns.setdefault(write_id, time_ns)
            self._unflushed.add(write_id)
            self._last_acked[start : start + sectors] = array("q", [write_id]) * sectors
        else:
            raise WireError("journal record without sense", at, record)

    @cached_property
    def unacked(self) -> list[Write]:
        """Writes without a reply, in the order of sending: they may or may not have happened."""
        return [write for write_id, write in self.writes.items() if write_id not in self.acked]

    @cached_property
    def _acked_by_start(self) -> tuple[list[int], dict[int, list[Write]], int]:
        """Return the sorted first sectors of the acknowledged writes, the writes by first sector,
        and the length in sectors of the longest."""
        by_start: dict[int, list[Write]] = {}
        for write_id in self.acked:
            write = self.writes[write_id]
            by_start.setdefault(write.lba, []).append(write)
        return (
            sorted(by_start),
            by_start,
            max((self.writes[one].sectors for one in self.acked), default=0),
        )

    @property
    def acked_bytes(self) -> int:
        return sum(self.writes[write_id].sectors for write_id in self.acked) * wire.SECTOR_BYTES

    def expected(self, lba: int) -> tuple[Write | None, list[Write]]:
        """For one sector, return the last acknowledged write (None: none) and the later writes
        that may have happened."""
        last = (
            self._last_acked[lba - self.first_lba]
            if 0 <= lba - self.first_lba < self.sectors
            else -1
        )
        later = [w for w in self.unacked if w.lba <= lba < w.lba + w.sectors and w.write_id > last]
        return self.writes.get(last), later

    def may_fall_back_to(self, lba: int) -> list[Write] | None:
        """Return what a sector may hold after a power failure lost writes that were ``at_risk``:
        one of them, or the last safe write.

        None: the last acknowledged write of the sector is not at risk. Empty: no write of the
        sector was safe.
        """
        last, _ = self.expected(lba)
        if last is None or last.write_id not in self.at_risk:
            return None
        starts, by_start, longest = self._acked_by_start
        near = starts[bisect_right(starts, lba - longest) : bisect_right(starts, lba)]
        over = [w for start in near for w in by_start[start] if lba < w.lba + w.sectors]
        allowed = []
        for write in sorted(over, key=lambda w: -w.write_id):
            if write.write_id > last.write_id:
                continue
            allowed.append(write)
            if write.write_id not in self.at_risk:
                return allowed
        return []

    def runs(self, lba: int, sectors: int) -> Iterator[tuple[int, int, Write | None]]:
        """Split a range of the volume into (lba, sectors, last acknowledged write), one run per
        write."""
        end = lba + sectors
        while lba < end:
            at = lba - self.first_lba
            if not 0 <= at < self.sectors:
                until = min(end, self.first_lba) if at < 0 else end
                yield lba, until - lba, None
                lba = until
                continue
            write_id = self._last_acked[at]
            until = lba + 1
            limit = min(end, self.first_lba + self.sectors)
            while until < limit and self._last_acked[until - self.first_lba] == write_id:
                until += 1
            yield lba, until - lba, self.writes.get(write_id)
            lba = until

    def content(self, write: Write, lba: int, sectors: int) -> bytes:
        """Return the content that ``write`` gave to ``sectors`` sectors from ``lba``. All must
        belong to the write."""
        return _stamped(
            Stamp(self.volume, self.seed, lba, write.write_id, write.lba, write.time_ns), sectors
        )
