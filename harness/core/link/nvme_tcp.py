"""NVMe/TCP as a protocol of the link: a mirror whose far leg is a remote namespace.

One TCP connection per queue, all to the controller's service port; the host opens queue 0 first. A
session is one controller association: the connections of two addresses, from the first until one
of them closes, because a controller that refuses data closes them all. A write travels in its
CapsuleCmd, or in H2CData PDUs after R2Ts; the CapsuleResp answers it by the command's id (cid), which
is unique within its queue while the command is under way. Which queue a connection is stands in its
Connect command; a capture that begins later finds it in the first completion where the controller
fills in the queue's id, as Linux does (Fabrics reserves that field), and knows the admin queue by a command that
names no namespace. There are no barriers: the host waits for completions instead.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crc32c import crc32c

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.messages import (
    Answer,
    Closed,
    Leaving,
    LinkMessage,
    LinkSession,
    Opened,
    Other,
    ReplicatedWrite,
    WriteKind,
    WritePart,
)
from freezeframe.harness.core.link.pdus import (
    EXCERPT_BYTES,
    Pdu,
    PduConnection,
    PduDirection,
    PduLink,
    Where,
)
from freezeframe.harness.core.link.protocol import Opening, Tell
from freezeframe.harness.wire import nvme_tcp as wire
from freezeframe.harness.wire.nvme_tcp import Opcode

_COMMON: Final = wire.COMMON_HEADER.size
_WRITE_ID: Final = struct.Struct("<HH")
"""queue, cid"""
_UNKNOWN_QUEUE: Final = 0xFFFF
_KINDS: Final[dict[int, WriteKind]] = {
    Opcode.WRITE: "write",
    Opcode.WRITE_ZEROES: "zero",
    Opcode.DATASET_MANAGEMENT: "trim",
    Opcode.FLUSH: "flush",
}
CONSOLE_TEXTS: Final = (
    # Linux nvmet-tcp names the command by its queue and its id, and prints both digests as numbers.
    ConsoleText(
        "digest",
        re.compile(
            rb"nvmet_tcp: queue (?P<queue>\d{1,5}): cmd (?P<cid>\d{1,5}) pdu \(\d{1,3}\) data digest error: "
            rb"recv (?P<recv>0x[0-9a-f]{1,8}) expected (?P<computed>0x[0-9a-f]{1,8})"
        ),
        write_id_text="queue {queue} cmd {cid}",
    ),
    # On the primary: the block layer's place on the far leg.
    ConsoleText(
        "refused",
        re.compile(rb"I/O error, dev nvme\w{1,16}, sector (?P<sector>\d{1,18}) op 0x1:\(WRITE\)"),
    ),
)


def shown_id(write_id: bytes) -> str:
    """As the kernel's lines name it: queue and command."""
    queue, cid = _WRITE_ID.unpack(write_id)
    known = "?" if queue == _UNKNOWN_QUEUE else str(queue)
    return f"queue {known} cmd {cid}"


@dataclass(eq=False)
class NvmeSession(LinkSession):
    """One controller association."""

    protocol: str = "nvme_tcp"
    resends: bool = True
    id_name: str = "command"
    show_id: Callable[[bytes], str] = shown_id
    block_bytes: int = 0
    """Of the namespace, as the lengths of its writes show it; 0 until one has."""
    agreed: str = ""
    """What its ends agreed on, for people."""
    has_admin_queue: bool = False


@dataclass(eq=False)
class _Command:
    """A write, zero, trim or flush that is not answered yet."""

    kind: WriteKind
    length_bytes: int
    write_id: bytes


@dataclass(eq=False)
class _Queue(PduConnection[NvmeSession]):
    """One connection: both of its directions."""

    number: int = -1
    """-1 while nothing captured has said it."""
    in_flight: dict[int, _Command] = field(default_factory=dict)
    """By cid, whose 16 bits bound it."""

    def lose_sight(self) -> None:
        super().lose_sight()
        self.in_flight.clear()

    def write_id(self, cid: int) -> bytes:
        return _WRITE_ID.pack(self.number if self.number >= 0 else _UNKNOWN_QUEUE, cid)


@dataclass(frozen=True, slots=True)
class _Header:
    """A PDU's common header, plausible in itself."""

    kind: int
    flags: int
    header_bytes: int
    data_at: int
    length_bytes: int

    @property
    def digest_bytes(self) -> int:
        return wire.DIGEST.size if self.flags & wire.PduFlag.HEADER_DIGEST else 0

    @property
    def data_digest_bytes(self) -> int:
        return wire.DIGEST.size if self.flags & wire.PduFlag.DATA_DIGEST and self.data_at else 0


def parse_header(
    data: bytes | bytearray | memoryview, at: int, from_host: bool | None
) -> _Header | str:
    """The common header at ``at``, or why these bytes are none. ``from_host`` None: either end."""
    kind, flags, header_bytes, data_at, length_bytes = wire.COMMON_HEADER.unpack_from(data, at)
    expected = wire.HEADER_BYTES.get(kind)
    if expected is None or header_bytes != expected:
        return f"no PDU begins with type {kind:#04x} and a header of {header_bytes} bytes"
    if from_host is not None and (kind in wire.FROM_HOST) is not from_host:
        return f"a PDU of type {wire.PduType(kind).name} from the wrong end"
    header = _Header(kind, flags, header_bytes, data_at, length_bytes)
    least = header_bytes + header.digest_bytes
    if data_at and (kind not in wire.WITH_DATA or data_at < least):
        return f"{wire.PduType(kind).name} with its data at byte {data_at}"
    if not max(least, data_at) + header.data_digest_bytes <= length_bytes <= wire.MAX_PDU_BYTES:
        return f"{wire.PduType(kind).name} of {length_bytes} bytes"
    if not data_at and length_bytes != least:
        return f"{wire.PduType(kind).name} of {length_bytes} bytes without data"
    return header


class NvmeLink(PduLink[NvmeSession, _Queue]):
    """The protocol: see ``core.link.protocol.ReplicationProtocol``."""

    name: Final = "nvme_tcp"
    ports: Final = (wire.PORT,)
    tells: Final = frozenset({Tell.WRITE, Tell.DIGEST, Tell.ANSWER, Tell.STATUS})
    refuses_by: Final = "closing"
    wireshark: Final = "nvme-tcp.cmd.cid == {write_id}"
    console_texts: tuple[ConsoleText, ...] = CONSOLE_TEXTS

    def make_session(self, number: int, ends: tuple[str, str], port: int, t_ns: Ns) -> NvmeSession:
        primary = self.options.primary_address
        return NvmeSession(number, ends, port, t_ns, primary_address=primary)

    def make_connection(self, opening: Opening) -> _Queue:
        return _Queue(self.associations.session_for(opening))

    def make_direction(self, both: _Queue, opening: Opening) -> NvmeDirection:
        return NvmeDirection(self, both, opening)


class NvmeDirection(PduDirection[_Queue]):
    """One direction of one queue's connection."""

    def measure(self, data: bytearray, at: int) -> int | str:
        if len(data) - at < _COMMON:
            return 0
        header = parse_header(data, at, self.sends_writes)
        if isinstance(header, str):
            return header
        end = at + header.header_bytes
        digest_end = end + header.digest_bytes
        # Bytes that only look like a header are not waited for.
        can_prove = self.stream.looking and header.digest_bytes and len(data) >= digest_end
        if can_prove and not _header_digest_is_right(data[at:digest_end], header):
            return "its header digest is wrong"
        return header.length_bytes

    def confirm(self, body: bytes) -> bool | None:
        """A PDU that was found by looking: its header digest, where it has one, is right."""
        header = parse_header(body, 0, None)
        assert not isinstance(header, str)
        return _header_digest_is_right(body, header) if header.digest_bytes else None

    # --- PDUs as messages ------------------------------------------------------------------------
    def take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body = pdu.body
        header = parse_header(body, 0, None)
        assert not isinstance(header, str)
        queue, name = self.both, wire.PduType(header.kind).name
        if not pdu.tentative:  # what only looks like one must not turn the direction round
            self.sends_writes = header.kind in wire.FROM_HOST
        where = self.where(pdu, name, header.data_at or header.length_bytes)
        if header.digest_bytes and not _header_digest_is_right(body, header):
            received = wire.DIGEST.unpack_from(body, header.header_bytes)[0]
            computed = crc32c(body[: header.header_bytes])
            what = f"{name}: header digest {received:#x}, computed {computed:#x}"
            out.append(self.malformed(what, body[:EXCERPT_BYTES], pdu))
            return
        match header.kind:
            case wire.PduType.CAPSULE_CMD:
                self._command(header, pdu, where, out)
            case wire.PduType.H2C_DATA:
                cid, _, at_bytes, _ = wire.DATA_HEADER.unpack_from(body, _COMMON)
                data, sent, computed = _checked_data(header, body, pdu.tentative)
                key = (self.opening.connection, cid)
                if cid in queue.in_flight:
                    part = WritePart(*where, key, at_bytes, data, _algorithm(sent), sent, computed)
                    out.append(part)
                else:
                    out.append(Other(*where))
            case wire.PduType.C2H_DATA if header.flags & wire.PduFlag.SUCCESS:
                # A read's last data, in place of a completion.
                queue.strays.forget(wire.DATA_HEADER.unpack_from(body, _COMMON)[0])
                out.append(Other(*where))
            case wire.PduType.CAPSULE_RESP:
                self._completion(pdu, where, out)
            case wire.PduType.IC_RESP:
                self._agreed(body, pdu.t_ns, where, out)
            case wire.PduType.H2C_TERM_REQ | wire.PduType.C2H_TERM_REQ:
                out.append(Leaving(*where))
            case _:
                out.append(Other(*where))

    def _agreed(self, body: bytes, t_ns: Ns, where: Where, out: list[LinkMessage]) -> None:
        session = self.both.session
        out.append(Other(*where))
        if session.agreed or where[-1]:
            return
        digests = wire.IC.unpack_from(body, _COMMON)[2]
        header = "on" if digests & wire.IC_DIGEST_HEADER else "off"
        data = "on" if digests & wire.IC_DIGEST_DATA else "off"
        session.agreed = f"NVMe/TCP, header digest {header}, data digest {data}"
        out.append(Opened(session, t_ns, session.agreed))

    def _command(
        self,
        header: _Header,
        pdu: Pdu,
        where: Where,
        out: list[LinkMessage],
    ) -> None:
        body = pdu.body
        queue, session = self.both, self.both.session
        opcode, _, cid, namespace, _, sgl_bytes, _, slba, blocks_less_1, _control, _ = (
            wire.COMMAND.unpack_from(body, wire.COMMAND_AT)
        )
        if opcode == wire.FABRICS_OPCODE:
            queue.strays.asked(cid)
            self._fabrics(body, where, out)
            return
        kind = _KINDS.get(opcode)
        is_admin = opcode in wire.ADMIN_OPCODES and not namespace
        if is_admin and queue.number < 0 and not pdu.tentative:
            queue.number, session.has_admin_queue = 0, True
        if kind is None or queue.number == 0:
            queue.in_flight.pop(cid, None)
            queue.strays.asked(cid)
            out.append(Other(*where))
            return
        data, sent, computed = _checked_data(header, body, pdu.tentative)
        blocks = blocks_less_1 + 1
        if kind == "write" and sgl_bytes and sgl_bytes % blocks == 0:
            session.block_bytes = sgl_bytes // blocks
        length, at_bytes = 0, 0
        if kind == "write":
            length, at_bytes = sgl_bytes, slba * session.block_bytes
        elif kind == "zero":
            length, at_bytes = blocks * session.block_bytes, slba * session.block_bytes
        if kind == "trim":
            queue.strays.asked(cid)
            out.append(Other(*where))  # its ranges are data; the answer says nothing of a copy
            return
        expects_answer = not queue.strays.has_answered(cid, pdu)
        if expects_answer:
            queue.in_flight[cid] = _Command(kind, length, queue.write_id(cid))
        out.append(
            ReplicatedWrite(
                *where, (self.opening.connection, cid), queue.write_id(cid), kind, 0, at_bytes, length, data, body,
                pdu.t_first_ns, pdu.first_packet_no, expects_answer, _algorithm(sent), sent, computed,
            )
        )  # fmt: skip

    def _fabrics(self, body: bytes, where: Where, out: list[LinkMessage]) -> None:
        kind = body[wire.COMMAND_AT + wire.FABRICS_TYPE_AT]
        if kind == wire.FABRICS_CONNECT:
            at = wire.COMMAND_AT + wire.CONNECT_QID_AT
            self.both.number = wire.CONNECT_QID.unpack_from(body, at)[0]
            if self.both.number == 0:
                self._begin_association(where, out)
        elif kind == wire.FABRICS_PROPERTY_SET:
            at = wire.COMMAND_AT + wire.PROPERTY_AT
            _, register, value = wire.PROPERTY.unpack_from(body, at)
            if register == wire.CONTROLLER_CONFIGURATION and value & wire.SHUTDOWN_MASK:
                out.append(Leaving(*where))
                return
        out.append(Other(*where))

    def _begin_association(self, where: Where, out: list[LinkMessage]) -> None:
        """The host opens queue 0 once per association: what came before this one is over, also where
        its end was not captured (a link that was cut)."""
        session = self.both.session
        if session.has_admin_queue:
            if not session.closed:
                session.closed = True
                out.append(Closed(session, where[3], where[4], "", "reopened"))
            agreed = session.agreed
            session = self.both.session = self.link.associations.new_session(self.opening)
            session.agreed = agreed
            out.append(Opened(session, where[3], session.agreed))
        session.has_admin_queue = True

    def _completion(self, pdu: Pdu, where: Where, out: list[LinkMessage]) -> None:
        queue, body = self.both, pdu.body
        _, _, _, queue_id, cid, status = wire.COMPLETION.unpack_from(body, wire.COMPLETION_AT)
        if queue.number < 0 and queue_id and not pdu.tentative:
            queue.number = queue_id
        command = queue.in_flight.pop(cid, None)
        if command is None:
            # A read's, an admin command's, or of a command from before the capture began.
            queue.strays.answered(cid, pdu)
            out.append(Other(*where))
            return
        code = status >> 1
        name = wire.STATUS_NAMES.get(code & wire.STATUS_CODE_MASK, f"status {code:#x}")
        named = (*where[:2], f"CAPSULE_RESP {name}", *where[3:])
        answer = Answer(
            *named, (self.opening.connection, cid), command.write_id, "refused" if code else "ok", code,
            -1, 0, body,
        )  # fmt: skip
        out.append(answer)


def _checked_data(header: _Header, body: bytes, tentative: bool) -> tuple[bytes, bytes, bytes]:
    """Data, digest on the wire and digest computed; the digests b"" where there is none."""
    if not header.data_at:
        return b"", b"", b""
    end = header.length_bytes - header.data_digest_bytes
    data = body[header.data_at : end]
    if not header.data_digest_bytes or tentative:
        return data, b"", b""
    return data, body[end : end + wire.DIGEST.size], wire.DIGEST.pack(crc32c(data))


def _algorithm(sent: bytes) -> str:
    return "crc32c" if sent else ""


def _header_digest_is_right(body: bytes | bytearray, header: _Header) -> bool:
    end = header.header_bytes
    return bool(crc32c(bytes(body[:end])) == wire.DIGEST.unpack_from(body, end)[0])
