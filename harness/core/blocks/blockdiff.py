"""What a wrong block should hold and held, and its rows for a hex view. Pure."""

from dataclasses import dataclass
from typing import Final

ROW_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class BlockDiff:
    """What a block should hold, and what it held."""

    sector: int
    """First sector of the block on the volume."""
    expected: bytes
    found: bytes
    """Same length as ``expected``."""
    expected_from: str
    found_from: str
    """Source of the bytes, as text."""

    @property
    def offsets(self) -> list[int]:
        """Return the offsets of the differing bytes from the start of the block."""
        pairs = zip(self.expected, self.found, strict=True)
        return [at for at, (one, other) in enumerate(pairs) if one != other]


@dataclass(frozen=True, kw_only=True)
class HexRow:
    """One line of a hex view. ``offset`` counts from the start of the block."""

    offset: int
    expected: bytes
    found: bytes


def hex_rows(diff: BlockDiff, *, context: int = 2, limit: int = 48) -> list[HexRow | None]:
    """Return the differing rows with ``context`` equal rows around them. None marks omitted rows."""
    wanted: set[int] = set()
    for at in diff.offsets:
        row = at // ROW_BYTES
        wanted.update(range(max(row - context, 0), row + context + 1))
    last = (len(diff.expected) - 1) // ROW_BYTES
    rows: list[HexRow | None] = []
    previous = -1
    for row in sorted(row for row in wanted if row <= last)[:limit]:
        if row != previous + 1:
            rows.append(None)
        at = row * ROW_BYTES
        rows.append(
            HexRow(
                offset=at,
                expected=diff.expected[at : at + ROW_BYTES],
                found=diff.found[at : at + ROW_BYTES],
            )
        )
        previous = row
    if rows and previous != last:
        rows.append(None)
    return rows
