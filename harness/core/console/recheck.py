"""After a run: the recorded console bytes against the rules once more, with a plain matcher, and
what the reflex reported.

Slow and obvious on purpose. It shares nothing with the Scanner but the rules, and the table of
terminal sequences. A miss of either is evidence against the harness, never against a device.

* Literals: ``bytes.find`` in the record, and in its text as a person reads it; each occurrence; what was reported must be
  exactly those. Torn ones: each rest of the literal, and whether what stands before it is its beginning and another
  writer's text; the first in a line.
* Regexes: the standard library's ``re`` over the whole text. It tells one match a place, Hyperscan each end of each, so:
  each reported hit must be an end of some match, and each match that ``re`` finds from left to right must have been
  reported in the line in which it ends, there or before. A reported hit may begin up to MAX_REGEX_BYTES before; one
  that might be longer is not judged.
"""

import math
import re
import warnings
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

from freezeframe.harness.core.console.readtext import PARTIAL, TERMINAL
from freezeframe.harness.core.console.rules import ConsoleRule, as_read, tokens
from freezeframe.harness.core.console.torn import (
    FOREIGN,
    MAX_TORN_BYTES,
    MAX_TORN_LINES,
    STAMP,
    is_in_word,
)
from freezeframe.harness.core.events import NS_PER_MS, Ns, Side

MAX_REGEX_BYTES: Final = 16 << 10
OTHER_IN_RE: Final = re.compile(r"\\[AZv]|\{,|[*+?}]\+")
"""Means something else to Hyperscan, or nothing; some harmless expressions, too."""
ENDLESS: Final = re.compile(r"\(\?\w*s|\[\\[sSdDwW]\\[sSdDwW]\](?:[*+]|\{\d+,\})|[*+}]\)[*+{]")
"""Any text of any length, or a repeat that is repeated: over a whole record ``re`` takes the square
of it, or worse."""
TimeOf = Callable[[int], Ns]
"""Offset behind a match -> when the read that completed it returned."""


@dataclass(frozen=True)
class Recheck:
    """One console's outcome. Offsets are those just behind a match."""

    checked_bytes: int
    hits: int
    """That the plain matcher found."""
    missed: list[tuple[str, int]] = field(default_factory=list)
    """(rule, offset) that the reflex should have reported and did not."""
    unfounded: list[tuple[str, int]] = field(default_factory=list)
    """Told by the reflex, and not there."""
    not_checked: list[str] = field(default_factory=list)
    """Rules that the plain matcher cannot judge, or not in full: silences, sequences and rates of
    regexes and of torn literals, a regex whose syntax is another one in ``re``, or that reported a
    match that may be too long."""

    @property
    def agrees(self) -> bool:
        return not self.missed and not self.unfounded


def recheck(
    rules: Sequence[ConsoleRule],
    side: Side,
    data: bytes,
    reads: Sequence[tuple[Ns, int]],
    reported: Iterable[tuple[str, int]],
    limit: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Recheck:
    """``data``: the whole record. ``reads``: (t_ns, offset of its first byte) of each read of the
    reflex, in order; what stands in front of the first one was read before there was a reflex, and
    is not its to report. ``reported``: (rule, offset) of each hit that the reflex reported for this console.
    ``limit`` is entered for each regex and may raise TimeoutError inside: it is not judged then."""
    if not reads:
        return Recheck(0, 0)
    if (begin := reads[0][1]) > 0:
        return _moved(
            recheck(
                rules,
                side,
                data[begin:],
                [(t_ns, offset - begin) for t_ns, offset in reads],
                [(name, end - begin) for name, end in reported],
                limit,
            ),
            begin,
        )
    told_of: dict[str, list[int]] = {}
    for name, end in reported:
        told_of.setdefault(name, []).append(end)
    outcome = Recheck(len(data), 0)
    hits = 0
    starts = [offset for _, offset in reads]
    read = _Text.of(data)

    def time_of(end: int) -> Ns:
        """Of an offset in the text."""
        at = bisect_right(starts, read.raw_end(end) - 1) - 1
        return reads[at][0] if at >= 0 else 0

    for rule in rules:
        if rule.side not in (side, "any"):
            continue
        seen = told_of.get(rule.name, [])
        if rule.absent_ms or (
            rule.is_compound and (rule.regex or rule.then_regex or rule.interleaved)
        ):
            outcome.not_checked.append(rule.name)
            continue
        if rule.regex:
            judged = _judged(rule, read, seen, limit)
            if judged is None:
                outcome.not_checked.append(rule.name)
                continue
            hits += judged.hits
            outcome.missed.extend(judged.missed)
            outcome.unfounded.extend(judged.unfounded)
            outcome.not_checked.extend(judged.not_checked)
            continue
        ends = _literal_ends(rule, data, read, time_of)
        hits += len(ends)
        right, found = Counter(ends), Counter(seen)  # twice is once too often
        outcome.missed.extend((rule.name, end) for end in sorted((right - found).elements()))
        outcome.unfounded.extend((rule.name, end) for end in sorted((found - right).elements()))
    return Recheck(len(data), hits, outcome.missed, outcome.unfounded, outcome.not_checked)


def _literal_ends(rule: ConsoleRule, data: bytes, read: "_Text", time_of: TimeOf) -> list[int]:
    """Raw offsets behind the hits of a rule without a regex."""
    in_text = _ends(as_read(rule.literal), read.text)
    if rule.then:
        in_text = _sequence(rule, in_text, _ends(as_read(rule.then), read.text), time_of)
    elif rule.count:
        in_text = _rate(rule, in_text, time_of)
    elif rule.interleaved:
        in_text = _with_torn(in_text, _torn(rule.literal.encode(), read.text), read.text)
    if rule.is_compound:
        return [read.raw_end(end) for end in in_text]
    literal = rule.literal.encode()
    if re.search(rb"[\r\n\x1b]", literal):
        in_text = []  # looked for as its bytes only
    return sorted({*_ends(literal, data), *map(read.raw_end, in_text)})


_Step = tuple["array[int]", "array[int]"]


class _Text:
    """A record as a person reads it: terminal sequences are taken out, then each end of a line
    becomes one ``\\n``."""

    def __init__(self, text: bytes, steps: Sequence[_Step]) -> None:
        self.text = text
        self._steps = steps
        """The last step first: (offset in what the step made, how much was taken out up to
        there)."""

    @classmethod
    def of(cls, data: bytes) -> "_Text":
        if open_sequence := re.search(PARTIAL, data):
            data = data[: open_sequence.start()]  # it may go on: nobody has read it yet
        plain, colours = _without(re.compile(TERMINAL), data, b"")
        text, returns = _without(re.compile(rb"\r+\n?"), plain, b"\n")
        return cls(text, (returns, colours))

    def raw_end(self, end: int) -> int:
        """Offset in the record behind the byte that became the last one before ``end``."""
        at = end - 1
        for offsets, taken in self._steps:
            step = bisect_right(offsets, at) - 1
            at += taken[step] if step >= 0 else 0
        return at + 1

    def end_of(self, raw_end: int) -> int | None:
        """The other way round; None: no text ends there."""
        end = bisect_left(range(len(self.text) + 1), raw_end, lo=1, key=self.raw_end)
        return end if end <= len(self.text) and self.raw_end(end) == raw_end else None


def _without(what: re.Pattern[bytes], data: bytes, instead: bytes) -> tuple[bytes, _Step]:
    """``data`` with each match replaced by its first byte's stand-in, and what is missing where."""
    offsets, taken, gone = array("Q"), array("Q"), 0
    for found in what.finditer(data):
        missing = len(found[0]) - len(instead)
        if missing:
            offsets.append(found.start() - gone + len(instead))
            gone += missing
            taken.append(gone)
    return what.sub(instead, data), (offsets, taken)


def _judged(
    rule: ConsoleRule,
    read: _Text,
    reported: list[int],
    limit: Callable[[], AbstractContextManager[object]],
) -> Recheck | None:
    """Of one regex; None: it cannot be judged."""
    pattern = _Regex.of(rule)
    if pattern is None:
        return None
    text = read.text
    places = {end: read.end_of(end) for end in sorted(set(reported))}
    seen = [end for end in places.values() if end is not None]
    try:
        with limit():
            ends = pattern.ends(text)
            verdicts = {end: pattern.ends_at(text, end) for end in seen}
    except (TimeoutError, MemoryError):
        return None
    unfounded = [raw for raw, end in places.items() if end is None or verdicts[end] is False]
    return Recheck(
        len(text),
        len(ends),
        [(rule.name, read.raw_end(end)) for end in ends if not _reported_in_line(text, seen, end)],
        [(rule.name, end) for end in unfounded],
        [rule.name] if None in verdicts.values() else [],
    )


def _moved(found: Recheck, by_bytes: int) -> Recheck:
    return replace(
        found,
        missed=[(name, end + by_bytes) for name, end in found.missed],
        unfounded=[(name, end + by_bytes) for name, end in found.unfounded],
    )


def _ends(literal: bytes, data: bytes) -> list[int]:
    """Behind each occurrence, overlapping ones, too."""
    ends, at = [], data.find(literal)
    while at >= 0:
        ends.append(at + len(literal))
        at = data.find(literal, at + 1)
    return ends


def _is_one_line(text: bytes, end: int, later: int) -> bool:
    """Whether two matches end in the same line, which ends behind ``\\n``."""
    return text.find(b"\n", end - 1, later - 1) < 0


def _first_in_line(ends: Iterable[int], data: bytes) -> list[int]:
    """Of ends in their order the first of each line."""
    firsts, before = [], 0
    for end in ends:
        if not before or not _is_one_line(data, before, end):
            firsts.append(end)
        before = end
    return firsts


def _reported_in_line(data: bytes, reported: list[int], end: int) -> bool:
    """Whether one of ``reported``, in order, is in the line of ``end``, there or before."""
    at = bisect_right(reported, end)
    return at > 0 and reported[at - 1] > 0 and _is_one_line(data, reported[at - 1], end)


def _with_torn(whole: list[int], torn: Iterable[int], text: bytes) -> list[int]:
    """Each whole one, and of the torn ones those that are the first match in their line."""
    found, before, are_whole = [], 0, set(whole)
    for end in sorted({*whole, *torn}):
        if end in are_whole or not before or not _is_one_line(text, before, end):
            found.append(end)
        before = end
    return found


def _torn(literal: bytes, text: bytes) -> list[int]:
    """Behind each rest of the literal in front of which stand its beginning and another writer's
    text."""
    ends = []
    for cut in range(1, len(literal)):
        head, tail = literal[:cut], literal[cut:]
        for end in _ends(tail, text):
            window = text[max(0, end - MAX_TORN_BYTES) : end]
            if _is_torn_before(window, len(window) - len(tail), head, is_in_word(literal, cut)):
                ends.append(end)
    return ends


_STAMPED: Final = re.compile(STAMP)
_FOREIGN: Final = re.compile(FOREIGN)


def _is_torn_before(text: bytes, at: int, head: bytes, in_word: bool) -> bool:
    line_at = text.rfind(b"\n", 0, at) + 1
    if line_at > 0 and _STAMPED.fullmatch(text, line_at, at):
        above = line_at
        for _ in range(MAX_TORN_LINES):
            above = text.rfind(b"\n", 0, max(above - 1, 0)) + 1
        if head in text[above:line_at]:
            return True
    for end in _ends(head, text[line_at:at]):
        tear = text[line_at + end : at]
        if _FOREIGN.match(tear) or (in_word and tear and tear[-1:].lower() != head[-1:].lower()):
            return True
    return False


@dataclass(frozen=True)
class _Regex:
    anywhere: re.Pattern[bytes]
    at_end: re.Pattern[bytes]
    """A match with exactly one byte behind it."""
    is_short: bool
    """No match is longer than MAX_REGEX_BYTES, certainly."""

    @classmethod
    def of(cls, rule: ConsoleRule) -> "_Regex | None":
        """None when ``re`` does not know the syntax, reads it in another way, or would take for
        ever."""
        if OTHER_IN_RE.search(rule.regex) or ENDLESS.search(rule.regex):
            return None
        # The record's end is no line's.
        expression = b"".join(
            b"(?=\\n)" if is_syntax and part == "$" else part.encode()
            for part, is_syntax in tokens(rule.text_expression().decode())
        )
        flags, body = re.match(rb"((?:\(\?[a-z]+\))*)([\s\S]*)", expression).groups()  # type: ignore[union-attr]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # [[:alpha:]] and the like
                anywhere = re.compile(flags + b"(?:" + body + b")", re.MULTILINE)
                at_end = re.compile(flags + b"(?:" + body + b")(?=[\\s\\S]\\Z)", re.MULTILINE)
        except (re.error, Warning, OverflowError, RecursionError):
            return None
        longest = len(rule.regex.encode()) * math.prod(
            int(most) for most in re.findall(r"(\d+)\}", rule.regex)
        )
        return cls(
            anywhere, at_end, longest <= MAX_REGEX_BYTES and not re.search(r"[*+]|,\}", rule.regex)
        )

    def ends(self, data: bytes) -> list[int]:
        """From left to right, the first in each line. One at the very end of the record may hang on
        the next byte."""
        ends = (match.end() for match in self.anywhere.finditer(data))
        return _first_in_line((end for end in ends if 0 < end < len(data)), data)

    def ends_at(self, data: bytes, end: int) -> bool | None:
        """Whether some match ends there; None: perhaps, one that is too long."""
        if not 0 < end <= len(data):
            return False
        begin = max(0, end - MAX_REGEX_BYTES)
        # Nearly always it is a short one; and a few bytes more in front, as the pattern may look at
        # what stands before it.
        for at in (max(begin, end - 256), begin):
            front = max(0, at - 1)
            piece = data[front : end + 1] if end < len(data) else data[front:] + b"\n"
            if self.at_end.search(piece, at - front):
                return True
        return False if begin == 0 or self.is_short else None


def _sequence(rule: ConsoleRule, firsts: list[int], thens: list[int], time_of: TimeOf) -> list[int]:
    """A second text that begins behind a first one, in time. Each first text is good for one second
    text."""
    hits, spent = [], 0
    for end in thens:
        start = end - len(as_read(rule.then))
        before = firsts[bisect_right(firsts, spent) : bisect_right(firsts, start)]
        if any(time_of(end) - time_of(first) <= rule.within_ms * NS_PER_MS for first in before):
            hits.append(end)
        spent = start
    return hits


def _rate(rule: ConsoleRule, ends: list[int], time_of: TimeOf) -> list[int]:
    """A hit begins a new count."""
    hits, counted = [], 0
    for number, end in enumerate(ends, 1):
        if number - counted < rule.count:
            continue
        if time_of(end) - time_of(ends[number - rule.count]) <= rule.within_ms * NS_PER_MS:
            hits.append(end)
            counted = number
    return hits
