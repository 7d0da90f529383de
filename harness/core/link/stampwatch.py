"""What the stamps of our own writer prove about a replicated write whose digest is right.

A digest proves that the copy is what the sender had in memory. The stamps of the host's blocks prove
more: that those bytes are what the host wrote, at the place and in the order in which it wrote
them. That holds only while our writer is the volume's sole writer, and only inside the range that
it writes: the supervisor says so with ``SoleWriter`` and takes it back when the writer has ended.
In a watch, where others write, nothing is expected: a host that copies an old stamped volume is a
healthy host.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from crc32c import crc32c

from freezeframe.harness.core.blocks.blockstamp import MAX_WRITE_SECTORS, Stamp, decode, stamped_crc
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

MAX_PLACES: Final = 1 << 18
"""Places whose newest write is remembered; the oldest make room."""
MAX_SENT: Final = 8192
"""Writes whose copies are remembered with their answers: more than a writer has under way."""
AGREED: Final = 16
"""Writes in succession that must show the same distance between the host's addresses and the link's
before one that shows another is out of place."""

StampFaultKind = Literal["broken", "misplaced", "stale"]


@dataclass(frozen=True, slots=True)
class SoleWriter:
    """Whose stamps are expected, and where."""

    volume: int
    seed: int
    """Its low 32 bits."""
    first_lba: int
    sectors: int


class SentSession(Protocol):
    number: int


class SentCopy(Protocol):
    """A copy on the link, whose answer comes later."""

    @property
    def answer(self) -> str: ...
    @property
    def session(self) -> SentSession: ...


@dataclass(frozen=True, slots=True)
class StampFault:
    """What contradicts the stamps."""

    kind: StampFaultKind
    detail: str


class StampWatch:
    """Judges the writes of one link, in the order of their sending."""

    def __init__(self, writer: SoleWriter, *, same_addresses: bool) -> None:
        """``same_addresses``: the link's sectors are the host's, as DRBD's are; else their distance
        (a mirror's metadata) is learnt from the first writes."""
        self.writer = writer
        self._same_addresses = same_addresses
        self._distance: int | None = 0 if same_addresses else None
        self._candidate: tuple[int, int] = (0, 0)
        """A distance that is being learnt, and how many writes in succession have shown it."""
        self._newest: OrderedDict[int, int] = OrderedDict()
        """First sector of a write, on a mirror each sector -> the newest write id seen there."""
        self._sent: OrderedDict[int, list[tuple[int, int, SentCopy]]] = OrderedDict()
        """Write id -> first sector, end and copy of each of its parts."""
        self._highest = -1

    def judge(
        self,
        lba: int,
        data: bytes | memoryview,
        data_crc32c: int | None = None,
        copy: SentCopy | None = None,
    ) -> StampFault | None:
        """One write at sector ``lba`` of the link; ``data_crc32c`` where it is known already. With
        ``copy`` a write that was acknowledged, and is sent again in the same session, is stale."""
        sectors = len(data) // SECTOR_BYTES
        if not 0 < sectors <= MAX_WRITE_SECTORS or len(data) % SECTOR_BYTES:
            return None
        first = decode(bytes(data[:SECTOR_BYTES]))
        ours = first is not None and (first.volume, first.seed) == (
            self.writer.volume,
            self.writer.seed,
        )
        if self._distance is None:
            self._learn(lba, first if ours else None)
            return None
        if not self._is_inside(lba - self._distance, sectors):
            return None
        if not self._same_addresses:
            return self._sectors(lba, data)
        crc = crc32c(bytes(data)) if data_crc32c is None else data_crc32c
        if crc != stamped_crc(sectors) or first is None:
            return StampFault("broken", "the stamps of its sectors are broken")
        if not ours:
            who = f"volume {first.volume}, seed {first.seed}"
            return StampFault("stale", f"its data are another writer's: {who}")
        return self._place(lba, sectors, first, data) or self._again(lba, sectors, first, copy)

    def _place(
        self, lba: int, sectors: int, first: Stamp, data: bytes | memoryview
    ) -> StampFault | None:
        """Whether the write is where and when its stamps say."""
        assert self._distance is not None
        last = decode(bytes(data[-SECTOR_BYTES:]))
        due = lba - self._distance
        if first.lba != due:
            detail = f"its data are write {first.write_id}'s, of sector {first.lba}"
            return StampFault("misplaced", detail)
        if last is None or (last.lba, last.write_id) != (due + sectors - 1, first.write_id):
            found = "no stamp" if last is None else f"sector {last.lba}, write {last.write_id}"
            return StampFault("misplaced", f"its last sector holds {found}")
        newest = self._newest.get(lba, -1)
        if first.write_id < newest:
            detail = f"its data are write {first.write_id}'s, and write {newest} was here already"
            return StampFault("stale", detail)
        self._newest[lba] = first.write_id
        self._newest.move_to_end(lba)
        if len(self._newest) > MAX_PLACES:
            self._newest.popitem(last=False)
        return None

    def _sectors(self, lba: int, data: bytes | memoryview) -> StampFault | None:
        """A mirror's write, sector by sector: it may hold several writes of the host, a part of one,
        and sectors that this host has not written, where the mirror copies what was there."""
        assert self._distance is not None
        for number in range(len(data) // SECTOR_BYTES):
            here = lba + number
            sector = bytes(data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])
            found, newest = decode(sector), self._newest.get(here, -1)
            if found is None:
                if newest < 0 and not any(sector):
                    continue
                what = "is broken" if any(sector) else f"is lost: write {newest} was here already"
                kind: StampFaultKind = "broken" if any(sector) else "stale"
                return StampFault(kind, f"the stamp of its sector {number} {what}")
            if (found.volume, found.seed) != (self.writer.volume, self.writer.seed):
                if newest < 0:
                    continue
                who = f"volume {found.volume}, seed {found.seed}"
                return StampFault("stale", f"its sector {number} is another writer's: {who}")
            if found.lba != here - self._distance:
                detail = f"its sector {number} is write {found.write_id}'s, of sector {found.lba}"
                return StampFault("misplaced", detail)
            if found.write_id < newest:
                detail = f"its sector {number} is write {found.write_id}'s, and write {newest} was here already"
                return StampFault("stale", detail)
            self._newest[here] = found.write_id
        while len(self._newest) > MAX_PLACES:
            self._newest.popitem(last=False)
        return None

    def _again(
        self, lba: int, sectors: int, first: Stamp, copy: SentCopy | None
    ) -> StampFault | None:
        """Whether the host's write of that number was through already: an old copy in place of a new
        write. What was not acknowledged may come again."""
        if copy is None:
            return None
        write_id, end = first.write_id, lba + sectors
        parts = self._sent.get(write_id, [])
        if not parts and write_id < self._highest - MAX_SENT:
            detail = f"its data are write {write_id}'s, and write {self._highest} was sent already"
            return StampFault("stale", detail)
        for start, stop, sent in parts:
            is_same = sent.session.number == copy.session.number
            if start < end and lba < stop and is_same and sent.answer == "ok":
                detail = f"its data are write {write_id}'s, whose copy was acknowledged already"
                return StampFault("stale", detail)
        self._highest = max(self._highest, write_id)
        self._sent[write_id] = [*parts, (lba, end, copy)]
        if len(self._sent) > MAX_SENT:
            self._sent.popitem(last=False)
        return None

    def _is_inside(self, lba: int, sectors: int) -> bool:
        begin = self.writer.first_lba
        return begin <= lba and lba + sectors <= begin + self.writer.sectors

    def _learn(self, lba: int, first: Stamp | None) -> None:
        if first is None:
            return
        distance, seen = lba - first.lba, self._candidate[1]
        seen = seen + 1 if self._candidate[0] == distance else 1
        self._candidate = (distance, seen)
        if seen >= AGREED:
            self._distance = distance
