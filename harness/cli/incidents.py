"""Implement ``list``, ``search`` and ``prune`` for the incidents of a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from freezeframe.harness.cli import output
from freezeframe.harness.cli.output import EXIT_USAGE, print_json, say
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.signature import Recurrence
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents import columns
from freezeframe.harness.incidents.benchhistory import Wanted
from freezeframe.harness.incidents.index import Index, Indexed
from freezeframe.harness.incidents.quota import GIB, prune
from freezeframe.harness.report import text

_STYLE: Final = {"outcome": text.OUTCOME_STYLE}
"""Column key -> style by value."""


def list_incidents(out_dir: Path, wanted: Wanted, *, kinds: bool, as_json: bool) -> None:
    with Index(out_dir) as index:
        everything = index.incidents()
        found, recurrences = wanted.select(everything), index.recurrences(everything)
    recording = [one for one in everything if one.is_recording]
    if as_json:
        rows = [_row(one, out_dir, recurrences) for one in found]
        shown: dict[str, object] = {"incidents": rows, "recording": [one.name for one in recording]}
        if kinds:
            wanted_kinds = {one.signature for one in found}
            shown["kinds"] = {
                name: one.text for name, one in recurrences.items() if name in wanted_kinds
            }
        print_json(shown)
        return
    _say_recording(recording)
    if not found:
        there = "" if out_dir.is_dir() else ": there is no such folder (--out DIR names another)"
        which = "" if wanted == Wanted() else " that fit"
        say(f"no incidents{which} in {escape(str(out_dir))}{there}")
        return
    if kinds:
        _list_kinds(found, {name: one.text for name, one in recurrences.items()})
        return
    _list(found, out_dir, recurrences)


def _say_recording(recording: list[Indexed]) -> None:
    for one in recording:
        what = one.listed.get("scenario") or "watch"
        where = f"{text.text(what)} on {text.text(one.listed.get('bench'))}"
        output.say_aside(f"  being recorded: {where}, {text.text(one.name)}: no trigger yet", "dim")


def _list(found: list[Indexed], out_dir: Path, recurrences: Mapping[str, Recurrence]) -> None:
    entries = [_entry(one, out_dir, recurrences) for one in found]
    cells = [
        _ShownColumn(column, [_cell(column, column.of(one)) for one in entries])
        for column in columns.COLUMNS
        if column.title
    ]
    fitting = _fitting(cells)
    if output.out.is_terminal and sum(one.width for one in fitting) > output.out.width:
        output.show(_folded(fitting))
    else:
        output.show_lines(_lines(fitting))
    left_out = [one.column.title for one in cells if one not in fitting]
    if left_out:
        output.say_aside(f"  not shown, the terminal is too narrow: {', '.join(left_out)}", "dim")


class _ShownColumn:
    def __init__(self, column: columns.Column, cells: list[tuple[str, str]]) -> None:
        self.column = column
        self.cells = cells
        """(text, style), a row each."""
        self.width = 2 + max(len(column.title), *(cell_len(text) for text, _ in cells))
        """With the two blanks after it."""


def _fitting(cells: list[_ShownColumn]) -> list[_ShownColumn]:
    """Return the columns that fit side by side into the terminal; elsewhere there is room for
    all."""
    kept = list(cells)
    while output.out.is_terminal and sum(one.width for one in kept) > output.out.width:
        least = max(kept, key=lambda one: one.column.leaves)
        if not least.column.leaves:
            break
        kept.remove(least)
    return kept


def _lines(shown: list[_ShownColumn]) -> Text:
    """All rows as one text: of thousands of rows a table would take seconds."""
    last = len(shown) - 1
    made = Text()
    for at, one in enumerate(shown):
        made.append(one.column.title.ljust(one.width) if at < last else one.column.title, "bold")
    for row in zip(*(one.cells for one in shown), strict=True):
        made.append("\n")
        for at, (said, style) in enumerate(row):
            made.append(said, style or None)
            if at < last:
                made.append(" " * (shown[at].width - cell_len(said)))
    return made


def _folded(shown: list[_ShownColumn]) -> Table:
    """For a terminal that is too narrow for what must be shown."""
    table = _table()
    for one in shown:
        table.add_column(one.column.title, overflow="fold", no_wrap=one.column.is_whole)
    for row in zip(*(one.cells for one in shown), strict=True):
        table.add_row(*(Text(said, style) for said, style in row))
    return table


def _cell(column: columns.Column, value: columns.Value) -> tuple[str, str]:
    return text.text(column.shown(value)), _STYLE.get(column.key, {}).get(str(value), "")


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
        # A name is there to be copied: it stays whole, however narrow the terminal.
        is_name = heading in ("kind", "trigger", "newest")
        table.add_column(heading, overflow="fold", no_wrap=is_name)
    return table


def _entry(one: Indexed, out_dir: Path, recurrences: Mapping[str, Recurrence]) -> columns.Entry:
    return columns.Entry(
        name=one.name,
        folder=out_dir,
        outcome=one.outcome,
        kind=one.signature,
        seen=len(recurrences[one.signature].members),
        stored=one.listed,
    )


def _row(
    one: Indexed, out_dir: Path, recurrences: Mapping[str, Recurrence]
) -> dict[str, columns.Value]:
    entry = _entry(one, out_dir, recurrences)
    return {column.key: column.of(entry) for column in columns.COLUMNS}


def search(what: str, out_dir: Path, *, as_json: bool) -> None:
    with Index(out_dir) as index:
        hits, recurrences = index.search(what), index.recurrences()
    if as_json:
        print_json(
            {
                "incidents": [
                    {**_row(one, out_dir, recurrences), "excerpt": excerpt} for one, excerpt in hits
                ]
            }
        )
        if not hits:
            raise typer.Exit(EXIT_USAGE)
        return
    if not hits:
        say(f"no incident in {escape(str(out_dir))} contains all of: {escape(what)}")
        raise typer.Exit(EXIT_USAGE)
    for one, excerpt in hits:
        output.out.sentence(
            Text.assemble(
                (text.text(one.name), "bold"),
                "  ",
                (one.outcome, text.OUTCOME_STYLE.get(one.outcome, "")),
                f"  {one.rule or '-'}\n    {excerpt}",
            )
        )


def prune_incidents(out_dir: Path, keep_gib: float, *, dry_run: bool, as_json: bool) -> None:
    if not 0 <= keep_gib < 1 << 30:
        raise UsageError(f"prune: --keep-gib {keep_gib}: not a size in GiB from 0 on")
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
        output.say_aside("  the rest is kept: open, or the first or the newest of its kind")
