"""The runs of ``run --repeat``, also those without an incident: a line each in a file beside the
incidents. From them follow the rate of a kind, and whether it is gone.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from freezeframe.harness.core.text import did_you_mean, escape
from freezeframe.harness.edge.wholefile import make_folder, path_error
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.benchhistory import clean_runs_needed, interval

FILE: Final = "repeats.jsonl"
MAX_FILE_BYTES: Final = 64 << 20
JUDGED: Final = frozenset({"pass", "fail", "inconclusive"})
"""Outcomes that say something of the devices; a broken bench or an interrupted run says nothing."""


@dataclass(frozen=True, kw_only=True)
class RepeatedRun:
    """One run. Texts are escaped."""

    started: str
    scenario: str
    bench: str
    seed: int
    outcome: str
    incident: str
    """The incident's id; "": nothing was kept."""
    kind: str
    """The kind of its incident; "": none."""
    rule: str


def append(out_dir: Path, run: RepeatedRun) -> None:
    """Write one line. Raises UsageError or RigError if it cannot be written."""
    path = make_folder(out_dir) / FILE
    try:
        with path.open("ab") as file:
            file.write(json.dumps(asdict(run)).encode() + b"\n")
    except OSError as error:
        raise path_error(path, error) from error


def read(out_dir: Path) -> list[RepeatedRun]:
    """Return all runs in their order; what is no line of ours is passed over."""
    try:
        with (out_dir / FILE).open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except OSError:
        return []
    found = []
    names = tuple(RepeatedRun.__dataclass_fields__)
    for line in data.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("seed")) is not int:
                continue
            texts = {name: row.get(name) for name in names if name != "seed"}
            if all(isinstance(value, str) for value in texts.values()):
                shown = {name: escape(str(value)[:200]) for name, value in texts.items()}
                found.append(RepeatedRun(seed=row["seed"], **shown))
    return found


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Whether a kind is gone from a scenario on a bench."""

    kind: str
    scenario: str
    bench: str
    count: int
    runs: int
    """It came in ``count`` of ``runs`` runs, the last of them the last in which it came."""
    clean: int
    """Runs after that one."""
    needed: int
    """Clean runs that show, at 95 %, that it no longer comes at the rate seen."""
    needed_at_least_rate: int
    """The same, should the rate have been at the low end of its 95 % interval."""
    next_seed: int
    """No run had it or a higher one."""

    @property
    def is_proved(self) -> bool:
        return self.clean >= self.needed


def proofs(runs: Sequence[RepeatedRun], kind: str) -> list[Proof]:
    """One for each scenario and bench where it came. ``kind``: its name, first characters, or rule.
    Raises UsageError: no repeated run showed it."""
    judged = [one for one in runs if one.outcome in JUDGED]
    made = []
    for where in dict.fromkeys((one.scenario, one.bench) for one in judged):
        there = [one for one in judged if (one.scenario, one.bench) == where]
        hits = [at for at, one in enumerate(there) if _is_kind(one, kind)]
        if hits:
            until = hits[-1] + 1
            low, _ = interval(len(hits), until)
            made.append(
                Proof(
                    kind=kind,
                    scenario=where[0],
                    bench=where[1],
                    count=len(hits),
                    runs=until,
                    clean=len(there) - until,
                    needed=clean_runs_needed(len(hits) / until),
                    needed_at_least_rate=clean_runs_needed(low),
                    next_seed=max(one.seed for one in there) + 1,
                )
            )
    if not made:
        known = {name for one in judged for name in (one.kind, one.rule) if name}
        raise UsageError(
            f"no repeated run showed {kind}{did_you_mean(kind, known)}; freezeframe run SCENARIO --repeat N "
            "measures how often a kind comes"
        )
    return made


def _is_kind(run: RepeatedRun, kind: str) -> bool:
    return bool(run.kind) and (run.rule == kind or run.kind.startswith(kind))
