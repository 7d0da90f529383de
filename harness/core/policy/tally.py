"""Counts what repeats, so that a storm is reported and does not become a storm of reports."""

from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns

PERIOD_NS: Final = 10 * NS_PER_S
"""One text is reported when it is new, and then as a number at most so often."""
MAX_TEXTS: Final = 256
"""Texts counted one by one; those beyond are counted together."""
OTHERS: Final = ("", "others")


class Tally:
    """Texts by what they are about."""

    def __init__(self) -> None:
        self._more: dict[tuple[str, str], int] = {}
        self._due: dict[tuple[str, str], Ns] = {}

    def is_new(self, about: str, text: str, now: Ns) -> bool:
        """Whether it is to be reported now; otherwise it is counted."""
        key = (about, text)
        if key not in self._due:
            if len(self._due) < MAX_TEXTS:
                self._due[key] = now + PERIOD_NS
                return True
            key = OTHERS
            self._due.setdefault(key, now + PERIOD_NS)
        self._more[key] = self._more.get(key, 0) + 1
        return False

    def next_ns(self) -> Ns | None:
        return min(self._due.values(), default=None)

    def due(self, now: Ns, *, all_of_it: bool = False) -> list[tuple[str, str, int]]:
        """(about, text, how often it came since it was last reported), of those whose period has
        passed."""
        ended = [key for key, due_ns in self._due.items() if all_of_it or due_ns <= now]
        found = []
        for key in ended:
            count = self._more.pop(key, 0)
            if count:
                found.append((*key, count))
                self._due[key] = now + PERIOD_NS
            else:
                del self._due[key]
        return found
