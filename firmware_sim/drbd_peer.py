"""A controller's replication port: one side of a DRBD connection, without I/O; time is an argument.

    StandAlone -> Unconnected -> WFConnection -> WFReportParams -> Connected <-> WFBitMapS/T -> ... -> SyncSource/Target
         ^             ^------------ any failure: BrokenPipe, NetworkFailure, ProtocolError, Timeout, TearDown
         '-- what no retry can mend (settings that differ, split brain), and stop()

Sockets come and go by ReplicationOpened / Closed; this side dials both (data, then meta) or
neither. The parts that do the work, each over the shared ``Link``: Handshake, Primary (sends),
Secondary (receives), Resync.
"""

from collections.abc import Callable
from typing import Final

from freezeframe.firmware_sim.bitmap import BLOCK_BYTES
from freezeframe.firmware_sim.drbd_codec import DecodeError, Decoder, Packet
from freezeframe.firmware_sim.drbd_contract import (
    NS_PER_MS,
    AckPlan,
    Backend,
    Completion,
    FaultHooks,
    LinkFailure,
    PeerConfig,
)
from freezeframe.firmware_sim.drbd_dispatch import Handlers, handlers
from freezeframe.firmware_sim.drbd_handshake import Handshake, wants_out
from freezeframe.firmware_sim.drbd_link import CONNECTED, Link
from freezeframe.firmware_sim.drbd_metadata import BITMAP, Metadata
from freezeframe.firmware_sim.drbd_primary import Primary
from freezeframe.firmware_sim.drbd_repair import Repair
from freezeframe.firmware_sim.drbd_resync import Resync
from freezeframe.firmware_sim.drbd_secondary import Secondary
from freezeframe.firmware_sim.drbd_sockets import DATA_COMMANDS, META_COMMANDS, Sockets
from freezeframe.firmware_sim.drbd_status import Status
from freezeframe.firmware_sim.ports import (
    Outbox,
    ReplicationBlocked,
    ReplicationClosed,
    ReplicationData,
    ReplicationHold,
    ReplicationInbox,
    ReplicationOpened,
)
from freezeframe.harness.wire.drbd import (
    SECTOR_BYTES,
    STATE_FIELDS,
    Cmd,
    Conn,
    Disk,
    Role,
)

__all__ = ["AckPlan", "Backend", "Completion", "FaultHooks", "Metadata", "Peer", "PeerConfig"]

DOWN_NS: Final = 40 * NS_PER_MS
"""A node needs about this long from losing its peer to waiting for it again."""
MAX_EARLY_META_BYTES: Final = 64 << 10
"""What may wait on the meta socket while the versions are not agreed: a ping, an ack or two."""


class Peer(Status):
    """``trace`` gets CONN_STATE, DISK_STATE, ROLE, REPL_* and RESYNC_* events; the pair's state is
    the caller's to tell.

    After every call: ``take_output``, ``take_completions``, ``next_deadline``.
    """

    def __init__(
        self,
        config: PeerConfig,
        backend: Backend,
        faults: FaultHooks,
        log: Callable[[str], None],
        trace: Callable[..., None],
    ) -> None:
        self._config = config
        self._link = Link(config, backend, faults, log, trace)
        self._primary = Primary(self._link)
        self._secondary = Secondary(self._link)
        self._resync = Resync(self._link, self._secondary)
        self._repair = Repair(self._link, self._secondary)
        self._handshake = Handshake(self._link, self._resync)
        self._sockets = Sockets(self._link, self._handshake.begin)
        self._stopping = False
        self._timers: dict[str, Callable[[], None]] = {
            "dial": self._sockets.dial, "meta_dial": self._sockets.dial_meta,
            "initial": self._sockets.drop_silent, "handshake": self._handshake.late, "down": self._down,
            "ping": self._sockets.ping, "ping_ack": self._sockets.ping_ack_late,
            "request": self._primary.check_timeout, "send": self._sockets.send_late,
            "late_acks": self._secondary.send_late_acks, "stall": self._end_stall, "stop": self._disconnected,
        }  # fmt: skip
        self._handlers: Handlers = {
            **handlers(self._handshake, self._primary, self._secondary, self._resync, self._repair),
            Cmd.CONNECTION_FEATURES: self._features,
            Cmd.STATE_CHG_REQ: self._state_change,
            Cmd.CONN_ST_CHG_REQ: self._state_change,
            Cmd.STATE_CHG_REPLY: self._state_reply,
            Cmd.CONN_ST_CHG_REPLY: self._state_reply,
            Cmd.PING: lambda p: self._link.send(Cmd.PING_ACK),
            Cmd.PING_ACK: lambda p: self._sockets.ping_ack(),
        }
        assert set(self._handlers) == DATA_COMMANDS | META_COMMANDS

    # --- what the caller does -------------------------------------------------------------------------------------
    def start(self, now: int) -> None:
        """Attach the volume (the first time) and look for the peer."""
        link = self._link
        link.now = now
        self._stopping = False
        if link.disk is Disk.DISKLESS:
            self._attach()
        self._settle()
        if link.conn is Conn.STANDALONE:
            link.change(conn=Conn.UNCONNECTED, whole_link=True)
            self._sockets.look_for_peer(0)

    def _attach(self) -> None:
        link, metadata = self._link, self._link.backend.metadata
        found = metadata.disk
        link.change(disk=Disk.ATTACHING)
        link.crashed = metadata.crashed_primary
        if metadata.active and not metadata.just_created:
            metadata.damaged = metadata.damaged or not link.crashed
            metadata.spend_active()
        bits = metadata.bitmap.count
        link.log_device(f"{bits * 4} KB ({bits} bits) marked out-of-sync by on disk bit-map.")
        link.change(disk=found)
        link.log_device(f"attached to UUIDs {metadata}")

    def stop(self, now: int) -> None:
        """Disconnect politely, end in StandAlone; the metadata then say that the end was clean.

        The caller flushes its store before: what is in the volatile cache counts as safe from here
        on.
        """
        link = self._link
        link.now = now
        if link.conn >= Conn.CONNECTED and not self._stopping:
            self._stopping = True
            offset, width = STATE_FIELDS["conn"]
            command = Cmd.CONN_ST_CHG_REQ if link.agreed_version >= 100 else Cmd.STATE_CHG_REQ
            link.send(command, (1 << width) - 1 << offset, Conn.DISCONNECTING << offset)
            link.arm("stop", self._config.ping_timeout_ns)
        elif not self._stopping:
            self._disconnected()

    def _disconnected(self) -> None:
        """The peer has agreed, or has had its time."""
        self._stopping = True
        if self._link.conn is Conn.STANDALONE:
            self._end_cleanly()
        else:
            self._lose(LinkFailure(Conn.STANDALONE))

    def _end_cleanly(self) -> None:
        metadata = self._link.backend.metadata
        metadata.crashed_primary = self._link.crashed
        metadata.active.clear()
        self._link.backend.save_metadata()

    def set_role(self, now: int, role: Role) -> None:
        """Take a role; primary is taken when the disk is up to date and the peer, if there is one,
        has agreed."""
        self._link.now = now
        self._handshake.wanted_role = role
        if self._link.disk is not Disk.DISKLESS:
            self._guarded(self._handshake.settle_role)

    def replicate(
        self,
        now: int,
        write_no: int,
        offset_bytes: int,
        data: bytes | None,
        length_bytes: int = 0,
        *,
        fua: bool = False,
    ) -> bool:
        """Send a write that the caller stores in the same step (``data`` None: a trim of
        ``length_bytes``).

        True: a Completion follows. False: it does not go to the peer, and is marked out of sync.
        ``write_no`` is below 2**48 and unique among the writes that are not completed.
        """
        link, metadata = self._link, self._link.backend.metadata
        link.now = now
        length = length_bytes if data is None else len(data)
        if metadata.just_created:
            if link.conn is Conn.CONNECTED:
                self._handshake.skip_initial_sync()
            else:
                self._force_generation()
        self._repair.written(offset_bytes, length)
        news = metadata.activate(offset_bytes, length)
        if not metadata.crashed_primary:
            news = metadata.crashed_primary = True
        if news:
            link.backend.save_metadata()
        if not link.replicating:
            link.mark_out_of_sync(offset_bytes, length)
            if link.conn is Conn.WF_BITMAP_S:
                link.send(Cmd.OUT_OF_SYNC, offset_bytes // SECTOR_BYTES, length, 0)
            return False
        if data is None:
            self._primary.send_trim(write_no, offset_bytes, length, fua)
        else:
            self._primary.send_write(write_no, offset_bytes, data, fua)
        return True

    def _force_generation(self) -> None:
        """Written before it was ever paired: this side's data count, all of them."""
        link = self._link
        if link.conn is Conn.WF_REPORT_PARAMS:
            # The peer knows that this side is empty.
            self._lose(LinkFailure(Conn.NETWORK_FAILURE))
        link.start_generation()
        link.change(disk=Disk.UP_TO_DATE)

    def close_epoch(self, now: int) -> None:
        """The host has flushed: what it writes from now on may depend on what it wrote before."""
        self._link.now = now
        if self._link.replicating:
            self._primary.close_epoch()

    def mark_out_of_sync(self, offset_bytes: int, length_bytes: int) -> None:
        """This side's data are wrong there, the peer's count.

        A secondary is brought up to date at the next handshake (see ``request_resync``); a primary
        reads the blocks from its peer as soon as it can. Offsets as for a write.
        """
        if self._link.role is Role.PRIMARY:
            self._repair.damaged.set_bytes(offset_bytes, length_bytes)
            self._repair.ask()
            return
        metadata = self._link.backend.metadata
        metadata.bitmap.set_bytes(offset_bytes, length_bytes)
        metadata.damaged = True
        self._link.backend.save_metadata()

    def request_resync(self, now: int) -> None:
        """Drop the link, so that the handshake finds what is out of sync."""
        self._link.now = now
        if self._link.conn >= Conn.WF_REPORT_PARAMS:
            self._lose(LinkFailure(Conn.NETWORK_FAILURE))

    def take_output(self) -> list[Outbox]:
        return self._link.take_output()

    def take_completions(self) -> list[Completion]:
        completions, self._primary.completions = self._primary.completions, []
        return completions

    def next_deadline(self) -> int | None:
        return min(self._link.timers.values(), default=None)

    def tick(self, now: int) -> None:
        """Do what is due."""
        link = self._link
        link.now = now
        while link.timers:
            name = min(link.timers, key=link.timers.__getitem__)
            if link.timers[name] > now:
                break
            del link.timers[name]
            self._guarded(self._timers[name])
        self._settle()

    def handle(self, now: int, item: ReplicationInbox) -> None:
        link = self._link
        link.now = now
        match item:
            case ReplicationData():
                decoder = self._sockets.decoders.get(item.socket)
                if decoder is not None:
                    decoder.push(item.data)
                    self._guarded(lambda: self._received(item.socket, decoder))
                    decoder.keep()
            case ReplicationOpened():
                self._sockets.opened(item.socket, item.kind)
            case ReplicationBlocked():
                self._sockets.blocked(item.socket, item.is_blocked)
            case ReplicationClosed():
                failure = self._sockets.closed(item.socket)
                if failure is not None:
                    self._lose(failure)
        self._settle()

    def _settle(self) -> None:
        """After a step: what had to wait for something that may have come."""
        if self._handshake.wanted_role is not None and self._link.disk is not Disk.DISKLESS:
            self._handshake.settle_role()
        if self._repair.damaged.count and self._link.role is Role.SECONDARY:
            for first, blocks in self._repair.take():
                self.mark_out_of_sync(first * BLOCK_BYTES, blocks * BLOCK_BYTES)
        self._repair.ask()
        self._primary.idle()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever the peer sent: the worst that happens is that the link goes."""
        try:
            action()
        except LinkFailure as failure:
            self._lose(failure)
        except DecodeError as exc:
            self._lose(LinkFailure(Conn.STANDALONE if exc.final else Conn.PROTOCOL_ERROR, str(exc)))

    # --- losing the link ------------------------------------------------------------------------------------------
    def _lose(self, failure: LinkFailure) -> None:
        """Drop both sockets; what was under way is marked out of sync and completes."""
        link = self._link
        for line in failure.lines:
            (link.log_device if line.startswith(DEVICE_LINES) else link.log_link)(line)
        final = failure.conn is Conn.STANDALONE or self._stopping
        if link.conn <= Conn.WF_CONNECTION and not final:
            self._forget_connection()
            if link.conn is Conn.WF_CONNECTION:
                self._sockets.begin_again()
            return
        was_up = link.conn >= Conn.WF_REPORT_PARAMS
        if final and not was_up and not self._stopping:
            link.log_link("Discarding network configuration.")
        was_paired = link.conn >= Conn.CONNECTED and link.peer_disk >= Disk.INCONSISTENT
        link.change(
            conn=Conn.DISCONNECTING if final else failure.conn,
            peer_role=Role.UNKNOWN,
            peer_disk=Disk.UNKNOWN,
            whole_link=True,
        )
        if failure.after:
            link.log_link(failure.after)
        if was_up:
            link.log_link("ack_receiver terminated")
            link.log_link(f"Terminating drbd_a_{link.config.resource}")
        self._forget_connection()
        metadata = link.backend.metadata
        diverges = (
            link.role is Role.PRIMARY and link.disk is Disk.UP_TO_DATE and not metadata.just_created
        )
        if was_paired and diverges and not metadata.uuids[BITMAP]:
            link.start_generation()
        link.backend.save_metadata()
        if final:
            self._down()
        else:
            link.arm("down", DOWN_NS)

    def _forget_connection(self) -> None:
        link = self._link
        self._sockets.drop_both()
        for part in (self._primary, self._secondary, self._resync, self._repair, self._handshake):
            part.lost()
        initial = link.timers.get("initial")
        link.timers.clear()
        if initial is not None:
            link.timers["initial"] = initial
        link.agreed_version = 0
        link.seq = 0

    def _down(self) -> None:
        """The connection is gone; wait for the next one, or not."""
        link = self._link
        link.disarm("down")
        link.log_link("Connection closed")
        if link.conn is Conn.DISCONNECTING:
            link.change(conn=Conn.STANDALONE, whole_link=True)
            link.log_link("receiver terminated")
            link.log_link(f"Terminating drbd_r_{self._config.resource}")
            if self._stopping:
                self._end_cleanly()
            return
        link.change(conn=Conn.UNCONNECTED, whole_link=True)
        link.log_link("receiver terminated")
        link.log_link("Restarting receiver thread")
        link.log_link("receiver (re)started")
        self._sockets.look_for_peer(self._config.connect_interval_ns)

    # --- what the peer sends --------------------------------------------------------------------------------------
    def _end_stall(self) -> None:
        link = self._link
        link.put(ReplicationHold(link.data_socket, False))
        self._secondary.resume()
        self._drain(link.data_socket)

    def _received(self, socket: int, decoder: Decoder) -> None:
        if not self._sockets.is_new(socket):
            # The peer's features may come before this side has seen its second socket: they wait
            # for it.
            if self._sockets.complete:
                self._drain(socket)
            return
        command = self._sockets.first_packet(socket)
        if command is None:
            return
        link = self._link
        if link.conn is not Conn.WF_CONNECTION:
            # The peer has begun anew before this side has noticed that it was gone.
            self._lose(LinkFailure(Conn.NETWORK_FAILURE))
            self._down()
        self._sockets.use(socket, command, decoder)
        if self._sockets.complete:
            self._drain(link.data_socket)

    def _drain(self, socket: int) -> None:
        """Serve the packets that are there, in order, until the link goes or the firmware
        stalls."""
        link = self._link
        on_data = socket == link.data_socket
        decoder = self._sockets.decoders[socket]
        if not on_data and not link.agreed_version:
            if decoder.held_bytes > MAX_EARLY_META_BYTES:
                raise LinkFailure(
                    Conn.NETWORK_FAILURE, "too much on the meta connection before the handshake"
                )
            return
        if on_data:
            self._sockets.heard_ns = link.now
        else:
            decoder.version = link.agreed_version
            self._sockets.heard_on_meta()
        while self._secondary.stalled is None or not on_data:
            packet = decoder.next()
            if packet is None:
                break
            if on_data and link.conn < CONNECTED:
                self._handshake.check_order(packet[0])
            self._handlers[packet[0]](packet)
            if self._sockets.decoders.get(socket) is not decoder:
                return
        else:
            link.put(ReplicationHold(socket, True))

    def _features(self, packet: Packet) -> None:
        link = self._link
        self._handshake.features(packet[1])
        self._sockets.decoders[link.data_socket].version = link.agreed_version
        self._drain(link.meta_socket)

    def _state_change(self, packet: Packet) -> None:
        link = self._link
        command, (mask, value), _ = packet
        answer = self._handshake.state_change_request(mask, value)
        on_link = command == Cmd.CONN_ST_CHG_REQ
        link.send(Cmd.CONN_ST_CHG_REPLY if on_link else Cmd.STATE_CHG_REPLY, answer)
        if wants_out(mask, value):
            raise LinkFailure(Conn.TEAR_DOWN)

    def _state_reply(self, packet: Packet) -> None:
        if self._stopping:
            self._disconnected()
        else:
            self._handshake.role_reply(packet[1][0])


DEVICE_LINES: Final = (
    "Unrelated",
    "Split-Brain",
    "I shall",
    "Equivalent",
    "State change",
    "The peer's disk",
)
"""Beginnings of those failure lines that the kernel prints for the volume, not for the
connection."""
