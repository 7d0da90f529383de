"""After a run: the recorded console bytes against the rules once more, with a plain matcher, and what the reflex told.

Slow and obvious on purpose: ``bytes.find`` for literals, the standard library's ``re`` line by line for regexes. It
shares nothing with the Scanner but the rules. A miss of either is evidence against the harness, never against a device.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.core.events import NS_PER_MS, Ns, Side
from harness.core.rules import ConsoleRule

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
    """Rules that the plain matcher cannot judge: silences, sequences and rates of regexes, other syntax."""

    @property
    def agrees(self) -> bool:
        return not self.missed and not self.unfounded


def recheck(
    rules: Sequence[ConsoleRule],
    side: Side,
    data: bytes,
    reads: Sequence[tuple[Ns, int]],
    told: Iterable[tuple[str, int]],
) -> Recheck:
    """``data``: the whole record. ``reads``: (t_ns, offset of its first byte) of each read of the reflex, in order; what
    stands in front of the first one was read before there was a reflex, and is not its to tell. ``told``: (rule,
    offset) of each hit that the reflex told of this console."""
    if reads and (begin := reads[0][1]) > 0:
        return _moved(
            recheck(
                rules,
                side,
                data[begin:],
                [(t_ns, offset - begin) for t_ns, offset in reads],
                [(name, end - begin) for name, end in told],
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
        if rule.regex or rule.then_regex or rule.interleaved:
            lines = None
            if not rule.is_compound:
                lines = _torn(rule.literal.encode(), data) if rule.interleaved else _lines(rule.regex, data)
            if lines is None:
                outcome.not_checked.append(rule.name)
                continue
            hits += len(lines)
            outcome.missed.extend(
                (rule.name, end) for start, end in lines if not any(start < one <= end for one in seen)
            )
            continue
        if rule.absent_ms:
            outcome.not_checked.append(rule.name)
            continue
        ends = _ends(rule.literal.encode(), data)
        if rule.then:
            ends = _sequence(rule, ends, _ends(rule.then.encode(), data), time_of)
        elif rule.count:
            ends = _rate(rule, ends, time_of)
        hits += len(ends)
        outcome.missed.extend((rule.name, end) for end in sorted(set(ends) - set(seen)))
        outcome.unfounded.extend((rule.name, end) for end in sorted(set(seen) - set(ends)))
    return Recheck(len(data), hits, outcome.missed, outcome.unfounded, outcome.not_checked)


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


def _lines(regex: str, data: bytes) -> list[tuple[int, int]] | None:
    """(start, end) of each line that matches; None when ``re`` does not know the syntax."""
    try:
        pattern = re.compile(regex.encode(), re.MULTILINE)
    except re.error:
        return None
    found, start = [], 0
    for line in data.split(b"\n")[:-1]:
        if pattern.search(line.removesuffix(b"\r") + b"\n"):
            found.append((start, start + len(line) + 1))
        start += len(line) + 1
    return found


def _torn(literal: bytes, data: bytes) -> list[tuple[int, int]]:
    """(start, end) of each line that holds the literal, or begins with the rest of one that the line before begins."""
    found, start, before = [], 0, b""
    for line in data.split(b"\n")[:-1]:
        cuts = range(1, len(literal))
        if literal in line or (
            start and any(line.startswith(literal[at:]) and literal[:at] in before for at in cuts)
        ):
            found.append((start, start + len(line) + 1))
        before = line
        start += len(line) + 1
    return found


def _sequence(rule: ConsoleRule, firsts: list[int], thens: list[int], time_of: TimeOf) -> list[int]:
    """A second text that begins behind a first one, in time. Each first text is good for one second text."""
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
