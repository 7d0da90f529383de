"""Console bytes as a person reads them: each end of a line is one ``\\n``, terminal sequences are
gone. Pure.

* The end of a line is ``\\n``, ``\\r``, ``\\r\\n``, ``\\r\\r\\n`` or more ``\\r`` in front of ``\\n``.
* A terminal sequence is a colour or another CSI sequence, an OSC sequence (a window's title), or a
  two- or three-byte escape (ECMA-48, 5.4 and 8.3; xterm's OSC). What is longer than the limits
  below, or malformed, stays in the text.

The text that comes out does not depend on how the bytes were split.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

ESC_BYTE: Final = 0x1B
"""Looked for as a number: ten times as fast as a string of one byte."""
TERMINAL: Final = (
    rb"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]"  # CSI: parameters, intermediates, final
    rb"|\][^\x07\x1b\r\n]{0,256}(?:\x07|\x1b\\)"  # OSC: up to BEL or ST
    rb"|[ -/]{1,4}[0-~]|[0-Z\\^-~])"  # a character set, and other short ones
)
PARTIAL: Final = rb"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}|\][^\x07\x1b\r\n]{0,256}\x1b?|[ -/]{0,4})\Z"
_TOKEN: Final = re.compile(rb"(\r+\n?|\n)|(%b)|(%b)" % (TERMINAL, PARTIAL))
_BREAK: Final = re.compile(rb"\r+\n?")
_TERMINAL: Final = re.compile(TERMINAL)


def without_colours(line: bytes) -> bytes:
    """One line without its terminal sequences."""
    return _TERMINAL.sub(b"", line) if ESC_BYTE in line else line


@dataclass(slots=True)
class _Chunk:
    """What one call of ``feed`` looked at."""

    data: bytes
    raw_at: int
    """Raw offset of its first byte."""
    after_return: bool
    text_at: int
    """Text offset of what it adds."""
    pieces: list[tuple[int, int]] | None = None
    """(text offset, raw offset) where each run of its text begins; made when somebody asks."""

    def raw_end(self, text_end: int) -> int:
        if self.pieces is None:
            again, text_at, self.pieces = Reader(), self.text_at, []
            again.after_return = self.after_return
            for piece, at in again.walk(self.data):
                self.pieces.append((text_at, self.raw_at + at))
                text_at += len(piece)
        text_at, raw_at = self.pieces[bisect_left(self.pieces, (text_end, -1)) - 1]
        return raw_at + text_end - text_at


class Reader:
    """One console's text. Offsets in the raw stream and in the text count from where it began."""

    def __init__(self, raw_offset: int = 0) -> None:
        """``raw_offset``: of the first byte that is fed."""
        self.length = 0
        """Bytes of text so far."""
        self.after_return = False
        """The line's end was ``\\r``: more of it may come."""
        self._raw = raw_offset
        """Of the next byte to be fed."""
        self._held = b""
        """A terminal sequence that has begun and may go on."""
        self._newest = self._before = _Chunk(b"", raw_offset, False, 0)

    def feed(self, data: bytes) -> bytes:
        """The text that ``data`` adds."""
        if self.length > self._newest.text_at:
            self._before = self._newest
        if self._held:
            data, self._raw, self._held = self._held + data, self._raw - len(self._held), b""
        self._newest = _Chunk(data, self._raw, self.after_return, self.length)
        self._raw += len(data)
        is_plain = ESC_BYTE not in data
        text = (
            self._without_returns(data) if is_plain else b"".join(one for one, _ in self.walk(data))
        )
        self.length += len(text)
        return text

    def raw_end(self, text_end: int) -> int:
        """Raw offset behind the byte that became the last one before ``text_end``, which lies in
        the newest bytes, or ends those before them."""
        chunk = self._newest if text_end > self._newest.text_at else self._before
        return chunk.raw_end(text_end)

    def _without_returns(self, data: bytes) -> bytes:
        """As ``walk``, for what holds no terminal sequence: nearly everything."""
        if self.after_return and data[:1] in (b"\r", b"\n"):
            rest = data.lstrip(b"\r")
            ended, data = rest[:1] == b"\n", rest.removeprefix(b"\n")
            if not data:
                self.after_return = not ended
                return b""
        self.after_return = data.endswith(b"\r") or (self.after_return and not data)
        if b"\r" not in data:
            return data
        text = data.replace(b"\r\n", b"\n")
        return _BREAK.sub(b"\n", text) if b"\r" in text else text

    def walk(self, data: bytes) -> list[tuple[bytes, int]]:
        """(text, place in ``data``) of each run; what is held back is kept for the next call."""
        runs: list[tuple[bytes, int]] = []
        at = 0
        for token in _TOKEN.finditer(data):
            begin = token.start()
            if begin > at:
                runs.append((data[at:begin], at))
                self.after_return = False
            at = token.end()
            if token[1] is not None:
                if not self.after_return:
                    runs.append((b"\n", begin))
                self.after_return = token[1].endswith(b"\r")
            elif token[3] is not None:
                self._held = token[3]
        if at < len(data):
            runs.append((data[at:], at))
            self.after_return = False
        return runs
