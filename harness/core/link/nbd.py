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

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    Closed,
    Hole,
    Leaving,
    LinkMessage,
    LinkSession,
    Malformed,
    Opened,
    Other,
    ReplicatedWrite,
    WriteKind,
)
from freezeframe.harness.core.link.pdus import Associations, NoPdu, Pdu, PduStream, Strays
from freezeframe.harness.core.link.protocol import API_VERSION, LinkOptions, Opening, Tell
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
class _Connection:
    """Both directions: the requests under way, and how far the negotiation is."""

    session: NbdLinkSession
    reads: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """Cookie -> bytes that a good answer carries."""
    writes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    strays: Strays = field(default_factory=Strays)
    export_name_asked: bool = False
    no_zeroes: bool = False
    agreed: bool = False


class NbdLink:
    """The protocol: see ``core.link.protocol.ReplicationProtocol``."""

    name: Final = "nbd"
    api_version: Final = API_VERSION
    ports: Final = (PORT,)
    tells: Final = frozenset({Tell.WRITE, Tell.ANSWER, Tell.STATUS})
    refuses_by: Final = "status"
    host_addresses: Final = False
    wireshark: Final = "nbd.handle == {write_id}"
    console_texts: Final[tuple[ConsoleText, ...]] = ()

    def __init__(self, options: LinkOptions) -> None:
        self.options = options
        self._connections: dict[int, _Connection] = {}
        self._associations = Associations(options, self._session)

    def connection(self, opening: Opening) -> NbdDirection | None:
        if not self._associations.is_pairs(opening):
            return None
        connection = self._connections.get(opening.connection)
        if connection is None:
            connection = _Connection(self._associations.new_session(opening))
            self._connections[opening.connection] = connection
        return NbdDirection(self, connection, opening)

    def forget(self, connection: int) -> None:
        """Drop a connection that is over."""
        self._connections.pop(connection, None)

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        return None

    def _session(self, number: int, ends: tuple[str, str], port: int, t_ns: Ns) -> NbdLinkSession:
        primary = self.options.primary_address
        return NbdLinkSession(number, ends, port, t_ns, primary_address=primary)


class NbdDirection:
    """One direction of one connection: see ``core.link.protocol.Direction``."""

    def __init__(self, link: NbdLink, connection: _Connection, opening: Opening) -> None:
        self._link = link
        self._both = connection
        self._connection = opening.connection
        self._fill = opening.fill
        self.sender = opening.source
        self._from_client: bool | None = None
        self._stream = PduStream(from_start=opening.from_start, measure=self._measure)
        self._greeted = not opening.from_start
        """The client's flags, four bytes without a magic, are behind."""
        self._foreign = False

    def begin(self) -> list[LinkMessage]:
        return []

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> list[LinkMessage]:
        out: list[LinkMessage] = []
        if self._foreign:
            return out
        for found in self._stream.pdus(data, t_ns, packet_no):
            if isinstance(found, Pdu):
                self._pdu(found, out)
            elif found.offset == 0 and not self._link.options.must_match:
                self._foreign = True
                self._fill.discard()
                break
            else:
                out.append(self._malformed(found))
        if self._stream.looking and not self._foreign:
            out.append(self._hole(t_ns))  # whatever passes until the next PDU is found is not seen
        return out

    def gap(self, length_bytes: int, t_ns: Ns) -> list[LinkMessage]:
        if self._foreign:
            return []
        self._stream.gap(length_bytes)
        self._both.reads.clear()
        self._both.writes.clear()
        self._both.strays.clear()
        return [self._hole(t_ns)]

    def _hole(self, t_ns: Ns) -> Hole:
        client = self._from_client
        session = self._both.session
        return Hole(session, self.sender, t_ns, client is not False, client is not True)

    def closed(self, t_ns: Ns, packet_no: int, reason: str) -> list[LinkMessage]:
        self._link.forget(self._connection)
        session = self._both.session
        if session.closed or self._foreign or self._from_client is None:
            return []
        session.closed = True
        return [Closed(session, t_ns, packet_no, self.sender, reason)]

    # --- PDUs ------------------------------------------------------------------------------------
    def _measure(self, data: bytearray, at: int) -> int | str:
        held = len(data) - at
        if held < _MAGIC.size:
            return 0
        magic = _MAGIC.unpack_from(data, at)[0]
        if magic == wire.REQUEST_MAGIC and self._from_client is not False:
            return _request_bytes(data, at)
        if magic == wire.SIMPLE_REPLY_MAGIC and self._from_client is not True:
            return self._reply_bytes(data, at)
        if magic == _STRUCTURED_MAGIC and self._from_client is not True:
            if held < _STRUCTURED_REPLY.size:
                return 0
            length = _STRUCTURED_REPLY.unpack_from(data, at)[4]
            if length > wire.MAX_REQUEST_BYTES:
                return f"a structured reply of {length} bytes"
            return _STRUCTURED_REPLY.size + int(length)
        if self._stream.looking:
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
        if self._from_client is not False and not self._greeted:
            return wire.CLIENT_FLAGS.size
        if self._from_client is False and self._both.export_name_asked:
            zeroes = 0 if self._both.no_zeroes else wire.EXPORT_NAME_ZEROES
            return wire.EXPORT_NAME_REPLY.size + zeroes
        return f"no message begins with {start[:4].hex()}"

    def _reply_bytes(self, data: bytearray, at: int) -> int | str:
        if len(data) - at < wire.SIMPLE_REPLY.size:
            return 0
        _, error, cookie = wire.SIMPLE_REPLY.unpack_from(data, at)
        key = cookie.to_bytes(8, "big")
        if error:
            return wire.SIMPLE_REPLY.size
        return wire.SIMPLE_REPLY.size + self._both.reads.get(key, 0)

    def _malformed(self, found: NoPdu) -> Malformed:
        return Malformed(
            self._both.session, self.sender, found.t_ns, found.packet_no, found.offset, found.what, found.excerpt
        )  # fmt: skip

    def _pdu(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body = pdu.body
        magic = _MAGIC.unpack_from(body)[0] if len(body) >= _MAGIC.size else 0
        if magic == wire.REQUEST_MAGIC:
            self._from_client = True if not pdu.tentative else self._from_client
            self._request(pdu, out)
        elif magic == wire.SIMPLE_REPLY_MAGIC:
            self._from_client = False if not pdu.tentative else self._from_client
            _, error, cookie = wire.SIMPLE_REPLY.unpack_from(body)
            self._answered(pdu, cookie.to_bytes(8, "big"), error, out)
        elif magic == _STRUCTURED_MAGIC:
            self._from_client = False if not pdu.tentative else self._from_client
            self._structured(pdu, out)
        else:
            self._negotiated(pdu, out)

    def _where(self, pdu: Pdu, name: str, clear_bytes: int) -> _Where:
        clear_bytes = 0 if pdu.tentative else clear_bytes
        return (
            self._both.session, self.sender, name, pdu.t_ns, pdu.packet_no, pdu.offset, clear_bytes, pdu.tentative
        )  # fmt: skip

    def _negotiated(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body, both, start = pdu.body, self._both, pdu.body[:8]
        name = "EXPORT_NAME_REPLY"
        if start == wire.INIT_MAGIC:
            self._from_client, name = False, "GREETING"
        elif start == wire.OPTION_MAGIC:
            self._from_client, name = True, "OPTION"
            option = wire.OPTION.unpack_from(body)[1]
            both.export_name_asked = option == wire.Option.EXPORT_NAME
        elif len(body) == wire.CLIENT_FLAGS.size:
            self._from_client, self._greeted, name = True, True, "CLIENT_FLAGS"
            flags = wire.CLIENT_FLAGS.unpack(body)[0]
            both.no_zeroes = bool(flags & wire.Handshake.NO_ZEROES)
        elif len(body) >= wire.OPTION_REPLY.size:
            self._from_client, name = False, "OPTION_REPLY"
        else:
            both.export_name_asked = False
        out.append(Other(*self._where(pdu, name, len(body))))

    def _request(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body, both = pdu.body, self._both
        _, _, command, cookie, offset_bytes, length_bytes = wire.REQUEST.unpack_from(body)
        key = cookie.to_bytes(8, "big")
        known = Command(command).name if command in Command._value2member_map_ else f"{command}"
        where = self._where(pdu, known, wire.REQUEST.size)
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
                    *where, (self._connection, key), key, kind, 0, at, length, data, body, pdu.t_first_ns,
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
            out.append(Other(*self._where(pdu, "STRUCTURED_REPLY", _STRUCTURED_REPLY.size)))

    def _answered(self, pdu: Pdu, key: bytes, error: int, out: list[LinkMessage]) -> None:
        both = self._both
        if key not in both.writes:
            is_reads = both.reads.pop(key, None) is not None
            if not is_reads:
                both.strays.answered(key, pdu)
            if not is_reads and not error:
                self._stream.doubt()  # its request was not captured: data may follow, nobody knows how much
            out.append(Other(*self._where(pdu, "REPLY", wire.SIMPLE_REPLY.size)))
            return
        del both.writes[key]
        known = (
            wire.Error(error).name if error in wire.Error._value2member_map_ else f"error {error}"
        )
        name = f"REPLY {known}" if error else "REPLY"
        kind: AnswerKind = "refused" if error else "ok"
        where = self._where(pdu, name, len(pdu.body))
        out.append(Answer(*where, (self._connection, key), key, kind, error, -1, 0, pdu.body))


_Where = tuple[LinkSession, str, str, Ns, int, int, int, bool]
"""The first fields of a Message."""


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
