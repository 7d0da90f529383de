"""A console's bytes as lines that a terminal can show, while they come. Pure."""

import codecs
from collections.abc import Callable

from freezeframe.harness.core.text import escape


class ShownStream:
    """``feed`` gives text for the screen at once, also of a line that has not ended (a prompt).
    However the bytes are split, the text is the same. A carriage return at either end of a line is
    passed over; any other is shown as ``\\r``."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._is_at_begin = True
        self._held = ""
        """Carriage returns that may belong to the end of the line."""

    def feed(self, data: bytes, stamp: Callable[[int], str] | None = None) -> str:
        """``stamp`` gives what stands before a line whose first byte is ``data[index]``."""
        shown: list[str] = []
        at = 0
        while at < len(data):
            end = data.find(b"\n", at) + 1 or len(data)
            text = self._held + self._decoder.decode(data[at:end])
            is_end = text.endswith("\n")
            body = text.rstrip("\n").rstrip("\r")
            self._held = "" if is_end else text[len(body) :]
            if self._is_at_begin:
                body = body.lstrip("\r")
                if stamp is not None and (body or is_end):
                    shown.append(stamp(at))
            shown.append("\t".join(escape(part) for part in body.split("\t")))
            shown.append("\n" if is_end else "")
            self._is_at_begin = is_end or (self._is_at_begin and not body)
            at = end
        return "".join(shown)

    def end_line(self) -> str:
        """Return what ends a line that has begun, so that something else can follow."""
        ended, self._is_at_begin = self._is_at_begin, True
        return "" if ended else "\n"
