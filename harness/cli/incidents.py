"""``list``, ``show``, ``search`` and ``prune``: the incidents of a folder."""

from pathlib import Path
from typing import Final

import msgspec
from rich.table import Table
from rich.text import Text

from freezeframe.harness.cli import output
from freezeframe.harness.cli.output import err, print_json, say
from freezeframe.harness.cli.verdicts import say_timeline
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.errors import HarnessError, UsageError
from freezeframe.harness.incidents import store
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.index import Index, Indexed
from freezeframe.harness.incidents.inquest import known_verdict, plain, timeline_of
from freezeframe.harness.incidents.quota import GIB, prune
from freezeframe.harness.report import text
from freezeframe.harness.report.summary import summary

_EQUAL: Final = {True: "yes", False: "NO", None: "-"}


def list_incidents(out_dir: Path, *, kinds: bool, as_json: bool) -> None:
    with Index(out_dir) as index:
        found, recurrences = index.incidents(), index.recurrences()
    if as_json:
        rows = [
            {**_row(one, out_dir), "seen": len(recurrences[one.signature].members)} for one in found
        ]
        shown: dict[str, object] = {"incidents": rows}
        if kinds:
            shown["kinds"] = {name: one.text for name, one in recurrences.items()}
        print_json(shown)
        return
    if not found:
        there = "" if out_dir.is_dir() else ": there is no such folder (--out DIR names another)"
        say(f"no incidents in {escape(str(out_dir))}{there}")
        return
    if kinds:
        _list_kinds(found, {name: one.text for name, one in recurrences.items()})
        return
    table = _table("incident", "outcome", "scenario", "trigger", "kind", "seen", "data equal")
    for one in found:
        table.add_row(
            Text(text.text(one.name)),
            Text(one.outcome, style=text.OUTCOME_STYLE.get(one.outcome, "")),
            Text(one.scenario or "watch"),
            Text(one.rule or "-"),
            Text(one.signature),
            Text(str(len(recurrences[one.signature].members))),
            Text(_EQUAL[one.data_equal]),
        )
    output.show(table)


def _list_kinds(found: list[Indexed], recurrences: dict[str, str]) -> None:
    table = _table("kind", "trigger", "line", "recurrence", "newest")
    newest = {one.signature: one for one in found}
    for one in newest.values():
        table.add_row(
            Text(one.signature),
            Text(one.rule or "-"),
            Text(one.line),
            Text(recurrences[one.signature]),
            Text(text.text(one.name)),
        )
    output.show(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # An id is there to be copied: it stays whole, however narrow the terminal.
        table.add_column(heading, overflow="fold", no_wrap=heading in ("incident", "newest"))
    return table


def _row(one: Indexed, out_dir: Path) -> dict[str, object]:
    return {
        "id": one.name,
        "incident": str((out_dir / one.name).absolute()),
        "outcome": one.outcome,
        "scenario": one.scenario,
        "bench": one.bench,
        "seed": int(one.seed) if one.seed.isdecimal() else one.seed,
        "rule": one.rule or None,
        "data_equal": one.data_equal,
        "kind": one.signature,
    }


def search(what: str, out_dir: Path, *, as_json: bool) -> None:
    with Index(out_dir) as index:
        hits = index.search(what)
    if as_json:
        print_json(
            {"incidents": [{**_row(one, out_dir), "excerpt": excerpt} for one, excerpt in hits]}
        )
        return
    if not hits:
        say(f"no incident in {escape(str(out_dir))} holds all of: {escape(what)}")
    for one, excerpt in hits:
        output.out.print(
            Text.assemble(
                (text.text(one.name), "bold"),
                "  ",
                (one.outcome, text.OUTCOME_STYLE.get(one.outcome, "")),
                f"  {one.rule or '-'}\n    {excerpt}",
            )
        )


def show(what: str, out_dir: Path, *, timeline: bool, verbose: bool, as_json: bool) -> None:
    one = store.find(what, out_dir)
    dossier = Dossier(one)
    recurrence, verdict, altered = _recurrence(one), known_verdict(dossier), one.altered()
    if as_json:
        shown: dict[str, object] = {
            **one.raw,
            "outcome": one.outcome,
            "incident": str(one.path.absolute()),
            "altered": altered,
            "verdict": plain(verdict) if verdict is not None else None,
        }
        if recurrence:
            shown["recurrence"] = recurrence
        if one.problems:
            shown["problems"] = list(one.problems)
        if timeline:
            shown["timeline"] = _timeline(dossier, verdict)
        print_json(shown)
        return
    record = msgspec.structs.replace(one.record, verdict=verdict)
    output.show(summary(record, one.outcome, verbose=verbose))
    if recurrence:
        say(f"this kind: {recurrence}")
    for problem in (*one.problems, *altered):
        err.print(f"  {escape(problem)}", style="yellow", markup=False)
    if timeline:
        trigger = one.record.trigger
        say_timeline(
            _timeline(dossier, verdict), trigger.t_match_ns if trigger is not None else None
        )
    say(f"incident: {escape(str(one.path.absolute()))}")


def _recurrence(one: store.StoredIncident) -> str:
    """How often its kind was seen among the incidents beside it."""
    with Index(one.path.absolute().parent) as index:
        kind = next(
            (
                known.signature
                for known in index.incidents()
                if known.name == one.path.absolute().name
            ),
            "",
        )
        found = index.recurrences().get(kind)
    return found.text if found is not None else ""


def prune_incidents(out_dir: Path, keep_gib: float, *, dry_run: bool, as_json: bool) -> None:
    if not 0 <= keep_gib < 1 << 30:
        raise UsageError(f"prune: --keep-gib {keep_gib}: a size in GiB, from 0 on")
    made = prune(out_dir, int(keep_gib * GIB), dry_run=dry_run)
    if as_json:
        print_json(
            {
                "removed": [] if dry_run else [name for name, _ in made.remove],
                "would_remove": [name for name, _ in made.remove] if dry_run else [],
                "total_bytes": made.total_bytes,
                "left_bytes": made.left_bytes,
                "enough": made.is_enough,
            }
        )
        return
    for name, size in made.remove:
        say(f"{'would remove' if dry_run else 'removed'} {escape(name)}, {text.byte_count(size)}")
    say(f"{text.byte_count(made.total_bytes)} before, {text.byte_count(made.left_bytes)} after")
    if not made.is_enough:
        err.print("  the rest stays: open, or the first or the newest of its kind", style="yellow")


def _timeline(dossier: Dossier, verdict: Verdict | None) -> list[Row]:
    """The whole run on one clock; of an incident that makes no sense only what its own timeline
    says."""
    try:
        return timeline_of(dossier, verdict, whole=True)
    except HarnessError:
        return dossier.rows
