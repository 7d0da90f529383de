"""Tables of the Network Block Device protocol, fixed-newstyle handshake, simple replies.

Source: the NBD project's ``doc/proto.md``. All integers are big-endian.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698

GREETING: Final = struct.Struct(">8s8sH")
"""Server: INIT_MAGIC, OPTION_MAGIC, handshake flags."""
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">8sII")
"""Client: OPTION_MAGIC, option, length; then that many bytes."""
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Server: OPTION_REPLY_MAGIC, option, reply type, length; then that many bytes."""
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
"""Server, to EXPORT_NAME only: size, transmission flags; then 124 zeroes unless NO_ZEROES was
agreed."""
EXPORT_NAME_ZEROES: Final = 124
INFO_EXPORT: Final = struct.Struct(">HQH")
"""info type EXPORT, size, transmission flags."""
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
"""info type BLOCK_SIZE, minimum, preferred, maximum."""
REQUEST: Final = struct.Struct(">IHHQQI")
"""REQUEST_MAGIC, command flags, command, cookie, offset, length; a write's data follow."""
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, error, cookie; a read's data follow when error is 0."""

MAX_OPTION_BYTES: Final = 8192
"""A name is at most 4096 bytes, an info list is short: longer option data are hostile."""
MAX_OPTIONS: Final = 64
"""Options that one client may send before transmission."""
MAX_NAME_BYTES: Final = 4096
MIN_BLOCK_BYTES: Final = 512
PREFERRED_BLOCK_BYTES: Final = 4096
MAX_REQUEST_BYTES: Final = 32 << 20
"""What every client may use without asking (proto.md, "Block size constraints")."""


class Handshake(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class Rep(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 0x80000001
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006


REP_ERROR: Final = 0x80000000


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1


class Error(IntEnum):
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
