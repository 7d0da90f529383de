"""The bench's rule files while a run goes on: read again when one of them changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.console.rules import ConsoleRule, RuleSet
from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.errors import UsageError
from freezeframe.harness.runs.selfcheck import own_rules

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


class RulesInForce:
    """The rules of an open bench while something is recorded by them."""

    def __init__(self, opened: OpenBench, *more: ConsoleRule) -> None:
        """``more``: in force beside the bench's, like the harness's own."""
        boot_lines = {
            side: getattr(one, "boot_line", b"") for side, one in opened.controllers.items()
        }
        self._files = RuleFiles(opened.bench)
        self._own = (*own_rules(boot_lines), *more)
        rules = opened.bench.rules()
        self.rules = self._with_own(rules)
        """What the watchers look for."""
        self.throughout: Sequence[ConsoleRule] = rules.console
        """Console rules of the bench that were in force from the start of the record."""
        self.ever: Sequence[ConsoleRule] = rules.console
        """And those that were for a part of it only."""

    def begin(self) -> None:
        """Another record begins."""
        self.throughout = self.ever = tuple(
            rule for rule in self.rules.console if rule not in self._own
        )

    def reload(self, now_ns: Ns) -> str:
        """Read changed files; return a sentence about it, "" when nothing has changed. UsageError:
        they are wrong, and nothing changes."""
        try:
            fresh = self._files.changed(now_ns)
        except UsageError as error:
            raise UsageError(f"the changed rules are not used: {error}") from error
        if fresh is None:
            return ""
        # New rules know some KiB of what was there before: enough for literals, not for what may be
        # of any length.
        self.throughout = tuple(
            rule
            for rule in self.throughout
            if rule in fresh.console and not (rule.regex or rule.then_regex or rule.interleaved)
        )
        self.ever = (*self.ever, *(rule for rule in fresh.console if rule not in self.ever))
        self.rules = self._with_own(fresh)
        return f"rules read again: {len(fresh.console)} for the consoles"

    def _with_own(self, rules: RuleSet) -> RuleSet:
        return replace(rules, console=(*rules.console, *self._own))


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
