"""``list`` and ``show``."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness import store
from harness.cli.output import err, out, print_json, say
from harness.core.text import escape
from harness.errors import UsageError
from harness.report import text


def list_incidents(out_dir: Path, *, as_json: bool) -> None:
    found = store.incidents(out_dir)
    if as_json:
        print_json({"incidents": [_row(one) for one in found]})
        return
    if not found:
        say(f"no incidents in {escape(str(out_dir))}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("incident", "outcome", "scenario", "trigger", "data equal"):
        table.add_column(heading, overflow="fold")
    for one in found:
        row = _row(one)
        equal = {True: "yes", False: "NO", None: "-"}[
            row["data_equal"] if isinstance(row["data_equal"], bool) else None
        ]
        table.add_row(
            Text(text.text(row["id"])),
            Text(row["outcome"], style=text.OUTCOME_STYLE.get(row["outcome"], "")),
            Text(text.text(row["scenario"] or "watch")),
            Text(text.text(row["rule"] or "-")),
            Text(equal),
        )
    out.print(table)


def _row(one: store.StoredIncident) -> dict[str, Any]:
    trigger = one.record.get("trigger")
    return {
        "id": one.id,
        "incident": str(one.path.absolute()),
        "outcome": one.outcome,
        "scenario": one.record.get("scenario"),
        "bench": one.record.get("bench"),
        "seed": one.record.get("seed"),
        "rule": trigger.get("rule") if isinstance(trigger, dict) else None,
        "data_equal": one.record.get("data_equal"),
    }


def show(what: str, out_dir: Path, *, timeline: bool, as_json: bool) -> None:
    one = store.find(what, out_dir)
    if as_json:
        told: dict[str, Any] = {**one.record, "outcome": one.outcome, "incident": str(one.path.absolute())}
        if one.problems:
            told["problems"] = list(one.problems)
        if timeline:
            told["timeline"] = one.timeline()
        print_json(told)
        return
    try:
        shown = text.summary(one.record, one.outcome)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{one.path / store.RECORD}: not as FreezeFrame writes it ({error}); --json prints it as it stands"
        ) from error
    out.print(shown)
    for problem in one.problems:
        err.print(f"  {escape(problem)}", style="yellow", markup=False)
    if timeline:
        _timeline(one)
    say(f"incident: {escape(str(one.path.absolute()))}")


def _timeline(one: store.StoredIncident) -> None:
    rows = one.timeline()
    start_ns = next((row["t_ns"] for row in rows if isinstance(row.get("t_ns"), int)), 0)
    for row in rows:
        t_ns = row.get("t_ns")
        at = f"{(t_ns - start_ns) / 1e9:12.6f}" if isinstance(t_ns, int) else " " * 12
        rest = " ".join(
            f"{key}={row[key]}"
            for key in row
            if key not in ("t_ns", "source", "side", "event") and row[key] not in ("", [])
        )
        say(
            escape(
                f"{at}  {row.get('source', '')!s:<10} {row.get('side', '')!s:<9} {row.get('event', '')!s:<16} {rest}"
            )[:400]
        )
