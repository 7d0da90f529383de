"""Tables of the root cause data set: a record of the controller's state at that moment + its
continuous event log.

Stored set = zstd frame (with content size) of one CBOR map with the keys of ``SET_KEYS``.
``events`` is the event log ring, oldest record first, each ``RECORD`` long. Records that the ring
has overwritten are missing: the first record's ``seq`` says how many.
"""

import struct
from enum import IntEnum
from typing import Final

FORMAT: Final = "freezeframe-root-cause-data-set/1"

SET_KEYS: Final = ("format", "header", "state", "events")
HEADER_KEYS: Final = (
    "set_id", "kind", "reason", "incident_id", "model", "serial_number", "firmware_version", "boot_epoch",
    "uptime_ns", "wall_ns", "first_seq", "next_seq",
)  # fmt: skip
"""``incident_id`` is 16 raw bytes; ``first_seq``/``next_seq``: event records held are first_seq <=
seq < next_seq."""
STATE_KEYS: Final = (
    "role", "pair_state", "conn", "disk", "peer_disk", "uuids", "dirty_blocks", "epoch", "epoch_writes", "queues",
    "cache", "last_writes", "bitmap", "diagnostics", "faults", "boot_epoch", "uptime_ns", "protocol_version",
)  # fmt: skip
"""State record. role/conn/disk/peer_disk: ints of wire.drbd. pair_state: int of
wire.control.PairState. uuids: [current, bitmap, history0, history1]. dirty_blocks: bits set in the
bitmap. epoch: current epoch number; epoch_writes: writes in it. queues: {host_requests,
unacked_writes, outgoing_bytes}. cache: {dirty_bytes, dirty_extents, flushes}. bitmap: list of
[first_block, blocks] runs that are out of sync. last_writes: newest last, at most LAST_WRITES of
[write_no, sector, bytes, crc32c, block_id (8 raw bytes), time_ns, stage]; stage: see WriteStage.
diagnostics: {"self_test": "pass", ..., "damaged_blocks": [[sector, content as found], ...] of this
boot, at most DAMAGED_BLOCKS}; faults: the armed fault plan, empty on a healthy controller."""
LAST_WRITES: Final = 256
DAMAGED_BLOCKS: Final = 16


class WriteStage(IntEnum):
    """How far a write has come, on the controller that tells."""

    RECEIVED = 0
    SENT = 1
    STORED = 2
    ACKED = 3
    FAILED = 4


RECORD: Final = struct.Struct(">QQHBB4Q")
"""seq, uptime_ns, code, level (wire.control.TraceLevel), spare, four arguments."""
RING_RECORDS: Final = 16384


class EventCode(IntEnum):
    """Codes of the event log."""

    BOOT = 0x0001
    WARMSTART = 0x0002
    STATE_SAVE = 0x0003
    SHUTDOWN = 0x0004
    CONTROL_REFUSED = 0x0005
    ROLE = 0x0010
    PAIR_STATE = 0x0011
    CONN_STATE = 0x0012
    DISK_STATE = 0x0013
    HOST_CONNECT = 0x0020
    HOST_DISCONNECT = 0x0021
    HOST_WRITE = 0x0022
    HOST_FLUSH = 0x0023
    HOST_TRIM = 0x0024
    HOST_ACK = 0x0025
    HOST_HELD = 0x0026
    REPL_SEND = 0x0030
    REPL_RECEIVE = 0x0031
    REPL_STORE = 0x0032
    REPL_ACK_SENT = 0x0033
    REPL_ACK_RECEIVED = 0x0034
    REPL_NEG_ACK = 0x0035
    REPL_BARRIER_SENT = 0x0036
    REPL_BARRIER_ACK = 0x0037
    REPL_DIGEST_FAILED = 0x0038
    REPL_PROTOCOL_ERROR = 0x0039
    REPL_TIMEOUT = 0x003A
    REPL_UNKNOWN_ACK = 0x003B
    REPL_UNACKED = 0x003C
    REPL_BARRIER_RECEIVED = 0x003D
    """A write without an answer, as it lies in the transmit buffer when the link goes or the state
    is saved."""
    RESYNC_START = 0x0040
    RESYNC_DONE = 0x0041
    SCRUB_MISMATCH = 0x0050
    DESTAGE = 0x0051
    CONTROL_FRAME = 0x0060
    PEER_INSTRUCTED = 0x0061
    FAULT_FIRED = 0x00F0


EVENT_ARGUMENTS: Final[dict[EventCode, tuple[str, ...]]] = {
    EventCode.BOOT: ("boot_epoch", "cold"),
    EventCode.WARMSTART: ("set_id", "reason"),
    EventCode.STATE_SAVE: ("set_id", "reason"),
    EventCode.SHUTDOWN: (),
    EventCode.CONTROL_REFUSED: ("op", "status"),
    EventCode.ROLE: ("role",),
    EventCode.PAIR_STATE: ("from", "to"),
    EventCode.CONN_STATE: ("from", "to"),
    EventCode.DISK_STATE: ("from", "to"),
    EventCode.HOST_CONNECT: ("session",),
    EventCode.HOST_DISCONNECT: ("session",),
    EventCode.HOST_WRITE: ("write_no", "sector", "bytes", "crc32c"),
    EventCode.HOST_FLUSH: ("cookie",),
    EventCode.HOST_TRIM: ("write_no", "sector", "bytes"),
    EventCode.HOST_ACK: ("write_no",),
    EventCode.HOST_HELD: ("requests",),
    EventCode.REPL_SEND: ("write_no", "sector", "bytes", "crc32c"),
    EventCode.REPL_RECEIVE: ("write_no", "sector", "bytes", "crc32c"),
    EventCode.REPL_STORE: ("write_no", "sector", "bytes", "crc32c"),
    EventCode.REPL_ACK_SENT: ("write_no", "sector"),
    EventCode.REPL_ACK_RECEIVED: ("write_no", "sector"),
    EventCode.REPL_NEG_ACK: ("write_no", "sector", "bytes"),
    EventCode.REPL_BARRIER_SENT: ("barrier", "writes"),
    EventCode.REPL_BARRIER_ACK: ("barrier", "writes"),
    EventCode.REPL_BARRIER_RECEIVED: ("barrier", "writes"),
    EventCode.REPL_DIGEST_FAILED: ("sector", "bytes", "digest", "computed"),
    EventCode.REPL_PROTOCOL_ERROR: ("command", "length"),
    EventCode.REPL_TIMEOUT: ("waited_ms", "unacked"),
    EventCode.REPL_UNKNOWN_ACK: ("block_id", "sector"),
    EventCode.REPL_UNACKED: ("write_no", "sector", "bytes", "crc32c"),
    EventCode.RESYNC_START: ("as_source", "blocks"),
    EventCode.RESYNC_DONE: ("blocks", "duration_ms"),
    EventCode.SCRUB_MISMATCH: ("sector", "bytes", "expected_crc32", "found_crc32"),
    EventCode.DESTAGE: ("bytes",),
    EventCode.CONTROL_FRAME: ("op", "frame_seq"),
    EventCode.PEER_INSTRUCTED: ("reason", "status"),
    EventCode.FAULT_FIRED: ("fault", "write_no"),
}
"""Names of each code's arguments; those not named are 0. write_no: on the primary the number of the
host write, on the secondary the low 63 bits of the block_id taken big-endian."""

assert set(EVENT_ARGUMENTS) == set(EventCode)
assert all(len(names) <= 4 for names in EVENT_ARGUMENTS.values())
