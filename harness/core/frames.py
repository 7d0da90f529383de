"""The harness's codec of control frames: bytes to typed values and back, by the tables of
``wire.control``.

On the line a frame is ``00 COBS(body) 00``, body = header | payload | CRC-32C. Console text may
share the UART. It never contains 00, so after a 00 a frame follows if the second byte (after the
COBS code) is MAGIC, otherwise text. A damaged frame is lost, with at most the text up to the next
00; then the receiver is synchronised again.
"""

import struct
from dataclasses import dataclass, fields
from typing import Final, TypeVar

from cobs import cobs
from crc32c import crc32c

from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Op, Status

DELIMITER_BYTE: Final = control.DELIMITER[0]
TEXT_FIELDS: Final = frozenset({"model", "serial_number", "firmware_version"})
"""ASCII, NUL-padded."""


# --- payloads: one dataclass per layout, with the fields of wire.control.FIELDS in order ---
@dataclass(frozen=True, slots=True)
class TargetPayload:
    serial_number: str
    boot_epoch: int


@dataclass(frozen=True, slots=True)
class FreezePayload:
    serial_number: str
    boot_epoch: int
    reason: int
    incident_id: bytes


@dataclass(frozen=True, slots=True)
class TraceLevelPayload:
    serial_number: str
    boot_epoch: int
    level: int


@dataclass(frozen=True, slots=True)
class ReadSetPayload:
    set_id: int
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class AcknowledgeSetPayload:
    serial_number: str
    boot_epoch: int
    set_id: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class IdentityPayload:
    model: str
    serial_number: str
    firmware_version: str
    boot_epoch: int
    role: int
    pair_state: int
    uptime_ns: int
    events_logged: int
    max_payload_bytes: int
    capabilities: int


@dataclass(frozen=True, slots=True)
class FreezeReplyPayload:
    set_id: int
    boot_epoch: int
    events_logged: int
    uptime_ns: int


@dataclass(frozen=True, slots=True)
class SetEntryPayload:
    set_id: int
    kind: int
    complete: int
    reason: int
    incident_id: bytes
    raw_bytes: int
    stored_bytes: int
    boot_epoch: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class SetDataPayload:
    set_id: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class ReadBlocksPayload:
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class BlockDataPayload:
    offset_bytes: int


Payload = (
    TargetPayload
    | FreezePayload
    | TraceLevelPayload
    | ReadSetPayload
    | AcknowledgeSetPayload
    | IdentityPayload
    | FreezeReplyPayload
    | SetEntryPayload
    | SetDataPayload
    | ReadBlocksPayload
    | BlockDataPayload
)
P = TypeVar("P", bound=Payload)
LAYOUT_OF: Final[dict[type, str]] = {
    TargetPayload: "target",
    FreezePayload: "freeze",
    TraceLevelPayload: "trace level",
    ReadSetPayload: "read set",
    AcknowledgeSetPayload: "acknowledge set",
    IdentityPayload: "identity",
    FreezeReplyPayload: "freeze reply",
    SetEntryPayload: "set entry",
    SetDataPayload: "set data",
    ReadBlocksPayload: "read blocks",
    BlockDataPayload: "block data",
}

assert set(LAYOUT_OF.values()) | {"header"} == set(control.FIELDS)
assert all(
    tuple(field.name for field in fields(kind)) == control.FIELDS[name][1]
    for kind, name in LAYOUT_OF.items()
)


def pack(payload: Payload) -> bytes:
    """Encode the payload. Raises WireError when a value does not fit its field."""
    layout, names = control.FIELDS[LAYOUT_OF[type(payload)]]
    values = [getattr(payload, name) for name in names]
    try:
        values = [value.encode("ascii") if isinstance(value, str) else value for value in values]
        packed = layout.pack(*values)
    except (struct.error, UnicodeEncodeError) as error:
        raise WireError(f"{LAYOUT_OF[type(payload)]}: {error}") from error
    for name, value, kept in zip(names, values, layout.unpack(packed), strict=True):
        if isinstance(value, bytes) and kept.rstrip(b"\0") != value.rstrip(b"\0"):
            raise WireError(
                f"{LAYOUT_OF[type(payload)]}: {name} is longer than its {len(kept)} bytes"
            )
    return packed


def unpack(kind: type[P], data: bytes, offset_bytes: int = 0) -> P:
    """Read ``kind`` at ``offset_bytes``. Raises WireError when the bytes are too few or a text is
    not ASCII."""
    layout, names = control.FIELDS[LAYOUT_OF[kind]]
    if len(data) - offset_bytes < layout.size:
        raise WireError(
            f"{LAYOUT_OF[kind]} is {layout.size} bytes, {len(data) - offset_bytes} are left",
            offset_bytes,
            data,
        )
    values = list(layout.unpack_from(data, offset_bytes))
    for at, name in enumerate(names):
        if name in TEXT_FIELDS:
            text = values[at].rstrip(b"\0")
            if not text.isascii() or not text.decode("ascii").isprintable():
                raise WireError(
                    f"{LAYOUT_OF[kind]}: {name} is not printable ASCII", offset_bytes, text
                )
            values[at] = text.decode("ascii")
    return kind(*values)


# --- frames ---
@dataclass(frozen=True, slots=True)
class Frame:
    """A complete frame with a correct CRC."""

    type: int
    """wire.control.Op, with wire.control.REPLY added in a reply."""
    flags: int
    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class TextRun:
    """Console text that shares the line."""

    data: bytes
    offset_bytes: int
    """Absolute offset of data[0] in the receiver's stream."""


@dataclass(frozen=True, slots=True)
class BadFrame:
    """Bytes that began like a frame but are not a valid one; ``data`` excludes the delimiters."""

    why: str
    data: bytes
    offset_bytes: int


Received = Frame | TextRun | BadFrame


def encode(op: int, seq: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """Encode a frame as ``00 COBS(body) 00``. ``op`` is an Op, plus REPLY in a reply. Raises
    WireError when the payload is too long."""
    if len(payload) > control.MAX_PAYLOAD_BYTES:
        raise WireError(
            f"payload of {len(payload)} bytes, at most {control.MAX_PAYLOAD_BYTES} fit a frame"
        )
    header = control.HEADER.pack(control.MAGIC, control.VERSION, op, flags, seq, len(payload))
    body = header + payload
    body += control.CRC.pack(crc32c(body))
    return control.DELIMITER + bytes(cobs.encode(body)) + control.DELIMITER


def decode(frame: bytes) -> Frame:
    """Decode one frame, with or without delimiters. Raises WireError."""
    return _decode(frame.strip(control.DELIMITER))


def _decode(encoded: bytes) -> Frame:
    try:
        body = cobs.decode(encoded)
    except cobs.DecodeError as error:
        raise WireError(f"not COBS: {error}", 0, encoded) from error
    header_bytes, crc_bytes = control.HEADER.size, control.CRC.size
    if len(body) < header_bytes + crc_bytes:
        raise WireError(f"frame of {len(body)} bytes is too short", 0, body)
    if control.CRC.unpack_from(body, len(body) - crc_bytes)[0] != crc32c(body[:-crc_bytes]):
        raise WireError("CRC is wrong", len(body) - crc_bytes, body)
    magic, version, kind, flags, seq, length = control.HEADER.unpack_from(body)
    if magic != control.MAGIC or version != control.VERSION:
        raise WireError(f"magic {magic:#04x}, version {version} are not supported", 0, body)
    if length != len(body) - header_bytes - crc_bytes or length > control.MAX_PAYLOAD_BYTES:
        raise WireError(
            f"header gives a payload of {length} bytes; the frame has another length", 6, body
        )
    return Frame(kind, flags, seq, body[header_bytes:-crc_bytes])


class FrameReceiver:
    """Splits the bytes of a line into frames and text, in pieces of any size. Buffers at most one
    frame."""

    def __init__(self) -> None:
        self._offset = 0
        """Absolute offset of the first byte that is neither returned nor buffered."""
        self._held = bytearray()
        """Bytes since the last delimiter that are, or may become, a frame."""
        self._is_text = True
        """Whether the bytes since the last delimiter are known to be text. True before the first
        delimiter."""

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended: the sender is still sending."""
        return len(self._held) > 1

    def feed(self, data: bytes) -> list[Received]:
        """Return the frames and text completed by ``data``. Text is returned at once, except one
        byte after a delimiter, which is kept until the next byte shows whether it is text."""
        received: list[Received] = []
        at = 0
        while at < len(data):
            end = data.find(DELIMITER_BYTE, at)
            piece = data[at : end if end >= 0 else len(data)]
            if piece:
                self._take(piece, received)
            at += len(piece)
            if end >= 0:
                self._end_piece(received)
                at += 1
        return received

    def _take(self, piece: bytes, received: list[Received]) -> None:
        if self._is_text:
            received.append(TextRun(piece, self._offset))
            self._offset += len(piece)
            return
        self._held += piece
        if len(self._held) >= 2 and self._held[1] != control.MAGIC:
            self._is_text = True
            self._take(self._release(), received)
        elif len(self._held) > control.MAX_FRAME_BYTES:
            held = self._release()
            received.append(BadFrame("longer than any frame", held, self._offset))
            self._offset += len(held)
            self._is_text = True

    def _end_piece(self, received: list[Received]) -> None:
        if self._held:
            held = self._release()
            received.append(self._judge(held))
            self._offset += len(held)
        self._is_text = False
        self._offset += 1

    def _judge(self, held: bytes) -> Received:
        if len(held) < 2:
            return TextRun(held, self._offset)
        try:
            return _decode(held)
        except WireError as error:
            return BadFrame(error.what, held, self._offset)

    def _release(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


def status_name(status: int) -> str:
    """Return the name of a status: WRONG_TARGET -> "wrong target"; an unknown one -> "status 77"."""
    try:
        return Status(status).name.lower().replace("_", " ")
    except ValueError:
        return f"status {status}"


def op_name(kind: int) -> str:
    """Return the name of an operation: READ_SET or its reply -> "READ_SET"."""
    try:
        return Op(kind & ~control.REPLY).name
    except ValueError:
        return f"operation {kind:#04x}"
