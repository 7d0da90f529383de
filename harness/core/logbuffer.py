"""The running text log buffer of one console: bounded, with absolute offsets and a time for every range of
bytes."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from harness.core.events import Ns
from harness.core.text import escape

CAPACITY_BYTES: Final = 1 << 20
"""Default: about 90 s of a 115,200 baud line that never pauses; the record on disk is complete anyway."""
MAX_LINE_BYTES: Final = 4096
"""A longer line is given out in pieces, so that a console without line ends cannot grow one for ever."""


@dataclass(frozen=True, slots=True)
class Line:
    offset_bytes: int
    """Absolute offset of the line's first byte."""
    t_ns: Ns
    """When the read that brought its first byte returned."""
    text: str
    """Without its line end; control bytes escaped, safe for a terminal."""


class LogBuffer:
    """Keeps the newest ``capacity_bytes`` of a console, whole reads at a time."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._chunks: deque[tuple[int, Ns, bytes]] = deque()
        self.start_offset = 0
        """Absolute offset of the oldest byte held."""
        self.end_offset = 0
        """Absolute offset of the next byte to come."""
        self._pending = bytearray()
        """The unfinished last line."""
        self._pending_t_ns: Ns = 0

    def append(self, t_ns: Ns, data: bytes) -> list[Line]:
        """Add the bytes of one read; return the lines that they complete."""
        if not data:
            return []
        lines = self._complete_lines(t_ns, data)
        self._chunks.append((self.end_offset, t_ns, data))
        self.end_offset += len(data)
        while self.end_offset - self.start_offset > self._capacity_bytes and len(self._chunks) > 1:
            self._chunks.popleft()
            self.start_offset = self._chunks[0][0]
        return lines

    def slice(self, start: int, end: int) -> bytes:
        """The bytes of [start, end), as far as they are held."""
        parts = []
        for offset, _, data in self._chunks:
            if offset < end and offset + len(data) > start:
                parts.append(data[max(start - offset, 0) : end - offset])
        return b"".join(parts)

    def time_of(self, offset: int) -> Ns | None:
        """When the byte at ``offset`` was read; None when it is not held."""
        for first, t_ns, data in reversed(self._chunks):
            if first <= offset < first + len(data):
                return t_ns
        return None

    def unfinished(self) -> Line | None:
        """The last line while its end has not come: a prompt, or what a dying controller still said."""
        if not self._pending:
            return None
        return Line(self.end_offset - len(self._pending), self._pending_t_ns, escape(bytes(self._pending)))

    def _complete_lines(self, t_ns: Ns, data: bytes) -> list[Line]:
        lines: list[Line] = []
        offset = self.end_offset - len(self._pending)
        pieces = data.split(b"\n")
        for number, piece in enumerate(pieces):
            is_ended = number < len(pieces) - 1
            if not self._pending:
                self._pending_t_ns = t_ns
            self._pending += piece
            while len(self._pending) > MAX_LINE_BYTES:
                lines.append(Line(offset, self._pending_t_ns, escape(bytes(self._pending[:MAX_LINE_BYTES]))))
                del self._pending[:MAX_LINE_BYTES]
                offset += MAX_LINE_BYTES
                self._pending_t_ns = t_ns
            if is_ended:
                text = bytes(self._pending).removesuffix(b"\r")
                lines.append(Line(offset, self._pending_t_ns, escape(text)))
                offset += len(self._pending) + 1
                self._pending.clear()
        return lines
