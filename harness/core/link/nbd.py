"""NBD as a protocol of the link: a mirror whose far leg is a network block device.

One or several TCP connections, opened by the client. Nothing on the wire is digested, so what can be
seen is that each write was answered, once, in time and with success; whether its data were right, only
block stamps or a comparison can say. A reply names its request by the cookie alone, and the reply to a
read is as long as its request asked: a watcher that missed the request has lost the stream.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    Leaving,
    LinkMessage,
    LinkSession,
    Opened,
    Other,
    ReplicatedWrite,
    WriteKind,
)
from freezeframe.harness.core.link.pdus import Pdu, PduConnection, PduDirection, PduLink
from freezeframe.harness.core.link.protocol import Opening, Tell
from freezeframe.harness.wire import nbd as wire
from freezeframe.harness.wire.nbd import Command

PORT: Final = 10809
MAX_IN_FLIGHT: Final = 65_536
_MAGIC: Final = struct.Struct(">I")
_KINDS: Final[dict[int, WriteKind]] = {
    Command.WRITE: "write",
    Command.WRITE_ZEROES: "zero",
    Command.TRIM: "trim",
    Command.FLUSH: "flush",
}
_MAX_CLIENT_FLAGS: Final = 1 << 8
"""Two are defined; other clients' first bytes are text, or a magic."""
_STRUCTURED_MAGIC: Final = 0x668E33EF
_STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")
"""magic, flags (1: the last chunk), type, cookie, length; then that many bytes."""
_STRUCTURED_ERROR: Final = 0x8000
"""Bit of the type."""
_STRUCTURED_DONE: Final = 1


def shown_id(write_id: bytes) -> str:
    return f"0x{write_id.hex()}"


@dataclass(eq=False)
class NbdLinkSession(LinkSession):
    protocol: str = "nbd"
    id_name: str = "cookie"
    show_id: Callable[[bytes], str] = shown_id


@dataclass(eq=False)
class _Connection(PduConnection[NbdLinkSession]):
    """Both directions: the requests under way, and how far the negotiation is."""

    reads: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """Cookie -> bytes that a good answer carries."""
    writes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    export_name_asked: bool = False
    no_zeroes: bool = False
    agreed: bool = False

    def lose_sight(self) -> None:
        super().lose_sight()
        self.reads.clear()
        self.writes.clear()


class NbdLink(PduLink[NbdLinkSession, _Connection]):
    """The protocol: see ``core.link.protocol.ReplicationProtocol``."""

    name: Final = "nbd"
    ports: Final = (PORT,)
    tells: Final = frozenset({Tell.WRITE, Tell.ANSWER, Tell.STATUS})
    refuses_by: Final = "status"
    wireshark: Final = "nbd.handle == {write_id}"

    def make_session(
        self, number: int, ends: tuple[str, str], port: int, t_ns: Ns
    ) -> NbdLinkSession:
        primary = self.options.primary_address
        return NbdLinkSession(number, ends, port, t_ns, primary_address=primary)

    def make_connection(self, opening: Opening) -> _Connection:
        return _Connection(self.associations.new_session(opening))

    def make_direction(self, both: _Connection, opening: Opening) -> NbdDirection:
        return NbdDirection(self, both, opening)


class NbdDirection(PduDirection[_Connection]):
    """One direction of one connection."""

    def __init__(self, link: NbdLink, both: _Connection, opening: Opening) -> None:
        super().__init__(link, both, opening)
        self._greeted = not opening.from_start
        """The client's flags, four bytes without a magic, are behind."""

    # --- PDUs ------------------------------------------------------------------------------------
    def measure(self, data: bytearray, at: int) -> int | str:
        held = len(data) - at
        if held < _MAGIC.size:
            return 0
        magic = _MAGIC.unpack_from(data, at)[0]
        if magic == wire.REQUEST_MAGIC and self.sends_writes is not False:
            return _request_bytes(data, at)
        if magic == wire.SIMPLE_REPLY_MAGIC and self.sends_writes is not True:
            return self._reply_bytes(data, at)
        if magic == _STRUCTURED_MAGIC and self.sends_writes is not True:
            if held < _STRUCTURED_REPLY.size:
                return 0
            length = _STRUCTURED_REPLY.unpack_from(data, at)[4]
            if length > wire.MAX_REQUEST_BYTES:
                return f"a structured reply of {length} bytes"
            return _STRUCTURED_REPLY.size + int(length)
        if self.stream.looking:
            return f"no message begins with {magic:#010x}"
        return self._negotiation_bytes(data, at, held)

    def _negotiation_bytes(self, data: bytearray, at: int, held: int) -> int | str:
        """Greeting, options and their replies; they come before the first request only."""
        if held < 8:
            return 0
        start = bytes(data[at : at + 8])
        if start == wire.INIT_MAGIC:
            return wire.GREETING.size
        if start == wire.OPTION_MAGIC:
            if held < wire.OPTION.size:
                return 0
            length = int(wire.OPTION.unpack_from(data, at)[2])
            return wire.OPTION.size + length if length <= wire.MAX_OPTION_BYTES else "a long option"
        if int.from_bytes(start, "big") == wire.OPTION_REPLY_MAGIC:
            if held < wire.OPTION_REPLY.size:
                return 0
            length = int(wire.OPTION_REPLY.unpack_from(data, at)[3])
            fits = length <= wire.MAX_OPTION_BYTES
            return wire.OPTION_REPLY.size + length if fits else "a long option reply"
        flags = wire.CLIENT_FLAGS.unpack_from(start)[0]
        if self.sends_writes is not False and not self._greeted and flags < _MAX_CLIENT_FLAGS:
            return wire.CLIENT_FLAGS.size
        if self.sends_writes is False and self.both.export_name_asked:
            zeroes = 0 if self.both.no_zeroes else wire.EXPORT_NAME_ZEROES
            return wire.EXPORT_NAME_REPLY.size + zeroes
        return f"no message begins with {start[:4].hex()}"

    def _reply_bytes(self, data: bytearray, at: int) -> int | str:
        if len(data) - at < wire.SIMPLE_REPLY.size:
            return 0
        _, error, cookie = wire.SIMPLE_REPLY.unpack_from(data, at)
        key = cookie.to_bytes(8, "big")
        if error:
            return wire.SIMPLE_REPLY.size
        return wire.SIMPLE_REPLY.size + self.both.reads.get(key, 0)

    def is_own(self, pdu: Pdu) -> bool:
        """The client's flags are four bytes that many a protocol begins with."""
        return len(pdu.body) > wire.CLIENT_FLAGS.size

    def take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body = pdu.body
        magic = _MAGIC.unpack_from(body)[0] if len(body) >= _MAGIC.size else 0
        if magic == wire.REQUEST_MAGIC:
            self.sends_writes = True if not pdu.tentative else self.sends_writes
            self._request(pdu, out)
        elif magic == wire.SIMPLE_REPLY_MAGIC:
            self.sends_writes = False if not pdu.tentative else self.sends_writes
            _, error, cookie = wire.SIMPLE_REPLY.unpack_from(body)
            self._answered(pdu, cookie.to_bytes(8, "big"), error, out)
        elif magic == _STRUCTURED_MAGIC:
            self.sends_writes = False if not pdu.tentative else self.sends_writes
            self._structured(pdu, out)
        else:
            self._negotiated(pdu, out)

    def _negotiated(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body, both, start = pdu.body, self.both, pdu.body[:8]
        name = "EXPORT_NAME_REPLY"
        if start == wire.INIT_MAGIC:
            self.sends_writes, name = False, "GREETING"
        elif start == wire.OPTION_MAGIC:
            self.sends_writes, name = True, "OPTION"
            option = wire.OPTION.unpack_from(body)[1]
            both.export_name_asked = option == wire.Option.EXPORT_NAME
        elif len(body) == wire.CLIENT_FLAGS.size:
            self.sends_writes, self._greeted, name = True, True, "CLIENT_FLAGS"
            flags = wire.CLIENT_FLAGS.unpack(body)[0]
            both.no_zeroes = bool(flags & wire.Handshake.NO_ZEROES)
        elif len(body) >= wire.OPTION_REPLY.size:
            self.sends_writes, name = False, "OPTION_REPLY"
        else:
            both.export_name_asked = False
        out.append(Other(*self.where(pdu, name, len(body))))

    def _request(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body, both = pdu.body, self.both
        _, _, command, cookie, offset_bytes, length_bytes = wire.REQUEST.unpack_from(body)
        key = cookie.to_bytes(8, "big")
        known = Command(command).name if command in Command._value2member_map_ else f"{command}"
        where = self.where(pdu, known, wire.REQUEST.size)
        if not both.agreed and not pdu.tentative:
            both.agreed = True
            out.append(Opened(both.session, pdu.t_ns, "NBD, no digest on the wire"))
        if command == Command.DISC:
            out.append(Leaving(*where))
            return
        both.reads.pop(key, None)
        both.writes.pop(key, None)
        kind = _KINDS.get(command)
        if kind is None:
            both.reads[key] = length_bytes if command == Command.READ else 0
            out.append(Other(*where))
        else:
            expects_answer = not both.strays.has_answered(key, pdu)
            if expects_answer:
                both.writes[key] = None
            at, length = (0, 0) if kind == "flush" else (offset_bytes, length_bytes)
            data = body[wire.REQUEST.size :]
            out.append(
                ReplicatedWrite(
                    *where, (self.opening.connection, key), key, kind, 0, at, length, data, body, pdu.t_first_ns,
                    pdu.first_packet_no, expects_answer,
                )
            )  # fmt: skip
        for table in (both.reads, both.writes):
            while len(table) > MAX_IN_FLIGHT:
                table.popitem(last=False)

    def _structured(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        _, flags, kind, cookie, _ = _STRUCTURED_REPLY.unpack_from(pdu.body)
        error = 0
        if kind & _STRUCTURED_ERROR and len(pdu.body) >= _STRUCTURED_REPLY.size + _MAGIC.size:
            error = _MAGIC.unpack_from(pdu.body, _STRUCTURED_REPLY.size)[0]
        if error or flags & _STRUCTURED_DONE:
            self._answered(pdu, cookie.to_bytes(8, "big"), error, out)
        else:
            out.append(Other(*self.where(pdu, "STRUCTURED_REPLY", _STRUCTURED_REPLY.size)))

    def _answered(self, pdu: Pdu, key: bytes, error: int, out: list[LinkMessage]) -> None:
        both = self.both
        if key not in both.writes:
            is_reads = both.reads.pop(key, None) is not None
            if not is_reads:
                both.strays.answered(key, pdu)
            if not is_reads and not error:
                self.stream.doubt()  # its request was not captured: data may follow, nobody knows how much
            out.append(Other(*self.where(pdu, "REPLY", wire.SIMPLE_REPLY.size)))
            return
        del both.writes[key]
        known = (
            wire.Error(error).name if error in wire.Error._value2member_map_ else f"error {error}"
        )
        name = f"REPLY {known}" if error else "REPLY"
        kind: AnswerKind = "refused" if error else "ok"
        where = self.where(pdu, name, len(pdu.body))
        out.append(
            Answer(*where, (self.opening.connection, key), key, kind, error, -1, 0, pdu.body)
        )


def _request_bytes(data: bytearray, at: int) -> int | str:
    if len(data) - at < wire.REQUEST.size:
        return 0
    _, _, command, _, _, length = wire.REQUEST.unpack_from(data, at)
    if command not in Command._value2member_map_:
        return f"no request has the type {command}"
    if command != Command.WRITE:
        return wire.REQUEST.size
    if length > wire.MAX_REQUEST_BYTES:
        return f"a write of {length} bytes"
    return wire.REQUEST.size + int(length)
