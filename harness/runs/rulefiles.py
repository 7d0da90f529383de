"""The bench's rule files while a run goes on: read again when one of them changes."""

from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import NS_PER_S, Ns

LOOK_EVERY_NS: Final = NS_PER_S // 2


class RuleFiles:
    """``changed`` may be asked as often as one likes; it looks at the files twice a second."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._paths = bench.rule_paths()
        self._seen = _signature(self._paths)
        self._due_ns: Ns = 0

    def changed(self, now_ns: Ns) -> RuleSet | None:
        """The new rules, once a change. UsageError, also once, when they are wrong: the old ones
        stay in force."""
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + LOOK_EVERY_NS
        signature = _signature(self._paths)
        if signature == self._seen:
            return None
        self._seen = signature
        return self._bench.rules()


def _signature(paths: list[Path]) -> list[tuple[int, int, int]]:
    """What an editor's save changes: a new file in its place, or another time or size."""
    found = []
    for path in paths:
        try:
            status = path.stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0, 0))
    return found
