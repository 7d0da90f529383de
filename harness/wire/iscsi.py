"""Tables of iSCSI as a mirror's link carries it. Source: RFC 7143, held against captures of two Linux
kernels (open-iscsi and LIO, 6.1).

All integers big-endian; digests are CRC-32C, little-endian.
"""

import struct
from enum import IntEnum
from typing import Final

PORT: Final = 3260
BHS_BYTES: Final = 48
"""Basic header segment. Then additional headers, header digest, data padded to 4, data digest."""
BHS: Final = struct.Struct(">BBBBB3s8sI28x")
"""opcode (bit 6: immediate), flags, two bytes of the opcode's own, additional header length in words,
data segment length in bytes, LUN, initiator task tag."""
MAX_LOGIN_BYTES: Final = 8192
"""Of data in a PDU of the login (RFC 7143 13.12: what an end declares applies only after it)."""
OPCODE_MASK: Final = 0x3F
FLAGS_AT: Final = 1
FINAL: Final = 0x80
READS: Final = 0x40
WRITES: Final = 0x20
DIGEST: Final = struct.Struct("<I")
MAX_DATA_BYTES: Final = (1 << 24) - 1
"""A data segment's length has 24 bits; nothing more is to be bounded, but a PDU is held in memory."""


class IscsiOp(IntEnum):
    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT = 0x02
    LOGIN = 0x03
    TEXT = 0x04
    DATA_OUT = 0x05
    LOGOUT = 0x06
    SNACK = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC = 0x32
    REJECT = 0x3F


FROM_INITIATOR: Final = frozenset(op for op in IscsiOp if op < 0x20)
IN_SEQUENCE: Final = frozenset(
    {
        IscsiOp.LOGIN, IscsiOp.LOGIN_RESPONSE, IscsiOp.TEXT, IscsiOp.TEXT_RESPONSE,
        IscsiOp.SCSI_COMMAND, IscsiOp.DATA_OUT, IscsiOp.DATA_IN,
    }
)  # fmt: skip
"""May come without the final bit."""
TASK_TAG_AT: Final = 16
TASK_TAG_BYTES: Final = 4
NO_TASK: Final = b"\xff\xff\xff\xff"
EXPECTED_LENGTH: Final = struct.Struct(">I")
EXPECTED_LENGTH_AT: Final = 20
"""Of a SCSI Command: bytes that the whole command carries."""
SEQUENCE: Final = struct.Struct(">I")
SEQUENCE_AT: Final = 28
"""In each PDU the number that its sender expects next of the other end (ExpStatSN, ExpCmdSN)."""
CDB_AT: Final = 32
BUFFER_OFFSET: Final = struct.Struct(">I")
BUFFER_OFFSET_AT: Final = 40
"""Of a Data-Out: where its data stand in the command's."""
RESPONSE_AT: Final = 2
STATUS_AT: Final = 3
CHECK_CONDITION: Final = 2
SENSE_LENGTH: Final = struct.Struct(">H")
"""At the beginning of a SCSI Response's data; then sense data: key in byte 2, code in 12, 13."""
LOGIN_STAGE_MASK: Final = 0x03
FULL_FEATURE: Final = 3
"""A login response with FINAL (here: transit) and this next stage ends the login: digests begin."""

READ_WRITE_10: Final = struct.Struct(">BBIBHB")
"""opcode, flags (8: FUA), LBA, group, blocks, control."""
READ_WRITE_16: Final = struct.Struct(">BBQIBB")
READ_WRITE_12: Final = struct.Struct(">BBIIBB")
CDB_FUA: Final = 8
WRITES_10: Final = frozenset({0x2A, 0x2E})
WRITES_12: Final = frozenset({0xAA, 0xAE})
WRITES_16: Final = frozenset({0x8A, 0x8E})
WRITE_SAME_10: Final = 0x41
WRITE_SAME_16: Final = 0x93
FLUSHES: Final = frozenset({0x35, 0x91})
SENSE_NAMES: Final[dict[int, str]] = {
    0x0: "no sense", 0x1: "recovered error", 0x2: "not ready", 0x3: "medium error", 0x4: "hardware error",
    0x5: "illegal request", 0x6: "unit attention", 0x7: "data protect", 0xB: "aborted command",
}  # fmt: skip
STATUS_NAMES: Final[dict[int, str]] = {
    0x00: "good", 0x02: "check condition", 0x08: "busy", 0x18: "reservation conflict", 0x28: "task set full",
    0x40: "task aborted",
}  # fmt: skip

assert BHS.size == BHS_BYTES
