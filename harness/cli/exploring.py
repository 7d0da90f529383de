"""``explore``: histories of the policy against the simulated firmware, in virtual time."""

import importlib
import re
import time
from pathlib import Path
from typing import Any, Final

import typer

from freezeframe.harness.cli.output import (
    EXIT_DEVICE_FAILED,
    EXIT_PASS,
    err,
    print_json,
    say,
)
from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.edge.wholefile import make_folder
from freezeframe.harness.errors import UsageError

RUNNER: Final = "freezeframe.fixtures.explore.runner"
"""Loaded by name: it joins the harness with the simulated firmware, which no room of the harness may
import."""
_SHARD: Final = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})")


def parse_shard(text: str) -> tuple[int, int]:
    """(K, N) of "K/N". UsageError: it is none."""
    match = _SHARD.fullmatch(text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"--shard {text}: it is K/N with 1 <= K <= N, such as 1/4")
    return shard


def explore(
    *,
    runs: int,
    seed: int,
    workers: int,
    shard: str,
    mutant: str,
    tests: Path | None,
    dask: str,
    as_json: bool,
) -> None:
    """Play ``runs`` histories; those that fail are shrunk. Exits with 1 when one does."""
    runner: Any = importlib.import_module(RUNNER)
    if dask and (workers > 1 or mutant == "all"):
        raise UsageError(
            "--dask: the cluster has its own workers, and plays one bug: no --workers, no all"
        )
    if mutant == "all":
        _catch_all(runner, seed, workers, tests, as_json=as_json)
    if mutant and mutant not in runner.MUTANTS:
        near = did_you_mean(mutant, runner.MUTANTS)
        known = ", ".join(runner.MUTANTS)
        raise UsageError(
            f"--mutant {mutant}: no such deliberate bug{near}; there are: all, {known}"
        )
    if tests is not None:
        make_folder(tests)
    numbers = runner.seeds(runs, seed, parse_shard(shard))
    began_s = time.monotonic()

    def progress(done: int) -> None:
        if done % 500 == 0 and not as_json:
            err.print(f"{done} of {len(numbers)} histories, {time.monotonic() - began_s:.0f} s")

    found = runner.explore(numbers, workers=workers, mutant=mutant, dask=dask, progress=progress)
    took_s = time.monotonic() - began_s
    written = [str(one.write(tests)) for one in found.failures] if tests is not None else []
    if as_json:
        print_json(
            {
                "runs": found.runs, "seed": seed, "shard": shard, "seconds": round(took_s, 1),
                "incidents": found.incidents, "virtual_s": round(found.virtual_s),
                "failures": [
                    {
                        "seed": one.seed, "violation": one.violation, "command": one.command,
                        "history": one.history.as_json(),
                    }
                    for one in found.failures
                ],
                "tests": written,
            }
        )  # fmt: skip
    else:
        for one in found.failures:
            say(one.text())
        for path in written:
            say(f"  written as a test: {path}")
        say(
            f"{found.runs} histories, {found.incidents} incidents, {found.virtual_s / 3600:.1f} h of"
            f" virtual time in {took_s:.0f} s; violations: {len(found.failures) or 'none'}"
        )
    raise typer.Exit(EXIT_DEVICE_FAILED if found.failures else EXIT_PASS)


def _catch_all(runner: Any, seed: int, workers: int, tests: Path | None, *, as_json: bool) -> None:
    """Every deliberate bug must be found."""
    caught, rows = [], []
    for mutant in runner.MUTANTS:
        one = runner.catch(mutant, seed, workers=workers)
        caught.append(one)
        failure = one.failure
        rows.append(
            {
                "bug": mutant,
                "histories": one.runs,
                "violation": failure.violation if failure else None,
                "steps": [str(step) for step in failure.history.steps] if failure else None,
            }
        )
        if failure is not None and tests is not None:
            failure.write(tests)
        if not as_json:
            result = failure.violation if failure else "NOT FOUND"
            steps = f"{len(failure.history.steps)} steps" if failure else ""
            say(f"{mutant:26} {one.runs:5} {steps:>9}  {result}")
    if as_json:
        print_json(rows)
    else:
        say(runner.summary(caught))
    is_missed = any(one.failure is None for one in caught)
    raise typer.Exit(EXIT_DEVICE_FAILED if is_missed else EXIT_PASS)
