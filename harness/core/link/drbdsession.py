"""Replication sessions: the two TCP connections of one pair of nodes, and what both ends agreed on
over them.

One session = one data socket and one meta socket between the same two addresses on the same service
port, from their opening to the closing of the meta socket. Its ends agree on a protocol version
(CONNECTION_FEATURES) and on an integrity algorithm (PROTOCOL, PROTOCOL_UPDATE), which both sockets
share. Either end may have opened either socket.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import crc32c
import msgspec

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.drbdstream import (
    ANY_HEADER,
    DrbdPacket,
    DrbdStream,
    Malformed,
    allowed_headers,
    split_state,
)
from freezeframe.harness.core.link.tcpstream import (
    Flow,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

MAX_SESSIONS: Final = 64
"""Pairs of addresses and port that are told apart at once; a rig has one or two."""
_U32_LE: Final = struct.Struct("<I")
_WIRE_PROTOCOL_A: Final = 1
_WANTS_ACK: Final = int(drbd.DpFlag.SEND_WRITE_ACK | drbd.DpFlag.SEND_RECEIVE_ACK)
"""A plain number: the operators of IntFlag take microseconds, and each write is asked."""
_LEAVING: Final = frozenset({drbd.Conn.DISCONNECTING, drbd.Conn.TEAR_DOWN, drbd.Conn.STANDALONE})
_HANDSHAKE: Final = frozenset({Cmd.INITIAL_DATA, Cmd.INITIAL_META})
_CONN_SHIFT, _CONN_WIDTH = drbd.STATE_FIELDS["conn"]
_CONN_MASK: Final = (1 << _CONN_WIDTH) - 1 << _CONN_SHIFT


@dataclass(frozen=True)
class Integrity:
    """An integrity algorithm of the replication link: a digest over the data of a packet, in front
    of that data."""

    name: str
    size_bytes: int
    digest: Callable[[bytes | memoryview], bytes] | None
    """None: the size is known and the algorithm is not, so that nothing can be checked."""


def _crc32c(data: bytes | memoryview) -> bytes:
    return _U32_LE.pack(crc32c.crc32c(data))


def _hash(name: str) -> Callable[[bytes | memoryview], bytes]:
    return lambda data: hashlib.new(name, data, usedforsecurity=False).digest()


INTEGRITY: Final[dict[str, Integrity]] = {
    "": Integrity("", 0, None),
    "crc32c": Integrity("crc32c", 4, _crc32c),
    "md5": Integrity("md5", 16, _hash("md5")),
    "sha1": Integrity("sha1", 20, _hash("sha1")),
    "sha224": Integrity("sha224", 28, _hash("sha224")),
    "sha256": Integrity("sha256", 32, _hash("sha256")),
    "sha384": Integrity("sha384", 48, _hash("sha384")),
    "sha512": Integrity("sha512", 64, _hash("sha512")),
}
"""By the kernel's names, as P_PROTOCOL carries them. "" is no integrity check."""


@dataclass(eq=False)
class Session:
    """One peer connection of two nodes."""

    number: int
    addresses: tuple[str, str]
    port: int
    t_opened_ns: Ns
    primary_address: str = ""
    """Whose side is "primary"; "" until the first write tells, when the bench did not say."""
    version: int = 0
    """Agreed protocol version; 0 until both ends have told what they offer."""
    wire_protocol: int = 0
    """1 A, 2 B, 3 C; 0 until P_PROTOCOL."""
    offers: dict[str, tuple[int, int]] = field(default_factory=dict)
    algorithms: dict[str, str] = field(default_factory=dict)
    """Address -> integrity algorithm that it announced."""
    assumed_algorithm: str = ""
    """Taken for an end whose P_PROTOCOL was not captured; "" is then unknown."""
    leaving: bool = False
    """An end has announced that it disconnects: writes that it leaves unacknowledged are no
    error."""
    ending: bool = False
    """Its data socket is closing: the next connection that opens begins another session."""
    closed: bool = False
    data: int = -1
    """Number of the TCP connection that is the data socket."""
    meta: int = -1

    def integrity(self, sender: str, data_bytes: int) -> Integrity | None:
        """How ``sender`` protects a packet with ``data_bytes`` of digest and data. None: digest and
        data disagree.

        Data is whole sectors, so that an unknown algorithm's digest has the bytes that are left
        over.
        """
        announced = self.algorithms.get(sender)
        if announced is None and self.algorithms:
            announced = next(iter(self.algorithms.values()))
        left_over = data_bytes % drbd.SECTOR_BYTES
        if announced is None:
            assumed = INTEGRITY.get(self.assumed_algorithm) if self.assumed_algorithm else None
            if assumed is not None and assumed.size_bytes == left_over:
                return assumed
            return Integrity("unknown", left_over, None)
        known = INTEGRITY.get(announced)
        if known is None:
            return Integrity(announced, left_over, None)
        return known if known.size_bytes == left_over and data_bytes >= left_over else None

    def side_of(self, address: str) -> Side:
        return "primary" if address == self.primary_address else "secondary"

    def expects_ack(self, header: int, dp_flags: int) -> bool:
        """Whether the receiver of a write has to answer it by itself (protocols B and C)."""
        if header == 100:
            return bool(dp_flags & _WANTS_ACK)
        return self.wire_protocol > _WIRE_PROTOCOL_A


class Seen(msgspec.Struct, frozen=True, eq=False):
    """A packet, in its session."""

    session: Session
    sender: str
    packet: DrbdPacket


class Broken(msgspec.Struct, frozen=True, eq=False):
    """Bytes of ``sender`` that are no packet, or a packet on the wrong socket."""

    session: Session
    sender: str
    malformed: Malformed


class Blind(msgspec.Struct, frozen=True, eq=False):
    """The capture lacks bytes that ``sender`` sent on that socket; "" is a socket not known yet."""

    session: Session
    sender: str
    socket: Literal["data", "meta", ""]
    t_ns: Ns


class SessionClosed(msgspec.Struct, frozen=True, eq=False):
    session: Session
    t_ns: Ns
    packet_no: int
    closer: str
    """Address of the end that closed; "" when that was not captured."""
    reason: str
    """As StreamClosed.reason, or reopened."""


SessionEvent = Seen | Broken | Blind | SessionClosed


@dataclass(eq=False)
class _Channel:
    """One direction of one TCP connection of a session."""

    session: Session
    sender: str
    connection: int
    stream: DrbdStream
    socket: Literal["data", "meta", ""] = ""
    used: bool = False
    """Has carried more than its first packet: only then is its closing the session's."""
    foreign: bool = False
    """Its first bytes were not DRBD's, and no port says that they must be: left alone."""


class Dissector:
    """Stream events in, session events out. ``addresses`` limits it to the connections between
    these two nodes."""

    def __init__(
        self,
        *,
        primary_address: str = "",
        secondary_address: str = "",
        integrity_alg: str = "",
        must_be_drbd: bool = False,
    ) -> None:
        """``must_be_drbd``: the caller picked the connections by port, so that other bytes are an
        error."""
        self.drbd_packets = 0
        self._primary = primary_address
        self._pair = frozenset({primary_address, secondary_address}) - {""}
        self._integrity_alg = integrity_alg
        self._must_be_drbd = must_be_drbd
        self._channels: dict[int, _Channel] = {}
        self._sessions: dict[tuple[str, str, int], Session] = {}
        self._service_ports: dict[int, int] = {}
        self._numbers = 0

    def on(self, event: StreamEvent) -> list[SessionEvent]:
        match event:
            case StreamData():
                channel = self._channels.get(event.flow.number)
                return [] if channel is None or channel.foreign else self._data(channel, event)
            case StreamOpened():
                return self._opened(event)
            case StreamGap():
                return self._gap(event)
            case StreamClosed():
                return self._closed(event)

    def _opened(self, event: StreamOpened) -> list[SessionEvent]:
        flow = event.flow
        if not self._pair <= {flow.source, flow.destination}:
            flow.fill.discard()
            return []
        out: list[SessionEvent] = []
        session = self._session_for(flow, event, out)
        stream = DrbdStream(from_start=event.from_start, headers=_headers(session), fill=flow.fill)
        self._channels[flow.number] = _Channel(session, flow.source, flow.connection, stream)
        return out

    def _session_for(self, flow: Flow, event: StreamOpened, out: list[SessionEvent]) -> Session:
        """The session that this connection belongs to: the pair's current one, or a new one once
        that is closed."""
        for channel in self._channels.values():
            if channel.connection == flow.connection:
                return channel.session
        if event.opener:
            port = flow.destination_port
        elif event.from_start:
            port = flow.source_port
        else:
            port = min(flow.source_port, flow.destination_port)
        a, b = sorted((flow.source, flow.destination))
        key = (a, b, port)
        session = self._sessions.get(key)
        if session is not None and session.ending and not session.closed:
            session.closed = True
            out.append(SessionClosed(session, event.t_ns, event.packet_no, "", "reopened"))
        if session is None or session.closed:
            self._numbers += 1
            session = Session(
                self._numbers,
                (a, b),
                port,
                event.t_ns,
                self._primary,
                assumed_algorithm=self._integrity_alg,
            )
            self._sessions.pop(key, None)
            self._sessions[key] = session
            while len(self._sessions) > MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
        return session

    def _data(self, channel: _Channel, event: StreamData) -> list[SessionEvent]:
        out: list[SessionEvent] = []
        for found in channel.stream.feed(event.data, event.t_ns, event.packet_no):
            if type(found) is DrbdPacket:
                self.drbd_packets += 1
                self._packet(channel, found, out)
            elif type(found) is Malformed:
                if found.offset == 0 and not self._must_be_drbd:
                    channel.foreign = True
                    event.flow.fill.discard()
                    return out
                out.append(Broken(channel.session, channel.sender, found))
        return out

    def _packet(self, channel: _Channel, packet: DrbdPacket, out: list[SessionEvent]) -> None:
        command = packet.command
        if not channel.socket:
            self._bind(channel, command)
        allowed = drbd.META_SOCKET if channel.socket == "meta" else drbd.DATA_SOCKET
        if channel.socket and command not in allowed and not packet.tentative:
            what = f"{packet.name} on the {channel.socket} socket"
            wrong = Malformed(
                packet.t_ns, packet.packet_no, packet.offset, what, bytes(packet.body[:32])
            )
            out.append(Broken(channel.session, channel.sender, wrong))
            return
        if command not in _HANDSHAKE:
            channel.used = True
        if command in _TELLING:
            self._learn(channel, packet)
        out.append(Seen(channel.session, channel.sender, packet))

    def _bind(self, channel: _Channel, command: int) -> None:
        """The first packet that only one kind of socket carries says which this is, for both
        directions."""
        in_data, in_meta = command in drbd.DATA_SOCKET, command in drbd.META_SOCKET
        if in_data == in_meta:
            return
        session = channel.session
        if in_data:
            session.data = channel.connection
        else:
            session.meta = channel.connection
        for other in self._channels.values():
            if other.connection == channel.connection:
                other.socket = "data" if in_data else "meta"

    def _learn(self, channel: _Channel, packet: DrbdPacket) -> None:
        """What the two ends tell each other about the session."""
        session, sender, fields = channel.session, channel.sender, packet.fields()
        match packet.command:
            case Cmd.CONNECTION_FEATURES:
                session.offers[sender] = (fields["protocol_min"], fields["protocol_max"])
                if len(session.offers) == 2:
                    session.version = min(highest for _, highest in session.offers.values())
                    self._apply_version(session)
            case Cmd.PROTOCOL | Cmd.PROTOCOL_UPDATE:
                session.wire_protocol = fields["protocol"]
                session.algorithms[sender] = fields["integrity_alg"]
            case Cmd.STATE_CHG_REQ | Cmd.CONN_ST_CHG_REQ:
                if fields["mask"] & _CONN_MASK and split_state(fields["val"])["conn"] in _LEAVING:
                    session.leaving = True
            case Cmd.STATE if fields["conn"] in _LEAVING:
                session.leaving = True
            case _:
                pass

    def _apply_version(self, session: Session) -> None:
        for channel in self._channels.values():
            if channel.session is session:
                channel.stream.headers = _headers(session)

    def _gap(self, event: StreamGap) -> list[SessionEvent]:
        channel = self._channels.get(event.flow.number)
        if channel is None or channel.foreign:
            return []
        channel.stream.gap(event.length_bytes)
        return [Blind(channel.session, channel.sender, channel.socket, event.t_ns)]

    def _closed(self, event: StreamClosed) -> list[SessionEvent]:
        channel = self._channels.pop(event.flow.number, None)
        if channel is None:
            return []
        session = channel.session
        if session.closed or not channel.used:
            return []
        if channel.connection == session.data:
            session.ending = True
            if session.meta >= 0:
                return []  # acknowledgements come over the meta socket: some may still be under way
        elif channel.connection != session.meta:
            return []
        session.closed = True
        return [SessionClosed(session, event.t_ns, event.packet_no, channel.sender, event.reason)]


_TELLING: Final = frozenset(
    {
        Cmd.CONNECTION_FEATURES, Cmd.PROTOCOL, Cmd.PROTOCOL_UPDATE, Cmd.STATE_CHG_REQ, Cmd.CONN_ST_CHG_REQ,
        Cmd.STATE,
    }
)  # fmt: skip


def _headers(session: Session) -> frozenset[int]:
    return allowed_headers(session.version) if session.version else ANY_HEADER
