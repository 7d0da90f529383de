"""What a controller remembers about its pair over a power loss: generations (UUIDs), the bitmap,
the active extents.

UUIDs are [current, bitmap, history0, history1]. The current one names a generation of the data; the
bitmap one is the generation that the peer still has, from which the bitmap tells the difference;
the lowest bit means "was primary".

Active extents are what the activity log is on a real node: stretches of 4 MiB that may be under
write, or still in the store's volatile cache. After an unclean end they count as out of sync, so
the bitmap need not be saved at each write.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import cbor2

from freezeframe.firmware_sim.bitmap import Bitmap
from freezeframe.harness.wire.drbd import UUID_JUST_CREATED, UUID_PRIMARY_BIT, Disk

CURRENT: Final = 0
BITMAP: Final = 1
HISTORY: Final = 2
UUIDS: Final = 4
MAX_UUID: Final = (1 << 64) - 1

EXTENT_BYTES: Final = 4 << 20
MAX_ACTIVE_EXTENTS: Final = 64
"""256 MiB: far more than the store's volatile cache, so an extent that is pushed out has long been
destaged."""
FORMAT: Final = 1


@dataclass(kw_only=True)
class Metadata:
    bitmap: Bitmap
    uuids: list[int] = field(default_factory=lambda: [UUID_JUST_CREATED, 0, 0, 0])
    disk: Disk = Disk.INCONSISTENT
    crashed_primary: bool = False
    """Set while this side, as primary, has written; found set at attach it means that the primary
    ended uncleanly."""
    damaged: bool = False
    """This side's data is wrong at blocks of the bitmap: it must be the target of the next
    resync."""
    active: dict[int, None] = field(default_factory=dict)
    """Numbers of the active extents, the longest active first."""

    @classmethod
    def fresh(cls, size_bytes: int) -> "Metadata":
        """A volume that has never been paired: all of it counts as out of sync."""
        bitmap = Bitmap(size_bytes)
        bitmap.set_all()
        return cls(bitmap=bitmap)

    def to_bytes(self) -> bytes:
        return cbor2.dumps(
            [
                FORMAT, self.bitmap.size_bytes, self.bitmap.to_bytes(), self.uuids, int(self.disk),
                self.crashed_primary, self.damaged, list(self.active),
            ]
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> "Metadata":
        """Raises ValueError when ``data`` is not what ``to_bytes`` made."""
        try:
            version, size_bytes, bits, uuids, disk, crashed_primary, damaged, active = cbor2.loads(
                data
            )
            if (
                version != FORMAT
                or len(uuids) != UUIDS
                or not all(0 <= uuid <= MAX_UUID for uuid in uuids)
            ):
                raise ValueError("format or UUIDs")
            bitmap = Bitmap(size_bytes)
            bitmap.merge(bits)
            return cls(
                bitmap=bitmap, uuids=list(uuids), disk=Disk(disk), crashed_primary=bool(crashed_primary),
                damaged=bool(damaged), active=dict.fromkeys(int(extent) for extent in active),
            )  # fmt: skip
        except (cbor2.CBORDecodeError, TypeError, ValueError) as exc:
            raise ValueError(f"metadata is damaged: {exc}") from exc

    # --- generations ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """As the kernel's log prints them."""
        return format_uuids(self.uuids)

    @property
    def just_created(self) -> bool:
        return self.uuids[CURRENT] == UUID_JUST_CREATED

    def mark_role(self, primary: bool) -> None:
        """The current generation is being written here, or no more."""
        if not self.just_created:
            self.uuids[CURRENT] = self.uuids[CURRENT] & ~UUID_PRIMARY_BIT | (
                UUID_PRIMARY_BIT if primary else 0
            )

    def start_generation(self, uuid: int, primary: bool) -> None:
        """From here on this side's data differ from the peer's; the bitmap tells where."""
        self.uuids[BITMAP] = self.uuids[CURRENT]
        self.uuids[CURRENT] = uuid
        self.mark_role(primary)

    def set_bitmap_uuid(self, uuid: int) -> None:
        """Replace the bitmap UUID; the old one goes into the history (when there was one)."""
        if self.uuids[BITMAP]:
            self.uuids[HISTORY + 1] = self.uuids[HISTORY]
            self.uuids[HISTORY] = self.uuids[BITMAP]
        self.uuids[BITMAP] = uuid

    def finish_as_target(self, source_uuids: Iterable[int], primary: bool) -> None:
        """This side now has the source's generation (its UUIDs from the handshake)."""
        source = list(source_uuids)
        reached = self.uuids[CURRENT]
        self.uuids[BITMAP:] = source[BITMAP:]
        self.set_bitmap_uuid(reached)
        self.uuids[CURRENT] = source[CURRENT]
        self.mark_role(primary)
        self.set_bitmap_uuid(0)

    # --- active extents -------------------------------------------------------------------------------------------

    def activate(self, offset_bytes: int, length_bytes: int) -> bool:
        """Note that this range may be under write; True when that is news, and must be saved before
        the write."""
        first = offset_bytes // EXTENT_BYTES
        last = (offset_bytes + length_bytes - 1) // EXTENT_BYTES
        if first == last and first in self.active:
            return False
        fresh = [extent for extent in range(first, last + 1) if extent not in self.active]
        self.active.update(dict.fromkeys(fresh))
        while len(self.active) > MAX_ACTIVE_EXTENTS and len(self.active) > len(fresh):
            del self.active[next(iter(self.active))]
        return bool(fresh)

    def spend_active(self) -> None:
        """After an unclean end: every active extent counts as out of sync."""
        for extent in self.active:
            start = extent * EXTENT_BYTES
            self.bitmap.set_bytes(start, min(EXTENT_BYTES, self.bitmap.size_bytes - start))
        self.active.clear()


def format_uuids(uuids: Iterable[int]) -> str:
    return ":".join(f"{uuid:016X}" for uuid in uuids)
