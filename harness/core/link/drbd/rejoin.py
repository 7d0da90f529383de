"""What DRBD's packets say while two nodes that were apart become equal again: what each says of
itself, its bitmap, the blocks asked for and copied, and that both are up to date.

``said`` gives the fields of a Resync message beyond those that each message has.
"""

from __future__ import annotations

from typing import Final, TypedDict

from freezeframe.harness.core.link.drbd.bitmaps import BitmapTransfer
from freezeframe.harness.core.link.drbd.session import DrbdLinkSession
from freezeframe.harness.core.link.drbd.stream import DrbdPacket, split_state
from freezeframe.harness.core.link.messages import ResyncWord
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

MAX_BITMAPS: Final = 64
"""Transfers of one session that are followed at once."""
_SECTOR_BYTES: Final = drbd.SECTOR_BYTES
_DATA_BYTES: Final = drbd.P_DATA.size
_OUT_OF_SYNC: Final = 4712
"""block_id of P_OV_RESULT: online verify found the block different."""
_UP_TO_DATE_9: Final = drbd.Disk.UP_TO_DATE + 1
"""DRBD 9 has one state more below it."""


class Said(TypedDict, total=False):
    """Fields of Resync."""

    what: ResyncWord
    offset_bytes: int
    length_bytes: int
    volume: int
    ranges: tuple[tuple[int, int], ...]
    size_bytes: int
    bits: int
    crashed: bool
    initial: bool
    broken: bool


def said(session: DrbdLinkSession, sender: str, packet: DrbdPacket) -> Said | None:
    """None: nothing about becoming equal."""
    command, body, volume = packet.command, packet.body, packet.volume
    match command:
        case Cmd.STATE:
            return _state(session, packet)
        case Cmd.UUIDS | Cmd.UUIDS110:
            fields = packet.fields()
            flags, current = fields["uuid_flags"], fields["current_uuid"]
            session.bitmaps.pop((sender, volume), None)
            return {
                "what": "stated", "volume": volume, "bits": fields["dirty_bits"],
                "crashed": bool(flags & drbd.UuidFlag.CRASHED_PRIMARY),
                "initial": current in (0, drbd.UUID_JUST_CREATED),
            }  # fmt: skip
        case Cmd.SIZES:
            size, _, exported, *_ = drbd.P_SIZES.unpack_from(body)
            stated_bytes = (exported or size) * _SECTOR_BYTES
            session.volume_bytes[volume] = stated_bytes
            return {"what": "stated", "volume": volume, "size_bytes": stated_bytes}
        case Cmd.BITMAP | Cmd.COMPRESSED_BITMAP:
            return _bitmap(session, sender, packet)
    what = _BLOCKS[command]
    sector, length_bytes = _place(packet)
    if what == "marked" and command != Cmd.OUT_OF_SYNC and not _is_different(packet):
        return None
    return {
        "what": what, "volume": volume, "offset_bytes": sector * _SECTOR_BYTES, "length_bytes": length_bytes,
    }  # fmt: skip


def _state(session: DrbdLinkSession, packet: DrbdPacket) -> Said | None:
    state = split_state(drbd.P_STATE.unpack_from(packet.body)[0])
    best = _UP_TO_DATE_9 if session.is_nine else drbd.Disk.UP_TO_DATE
    if state["conn"] != drbd.Conn.CONNECTED or (state["disk"], state["pdsk"]) != (best, best):
        return None
    return {"what": "equal", "volume": packet.volume}


def _bitmap(session: DrbdLinkSession, sender: str, packet: DrbdPacket) -> Said:
    key = (sender, packet.volume)
    transfer = session.bitmaps.get(key)
    if transfer is None or transfer.is_over:
        while len(session.bitmaps) >= MAX_BITMAPS:
            del session.bitmaps[next(iter(session.bitmaps))]
        transfer = session.bitmaps[key] = BitmapTransfer()
    is_plain = packet.command == Cmd.BITMAP
    found = transfer.plain(packet.body) if is_plain else transfer.compressed(packet.body)
    blocks = -(-session.volume_bytes.get(packet.volume, 0) // drbd.BITMAP_BLOCK_BYTES)
    transfer.is_over |= not is_plain and 0 < blocks <= transfer.block
    return {
        "what": "bitmap", "volume": packet.volume, "ranges": tuple(found), "broken": transfer.broken,
    }  # fmt: skip


def _place(packet: DrbdPacket) -> tuple[int, int]:
    """(sector, length in bytes) of a packet about a block."""
    if packet.command == Cmd.RS_DATA_REPLY:
        length_bytes = (packet.length - _DATA_BYTES) // _SECTOR_BYTES * _SECTOR_BYTES
        return drbd.P_DATA.unpack_from(packet.body)[0], length_bytes
    if packet.command in (Cmd.OUT_OF_SYNC, Cmd.RS_DEALLOCATED):
        sector, length_bytes, _ = drbd.P_BLOCK_DESC.unpack_from(packet.body)
        return sector, length_bytes
    sector, _, length_bytes, *_ = drbd.P_BLOCK_REQ.unpack_from(packet.body)
    return sector, length_bytes


def _is_different(packet: DrbdPacket) -> bool:
    """Of an online verify's result."""
    if packet.command == Cmd.OV_RESULT:
        return int.from_bytes(packet.body[8:16], "big") == _OUT_OF_SYNC
    return bool(drbd.P_OV_RESULT_ID.unpack_from(packet.body)[4] == _OUT_OF_SYNC)


_BLOCKS: Final[dict[int, ResyncWord]] = {
    Cmd.RS_DATA_REQUEST: "request",
    Cmd.CSUM_RS_REQUEST: "request",
    Cmd.RS_THIN_REQ: "request",
    Cmd.RS_DAGTAG_REQ: "request",
    Cmd.RS_CSUM_DAGTAG_REQ: "request",
    Cmd.RS_THIN_DAGTAG_REQ: "request",
    Cmd.RS_DATA_REPLY: "data",
    Cmd.RS_DEALLOCATED: "data",
    Cmd.RS_DEALLOCATED_ID: "data",
    Cmd.RS_IS_IN_SYNC: "same",
    Cmd.OUT_OF_SYNC: "marked",
    Cmd.OV_RESULT: "marked",
    Cmd.OV_RESULT_ID: "marked",
    Cmd.RS_NEG_ACK: "answer",
}
COMMANDS: Final = frozenset(
    {Cmd.STATE, Cmd.UUIDS, Cmd.UUIDS110, Cmd.SIZES, Cmd.BITMAP, Cmd.COMPRESSED_BITMAP, *_BLOCKS}
)

assert drbd.P_BLOCK_ACK.size == drbd.P_BLOCK_REQ.size
