"""Compare what the host was promised with what the primary and the secondary hold. Pure.

If an unacknowledged write follows the last acknowledged write of a sector, the sector may hold
either, but all sides must hold the same. Sectors that the writer never touched must only be equal
on all sides.

Acknowledged is not flushed: an acknowledged write that no flush had covered before the host port
disconnected counts as lost too, but separately, because a volatile cache may lose it in a power
failure.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from crc32c import crc32c

from freezeframe.harness.core.blocks.blockstamp import Journal, Kind, Write, check
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

CHUNK_BYTES: Final = 1 << 20
MAX_LISTED: Final = 100
"""Maximum number of lost writes listed; all are counted."""

Reader = Callable[[int, int], bytes]
"""(offset_bytes, length_bytes) -> the bytes of that range."""
Party = Literal["host", "primary", "secondary"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One sector with wrong data."""

    side: Party
    """The side with the wrong bytes. If it is unknown which of two sides is right: the second of
    them."""
    offset_bytes: int
    """Of the sector."""
    kind: str
    """blockstamp.Kind, or "disagree" if each side could be right on its own."""
    expected_crc32c: int
    found_crc32c: int
    first_byte: int
    """Absolute offset of the first differing byte."""
    bit_mask: int
    """XOR of expected and found for that byte."""


@dataclass(frozen=True, kw_only=True)
class LostWrite:
    """An acknowledged write that a side does not hold completely."""

    write_id: int
    side: Party
    offset_bytes: int
    """Of the first wrong sector of the write."""
    kind: str
    was_flushed: bool = True
    """False: acknowledged but not flushed, and the sector holds the last flushed data."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The verdict on the data."""

    bytes_compared: int
    sides_equal: bool
    """Primary and secondary are equal on the whole volume."""
    data_equal: bool
    """``sides_equal``, and every sector holds the data promised to the host."""
    sectors_different: int
    lost_acked_writes: int
    lost_unflushed_writes: int = 0
    """Of these, the ones with ``LostWrite.was_flushed``."""
    acked_writes: int = 0
    """Acknowledged bytes in the journal used for the comparison; 0 without a journal: nothing was
    promised."""
    lost: tuple[LostWrite, ...] = ()
    """At most MAX_LISTED of them."""
    first_difference: Difference | None = None
    """The one with the lowest offset."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """"side: kind" -> wrong sectors."""


def compare(
    journal: Journal | None,
    read_host: Reader | None,
    read_primary: Reader,
    read_secondary: Reader,
    size_bytes: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[int], None] = lambda done_bytes: None,
) -> Comparison:
    """Read the whole volume once and compare it.

    Without ``journal`` only the sides are compared. ``read_host`` may be omitted if the host sees
    the volume of the primary. ``progress`` is called with the number of bytes compared. Exceptions
    of the readers are passed on.
    """
    readers: dict[Party, Reader] = {"primary": read_primary, "secondary": read_secondary}
    if read_host is not None:
        readers = {"host": read_host, **readers}
    judge = _Judge(journal)
    for offset in range(0, size_bytes, chunk_bytes):
        length = min(chunk_bytes, size_bytes - offset)
        judge.chunk(offset, {party: read(offset, length) for party, read in readers.items()})
        progress(offset + length)
    return judge.verdict(size_bytes)


class _Judge:
    """Collects the differences, chunk by chunk."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._sides_equal = True
        self._different = 0
        self._first: Difference | None = None
        self._lost: dict[int, LostWrite] = {}
        self._kinds: Counter[str] = Counter()

    def verdict(self, size_bytes: int) -> Comparison:
        return Comparison(
            bytes_compared=size_bytes,
            sides_equal=self._sides_equal,
            data_equal=self._first is None,
            sectors_different=self._different,
            lost_acked_writes=len(self._lost),
            lost_unflushed_writes=sum(not one.was_flushed for one in self._lost.values()),
            acked_writes=len(self._journal.acked) if self._journal is not None else 0,
            lost=tuple(self._lost.values())[:MAX_LISTED],
            first_difference=self._first,
            kinds=dict(self._kinds),
        )

    def chunk(self, offset_bytes: int, held: Mapping[Party, bytes]) -> None:
        """Compare one piece of the volume. The normal case, equal and as promised, is fast."""
        first_lba = offset_bytes // SECTOR_BYTES
        reference, *others = held.values()
        if any(len(other) != len(reference) for other in others):
            raise ValueError(
                f"readers gave {[len(data) for data in held.values()]} bytes at {offset_bytes}"
            )
        self._sides_equal = self._sides_equal and held["primary"] == held["secondary"]
        suspects: set[int] = set()
        for other in others:
            suspects.update(_differing(reference, other))
        if self._journal is not None:
            for lba, sectors, write in self._journal.runs(
                first_lba, len(reference) // SECTOR_BYTES
            ):
                if write is not None:
                    start = (lba - first_lba) * SECTOR_BYTES
                    promised = self._journal.content(write, lba, sectors)
                    found = reference[start : start + len(promised)]
                    suspects.update(lba - first_lba + i for i in _differing(promised, found))
        for index in sorted(suspects):
            cut = slice(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES)
            self._sector(first_lba + index, {party: data[cut] for party, data in held.items()})

    def _sector(self, lba: int, held: Mapping[Party, bytes]) -> None:
        last, later = self._journal.expected(lba) if self._journal is not None else (None, [])
        may_hold = self._contents(lba, last, later)
        wrong = False
        for party, data in held.items():
            # Without an acknowledged write nothing was promised, and what was there before is not
            # known.
            if last is not None and data not in may_hold:
                wrong = True
                self._broken_promise(lba, party, data, last, may_hold)
        reference = next(iter(held.values()))
        if not wrong:
            for party, data in held.items():
                if data != reference:
                    wrong = True
                    self._note(lba, party, "disagree", (reference,), data)
        self._different += wrong

    def _contents(self, lba: int, last: Write | None, later: list[Write]) -> dict[bytes, int]:
        """Return every content that ``lba`` may hold -> its write id, the promised one first."""
        if self._journal is None:
            return {}
        writes = [last, *later] if last is not None else later
        return {self._journal.content(write, lba, 1): write.write_id for write in writes}

    def _broken_promise(
        self, lba: int, party: Party, data: bytes, last: Write, may_hold: Mapping[bytes, int]
    ) -> None:
        kind = check(data, lba, frozenset(may_hold.values()))
        if kind is Kind.OK:
            # Its stamp is whole and names the right write, but of another run: another seed, volume
            # or time.
            kind = Kind.STALE
        self._note(lba, party, kind, may_hold, data)
        was_flushed = not self._is_older_state(lba, data)
        known = self._lost.get(last.write_id)
        if known is None:
            self._lost[last.write_id] = LostWrite(
                write_id=last.write_id,
                side=party,
                offset_bytes=lba * SECTOR_BYTES,
                kind=kind,
                was_flushed=was_flushed,
            )
        elif was_flushed and not known.was_flushed:
            self._lost[last.write_id] = replace(known, was_flushed=True)

    def _is_older_state(self, lba: int, data: bytes) -> bool:
        """Return whether the loss of a volatile cache in a power failure explains the content."""
        assert self._journal is not None
        allowed = self._journal.may_fall_back_to(lba)
        if allowed is None:
            return False
        return not allowed or data in [self._journal.content(write, lba, 1) for write in allowed]

    def _note(
        self, lba: int, party: Party, kind: str, may_hold: Iterable[bytes], found: bytes
    ) -> None:
        self._kinds[f"{party}: {kind}"] += 1
        if self._first is not None:
            return
        # What was meant: of all that may stand there, the nearest.
        expected = min(
            may_hold, key=lambda content: sum(a != b for a, b in zip(content, found, strict=True))
        )
        at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
        self._first = Difference(
            side=party,
            offset_bytes=lba * SECTOR_BYTES,
            kind=kind,
            expected_crc32c=crc32c(expected),
            found_crc32c=crc32c(found),
            first_byte=lba * SECTOR_BYTES + at,
            bit_mask=expected[at] ^ found[at],
        )


def _differing(one: bytes, other: bytes) -> list[int]:
    """Return the indexes of the sectors in which two pieces of equal length differ."""
    if one == other:
        return []
    starts = range(0, len(one), SECTOR_BYTES)
    return [
        i // SECTOR_BYTES
        for i in starts
        if one[i : i + SECTOR_BYTES] != other[i : i + SECTOR_BYTES]
    ]
