"""A primary mends blocks that its own scrub found damaged: it reads them from the peer
(P_DATA_REQUEST).

It cannot be the target of a resync, for its host's writes count. A reply holds every write that
left before the request; one that overlaps and leaves later makes the reply worthless, and the block
is asked for again.
"""

from typing import Any, Final

from freezeframe.firmware_sim.bitmap import BLOCK_BYTES, Bitmap
from freezeframe.firmware_sim.drbd_link import Link
from freezeframe.firmware_sim.drbd_primary import BLOCK_ID
from freezeframe.firmware_sim.drbd_secondary import Secondary
from freezeframe.harness.wire.drbd import SECTOR_BYTES, Cmd, Conn, Disk

WINDOW_REQUESTS: Final = 16


class Repair:
    def __init__(self, link: Link, secondary: Secondary) -> None:
        self._link = link
        self._secondary = secondary
        self.damaged = Bitmap(link.backend.size_bytes)
        """Blocks that are to be read from the peer, those asked for included."""
        self._asked: dict[bytes, int] = {}
        """block_id of a request, never used twice -> its block."""
        self._serial = 0

    def ask(self) -> None:
        """After each step: keep some requests under way, as long as the peer can answer them."""
        link = self._link
        if (
            not self.damaged.count
            or link.conn is not Conn.CONNECTED
            or link.peer_disk is not Disk.UP_TO_DATE
        ):
            return
        asked = set(self._asked.values())
        block = 0
        while len(self._asked) < WINDOW_REQUESTS:
            run = self.damaged.next_run(block, 1)
            if run is None:
                break
            block = run[0] + 1
            if run[0] not in asked:
                self._serial += 1
                block_id = BLOCK_ID.pack(self._serial)
                self._asked[block_id] = run[0]
                link.send(Cmd.DATA_REQUEST, self._sector(run[0]), block_id, self._length(run[0]), 0)

    def written(self, offset_bytes: int, length_bytes: int) -> None:
        """The host writes there: replies that are under way are out of date; whole blocks need no
        repair any more."""
        if not self.damaged.count:
            return
        first, last = offset_bytes // BLOCK_BYTES, (offset_bytes + length_bytes - 1) // BLOCK_BYTES
        self._asked = {
            key: block for key, block in self._asked.items() if not first <= block <= last
        }
        self.damaged.clear_bytes(offset_bytes, length_bytes)

    def reply(self, fields: tuple[Any, ...], body: memoryview) -> None:
        """P_DATA_REPLY."""
        sector, block_id, _, _ = fields
        data = self._secondary.checked(Cmd.DATA_REPLY, sector, body)
        block = self._asked.pop(block_id, None)
        if block is not None and sector == self._sector(block) and len(data) == self._length(block):
            self._link.backend.write(sector * SECTOR_BYTES, data)
            self.damaged.clear_blocks(block, 1)

    def refused(self, fields: tuple[Any, ...]) -> None:
        """NEG_DREPLY: the peer cannot read it either; the block stays as it is."""
        block = self._asked.pop(fields[1], None)
        if block is not None:
            self.damaged.clear_blocks(block, 1)

    def take(self) -> list[tuple[int, int]]:
        """Runs of the damaged blocks, which are somebody else's now: this side is primary no
        more."""
        runs = list(self.damaged.runs())
        self.damaged.clear_all()
        self._asked.clear()
        return runs

    def lost(self) -> None:
        """The link is gone: ask again over the next one."""
        self._asked.clear()

    def _sector(self, block: int) -> int:
        return block * BLOCK_BYTES // SECTOR_BYTES

    def _length(self, block: int) -> int:
        return min(BLOCK_BYTES, self._link.backend.size_bytes - block * BLOCK_BYTES)
