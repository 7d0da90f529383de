"""What an inquest finds: stages of a write's way, places in its data, and one finding a thing that
went wrong. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from freezeframe.harness.core.blocks import crcbits
from freezeframe.harness.core.blocks.blockstamp import Journal, Write
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.linkevidence import NO_ID, LinkWrite
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

EXCERPT_BYTES: Final = 8


class Stage(StrEnum):
    """Where on its way a write went wrong, in the order of the way."""

    HOST_BUFFER = "host buffer"
    """Before it reached the primary."""
    PRIMARY_BEFORE_DIGEST = "primary before digest"
    PRIMARY_AFTER_DIGEST = "primary after digest"
    ON_THE_LINK = "on the link"
    SECONDARY_BEFORE_CHECK = "secondary before check"
    STALL = "stall"
    """The secondary left the link alone."""
    LOST_WRITE = "lost write"
    MISDIRECTED_WRITE = "misdirected write"
    STORE_AFTER_ACK = "secondary store after ack"
    PRIMARY_STORE = "primary store"
    RESPONSE = "response"
    RESYNC = "resync"
    """What makes the two sides equal again left something out."""
    CONSOLE = "console"
    CONTROL = "control"


DATA_STAGES: Final = frozenset(Stage) - {Stage.CONSOLE, Stage.CONTROL}


@dataclass(frozen=True, kw_only=True)
class BytePlace:
    """The first byte of a write that differs."""

    byte_offset: int
    """From the first byte of the write's data."""
    bit_mask: int
    """Expected ^ found, of that byte."""
    bytes_different: int
    expected: str
    """Hex of the bytes from there on; "" when the content is not known, only the difference."""
    found: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that went wrong."""

    stage: Stage | None
    """None: the evidence leaves ``candidates`` open."""
    kind: str
    """What happened there, in a word or two."""
    side: str
    """host | primary | secondary | link | "" when that is open."""
    candidates: tuple[Stage, ...] = ()
    write_id: int | None = None
    """The host's number of the write."""
    write_lba: int | None = None
    write_sectors: int | None = None
    lba: int | None = None
    """The first sector that differs."""
    place: BytePlace | None = None
    expected: str = ""
    """In words, when it is no matter of bytes."""
    found: str = ""
    t_cause_ns: Ns | None = None
    t_cause_error_ns: Ns | None = None
    reasons: tuple[str, ...] = ()
    """What speaks for it, a sentence a source."""
    missing: str = ""
    """What would decide between the candidates."""
    write: LinkWrite | None = None
    """The captured write that it is about; None: that is not certain, or there is none."""
    packet_no: int | None = None
    """The frame that shows it, where that is not the write's own."""
    primary_no: int | None = None
    """The primary's own number of the write, where no captured write gives it."""
    secondary_no: int | None = None
    complaint: EventRecord | None = None
    """The event record in which a side complained of it."""
    complained: Side | None = None
    """That side."""

    @property
    def conclusive(self) -> bool:
        return self.stage is not None

    @property
    def block_id(self) -> str | None:
        return self.write.block_id if self.write is not None else None

    def located(self, place: BytePlace | None) -> "Finding":
        """The same with its place, and the sector that follows from it."""
        if place is None or self.write_lba is None:
            return self
        return replace(self, place=place, lba=self.write_lba + place.byte_offset // SECTOR_BYTES)

    def of_write(self, e: Evidence, write: LinkWrite, write_id: int | None = None) -> "Finding":
        """The same about a captured write; ``write_id``: what the host called it, where that is known better than from
        the data."""
        own_id = write.write_id if write.write_id != NO_ID else None
        return replace(
            self, write=write, write_id=own_id if write_id is None else write_id, write_lba=write.sector,
            write_sectors=write.sectors, lba=write.sector, t_cause_ns=write.t_sent_ns,
            t_cause_error_ns=e.link_error_ns,
        )  # fmt: skip

    def of_place(self, sector: int, size_bytes: int, write_id: int | None = None) -> "Finding":
        """The same about a write of which no more than its place is certain."""
        sectors = size_bytes // SECTOR_BYTES
        return replace(self, write_lba=sector, write_sectors=sectors, lba=sector, write_id=write_id)

    def timed(self, side: SideEvidence, record: EventRecord | None) -> "Finding":
        """The same, caused when the side logged ``record``; as it was where nothing tells when that was."""
        at = side.at(record)
        return self if at is None else replace(self, t_cause_ns=at[0], t_cause_error_ns=at[1])

    def logged(self, side: SideEvidence, record: EventRecord | None) -> "Finding":
        """The same with the number that ``side`` gives the write in that record."""
        number = record.get("write_no") if record is not None else None
        if not isinstance(number, int):
            return self
        if side.side == "primary":
            return replace(self, primary_no=number)
        return replace(self, secondary_no=number)


def difference(expected: bytes, found: bytes, offset: int = 0) -> BytePlace | None:
    """The first difference of two equally long pieces; ``offset`` is that of their first byte in
    the write."""
    if expected == found or len(expected) != len(found):
        return None
    at = [index for index, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    first = at[0]
    return BytePlace(
        byte_offset=offset + first,
        bit_mask=expected[first] ^ found[first],
        bytes_different=len(at),
        expected=expected[first : first + EXCERPT_BYTES].hex(),
        found=found[first : first + EXCERPT_BYTES].hex(),
    )


def single_bit(
    right: int,
    wrong: int,
    size_bytes: int,
    content: bytes | None,
    *,
    polynomial: int = crcbits.CRC32C,
) -> BytePlace | None:
    """The one flipped bit that explains two checksums. ``content``: what should have been there,
    when that is known."""
    if size_bytes <= 0:
        return None
    found = crcbits.flipped_bit(right ^ wrong, size_bytes, polynomial=polynomial)
    if found is None:
        return None
    at, bit = found
    excerpt = content[at : at + EXCERPT_BYTES] if content is not None and at < len(content) else b""
    flipped = bytes([excerpt[0] ^ 1 << bit]) + excerpt[1:] if excerpt else b""
    return BytePlace(
        byte_offset=at, bit_mask=1 << bit, bytes_different=1, expected=excerpt.hex(), found=flipped.hex()
    )  # fmt: skip


def host_write(
    e: Evidence, sector: int, sectors: int, near: bytes | None, write_id: int = NO_ID
) -> tuple[int, bytes] | None:
    """(write id, content) of the host's write to exactly these sectors: the one that the data name,
    else the nearest.

    A flipped bit may have hit the id itself, so that an id whose content is nothing like the data
    is not believed.
    """
    if e.journal is None:
        return None
    named = e.promised(write_id, sector, sectors) if write_id != NO_ID else None
    if named is not None and (near is None or _distance(named, near) * 2 < len(near)):
        return write_id, named
    if near is None:
        return None
    candidates = [
        (one.write_id, e.journal.content(one, sector, sectors))
        for one in _at(e.journal, sector, sectors)
    ]
    if not candidates:
        return None
    best = min(candidates, key=lambda one: _distance(one[1], near))
    return best if _distance(best[1], near) * 2 < len(near) else None


def _at(journal: Journal, sector: int, sectors: int) -> list[Write]:
    return [one for one in journal.writes.values() if one.lba == sector and one.sectors == sectors]


def _distance(one: bytes, other: bytes) -> int:
    """Bytes that differ, counted by halves so that equal data cost nothing."""
    if one == other:
        return 0
    if len(one) <= 64 or len(one) != len(other):
        return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
    half = len(one) // 2
    return _distance(one[:half], other[:half]) + _distance(one[half:], other[half:])
