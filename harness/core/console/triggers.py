"""Finds the console rules' texts in running streams of bytes, however they are split into chunks.

One Hyperscan stream a console, so that a match may begin in one chunk and end many chunks later.
Told are:

* a literal: each occurrence, also overlapping ones;
* a regex, and a literal that may be interleaved: its first end in each line (ended by ``\\r`` or ``\\n``), where one match
  is a hit. Hyperscan tells every end of a match, so that ``a\\d+`` on ``a12`` would be told twice; a person means once, and
  the first end is the earliest. Where more makes a hit, ``conditions`` is given each match, of a rate or a first text in
  one line only those that do not begin in one that counted;
* ``$`` is told when the line's ``\\n`` has arrived; a last line without one has no end yet.

What makes a hit of these matches (at once, only after another text, only so many in a time, only
their absence) is in ``conditions``. A Scanner belongs to one thread: Hyperscan's scratch space, one
a database, may not be used by two at once.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import hyperscan

from freezeframe.harness.core.console.conditions import FIRST, THEN, Conditions, Hit
from freezeframe.harness.core.console.rules import SCAN_MODE, ConsoleRule
from freezeframe.harness.core.events import Ns, Side

__all__ = ["Hit", "Place", "Scanner"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a console's stream a search begins."""

    offset_bytes: int = 0
    before: bytes = b""
    """The bytes in front of it, already searched by another Scanner: texts that begin in them are
    found, those that end in them are not told again."""


def no_strike(_rule: int) -> None:
    """For who waits for the hits."""


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
            stream.conditions.adopt(other._streams[name].conditions, renumbered)

    def feed(self, console: str, data: bytes, now_ns: Ns) -> list[Hit]:
        """The hits that ``data``, the next bytes of that console, completes, in the order of their
        ends."""
        stream = self._streams[console]
        stream.scan(data)
        if stream.ends or stream.has_regex_hit:
            return stream.judge(data, now_ns)
        stream.scanned += len(data)  # nearly every read of a run ends here
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


class _Search:
    """The compiled rules of one side; consoles share it."""

    def __init__(self, rules: Sequence[ConsoleRule], side: Side) -> None:
        self.chosen = [
            (index, rule) for index, rule in enumerate(rules) if rule.side in (side, "any")
        ]
        self.patterns = [(index, FIRST, rule) for index, rule in self.chosen]
        self.patterns += [
            (index, THEN, rule) for index, rule in self.chosen if rule.then or rule.then_regex
        ]
        """What Hyperscan's ids stand for."""
        self.database: hyperscan.Database | None = None
        if self.patterns:
            self.database = hyperscan.Database(mode=SCAN_MODE)
            self.database.compile(
                expressions=[
                    rule.then_expression() if part == THEN else rule.expression()
                    for _, part, rule in self.patterns
                ],
                ids=list(range(len(self.patterns))),
                elements=len(self.patterns),
                flags=[
                    rule.then_flags if part == THEN else rule.flags
                    for _, part, rule in self.patterns
                ],
            )


class _Stream:
    __slots__ = (
        "_at_once", "_base", "_callback", "_last_break", "_last_end", "_search", "_stream", "_strike", "conditions", "ends",
        "has_regex_hit", "scan", "scanned",
    )  # fmt: skip

    def __init__(self, search: _Search, place: Place, strike: Callable[[int], None]) -> None:
        self.conditions = Conditions(search.chosen)
        self._search = search
        self._base = len(place.before) - place.offset_bytes
        self.scanned = 0
        """Bytes searched, those before the place included; all offsets in here count so."""
        self._last_end = {
            number: 0
            for number, (_, part, rule) in enumerate(search.patterns)
            if part == FIRST
            and not rule.absent_ms
            and (rule.regex or (rule.interleaved and not rule.is_compound))
        }
        """Regexes and the like: where each last matched, told or not; where more makes a hit, last
        counted; 0: never."""
        self.has_regex_hit = any(rule.then_regex for _, rule in search.chosen)
        """Lines matter: one of those has matched, or a text that follows may."""
        self._at_once = [
            -1 if rule.is_compound or number in self._last_end else index
            for number, (index, _, rule) in enumerate(search.patterns)
        ]
        """Of each pattern the rule, when a match needs no thought; this is the way of a trigger,
        kept short."""
        self._last_break = -1
        """Offset of the last ``\\r`` or ``\\n`` before the chunk at hand."""
        self.ends: list[tuple[int, int, int]] = []
        """(pattern, start, end) of each match in the chunk at hand; the start is right where the
        rule asks for it."""
        self.scan: Callable[[bytes], object] = _nothing
        self._strike: Callable[[int], object] = no_strike  # what was there before is not told again
        if search.database is None:
            return
        # Hyperscan's Stream borrows the references it is given: database and callback must live as
        # long as it does.
        self._callback = self._matched
        self._stream = search.database.stream(match_event_handler=self._callback)
        self._stream.__enter__()
        self.scan = self._stream.scan
        self.scan(place.before)
        self.judge(place.before, 0)
        self.conditions = Conditions(search.chosen)
        self._strike = strike

    def rehearse(self, text: bytes, pretend: Callable[[int], object]) -> None:
        self._strike = pretend
        self.scan(text)
        self.ends.clear()

    @property
    def offset(self) -> int:
        """Of the next byte to be fed."""
        return self.scanned - self._base

    def _matched(self, pattern: int, start: int, end: int, _flags: int, _context: object) -> None:
        """Must not raise, and must return a false value: a true one would end the stream."""
        if (rule := self._at_once[pattern]) >= 0:
            self._strike(rule)
        self.ends.append((pattern, start, end))

    def judge(self, data: bytes, now_ns: Ns) -> list[Hit]:
        """What the matches in ``data``, just scanned, amount to; ``data`` is behind us then."""
        hits: list[Hit] = []
        if len(self.ends) > 1:
            self.ends.sort(key=_end_of)  # Hyperscan promises no order within a chunk
        for pattern, start, end in self.ends:
            if (rule := self._at_once[pattern]) >= 0:
                hits.append(Hit(rule, end - self._base))
            elif self._counts(pattern, start, end, data):
                rule, part, its = self._search.patterns[pattern]
                if part == THEN and its.then_regex:
                    start = max(start, self._line_begin(end, data))
                hit = self.conditions.judge(
                    rule, part, start - self._base, end - self._base, now_ns
                )
                if hit is not None:
                    hits.append(hit)
        self.ends.clear()
        if self.has_regex_hit and (last_break := max(data.rfind(b"\n"), data.rfind(b"\r"))) >= 0:
            self._last_break = self.scanned + last_break
        self.scanned += len(data)
        return hits

    def _counts(self, pattern: int, start: int, end: int, data: bytes) -> bool:
        """Whether this match is a new one of its pattern: of a plain rule once a line, else
        wherever it begins anew."""
        last_end = self._last_end.get(pattern)
        if last_end is None:
            return True
        self.has_regex_hit = True
        is_new = last_end == 0 or self._line_begin(end, data) >= last_end
        if not is_new and self._search.patterns[pattern][2].is_compound:
            if start < last_end:
                return False  # another end of one that counted, or one that began in it
            is_new = True
        self._last_end[pattern] = end
        return is_new

    def _line_begin(self, end: int, data: bytes) -> int:
        """Where the line begins that the byte before ``end`` is in; a line holds the ``\\r`` or
        ``\\n`` that ends it."""
        length = max(end - 1 - self.scanned, 0)
        last_break = max(data.rfind(b"\n", 0, length), data.rfind(b"\r", 0, length))
        return (self.scanned + last_break if last_break >= 0 else self._last_break) + 1


def _end_of(match: tuple[int, int, int]) -> int:
    return match[2]


def _rehearsal(search: _Search) -> tuple[_Stream, bytes] | None:
    """A stream of nobody's, and a line that a plain rule finds, the shortest; None without one."""
    texts = [rule.literal.encode() for _, rule in search.chosen if rule.is_plain]
    return (_Stream(search, Place(), no_strike), min(texts, key=len) + b"\n") if texts else None


def _nothing(_data: bytes) -> None:
    """In place of a search without rules."""
