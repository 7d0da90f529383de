"""The receiving side of replication: checks, stores and answers writes, counts epochs, reads for
the peer."""

import heapq
from collections import deque
from typing import Any, Final

from crc32c import crc32c

from freezeframe.firmware_sim.drbd_codec import CRC32C, encode_ack, encode_data_head, packet_name
from freezeframe.firmware_sim.drbd_contract import LinkFailure
from freezeframe.firmware_sim.drbd_link import Link
from freezeframe.harness.wire.drbd import (
    MAX_DATA_BYTES_100,
    SECTOR_BYTES,
    Cmd,
    Conn,
    Disk,
    DpFlag,
    Role,
)
from freezeframe.harness.wire.rootcause import EventCode, WriteStage

WRITE_NO_MASK: Final = (1 << 63) - 1
"""The event log's write_no on this side: the low 63 bits of the block_id."""
# Plain numbers: the operators of IntFlag take microseconds.
MAY_SET_IN_SYNC: Final = int(DpFlag.MAY_SET_IN_SYNC)
FUA: Final = int(DpFlag.FUA)
SEND_WRITE_ACK: Final = int(DpFlag.SEND_WRITE_ACK)
SEND_RECEIVE_ACK: Final = int(DpFlag.SEND_RECEIVE_ACK)
# And names: finding an enum's member takes a tenth of one.
PRIMARY: Final = Role.PRIMARY
DATA: Final = Cmd.DATA
WRITE_ACK: Final = Cmd.WRITE_ACK
RS_WRITE_ACK: Final = Cmd.RS_WRITE_ACK
NEG_ACK: Final = Cmd.NEG_ACK
RECEIVED: Final = WriteStage.RECEIVED
STORED: Final = WriteStage.STORED
ACKED: Final = WriteStage.ACKED
REPL_RECEIVE: Final = EventCode.REPL_RECEIVE
REPL_STORE: Final = EventCode.REPL_STORE
REPL_ACK_SENT: Final = EventCode.REPL_ACK_SENT
MAX_ZEROED_BYTES: Final = 128 << 20
EIO: Final = -5

Epoch = list[Any]
"""[writes received, answers not yet sent, barrier cookie or None while the epoch is open]."""


class Secondary:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._epoch: Epoch = [0, 0, None]
        self._closed: deque[Epoch] = deque()
        self._late: list[tuple[int, int, tuple[Any, ...]]] = []
        """Heap of (due, order, arguments of _send_ack)."""
        self._order = 0
        self.stalled: tuple[int, tuple[Any, ...], memoryview] | None = None
        """The write at which the firmware has stalled; the data socket is left alone until "stall"
        is due."""
        self._stalled_once = False

    @property
    def epoch_writes(self) -> int:
        return int(self._epoch[0])

    # --- writes ---------------------------------------------------------------------------------------------------

    def data(self, fields: tuple[Any, ...], body: memoryview) -> None:
        """P_DATA: check, store, answer."""
        link, faults = self._link, self._link.faults
        sector, block_id, _seq, flags = fields
        write_no = int.from_bytes(block_id, "big") & WRITE_NO_MASK
        self._check_role(DATA, len(body))
        if self._stalls(write_no, DATA, fields, body):
            return
        data = faults.received_data(write_no, self.checked(DATA, sector, body, skip_digest=True))
        length, checksum = len(data), crc32c(data)
        computed = CRC32C.pack(checksum) if link.crc32c_digest else None
        self._check_digest(DATA, sector, body, data, computed)
        row = [write_no, sector, length, checksum, block_id, link.now, RECEIVED]
        link.last_writes.append(row)
        link.trace(REPL_RECEIVE, write_no, sector, length, checksum)
        plan = faults.ack(write_no)
        if plan.kind != "neg":
            self.activate(sector, length)
            faults.store(write_no, sector * SECTOR_BYTES, data, link.backend)
            if flags & FUA:
                link.backend.flush()
            row[6] = STORED
            link.trace(REPL_STORE, write_no, sector, length, checksum)
        self._answer(plan, row, flags)

    def zeroes(self, command: int, fields: tuple[Any, ...]) -> None:
        """P_TRIM and P_ZEROES: afterwards the range reads as zeroes."""
        link = self._link
        sector, block_id, _seq, flags, length = fields
        write_no = int.from_bytes(block_id, "big") & WRITE_NO_MASK
        self._check_role(command, 0)
        if self._stalls(write_no, command, fields, memoryview(b"")):
            return
        self.check_range(command, sector, length, 0, MAX_ZEROED_BYTES)
        row = [write_no, sector, length, 0, block_id, link.now, RECEIVED]
        link.last_writes.append(row)
        link.trace(REPL_RECEIVE, write_no, sector, length, 0)
        plan = link.faults.ack(write_no)
        if plan.kind != "neg":
            self.activate(sector, length)
            link.backend.trim(sector * SECTOR_BYTES, length)
            if flags & FUA:
                link.backend.flush()
            row[6] = STORED
            link.trace(REPL_STORE, write_no, sector, length, 0)
        self._answer(plan, row, flags)

    def _check_role(self, command: int, body_bytes: int) -> None:
        """Only one side is written to by its host."""
        if self._link.role is PRIMARY:
            raise self.refused(command, body_bytes, Conn.PROTOCOL_ERROR)

    def activate(self, sector: int, length_bytes: int) -> None:
        """What is in the volatile cache at a power loss must be known afterwards."""
        backend = self._link.backend
        if backend.metadata.activate(sector * SECTOR_BYTES, length_bytes):
            backend.save_metadata()

    def _stalls(
        self, write_no: int, command: int, fields: tuple[Any, ...], body: memoryview
    ) -> bool:
        if self._stalled_once:
            self._stalled_once = False
            return False
        stall_ns = self._link.faults.stall_ns(write_no)
        if stall_ns <= 0:
            return False
        self.stalled = (command, fields, memoryview(bytes(body)))
        self._link.arm("stall", stall_ns)
        return True

    def resume(self) -> None:
        """The stall is over: the write at which it began goes on."""
        assert self.stalled is not None
        command, fields, body = self.stalled
        self.stalled = None
        self._stalled_once = True
        if command == DATA:
            self.data(fields, body)
        else:
            self.zeroes(command, fields)

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self, plan: Any, row: list[Any], flags: int) -> None:
        link, epoch = self._link, self._epoch
        epoch[0] += 1
        command = self._ack_command(flags)
        if plan.kind == "neg":
            command = NEG_ACK
        if command is None:
            return
        epoch[1] += 1
        if plan.kind == "lost":
            # The firmware has lost track of the write: its epoch never becomes whole, and no
            # barrier is answered.
            return
        arguments = (command, row, epoch, plan.kind == "repeated")
        if plan.delay_ns <= 0:
            self._send_ack(*arguments)
            return
        self._order += 1
        heapq.heappush(self._late, (link.now + plan.delay_ns, self._order, arguments))
        link.timers["late_acks"] = self._late[0][0]

    def _ack_command(self, flags: int) -> Cmd | None:
        link = self._link
        if link.agreed_version < 100 or flags & SEND_WRITE_ACK:
            in_sync = flags & MAY_SET_IN_SYNC and link.conn is Conn.SYNC_TARGET
            return RS_WRITE_ACK if in_sync else WRITE_ACK
        return Cmd.RECV_ACK if flags & SEND_RECEIVE_ACK else None

    def _send_ack(self, command: Cmd, row: list[Any], epoch: Epoch, repeated: bool) -> None:
        link = self._link
        write_no, sector, length, _, block_id, _, _ = row
        if command is RS_WRITE_ACK:
            link.backend.metadata.bitmap.clear_bytes(sector * SECTOR_BYTES, length)
        for _ in range(1 + repeated):
            ack = encode_ack(
                link.agreed_version, command, sector, block_id, length, link.next_seq()
            )
            link.write(link.meta_socket, ack)
            if command is NEG_ACK:
                link.trace(EventCode.REPL_NEG_ACK, write_no, sector, length)
            else:
                link.trace(REPL_ACK_SENT, write_no, sector)
        row[6] = WriteStage.FAILED if command is NEG_ACK else ACKED
        epoch[1] -= 1
        if not epoch[1] and self._closed:
            self._answer_barriers()

    def send_late_acks(self) -> None:
        """Timer "late_acks"."""
        while self._late and self._late[0][0] <= self._link.now:
            self._send_ack(*heapq.heappop(self._late)[2])
        if self._late:
            self._link.timers["late_acks"] = self._late[0][0]

    def barrier(self, cookie: bytes) -> None:
        number = int.from_bytes(cookie, "little")
        self._link.trace(EventCode.REPL_BARRIER_RECEIVED, number, self._epoch[0])
        self._epoch[2] = cookie
        self._closed.append(self._epoch)
        self._epoch = [0, 0, None]
        self._answer_barriers()

    def _answer_barriers(self) -> None:
        """BARRIER_ACK of each closed epoch whose writes are all answered, in order."""
        link = self._link
        while self._closed and not self._closed[0][1]:
            count, _, cookie = self._closed.popleft()
            count = link.faults.barrier_count(count)
            link.send(Cmd.BARRIER_ACK, cookie, count)
            link.trace(EventCode.REPL_BARRIER_ACK, int.from_bytes(cookie, "little"), count)

    # --- reads ----------------------------------------------------------------------------------------------------

    def read_request(self, fields: tuple[Any, ...]) -> None:
        """P_DATA_REQUEST: the peer reads from here."""
        link = self._link
        sector, block_id, length, _ = fields
        self.check_range(Cmd.DATA_REQUEST, sector, length, 0, MAX_DATA_BYTES_100)
        if link.disk is not Disk.UP_TO_DATE:
            link.send(Cmd.NEG_DREPLY, sector, block_id, length, link.next_seq())
            return
        self.send_block(Cmd.DATA_REPLY, sector, block_id, length)

    def send_block(self, command: Cmd, sector: int, block_id: bytes, length: int) -> None:
        """A DATA_REPLY or RS_DATA_REPLY with what is stored now."""
        link = self._link
        data = link.backend.read(sector * SECTOR_BYTES, length)
        digest = link.digest(data) if link.digest else b""
        head = encode_data_head(
            link.agreed_version, command, sector, block_id, 0, 0, len(digest) + length
        )
        link.write(link.data_socket, head + digest, data)

    # --- checks ---------------------------------------------------------------------------------------------------

    def checked(
        self, command: int, sector: int, body: memoryview, *, skip_digest: bool = False
    ) -> bytes:
        """The data of a data packet's body, its range checked and (unless the caller does it) its
        digest."""
        size = self._link.digest_bytes
        data = bytes(body[size:])
        if len(body) < size:
            raise self.refused(command, len(body), Conn.PROTOCOL_ERROR)
        self.check_range(command, sector, len(data), len(body), MAX_DATA_BYTES_100)
        if not skip_digest:
            self._check_digest(command, sector, body, data)
        return data

    def _check_digest(
        self,
        command: int,
        sector: int,
        body: memoryview,
        data: bytes,
        computed: bytes | None = None,
    ) -> None:
        """Compare the digest at the body's beginning with that of ``data``, ``computed`` if it is
        known already."""
        link = self._link
        if link.digest is None:
            return
        sent = bytes(body[: link.digest_bytes])
        computed = computed or link.digest(data)
        if computed == sent:
            return
        first = min(8, len(sent))
        link.trace(
            EventCode.REPL_DIGEST_FAILED, sector, len(data),
            int.from_bytes(sent[:first], "little"), int.from_bytes(computed[:first], "little"),
        )  # fmt: skip
        link.log_device(f"Digest integrity check FAILED: {sector}s +{len(data)}")
        raise self.refused(command, len(body), Conn.PROTOCOL_ERROR)

    def check_range(
        self, command: int, sector: int, length: int, body_bytes: int, limit_bytes: int
    ) -> None:
        """A range that the peer names must lie inside of the volume."""
        link = self._link
        if length <= 0 or length % SECTOR_BYTES or length > limit_bytes:
            raise self.refused(command, body_bytes, Conn.PROTOCOL_ERROR)
        if sector + length // SECTOR_BYTES > link.sectors:
            link.log_device(
                f"request from peer beyond end of local disk: capacity: {link.sectors}s"
                f" < sector: {sector}s + size: {length}"
            )
            raise self.refused(command, body_bytes, Conn.PROTOCOL_ERROR)

    def refused(self, command: int, body_bytes: int, conn: Conn) -> LinkFailure:
        """The failure that a packet ends in which cannot be served."""
        self._link.trace(EventCode.REPL_PROTOCOL_ERROR, command, body_bytes)
        return LinkFailure(
            conn, f"error receiving {packet_name(command)}, e: {EIO} l: {body_bytes}!"
        )

    def lost(self) -> None:
        """The link is gone, and with it everything that was to be answered."""
        self._epoch = [0, 0, None]
        self._closed.clear()
        self._late.clear()
        self.stalled = None
        self._stalled_once = False
        self._link.disarm("late_acks", "stall")
