"""The scrub: read back recently written blocks, compare them with the intended content, and
remember mismatches.

Mismatches go into the event log with both checksums. The first blocks of each damaged extent are
kept for the state record as they were found, because the repair that follows would remove the only
trace.
"""

from collections.abc import Callable
from typing import Any, Final

from freezeframe.firmware_sim.store import Store
from freezeframe.harness.wire.drbd import SECTOR_BYTES
from freezeframe.harness.wire.rootcause import DAMAGED_BLOCKS, EventCode

NS_PER_MS: Final = 1_000_000
AFTER_NS: Final = 50 * NS_PER_MS
"""Delay between writing and verifying a block ..."""
PAUSE_NS: Final = 5 * NS_PER_MS
PASS_BLOCKS: Final = 256
"""... blocks per pass, half a millisecond of work, then a pause."""
VERIFY_PASSES: Final = 32
"""At a freeze: 32 MiB, more than a host writes before the scrub follows."""
MAX_PASSES: Final = 16
"""Maximum number of extra passes: after damage the next pass follows at once, to find the other
end of it."""
KEPT_OF_AN_EXTENT: Final = 2


class Scrub:
    """One boot's: a warmstart begins a new one, and the store remembers what is still to be
    verified."""

    def __init__(self, store: Store[Any]) -> None:
        self.mismatches = 0
        self.damaged: list[list[Any]] = []
        """[sector, content] of blocks as they were found, at most DAMAGED_BLOCKS."""
        self._store = store

    def run(self, trace: Callable[..., None]) -> list[tuple[int, int]]:
        """Verify some blocks; return the damaged extents as (offset_bytes, end_bytes), in the
        order found."""
        extents: list[list[int]] = []
        for _ in range(MAX_PASSES):
            found = self._store.scrub(PASS_BLOCKS)
            for one in found:
                self.mismatches += 1
                sector = one.offset_bytes // SECTOR_BYTES
                trace(
                    EventCode.SCRUB_MISMATCH,
                    sector,
                    one.length_bytes,
                    one.expected_crc32,
                    one.found_crc32,
                )
                end_bytes = one.offset_bytes + one.length_bytes
                if extents and extents[-1][1] == one.offset_bytes:
                    extents[-1][1] = end_bytes
                else:
                    extents.append([one.offset_bytes, end_bytes])
                is_early = one.offset_bytes - extents[-1][0] < KEPT_OF_AN_EXTENT * one.length_bytes
                if is_early and len(self.damaged) < DAMAGED_BLOCKS:
                    self.damaged.append([sector, one.content])
            if not found:
                break
        return [(start, end) for start, end in extents]
