"""Tables of the device-specific control frames of the SimArray controllers.
``docs/control-frames.md`` is made from these.

On the line: ``00 COBS(body) 00``. The body's first byte is MAGIC, which no text holds, so the two
bytes after a delimiter (COBS code, MAGIC) tell a frame from console text on a UART that carries
both.

body = header | payload | CRC-32C (u32) over header and payload. All integers are big-endian. A
request's ``seq`` comes back in each of its replies; a reply's type is the request's | REPLY, and
its payload starts with a status byte. A request whose CRC is wrong gets no answer: the sender's
deadline tells.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

DELIMITER: Final = b"\x00"
MAGIC: Final = 0xF5
"""Never a byte of UTF-8 or ASCII text."""
VERSION: Final = 1
HEADER: Final = struct.Struct(">BBBBHH")
HEADER_FIELDS: Final = ("magic", "version", "type", "flags", "seq", "length")
CRC: Final = struct.Struct(">I")
MAX_PAYLOAD_BYTES: Final = 4096
MAX_BODY_BYTES: Final = HEADER.size + MAX_PAYLOAD_BYTES + CRC.size
MAX_FRAME_BYTES: Final = MAX_BODY_BYTES + MAX_BODY_BYTES // 254 + 1 + 2
"""Longest ``00 COBS 00``: one overhead byte per 254, the first code byte, two delimiters."""
REPLY: Final = 0x80


class Op(IntEnum):
    IDENTIFY = 0x01
    SET_TRACE_LEVEL = 0x02
    STATE_SAVE = 0x03
    """Non-disruptive: stores a root cause data set, the controller runs on."""
    WARMSTART = 0x04
    """Destructive: stores a root cause data set, then restarts with its memory kept. Answered
    before the restart."""
    LIST_SETS = 0x05
    READ_SET = 0x06
    """Answered by as many replies as the length needs, each of at most MAX_PAYLOAD_BYTES."""
    ACK_SET = 0x07
    """Destructive: the controller may free the set."""
    GET_STATE = 0x08
    """The live state record, CBOR."""
    PRINT = 0x09
    """Prints one line of text on the console: the canary."""
    READ_BLOCKS = 0x0A
    """Reads the volume. Alone answered while the controller boots, too: by its boot loader, before the
    replication begins."""
    SET_FAULTS = 0x10
    """Replaces the simulated firmware's fault plan (CBOR); test firmware only."""


class Status(IntEnum):
    OK = 0
    UNKNOWN_OP = 1
    BAD_LENGTH = 2
    WRONG_TARGET = 3
    """The frame names another serial number."""
    STALE_EPOCH = 4
    """The frame was armed for an earlier boot."""
    BUSY = 5
    NO_SUCH_SET = 6
    BAD_OFFSET = 7
    WRONG_DIGEST = 8
    """ACK_SET's SHA-256 is not the set's."""
    BAD_ARGUMENT = 9
    NO_SPACE = 10


BREAK_NULS: Final = 32
"""NULs in a row that stand for a BREAK on a line that carries none, such as a PTY: a BREAK is a line that
is held at 0 for longer than a character. Frames have at most two delimiters in a row."""


class Reason(IntEnum):
    """Why a controller was instructed; kept in its root cause data set."""

    OPERATOR = 0
    CONSOLE_TRIGGER = 1
    LINK_TRIGGER = 2
    PEER_TRIGGER = 3
    """Autonomic mode: the other controller instructed it."""
    SECOND_CONTROLLER = 4
    """Instructed by policy because the first one was."""
    RESPONSE_PROBLEM = 5
    """The second controller's own responses were wrong."""
    SELF = 6


REHEARSAL_REASON: Final = 0xFFFF
"""No reason: STATE_SAVE and WARMSTART are refused for it with BAD_ARGUMENT, after target and boot
were checked and before anything is done. So a frame is tried out in its full length."""


class SetKind(IntEnum):
    STATE_SAVE = 1
    WARMSTART = 2


class TraceLevel(IntEnum):
    ERROR = 0
    INFO = 1
    DEBUG = 2


class Capability(IntFlag):
    STATE_SAVE = 1
    WARMSTART = 2
    FAULTS = 4
    """Test firmware: understands SET_FAULTS."""
    AUTONOMIC = 8


SERIAL_NUMBER_BYTES: Final = 16
INCIDENT_ID_BYTES: Final = 16
SHA256_BYTES: Final = 32

# Payloads of requests. Operations that are not named have an empty payload.
TARGET: Final = struct.Struct(">16sI")
"""serial_number (ASCII, NUL-padded), boot_epoch: first in every frame that changes the
controller."""
FREEZE: Final = struct.Struct(">16sIH16s")
"""STATE_SAVE and WARMSTART: serial_number, boot_epoch, reason, incident_id."""
TRACE_LEVEL: Final = struct.Struct(">16sIB")
READ_SET: Final = struct.Struct(">IQI")
"""set_id, offset_bytes, length_bytes: a window; the next may be asked for before this one has
arrived."""
ACK_SET: Final = struct.Struct(">16sII32s")
"""serial_number, boot_epoch, set_id, SHA-256 of the stored (compressed) set."""
MAX_WINDOW_BYTES: Final = 64 << 10
READ_BLOCKS: Final = struct.Struct(">QI")
"""offset_bytes, length_bytes: of the volume, whole sectors, at most MAX_BLOCK_DATA_BYTES."""
PRINT_MAX_BYTES: Final = 200

# Payloads of replies, after the status byte. A reply whose status is not OK carries a UTF-8 text
# (<= 200 bytes) instead.
STATUS: Final = struct.Struct(">B")
IDENTITY: Final = struct.Struct(">16s16s16sIBBQQHI")
"""model, serial_number, firmware_version (ASCII, NUL-padded), boot_epoch, role (wire.drbd.Role),
pair_state (PairState), uptime_ns, events_logged, max_payload_bytes, capabilities."""
FREEZE_REPLY: Final = struct.Struct(">IIQQ")
"""set_id, new boot_epoch (unchanged for STATE_SAVE), events_logged at the save, uptime_ns at the
save."""
SET_ENTRY: Final = struct.Struct(">IBBH16sQQI32s")
"""LIST_SETS: any number of: set_id, kind, complete (0/1), reason, incident_id, raw_bytes,
stored_bytes, boot_epoch, SHA-256 of the stored set."""
MAX_SETS: Final = 64
SET_DATA: Final = struct.Struct(">IQ")
"""READ_SET: set_id, offset_bytes; then the bytes."""
MAX_SET_DATA_BYTES: Final = MAX_PAYLOAD_BYTES - STATUS.size - SET_DATA.size
BLOCK_DATA: Final = struct.Struct(">Q")
"""READ_BLOCKS: offset_bytes; then the bytes, as many as were asked for."""
MAX_BLOCK_DATA_BYTES: Final = 3584
"""Seven sectors: the most that fit one reply."""
assert MAX_PAYLOAD_BYTES - STATUS.size - BLOCK_DATA.size >= MAX_BLOCK_DATA_BYTES
MAX_SET_BYTES: Final = 64 << 20
"""No stored or raw set above this is believed."""


class PairState(IntEnum):
    """Trade names of the pair's state."""

    SIMPLEX = 0
    COPY_PENDING = 1
    FULL_DUPLEX = 2
    SUSPENDED = 3


PAIR_STATE_NAMES: Final[dict[int, str]] = {
    PairState.SIMPLEX: "simplex",
    PairState.COPY_PENDING: "copy pending",
    PairState.FULL_DUPLEX: "full duplex",
    PairState.SUSPENDED: "suspended",
}

FIELDS: Final[dict[str, tuple[struct.Struct, tuple[str, ...]]]] = {
    "header": (HEADER, HEADER_FIELDS),
    "target": (TARGET, ("serial_number", "boot_epoch")),
    "freeze": (FREEZE, ("serial_number", "boot_epoch", "reason", "incident_id")),
    "trace level": (TRACE_LEVEL, ("serial_number", "boot_epoch", "level")),
    "read set": (READ_SET, ("set_id", "offset_bytes", "length_bytes")),
    "acknowledge set": (ACK_SET, ("serial_number", "boot_epoch", "set_id", "sha256")),
    "identity": (
        IDENTITY,
        (
            "model", "serial_number", "firmware_version", "boot_epoch", "role", "pair_state", "uptime_ns",
            "events_logged", "max_payload_bytes", "capabilities",
        ),
    ),
    "freeze reply": (FREEZE_REPLY, ("set_id", "boot_epoch", "events_logged", "uptime_ns")),
    "set entry": (
        SET_ENTRY,
        (
            "set_id", "kind", "complete", "reason", "incident_id", "raw_bytes", "stored_bytes", "boot_epoch",
            "sha256",
        ),
    ),
    "set data": (SET_DATA, ("set_id", "offset_bytes")),
    "read blocks": (READ_BLOCKS, ("offset_bytes", "length_bytes")),
    "block data": (BLOCK_DATA, ("offset_bytes",)),
}  # fmt: skip
"""Name of a layout -> (struct, its fields in order)."""

REQUESTS: Final[dict[Op, str | None]] = {
    Op.IDENTIFY: None,
    Op.SET_TRACE_LEVEL: "trace level",
    Op.STATE_SAVE: "freeze",
    Op.WARMSTART: "freeze",
    Op.LIST_SETS: None,
    Op.READ_SET: "read set",
    Op.ACK_SET: "acknowledge set",
    Op.GET_STATE: None,
    Op.PRINT: None,
    Op.READ_BLOCKS: "read blocks",
    Op.SET_FAULTS: "target",
}
"""Operation -> the layout its request starts with. PRINT: UTF-8 text. SET_FAULTS: target, then
CBOR."""
REPLIES: Final[dict[Op, str | None]] = {
    Op.IDENTIFY: "identity",
    Op.SET_TRACE_LEVEL: None,
    Op.STATE_SAVE: "freeze reply",
    Op.WARMSTART: "freeze reply",
    Op.LIST_SETS: "set entry",
    Op.READ_SET: "set data",
    Op.ACK_SET: None,
    Op.GET_STATE: None,
    Op.PRINT: None,
    Op.READ_BLOCKS: "block data",
    Op.SET_FAULTS: None,
}
"""Operation -> the layout its reply starts with after the status byte. GET_STATE: CBOR, see
wire.rootcause.STATE_KEYS."""
DESTRUCTIVE: Final = frozenset(
    {Op.WARMSTART, Op.STATE_SAVE, Op.ACK_SET, Op.SET_FAULTS, Op.SET_TRACE_LEVEL}
)
"""Refused unless serial number and boot epoch are the controller's own."""

assert all(
    len(layout.unpack(bytes(layout.size))) == len(names) for layout, names in FIELDS.values()
)
assert set(REQUESTS) == set(REPLIES) == set(Op)
