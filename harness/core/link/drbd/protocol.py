"""DRBD as a protocol of the link: its two TCP connections a session, what both ends agree on over
them, and its packets as messages.

One session = one data socket and one meta socket between the same two addresses on the same service
port, from their opening to the closing of the meta socket. Its ends agree on a protocol version
(CONNECTION_FEATURES) and on an integrity algorithm (PROTOCOL, PROTOCOL_UPDATE), which both sockets
share. Either end may have opened either socket.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final, Literal

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.drbd import rejoin
from freezeframe.harness.core.link.drbd.session import DrbdLinkSession
from freezeframe.harness.core.link.drbd.stream import (
    ANY_HEADER,
    BadBytes,
    DrbdPacket,
    DrbdStream,
    allowed_headers,
    split_state,
)
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    Barrier,
    BarrierAnswer,
    Closed,
    Hole,
    Leaving,
    LinkMessage,
    LinkSession,
    Malformed,
    Opened,
    Other,
    ReplicatedWrite,
    Resync,
    WriteKind,
)
from freezeframe.harness.core.link.protocol import API_VERSION, LinkOptions, Opening, Tell
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

CONSOLE_TEXTS: Final = (
    ConsoleText(
        "digest",
        re.compile(rb"Digest integrity check FAILED: (?P<sector>\d{1,18})s \+(?P<length>\d{1,9})"),
    ),
    ConsoleText(
        "out-of-sync",
        re.compile(rb"Out of sync: start=(?P<sector>\d{1,18}), size=(?P<sectors>\d{1,9})"),
    ),
    ConsoleText(
        "answer",
        re.compile(rb"failed to find request 0x[0-9a-f]+, sector (?P<sector>\d{1,18})"),
    ),
)
"""As DRBD's module prints them, 8.4 and 9."""
MAX_SESSIONS: Final = 64
"""Pairs of addresses and port that are distinguished at once; a rig has one or two."""
_LEAVING: Final = frozenset({drbd.Conn.DISCONNECTING, drbd.Conn.TEAR_DOWN, drbd.Conn.STANDALONE})
_HANDSHAKE: Final = frozenset({Cmd.INITIAL_DATA, Cmd.INITIAL_META})
_CONN_SHIFT, _CONN_WIDTH = drbd.STATE_FIELDS["conn"]
_CONN_MASK: Final = (1 << _CONN_WIDTH) - 1 << _CONN_SHIFT
_ANY_NODE: Final = -1
_NODE_IDS: Final = struct.Struct(">II")
"""sender and receiver, in what 8.4 keeps for later of CONNECTION_FEATURES."""
_TWOPC_IDS: Final = struct.Struct(">xxxxIxxbbxxxxxxxxxxxxxxxxII")
"""flags (or, without FEATURE_2PC_V2, the initiator), initiator, target; mask and val of a state
change."""
_HAS_FLAGS: Final = 1 << 31
_DIGITS_63: Final = (1 << 63) - 1
_DATA_SOCKET, _META_SOCKET = drbd.DATA_SOCKET, drbd.META_SOCKET
_DATA_FIELDS: Final = drbd.P_DATA.unpack_from
_BLOCK_ACK: Final = drbd.P_BLOCK_ACK.unpack_from
_ID_SYNCER: Final = drbd.ID_SYNCER
_DATA_BYTES: Final = drbd.P_DATA.size
_SECTOR_BYTES: Final = drbd.SECTOR_BYTES
_DATA: Final = int(Cmd.DATA)
_EXCERPT_BYTES: Final = 32


class DrbdLink:
    """The protocol: see ``core.link.protocol.ReplicationProtocol``."""

    name: Final = "drbd"
    api_version: Final = API_VERSION
    ports: Final = (drbd.PORT,)
    tells: Final = frozenset(Tell)
    refuses_by: Final = "closing"
    host_addresses: Final = True
    answers_elsewhere: Final = True
    wireshark: Final = "drbd.block_id == {write_id}"
    console_texts: Final = CONSOLE_TEXTS

    def __init__(
        self,
        options: LinkOptions,
        tap: Callable[[str, DrbdPacket], object] | None = None,
    ) -> None:
        """``tap`` gets each packet, with its sender's address, before it becomes a message."""
        self.options = options
        self.tap = tap
        self.directions: dict[int, DrbdDirection] = {}
        self._pair = frozenset({options.primary_address, options.secondary_address}) - {""}
        self._sessions: dict[tuple[str, str, int], DrbdLinkSession] = {}
        self._numbers = 0

    def connection(self, opening: Opening) -> DrbdDirection | None:
        if not self._pair <= {opening.source, opening.destination}:
            return None
        first: list[LinkMessage] = []
        session = self._session_for(opening, first)
        direction = DrbdDirection(self, session, opening, first)
        self.directions[opening.flow] = direction
        return direction

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        """A secondary logs the low 63 bits of the cookie, which is its own peer's number."""
        return int.from_bytes(write_id, "big") & _DIGITS_63 if side == "secondary" else None

    def _session_for(self, opening: Opening, out: list[LinkMessage]) -> DrbdLinkSession:
        """The session that this connection belongs to: the pair's current one, or a new one once
        that is closed."""
        for direction in self.directions.values():
            if direction.connection == opening.connection:
                return direction.session
        port = opening.service_port
        a, b = sorted((opening.source, opening.destination))
        key = (a, b, port)
        session = self._sessions.get(key)
        if session is not None and session.ending and not session.closed:
            session.closed = True
            out.append(Closed(session, opening.t_ns, opening.packet_no, "", "reopened"))
        if session is None or session.closed:
            self._numbers += 1
            session = DrbdLinkSession(
                self._numbers,
                (a, b),
                port,
                opening.t_ns,
                primary_address=self.options.primary_address,
                assumed_algorithm=self.options.integrity_alg,
            )
            self._sessions.pop(key, None)
            self._sessions[key] = session
            while len(self._sessions) > MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
        return session


class DrbdDirection:
    """One direction of one socket: see ``core.link.protocol.Direction``."""

    def __init__(
        self, link: DrbdLink, session: DrbdLinkSession, opening: Opening, first: list[LinkMessage]
    ) -> None:
        self.session = session
        self.sender = opening.source
        self.connection = opening.connection
        self.socket: Literal["data", "meta", ""] = ""
        self.is_bound = False
        """Which socket it is, is certain."""
        self.stream = DrbdStream(
            from_start=opening.from_start, headers=_headers(session), fill=opening.fill
        )
        self._flow = opening.flow
        self._fill = opening.fill
        self._link = link
        self._first = first
        self.spoke = False
        """A packet of DRBD came in it."""
        self._used = False
        """Has carried more than its first packet: only then is its closing the session's."""
        self._foreign = False
        """Its first bytes were not DRBD's, and no port says that they must be: left alone."""

    def begin(self) -> list[LinkMessage]:
        first, self._first = self._first, []
        return first

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> list[LinkMessage]:
        out: list[LinkMessage] = []
        if self._foreign:
            return out
        for found in self.stream.feed(data, t_ns, packet_no):
            if type(found) is DrbdPacket:
                self._packet(found, out)
            elif type(found) is BadBytes:
                if found.offset == 0 and self._is_stranger():
                    self._foreign = True
                    self._fill.discard()
                    return out
                self._malformed(found, out)
        return out

    def _is_stranger(self) -> bool:
        """Whether these first bytes, which are not DRBD's, may be anybody's: a health check that opens
        the port is no error of the pair. On a connection whose other end speaks DRBD they are one."""
        if not self._link.options.must_match:
            return True
        return not any(
            other.spoke
            for other in self._link.directions.values()
            if other.connection == self.connection
        )

    def gap(self, length_bytes: int, t_ns: Ns) -> list[LinkMessage]:
        if self._foreign:
            return []
        self.stream.gap(length_bytes)
        return [self._hole(t_ns)]

    def closed(self, t_ns: Ns, packet_no: int, reason: str) -> list[LinkMessage]:
        self._link.directions.pop(self._flow, None)
        session = self.session
        if session.closed or not self._used:
            return []
        if self.connection == session.data:
            session.ending = True
            if session.meta >= 0:
                return []  # answers come over the meta socket: some may still be under way
        elif self.connection != session.meta:
            return []
        session.closed = True
        return [Closed(session, t_ns, packet_no, self.sender, reason)]

    def _packet(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        command = packet.command
        self.spoke = True
        if self._link.tap is not None:
            self._link.tap(self.sender, packet)
        if not self.is_bound:
            self._bind(packet)
        allowed = _META_SOCKET if self.socket == "meta" else _DATA_SOCKET
        is_wrong = self.is_bound and command not in allowed and command in _PLACED
        if is_wrong and not packet.tentative:
            self._malformed(self._wrong(packet, f"{packet.name} on the {self.socket} socket"), out)
            return
        if command not in _HANDSHAKE:
            self._used = True
        if command in _TELLING:
            self._learn(packet, out)
        translate = _MESSAGES.get(command)
        if translate is None:
            out.append(Other(*self._where(packet, packet.clear_bytes)))
        else:
            translate(self, packet, out)

    def _bind(self, packet: DrbdPacket) -> None:
        """The first packet that only one kind of socket carries says which this is, for both
        directions."""
        command = packet.command
        in_data = command in drbd.DATA_SOCKET or command in drbd.DATA_SOCKET_9
        in_meta = command in drbd.META_SOCKET or command in drbd.META_SOCKET_9
        if in_data == in_meta or command == Cmd.PEERS_IN_SYNC:
            return
        if not self.socket or not packet.tentative:
            self.bind("data" if in_data else "meta", is_sure=not packet.tentative)

    def bind(self, socket: Literal["data", "meta"], *, is_sure: bool = True) -> None:
        """See ``proof.ReadDirection``. ``is_sure`` False: by what may be data that look like a packet."""
        if socket == "data":
            self.session.data = self.connection
        else:
            self.session.meta = self.connection
        for other in self._link.directions.values():
            if other.connection == self.connection:
                other.socket, other.is_bound = socket, is_sure

    def _learn(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        """What the two ends tell each other about the session."""
        session, sender, fields = self.session, self.sender, packet.fields()
        leaving = False
        match packet.command:
            case Cmd.CONNECTION_FEATURES | Cmd.PROTOCOL | Cmd.PROTOCOL_UPDATE if packet.tentative:
                return  # they come first: in the middle they may be a host's data
            case Cmd.CONNECTION_FEATURES:
                session.offers[sender] = (fields["protocol_min"], fields["protocol_max"])
                session.nodes[sender] = _NODE_IDS.unpack_from(fields["reserved"])[0]
                if len(session.offers) == 2:
                    session.version = min(highest for _, highest in session.offers.values())
                    self._apply_version()
                    out.append(Opened(session, packet.t_ns, f"DRBD protocol {session.version}"))
            case Cmd.PROTOCOL | Cmd.PROTOCOL_UPDATE:
                session.wire_protocol = fields["protocol"]
                session.algorithms[sender] = fields["integrity_alg"]
            case Cmd.STATE_CHG_REQ | Cmd.CONN_ST_CHG_REQ:
                asked = split_state(fields["val"])["conn"]
                leaving = bool(fields["mask"] & _CONN_MASK) and asked in _LEAVING
            case Cmd.TWOPC_PREPARE:
                leaving = self._prepares_to_leave(packet)
            case Cmd.TWOPC_ABORT:
                where = self._where(packet, packet.clear_bytes)
                out.append(Leaving(*where, is_off=True))
            case Cmd.DISCONNECT:
                leaving = True
            case _:
                leaving = fields["conn"] in _LEAVING
        if leaving:
            out.append(Leaving(*self._where(packet, packet.clear_bytes)))

    def _prepares_to_leave(self, packet: DrbdPacket) -> bool:
        """Whether a two-phase state change is the end of this very connection."""
        flags, initiator, target, mask, val = _TWOPC_IDS.unpack_from(packet.body)
        if not flags & _HAS_FLAGS:  # before FEATURE_2PC_V2: two whole words
            initiator = flags
        nodes = set(self.session.nodes.values())
        is_ours = target == _ANY_NODE or {initiator, target} <= nodes
        return is_ours and bool(mask & _CONN_MASK) and split_state(val)["conn"] in _LEAVING

    def _apply_version(self) -> None:
        for direction in self._link.directions.values():
            if direction.session is self.session:
                direction.stream.headers = _headers(self.session)

    def _wrong(self, packet: DrbdPacket, what: str) -> BadBytes:
        """A packet that no DRBD sends there."""
        excerpt, is_certain = (
            bytes(packet.body[:_EXCERPT_BYTES]),
            self.stream.is_certain(packet.offset),
        )
        return BadBytes(packet.t_ns, packet.packet_no, packet.offset, what, excerpt, is_certain)

    def _malformed(
        self, found: BadBytes, out: list[LinkMessage], hides_writes: bool = True
    ) -> None:
        """The sender's fault, where the reader surely stands where the receiver does; else nobody's,
        and what was read since the last hole was not what it looked like."""
        if not found.is_certain:
            out.append(self._hole(found.t_ns))
            return
        where = (self.sender, found.t_ns, found.packet_no, found.offset)
        out.append(Malformed(self.session, *where, found.what, found.excerpt, hides_writes))

    def _hole(self, t_ns: Ns) -> Hole:
        """Writes and barriers come over the data socket, answers over the meta socket."""
        return Hole(self.session, self.sender, t_ns, self.socket != "meta", self.socket != "data")

    def _where(
        self, packet: DrbdPacket, clear_bytes: int
    ) -> tuple[LinkSession, str, str, Ns, int, int, int, bool]:
        """The first fields of a Message."""
        return (
            self.session, self.sender, packet.name, packet.t_ns, packet.packet_no, packet.offset, clear_bytes,
            packet.tentative,
        )  # fmt: skip

    # --- packets as messages ---------------------------------------------------------------------
    def _write(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        """P_DATA: digest and data behind the fixed fields, checked the one against the other."""
        session, sender, body = self.session, self.sender, packet.body
        sector, block_id, _, dp_flags = _DATA_FIELDS(body)
        payload = body[_DATA_BYTES:]
        integrity = session.integrity(sender, len(payload))
        size, algorithm, wire, computed, agreed = 0, "", b"", b"", True
        if integrity is not None:
            size, algorithm = integrity.size_bytes, integrity.name
            if size:
                payload = payload[size:]
                if integrity.digest is not None and not packet.tentative:
                    wire, computed = (
                        bytes(body[_DATA_BYTES : _DATA_BYTES + size]),
                        integrity.digest(payload),
                    )
                    agreed = session.is_agreed
        clear_bytes = 0
        if integrity is not None and not packet.tentative:
            clear_bytes = packet.header_bytes + len(body) - len(payload)
        out.append(
            ReplicatedWrite(
                session, sender, "P_DATA", packet.t_ns, packet.packet_no, packet.offset, clear_bytes, packet.tentative,
                (packet.volume, block_id, sector), block_id, "write", packet.volume, sector * _SECTOR_BYTES,
                len(payload), payload, body, packet.t_first_ns, packet.first_packet_no,
                session.expects_ack(packet.header, dp_flags), algorithm, wire, computed, agreed,
            )
        )  # fmt: skip
        session.proof.wrote(self, block_id, sector, packet.offset)
        if integrity is None and not packet.tentative:
            what = f"P_DATA with {len(payload)} bytes of digest and data: not whole sectors"
            self._malformed(self._wrong(packet, what), out, hides_writes=False)

    def _write_without_data(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        """P_TRIM, P_ZEROES, P_WSAME: what is to be written follows from the fields."""
        session, body = self.session, packet.body
        sector, block_id, _, dp_flags, length_bytes = drbd.P_TRIM.unpack_from(body)
        out.append(
            ReplicatedWrite(
                *self._where(packet, packet.clear_bytes), (packet.volume, block_id, sector), block_id,
                _KINDS[packet.command], packet.volume, sector * _SECTOR_BYTES,
                length_bytes, b"", body, packet.t_first_ns, packet.first_packet_no,
                session.expects_ack(packet.header, dp_flags),
            )
        )  # fmt: skip

    def _answer(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        body = packet.body
        sector, block_id, length_bytes, _ = _BLOCK_ACK(body)
        kind, name, is_resyncs = _ANSWERS[packet.command]
        session, offset_bytes = self.session, sector * _SECTOR_BYTES
        clear_bytes = 0 if packet.tentative else packet.header_bytes + len(body)
        if block_id == _ID_SYNCER:
            where = self._where(packet, clear_bytes)
            out.append(Resync(*where, "answer", offset_bytes, length_bytes, packet.volume))
            return
        session.proof.answered(self, block_id, sector, packet.offset)
        out.append(
            Answer(
                session, self.sender, name, packet.t_ns, packet.packet_no, packet.offset, clear_bytes,
                packet.tentative, (packet.volume, block_id, sector), block_id, kind, packet.command,
                offset_bytes, length_bytes, bytes(body),
                is_resyncs and (session.is_nine or not session.version),
            )
        )  # fmt: skip

    def _barrier(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        cookie, _ = drbd.P_BARRIER.unpack_from(packet.body)
        out.append(Barrier(*self._where(packet, packet.clear_bytes), cookie))

    def _rejoins(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        said = rejoin.said(self.session, self.sender, packet)
        if said is None:
            out.append(Other(*self._where(packet, packet.clear_bytes)))
        else:
            out.append(Resync(*self._where(packet, packet.clear_bytes), **said))

    def _confirm_stable(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        self.session.confirmed = True
        out.append(Other(*self._where(packet, packet.clear_bytes)))

    def _barrier_answer(self, packet: DrbdPacket, out: list[LinkMessage]) -> None:
        cookie, count = drbd.P_BARRIER_ACK.unpack_from(packet.body)
        raw = bytes(packet.body)
        if self.session.confirmed:
            self.session.confirmed, count = False, None
        out.append(BarrierAnswer(*self._where(packet, packet.clear_bytes), cookie, count, raw))


_KINDS: Final[dict[int, WriteKind]] = {Cmd.TRIM: "trim", Cmd.ZEROES: "zero", Cmd.WSAME: "same"}
_ANSWERS: Final[dict[int, tuple[AnswerKind, str, bool]]] = {
    Cmd.WRITE_ACK: ("ok", "P_WRITE_ACK", False),
    Cmd.RS_WRITE_ACK: ("ok", "P_RS_WRITE_ACK", True),
    Cmd.WRITE_ACK_IN_SYNC: ("ok", "P_WRITE_ACK_IN_SYNC", False),
    Cmd.SUPERSEDED: ("ok", "P_SUPERSEDED", False),
    Cmd.RECV_ACK: ("received", "P_RECV_ACK", False),
    Cmd.RETRY_WRITE: ("retry", "P_RETRY_WRITE", False),
    Cmd.NEG_ACK: ("refused", "P_NEG_ACK", False),
}
"""Command -> what it says, its name, and whether DRBD 9 answers resync with it too, under ids that
are not the all-ones of 8.4."""
_Translate = Callable[[DrbdDirection, DrbdPacket, list[LinkMessage]], None]
_MESSAGES: Final[dict[int, _Translate]] = {
    Cmd.DATA: DrbdDirection._write,
    **dict.fromkeys(drbd.WRITES - {Cmd.DATA}, DrbdDirection._write_without_data),
    **dict.fromkeys(_ANSWERS, DrbdDirection._answer),
    Cmd.BARRIER: DrbdDirection._barrier,
    Cmd.BARRIER_ACK: DrbdDirection._barrier_answer,
    Cmd.CONFIRM_STABLE: DrbdDirection._confirm_stable,
    **dict.fromkeys(rejoin.COMMANDS, DrbdDirection._rejoins),
}
_TELLING: Final = frozenset(
    {
        Cmd.CONNECTION_FEATURES, Cmd.PROTOCOL, Cmd.PROTOCOL_UPDATE, Cmd.STATE_CHG_REQ, Cmd.CONN_ST_CHG_REQ,
        Cmd.STATE, Cmd.TWOPC_PREPARE, Cmd.TWOPC_ABORT, Cmd.DISCONNECT,
    }
)  # fmt: skip
_PLACED: Final = drbd.DATA_SOCKET | drbd.META_SOCKET
"""Whose socket is certain. Of DRBD 9's own commands only headers tell it, and one was found on the
other: nobody is judged by that."""


def _headers(session: DrbdLinkSession) -> frozenset[int]:
    return allowed_headers(session.version) if session.version else ANY_HEADER
