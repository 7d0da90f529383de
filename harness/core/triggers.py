"""Finds the console rules' texts in running streams of bytes, however they are split into chunks.

One Hyperscan stream a console, so that a match may begin in one chunk and end many chunks later. Told are:

* a literal: each occurrence, also overlapping ones;
* a regex: its first end in each line (ended by ``\\r`` or ``\\n``). Hyperscan tells every end of a match, so
  that ``a\\d+`` on ``a12`` would be told twice; a person means once, and the first end is the earliest;
* ``$`` is told when the line's ``\\n`` has arrived; a last line without one has no end yet.

A Scanner belongs to one thread: Hyperscan's scratch space, one a database, may not be used by two at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import hyperscan

from harness.core.events import Side
from harness.core.rules import REGEX_FLAGS, ConsoleRule


@dataclass(frozen=True, slots=True)
class Hit:
    rule: int
    """Index into the rules that the Scanner was made with."""
    end_offset_bytes: int
    """Absolute offset in the stream just behind the match."""


class Scanner:
    """Streaming search for ``rules`` on the consoles of ``sides``."""

    def __init__(self, rules: Sequence[ConsoleRule], sides: Sequence[Side]) -> None:
        self._streams = {side: _Stream(rules, side) for side in sides}

    def feed(self, side: Side, data: bytes) -> list[Hit]:
        """The hits that ``data``, the next bytes of that console, completes, in the order of their ends."""
        return self._streams[side].feed(data)


class _Stream:
    def __init__(self, rules: Sequence[ConsoleRule], side: Side) -> None:
        chosen = [(index, rule) for index, rule in enumerate(rules) if rule.side in (side, "any")]
        self._offset = 0
        self._last_end = {index: 0 for index, rule in chosen if rule.regex}
        """Regex rules: where the rule last matched, told or not; 0: never."""
        self._last_break = -1
        """Offset of the last ``\\r`` or ``\\n`` before the chunk at hand."""
        self._ends: list[tuple[int, int]] = []
        self._stream: hyperscan.Stream | None = None
        if not chosen:
            return
        # Hyperscan's Stream borrows the references it is given: all must live as long as it does.
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_STREAM)
        self._database.compile(
            expressions=[rule.expression() for _, rule in chosen],
            ids=[index for index, _ in chosen],
            elements=len(chosen),
            flags=REGEX_FLAGS,
        )
        self._callback = self._matched
        self._stream = self._database.stream(match_event_handler=self._callback)
        self._stream.__enter__()

    def _matched(self, rule: int, _start: int, end: int, _flags: int, _context: object) -> None:
        """Must not raise, and must return a false value: a true one would end the stream."""
        self._ends.append((rule, end))

    def feed(self, data: bytes) -> list[Hit]:
        if self._stream is None or not data:
            return []
        self._stream.scan(data)
        hits = [Hit(rule, end) for rule, end in self._ends if self._is_first_in_line(rule, end, data)]
        self._ends.clear()
        last_break = max(data.rfind(b"\n"), data.rfind(b"\r"))
        if last_break >= 0:
            self._last_break = self._offset + last_break
        self._offset += len(data)
        return hits

    def _is_first_in_line(self, rule: int, end: int, data: bytes) -> bool:
        last_end = self._last_end.get(rule)
        if last_end is None:
            return True
        self._last_end[rule] = end
        if last_end == 0 or self._last_break >= last_end - 1:
            return True
        between = data[max(last_end - 1 - self._offset, 0) : max(end - 1 - self._offset, 0)]
        return b"\n" in between or b"\r" in between
