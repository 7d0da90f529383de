"""Ghost writes: an old copy of a write that lands after its retry, and after a newer write to the same
place. Each of them has a right digest, and the old data win.

It can happen where a sender repeats a write over a new session while the old one's bytes are still
under way (``LinkSession.resends``), such as NVMe/TCP after a lost connection. An old copy whose
retry was answered, and after which nobody wrote there, brings the same data again and is no ghost.
Memory is bounded; what fell out of it accuses nobody.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from crc32c import crc32c

from freezeframe.harness.core.link.ledgerevents import (
    GhostWrite,
    LedgerEvent,
    WriteRow,
    WriteSent,
)
from freezeframe.harness.core.link.messages import LinkMessage, ReplicatedWrite, WritePart

BLOCK_BYTES: Final = 4096
MAX_PLACES: Final = 1 << 16
SENT_PER_PLACE: Final = 4
MAX_LATE: Final = 1024
"""Writes of closed sessions whose data are not complete."""


class _Sent(NamedTuple):
    row: WriteRow
    crc32c: int


class _Late(NamedTuple):
    row: WriteRow
    crc32c: int
    """Of the data so far ..."""
    bytes_seen: int
    """... which are complete from the start up to here."""


class GhostWatch:
    """Knows the writes of the last sessions by their place and data."""

    def __init__(self) -> None:
        self._by_place: OrderedDict[tuple[str, int, int], deque[_Sent]] = OrderedDict()
        self._newest: OrderedDict[tuple[str, int], _Sent] = OrderedDict()
        """(sender, block) -> the newest write there."""
        self._late: OrderedDict[tuple[int, object], _Late] = OrderedDict()

    def sent(self, events: Iterable[LedgerEvent]) -> None:
        """What a session that is not closed has written."""
        for event in events:
            if type(event) is not WriteSent or event.data is None:
                continue
            row = event.row
            one = _Sent(row, crc32c(event.data))
            place = (row.sender, row.offset_bytes, row.length_bytes)
            self._by_place.setdefault(place, deque(maxlen=SENT_PER_PLACE)).append(one)
            self._by_place.move_to_end(place)
            for block in _blocks(row):
                self._newest[row.sender, block] = one
                self._newest.move_to_end((row.sender, block))
            while len(self._by_place) > MAX_PLACES:
                self._by_place.popitem(last=False)
            while len(self._newest) > MAX_PLACES:
                self._newest.popitem(last=False)

    def late(self, message: LinkMessage) -> list[LedgerEvent]:
        """A message of a session that is closed: the sender has given it up."""
        if not isinstance(message, ReplicatedWrite | WritePart) or not message.session.resends:
            return []
        key = (message.session.number, message.key)
        if message.tentative or message.digest_wire != message.digest_computed:
            self._late.pop(key, None)
            return []
        if isinstance(message, ReplicatedWrite):
            if message.kind != "write":
                return []
            known, at = _Late(_row(message), 0, 0), 0
        else:
            found = self._late.pop(key, None)
            if found is None:
                return []
            known, at = found, message.part_offset_bytes
        if at != known.bytes_seen:
            return []
        crc = crc32c(bytes(message.data), known.crc32c)
        known = _Late(known.row, crc, at + len(message.data))
        known.row.t_sent_ns, known.row.packet_no = message.t_ns, message.packet_no
        if known.bytes_seen == known.row.length_bytes:
            return self._judged(known.row, crc)
        self._late[key] = known
        if len(self._late) > MAX_LATE:
            self._late.popitem(last=False)
        return []

    def _judged(self, row: WriteRow, crc: int) -> list[LedgerEvent]:
        same = self._by_place.get((row.sender, row.offset_bytes, row.length_bytes), ())
        number = row.session.number
        retries = [
            one.row
            for one in same
            if one.crc32c == crc and one.row.session.number > number and one.row.answer == "ok"
        ]
        if not retries:
            return []
        retry, end = retries[0], row.offset_bytes + row.length_bytes
        for block in _blocks(row):
            newest = self._newest.get((row.sender, block))
            if newest is None or newest.row.packet_no <= retry.packet_no:
                continue
            newer = newest.row
            overlaps = newer.offset_bytes < end and row.offset_bytes < _end(newer)
            is_same = (newer.offset_bytes, newer.length_bytes, newest.crc32c) == (
                row.offset_bytes, row.length_bytes, crc,
            )  # fmt: skip
            if overlaps and not is_same:
                return [GhostWrite(row, retry, newer)]
        return []


def _end(row: WriteRow) -> int:
    return row.offset_bytes + row.length_bytes


def _blocks(row: WriteRow) -> range:
    return range(row.offset_bytes // BLOCK_BYTES, -(-_end(row) // BLOCK_BYTES))


def _row(message: ReplicatedWrite) -> WriteRow:
    return WriteRow(
        message.session, message.sender, message.name, message.kind, message.volume, message.offset_bytes,
        message.length_bytes, message.write_id, message.t_first_ns, message.t_ns, message.first_packet_no,
        message.packet_no, 0, message.expects_answer, message.algorithm, message.digest_wire,
        message.digest_computed,
    )  # fmt: skip
