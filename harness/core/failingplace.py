"""Where on the volume the failing write lies, as the triggers of an incident name it. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.console.places import ConsoleText, place_in
from freezeframe.harness.core.events import Trigger
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

BLOCK_SECTORS: Final = 8
"""4 KiB: what is read around a sector when nobody says how long the write was."""


@dataclass(frozen=True, kw_only=True)
class FailingPlace:
    """As the replication link counts sectors."""

    sector: int
    sectors: int
    named_by: str
    """The rule."""

    @property
    def offset_bytes(self) -> int:
        return self.sector * SECTOR_BYTES

    @property
    def length_bytes(self) -> int:
        return self.sectors * SECTOR_BYTES


def failing_place(
    triggers: Iterable[Trigger],
    line_of: Callable[[Trigger], bytes],
    texts: Sequence[ConsoleText],
    max_sectors: int,
) -> FailingPlace | None:
    """Return the first place that a trigger names, its first ``max_sectors`` at most; None: none names
    one. ``line_of`` returns the console line of a trigger; ``texts`` are those of the device."""
    for one in triggers:
        sector, sectors = one.sector, one.sectors
        if sector < 0 and one.source == "console":
            found = place_in(line_of(one), texts)
            if found is None:
                continue
            sector, sectors = found.sector, found.sectors or 0
            if found.length_bytes:
                sectors = -(-found.length_bytes // SECTOR_BYTES)
        if sector < 0:
            continue
        if sectors <= 0:
            sector, sectors = sector // BLOCK_SECTORS * BLOCK_SECTORS, BLOCK_SECTORS
        return FailingPlace(sector=sector, sectors=min(sectors, max_sectors), named_by=one.rule)
    return None
