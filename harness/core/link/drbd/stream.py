"""One direction of one replication socket: bytes -> DRBD packets (tables in
``freezeframe.harness.wire.drbd``). On a session of DRBD 9 a command beyond the tables is a packet like
any other: its header says how long it is.

Each packet says by its magic which header it has; once both ends have agreed on a version only that
version's headers are believed. Bytes that cannot be a packet are reported once as BadBytes; then, as
after a hole in the capture or when the capture began mid-stream, the stream looks for the next
header. A header found by looking is believed fully only when a second one stands right behind it, and when
it is certain that both are not the data of a write, such as a capture that the host copies: until then its
packet is ``tentative``, and nobody judges a device by it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.skim import Fill
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

_H80, _H95, _H100 = 80, 95, 100
_NINE: Final = drbd.DRBD9_VERSION
"""Beside the headers: DRBD 9's commands are allowed too."""
ANY_HEADER: Final = frozenset({_H80, _H95, _H100, _NINE})
_AGREED_NINE: Final = frozenset({_H100, _NINE})
_NEWER: Final = range(max(drbd.DRBD9_COMMANDS) + 1, 0x100)
"""Where no version is known either, these are taken for a newer DRBD 9's."""
_SHORT_HEADER_BYTES: Final = drbd.HEADER_H80.size
_LONG_HEADER_BYTES: Final = drbd.HEADER_H100.size
_BEFORE_AGREEMENT: Final = frozenset({Cmd.INITIAL_DATA, Cmd.INITIAL_META, Cmd.CONNECTION_FEATURES})
"""Always sent under h80, whatever version is agreed later."""
_MAGICS: Final = re.compile(
    rb"\x83\x74\x02\x67|\x83\x5a|\x86\x20\xec\x20|\x83(?:\x74\x02?)?\Z|\x86(?:\x20\xec?)?\Z",
    re.DOTALL,
)
"""The three magics, or at the very end the beginning of one."""
_TRUSTED: Final = 2
_LONGEST_BYTES: Final = drbd.HEADER_H100.size + drbd.MAX_PAYLOAD_BYTES
_MAX_SMALL_PAYLOAD_BYTES: Final = 4096
"""Variable payloads other than data and bitmaps: algorithm names, nonces, digests."""
_SECRET: Final = frozenset({Cmd.AUTH_CHALLENGE, Cmd.AUTH_RESPONSE})
_HOST_DATA: Final = frozenset({Cmd.DATA, Cmd.DATA_REPLY, Cmd.RS_DATA_REPLY, Cmd.WSAME})

assert drbd.HEADER_H95.size == _SHORT_HEADER_BYTES


def _limits() -> dict[int, tuple[int, int]]:
    limits: dict[int, tuple[int, int]] = {}
    for cmd, (fixed, _, variable) in drbd.LAYOUTS.items():
        longest = drbd.MAX_PAYLOAD_BYTES if cmd in _HOST_DATA else _MAX_SMALL_PAYLOAD_BYTES
        limits[int(cmd)] = (fixed.size, longest if variable else fixed.size)
    limits[Cmd.SIZES] = (drbd.P_SIZES.size, drbd.P_SIZES.size + drbd.P_QLIM.size)
    limits[Cmd.SYNC_PARAM89] = (drbd.P_SYNC_PARAM89.size, drbd.P_SYNC_PARAM95.size)
    return limits


_ALL_LIMITS: Final = _limits()
LENGTH_LIMITS: Final = {
    command: limits for command, limits in _ALL_LIMITS.items() if command not in drbd.DRBD9_COMMANDS
}
"""Command -> (shortest, longest length behind the header)."""
_NAMES: Final[dict[int, str]] = {int(cmd): f"P_{cmd.name}" for cmd in Cmd}
_SYNC_PARAM95_TAIL: Final = ("c_plan_ahead", "c_delay_target", "c_fill_target", "c_max_rate")


def command_name(command: int) -> str:
    """``P_WRITE_ACK``; a number that is no command is shown as hex."""
    return _NAMES.get(command, f"command 0x{command:04x}")


class DrbdPacket(msgspec.Struct, frozen=True, eq=False):
    """One packet. ``body`` is everything behind the header: fixed fields, then digest, then data.

    A body that came in one piece is a view of the memory that was fed and lives as long as that;
    else it is the packet's own.
    """

    t_ns: Ns
    """When its last byte was seen."""
    t_first_ns: Ns
    """When its first byte was seen."""
    packet_no: int
    """Frame of its last byte (tshark lists the packet there)."""
    first_packet_no: int
    offset: int
    """Of its header in the stream."""
    command: int
    volume: int
    header: int
    """80, 95 or 100."""
    body: memoryview
    tentative: bool
    """Found by looking for a header and not confirmed yet, or not certain yet."""

    @property
    def name(self) -> str:
        return command_name(self.command)

    @property
    def length(self) -> int:
        return len(self.body)

    @property
    def header_bytes(self) -> int:
        return _LONG_HEADER_BYTES if self.header == _H100 else _SHORT_HEADER_BYTES

    @property
    def clear_bytes(self) -> int:
        """How many of its first bytes are no data of the host."""
        if self.tentative:
            return 0
        if self.command not in _NAMES:
            return self.header_bytes  # of a newer DRBD 9: nobody knows what it holds
        if self.command in _HOST_DATA:
            fixed = drbd.LAYOUTS[Cmd(self.command)][0].size
            digest = (self.length - fixed) % drbd.SECTOR_BYTES
            return self.header_bytes + min(fixed + digest, self.length)
        return self.header_bytes if self.command in _SECRET else self.header_bytes + self.length

    @property
    def payload(self) -> memoryview:
        """What follows the fixed fields: digest and data, names, bitmap."""
        if self.command not in _NAMES:
            return self.body
        return self.body[drbd.LAYOUTS[Cmd(self.command)][0].size :]

    def fields(self) -> dict[str, Any]:
        """The fixed fields by the names of the wire table, and the names and limits that may follow
        them."""
        if self.command not in _NAMES:
            return {}
        fixed, names, _ = drbd.LAYOUTS[Cmd(self.command)]
        found: dict[str, Any] = dict(zip(names, fixed.unpack_from(self.body), strict=True))
        rest = self.payload
        match self.command:
            case Cmd.PROTOCOL | Cmd.PROTOCOL_UPDATE:
                found["integrity_alg"] = _text(rest)
            case Cmd.SYNC_PARAM89:
                found["verify_alg"], found["csums_alg"] = (
                    _text(found["verify_alg"]),
                    _text(found["csums_alg"]),
                )
                if len(self.body) == drbd.P_SYNC_PARAM95.size:
                    tail = drbd.P_SYNC_PARAM95.unpack_from(self.body)[len(names) :]
                    found.update(zip(_SYNC_PARAM95_TAIL, tail, strict=True))
            case Cmd.SYNC_PARAM:
                found["verify_alg"] = _text(rest)
            case Cmd.SIZES if len(rest) == drbd.P_QLIM.size:
                found.update(zip(drbd.QLIM_FIELDS, drbd.P_QLIM.unpack_from(rest), strict=True))
            case Cmd.STATE:
                found.update(split_state(found["state"]))
        return found


class BadBytes(msgspec.Struct, frozen=True, eq=False):
    """Bytes that cannot be a packet of this stream."""

    t_ns: Ns
    packet_no: int
    offset: int
    what: str
    excerpt: bytes
    is_certain: bool
    """The receiver stands there too: see ``DrbdStream.is_certain``."""


def split_state(word: int) -> dict[str, int]:
    """The parts of a state word by name (``wire.drbd.STATE_FIELDS``)."""
    return {
        name: word >> shift & (1 << width) - 1 for name, (shift, width) in drbd.STATE_FIELDS.items()
    }


def allowed_headers(version: int) -> frozenset[int]:
    """Headers that a sender uses once ``version`` is agreed."""
    if version >= drbd.DRBD9_VERSION:
        return _AGREED_NINE
    if version >= 100:
        return frozenset({_H100})
    return frozenset({_H80, _H95}) if version >= 95 else frozenset({_H80})


def parse_header(
    view: bytes | memoryview, at: int, headers: frozenset[int] = ANY_HEADER
) -> tuple[int, int, int, int, int] | str | None:
    """(command, volume, header, header bytes, length) at ``view[at]``; None: too few bytes; a text:
    what is wrong."""
    left = len(view) - at
    if left < _SHORT_HEADER_BYTES:
        return None
    volume = 0
    magic, command, length = drbd.HEADER_H80.unpack_from(view, at)
    if magic == drbd.MAGIC_H100:
        if left < _LONG_HEADER_BYTES:
            return None
        _, volume, command, length, pad = drbd.HEADER_H100.unpack_from(view, at)
        header, size = _H100, _LONG_HEADER_BYTES
        if pad:
            return f"header pad is 0x{pad:08x}, not 0"
    elif magic == drbd.MAGIC_H80:
        header, size = _H80, _SHORT_HEADER_BYTES
    elif magic >> 16 == drbd.MAGIC_H95:
        _, command, length = drbd.HEADER_H95.unpack_from(view, at)
        header, size = _H95, _SHORT_HEADER_BYTES
    else:
        return f"no magic of a header: 0x{magic:08x}"
    limits = LENGTH_LIMITS.get(command)
    if limits is None and _NINE in headers:
        limits = _ALL_LIMITS.get(command)
        if limits is None and header == _H100 and (headers == _AGREED_NINE or command in _NEWER):
            limits = (0, drbd.MAX_PAYLOAD_BYTES)  # of a newer DRBD 9 than these tables
    if limits is None:
        return f"unknown command 0x{command:04x}, length {length}"
    if not limits[0] <= length <= limits[1]:
        return f"{command_name(command)} with length {length}, {limits[0]} to {limits[1]} allowed"
    if header not in headers and not (header == _H80 and command in _BEFORE_AGREEMENT):
        return f"{command_name(command)} under an h{header} header, which the agreed version does not use"
    return command, volume, header, size, length


_Begun = tuple[int, Ns, int, int, int, int, int, bool]
"""Of a packet whose body is arriving: where the body begins in the stream; then first time, first
frame, offset, command, volume, header and tentative of DrbdPacket."""


class DrbdStream:
    """``feed`` the bytes in order, ``gap`` where the capture has a hole. Set ``headers`` when a
    version is agreed."""

    def __init__(
        self,
        *,
        from_start: bool = True,
        headers: frozenset[int] = ANY_HEADER,
        fill: Fill | None = None,
    ) -> None:
        """``fill``: where bodies that come in pieces are collected; whoever else copies into it
        moves ``offset`` on."""
        self.headers = headers
        self._offset = 0
        """Of the next byte to be fed, while no body is arriving."""
        self._held = b""
        """The first bytes of a header that is split between segments."""
        self._held_from: tuple[Ns, int] = (0, 0)
        self._fill = Fill() if fill is None else fill
        self._begun: _Begun | None = None
        """The packet whose body is still arriving."""
        self._looking = not from_start
        self._trust = _TRUSTED if from_start else 0
        """Headers found right behind each other since the last look, up to _TRUSTED."""
        self._certain_from = 0 if from_start else _LONGEST_BYTES
        """Offset from which on nothing that was read can stand in the body of a packet that was not
        seen."""
        self._lost_at = 0
        """Where the reader last lost its place."""

    @property
    def offset(self) -> int:
        """Of the next byte to be fed."""
        return self._offset if self._begun is None else self._begun[0] + self._fill.filled

    @property
    def looking(self) -> bool:
        """Out of step with the packets: bytes are passed over until a header is found."""
        return self._looking

    def is_certain(self, offset: int) -> bool:
        """What was read there stands where the receiver reads: the stream was followed from its start,
        or for longer than a packet that was not seen may be, or the other end proved it."""
        return offset >= self._certain_from

    def prove(self, offset: int) -> bool:
        """The other end took what was read there for a packet; whether that was not certain. What was read before the
        reader lost its place says nothing of where it stands since."""
        if self.is_certain(offset) or offset < self._lost_at:
            return False
        self._certain_from = offset
        return True

    def gap(self, length_bytes: int) -> None:
        """The capture lacks ``length_bytes`` here: drop what was begun and look for the next
        header."""
        self._offset = self.offset + length_bytes
        self._begun, self._held = None, b""
        self._fill.drop()
        self._looking, self._trust = True, 0
        self._lost_at = self._offset
        self._certain_from = self._offset + _LONGEST_BYTES

    def feed(
        self, data: bytes | memoryview, t_ns: Ns, packet_no: int
    ) -> list[DrbdPacket | BadBytes]:
        """Return the packets that ``data`` completes, and one BadBytes where the sender leaves the
        format."""
        fill, begun = self._fill, self._begun
        # The way of nearly all bytes that were not skimmed.
        if begun is not None and fill.swallow(data):
            return []
        out: list[DrbdPacket | BadBytes] = []
        base = self.offset - len(self._held)
        first: tuple[Ns, int] = (t_ns, packet_no)
        if self._held:
            data, self._held, first = self._held + bytes(data), b"", self._held_from
        view = data if type(data) is memoryview else memoryview(data)
        at, end = 0, len(view)
        if begun is not None:
            at = fill.take(view)
            if not fill.complete:
                return out
            out.append(self._completed(begun, t_ns, packet_no))
        self._offset = base + end
        while at < end:
            if self._looking:
                at = self._look(view, at)
            parsed = parse_header(view, at, self.headers)
            if parsed is None:
                if at < end:
                    self._held = bytes(view[at:])
                    self._held_from = first if at == 0 else (t_ns, packet_no)
                break
            if isinstance(parsed, str):
                if self._trust >= _TRUSTED:
                    out.append(
                        BadBytes(
                            t_ns, packet_no, base + at, parsed, bytes(view[at : at + 32]),
                            self.is_certain(base + at),
                        )
                    )  # fmt: skip
                self._looking, self._trust = True, 0
                self._lost_at = base + at
                self._certain_from = base + at + _LONGEST_BYTES
                at += 1
                continue
            command, volume, header, size, length = parsed
            self._looking = False
            if base + at == 0:
                # What a capture begins with exactly is taken for a packet: else the one write of an idle link is lost.
                self._trust, self._certain_from = _TRUSTED, 0
            self._trust = min(_TRUSTED, self._trust + 1)
            t_first_ns, first_no = first if at == 0 else (t_ns, packet_no)
            offset, start = base + at, at + size
            at = start + length
            tentative = self._trust < _TRUSTED or not self.is_certain(offset)
            if at <= end:
                body = view[start:at]
                packet = DrbdPacket(
                    t_ns, t_first_ns, packet_no, first_no, offset, command, volume, header, body, tentative
                )  # fmt: skip
                out.append(packet)
            else:
                fill.begin(length)
                fill.take(view[start:])
                self._begun = (
                    offset + size, t_first_ns, first_no, offset, command, volume, header, tentative
                )  # fmt: skip
                break
        return out

    def _completed(self, begun: _Begun, t_ns: Ns, packet_no: int) -> DrbdPacket:
        """The packet whose body is whole now."""
        _, t_first_ns, first_no, offset, command, volume, header, tentative = begun
        body = memoryview(self._fill.finish())
        self._begun = None
        return DrbdPacket(
            t_ns, t_first_ns, packet_no, first_no, offset, command, volume, header, body, tentative
        )

    def _look(self, view: memoryview, at: int) -> int:
        """Where the next header, or what may become one, stands in ``view[at:]``; its end when
        there is none."""
        raw = bytes(view[at:])
        for match in _MAGICS.finditer(raw):
            if not isinstance(parse_header(raw, match.start(), self.headers), str):
                return at + match.start()
        return at + len(raw)


def _text(raw: bytes | memoryview) -> str:
    """A NUL-terminated name; bytes that are not ASCII are shown as escapes."""
    return bytes(raw).split(b"\0", 1)[0].decode("ascii", "backslashreplace")
