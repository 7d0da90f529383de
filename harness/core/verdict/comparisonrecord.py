"""The parts of ``incident.json`` about the comparison of the volumes, and what every part is made of. Pure."""

from typing import Annotated, Final

import msgspec

MAX_TIME_NS: Final = (1 << 63) - 1
MAX_SECTOR: Final = 1 << 55
"""2**64 bytes."""
MAX_OFFSET_NS: Final = 1 << 62

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_NS)]
Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_NS)]
Sector = Annotated[int, msgspec.Meta(ge=0, le=MAX_SECTOR)]
Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]
Number = int | float


class RecordPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of ``incident.json``."""


class DifferenceRecord(RecordPart, frozen=True, kw_only=True):
    """The first sector that the comparison found wrong."""

    side: Text
    kind: Text
    offset_bytes: Count
    """Of the sector."""
    expected_crc32c: Count | None = None
    found_crc32c: Count | None = None
    first_byte: Count | None = None
    """Offset on the volume of the first byte that differs."""
    bit_mask: Count | None = None
    """XOR of expected and found, for that byte."""


class LostWriteRecord(RecordPart, frozen=True, kw_only=True):
    """An acknowledged write that a side does not hold completely."""

    write_id: int
    side: Text
    offset_bytes: Count
    """Of its first wrong sector."""
    kind: Text = ""
    was_flushed: bool = True
    """False: acknowledged but not flushed, and the sector holds the last flushed data."""


class ComparisonRecord(RecordPart, frozen=True, kw_only=True):
    """Host, primary and secondary against each other, after the incident."""

    data_equal: bool
    sides_equal: bool | None = None
    bytes_compared: Count = 0
    sectors_different: Count = 0
    lost_acked_writes: Count = 0
    lost_unflushed_writes: Count = 0
    acked_writes: Count = 0
    first_difference: DifferenceRecord | None = None
    lost: tuple[LostWriteRecord, ...] = ()
    """The first of them."""
    kinds: dict[Text, Count] = msgspec.field(default_factory=dict)
    """"side: kind" -> wrong sectors."""
