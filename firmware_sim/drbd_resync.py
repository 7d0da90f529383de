"""Bitmap exchange and resync, both directions.

The source sends its bitmap, the target answers with its own, both work on the union. The source
names the generation that it brings the target to (SYNC_UUID); the target asks for what is out of
sync, block by block.

No resync block overwrites a newer application write: replies and writes leave in one stream in the
order in which the source's volume changed, so a reply that was read before a write arrives before
it. The caller's part is to store a write locally in the same step in which it replicates it.
"""

from typing import Any, Final

from freezeframe.firmware_sim.bitmap import (
    BLOCK_BYTES,
    BitmapReceiver,
    encode_rle,
    plain_payload_bytes,
    plain_payloads,
    statistics,
)
from freezeframe.firmware_sim.drbd_codec import encode, header_bytes
from freezeframe.firmware_sim.drbd_contract import NS_PER_MS, NS_PER_S, LinkFailure
from freezeframe.firmware_sim.drbd_link import Link
from freezeframe.firmware_sim.drbd_metadata import BITMAP, CURRENT, MAX_UUID
from freezeframe.firmware_sim.drbd_secondary import Secondary
from freezeframe.harness.wire.drbd import (
    ID_SYNCER,
    MAX_DATA_BYTES_100,
    RESYNC_REQUEST_BYTES,
    SECTOR_BYTES,
    UUID_JUST_CREATED,
    UUID_NEW_BITMAP_OFFSET,
    Cmd,
    Conn,
    Disk,
    Role,
)
from freezeframe.harness.wire.rootcause import EventCode

REQUEST_BLOCKS: Final = RESYNC_REQUEST_BYTES // BLOCK_BYTES
WINDOW_REQUESTS: Final = 64
"""Resync requests under way: 2 MiB, enough to keep the link busy, little enough to let host writes
through."""
KIB_PER_BLOCK: Final = BLOCK_BYTES >> 10


class Resync:
    def __init__(self, link: Link, secondary: Secondary) -> None:
        self._link = link
        self._secondary = secondary
        self._receiver: BitmapReceiver | None = None
        self._next_block = 0
        """Target: where to look for the next block to ask for."""
        self._under_way = 0
        """Requests or replies that are not answered yet."""
        self._failed = 0
        """Target: requests that the source could not serve."""
        self._peer_done = False
        """Source: the target has reported that it is up to date."""
        self._total = 0
        self._start_ns = 0

    # --- bitmap exchange ------------------------------------------------------------------------------------------

    def begin_source(self) -> None:
        """The state is WFBitMapS and has been sent: send the bitmap, wait for that of the target."""
        self._link.faults.resync("bitmap", self._link.backend.metadata.bitmap)
        self._expect_bitmap()
        self._send_bitmap()

    def begin_target(self) -> None:
        """State is WFBitMapT: wait for the source's bitmap."""
        self._expect_bitmap()

    def bitmap_packet(self, command: int, body: memoryview) -> None:
        """P_BITMAP or P_COMPRESSED_BITMAP."""
        link, receiver = self._link, self._receiver
        if receiver is None or link.conn not in (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T):
            raise self._secondary.refused(command, len(body), Conn.PROTOCOL_ERROR)
        try:
            done = receiver.plain(body) if command == Cmd.BITMAP else receiver.compressed(body)
        except ValueError as exc:
            link.log_device(str(exc))
            raise self._secondary.refused(command, len(body), Conn.PROTOCOL_ERROR) from exc
        if not done:
            return
        self._receiver = None
        received = statistics(
            link.backend.metadata.bitmap, header_bytes(link.agreed_version),
            (receiver.plain_bytes, receiver.plain_packets), (receiver.rle_bytes, receiver.rle_packets),
        )  # fmt: skip
        link.log_device(f"receive bitmap stats [Bytes(packets)]: {received}")
        if link.conn is Conn.WF_BITMAP_S:
            self._start_source()
        else:
            self._send_bitmap()
            link.change(conn=Conn.WF_SYNC_UUID)

    def _expect_bitmap(self) -> None:
        link = self._link
        self._receiver = BitmapReceiver(
            link.backend.metadata.bitmap, header_bytes(link.agreed_version)
        )

    def _send_bitmap(self) -> None:
        link, bitmap = self._link, self._link.backend.metadata.bitmap
        head = header_bytes(link.agreed_version)
        rle = encode_rle(bitmap, plain_payload_bytes(head))
        if rle is not None:
            payloads, command = [rle], Cmd.COMPRESSED_BITMAP
        else:
            payloads, command = plain_payloads(bitmap, head), Cmd.BITMAP
        packets = [encode(link.agreed_version, command, body=payload) for payload in payloads]
        link.write(link.data_socket, *packets)
        sent = sum(map(len, packets)), len(packets)
        plain, compressed = ((0, 0), sent) if rle is not None else (sent, (0, 0))
        link.log_device(
            f"send bitmap stats [Bytes(packets)]: {statistics(bitmap, head, plain, compressed)}"
        )

    def out_of_sync(self, fields: tuple[Any, ...]) -> None:
        """P_OUT_OF_SYNC: the source was written while the bitmaps were exchanged."""
        sector, length, _ = fields
        self._secondary.check_range(
            Cmd.OUT_OF_SYNC, sector, length, 0, self._link.backend.size_bytes
        )
        if self._link.conn in (Conn.WF_BITMAP_T, Conn.WF_SYNC_UUID):
            self._link.mark_out_of_sync(sector * SECTOR_BYTES, length)

    # --- source ---------------------------------------------------------------------------------------------------

    def _start_source(self) -> None:
        link, metadata = self._link, self._link.backend.metadata
        link.change(conn=Conn.SYNC_SOURCE)
        self._begin("SyncSource", True)
        old = metadata.uuids[BITMAP]
        uuid = (
            old + UUID_NEW_BITMAP_OFFSET & MAX_UUID
            if old not in (0, UUID_JUST_CREATED)
            else link.new_uuid()
        )
        metadata.set_bitmap_uuid(uuid)
        link.log_device(f"updated sync UUID {metadata}")
        link.backend.save_metadata()
        link.send(Cmd.SYNC_UUID, uuid)
        self._peer_done = False
        self._finish_source_if_done()

    def request(self, fields: tuple[Any, ...]) -> None:
        """P_RS_DATA_REQUEST: answered with what is stored now."""
        sector, block_id, length, _ = fields
        if self._link.conn is not Conn.SYNC_SOURCE:
            raise self._secondary.refused(Cmd.RS_DATA_REQUEST, 0, Conn.PROTOCOL_ERROR)
        self._secondary.check_range(Cmd.RS_DATA_REQUEST, sector, length, 0, MAX_DATA_BYTES_100)
        self._under_way += 1
        self._secondary.send_block(Cmd.RS_DATA_REPLY, sector, block_id, length)

    def reply_ack(self, fields: tuple[Any, ...], stored: bool) -> None:
        """The target has stored a resync block (RS_WRITE_ACK), or could not (NEG_ACK)."""
        sector, _, length, _ = fields
        link = self._link
        if sector + length // SECTOR_BYTES > link.sectors:
            raise LinkFailure(Conn.NETWORK_FAILURE)
        self._under_way = max(0, self._under_way - 1)
        if stored:
            link.backend.metadata.bitmap.clear_bytes(sector * SECTOR_BYTES, length)
        self._finish_source_if_done()

    def peer_reports_done(self) -> None:
        """The target's state says that its resync is over; its last acks may still be on the meta
        socket."""
        self._peer_done = True
        self._finish_source_if_done()

    def _finish_source_if_done(self) -> None:
        link = self._link
        if link.conn is not Conn.SYNC_SOURCE:
            return
        left = link.backend.metadata.bitmap.count
        if left and not (self._peer_done and not self._under_way):
            return
        self._log_done()
        link.backend.metadata.set_bitmap_uuid(0)
        self._finish(peer_disk=Disk.UP_TO_DATE)

    def write_acked(self) -> None:
        """An application write may have brought the last block in sync."""
        self._finish_source_if_done()

    # --- target ---------------------------------------------------------------------------------------------------

    def sync_uuid(self, uuid: int) -> None:
        """P_SYNC_UUID: the resync begins."""
        link, metadata = self._link, self._link.backend.metadata
        if link.conn is not Conn.WF_SYNC_UUID:
            raise self._secondary.refused(Cmd.SYNC_UUID, 0, Conn.PROTOCOL_ERROR)
        metadata.uuids[CURRENT] = uuid
        metadata.uuids[BITMAP] = 0
        metadata.mark_role(link.role is Role.PRIMARY)
        link.log_device(f"updated sync uuid {metadata}")
        link.change(conn=Conn.SYNC_TARGET)
        link.backend.save_metadata()
        link.faults.resync("begin", metadata.bitmap)
        self._begin("SyncTarget", False)
        link.send(Cmd.STATE, link.state_word())
        self._next_block = 0
        self._ask()

    def _ask(self) -> None:
        """Keep the window full; without anything left to ask for and to wait for the resync is
        over."""
        link, bitmap = self._link, self._link.backend.metadata.bitmap
        while self._under_way < WINDOW_REQUESTS:
            run = bitmap.next_run(self._next_block, REQUEST_BLOCKS)
            if run is None:
                self._next_block = bitmap.blocks
                break
            first, blocks = run
            self._next_block = first + blocks
            offset = first * BLOCK_BYTES
            length = min(blocks * BLOCK_BYTES, link.backend.size_bytes - offset)
            link.send(Cmd.RS_DATA_REQUEST, offset // SECTOR_BYTES, ID_SYNCER, length, 0)
            self._under_way += 1
        if not self._under_way:
            self._finish_target()

    def reply(self, fields: tuple[Any, ...], body: memoryview) -> None:
        """P_RS_DATA_REPLY: store it, tell the source, ask for more."""
        sector, block_id, _, _ = fields
        link = self._link
        if link.conn is not Conn.SYNC_TARGET or not self._under_way:
            raise self._secondary.refused(Cmd.RS_DATA_REPLY, len(body), Conn.PROTOCOL_ERROR)
        data = self._secondary.checked(Cmd.RS_DATA_REPLY, sector, body)
        self._secondary.activate(sector, len(data))
        link.backend.write(sector * SECTOR_BYTES, data)
        link.backend.metadata.bitmap.clear_bytes(sector * SECTOR_BYTES, len(data))
        link.send(Cmd.RS_WRITE_ACK, sector, block_id, len(data), link.next_seq())
        self._under_way -= 1
        self._ask()

    def reply_failed(self) -> None:
        """NEG_RS_DREPLY or RS_CANCEL: the source could not read; the block stays out of sync."""
        if self._link.conn is Conn.SYNC_TARGET and self._under_way:
            self._under_way -= 1
            self._failed += 1
            self._ask()

    def _finish_target(self) -> None:
        link, metadata = self._link, self._link.backend.metadata
        self._log_done()
        if self._failed:
            link.log_device(f"            {metadata.bitmap.count} failed blocks")
            link.change(conn=Conn.CONNECTED)
        else:
            # Bits that are left were set meanwhile, by a scrub: the next resync is for them.
            metadata.damaged = metadata.bitmap.count > 0
            metadata.finish_as_target(link.peer_uuids, link.role is Role.PRIMARY)
            self._finish(disk=Disk.UP_TO_DATE)
        link.send(Cmd.STATE, link.state_word())

    # --- both -----------------------------------------------------------------------------------------------------

    def _begin(self, as_what: str, as_source: bool) -> None:
        link = self._link
        self._total = link.backend.metadata.bitmap.count
        self._start_ns = link.now
        self._under_way = self._failed = 0
        link.log_device(
            f"Began resync as {as_what} (will sync {self._total * KIB_PER_BLOCK} KB [{self._total} bits set])."
        )
        link.trace(EventCode.RESYNC_START, int(as_source), self._total)

    def _log_done(self) -> None:
        link = self._link
        duration_ns = link.now - self._start_ns
        seconds = max(1, duration_ns // NS_PER_S)
        link.log_device(
            f"Resync done (total {seconds} sec; paused 0 sec; {self._total * KIB_PER_BLOCK // seconds} K/sec)"
        )
        link.trace(EventCode.RESYNC_DONE, self._total, duration_ns // NS_PER_MS)

    def _finish(self, *, disk: Disk | None = None, peer_disk: Disk | None = None) -> None:
        link = self._link
        link.peer_uuids = list(link.backend.metadata.uuids)
        link.log_device(f"updated UUIDs {link.backend.metadata}")
        link.change(conn=Conn.CONNECTED, disk=disk, peer_disk=peer_disk)
        link.whole()

    def lost(self) -> None:
        self._receiver = None
        self._under_way = 0
        self._peer_done = False
