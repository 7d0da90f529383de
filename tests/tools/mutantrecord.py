"""Which test runs which lines: what ``mutants.py`` chooses the nearest tests by.

A record is kept in ``build/`` and carried on: lines move with the source, and of test files that
have changed only the new tests are recorded. A record that is out of date can only leave a test out,
and a bug that is missed for that counts as missed. Remove the file to record everything.
"""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Final

from mutantdraw import ROOT, Mutant, watched
from whereis import TABLE

ENOUGH_S: Final = 100
"""Of tests at each distance from one bug, as long as they took while they were recorded."""
KEPT: Final = ROOT / "build" / "mutants-record.json"


class Record:
    """What each test ran, and how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, set[int]]] = {}
        """Path -> test -> lines. The test "" is what ran while modules were loaded."""
        self.done: set[str] = set()
        """Test files of which nothing new is to be recorded."""

    def add(self, test: str, seconds: float, lines: Mapping[str, Sequence[int]]) -> None:
        if test:
            self.seconds[test] = seconds
        for path, ran in lines.items():
            self.lines.setdefault(path, {}).setdefault(test, set()).update(ran)

    # --- kept -----------------------------------------------------------------------------------
    def keep(self) -> None:
        rows = [
            (test, self.seconds.get(test, 0.0), {
                path: sorted(by_test[test]) for path, by_test in self.lines.items() if test in by_test
            })
            for test in ("", *self.seconds)
        ]  # fmt: skip
        files = {_file(test) for test in self.seconds}
        kept = {"sources": watched(), "tests": {one: _digest(one) for one in files}, "rows": rows}
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept), encoding="utf-8")

    @classmethod
    def kept(cls) -> "Record":
        """Of the earlier run, with the lines where they are now."""
        record = cls()
        if not KEPT.exists():
            return record
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        now = watched()
        moves = {
            path: _moves(before, now[path])
            for path, before in kept["sources"].items()
            if path in now
        }
        record.done = {one for one, digest in kept["tests"].items() if _digest(one) == digest}
        for test, seconds, lines in kept["rows"]:
            if not test or _digest(_file(test)):
                moved = {
                    path: [at for line in ran for at in moves[path].get(line, ())]
                    for path, ran in lines.items()
                    if path in moves
                }
                record.add(test, seconds, moved)
        return record

    # --- chosen ---------------------------------------------------------------------------------
    def while_loading(self, mutant: Mutant) -> bool:
        """Whether the changed lines run while modules are loaded."""
        loaded = self.lines.get(mutant.path, {}).get("", set())
        return mutant.function is None or not loaded.isdisjoint(mutant.lines)

    def tests(self, mutant: Mutant) -> tuple[str, ...]:
        """The nearest of those that run the changed lines: in the module's own files, in its mirror
        folder, and elsewhere, from each of the three until they have taken ``ENOUGH_S``. Quick files
        come first, and in a file one test of each function. For what runs while loading, of those
        that run anything of the module."""
        at_load = self.while_loading(mutant)
        chosen = [
            test
            for test, lines in self.lines.get(mutant.path, {}).items()
            if test and (at_load or not lines.isdisjoint(mutant.lines))
        ]
        own = {f"test_{mutant.path.rpartition('/')[2]}"}
        own |= {one.rpartition("/")[2] for one in _where().get(mutant.path, ())}
        of_file: Counter[str] = Counter()
        of_function: Counter[str] = Counter()
        rank: dict[str, int] = {}
        for test in sorted(chosen, key=self.seconds.__getitem__):
            of_file[_file(test)] += round(self.seconds[test] * 1000)
            of_function[test.partition("[")[0]] += 1
            rank[test] = of_function[test.partition("[")[0]]

        mirror = f"tests/{mutant.path.rpartition('/')[0]}/"

        def distance(file: str) -> int:
            return 0 if file.rpartition("/")[2] in own else 1 if file.startswith(mirror) else 2

        def key(test: str) -> tuple[int, int, str, int, float]:
            file = _file(test)
            return distance(file), of_file[file], file, rank[test], self.seconds[test]

        nearest, spent_s = [], [0.0] * 3
        for test in sorted(chosen, key=key):
            at = distance(_file(test))
            if spent_s[at] < ENOUGH_S:
                nearest.append(test)
            spent_s[at] += self.seconds[test]
        return tuple(nearest)


@cache
def _where() -> Mapping[str, Sequence[str]]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _file(test: str) -> str:
    return test.partition("::")[0]


@cache
def _digest(file: str) -> str:
    path = ROOT / file
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _moves(before: str, after: str) -> dict[int, tuple[int, ...]]:
    """Line -> where it is now. Lines that are new belong to the line before them."""
    if before == after:
        return {line: (line,) for line in range(1, before.count("\n") + 2)}
    return dict(_moved(before.splitlines(), after.splitlines()))


def _moved(before: list[str], after: list[str]) -> Iterator[tuple[int, tuple[int, ...]]]:
    for what, a, a_end, b, b_end in SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if what == "equal":
            for line in range(a, a_end):
                yield line + 1, (line - a + b + 1,)
        elif what == "replace":
            for line in range(a, a_end):
                yield line + 1, tuple(range(b + 1, b_end + 1))
        elif what == "insert" and a:
            yield a, (b, *range(b + 1, b_end + 1))
