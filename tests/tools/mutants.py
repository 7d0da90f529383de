"""Deliberate bugs, and whether the tests notice: `make mutants`.

    python tests/tools/mutants.py [--named] [--drawn N] [--seed S] [--only TEXT] [--workers W]
        [--write docs/mutants.md]

Two sources. ``tests/tools/mutants.toml`` names bugs that once went unnoticed: a file, the text to
replace, the replacement, the tests nearest to it. ``--drawn N`` draws N further changes by the
seed from the syntax of the modules in ``DRAWN_FROM`` (mutantdraw.py). Each change has a number that depends on the
seed and on its own line only, and the lowest numbers are drawn: an edit elsewhere draws no other.

The tests nearest to a drawn change are those of ``DRAWN_TESTS`` that run its line, as one recorded
run of all of them shows; those of its module's own test file come first. They are loaded once, and
each bug is put into a fork of that process (``mutantplay.py``). A bug in what runs while modules
are loaded, and a named one, gets a process of its own.

A bug is caught when a test fails with it that passes without it, directly afterwards. A test that
does not end is such a failure only if it needs at most a quarter of the limit without the bug;
else both are played again with a longer limit, and in the end the bug counts as missed.
Each bug is made in a copy of the checkout, whose ``src`` comes first on the import path.
Exit status: 0 when each named bug and at least 95 % of the drawn ones are caught, 1 otherwise.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from mutantdraw import DRAWN_FROM, ROOT, Mutant, drawn, named
from mutantrecord import Record

DRAWN_TESTS: Final = ("tests/harness/core", "tests/harness/incidents", "tests/fixtures/explore")
LIMIT_S: Final = 60
"""The first limit of one test. It is multiplied by 4 while the healthy code comes near to it."""
LIMITS: Final = 3
CAUGHT_SHARE: Final = 0.95
_COPIED: Final = (
    "src", "harness", "drivers", "firmware_sim", "fixtures", "bench_configs", "tests", "docs",
    "pyproject.toml", "setup.py", "README.md", "Makefile", "CHANGELOG.md",
)  # fmt: skip


# --- run --------------------------------------------------------------------------------------------------
def copy_checkout(to: Path) -> None:
    """The checkout as it is, with its built C module and without what tests leave behind."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".hypothesis")
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, to / name)
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)


@dataclass
class Played:
    """How a run of tests ended: ``passed``, ``failed`` or ``hangs``, and at which test."""

    end: str = "failed"
    test: str = ""
    seconds: float = 0.0


class Worker:
    """A copy of the checkout, and the process in it that has loaded the tests."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._server: subprocess.Popen[bytes] | None = None
        self._orders: IO[str] | None = None
        self._reports = -1
        checkout.mkdir()
        copy_checkout(checkout)

    # -- processes
    def _start(
        self, tests: Sequence[str], task: Mapping[str, object], *fds: int
    ) -> tuple[subprocess.Popen[bytes], int]:
        """pytest with the plugin, and the descriptor on which it reports."""
        read, write = os.pipe()
        paper = self._checkout.parent / f"{self._checkout.name}{task['mode']}.json"
        paper.write_text(json.dumps({**task, "report": write}), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self._checkout / 'src'}:{self._checkout / 'tests' / 'tools'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "FREEZEFRAME_MUTANTS_TASK": str(paper),
        }
        environment.pop("CI", None)
        command = [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly",
            "-p", "mutantplay", "--timeout=0", "--tb=native", f"--basetemp={paper.with_suffix('')}", *tests,
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            cwd=self._checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write, *fds),
            start_new_session=True,
        )
        os.close(write)
        return process, read

    def record(self, files: Sequence[str], into: Record) -> None:
        if not files:
            return
        process, read = self._start(
            files, {"mode": "record", "watched": DRAWN_FROM, "known": list(into.seconds)}
        )
        with os.fdopen(read) as reports:
            for line in reports:
                into.add(**json.loads(line))
        process.wait()

    def serve(self) -> None:
        """Load the tests, all healthy, before the first bug is on disk."""
        read, write = os.pipe()
        task = {"mode": "serve", "orders": read}
        self._server, self._reports = self._start(DRAWN_TESTS, task, read)
        os.close(read)
        self._orders = os.fdopen(write, "w")
        if _follow(self._reports, self._server.pid, LIMIT_S).end != "ready":
            raise RuntimeError(f"the tests do not load: {' '.join(DRAWN_TESTS)}")

    def close(self) -> None:
        if self._orders is not None and self._server is not None:
            self._orders.close()
            self._server.wait()

    # -- play
    def _fresh(self, tests: Sequence[str], limit_s: float) -> Played:
        files = tuple(dict.fromkeys(test.partition("[")[0] for test in tests))
        process, read = self._start(files, {"mode": "fresh", "order": tests})
        try:
            return _follow(read, process.pid, limit_s)
        finally:
            os.close(read)
            _kill(process.pid)
            process.wait()

    def _forked(
        self, bug: Mapping[str, object] | None, tests: Sequence[str], limit_s: float
    ) -> Played:
        assert self._orders is not None
        self._orders.write(json.dumps({"bug": bug, "tests": tests}) + "\n")
        self._orders.flush()
        return _follow(self._reports, 0, limit_s)

    def play(
        self, mutant: Mutant, tests: Sequence[str], bug: bool, fresh: bool, limit_s: float
    ) -> Played:
        """Run the tests with the bug, or without it, until one fails or does not end in time."""
        target = self._checkout / mutant.path
        if bug:
            target.write_text(mutant.after, encoding="utf-8")
        try:
            if fresh:
                return self._fresh(tests, limit_s)
            change = {
                "path": mutant.path, "before": mutant.before, "after": mutant.after,
                "number": mutant.function,
            }  # fmt: skip
            return self._forked(change if bug else None, tests, limit_s)
        finally:
            target.write_text(mutant.before, encoding="utf-8")

    def verdict_on(self, mutant: Mutant, tests: Sequence[str], fresh: bool) -> str:
        """``caught by ...``, or ``MISSED`` and why."""
        if not tests:
            return "MISSED: no test runs it"
        limit_s, left = float(LIMIT_S), list(tests)
        for _ in range(LIMITS):
            ill = self.play(mutant, left, True, fresh, limit_s)
            if ill.end == "passed":
                return f"MISSED by {len(left)} tests"
            again = [ill.test] if ill.test in left or "::" in ill.test else left[:1]
            healthy = self.play(mutant, again, False, fresh, limit_s)
            if healthy.end == "passed" and ill.end == "failed":
                return f"caught by {ill.test or 'not loading'}"
            if healthy.end == "passed" and healthy.seconds <= limit_s / 4:
                return f"caught by {ill.test}, which hangs"
            if healthy.end == "failed" and ill.test in left and len(left) > 1:
                left.remove(ill.test)
            else:
                limit_s *= 4
        return f"MISSED: without the bug, {ill.test} fails too or is too slow"


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _follow(reports: int, group: int, limit_s: float) -> Played:
    """Read what a run of tests reports until it ends; kill it when one test takes too long."""
    played, text = Played(), b""
    started = time.monotonic()
    silent_s = max(limit_s, 300.0)  # until the first test: loading
    while True:
        ready, _, _ = select.select(
            [reports], [], [], max(0.0, started + silent_s - time.monotonic())
        )
        if not ready:
            played.end = "hangs"
            played.seconds = time.monotonic() - started
            _kill(group)
            if not group:
                raise RuntimeError("the process that has loaded the tests does not answer")
            silent_s = 60.0
            started = time.monotonic()
            continue
        more = os.read(reports, 1 << 16)
        if not more:
            return played
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            if "pid" in said:
                group = said["pid"]
            elif "start" in said:
                played.test, started, silent_s = said["start"], time.monotonic(), limit_s
            elif "failed" in said:
                played.test = said["failed"]
            elif "passed" in said:
                played.end = "passed"
                played.seconds = time.monotonic() - started
            elif "trouble" in said:
                played.test = said["trouble"]
            elif "ready" in said:
                return Played("ready")
            elif "end" in said:
                return played


def run(mutants: Sequence[Mutant], workers: int) -> dict[str, str]:
    """The verdict on each, printed as it comes."""
    results: dict[str, str] = {}
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ThreadPoolExecutor(workers) as pool,
    ):
        free = list(pool.map(Worker, (Path(folder) / str(number) for number in range(workers))))
        record = Record.kept()
        if any(not one.tests for one in mutants):
            found = (file for top in DRAWN_TESTS for file in (ROOT / top).rglob("test_*.py"))
            files = sorted({one.relative_to(ROOT).as_posix() for one in found} - record.done)
            shares = [files[at::workers] for at in range(workers)]
            list(pool.map(lambda worker, share: worker.record(share, record), free, shares))
            record.keep()
            seconds = time.monotonic() - started
            print(f"{len(files)} test files recorded in {seconds:.0f} s", flush=True)
            list(pool.map(Worker.serve, free))

        def one(mutant: Mutant) -> None:
            worker = free.pop()
            begun = time.monotonic()
            try:
                tests = mutant.tests or record.tests(mutant)
                fresh = bool(mutant.tests) or record.while_loading(mutant)
                results[mutant.name] = worker.verdict_on(mutant, tests, fresh)
            finally:
                free.append(worker)
            seconds = time.monotonic() - begun
            print(f"{seconds:5.1f} s  {mutant.name}\n         {results[mutant.name]}", flush=True)

        list(pool.map(one, mutants))
        for worker in free:
            worker.close()
    return results


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--named", action="store_true", help="those of mutants.toml")
    words.add_argument(
        "--drawn", type=int, default=0, metavar="N", help="so many drawn by the seed"
    )
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--only", default="", metavar="TEXT", help="those whose name holds this")
    words.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    words.add_argument("--write", type=Path, metavar="FILE", help="the results as a document")
    asked = words.parse_args()
    listed = list(named()) if asked.named or not asked.drawn else []
    sampled = drawn(asked.drawn, asked.seed) if asked.drawn else []
    chosen = [one for one in (*sampled, *listed) if asked.only in one.name]
    results = run(chosen, asked.workers)
    missed = [one for one in chosen if results[one.name].startswith("MISSED")]
    counts = [
        (source, len(played), sum(one not in missed for one in played))
        for source, mutants in (("named", listed), ("drawn", sampled))
        for played in ([one for one in chosen if one in mutants],)
    ]
    for source, count, caught in counts:
        print(f"{source}: caught {caught} of {count}")
    for one in missed:
        print(f"missed: {one.name}\n        {one.reason or results[one.name]}")
    if asked.write:
        asked.write.write_text(_page(asked.seed, counts, chosen, results), encoding="utf-8")
    (_, of_named, named_caught), (_, of_drawn, drawn_caught) = counts
    return 0 if named_caught == of_named and drawn_caught >= CAUGHT_SHARE * of_drawn else 1


def _page(
    seed: int,
    counts: Sequence[tuple[str, int, int]],
    mutants: Sequence[Mutant],
    results: Mapping[str, str],
) -> str:
    """docs/mutants.md"""
    text = (
        "# Do the tests notice a bug?\n\n"
        "`make mutants` puts bugs into the code on purpose, one at a time, and runs the nearest tests. A\n"
        "bug is *caught* when a test fails with it that passes without it. *Named* bugs are those of\n"
        "`tests/tools/mutants.toml`, which once went unnoticed. *Drawn* bugs are single changes of the\n"
        "syntax in `harness/core/link`, `harness/core/verdict`, `harness/core/recovery` and\n"
        "`harness/incidents/inquest.py`: a comparison turned, `and` for `or`, a sign changed, a call left\n"
        f"out, a result forgotten. `make mutants` wrote this file, with seed {seed}.\n\n"
        "| bugs | played | caught | missed |\n|---|---:|---:|---:|\n"
    )
    text += "".join(
        f"| {name} | {of} | {caught} | {of - caught} |\n" for name, of, caught in counts
    )
    rows: dict[bool, list[str]] = {False: [], True: []}
    for one in mutants:
        result = results[one.name]
        why = one.reason or result
        shown = one.name.replace("|", "\\|")
        rows[result.startswith("MISSED")].append(f"| `{shown}` | {why} |\n")
    for is_missed, title, head in ((True, "Missed", "why"), (False, "Caught", "how")):
        if rows[is_missed]:
            text += f"\n## {title}\n\n| bug | {head} |\n|---|---|\n{''.join(rows[is_missed])}"
    return text


if __name__ == "__main__":
    sys.exit(main())
