"""Tables of the DRBD replication protocol: versions 86 to 101 (DRBD 8.4), and DRBD 9's own packets,
versions 110 to 124.

Source: Linux 6.1 ``drivers/block/drbd/drbd_protocol.h`` and ``include/linux/drbd.h``, LINBIT's
``drbd_protocol.h`` for DRBD 9 (facts), checked against captures of real nodes in
``tests/golden/drbd`` and ``tests/golden/drbd9``. All integers are big-endian and
packed, except: ``block_id`` (8 bytes) and ``barrier`` (4 bytes) are opaque cookies of the sender,
echoed unchanged; bitmap words are a little-endian bit stream; a crc32c digest is the standard
CRC-32C value as 4 little-endian bytes. A sector is 512 bytes; sizes are in bytes.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

SECTOR_BYTES: Final = 512
PORT: Final = 7788
"""Conventional TCP port of the first resource."""

PROTOCOL_MAX: Final = 101

# --- headers (section 1 of the fact sheet): which one is in force follows from the agreed version -----------------
MAGIC_H80: Final = 0x83740267
MAGIC_H95: Final = 0x835A
MAGIC_H100: Final = 0x8620EC20
HEADER_H80: Final = struct.Struct(">IHH")
"""u32 magic, u16 command, u16 length. Before the agreement, and below version 95; at 95..99 when
length <= 32768."""
HEADER_H95: Final = struct.Struct(">HHI")
"""u16 magic, u16 command, u32 length. Versions 95..99, when length > 32768."""
HEADER_H100: Final = struct.Struct(">IHHII")
"""u32 magic, u16 volume, u16 command, u32 length, u32 pad = 0. Versions >= 100, always."""
H80_MAX_LENGTH_BYTES: Final = 32768
"""Longest payload that versions 95..99 still send under the 8-byte h80 header."""


class Cmd(IntEnum):
    """Packet commands. 0x25 and 0x26 are reserved."""

    DATA = 0x00
    DATA_REPLY = 0x01
    RS_DATA_REPLY = 0x02
    BARRIER = 0x03
    BITMAP = 0x04
    BECOME_SYNC_TARGET = 0x05
    BECOME_SYNC_SOURCE = 0x06
    UNPLUG_REMOTE = 0x07
    DATA_REQUEST = 0x08
    RS_DATA_REQUEST = 0x09
    SYNC_PARAM = 0x0A
    PROTOCOL = 0x0B
    UUIDS = 0x0C
    SIZES = 0x0D
    STATE = 0x0E
    SYNC_UUID = 0x0F
    AUTH_CHALLENGE = 0x10
    AUTH_RESPONSE = 0x11
    STATE_CHG_REQ = 0x12
    PING = 0x13
    PING_ACK = 0x14
    RECV_ACK = 0x15
    WRITE_ACK = 0x16
    RS_WRITE_ACK = 0x17
    SUPERSEDED = 0x18
    NEG_ACK = 0x19
    NEG_DREPLY = 0x1A
    NEG_RS_DREPLY = 0x1B
    BARRIER_ACK = 0x1C
    STATE_CHG_REPLY = 0x1D
    OV_REQUEST = 0x1E
    OV_REPLY = 0x1F
    OV_RESULT = 0x20
    CSUM_RS_REQUEST = 0x21
    RS_IS_IN_SYNC = 0x22
    SYNC_PARAM89 = 0x23
    COMPRESSED_BITMAP = 0x24
    DELAY_PROBE = 0x27
    OUT_OF_SYNC = 0x28
    RS_CANCEL = 0x29
    CONN_ST_CHG_REQ = 0x2A
    CONN_ST_CHG_REPLY = 0x2B
    RETRY_WRITE = 0x2C
    PROTOCOL_UPDATE = 0x2D
    TRIM = 0x31
    RS_THIN_REQ = 0x32
    RS_DEALLOCATED = 0x33
    WSAME = 0x34
    ZEROES = 0x36
    # DRBD 9's own, from protocol 110 on (the later ones up to 124).
    TWOPC_PREPARE = 0x2E
    TWOPC_ABORT = 0x2F
    DAGTAG = 0x30
    TWOPC_PREP_RSZ = 0x35
    PEER_ACK = 0x40
    PEERS_IN_SYNC = 0x41
    UUIDS110 = 0x42
    PEER_DAGTAG = 0x43
    CURRENT_UUID = 0x44
    TWOPC_YES = 0x45
    TWOPC_NO = 0x46
    TWOPC_COMMIT = 0x47
    TWOPC_RETRY = 0x48
    CONFIRM_STABLE = 0x49
    RS_CANCEL_AHEAD = 0x4A
    DISCONNECT = 0x4B
    RS_DAGTAG_REQ = 0x4C
    RS_CSUM_DAGTAG_REQ = 0x4D
    RS_THIN_DAGTAG_REQ = 0x4E
    OV_DAGTAG_REQ = 0x4F
    OV_DAGTAG_REPLY = 0x50
    WRITE_ACK_IN_SYNC = 0x51
    RS_NEG_ACK = 0x52
    OV_RESULT_ID = 0x53
    RS_DEALLOCATED_ID = 0x54
    FLUSH_REQUESTS = 0x55
    FLUSH_FORWARD = 0x56
    FLUSH_REQUESTS_ACK = 0x57
    ENABLE_REPLICATION_NEXT = 0x58
    ENABLE_REPLICATION = 0x59
    INITIAL_META = 0xFFF1
    INITIAL_DATA = 0xFFF2
    CONNECTION_FEATURES = 0xFFFE


# --- fixed parts of the payloads; names of the fields in FIELDS, in order -----------------------------------------
P_DATA: Final = struct.Struct(">Q8sII")
P_TRIM: Final = struct.Struct(">Q8sIII")
P_BLOCK_ACK: Final = struct.Struct(">Q8sII")
P_BLOCK_REQ: Final = struct.Struct(">Q8sII")
P_BLOCK_DESC: Final = struct.Struct(">QII")
P_FEATURES: Final = struct.Struct(">III60s")
P_PROTOCOL: Final = struct.Struct(">IIIIII")
P_UUIDS: Final = struct.Struct(">6Q")
P_SIZES: Final = struct.Struct(">QQQIHH")
P_QLIM: Final = struct.Struct(">IIIIIBBBB")
P_STATE: Final = struct.Struct(">I")
P_SYNC_UUID: Final = struct.Struct(">Q")
P_REQ_STATE: Final = struct.Struct(">II")
P_REPLY: Final = struct.Struct(">i")
P_BARRIER: Final = struct.Struct(">4sI")
P_BARRIER_ACK: Final = struct.Struct(">4sI")
P_DELAY_PROBE: Final = struct.Struct(">II")
P_SYNC_PARAM: Final = struct.Struct(">I")
P_SYNC_PARAM89: Final = struct.Struct(">I64s64s")
P_SYNC_PARAM95: Final = struct.Struct(">I64s64sIIII")
P_TWOPC_REQUEST: Final = struct.Struct(">IIIQQII")
P_TWOPC_REPLY: Final = struct.Struct(">IIQQQ")
P_UUIDS110: Final = struct.Struct(">5Q")
P_PAIR: Final = struct.Struct(">QQ")
P_PEER_BLOCK_DESC: Final = struct.Struct(">QQII")
P_PEER_DAGTAG: Final = struct.Struct(">QI")
P_CONFIRM_STABLE: Final = struct.Struct(">8s8sII")
P_RS_REQ: Final = struct.Struct(">Q8sIIQ")
P_OV_RESULT_ID: Final = struct.Struct(">Q8sIIII")
P_FLUSH_NODE: Final = struct.Struct(">QI")
P_ENABLE_REPLICATION: Final = struct.Struct(">BBH")
P_EMPTY: Final = struct.Struct("")

_DATA_FIELDS: Final = ("sector", "block_id", "seq_num", "dp_flags")
_BLOCK_FIELDS: Final = ("sector", "block_id", "blksize", "seq_num")
_REQ_FIELDS: Final = ("sector", "block_id", "blksize", "pad")
_DAGTAG_REQ_FIELDS: Final = ("sector", "block_id", "blksize", "dagtag_node_id", "dagtag")
_TWOPC_FIELDS: Final = (
    "tid", "initiator_node_id", "target_node_id", "nodes_to_reach", "primary_nodes", "mask", "val",
)  # fmt: skip
_TWOPC_REPLY_FIELDS: Final = (
    "tid",
    "initiator_node_id",
    "reachable_nodes",
    "primary_nodes",
    "weak_nodes",
)

LAYOUTS: Final[dict[Cmd, tuple[struct.Struct, tuple[str, ...], bool]]] = {
    Cmd.DATA: (P_DATA, _DATA_FIELDS, True),
    Cmd.DATA_REPLY: (P_DATA, _DATA_FIELDS, True),
    Cmd.RS_DATA_REPLY: (P_DATA, _DATA_FIELDS, True),
    Cmd.BARRIER: (P_BARRIER, ("barrier", "pad"), False),
    Cmd.BITMAP: (P_EMPTY, (), True),
    Cmd.COMPRESSED_BITMAP: (P_EMPTY, (), True),
    Cmd.UNPLUG_REMOTE: (P_EMPTY, (), False),
    Cmd.DATA_REQUEST: (P_BLOCK_REQ, _REQ_FIELDS, False),
    Cmd.RS_DATA_REQUEST: (P_BLOCK_REQ, _REQ_FIELDS, False),
    Cmd.RS_THIN_REQ: (P_BLOCK_REQ, _REQ_FIELDS, False),
    Cmd.OV_REQUEST: (P_BLOCK_REQ, _REQ_FIELDS, False),
    Cmd.OV_REPLY: (P_BLOCK_REQ, _REQ_FIELDS, True),
    Cmd.CSUM_RS_REQUEST: (P_BLOCK_REQ, _REQ_FIELDS, True),
    Cmd.SYNC_PARAM: (P_SYNC_PARAM, ("resync_rate",), True),
    Cmd.SYNC_PARAM89: (P_SYNC_PARAM89, ("resync_rate", "verify_alg", "csums_alg"), True),
    Cmd.PROTOCOL: (
        P_PROTOCOL,
        ("protocol", "after_sb_0p", "after_sb_1p", "after_sb_2p", "conn_flags", "two_primaries"),
        True,
    ),
    Cmd.PROTOCOL_UPDATE: (
        P_PROTOCOL,
        ("protocol", "after_sb_0p", "after_sb_1p", "after_sb_2p", "conn_flags", "two_primaries"),
        True,
    ),
    Cmd.UUIDS: (
        P_UUIDS,
        (
            "current_uuid",
            "bitmap_uuid",
            "history_uuid_0",
            "history_uuid_1",
            "dirty_bits",
            "uuid_flags",
        ),
        False,
    ),
    Cmd.SIZES: (
        P_SIZES,
        ("d_size", "u_size", "c_size", "max_bio_size", "queue_order_type", "dds_flags"),
        True,
    ),
    Cmd.STATE: (P_STATE, ("state",), False),
    Cmd.SYNC_UUID: (P_SYNC_UUID, ("uuid",), False),
    Cmd.AUTH_CHALLENGE: (P_EMPTY, (), True),
    Cmd.AUTH_RESPONSE: (P_EMPTY, (), True),
    Cmd.STATE_CHG_REQ: (P_REQ_STATE, ("mask", "val"), False),
    Cmd.CONN_ST_CHG_REQ: (P_REQ_STATE, ("mask", "val"), False),
    Cmd.STATE_CHG_REPLY: (P_REPLY, ("retcode",), False),
    Cmd.CONN_ST_CHG_REPLY: (P_REPLY, ("retcode",), False),
    Cmd.PING: (P_EMPTY, (), False),
    Cmd.PING_ACK: (P_EMPTY, (), False),
    Cmd.RECV_ACK: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.WRITE_ACK: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.RS_WRITE_ACK: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.SUPERSEDED: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.NEG_ACK: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.NEG_DREPLY: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.NEG_RS_DREPLY: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.OV_RESULT: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.RS_IS_IN_SYNC: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.RS_CANCEL: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.RETRY_WRITE: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.BARRIER_ACK: (P_BARRIER_ACK, ("barrier", "set_size"), False),
    Cmd.DELAY_PROBE: (P_DELAY_PROBE, ("seq_num", "offset_us"), False),
    Cmd.OUT_OF_SYNC: (P_BLOCK_DESC, ("sector", "blksize", "pad"), False),
    Cmd.RS_DEALLOCATED: (P_BLOCK_DESC, ("sector", "blksize", "pad"), False),
    Cmd.TRIM: (P_TRIM, (*_DATA_FIELDS, "size"), False),
    Cmd.ZEROES: (P_TRIM, (*_DATA_FIELDS, "size"), False),
    Cmd.WSAME: (P_TRIM, (*_DATA_FIELDS, "size"), True),
    Cmd.TWOPC_PREPARE: (P_TWOPC_REQUEST, _TWOPC_FIELDS, True),
    Cmd.TWOPC_ABORT: (P_TWOPC_REQUEST, _TWOPC_FIELDS, True),
    Cmd.TWOPC_COMMIT: (P_TWOPC_REQUEST, _TWOPC_FIELDS, True),
    Cmd.TWOPC_PREP_RSZ: (P_TWOPC_REQUEST, _TWOPC_FIELDS, True),
    Cmd.TWOPC_YES: (P_TWOPC_REPLY, _TWOPC_REPLY_FIELDS, True),
    Cmd.TWOPC_NO: (P_TWOPC_REPLY, _TWOPC_REPLY_FIELDS, True),
    Cmd.TWOPC_RETRY: (P_TWOPC_REPLY, _TWOPC_REPLY_FIELDS, True),
    Cmd.DAGTAG: (P_SYNC_UUID, ("dagtag",), False),
    Cmd.PEER_ACK: (P_PAIR, ("mask", "dagtag"), False),
    Cmd.PEERS_IN_SYNC: (P_PEER_BLOCK_DESC, ("sector", "mask", "size", "pad"), False),
    Cmd.UUIDS110: (
        P_UUIDS110,
        ("current_uuid", "dirty_bits", "uuid_flags", "node_mask", "bitmap_uuids_mask"),
        True,
    ),
    Cmd.PEER_DAGTAG: (P_PEER_DAGTAG, ("dagtag", "node_id"), False),
    Cmd.CURRENT_UUID: (P_PAIR, ("uuid", "weak_nodes"), False),
    Cmd.CONFIRM_STABLE: (
        P_CONFIRM_STABLE,
        ("oldest_block_id", "youngest_block_id", "set_size", "pad"),
        False,
    ),
    Cmd.RS_CANCEL_AHEAD: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.DISCONNECT: (P_EMPTY, (), False),
    Cmd.RS_DAGTAG_REQ: (P_RS_REQ, _DAGTAG_REQ_FIELDS, False),
    Cmd.RS_CSUM_DAGTAG_REQ: (P_RS_REQ, _DAGTAG_REQ_FIELDS, True),
    Cmd.RS_THIN_DAGTAG_REQ: (P_RS_REQ, _DAGTAG_REQ_FIELDS, False),
    Cmd.OV_DAGTAG_REQ: (P_RS_REQ, _DAGTAG_REQ_FIELDS, False),
    Cmd.OV_DAGTAG_REPLY: (P_RS_REQ, _DAGTAG_REQ_FIELDS, True),
    Cmd.WRITE_ACK_IN_SYNC: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.RS_NEG_ACK: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.OV_RESULT_ID: (P_OV_RESULT_ID, (*_BLOCK_FIELDS, "result", "pad"), False),
    Cmd.RS_DEALLOCATED_ID: (P_BLOCK_ACK, _BLOCK_FIELDS, False),
    Cmd.FLUSH_REQUESTS: (P_SYNC_UUID, ("flush_sequence",), False),
    Cmd.FLUSH_FORWARD: (P_FLUSH_NODE, ("flush_sequence", "initiator_node_id"), False),
    Cmd.FLUSH_REQUESTS_ACK: (P_FLUSH_NODE, ("flush_sequence", "primary_node_id"), False),
    Cmd.ENABLE_REPLICATION_NEXT: (P_ENABLE_REPLICATION, ("enable", "pad1", "pad2"), False),
    Cmd.ENABLE_REPLICATION: (P_ENABLE_REPLICATION, ("enable", "pad1", "pad2"), False),
    Cmd.INITIAL_META: (P_EMPTY, (), False),
    Cmd.INITIAL_DATA: (P_EMPTY, (), False),
    Cmd.CONNECTION_FEATURES: (
        P_FEATURES,
        ("protocol_min", "feature_flags", "protocol_max", "reserved"),
        False,
    ),
}
"""Command -> (fixed part, its field names, whether more bytes may follow). SIZES may be followed by
P_QLIM."""

DRBD9_VERSION: Final = 110
"""First protocol version of DRBD 9."""
DATA_SOCKET_9: Final = frozenset(
    {
        Cmd.TWOPC_PREPARE, Cmd.TWOPC_ABORT, Cmd.TWOPC_COMMIT, Cmd.TWOPC_PREP_RSZ, Cmd.DAGTAG, Cmd.UUIDS110,
        Cmd.PEER_DAGTAG, Cmd.CURRENT_UUID, Cmd.DISCONNECT, Cmd.RS_DAGTAG_REQ, Cmd.RS_CSUM_DAGTAG_REQ,
        Cmd.RS_THIN_DAGTAG_REQ, Cmd.OV_DAGTAG_REQ, Cmd.OV_DAGTAG_REPLY, Cmd.RS_DEALLOCATED_ID,
        Cmd.FLUSH_REQUESTS, Cmd.FLUSH_REQUESTS_ACK, Cmd.ENABLE_REPLICATION_NEXT, Cmd.ENABLE_REPLICATION,
    }
)  # fmt: skip
"""Of DRBD 9's own commands, those of the data socket."""
META_SOCKET_9: Final = frozenset(
    {
        Cmd.PEER_ACK, Cmd.PEERS_IN_SYNC, Cmd.TWOPC_YES, Cmd.TWOPC_NO, Cmd.TWOPC_RETRY, Cmd.CONFIRM_STABLE,
        Cmd.RS_CANCEL_AHEAD, Cmd.WRITE_ACK_IN_SYNC, Cmd.RS_NEG_ACK, Cmd.OV_RESULT_ID, Cmd.FLUSH_FORWARD,
    }
)  # fmt: skip
"""And of the meta socket. PEERS_IN_SYNC stands under the data socket in the published header; real
nodes send it on the meta socket, both ways."""
DRBD9_COMMANDS: Final = DATA_SOCKET_9 | META_SOCKET_9
"""Which nobody sends below protocol DRBD9_VERSION."""

QLIM_FIELDS: Final = (
    "physical_block_size",
    "logical_block_size",
    "alignment_offset",
    "io_min",
    "io_opt",
    "discard_enabled",
    "discard_zeroes_data",
    "write_same_capable",
    "pad",
)

DATA_SOCKET: Final = frozenset(
    {
        Cmd.DATA, Cmd.DATA_REPLY, Cmd.RS_DATA_REPLY, Cmd.BARRIER, Cmd.BITMAP, Cmd.COMPRESSED_BITMAP,
        Cmd.UNPLUG_REMOTE, Cmd.DATA_REQUEST, Cmd.RS_DATA_REQUEST, Cmd.SYNC_PARAM, Cmd.SYNC_PARAM89,
        Cmd.PROTOCOL, Cmd.PROTOCOL_UPDATE, Cmd.UUIDS, Cmd.SIZES, Cmd.STATE, Cmd.SYNC_UUID, Cmd.AUTH_CHALLENGE,
        Cmd.AUTH_RESPONSE, Cmd.STATE_CHG_REQ, Cmd.CONN_ST_CHG_REQ, Cmd.OV_REQUEST, Cmd.OV_REPLY,
        Cmd.CSUM_RS_REQUEST, Cmd.DELAY_PROBE, Cmd.OUT_OF_SYNC, Cmd.TRIM, Cmd.ZEROES, Cmd.WSAME, Cmd.RS_THIN_REQ,
        Cmd.RS_DEALLOCATED, Cmd.INITIAL_DATA, Cmd.CONNECTION_FEATURES,
    }
)  # fmt: skip
"""Commands that a receiver accepts on the data socket."""
META_SOCKET: Final = frozenset(
    {
        Cmd.PING, Cmd.PING_ACK, Cmd.RECV_ACK, Cmd.WRITE_ACK, Cmd.RS_WRITE_ACK, Cmd.SUPERSEDED, Cmd.NEG_ACK,
        Cmd.NEG_DREPLY, Cmd.NEG_RS_DREPLY, Cmd.BARRIER_ACK, Cmd.STATE_CHG_REPLY, Cmd.CONN_ST_CHG_REPLY,
        Cmd.OV_RESULT, Cmd.RS_IS_IN_SYNC, Cmd.RS_CANCEL, Cmd.RETRY_WRITE, Cmd.DELAY_PROBE, Cmd.INITIAL_META,
    }
)  # fmt: skip
"""Commands that a receiver accepts on the meta socket; any other there ends in StandAlone."""
WRITES: Final = frozenset({Cmd.DATA, Cmd.TRIM, Cmd.ZEROES, Cmd.WSAME})
"""Commands that count towards an epoch, and so towards the next BARRIER_ACK's set_size."""
DIGESTED: Final = frozenset({Cmd.DATA, Cmd.DATA_REPLY, Cmd.RS_DATA_REPLY})
"""Commands whose data is preceded by a digest when an integrity algorithm is agreed."""


class DpFlag(IntFlag):
    """dp_flags of data packets. The two ACK flags exist from version 100 on."""

    HARDBARRIER = 1
    RW_SYNC = 2
    MAY_SET_IN_SYNC = 4
    UNPLUG = 8
    FUA = 16
    FLUSH = 32
    DISCARD = 64
    SEND_RECEIVE_ACK = 128
    SEND_WRITE_ACK = 256
    WSAME = 512
    ZEROES = 1024


class Feature(IntFlag):
    """Feature flags of CONNECTION_FEATURES; agreed = AND of both offers."""

    TRIM = 1
    THIN_RESYNC = 2
    WSAME = 4
    """Also: SIZES carries P_QLIM (56 bytes), discards may be larger."""
    WZEROES = 8
    """Not to be agreed together with an integrity algorithm: senders and receivers differ on its
    digest."""


class UuidFlag(IntFlag):
    DISCARD_MY_DATA = 1
    CRASHED_PRIMARY = 2
    INCONSISTENT = 4
    SKIP_INITIAL_SYNC = 8


UUID_JUST_CREATED: Final = 4
UUID_PRIMARY_BIT: Final = 1
"""Lowest bit of a UUID: "was primary"; masked in comparisons."""
UUID_NEW_BITMAP_OFFSET: Final = 1 << 48
"""A resync's UUID is the source's bitmap UUID plus this."""
ID_SYNCER: Final = b"\xff" * 8
"""block_id of resync and verify requests and replies."""


class Role(IntEnum):
    UNKNOWN = 0
    PRIMARY = 1
    SECONDARY = 2


class Conn(IntEnum):
    STANDALONE = 0
    DISCONNECTING = 1
    UNCONNECTED = 2
    TIMEOUT = 3
    BROKEN_PIPE = 4
    NETWORK_FAILURE = 5
    PROTOCOL_ERROR = 6
    TEAR_DOWN = 7
    WF_CONNECTION = 8
    WF_REPORT_PARAMS = 9
    CONNECTED = 10
    STARTING_SYNC_S = 11
    STARTING_SYNC_T = 12
    WF_BITMAP_S = 13
    WF_BITMAP_T = 14
    WF_SYNC_UUID = 15
    SYNC_SOURCE = 16
    SYNC_TARGET = 17
    VERIFY_S = 18
    VERIFY_T = 19
    PAUSED_SYNC_S = 20
    PAUSED_SYNC_T = 21
    AHEAD = 22
    BEHIND = 23


class Disk(IntEnum):
    """Disk states of DRBD 8.4. (DRBD 9, and Wireshark, insert Detaching at 2: everything from 2 on
    is one more.)"""

    DISKLESS = 0
    ATTACHING = 1
    FAILED = 2
    NEGOTIATING = 3
    INCONSISTENT = 4
    OUTDATED = 5
    UNKNOWN = 6
    CONSISTENT = 7
    UP_TO_DATE = 8


STATE_FIELDS: Final[dict[str, tuple[int, int]]] = {
    "role": (0, 2), "peer": (2, 2), "conn": (4, 5), "disk": (9, 4), "pdsk": (13, 4), "susp": (17, 1),
    "aftr_isp": (18, 1), "peer_isp": (19, 1), "user_isp": (20, 1), "susp_nod": (21, 1), "susp_fen": (22, 1),
}  # fmt: skip
"""Bit offset and width of each part of the 32-bit state word."""


class Ret(IntEnum):
    """retcode of STATE_CHG_REPLY: >= 1 is success."""

    SUCCESS = 1
    NOTHING_TO_DO = 2
    TWO_PRIMARIES = -1
    NO_UP_TO_DATE_DISK = -2
    REFUSED_BY_PEER = -10
    TRANSIENT = -18
    CONCURRENT_CHANGE = -19


# --- limits -------------------------------------------------------------------------------------------------------
MAX_EPOCH_WRITES: Final = 2048
MAX_ALGORITHM_NAME_BYTES: Final = 64
MAX_DIGEST_BYTES: Final = 64
MAX_DATA_BYTES_BELOW_95: Final = 32 << 10
MAX_DATA_BYTES_95: Final = 128 << 10
MAX_DATA_BYTES_100: Final = 1 << 20
MAX_PAYLOAD_BYTES: Final = MAX_DATA_BYTES_100 + MAX_DIGEST_BYTES + P_TRIM.size
"""No length on the wire above this is believed."""
BITMAP_BLOCK_BYTES: Final = 4096
"""Bytes of storage a bit of the bitmap stands for."""
BITMAP_PACKET_BYTES: Final = 4096
"""A P_BITMAP, header included, is at most this long; its payload is rounded down to whole 8-byte
words."""
RESYNC_REQUEST_BYTES: Final = 32 << 10

VLI_LEVELS: Final = (
    (2, 1, 0x00), (3, 2, 0x01), (5, 3, 0x03), (7, 4, 0x07), (10, 5, 0x0F),
    (14, 6, 0x1F), (21, 8, 0x3F), (29, 8, 0x7F), (42, 8, 0xBF), (64, 8, 0xFF),
)  # fmt: skip
"""Run-length code of P_COMPRESSED_BITMAP: (total bits, prefix bits, prefix value LSB-first),
drbd_vli.h."""
BITMAP_CODE_RLE_VLI: Final = 2

PING_INTERVAL_S: Final = 10.0
"""Default of a node (drbd_limits.h)."""

assert set(LAYOUTS) == set(Cmd) - {Cmd.BECOME_SYNC_TARGET, Cmd.BECOME_SYNC_SOURCE}
assert (
    P_SIZES.size == 32
    and P_QLIM.size == 24
    and P_FEATURES.size == 72
    and P_SYNC_PARAM95.size == 148
)
assert all(
    len(layout.unpack(bytes(layout.size))) == len(names) for layout, names, _ in LAYOUTS.values()
)
