"""The part of ``incident.json`` about a resync. Pure."""

import msgspec

SectorRanges = tuple[tuple[int, int], ...]
"""(first sector, sectors) of the first ranges; beside it stands how many bytes they all hold."""


class ResyncRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A resync as the link shows it. What was left out, or copied for no known reason, is certain where it is listed."""

    session: int
    volume: int = 0
    source: str = ""
    t_parted_ns: int | None = None
    t_begin_ns: int | None = None
    t_end_ns: int | None = None
    t_equal_ns: int | None = None
    """When a side first called both up to date."""
    bytes_copied: int = 0
    ranges: int = 0
    copied: SectorRanges = ()
    bytes_marked: int = 0
    """In both bitmaps together."""
    bitmap_packets: int = 0
    compressed_bitmap_packets: int = 0
    bytes_omitted: int = 0
    omitted: SectorRanges = ()
    blocks_lost: int = 0
    """Of those that a side said it had marked, so many are not in the bitmap that it sent."""
    bytes_unexplained: int = 0
    unexplained: SectorRanges = ()
    seen_whole: bool = False
    """From the parting on: else it was recorded, and not judged."""
