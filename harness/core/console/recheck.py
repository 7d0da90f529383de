"""After a run: the recorded console bytes against the rules once more, with a plain matcher, and
what the reflex told.

Slow and obvious on purpose. It shares nothing with the Scanner but the rules. A miss of either is
evidence against the harness, never against a device.

* Literals, also torn ones: ``bytes.find``, each occurrence; what was told must be exactly those (of torn ones the first a
  line).
* Regexes: the standard library's ``re`` over the whole record. It tells one match a place, Hyperscan each end of each, so:
  what was told must be an end of some match, and each match that ``re`` finds from left to right must have been told in the
  line in which it ends, there or before. What was told may begin up to MAX_REGEX_BYTES before; one that might be longer
  is not judged.
"""

import math
import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

from freezeframe.harness.core.console.rules import ConsoleRule
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
    """(rule, offset) that the reflex should have told and did not."""
    unfounded: list[tuple[str, int]] = field(default_factory=list)
    """Told by the reflex, and not there."""
    not_checked: list[str] = field(default_factory=list)
    """Rules that the plain matcher cannot judge, or not in full: silences, sequences and rates of
    regexes and of torn literals, a regex whose syntax is another one in ``re``, or that told of a
    match that may be too long."""

    @property
    def agrees(self) -> bool:
        return not self.missed and not self.unfounded


def recheck(
    rules: Sequence[ConsoleRule],
    side: Side,
    data: bytes,
    reads: Sequence[tuple[Ns, int]],
    told: Iterable[tuple[str, int]],
    limit: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Recheck:
    """``data``: the whole record. ``reads``: (t_ns, offset of its first byte) of each read of the
    reflex, in order; what stands in front of the first one was read before there was a reflex, and
    is not its to tell. ``told``: (rule, offset) of each hit that the reflex told of this console.
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
                [(name, end - begin) for name, end in told],
                limit,
            ),
            begin,
        )
    told_of: dict[str, list[int]] = {}
    for name, end in told:
        told_of.setdefault(name, []).append(end)
    outcome = Recheck(len(data), 0)
    hits = 0
    starts = [offset for _, offset in reads]

    def time_of(end: int) -> Ns:
        at = bisect_right(starts, end - 1) - 1
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
            judged = _judged(rule, data, seen, limit)
            if judged is None:
                outcome.not_checked.append(rule.name)
                continue
            hits += judged.hits
            outcome.missed.extend(judged.missed)
            outcome.unfounded.extend(judged.unfounded)
            outcome.not_checked.extend(judged.not_checked)
            continue
        ends = _ends(rule.literal.encode(), data)
        if rule.then:
            ends = _sequence(rule, ends, _ends(rule.then.encode(), data), time_of)
        elif rule.count:
            ends = _rate(rule, ends, time_of)
        elif rule.interleaved:
            ends = _first_in_line(sorted({*ends, *_torn(rule.literal.encode(), data)}), data)
        hits += len(ends)
        right, found = Counter(ends), Counter(seen)  # twice is once too often
        outcome.missed.extend((rule.name, end) for end in sorted((right - found).elements()))
        outcome.unfounded.extend((rule.name, end) for end in sorted((found - right).elements()))
    return Recheck(len(data), hits, outcome.missed, outcome.unfounded, outcome.not_checked)


def _judged(
    rule: ConsoleRule,
    data: bytes,
    told: list[int],
    limit: Callable[[], AbstractContextManager[object]],
) -> Recheck | None:
    """Of one regex; None: it cannot be judged."""
    pattern = _Regex.of(rule)
    if pattern is None:
        return None
    seen = sorted(set(told))
    try:
        with limit():
            ends = pattern.ends(data)
            verdicts = {end: pattern.ends_at(data, end) for end in seen}
    except (TimeoutError, MemoryError):
        return None
    return Recheck(
        len(data),
        len(ends),
        [(rule.name, end) for end in ends if not _told_in_line(data, seen, end)],
        [(rule.name, end) for end, is_one in verdicts.items() if is_one is False],
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


def _is_one_line(data: bytes, end: int, later: int) -> bool:
    """Whether two matches end in the same line, which ends behind ``\\r`` or ``\\n``."""
    return data.find(b"\n", end - 1, later - 1) < 0 and data.find(b"\r", end - 1, later - 1) < 0


def _first_in_line(ends: Iterable[int], data: bytes) -> list[int]:
    """Of ends in their order the first of each line."""
    firsts, before = [], 0
    for end in ends:
        if not before or not _is_one_line(data, before, end):
            firsts.append(end)
        before = end
    return firsts


def _told_in_line(data: bytes, told: list[int], end: int) -> bool:
    """Whether one of ``told``, in order, is in the line of ``end``, there or before."""
    at = bisect_right(told, end)
    return at > 0 and told[at - 1] > 0 and _is_one_line(data, told[at - 1], end)


def _torn(literal: bytes, data: bytes) -> list[int]:
    """Behind each rest of the literal with which a line begins, when the line before holds what is
    in front of the rest."""
    ends, line_at = [], 0
    while (end_of_line := data.find(b"\n", line_at)) >= 0:
        line, rest_at = data[line_at:end_of_line], end_of_line + 1
        for cut in range(1, len(literal)):
            if data.startswith(literal[cut:], rest_at) and literal[:cut] in line:
                ends.append(rest_at + len(literal) - cut)
        line_at = rest_at
    return ends


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
        expression = rule.expression().replace(b"(?:\\r?$)", b"(?:\\r?(?=\\n))")
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
        start = end - len(rule.then.encode())
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
