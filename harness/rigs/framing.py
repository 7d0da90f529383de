"""Where the messages of a replication protocol lie in a TCP stream, as far as the injector needs it.

Independent of the protocols in ``core.link``, which are held against what the injector makes, and
smaller: a framing looks at the first bytes of each message only, before the rest has passed, so that
the rest can still be changed. One framing belongs to one connection and follows both directions
from their SYNs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from crc32c import crc32c

from freezeframe.harness.wire import drbd, nbd, nvme_tcp
from freezeframe.harness.wire.faults import FaultKind

MAX_REMEMBERED: Final = 65_536
"""Requests of one connection whose answers have not come."""
MAX_MESSAGE_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class FramePiece:
    """A message, as its first bytes show it. Offsets are from its first byte."""

    length_bytes: int
    kind: Literal["write", "data", "answer", "barrier-answer", "other"] = "other"
    """data: a part of a write that did not come with it."""
    key: bytes = b""
    """Ties write, data and answer together."""
    data_at: int = 0
    data_bytes: int = 0
    """The host's data in this message; 0: they follow as data, or there are none."""
    changes: tuple[tuple[int, int], ...] = ()
    """(offset, bits): inverting them makes a refusal of an answer, a wrong count of a barrier's."""


class Framing(Protocol):
    """The messages of one connection."""

    def wanted(self, from_opener: bool, head: bytes) -> int:
        """How many first bytes of the present message are to be seen, by those that were seen
        already; equal to their number: that is enough."""
        ...

    def message(self, from_opener: bool, head: bytes) -> FramePiece | None:
        """The message that begins with ``head``; None: the stream is not of this protocol."""
        ...


# --- DRBD ------------------------------------------------------------------------------------------------
_HEADER: Final = drbd.HEADER_H100
_DATA_HEAD_BYTES: Final = 24
_DIGEST_BYTES: Final = 4
_COMMAND_LOW_BYTE: Final = 7
_SET_SIZE_LOW_BYTE: Final = _HEADER.size + 7


class DrbdFraming:
    """Writes go over one connection, their answers come over another: a block id ties them."""

    def __init__(self, connection: bytes, host_offset_bytes: int) -> None:
        pass

    def wanted(self, from_opener: bool, head: bytes) -> int:
        if len(head) < 4:
            return 4
        if int.from_bytes(head[:4], "big") != drbd.MAGIC_H100:
            return drbd.HEADER_H80.size
        if len(head) < _HEADER.size:
            return _HEADER.size
        command, length = _HEADER.unpack_from(head)[2:4]
        looked_at = command in (drbd.Cmd.DATA, drbd.Cmd.WRITE_ACK, drbd.Cmd.BARRIER_ACK)
        return _HEADER.size + (min(length, _DATA_HEAD_BYTES) if looked_at else 0)

    def message(self, from_opener: bool, head: bytes) -> FramePiece | None:
        if len(head) < _HEADER.size:
            # Before the handshake heads are shorter; those packets are over by their length alone.
            magic, _, length = drbd.HEADER_H80.unpack(head)
            return FramePiece(length_bytes=len(head) + length) if magic == drbd.MAGIC_H80 else None
        _, _, command, length, _ = _HEADER.unpack_from(head)
        whole, key = _HEADER.size + length, head[_HEADER.size + 8 : _HEADER.size + 16]
        if command == drbd.Cmd.DATA:
            data_at = _HEADER.size + _DATA_HEAD_BYTES + _DIGEST_BYTES
            return FramePiece(
                length_bytes=whole, kind="write", key=key, data_at=data_at, data_bytes=whole - data_at
            )  # fmt: skip
        if command == drbd.Cmd.WRITE_ACK:
            refusal = (_COMMAND_LOW_BYTE, drbd.Cmd.WRITE_ACK ^ drbd.Cmd.NEG_ACK)
            return FramePiece(length_bytes=whole, kind="answer", key=key, changes=(refusal,))
        if command == drbd.Cmd.BARRIER_ACK:
            count = (_SET_SIZE_LOW_BYTE, 0x01)
            return FramePiece(length_bytes=whole, kind="barrier-answer", changes=(count,))
        return FramePiece(length_bytes=whole)


# --- NVMe/TCP --------------------------------------------------------------------------------------------
_NVME_REFUSED: Final = 0x6006 << 1
"""Do not retry, more, internal error: what a Linux target says of a failing disk."""
_STATUS_AT: Final = 22


class NvmeFraming:
    """A write's data come with it, or as H2CData; its header digest is made again for a refusal."""

    def __init__(self, connection: bytes, host_offset_bytes: int) -> None:
        self._connection = connection
        self._first_block = host_offset_bytes // 512
        """The mirror's own writes lie before it, and are not counted."""

    def wanted(self, from_opener: bool, head: bytes) -> int:
        common = nvme_tcp.COMMON_HEADER.size
        if len(head) < common:
            return common
        kind, flags, header_bytes, _, length = nvme_tcp.COMMON_HEADER.unpack_from(head)
        if nvme_tcp.HEADER_BYTES.get(kind) != header_bytes:
            return len(head)
        digest = nvme_tcp.DIGEST.size if flags & nvme_tcp.PduFlag.HEADER_DIGEST else 0
        return int(min(header_bytes + digest, max(length, common)))

    def message(self, from_opener: bool, head: bytes) -> FramePiece | None:
        kind, flags, header_bytes, data_at, length = nvme_tcp.COMMON_HEADER.unpack_from(head)
        is_right = nvme_tcp.HEADER_BYTES.get(kind) == header_bytes <= len(head)
        if not is_right or (kind in nvme_tcp.FROM_HOST) is not from_opener:
            return None
        digest = nvme_tcp.DIGEST.size if flags & nvme_tcp.PduFlag.DATA_DIGEST and data_at else 0
        data_bytes = length - data_at - digest if data_at else 0
        if kind == nvme_tcp.PduType.CAPSULE_CMD:
            opcode, _, cid, *_ = nvme_tcp.COMMAND.unpack_from(head, nvme_tcp.COMMAND_AT)
            block = nvme_tcp.COMMAND.unpack_from(head, nvme_tcp.COMMAND_AT)[7]
            if opcode == nvme_tcp.Opcode.WRITE and block >= self._first_block:
                return FramePiece(
                    length_bytes=length, kind="write", key=self._key(cid), data_at=data_at,
                    data_bytes=data_bytes,
                )  # fmt: skip
        elif kind == nvme_tcp.PduType.H2C_DATA:
            cid = nvme_tcp.DATA_HEADER.unpack_from(head, nvme_tcp.COMMON_HEADER.size)[0]
            return FramePiece(
                length_bytes=length, kind="data", key=self._key(cid), data_at=data_at,
                data_bytes=data_bytes,
            )  # fmt: skip
        elif kind == nvme_tcp.PduType.CAPSULE_RESP:
            cid = nvme_tcp.COMPLETION.unpack_from(head, nvme_tcp.COMPLETION_AT)[4]
            changes = _refusal(head, header_bytes)
            return FramePiece(
                length_bytes=length, kind="answer", key=self._key(cid), changes=changes
            )
        return FramePiece(length_bytes=length)

    def _key(self, cid: int) -> bytes:
        return self._connection + cid.to_bytes(2, "little")


def _refusal(head: bytes, header_bytes: int) -> tuple[tuple[int, int], ...]:
    refused = bytearray(head)
    refused[_STATUS_AT] |= _NVME_REFUSED & 0xFF
    refused[_STATUS_AT + 1] |= _NVME_REFUSED >> 8
    if len(head) > header_bytes:
        refused[header_bytes:] = nvme_tcp.DIGEST.pack(crc32c(bytes(refused[:header_bytes])))
    both = zip(head, refused, strict=True)
    return tuple((at, one ^ other) for at, (one, other) in enumerate(both) if one != other)


# --- NBD -------------------------------------------------------------------------------------------------
_ERROR_LOW_BYTE: Final = 7


class NbdFraming:
    """The client's requests say how long the server's answers are."""

    def __init__(self, connection: bytes, host_offset_bytes: int) -> None:
        self._connection = connection
        self._first_byte = host_offset_bytes
        self._has_begun = {True: False, False: False}
        """By direction: its greeting has passed."""
        self._reads: dict[bytes, int] = {}
        """Cookie -> bytes that its answer brings."""
        self._flags = 0
        self._awaits_export = False
        """EXPORT_NAME is answered without a magic number."""

    def wanted(self, from_opener: bool, head: bytes) -> int:
        if not self._has_begun[from_opener]:
            return (nbd.CLIENT_FLAGS if from_opener else nbd.GREETING).size
        if not from_opener and self._awaits_export:
            return nbd.EXPORT_NAME_REPLY.size
        if len(head) < 4:
            return 4
        magic = int.from_bytes(head[:4], "big")
        if from_opener:
            return (nbd.REQUEST if magic == nbd.REQUEST_MAGIC else nbd.OPTION).size
        return (nbd.SIMPLE_REPLY if magic == nbd.SIMPLE_REPLY_MAGIC else nbd.OPTION_REPLY).size

    def message(self, from_opener: bool, head: bytes) -> FramePiece | None:
        if not self._has_begun[from_opener]:
            self._has_begun[from_opener] = True
            if from_opener:
                (self._flags,) = nbd.CLIENT_FLAGS.unpack(head)
            elif head[:16] != nbd.INIT_MAGIC + nbd.OPTION_MAGIC:
                return None
            return FramePiece(length_bytes=len(head))
        return self._request(head) if from_opener else self._reply(head)

    def _request(self, head: bytes) -> FramePiece | None:
        if len(head) == nbd.OPTION.size:
            if head[:8] != nbd.OPTION_MAGIC:
                return None
            _, option, length = nbd.OPTION.unpack(head)
            self._awaits_export = option == nbd.Option.EXPORT_NAME
            return FramePiece(length_bytes=len(head) + length)
        magic, _, command, cookie, offset, length = nbd.REQUEST.unpack(head)
        if magic != nbd.REQUEST_MAGIC or length > MAX_MESSAGE_BYTES:
            return None
        key = self._connection + cookie.to_bytes(8, "big")
        if command == nbd.Command.READ and len(self._reads) < MAX_REMEMBERED:
            self._reads[key] = length
        if command != nbd.Command.WRITE:
            return FramePiece(length_bytes=len(head))
        is_hosts = offset >= self._first_byte
        return FramePiece(
            length_bytes=len(head) + length, kind="write" if is_hosts else "other", key=key,
            data_at=len(head), data_bytes=length,
        )  # fmt: skip

    def _reply(self, head: bytes) -> FramePiece | None:
        if self._awaits_export:
            self._awaits_export = False
            zeroes = 0 if self._flags & nbd.Handshake.NO_ZEROES else nbd.EXPORT_NAME_ZEROES
            return FramePiece(length_bytes=len(head) + zeroes)
        if len(head) == nbd.OPTION_REPLY.size:
            magic, _, _, length = nbd.OPTION_REPLY.unpack(head)
            whole = len(head) + length
            return FramePiece(length_bytes=whole) if magic == nbd.OPTION_REPLY_MAGIC else None
        _, error, cookie = nbd.SIMPLE_REPLY.unpack(head)
        key = self._connection + cookie.to_bytes(8, "big")
        length = self._reads.pop(key, 0)
        return FramePiece(
            length_bytes=len(head) + (0 if error else length), kind="answer", key=key,
            changes=((_ERROR_LOW_BYTE, nbd.Error.EIO),),
        )  # fmt: skip


FRAMINGS: Final[dict[str, Callable[[bytes, int], Framing]]] = {
    "drbd": DrbdFraming,
    "nvme_tcp": NvmeFraming,
    "nbd": NbdFraming,
}
"""By the name of the link's protocol: made of the connection's own bytes and where the host's data
begin."""
_ANY: Final = (
    FaultKind.BIT_FLIP_SENDER,
    FaultKind.NEG_ACK,
    FaultKind.LOST_ACK,
    FaultKind.LATE_ACK,
    FaultKind.STALL,
)


def kinds(protocol: str) -> tuple[FaultKind, ...]:
    """Fault kinds of wire.faults that the link can produce. The others happen inside a controller."""
    if protocol not in FRAMINGS:
        return ()
    return (*_ANY, FaultKind.WRONG_BARRIER_COUNT) if protocol == "drbd" else _ANY
