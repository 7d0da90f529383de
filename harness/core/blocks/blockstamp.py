"""Self-describing host blocks, and the journal of the writer that wrote them. Pure: bytes to bytes.

Every 512-byte sector says whose it is (table: ``harness/wire/blockstamp.py``), so that a sector
alone tells whether it is where it belongs and whole. The journal says what was asked and what was
answered; from both, what a volume must hold is known to the byte, however the writer ended.
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
"""32 GiB: a journal that names a sector beyond is damaged; its map would not fit into memory."""
MIN_TORN_BYTES: Final = 32
"""Fewer foreign bytes at a sector's end than this are damage, not the seam of a torn write."""
MIN_OWN_BYTES: Final = 4
"""Of the fill: when not even these follow the header's write, it is the header that is damaged."""
_FILL_AT: Final = wire.HEADER.size
_FILL_END: Final = wire.HEADER.size + wire.FILL_BYTES
_SEED: Final = struct.Struct("<IQ")
_ZERO_SECTOR: Final = bytes(wire.SECTOR_BYTES)


class Kind(StrEnum):
    """What a sector turned out to be."""

    OK = "ok"
    LOST = "lost"
    """Never written: all zeroes."""
    STALE = "stale"
    """Whole, and in its place, but from an earlier write than the one that was acknowledged."""
    TORN = "torn"
    """Begins as one write and ends as another."""
    MISDIRECTED = "misdirected"
    """Whole, but it belongs elsewhere."""
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A sector's header; the fields of ``wire.FIELDS`` without the magic."""

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
    """The data of one write: ``sectors`` stamped sectors from ``lba`` on. ``seed``: its low 32 bits
    count."""
    return _stamped(Stamp(volume, seed & 0xFFFFFFFF, lba, write_id, lba, time_ns), sectors)


def _stamped(first: Stamp, sectors: int) -> bytes:
    """``sectors`` sectors of one write; ``first`` is the header of the first of them."""
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
    """CRC-32C of any ``sectors`` whole stamped sectors: each ends in its own CRC, so that all of
    them give the same."""
    whole: int = crc32c(stamp(0, 0, 0, 0, sectors, 0))
    return whole


def is_broken(data: bytes | memoryview, data_crc32c: int) -> bool:
    """Whether data that begin and end in stamped sectors are not what their writer stamped. Sound
    data never are."""
    sectors, magic = len(data) // wire.SECTOR_BYTES, wire.MAGIC
    if not 0 < sectors <= MAX_WRITE_SECTORS or data[: len(magic)] != magic:
        return False
    last = (sectors - 1) * wire.SECTOR_BYTES
    return data[last : last + len(magic)] == magic and data_crc32c != stamped_crc(sectors)


def decode(sector: bytes) -> Stamp | None:
    """What a whole sector says of itself; None when it is not a stamped sector or is damaged."""
    if len(sector) != wire.SECTOR_BYTES or sector[:8] != wire.MAGIC:
        return None
    if crc32c(sector[:_FILL_END]) != wire.CRC.unpack_from(sector, _FILL_END)[0]:
        return None
    _, volume, seed, lba, write_id, write_lba, time_ns = wire.HEADER.unpack_from(sector)
    return Stamp(volume, seed, lba, write_id, write_lba, time_ns)


def check(sector: bytes, lba: int, allowed: Collection[int] | None = None) -> Kind:
    """What ``sector``, found at ``lba``, is. With ``allowed``, the write ids that may stand there,
    others are stale."""
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
    """Whether a damaged sector follows its header's write up to a seam and is foreign from there to
    the end."""
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
    # Of foreign bytes one in 256 agrees by chance; rot leaves most of them as they were.
    return len(foreign) >= MIN_TORN_BYTES and sum(foreign) > len(foreign) * 3 // 4


# --- journal ----------------------------------------------------------------------------------------------

JOURNAL_MAGIC: Final = b"FFJRNL01"
JOURNAL_HEADER: Final = struct.Struct("<8sIIQQ")
"""magic, volume, seed (low 32 bits), first sector and number of sectors of the span that the writer
may write."""
RECORD: Final = struct.Struct("<BxxxIQQQ")
"""kind, sectors, write_id, lba, time_ns; then a CRC-32C of these. time_ns: of the stamps; in an
ACK, of the reply."""
RECORD_BYTES: Final = RECORD.size + 4
INTENT: Final = 1
ACK: Final = 2
FLUSHED: Final = 3
"""A flush was answered: what was acknowledged before it is on stable storage. It and the next name
no write."""
DISCONNECTED: Final = 4
"""The host port went away: acknowledged writes that no flush had covered by then may have been in a
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


def journal_record(kind: int, write: Write, time_ns: int) -> bytes:
    """``kind`` INTENT: goes to the disk before the write is sent. ACK: after its reply has come."""
    body = RECORD.pack(kind, write.sectors, write.write_id, write.lba, time_ns)
    return body + wire.CRC.pack(crc32c(body))


def journal_mark(kind: int, time_ns: int) -> bytes:
    """FLUSHED or DISCONNECTED."""
    body = RECORD.pack(kind, 0, 0, 0, time_ns)
    return body + wire.CRC.pack(crc32c(body))


@dataclass
class Journal:
    """What a writer asked for and what was answered, read back."""

    volume: int
    seed: int
    first_lba: int
    sectors: int
    """The span: lba ``first_lba`` <= lba < ``first_lba + sectors``; other sectors the writer never
    touched."""
    writes: dict[int, Write] = field(default_factory=dict)
    """Every write that may have been sent, by its write id, in the order of sending."""
    acked: set[int] = field(default_factory=set)
    at_risk: set[int] = field(default_factory=set)
    """Of the acknowledged: never flushed before the host port went away, once or more."""
    torn_bytes: int = 0
    """Bytes of a record at the end that a kill cut off."""
    _last_acked: "array[int]" = field(default_factory=lambda: array("q"))
    _unflushed: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Decode a journal. A record cut off at the end is tolerated; WireError when anything else
        is damaged."""
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
            self._unflushed.add(write_id)
            self._last_acked[start : start + sectors] = array("q", [write_id]) * sectors
        else:
            raise WireError("journal record without sense", at, record)

    @cached_property
    def unacked(self) -> list[Write]:
        """Writes that may or may not have happened, in the order of sending."""
        return [write for write_id, write in self.writes.items() if write_id not in self.acked]

    @cached_property
    def _acked_by_start(self) -> tuple[list[int], dict[int, list[Write]], int]:
        """First sectors of the acknowledged writes in order, the writes by them, and the longest
        one's sectors."""
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
        """For one sector: the last acknowledged write (None: none), and those behind it that may
        have happened."""
        last = (
            self._last_acked[lba - self.first_lba]
            if 0 <= lba - self.first_lba < self.sectors
            else -1
        )
        later = [w for w in self.unacked if w.lba <= lba < w.lba + w.sectors and w.write_id > last]
        return self.writes.get(last), later

    def may_fall_back_to(self, lba: int) -> list[Write] | None:
        """What a sector may hold after a power failure that took the acknowledged writes
        ``at_risk`` there: one of them, or the last that was safe. None: its last acknowledged write
        is not at risk. Empty: nothing there was safe."""
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
        """Cut a range of the volume into (lba, sectors, last acknowledged write): one run a
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
        """What ``write`` put into ``sectors`` sectors from ``lba`` on; all of them are the
        write's."""
        return _stamped(
            Stamp(self.volume, self.seed, lba, write.write_id, write.lba, write.time_ns), sectors
        )
