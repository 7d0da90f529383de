"""The part of ``incident.json`` about the failing block, as both sides hold it. Pure."""

from collections.abc import Collection
from typing import Annotated, Literal

import msgspec

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
NOT_SHOWN = (
    "whether the sides had rejoined is not known: the link's protocol does not show when they do"
)
ENDS_EARLY = (
    "whether the sides had rejoined is not known: the capture has holes, is not understood in places, or "
    "ends before it was read"
)
UNDER_WAY = (
    "whether the sides had rejoined is not known: they may have been resyncing when it was read"
)


class BlockRead(msgspec.Struct, frozen=True, kw_only=True):
    """What one side's controller said that its volume holds there, or why it did not."""

    path: str = ""
    """The file; "": it was not read."""
    sha256: str = ""
    t_asked_ns: Count | None = None
    t_read_ns: Count | None = None
    rejoin: Literal["before", "after", "not known"] = "not known"
    """Read before the two sides began to rejoin; or after: it may hold what the resync copied there."""
    reason: str = ""
    """Why it was not read, or why ``rejoin`` is not known."""
    is_zero: bool = False
    """It was read, and each byte is 0: on a volume that was empty, no write was stored there."""


class FailingBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The failing block as both sides hold it, read after the control frames and as early as a side answered."""

    sector: Count | None = None
    """As the link counts them. None: no trigger names a place, and nothing was read."""
    sectors: Count = 0
    """Read of each side: of a longer write its first ones."""
    named_by: str = ""
    """The rule whose hit names the place."""
    sides: dict[Side, BlockRead] = msgspec.field(default_factory=dict)
    """A side whose driver cannot read blocks is not there."""
    bytes_different: Count | None = None
    """None: not both sides were read."""
    byte_offset: Count | None = None
    """Of the first byte that differs, from the start of ``sector``."""

    @property
    def is_read(self) -> bool:
        """On both sides."""
        return len(self.sides) > 1 and all(one.path for one in self.sides.values())


def differing(first: bytes, second: bytes) -> tuple[int, int | None]:
    """(how many bytes differ, offset of the first one). Of equal length."""
    places = [at for at, (one, two) in enumerate(zip(first, second, strict=True)) if one != two]
    return len(places), places[0] if places else None


def with_rejoin(
    block: FailingBlock,
    *,
    shows_rejoins: bool,
    rejoins_ns: Collection[tuple[Ns, Ns]],
    seen_until_ns: Ns,
) -> FailingBlock:
    """Add whether each side was read before the two began to rejoin, as the link shows it.

    ``shows_rejoins``: the link's protocol shows when they do; ``rejoins_ns``: (no sooner than, no later
    than) the begin of each rejoin since the failure; ``seen_until_ns``: the end of a capture without
    holes, 0 of one with some."""
    first_ns = min((sooner_ns for sooner_ns, _ in rejoins_ns), default=None)
    certain_ns = min((later_ns for _, later_ns in rejoins_ns), default=None)

    def judged(one: BlockRead) -> BlockRead:
        if not one.path or one.t_read_ns is None:
            return one
        if certain_ns is not None and certain_ns <= one.t_read_ns:
            return msgspec.structs.replace(one, rejoin="after", reason="")
        if not shows_rejoins:
            return msgspec.structs.replace(one, rejoin="not known", reason=NOT_SHOWN)
        if first_ns is not None and first_ns <= one.t_read_ns:
            return msgspec.structs.replace(one, rejoin="not known", reason=UNDER_WAY)
        if seen_until_ns and (first_ns is not None or seen_until_ns >= one.t_read_ns):
            return msgspec.structs.replace(one, rejoin="before", reason="")
        return msgspec.structs.replace(one, rejoin="not known", reason=ENDS_EARLY)

    return msgspec.structs.replace(
        block, sides={side: judged(one) for side, one in block.sides.items()}
    )


def in_words(block: FailingBlock) -> str:
    """For a person; "": nothing was to be read. Reasons may come from a device and are not escaped."""
    if block.sector is None or not block.sides:
        return ""
    last = block.sector + block.sectors - 1
    said = f"sectors {block.sector}-{last}"
    reads = [f"{side} {_read_in_words(one)}" for side, one in block.sides.items()]
    kinds = {(bool(one.path), one.rejoin) for one in block.sides.values()}
    if block.is_read and len(kinds) == 1:
        reads = [f"both sides {_read_in_words(next(iter(block.sides.values())))}"]
    if block.bytes_different is None:
        return f"{said}: {', '.join(reads)}"
    if block.byte_offset is None:
        return f"{said}: {', '.join(reads)}; no byte differs"
    place = block.sector + block.byte_offset // SECTOR_BYTES
    verb = "differs" if block.bytes_different == 1 else "differ"
    count = f"{block.bytes_different} of {block.sectors * SECTOR_BYTES} bytes {verb}"
    empty = [side for side, one in block.sides.items() if one.is_zero]
    if empty:  # the two differ, so it is one side
        return f"{said}: {', '.join(reads)}; {count}: the {empty[0]} holds zeros only"
    return (
        f"{said}: {', '.join(reads)}; {count}, the first is byte {block.byte_offset % SECTOR_BYTES} "
        f"of sector {place}"
    )


def _read_in_words(one: BlockRead) -> str:
    if not one.path:
        return f"NOT READ ({one.reason or 'it did not answer'})"
    when = {
        "before": "before the sides rejoined",
        "after": "AFTER the rejoin had begun",
        "not known": "and whether before the rejoin is not known",
    }
    return f"read {when[one.rejoin]}"
