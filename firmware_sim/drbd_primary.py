"""The sending side of replication: writes, their answers, epochs.

An epoch is a set of writes among which the peer may choose the order; a barrier separates two. As
on a real node an epoch ends when one of its writes has been completed (the host may make a later
write depend on it), when the host flushes, and when it is full. The barrier leaves before the first
write of the next epoch, or when nothing is under way.

Until its barrier is answered a write may still be in the peer's volatile cache: what is not
answered when the link goes is marked out of sync.

The block_id is ours to choose: ``part << 48 | write_no``, big-endian, so that its low 48 bits are
the number of the host write, and all of it is for a write that fits into one packet. ``part``
counts the packets of a longer one.
"""

import struct
from collections import deque
from typing import Any, Final

from crc32c import crc32c

from freezeframe.firmware_sim.drbd_codec import CRC32C, encode_data_head, max_data_bytes
from freezeframe.firmware_sim.drbd_contract import NS_PER_MS, Completion, LinkFailure
from freezeframe.firmware_sim.drbd_link import SEPARATE_BYTES, SYNC_SOURCE, Link
from freezeframe.harness.wire.drbd import MAX_EPOCH_WRITES, SECTOR_BYTES, Cmd, Conn, DpFlag, Feature
from freezeframe.harness.wire.rootcause import EventCode, WriteStage

BLOCK_ID: Final = struct.Struct(">Q")
PART_SHIFT: Final = 48
WRITE_NO_MASK: Final = (1 << PART_SHIFT) - 1
BARRIER: Final = struct.Struct("<I")
"""The epoch's number as an x86 node puts it into the opaque field."""
MAX_BARRIER: Final = 0xFFFFFFFF
MAX_TRIM_BYTES: Final = 128 << 20
MAX_TRIM_BYTES_WITHOUT_WSAME: Final = 4 << 20
# Plain numbers and names: the operators of IntFlag take microseconds, finding an enum's member a
# tenth of one, and a write some twenty of them.
RW_SYNC: Final = int(DpFlag.RW_SYNC)
FUA: Final = int(DpFlag.FUA)
DISCARD: Final = int(DpFlag.DISCARD)
SEND_WRITE_ACK: Final = int(DpFlag.SEND_WRITE_ACK)
MAY_SET_IN_SYNC: Final = int(DpFlag.MAY_SET_IN_SYNC)
DATA: Final = Cmd.DATA
SENT: Final = WriteStage.SENT
ACKED: Final = WriteStage.ACKED
REPL_SEND: Final = EventCode.REPL_SEND
REPL_ACK_RECEIVED: Final = EventCode.REPL_ACK_RECEIVED
TENTH_NS: Final = 100 * NS_PER_MS


class Epoch:
    __slots__ = ("answered", "number", "ranges", "sent_ns", "unanswered")

    def __init__(self, number: int) -> None:
        self.number = number
        self.ranges: list[tuple[int, int]] = []
        """(offset_bytes, length_bytes) of each write sent: their count is the set_size that the
        peer must answer."""
        self.unanswered = 0
        self.answered: set[tuple[int, bytes]] = set()
        """(sector, block_id): the kernel keeps a request until its epoch's barrier is answered, and
        takes it for known."""
        self.sent_ns = 0
        """When its barrier left."""


class Primary:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._unacked: dict[bytes, tuple[list[Any], Epoch]] = {}
        """block_id -> (its row of last_writes, its epoch), oldest first."""
        self._buffers: dict[bytes, bytes] = {}
        """block_id -> the data as they left, until they are answered."""
        self._split: dict[int, list[Any]] = {}
        """Host write in several packets -> [packets unanswered, worst outcome so far]."""
        self._barriers: deque[Epoch] = deque()
        """Closed epochs whose BARRIER_ACK is due, in order."""
        self._end_epoch = False
        """A write of the current epoch has completed."""
        self.epoch = Epoch(1)
        self.completions: list[Completion] = []

    @property
    def unacked_writes(self) -> int:
        return len(self._unacked)

    @property
    def unacked_bytes(self) -> int:
        return sum(row[2] for row, _ in self._unacked.values())

    # --- sending --------------------------------------------------------------------------------------------------

    def send_write(self, write_no: int, offset_bytes: int, data: bytes, fua: bool) -> None:
        link = self._link
        limit = max_data_bytes(link.agreed_version)
        flags = RW_SYNC | FUA if fua else RW_SYNC
        if len(data) <= limit:
            self._send_part(write_no, write_no, offset_bytes, data, flags)
            return
        view = memoryview(data)
        parts = range(0, len(data), limit)
        self._split[write_no] = [len(parts), "acked"]
        for part, at in enumerate(parts):
            piece = bytes(view[at : at + limit])
            self._send_part(
                part << PART_SHIFT | write_no, write_no, offset_bytes + at, piece, flags
            )

    def send_trim(self, write_no: int, offset_bytes: int, length_bytes: int, fua: bool) -> None:
        link = self._link
        if not link.features & Feature.TRIM:
            self.send_write(write_no, offset_bytes, bytes(length_bytes), fua)
            return
        limit = MAX_TRIM_BYTES if link.features & Feature.WSAME else MAX_TRIM_BYTES_WITHOUT_WSAME
        parts = range(0, length_bytes, limit)
        if len(parts) > 1:
            self._split[write_no] = [len(parts), "acked"]
        flags = RW_SYNC | DISCARD | (FUA if fua else 0) | self._reply_flags()
        for part, at in enumerate(parts):
            block_id = BLOCK_ID.pack(part << PART_SHIFT | write_no)
            sector, length = (offset_bytes + at) // SECTOR_BYTES, min(limit, length_bytes - at)
            self._enter(write_no, block_id, sector, length, 0)
            link.send(Cmd.TRIM, sector, block_id, link.next_seq(), flags, length)

    def _send_part(
        self, block_no: int, write_no: int, offset_bytes: int, data: bytes, flags: int
    ) -> None:
        link = self._link
        offset_bytes, data = link.faults.copied(write_no, offset_bytes, data)
        sector, block_id, checksum = (
            offset_bytes // SECTOR_BYTES,
            BLOCK_ID.pack(block_no),
            crc32c(data),
        )
        self._enter(write_no, block_id, sector, len(data), checksum)
        digest = (
            CRC32C.pack(checksum)
            if link.crc32c_digest
            else link.digest(data)
            if link.digest
            else b""
        )
        head = encode_data_head(
            link.agreed_version, DATA, sector, block_id, link.next_seq(), flags | self._reply_flags(),
            len(digest) + len(data),
        )  # fmt: skip
        sent = self._buffers[block_id] = link.faults.sent_data(write_no, data)
        link.write(link.data_socket, head + digest, sent)

    def _reply_flags(self) -> int:
        flags = SEND_WRITE_ACK if self._link.agreed_version >= 100 else 0
        return flags | MAY_SET_IN_SYNC if self._link.conn is SYNC_SOURCE else flags

    def _enter(
        self, write_no: int, block_id: bytes, sector: int, length_bytes: int, checksum: int
    ) -> None:
        """Count a packet that leaves now; before it, end the epoch that must end."""
        link = self._link
        if self._end_epoch or len(self.epoch.ranges) >= MAX_EPOCH_WRITES:
            self.close_epoch()
        epoch = self.epoch
        epoch.ranges.append((sector * SECTOR_BYTES, length_bytes))
        epoch.unanswered += 1
        row = [write_no, sector, length_bytes, checksum, block_id, link.now, SENT]
        self._unacked[block_id] = (row, epoch)
        link.last_writes.append(row)
        link.trace(REPL_SEND, write_no, sector, length_bytes, checksum)
        if "request" not in link.timers:
            self._watch()

    def close_epoch(self) -> None:
        """Send the barrier of the current epoch, unless it is empty."""
        self._end_epoch = False
        epoch, link = self.epoch, self._link
        if not epoch.ranges:
            return
        link.send(Cmd.BARRIER, BARRIER.pack(epoch.number), 0)
        link.trace(EventCode.REPL_BARRIER_SENT, epoch.number, len(epoch.ranges))
        epoch.sent_ns = link.now
        self._barriers.append(epoch)
        self.epoch = Epoch(epoch.number % MAX_BARRIER + 1)
        if "request" not in link.timers:
            self._watch()

    def idle(self) -> None:
        """Called after each step: with nothing under way a due barrier leaves now."""
        if self._end_epoch and not self._unacked:
            self.close_epoch()

    # --- answers --------------------------------------------------------------------------------------------------

    def write_ack(self, fields: tuple[Any, ...], in_sync: bool) -> None:
        """WRITE_ACK or RECV_ACK; ``in_sync``: RS_WRITE_ACK of an application write."""
        sector, block_id, length_bytes, _ = fields
        link = self._link
        row = self._take(sector, block_id)
        if row is None:
            link.trace(EventCode.REPL_UNKNOWN_ACK, int.from_bytes(block_id, "big"), sector)
            if any((sector, block_id) in epoch.answered for epoch in (self.epoch, *self._barriers)):
                return
            link.log_device(
                f"got_BlockAck: failed to find request 0x{block_id[::-1].hex()}, sector {sector}s"
            )
            raise LinkFailure(Conn.NETWORK_FAILURE, "got_BlockAck [drbd] failed")
        if in_sync:
            link.backend.metadata.bitmap.clear_bytes(sector * SECTOR_BYTES, length_bytes)
        row[6] = ACKED
        link.trace(REPL_ACK_RECEIVED, row[0], sector)
        self._complete(row[0], "acked")

    def neg_ack(self, fields: tuple[Any, ...]) -> None:
        """The peer could not store it. As on a real node: out of sync, nothing logged, the link
        stays."""
        sector, block_id, length_bytes, _ = fields
        link = self._link
        if sector + length_bytes // SECTOR_BYTES > link.sectors:
            raise LinkFailure(Conn.NETWORK_FAILURE)
        link.mark_out_of_sync(sector * SECTOR_BYTES, length_bytes)
        row = self._take(sector, block_id)
        link.trace(EventCode.REPL_NEG_ACK, row[0] if row else 0, sector, length_bytes)
        if row:
            row[6] = WriteStage.FAILED
            self._complete(row[0], "negative")

    def barrier_ack(self, fields: tuple[Any, ...]) -> None:
        number, count = BARRIER.unpack(fields[0])[0], fields[1]
        link = self._link
        if not self._barriers:
            raise self._bad_barrier(
                f"BAD! BarrierAck #{number} received, but no epoch in tl!?", count
            )
        epoch = self._barriers[0]
        if number != epoch.number:
            raise self._bad_barrier(
                f"BAD! BarrierAck #{number} received, expected #{epoch.number}!", count
            )
        if count != len(epoch.ranges):
            raise self._bad_barrier(
                f"BAD! BarrierAck #{number} received with n_writes={count},"
                f" expected n_writes={len(epoch.ranges)}!",
                count,
            )
        link.trace(EventCode.REPL_BARRIER_ACK, number, count)
        self._barriers.popleft()
        if epoch.unanswered:
            link.log_device("FIXME (BARRIER_ACKED but pending)")
            for block_id, (row, of) in list(self._unacked.items()):
                if of is epoch:
                    del self._unacked[block_id]
                    self._buffers.pop(block_id, None)
                    self._complete(row[0], "acked")

    def _bad_barrier(self, text: str, count: int) -> LinkFailure:
        self._link.trace(EventCode.REPL_PROTOCOL_ERROR, Cmd.BARRIER_ACK, count)
        return LinkFailure(Conn.PROTOCOL_ERROR, text)

    def _take(self, sector: int, block_id: bytes) -> list[Any] | None:
        """The row of an unanswered write, no longer unanswered; None when there is none such."""
        known = self._unacked.get(block_id)
        if known is None or known[0][1] != sector:
            return None
        del self._unacked[block_id]
        self._buffers.pop(block_id, None)
        row, epoch = known
        epoch.unanswered -= 1
        epoch.answered.add((sector, block_id))
        if epoch is self.epoch:
            self._end_epoch = True
        return row

    def _complete(self, write_no: int, outcome: str) -> None:
        split = self._split.get(write_no)
        if split is not None:
            split[0] -= 1
            if outcome != "acked" and split[1] != "unreplicated":
                split[1] = outcome
            if split[0]:
                return
            outcome = split[1]
            del self._split[write_no]
        self.completions.append(Completion(write_no, outcome))

    # --- trouble --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        limit_ns = self._link.config.timeout_ns * self._link.config.ko_count
        if limit_ns:
            self._link.arm("request", limit_ns)

    def check_timeout(self) -> None:
        """Timer "request": is the oldest write or barrier overdue?"""
        link, config = self._link, self._link.config
        limit_ns = config.timeout_ns * config.ko_count
        if self._unacked:
            since_ns = next(iter(self._unacked.values()))[0][5]
        elif self._barriers:
            since_ns = self._barriers[0].sent_ns
        else:
            return
        waited_ns = link.now - since_ns
        if waited_ns < limit_ns:
            link.arm("request", limit_ns - waited_ns)
            return
        link.trace(EventCode.REPL_TIMEOUT, waited_ns // NS_PER_MS, len(self._unacked))
        what = "finish a request" if self._unacked else "answer a P_BARRIER"
        link.log_device(
            f"Remote failed to {what} within {waited_ns // NS_PER_MS}ms >"
            f" ko-count ({config.ko_count}) * timeout ({config.timeout_ns // TENTH_NS} * 0.1s)"
        )
        raise LinkFailure(Conn.TIMEOUT)

    def audit(self) -> None:
        """Log what the transmit buffers hold of the writes without an answer: was it still what the
        digest was made of?"""
        for block_id, data in self._buffers.items():
            row = self._unacked[block_id][0]
            self._link.trace(EventCode.REPL_UNACKED, row[0], row[1], row[2], crc32c(data))

    def lost(self) -> None:
        """The link is gone: whatever the peer may not have stored durably is out of sync; no write
        waits for it."""
        for epoch in (*self._barriers, self.epoch):
            for offset_bytes, length_bytes in epoch.ranges:
                self._link.mark_out_of_sync(offset_bytes, length_bytes)
        self.audit()
        self._buffers.clear()
        self._barriers.clear()
        self.epoch = Epoch(1)
        self._end_epoch = False
        unacked, self._unacked = self._unacked, {}
        for row, _ in unacked.values():
            self._complete(row[0], "unreplicated")
        self._link.disarm("request")


assert SEPARATE_BYTES > 4096 + 64, "small writes leave together with their header"
