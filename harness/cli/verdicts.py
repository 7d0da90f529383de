"""``replay`` and ``adopt``: the verdict on a recorded incident from its files alone, and a test made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import typer

from harness import store
from harness.adopt import adopt as adopted
from harness.cli.output import EXIT_DEVICE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, print_json, say, show
from harness.core import oneclock
from harness.core.events import NS_PER_MS
from harness.core.text import escape
from harness.core.timeline import Row
from harness.core.verdict import judge
from harness.errors import RigError, UsageError
from harness.inquest import evidence_of, verdict_of
from harness.report import text

AROUND_NS: Final = 20 * NS_PER_MS
"""Before the cause and behind the detection: what ``replay --timeline`` shows."""


def replay(what: str, out_dir: Path, *, timeline: bool, as_json: bool) -> None:
    """Exit 0 when the verdict is the recorded one (or the first), 1 when it differs, 4 when it is inconclusive."""
    one = store.find(what, out_dir)
    verdict = verdict_of(one)
    recorded = one.record.get("verdict")
    same = None if recorded is None else recorded == verdict
    if as_json:
        told = {"incident": str(one.path.absolute()), "same": same, "verdict": verdict}
        print_json(told | {"timeline": _rows(one, verdict)} if timeline else told)
    else:
        show(text.verdict_report(verdict))
        for row in _rows(one, verdict) if timeline else ():
            say(text.clock_row(row, verdict["t_detect_ns"]))
        if same is not None:
            say(
                "the same as recorded"
                if same
                else "NOT the same as recorded: files or the program have changed"
            )
        say(f"incident: {escape(str(one.path.absolute()))}")
    if same is False:
        raise typer.Exit(EXIT_DEVICE_FAILED)
    raise typer.Exit(EXIT_PASS if verdict["conclusive"] else EXIT_INCONCLUSIVE)


def _rows(one: store.StoredIncident, verdict: Mapping[str, Any]) -> list[Row]:
    """All sources on one clock, from shortly before the cause to shortly behind the detection."""
    known = [t_ns for t_ns in (verdict["t_cause_ns"], verdict["t_detect_ns"]) if t_ns is not None]
    return oneclock.rows(evidence_of(one), min(known) - AROUND_NS, max(known) + AROUND_NS) if known else []


def adopt(what: str, out_dir: Path, to: Path, *, as_json: bool) -> None:
    """Write NAME.toml and test_NAME.py into ``to``; what is there already is not overwritten."""
    one = store.find(what, out_dir)
    evidence = evidence_of(one)
    made = adopted(one.record, judge(evidence), evidence)
    files = {to / f"{made.name}.toml": made.scenario, to / f"test_{made.name}.py": made.test}
    try:
        to.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            with path.open("x") as file:
                file.write(content)
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename} exists: adopted before? Remove it, or choose another --to"
        ) from error
    except OSError as error:
        raise RigError(f"{to}: {error.strerror}") from error
    scenario, test = map(str, files)
    if as_json:
        print_json({"incident": str(one.path.absolute()), "scenario": scenario, "test": test})
        return
    say(f"scenario: {escape(scenario)}")
    say(f"test:     {escape(test)}")
    say(f"run it:   python -m pytest {escape(test)}")
