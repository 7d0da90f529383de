"""Tables of NVMe/TCP as a mirror's link carries it: PDUs, the commands that write, Fabrics commands.

Source: NVM Express TCP Transport Specification 1.0 and NVM Express Base Specification 2.0, held
against captures of two Linux kernels (nvme-tcp and nvmet-tcp, 6.1). All integers little-endian,
digests too: CRC-32C, 4 bytes.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

PORT: Final = 4420


class PduType(IntEnum):
    """PDU type, byte 0 of the common header."""

    IC_REQ = 0
    IC_RESP = 1
    H2C_TERM_REQ = 2
    C2H_TERM_REQ = 3
    CAPSULE_CMD = 4
    CAPSULE_RESP = 5
    H2C_DATA = 6
    C2H_DATA = 7
    R2T = 9


class PduFlag(IntFlag):
    """Byte 1 of the common header."""

    HEADER_DIGEST = 1
    DATA_DIGEST = 2
    LAST = 4
    SUCCESS = 8


COMMON_HEADER: Final = struct.Struct("<BBBBI")
"""type, flags, hlen (header bytes), pdo (offset of the data in the PDU, 0: none), plen (bytes of the
whole PDU)."""
HEADER_BYTES: Final[dict[int, int]] = {
    PduType.IC_REQ: 128,
    PduType.IC_RESP: 128,
    PduType.H2C_TERM_REQ: 24,
    PduType.C2H_TERM_REQ: 24,
    PduType.CAPSULE_CMD: 72,
    PduType.CAPSULE_RESP: 24,
    PduType.H2C_DATA: 24,
    PduType.C2H_DATA: 24,
    PduType.R2T: 24,
}
FROM_HOST: Final = frozenset(
    {PduType.IC_REQ, PduType.H2C_TERM_REQ, PduType.CAPSULE_CMD, PduType.H2C_DATA}
)
"""The others come from the controller."""
WITH_DATA: Final = frozenset(
    {
        PduType.CAPSULE_CMD,
        PduType.H2C_DATA,
        PduType.C2H_DATA,
        PduType.H2C_TERM_REQ,
        PduType.C2H_TERM_REQ,
    }
)
DIGEST: Final = struct.Struct("<I")
MAX_PDU_BYTES: Final = 16 << 20
"""A PDU's length above this is not believed. Linux sends at most 8 MiB of data in one."""
IC: Final = struct.Struct("<HBBI")
"""At byte 8 of IC_REQ and IC_RESP: format version, data alignment, digests (1 header, 2 data), then
IC_REQ: R2Ts at once, IC_RESP: most bytes of an H2CData."""
IC_DIGEST_HEADER: Final = 1
IC_DIGEST_DATA: Final = 2

COMMAND_AT: Final = 8
"""The submission queue entry (64 bytes) stands here in a CapsuleCmd."""
COMMAND: Final = struct.Struct("<BBHI16xQI3xBQHHI8x")
"""opcode, flags, cid, nsid; at 24 the SGL descriptor: address, length_bytes, (3 bytes), type; at 40
the command's own words: for a write slba u64, blocks-1 u16, control u16, dsm u32."""
CONTROL_FUA: Final = 0x4000


class Opcode(IntEnum):
    """On a queue other than 0."""

    FLUSH = 0
    WRITE = 1
    READ = 2
    WRITE_ZEROES = 8
    DATASET_MANAGEMENT = 9


ADMIN_OPCODES: Final = frozenset({0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18})
"""Of queue 0, where they name no namespace: Identify, Abort, Set and Get Features, Asynchronous Event Request,
Keep Alive. Commands of the other queues always name one."""
FABRICS_OPCODE: Final = 0x7F
FABRICS_TYPE_AT: Final = 4
"""Byte of the entry: the Fabrics command type."""
FABRICS_PROPERTY_SET: Final = 0
FABRICS_CONNECT: Final = 1
CONNECT_QID: Final = struct.Struct("<H")
CONNECT_QID_AT: Final = 42
"""In the entry of a Connect: which queue this connection is."""
PROPERTY: Final = struct.Struct("<B3xIQ")
"""At byte 40 of a Property Set: size, offset, value."""
PROPERTY_AT: Final = 40
CONTROLLER_CONFIGURATION: Final = 0x14
SHUTDOWN_MASK: Final = 0xC000
"""Of the controller configuration: the host says that it leaves."""

COMPLETION_AT: Final = 8
COMPLETION: Final = struct.Struct("<IIHHHH")
"""result, reserved, sq head, sq id (reserved in Fabrics; Linux fills it in), cid, status (bit 0: phase; status
code above it)."""
DATA_HEADER: Final = struct.Struct("<HHII")
"""At byte 8 of H2C_DATA, C2H_DATA and R2T: cid, transfer tag, offset_bytes, length_bytes."""
STATUS_NAMES: Final[dict[int, str]] = {
    0x0000: "success",
    0x0002: "invalid field in command",
    0x0004: "data transfer error",
    0x0006: "internal error",
    0x0007: "command abort requested",
    0x0022: "transient transport error",
    0x0080: "LBA out of range",
    0x0281: "unrecovered read error",
    0x0280: "write fault",
}
"""Status code type (bits 8 to 10) and status code (bits 0 to 7); bits 13 and 14 say more and do not
retry."""
STATUS_CODE_MASK: Final = 0x7FF

assert COMMON_HEADER.size == 8 and COMMAND.size == 64 and COMPLETION.size == 16
assert DATA_HEADER.size == 12 and HEADER_BYTES.keys() == set(PduType)
