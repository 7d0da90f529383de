"""DRBD packets <-> bytes, written from the tables in ``freezeframe.harness.wire.drbd`` alone.

A packet is ``header | fixed struct | body``. Which header is in force follows from the version in
force: 0 (before the agreement) means h80, 95..99 h80 or h95 by length, from 100 on h100. The body
of a data packet is ``digest | data``.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crc32c import crc32c

from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

Buffer = bytes | bytearray | memoryview
Packet = tuple[int, tuple[Any, ...], memoryview]
"""Command, the fixed struct's values in the order of LAYOUTS, the body behind it (empty for
most)."""
Digest = Callable[[Buffer], bytes]

INITIAL: Final = frozenset({Cmd.INITIAL_DATA, Cmd.INITIAL_META})
"""What may come first on a socket."""

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
CRC32C: Final = struct.Struct("<I")
_DATA_H80: Final = struct.Struct(drbd.HEADER_H80.format + drbd.P_DATA.format[1:])
_DATA_H95: Final = struct.Struct(drbd.HEADER_H95.format + drbd.P_DATA.format[1:])
_DATA_H100: Final = struct.Struct(drbd.HEADER_H100.format + drbd.P_DATA.format[1:])
_ACK_H80: Final = struct.Struct(drbd.HEADER_H80.format + drbd.P_BLOCK_ACK.format[1:])
_ACK_H100: Final = struct.Struct(drbd.HEADER_H100.format + drbd.P_BLOCK_ACK.format[1:])

_DATA_BODY_BYTES: Final = drbd.MAX_DATA_BYTES_100 + drbd.MAX_DIGEST_BYTES
MAX_BODY_BYTES: Final[dict[int, int]] = {
    Cmd.DATA: _DATA_BODY_BYTES,
    Cmd.DATA_REPLY: _DATA_BODY_BYTES,
    Cmd.RS_DATA_REPLY: _DATA_BODY_BYTES,
    Cmd.WSAME: drbd.BITMAP_BLOCK_BYTES,
    Cmd.BITMAP: drbd.BITMAP_PACKET_BYTES,
    Cmd.COMPRESSED_BITMAP: drbd.BITMAP_PACKET_BYTES,
    Cmd.OV_REPLY: drbd.MAX_DIGEST_BYTES,
    Cmd.CSUM_RS_REQUEST: drbd.MAX_DIGEST_BYTES,
    Cmd.SYNC_PARAM: drbd.MAX_ALGORITHM_NAME_BYTES,
    Cmd.SYNC_PARAM89: drbd.P_SYNC_PARAM95.size - drbd.P_SYNC_PARAM89.size,
    Cmd.PROTOCOL: drbd.MAX_ALGORITHM_NAME_BYTES,
    Cmd.PROTOCOL_UPDATE: drbd.MAX_ALGORITHM_NAME_BYTES,
    Cmd.SIZES: drbd.P_QLIM.size,
    Cmd.AUTH_CHALLENGE: 2 * drbd.MAX_DIGEST_BYTES,
    Cmd.AUTH_RESPONSE: drbd.MAX_DIGEST_BYTES,
}
"""Longest body that is believed, by command; commands that are not here have none."""

MAX_CHUNKS: Final = 256
"""Pieces of a packet kept as they came: one that comes byte by byte must not cost a hundred times
its size."""

NAMES: Final[dict[int, str]] = {
    Cmd.DATA: "Data", Cmd.DATA_REPLY: "DataReply", Cmd.RS_DATA_REPLY: "RSDataReply", Cmd.BARRIER: "Barrier",
    Cmd.BITMAP: "ReportBitMap", Cmd.BECOME_SYNC_TARGET: "BecomeSyncTarget",
    Cmd.BECOME_SYNC_SOURCE: "BecomeSyncSource", Cmd.UNPLUG_REMOTE: "UnplugRemote",
    Cmd.DATA_REQUEST: "DataRequest", Cmd.RS_DATA_REQUEST: "RSDataRequest", Cmd.SYNC_PARAM: "SyncParam",
    Cmd.PROTOCOL: "ReportProtocol", Cmd.UUIDS: "ReportUUIDs", Cmd.SIZES: "ReportSizes",
    Cmd.STATE: "ReportState", Cmd.SYNC_UUID: "ReportSyncUUID", Cmd.AUTH_CHALLENGE: "AuthChallenge",
    Cmd.AUTH_RESPONSE: "AuthResponse", Cmd.STATE_CHG_REQ: "StateChgRequest", Cmd.PING: "Ping",
    Cmd.PING_ACK: "PingAck", Cmd.RECV_ACK: "RecvAck", Cmd.WRITE_ACK: "WriteAck", Cmd.RS_WRITE_ACK: "RSWriteAck",
    Cmd.SUPERSEDED: "Superseded", Cmd.NEG_ACK: "NegAck", Cmd.NEG_DREPLY: "NegDReply",
    Cmd.NEG_RS_DREPLY: "NegRSDReply", Cmd.BARRIER_ACK: "BarrierAck", Cmd.STATE_CHG_REPLY: "StateChgReply",
    Cmd.OV_REQUEST: "OVRequest", Cmd.OV_REPLY: "OVReply", Cmd.OV_RESULT: "OVResult",
    Cmd.CSUM_RS_REQUEST: "CsumRSRequest", Cmd.RS_IS_IN_SYNC: "CsumRSIsInSync", Cmd.SYNC_PARAM89: "SyncParam89",
    Cmd.COMPRESSED_BITMAP: "CBitmap", Cmd.DELAY_PROBE: "DelayProbe", Cmd.OUT_OF_SYNC: "OutOfSync",
    Cmd.RS_CANCEL: "RSCancel", Cmd.CONN_ST_CHG_REQ: "conn_st_chg_req",
    Cmd.CONN_ST_CHG_REPLY: "conn_st_chg_reply", Cmd.RETRY_WRITE: "retry_write",
    Cmd.PROTOCOL_UPDATE: "protocol_update", Cmd.TRIM: "Trim", Cmd.RS_THIN_REQ: "rs_thin_req",
    Cmd.RS_DEALLOCATED: "rs_deallocated", Cmd.WSAME: "WriteSame", Cmd.ZEROES: "Zeroes",
}  # fmt: skip
"""Names of packets as the kernel's log prints them."""


class DecodeError(ValueError):
    """The peer's bytes are no packet that may come here. ``final``: the kernel does not even try to
    reconnect."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


def packet_name(command: int) -> str:
    return NAMES.get(command, "Unknown")


def header_bytes(version: int) -> int:
    return drbd.HEADER_H100.size if version >= 100 else drbd.HEADER_H80.size


def max_data_bytes(version: int) -> int:
    """Longest data of one packet at an agreed version."""
    if version >= 100:
        return drbd.MAX_DATA_BYTES_100
    return drbd.MAX_DATA_BYTES_95 if version >= 95 else drbd.MAX_DATA_BYTES_BELOW_95


def encode_header(version: int, command: int, length_bytes: int) -> bytes:
    """The header of a packet of volume 0 with ``length_bytes`` behind it."""
    if version >= 100:
        return drbd.HEADER_H100.pack(drbd.MAGIC_H100, 0, command, length_bytes, 0)
    if version >= 95 and length_bytes > drbd.H80_MAX_LENGTH_BYTES:
        return drbd.HEADER_H95.pack(drbd.MAGIC_H95, command, length_bytes)
    return drbd.HEADER_H80.pack(drbd.MAGIC_H80, command, length_bytes)


def encode(version: int, command: Cmd, *fields: Any, body: Buffer = b"") -> bytes:
    """A whole packet; ``fields`` in the order of LAYOUTS."""
    fixed = drbd.LAYOUTS[command][0].pack(*fields)
    return b"".join((encode_header(version, command, len(fixed) + len(body)), fixed, body))


def encode_data_head(
    version: int, command: Cmd, sector: int, block_id: bytes, seq: int, flags: int, body_bytes: int
) -> bytes:
    """Header and fixed part of a DATA, DATA_REPLY or RS_DATA_REPLY whose body is ``body_bytes``
    long."""
    length = drbd.P_DATA.size + body_bytes
    if version >= 100:
        return _DATA_H100.pack(drbd.MAGIC_H100, 0, command, length, 0, sector, block_id, seq, flags)
    if version >= 95 and length > drbd.H80_MAX_LENGTH_BYTES:
        return _DATA_H95.pack(drbd.MAGIC_H95, command, length, sector, block_id, seq, flags)
    return _DATA_H80.pack(drbd.MAGIC_H80, command, length, sector, block_id, seq, flags)


def encode_ack(
    version: int, command: Cmd, sector: int, block_id: bytes, length_bytes: int, seq: int
) -> bytes:
    size = drbd.P_BLOCK_ACK.size
    if version >= 100:
        return _ACK_H100.pack(
            drbd.MAGIC_H100, 0, command, size, 0, sector, block_id, length_bytes, seq
        )
    return _ACK_H80.pack(drbd.MAGIC_H80, command, size, sector, block_id, length_bytes, seq)


def digest_function(algorithm: str) -> tuple[Digest | None, int]:
    """The digest of an integrity algorithm by its kernel name, and its length in bytes; "" is none.
    ValueError: unknown."""
    if not algorithm:
        return None, 0
    if algorithm == "crc32c":
        return lambda data: CRC32C.pack(crc32c(data)), CRC32C.size
    size = hashlib.new(algorithm).digest_size
    return lambda data: hashlib.new(algorithm, data).digest(), size


class Decoder:
    """One socket's bytes -> packets, however the stream is split.

    ``version`` is the agreed version, 0 before; set it between two packets. ``commands`` are those
    the socket accepts. A body is a view of the bytes that were pushed; only a packet that arrived
    in pieces is copied, once.
    """

    def __init__(self, commands: frozenset[Cmd], version: int = 0) -> None:
        self.commands = commands
        self._chunks: deque[memoryview] = deque()
        self._at = 0
        """Where in the first chunk the next packet begins."""
        self.held_bytes = 0
        """Bytes pushed that no packet has been made of yet."""
        self.version = version

    @property
    def version(self) -> int:
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version = version
        self._header_bytes = self._need = header_bytes(version)

    def push(self, data: Buffer) -> None:
        """More bytes. They must stay as they are as long as packets are made of them, or until
        ``keep``."""
        if data:
            self._chunks.append(memoryview(data))
            self.held_bytes += len(data)

    def keep(self) -> None:
        """Whoever pushed the last bytes may change them from now on: copy what is left of them."""
        if self._chunks:
            last = self._chunks.pop()
            if not self._chunks:
                last, self._at = last[self._at :], 0
            self._chunks.append(memoryview(bytes(last)))
        if len(self._chunks) > MAX_CHUNKS:
            self._gather(self.held_bytes)

    def feed(self, data: Buffer) -> list[Packet]:
        """``push`` and all packets that this completes."""
        self.push(data)
        return list(iter(self.next, None))

    def next(self) -> Packet | None:
        """The next whole packet. Raises DecodeError; the decoder is of no use after that."""
        while self.held_bytes >= self._need:
            view, at = self._chunks[0], self._at
            if len(view) - at < self._need:
                view, at = self._gather(self._need), 0
            command, length = self._header(view, at)
            size, has_body = self._check(command, length)
            total = self._header_bytes + length
            if len(view) - at < total:
                self._need = total
                continue
            self._need = self._header_bytes
            self.held_bytes -= total
            self._at = end = at + total
            if end == len(view):
                self._chunks.popleft()
                self._at = 0
            start = at + self._header_bytes
            fields = drbd.LAYOUTS[command][0].unpack_from(view, start)  # type: ignore[index]
            return command, fields, view[start + size : end] if has_body else _NOTHING
        return None

    def _gather(self, length_bytes: int) -> memoryview:
        """Make one chunk of so many bytes, from those that hold them."""
        gathered = bytearray()
        while (missing := length_bytes - len(gathered)) > 0:
            chunk = self._chunks.popleft()[self._at :]
            gathered += chunk[:missing]
            self._at = 0
            if len(chunk) > missing:
                self._chunks.appendleft(chunk[missing:])
        view = memoryview(gathered)
        self._chunks.appendleft(view)
        return view

    def _header(self, view: memoryview, at: int) -> tuple[int, int]:
        """Command and length of the header at ``at``; raises on the wrong magic for the version in
        force."""
        version = self._version
        if version >= 100:
            magic, _volume, command, length, pad = drbd.HEADER_H100.unpack_from(view, at)
            if magic == drbd.MAGIC_H100:
                if pad:
                    raise DecodeError("Header padding is not zero")
                return command, length
        else:
            magic, command, length = drbd.HEADER_H80.unpack_from(view, at)
            if magic == drbd.MAGIC_H80:
                return command, length
            if version >= 95 and magic >> 16 == drbd.MAGIC_H95:
                _magic, command, length = drbd.HEADER_H95.unpack_from(view, at)
                return command, length
        raise DecodeError(f"Wrong magic value 0x{magic:08x} in protocol version {version or 80}")

    def _check(self, command: int, length: int) -> tuple[int, bool]:
        """Size of the fixed part, and whether a body follows; raises when command or length cannot
        be here."""
        if command not in self.commands:
            on_meta = Cmd.PING in self.commands
            kind = "meta" if on_meta else "data"
            raise DecodeError(
                f"Unexpected {kind} packet {packet_name(command)} (0x{command:04x})", final=on_meta
            )
        size = drbd.LAYOUTS[command][0].size  # type: ignore[index]
        if length == size:
            return size, False
        if length < size:
            raise DecodeError(
                f"{packet_name(command)}: unexpected packet size, expected:{size} received:{length}"
            )
        if length - size > MAX_BODY_BYTES.get(command, 0):
            raise DecodeError(f"No payload expected {packet_name(command)} l:{length - size}")
        return size, True


_NOTHING: Final = memoryview(b"")

assert all(
    (command in MAX_BODY_BYTES) == has_body
    for command, (_, _, has_body) in drbd.LAYOUTS.items()
    if command not in drbd.DRBD9_COMMANDS
), "every command with a body needs a limit"
