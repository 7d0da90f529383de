"""A pair as the fixture opens it, for a test that looks inside."""

from pathlib import Path

from freezeframe.fixtures.pair import Incidents, Pair
from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import Trigger


def open_pair(bench: Bench, folder: Path, name: str) -> Pair:
    """Its run and its incidents are in ``folder``; ``finish`` it."""
    run_dir = folder / "r"
    run_dir.mkdir()
    opened = OpenBench(bench, run_dir, seed=1)
    return Pair(opened, Incidents(folder / "incidents"), 1, name)


def finish(pair: Pair) -> list[Trigger]:
    """Stop watching, close the bench, and return the unexpected triggers."""
    try:
        return pair.finish()
    finally:
        pair.opened.close()
