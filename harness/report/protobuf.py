"""The few parts of the protobuf wire format that a trace needs: fields in, bytes out."""

from typing import Final

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_U64: Final = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Unsigned; a negative int64 takes its ten bytes as two's complement, one that is too large is
    cut off."""
    value &= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(field: int, value: int) -> bytes:
    return varint(field << 3 | _VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | _FIXED64) + (value & _U64).to_bytes(8, "little")


def message(field: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return varint(field << 3 | _LENGTH) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    return message(field, value.encode(errors="replace"))
