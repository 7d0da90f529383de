"""What makes a trigger of a console rule's matches: one match, A then B within a time, a rate, or silence.

Matches and time in, hits out, for one console. The time of a match is that of the read that completed it. State is a
few numbers a rule, and for a rate its newest ``count`` times: bounded for ever.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from harness.core.events import NS_PER_MS, Ns
from harness.core.rules import ConsoleRule

FIRST: Final = 0
THEN: Final = 1
"""Part of a rule that a pattern stands for: its own text, or the text that has to follow."""


class Hit(msgspec.Struct, frozen=True):
    rule: int
    """Index into the rules that the Scanner was made with."""
    end_offset_bytes: int
    """Absolute offset in the stream just behind the match; for silence that of the next byte to come."""


class Conditions:
    """The compound rules of one console; plain rules need none of this."""

    def __init__(self, rules: Sequence[tuple[int, ConsoleRule]]) -> None:
        self._rules = {index: rule for index, rule in rules if rule.is_compound}
        self._first: dict[int, tuple[int, Ns]] = {}
        """Sequence rules: end and time of the newest first text that nothing has followed."""
        self._recent: dict[int, deque[Ns]] = {
            index: deque(maxlen=rule.count) for index, rule in self._rules.items() if rule.count
        }
        self._silent_at: dict[int, Ns] = {}
        """Silence rules whose text was seen: when it will have been missing for too long."""

    def judge(self, rule: int, part: int, end: int, now_ns: Ns) -> Hit | None:
        """One match of a pattern; matches come in the order of their ends."""
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
        if part == FIRST:
            self._first[rule] = (end, now_ns)
            return None
        first_end, first_ns = self._first.get(rule, (end, now_ns))
        if end - len(found.then.encode()) < first_end:
            return None  # nothing came before it, or the two overlap
        del self._first[rule]
        return Hit(rule, end) if now_ns - first_ns <= within_ns else None

    def adopt(self, other: "Conditions", renumbered: Mapping[int, int]) -> None:
        """Take over what ``other`` has seen of rules that stay: their old index -> their new one."""
        for old, new in renumbered.items():
            if old in other._first:
                self._first[new] = other._first[old]
            if old in other._recent and new in self._recent:
                self._recent[new] = other._recent[old]
            if old in other._silent_at:
                self._silent_at[new] = other._silent_at[old]

    def next_deadline(self) -> Ns | None:
        """When ``tick`` has something to tell if no byte comes."""
        return min(self._silent_at.values(), default=None)

    def tick(self, now_ns: Ns, offset: int) -> list[Hit]:
        """Every byte that came until ``now_ns`` was fed, ``offset`` of them: what is missing is missing. Told once a
        silence: the rule wakes up with its text's next match."""
        due = [rule for rule, silent_ns in self._silent_at.items() if silent_ns <= now_ns]
        for rule in due:
            del self._silent_at[rule]
        return [Hit(rule, offset) for rule in due]
