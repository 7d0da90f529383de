"""What makes a trigger of a console rule's matches: one match, A then B within a time, a rate, or
silence.

Matches and time in, hits out, for one console. The time of a match is that of the read that
completed it. State is a few numbers a rule, for a rate its newest ``count`` times, and for a
sequence the first texts that what follows may overlap: bounded for ever.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from freezeframe.harness.core.console.rules import ConsoleRule, as_read
from freezeframe.harness.core.events import NS_PER_MS, Ns

FIRST: Final = 0
THEN: Final = 1
"""Part of a rule that a pattern stands for: its own text, or the text that has to follow."""
MAX_THEN_BYTES: Final = 1024
"""A match of ``then_regex`` may be so long and still hold the rule's first text, without hiding one
before it."""


class Hit(msgspec.Struct, frozen=True):
    rule: int
    """Index into the rules that the Scanner was made with."""
    end_offset_bytes: int
    """Absolute offset in the stream just behind the match; for silence that of the next byte to
    come."""


class Conditions:
    """The compound rules of one console; plain rules need none of this."""

    def __init__(self, rules: Sequence[tuple[int, ConsoleRule]]) -> None:
        self._rules = {index: rule for index, rule in rules if rule.is_compound}
        self._firsts: dict[int, deque[tuple[int, Ns]]] = {
            index: deque() for index, rule in self._rules.items() if rule.then or rule.then_regex
        }
        """Sequence rules: end and time of the first texts that nothing has followed and that may be
        the newest before the next text to follow."""
        self._recent: dict[int, deque[Ns]] = {
            index: deque(maxlen=rule.count) for index, rule in self._rules.items() if rule.count
        }
        self._silent_at: dict[int, Ns] = {}
        """Silence rules whose text was seen: when it will have been missing for too long."""

    def judge(self, rule: int, part: int, start: int, end: int, now_ns: Ns) -> Hit | None:
        """One match of a pattern; matches come in the order of their ends. ``start`` is looked at
        for ``then_regex``."""
        found = self._rules.get(rule)
        if found is None:
            return Hit(rule, end)
        within_ns = found.within_ms * NS_PER_MS
        if found.absent_ms:
            self._silent_at[rule] = now_ns + found.absent_ms * NS_PER_MS
            return None
        if found.count:
            times = self._recent[rule]
            times.append(now_ns)
            if len(times) < found.count or now_ns - times[0] > within_ns:
                return None
            times.clear()
            return Hit(rule, end)
        firsts, then_bytes = self._firsts[rule], len(as_read(found.then))
        if part == FIRST:
            firsts.append((end, now_ns))
            # What follows ends behind here and is only so long: of those that it cannot overlap the
            # newest is enough.
            reach = end - (then_bytes or MAX_THEN_BYTES)
            while len(firsts) > 1 and firsts[1][0] <= reach:
                firsts.popleft()
            return None
        if found.then:
            start = end - then_bytes
        newest_ns = None
        while firsts and firsts[0][0] <= start:
            newest_ns = firsts.popleft()[1]
        return Hit(rule, end) if newest_ns is not None and now_ns - newest_ns <= within_ns else None

    def adopt(self, other: "Conditions", renumbered: Mapping[int, int]) -> None:
        """Take over what ``other`` has seen of rules that stay: their old index -> their new
        one."""
        for old, new in renumbered.items():
            if old in other._firsts and new in self._firsts:
                self._firsts[new] = other._firsts[old]
            if old in other._recent and new in self._recent:
                self._recent[new] = other._recent[old]
            if old in other._silent_at:
                self._silent_at[new] = other._silent_at[old]

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to tell if no byte comes."""
        return min(self._silent_at.values(), default=None)

    def tick(self, now_ns: Ns, offset: int) -> list[Hit]:
        """Every byte that came until ``now_ns`` was fed, ``offset`` of them: what is missing is
        missing. Told once a silence: the rule wakes up with its text's next match."""
        due = [rule for rule, silent_ns in self._silent_at.items() if silent_ns <= now_ns]
        for rule in due:
            del self._silent_at[rule]
        return [Hit(rule, offset) for rule in due]
