"""Finds the console rules' texts in running streams of bytes, however they are split into chunks.

Two Hyperscan streams a console, so that a match may begin in one chunk and end many chunks later:
the bytes as they come are searched for literals, and the text as a person reads it (``readtext``)
for everything else. Reported are:

* a literal: each occurrence, also overlapping ones; also where a terminal sequence (a colour) stands in it: literals
  without ends of lines are looked for in that text from the console's first terminal sequence on;
* a regex, and a literal that was torn apart: its first end in each line, where one match is a hit. Hyperscan reports
  every end of a match, so that ``a\\d+`` on ``a12`` would be reported twice; a person means once, and the first end is the
  earliest. Where more makes a hit, ``conditions`` is given each match, of a rate or a first text in one line only those
  that do not begin in one that counted;
* ``$`` is reported when the line's end has arrived; a last line without one has no end yet.

What makes a hit of these matches (at once, only after another text, only so many in a time, only
their absence) is in ``conditions``. A Scanner belongs to one thread: Hyperscan's scratch space, one
a database, may not be used by two at once.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import hyperscan

from freezeframe.harness.core.console import torn
from freezeframe.harness.core.console.conditions import FIRST, THEN, Conditions, Hit
from freezeframe.harness.core.console.readtext import ESC_BYTE, Reader
from freezeframe.harness.core.console.rules import SCAN_MODE, ConsoleRule, exactly
from freezeframe.harness.core.events import Ns, Side

__all__ = ["Hit", "Place", "Scanner"]

NOT_IN_TEXT: Final = re.compile(rb"[\r\n\x1b]")
"""A literal that holds one of these is looked for as its bytes only."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a console's stream a search begins."""

    offset_bytes: int = 0
    before: bytes = b""
    """The bytes in front of it, already searched by another Scanner: texts that begin in them are
    found, those that end in them are not told again."""


def no_strike(_rule: int) -> None:
    """For callers that use the hits that ``feed`` returns."""


class Scanner:
    """Streaming search for ``rules`` on ``consoles``, name -> whose console it is."""

    def __init__(
        self,
        rules: Sequence[ConsoleRule],
        consoles: Mapping[str, Side],
        places: Mapping[str, Place] | None = None,
        strike: Callable[[int], None] = no_strike,
    ) -> None:
        """``places``: of consoles that have been read before. ``strike``: called with the rule of
        each hit that one match of a literal makes, in the midst of the search, before ``feed``
        returns; it must not raise."""
        searches = {side: _Search(rules, side) for side in sorted(set(consoles.values()))}
        start = places or {}
        self._rules, self._searches, self._strike = rules, searches, strike
        self._streams = {
            name: _Stream(searches[side], start.get(name, Place()), strike)
            for name, side in consoles.items()
        }
        self._has_silence = any(rule.absent_ms for rule in rules)
        self._rehearsals = deque(
            one for search in searches.values() if (one := _rehearsal(search)) is not None
        )

    def adopt(self, other: "Scanner", renumbered: Mapping[int, int]) -> None:
        """Take over what ``other`` has seen of rules that stay: their old index -> their new
        one."""
        for name, stream in self._streams.items():
            stream.adopt(other._streams[name], renumbered)

    def feed(self, console: str, data: bytes, now_ns: Ns) -> list[Hit]:
        """The hits that ``data``, the next bytes of that console, completes, in the order of their
        ends."""
        stream = self._streams[console]
        stream.scan(data)
        if stream.is_due or ESC_BYTE in data:
            return stream.judge(data, now_ns)
        stream.scanned += (length := len(data))  # nearly every read of literals alone ends here
        stream.last = data if length >= stream.reach else stream.kept(data)
        return []

    def rehearse(self, pretend: Callable[[int], object]) -> None:
        """Find a plain rule's text in a stream of no console, of one side and then the other, and
        call ``pretend`` in place of ``strike``: what a trigger needs is in the processor's caches
        then. Nothing else notices; without a plain rule nothing is done."""
        if self._rehearsals:
            stream, text = self._rehearsals[0]
            stream.rehearse(text, pretend)
            self._rehearsals.rotate()

    def forget(self, console: str) -> None:
        """It has ended; what is no console's name is nothing here."""
        self._streams.pop(console, None)

    def remember(self, console: str, side: Side, place: Place) -> None:
        """It is read again, from that place on."""
        if side not in self._searches:
            self._searches[side] = _Search(self._rules, side)
        self._streams[console] = _Stream(self._searches[side], place, self._strike)

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to tell although no byte comes."""
        if not self._has_silence:
            return None
        deadlines = [stream.conditions.next_deadline() for stream in self._streams.values()]
        return min([deadline for deadline in deadlines if deadline is not None], default=None)

    def tick(self, console: str, now_ns: Ns) -> list[Hit]:
        """The texts whose absence on that console is certain: all its bytes that came until
        ``now_ns`` were fed."""
        stream = self._streams[console]
        return stream.conditions.tick(now_ns, stream.offset) if self._has_silence else []


class _Counts(Enum):
    """Which matches of a pattern count."""

    EACH = auto()
    NONE = auto()
    """The same text is looked for in the bytes; known here so that no torn one is seen in it."""
    FIRST_IN_LINE = auto()
    HALF = auto()
    """Of a literal that may be torn: the rest may stand after it, or the beginning before it."""
    NEW_END = auto()
    NEW_BEGIN = auto()
    """Those that do not begin in one that counted, or in an earlier line."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What one of Hyperscan's ids stands for."""

    index: int
    """Of the rule."""
    part: int
    """FIRST or THEN."""
    rule: ConsoleRule
    expression: bytes
    flags: int
    counts: _Counts = _Counts.EACH


class _Search:
    """The compiled rules of one side; consoles share it."""

    def __init__(self, rules: Sequence[ConsoleRule], side: Side) -> None:
        self.chosen = [
            (index, rule) for index, rule in enumerate(rules) if rule.side in (side, "any")
        ]
        self.literals = [
            _Pattern(index, FIRST, rule, rule.expression(), rule.flags)
            for index, rule in self.chosen
            if rule.is_plain
        ]
        """Looked for in the bytes as they come."""
        self.patterns = [one for index, rule in self.chosen for one in _in_text(index, rule)]
        self.patterns += [one for index, rule in self.chosen for one in _halves(index, rule)]
        """Looked for in the text."""
        self.literal_database = _compiled(self.literals)
        self.database = _compiled(self.patterns)
        self.torn = {
            index: len(self.patterns) + at
            for at, (index, rule) in enumerate(
                (index, rule) for index, rule in self.chosen if rule.interleaved
            )
        }
        """Of each literal that may be torn: the number of the pattern that stands for its rest."""
        self.patterns += [
            _Pattern(
                index,
                FIRST,
                rule,
                b"",
                0,
                _Counts.FIRST_IN_LINE if rule.is_plain else _Counts.NEW_END,
            )
            for index, rule in self.chosen
            if rule.interleaved
        ]
        texts = [one.rule.literal.encode() for one in self.literals]
        self.reach_bytes = max(map(len, texts), default=1)
        """So long is the longest literal."""
        self.may_be_coloured = [NOT_IN_TEXT.search(text) is None for text in texts]


def _in_text(index: int, rule: ConsoleRule) -> list[_Pattern]:
    counts = _Counts.EACH
    if rule.interleaved:
        counts = _Counts.NONE if rule.is_plain else _Counts.NEW_END
    elif rule.regex and not rule.absent_ms:
        counts = _Counts.NEW_BEGIN if rule.is_compound else _Counts.FIRST_IN_LINE
    found = []
    if rule.interleaved or not rule.is_plain:
        found.append(_Pattern(index, FIRST, rule, rule.text_expression(), rule.flags, counts))
    if rule.then or rule.then_regex:
        found.append(_Pattern(index, THEN, rule, rule.then_expression(), rule.then_flags))
    return found


def _halves(index: int, rule: ConsoleRule) -> Iterator[_Pattern]:
    """Of a literal that may be torn."""
    for half in torn.halves(rule.literal.encode()) if rule.interleaved else ():
        yield _Pattern(index, FIRST, rule, exactly(half), rule.flags, _Counts.HALF)


def _compiled(patterns: Sequence[_Pattern]) -> hyperscan.Database | None:
    if not patterns:
        return None
    database = hyperscan.Database(mode=SCAN_MODE)
    database.compile(
        expressions=[one.expression for one in patterns],
        ids=list(range(len(patterns))),
        elements=len(patterns),
        flags=[one.flags for one in patterns],
    )
    return database


Matched = Callable[[int, int, int, int, object], None]


class _Stream:
    __slots__ = (
        "_base", "_before", "_callbacks", "_colour_base", "_coloured",  "_last_break", "_last_end",
        "_open", "_reader", "_rules", "_scan_colour", "_scan_text", "_search", "_shift", "_strike",
        "_text_ends", "_torn_until", "conditions", "ends", "is_due", "is_read", "last", "reach", "scan", "scanned",
    )  # fmt: skip

    def __init__(self, search: _Search, place: Place, strike: Callable[[int], None]) -> None:
        self.conditions = Conditions(search.chosen)
        self._search = search
        self._base = len(place.before) - place.offset_bytes
        self.scanned = 0
        """Bytes searched, those before the place included; offsets in the raw stream count so."""
        self._rules = [one.index for one in search.literals]
        """Of each literal the rule: this is the way of a trigger, kept short."""
        self.ends: list[tuple[int, int]] = []
        """(literal, end) of each match in the chunk at hand."""
        self._text_ends: list[tuple[int, bool, int, int]] = []
        """(end, whether it may count, pattern, start) of each match in the text at hand."""
        self._coloured: list[tuple[int, int]] = []
        """(end in the text, literal), as ``ends``; those without a colour in them, too."""
        self.reach = search.reach_bytes
        self.last = b""
        """The newest bytes, at least as many as the longest literal has: before the first terminal
        sequence nobody reads the text."""
        self._before = b""
        """The newest text, where a literal may be torn."""
        self._torn_until: dict[int, int] = {}
        """Rule -> up to where in the text the rest of its torn literal may end."""
        self._last_end: dict[int, int] = {}
        """Rule -> where in the text a regex or a literal that may be torn last matched, reported or
        not; where more makes a hit, last counted."""
        self._last_break = 0
        """Where in the text the line begins that the chunk at hand goes on with."""
        self._reader = Reader()
        self._shift = 0
        """What a Scanner before this one had read of the text and this one has not."""
        self.is_read = search.database is not None
        """The text is wanted."""
        self.is_due = True
        """The chunk at hand needs a thought: one comparison for nearly every read."""
        self._open: list[object] = []
        self._callbacks: list[object] = []
        self._strike: Callable[[int], object] = no_strike  # what was there before is not told again
        self.scan = self._stream_of(search.literal_database, self._matched)
        self._scan_text = self._stream_of(search.database, self._matched_text)
        self._scan_colour: Callable[[bytes], object] | None = None
        self._colour_base = 0
        self.scan(place.before)
        self.judge(place.before, 0)
        self.conditions = Conditions(search.chosen)
        self._strike = strike

    def _stream_of(
        self, database: hyperscan.Database | None, matched: Matched
    ) -> Callable[[bytes], object]:
        if database is None:
            return _nothing
        # Hyperscan's Stream borrows the references it is given: database and callback must live as
        # long as it does.
        stream = database.stream(match_event_handler=matched)
        stream.__enter__()
        self._open.append(stream)
        self._callbacks.append(matched)
        scan: Callable[[bytes], object] = stream.scan
        return scan

    def rehearse(self, text: bytes, pretend: Callable[[int], object]) -> None:
        self._strike = pretend
        self.scan(text)
        self.ends.clear()
        self.is_due = self.is_read

    def adopt(self, other: "_Stream", renumbered: Mapping[int, int]) -> None:
        self.conditions.adopt(other.conditions, renumbered)
        self._shift = other._reader.length + other._shift - self._reader.length

    @property
    def offset(self) -> int:
        """Of the next byte to be fed."""
        return self.scanned - self._base

    def kept(self, data: bytes) -> bytes:
        return (self.last + data)[-self.reach :]

    # --- Hyperscan's callbacks must not raise, and must return a false value: a true one would end the stream.
    def _matched(self, literal: int, _start: int, end: int, _flags: int, _context: object) -> None:
        self._strike(self._rules[literal])
        self.ends.append((literal, end))
        self.is_due = True

    def _matched_text(
        self, pattern: int, start: int, end: int, _flags: int, _context: object
    ) -> None:
        its = self._search.patterns[pattern]
        if its.counts is _Counts.HALF:
            self._torn_until[its.index] = end + torn.MAX_TORN_BYTES
        else:
            self._text_ends.append((end, its.counts is not _Counts.NONE, pattern, start))

    def _matched_colour(
        self, literal: int, _start: int, end: int, _flags: int, _context: object
    ) -> None:
        self._coloured.append((end, literal))

    def judge(self, data: bytes, now_ns: Ns) -> list[Hit]:
        """What the matches in ``data``, just searched, amount to; ``data`` is behind us then."""
        found = [(end, Hit(self._rules[literal], end - self._base)) for literal, end in self.ends]
        if self.is_read or ESC_BYTE in data:
            found += self._read(data, now_ns)
        else:
            self.last = self.kept(data)
        self.ends.clear()
        self.is_due = self.is_read
        self.scanned += len(data)
        if len(found) > 1:
            found.sort(key=_end_of)  # Hyperscan promises no order within a chunk
        return [hit for _, hit in found]

    def _read(self, data: bytes, now_ns: Ns) -> list[tuple[int, Hit]]:
        """(raw end, hit) of what is found in the text only."""
        if ESC_BYTE in data and self._scan_colour is None:
            self._begin_colours()
        text = self._reader.feed(data)
        self._scan_text(text)
        if self._search.torn:
            self._look_for_torn(text)
        told = {(self._rules[literal], end) for literal, end in self.ends}
        found = []
        if self._scan_colour is None:
            self.last = self.kept(data)
        else:
            self._scan_colour(text)
            found = self._coloured_hits(told)
        if self._text_ends:
            found += self._text_hits(text, now_ns)
        if (last_break := text.rfind(b"\n")) >= 0:
            self._last_break = self._reader.length - len(text) + last_break + 1
        return found

    def _look_for_torn(self, text: bytes) -> None:
        """Half of a literal has been seen, now or not long ago."""
        text_at = self._reader.length - len(text)
        for rule in [rule for rule, until in self._torn_until.items() if until <= text_at]:
            del self._torn_until[rule]
        for rule in self._torn_until:
            number = self._search.torn[rule]
            literal = self._search.patterns[number].rule.literal.encode()
            for end in torn.ends(literal, self._before, text):
                self._text_ends.append((text_at + end, True, number, text_at + end))
        self._before = (self._before + text)[-torn.MAX_TORN_BYTES :]

    def _begin_colours(self) -> None:
        """The first terminal sequence is here: literals may begin before it."""
        if not self.is_read:
            self._reader = Reader(self.scanned)
            self._reader.after_return = self.last.endswith(b"\r")
            self.is_read = True
        self._scan_colour = self._stream_of(self._search.literal_database, self._matched_colour)
        before = Reader().feed(self.last)
        self._colour_base = self._reader.length - len(before)
        self._scan_colour(before)
        self._coloured.clear()

    def _coloured_hits(self, told: set[tuple[int, int]]) -> list[tuple[int, Hit]]:
        found = []
        for end, literal in self._coloured:
            raw_end = self._reader.raw_end(end + self._colour_base)
            rule = self._rules[literal]
            if self._search.may_be_coloured[literal] and (rule, raw_end) not in told:
                found.append((raw_end, Hit(rule, raw_end - self._base)))
        self._coloured.clear()
        return found

    def _text_hits(self, text: bytes, now_ns: Ns) -> list[tuple[int, Hit]]:
        found = []
        self._text_ends.sort()
        for end, _, pattern, start in self._text_ends:
            its = self._search.patterns[pattern]
            if not self._counts(its, start, end, text):
                continue
            if its.part == THEN and its.rule.then_regex:
                start = max(start, self._line_begin(end, text))
            raw_end = self._reader.raw_end(end)
            hit = Hit(its.index, raw_end - self._base)
            # Time, and not the distance in bytes, is what conditions look at: a text's offsets do.
            is_hit = its.rule.is_plain or self.conditions.judge(
                its.index, its.part, start + self._shift, end + self._shift, now_ns
            )
            if is_hit:
                found.append((raw_end, hit))
        self._text_ends.clear()
        return found

    def _counts(self, its: _Pattern, start: int, end: int, text: bytes) -> bool:
        last_end = self._last_end.get(its.index, 0)
        if its.counts is _Counts.EACH:
            return True
        begins_in_it = its.counts is _Counts.NEW_BEGIN and start < last_end
        if begins_in_it and self._line_begin(end, text) < last_end:
            return False  # another end of one that counted, or one that began in it
        self._last_end[its.index] = end
        if its.counts is _Counts.FIRST_IN_LINE:
            return last_end == 0 or self._line_begin(end, text) >= last_end
        return its.counts is not _Counts.NONE and end != last_end

    def _line_begin(self, end: int, text: bytes) -> int:
        """Where in the text the line begins that the byte before ``end`` is in; a line holds the
        ``\n`` that ends it."""
        text_at = self._reader.length - len(text)
        last_break = text.rfind(b"\n", 0, max(end - 1 - text_at, 0))
        return text_at + last_break + 1 if last_break >= 0 else self._last_break


def _end_of(match: tuple[int, Hit]) -> int:
    return match[0]


def _rehearsal(search: _Search) -> tuple[_Stream, bytes] | None:
    """A stream of nobody's, and a line that a plain rule finds, the shortest; None without one."""
    texts = [one.rule.literal.encode() for one in search.literals]
    return (_Stream(search, Place(), no_strike), min(texts, key=len) + b"\n") if texts else None


def _nothing(_data: bytes) -> None:
    """In place of a search without rules."""
