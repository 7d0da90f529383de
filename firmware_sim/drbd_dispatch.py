"""Which part of a replication port serves which packet of the peer: a table."""

from collections.abc import Callable

from freezeframe.firmware_sim.drbd_codec import Packet
from freezeframe.firmware_sim.drbd_handshake import Handshake
from freezeframe.firmware_sim.drbd_primary import Primary
from freezeframe.firmware_sim.drbd_repair import Repair
from freezeframe.firmware_sim.drbd_resync import Resync
from freezeframe.firmware_sim.drbd_secondary import Secondary
from freezeframe.harness.wire.drbd import ID_SYNCER, Cmd, Conn

Handlers = dict[int, Callable[[Packet], None]]
"""Cmd -> what serves a packet: (command, fields, payload)."""


def handlers(
    handshake: Handshake, primary: Primary, secondary: Secondary, resync: Resync, repair: Repair
) -> Handlers:
    """All packets but those that concern the connection as a whole, which ``Peer`` serves."""

    def rs_write_ack(packet: Packet) -> None:
        fields = packet[1]
        if fields[1] == ID_SYNCER:
            resync.reply_ack(fields, True)
        else:
            primary.write_ack(fields, True)
            resync.write_acked()

    def neg_ack(packet: Packet) -> None:
        if packet[1][1] == ID_SYNCER:
            resync.reply_ack(packet[1], False)
        else:
            primary.neg_ack(packet[1])

    def unexpected(packet: Packet) -> None:
        raise secondary.refused(packet[0], len(packet[2]), Conn.PROTOCOL_ERROR)

    return {
        Cmd.DATA: lambda p: secondary.data(p[1], p[2]),
        Cmd.TRIM: lambda p: secondary.zeroes(p[0], p[1]),
        Cmd.ZEROES: lambda p: secondary.zeroes(p[0], p[1]),
        Cmd.BARRIER: lambda p: secondary.barrier(p[1][0]),
        Cmd.DATA_REQUEST: lambda p: secondary.read_request(p[1]),
        Cmd.DATA_REPLY: lambda p: repair.reply(p[1], p[2]),
        Cmd.UNPLUG_REMOTE: _ignore,
        Cmd.DELAY_PROBE: _ignore,
        Cmd.BITMAP: lambda p: resync.bitmap_packet(p[0], p[2]),
        Cmd.COMPRESSED_BITMAP: lambda p: resync.bitmap_packet(p[0], p[2]),
        Cmd.SYNC_UUID: lambda p: resync.sync_uuid(p[1][0]),
        Cmd.RS_DATA_REQUEST: lambda p: resync.request(p[1]),
        Cmd.RS_DATA_REPLY: lambda p: resync.reply(p[1], p[2]),
        Cmd.OUT_OF_SYNC: lambda p: resync.out_of_sync(p[1]),
        Cmd.AUTH_CHALLENGE: lambda p: handshake.auth_challenge(p[2]),
        Cmd.AUTH_RESPONSE: lambda p: handshake.auth_response(p[2]),
        Cmd.PROTOCOL: lambda p: handshake.protocol(p[1], p[2]),
        Cmd.PROTOCOL_UPDATE: lambda p: handshake.protocol(p[1], p[2]),
        Cmd.SYNC_PARAM89: lambda p: handshake.sync_param(p[1]),
        Cmd.SIZES: lambda p: handshake.sizes(p[1], p[2]),
        Cmd.UUIDS: lambda p: handshake.uuids(p[1]),
        Cmd.STATE: lambda p: handshake.state(p[1][0]),
        Cmd.WRITE_ACK: lambda p: primary.write_ack(p[1], False),
        Cmd.RECV_ACK: lambda p: primary.write_ack(p[1], False),
        Cmd.RS_WRITE_ACK: rs_write_ack,
        Cmd.SUPERSEDED: unexpected,
        Cmd.RETRY_WRITE: unexpected,
        Cmd.NEG_ACK: neg_ack,
        Cmd.NEG_DREPLY: lambda p: repair.refused(p[1]),
        Cmd.NEG_RS_DREPLY: lambda p: resync.reply_failed(),
        Cmd.RS_CANCEL: lambda p: resync.reply_failed(),
        Cmd.BARRIER_ACK: lambda p: primary.barrier_ack(p[1]),
        Cmd.OV_RESULT: _ignore,
        Cmd.RS_IS_IN_SYNC: _ignore,
    }


def _ignore(packet: Packet) -> None:
    """A hint, or an answer to what this firmware does not ask."""
