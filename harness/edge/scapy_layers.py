"""Scapy layers for the replication protocol (DRBD) and for the control frames, declared from the
tables of the wire.

``Drbd(bytes)`` picks the header by its magic; ``packets(bytes)`` takes a whole stream apart.
``ControlFrame(bytes)`` takes one frame as it is on the line, delimiters and COBS included, and
builds it so. Both are for looking and for making packets by hand; nothing here is fast enough for a
link at full rate. Only ``scapy.packet`` and ``scapy.fields`` are imported: ``scapy.all`` costs half
a second more.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Any, ClassVar, Final

import crc32c
from cobs import cobs
from scapy.fields import (
    ByteEnumField,
    ByteField,
    ConditionalField,
    FlagsField,
    IntEnumField,
    IntField,
    LongField,
    PacketListField,
    ShortEnumField,
    ShortField,
    SignedIntField,
    StrFixedLenField,
    XByteField,
    XIntField,
    XLongField,
    XShortField,
    XStrFixedLenField,
)
from scapy.packet import Packet, Raw, bind_layers

from freezeframe.harness.core.link.drbd.stream import parse_header
from freezeframe.harness.core.link.layout import layout_items
from freezeframe.harness.wire import control, drbd, drbdnames

# --- DRBD ---------------------------------------------------------------------------------------------------
_COMMANDS: Final = {int(cmd): f"P_{cmd.name}" for cmd in drbd.Cmd}
_HEX: Final = frozenset({"current_uuid", "bitmap_uuid", "history_uuid_0", "history_uuid_1", "uuid"})
_FLAGS: Final[dict[str, type[IntFlag]]] = {
    "dp_flags": drbd.DpFlag,
    "feature_flags": drbd.Feature,
    "uuid_flags": drbd.UuidFlag,
}
_PROTOCOLS: Final = {1: "A", 2: "B", 3: "C"}


def _flag_names(flags: type[IntFlag], bits: int) -> list[str]:
    """A name for each bit, lowest first."""
    known = {int(flag): (flag.name or "").lower() for flag in flags}
    return [known.get(1 << bit, f"bit{bit}") for bit in range(bits)]


class StateField(XIntField):  # type: ignore[misc]
    """The state word, shown with its parts by name."""

    def i2repr(self, pkt: Packet | None, x: int) -> str:
        def part(name: str) -> int:
            shift, width = drbd.STATE_FIELDS[name]
            return x >> shift & (1 << width) - 1

        role, peer = (
            drbdnames.ROLE_NAMES.get(part(name), str(part(name))) for name in ("role", "peer")
        )
        disk, pdsk = (
            drbdnames.DISK_NAMES.get(part(name), str(part(name))) for name in ("disk", "pdsk")
        )
        conn = drbdnames.CONN_NAMES.get(part("conn"), str(part("conn")))
        flags = [
            name for name, (_, width) in drbd.STATE_FIELDS.items() if width == 1 and part(name)
        ]
        return f"0x{x:08x} {conn} {role}/{peer} {disk}/{pdsk} {' '.join(flags)}".rstrip()


def _field(name: str, kind: str, size: int) -> Any:
    """The scapy field of one item of a struct format."""
    if kind == "s":
        return (
            XStrFixedLenField(name, bytes(size), length=size)
            if size <= 8
            else StrFixedLenField(name, b"", size)
        )
    if name in _FLAGS:
        return FlagsField(name, 0, 8 * size, _flag_names(_FLAGS[name], 8 * size))
    if name in ("state", "val", "mask"):
        return StateField(name, 0)
    if name == "protocol":
        return IntEnumField(name, 3, _PROTOCOLS)
    if kind == "i":
        return SignedIntField(name, 1)
    if kind == "Q":
        return (XLongField if name in _HEX else LongField)(name, 0)
    return {"I": IntField, "H": ShortField, "B": ByteField}[kind](name, 0)


def _fields(layout: struct.Struct, names: tuple[str, ...]) -> list[Any]:
    return [
        _field(name, kind, size)
        for name, (kind, size) in zip(names, layout_items(layout), strict=True)
    ]


class _Body(Packet):  # type: ignore[misc]
    """Base of everything behind a header: it ends where the header says."""

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return s, b""


class Qlim(_Body):
    name = "P_SIZES queue limits"
    fields_desc = _fields(drbd.P_QLIM, drbd.QLIM_FIELDS)


class SyncParam95(_Body):
    name = "P_SYNC_PARAM89"
    fields_desc = _fields(
        drbd.P_SYNC_PARAM95,
        (
            "resync_rate", "verify_alg", "csums_alg", "c_plan_ahead", "c_delay_target", "c_fill_target",
            "c_max_rate",
        ),
    )  # fmt: skip


def _body_layer(cmd: drbd.Cmd) -> type[_Body]:
    layout, names, _ = drbd.LAYOUTS[cmd]
    return type(
        f"P_{cmd.name}", (_Body,), {"name": f"P_{cmd.name}", "fields_desc": _fields(layout, names)}
    )


BODIES: Final[dict[drbd.Cmd, type[_Body]]] = {cmd: _body_layer(cmd) for cmd in drbd.LAYOUTS}
"""Command -> the layer of its fixed fields; what follows (digest and data, names, bitmap) is its
payload."""
bind_layers(BODIES[drbd.Cmd.SIZES], Qlim)


class Drbd(Packet):  # type: ignore[misc]
    """A DRBD packet. ``Drbd(bytes)`` becomes the class of its magic; a ``length`` of None is filled
    in."""

    name = "DRBD"
    fields_desc: ClassVar[list[Any]] = []
    match_subclass = True
    """``packet[Drbd]`` finds it under any of its headers."""

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_args: Any, **_kwargs: Any) -> Any:
        if cls is not Drbd or _pkt is None:
            return cls
        if _pkt[:2] == drbd.MAGIC_H95.to_bytes(2, "big"):
            found = DrbdH95
        else:
            magic = int.from_bytes(_pkt[:4], "big")
            found = {drbd.MAGIC_H100: DrbdH100, drbd.MAGIC_H80: DrbdH80}.get(magic, Raw)
        return found if found is Raw or len(_pkt) >= _HEADER_BYTES[found] else Raw

    def guess_payload_class(self, payload: bytes) -> Any:
        # The field is called cmd because a scapy packet has a method ``command``.
        if self.cmd == drbd.Cmd.SYNC_PARAM89 and len(payload) == drbd.P_SYNC_PARAM95.size:
            return SyncParam95
        body = BODIES.get(self.cmd)
        if body is None or not body.fields_desc or len(payload) < drbd.LAYOUTS[self.cmd][0].size:
            return Raw
        return body

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return s[: self.length], s[self.length :]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if self.length is None:
            at, size = _LENGTH_AT[type(self)]
            pkt = pkt[:at] + len(pay).to_bytes(size, "big") + pkt[at + size :]
        return pkt + pay


class DrbdH80(Drbd):
    name = "DRBD h80"
    fields_desc: ClassVar[list[Any]] = [
        XIntField("magic", drbd.MAGIC_H80),
        ShortEnumField("cmd", drbd.Cmd.PING, _COMMANDS),
        ShortField("length", None),
    ]


class DrbdH95(Drbd):
    name = "DRBD h95"
    fields_desc: ClassVar[list[Any]] = [
        XShortField("magic", drbd.MAGIC_H95),
        ShortEnumField("cmd", drbd.Cmd.DATA, _COMMANDS),
        IntField("length", None),
    ]


class DrbdH100(Drbd):
    name = "DRBD h100"
    fields_desc: ClassVar[list[Any]] = [
        XIntField("magic", drbd.MAGIC_H100),
        ShortField("volume", 0),
        ShortEnumField("cmd", drbd.Cmd.PING, _COMMANDS),
        IntField("length", None),
        XIntField("pad", 0),
    ]


_LENGTH_AT: Final[dict[type[Packet], tuple[int, int]]] = {
    DrbdH80: (6, 2),
    DrbdH95: (4, 4),
    DrbdH100: (8, 4),
}
"""Where the length stands in each header, and its bytes."""
_HEADER_BYTES: Final[dict[type[Packet], int]] = {
    DrbdH80: drbd.HEADER_H80.size,
    DrbdH95: drbd.HEADER_H95.size,
    DrbdH100: drbd.HEADER_H100.size,
}
for _cmd, _layer in BODIES.items():
    for _header in _LENGTH_AT:
        bind_layers(_header, _layer, cmd=int(_cmd))


def packets(data: bytes) -> list[Packet]:
    """The DRBD packets of ``data`` one by one; what is no packet, or not whole, is one Raw at the
    end."""
    found: list[Packet] = []
    at = 0
    while at < len(data):
        parsed = parse_header(data, at)
        end = at + parsed[3] + parsed[4] if isinstance(parsed, tuple) else len(data) + 1
        if end > len(data):
            return [*found, Raw(data[at:])]
        found.append(Drbd(data[at:end]))
        at = end
    return found


# --- control frames -----------------------------------------------------------------------------------------
_TYPES: Final = {int(op): op.name.lower() for op in control.Op} | {
    int(op) | control.REPLY: f"{op.name.lower()} reply" for op in control.Op
}
_STATUSES: Final = {int(status): status.name.lower() for status in control.Status}
_ENUMS: Final[dict[str, dict[int, str]]] = {
    "reason": {int(reason): reason.name.lower() for reason in control.Reason},
    "level": {int(level): level.name.lower() for level in control.TraceLevel},
    "kind": {int(kind): kind.name.lower() for kind in control.SetKind},
    "role": drbdnames.ROLE_NAMES,
    "pair_state": control.PAIR_STATE_NAMES,
}


def _control_fields(layout_name: str) -> list[Any]:
    layout, names = control.FIELDS[layout_name]
    fields = []
    for name, (kind, size) in zip(names, layout_items(layout), strict=True):
        if name in _ENUMS:
            enum = {"B": ByteEnumField, "H": ShortEnumField, "I": IntEnumField}[kind]
            fields.append(enum(name, 0, _ENUMS[name]))
        elif kind == "s" and name in ("incident_id", "sha256"):
            fields.append(XStrFixedLenField(name, bytes(size), length=size))
        elif kind == "s":
            fields.append(StrFixedLenField(name, b"", size))
        else:
            fields.append(_field(name, kind, size))
    return fields


class SetEntryLayer(_Body):
    name = "Set"
    fields_desc = _control_fields("set entry")

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def _request_layer(op: control.Op, layout_name: str) -> type[_Body]:
    fields = {"name": f"{op.name.lower()} request", "fields_desc": _control_fields(layout_name)}
    return type(f"{op.name.title().replace('_', '')}Request", (_Body,), fields)


def _reply_layer(op: control.Op, layout_name: str | None) -> type[_Body]:
    """Status first; its layout only when that is ok, else a text follows (Raw)."""
    fields: list[Any] = [ByteEnumField("status", 0, _STATUSES)]
    if op is control.Op.LIST_SETS:
        fields.append(ConditionalField(PacketListField("sets", [], SetEntryLayer), _is_ok))
    elif layout_name is not None:
        fields += [ConditionalField(field, _is_ok) for field in _control_fields(layout_name)]
    name = f"{op.name.title().replace('_', '')}Reply"
    return type(name, (_Body,), {"name": f"{op.name.lower()} reply", "fields_desc": fields})


def _is_ok(pkt: Packet) -> bool:
    return bool(pkt.status == control.Status.OK)


REQUESTS: Final[dict[control.Op, type[_Body]]] = {
    op: _request_layer(op, layout) for op, layout in control.REQUESTS.items() if layout is not None
}
REPLIES: Final[dict[control.Op, type[_Body]]] = {
    op: _reply_layer(op, control.REPLIES[op]) for op in control.Op
}


class ControlFrame(Packet):  # type: ignore[misc]
    """One control frame: on the line ``00 COBS(header | payload | CRC-32C) 00``; ``crc`` is shown
    with the header."""

    name = "Control frame"
    fields_desc: ClassVar[list[Any]] = [
        XByteField("magic", control.MAGIC),
        ByteField("version", control.VERSION),
        ByteEnumField("type", control.Op.IDENTIFY, _TYPES),
        XByteField("flags", 0),
        ShortField("seq", 0),
        ShortField("length", None),
        XIntField("crc", None),
    ]

    def pre_dissect(self, s: bytes) -> bytes:
        """Undo the framing and bring the CRC from the end of the frame to the end of the header."""
        body: bytes = (
            cobs.decode(s.strip(control.DELIMITER)) if s.startswith(control.DELIMITER) else s
        )
        head, tail = control.HEADER.size, control.CRC.size
        if len(body) < head + tail:
            raise ValueError(f"control frame of {len(body)} bytes, at least {head + tail}")
        return body[:head] + body[-tail:] + body[head:-tail]

    def post_dissect(self, s: bytes) -> bytes:
        self.raw_packet_cache = (
            None  # what was dissected is not what is on the line: always build anew
        )
        return s

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        head = pkt[: control.HEADER.size]
        if self.length is None:
            head = head[:-2] + len(pay).to_bytes(2, "big")
        crc = crc32c.crc32c(head + pay) if self.crc is None else self.crc
        body: bytes = cobs.encode(head + pay + control.CRC.pack(crc))
        return control.DELIMITER + body + control.DELIMITER

    def guess_payload_class(self, payload: bytes) -> Any:
        known: dict[control.Op, type[_Body]] = REPLIES if self.type & control.REPLY else REQUESTS
        layer = known.get(self.type & ~control.REPLY)
        if layer is None or (known is REQUESTS and len(payload) < len(layer())):
            return Raw
        return layer


for _op, _request in REQUESTS.items():
    bind_layers(ControlFrame, _request, type=int(_op))
for _op, _reply in REPLIES.items():
    bind_layers(ControlFrame, _reply, type=int(_op) | control.REPLY)
