"""Whether bytes from a serial line are text, or noise of a wrong rate. Pure."""

from typing import Final

ENOUGH_BYTES: Final = 8
"""Fewer prove nothing: noise has four printable bytes in a row every hundred bytes."""
TEXT_SHARE: Final = 0.9
"""Of noise of a wrong rate, about 40 % are in _TEXT; of a console with colours or a torn character,
well above 90 %."""
_TEXT: Final = frozenset(range(0x20, 0x7F)) | frozenset(b"\r\n\t\x1b\x07\x08")


def text_share(data: bytes) -> float:
    """Share of ``data`` that a console prints, from 0 to 1. A UTF-8 character counts as text."""
    if not data:
        return 0.0
    whole = data.decode("utf-8", "replace")
    good = sum(
        len(character.encode())
        for character in whole
        if ord(character) in _TEXT or (character.isprintable() and character != "\ufffd")
    )
    return min(1.0, good / len(data))


def looks_like_text(data: bytes) -> bool:
    return len(data) >= ENOUGH_BYTES and text_share(data) >= TEXT_SHARE
