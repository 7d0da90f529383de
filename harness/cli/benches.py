"""Implement the commands ``doctor`` and ``check``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from rich.table import Table
from rich.text import Text

from freezeframe.harness.bench import benchfile, checks
from freezeframe.harness.cli.output import EXIT_PASS, EXIT_RIG, EXIT_USAGE, print_json, show
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge import system
from freezeframe.harness.edge.system import CheckResult

MARK: Final = {
    "ok": ("ok", "green"),
    "warning": ("note", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}


def doctor(out_dir: Path, *, as_json: bool) -> None:
    _report(system.examine(out_dir), as_json=as_json, exit_code=EXIT_RIG)


def check(bench: str, *, with_touch: bool = False, as_json: bool) -> None:
    findings = checks.check(bench)
    is_wrong = any(one.status == "problem" for one in findings)
    if not with_touch or is_wrong:
        _report(findings, as_json=as_json, exit_code=EXIT_USAGE)
    from freezeframe.harness.bench.touch import touch
    from freezeframe.harness.runs.beside import seen_by_watch

    described = benchfile.load_bench(bench)
    prepare(described)
    touched = seen_by_watch(described) or touch(described)
    _report([*findings, *touched], as_json=as_json, exit_code=EXIT_RIG)


def _report(findings: Sequence[CheckResult], *, as_json: bool, exit_code: int) -> None:
    failed = any(one.status == "problem" for one in findings)
    if as_json:
        rows: list[dict[str, object]] = [
            {"name": one.name, "status": one.status, "detail": one.detail, "remedy": one.remedy}
            for one in findings
        ]
        print_json({"ok": not failed, "findings": rows})
    else:
        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=7, no_wrap=True)
        table.add_column(overflow="fold")
        for one in findings:
            mark, style = MARK[one.status]
            table.add_row(Text(mark, style), Text(f"{escape(one.name)}: {escape(one.detail)}"))
            if one.remedy and one.status != "ok":
                table.add_row("", Text(f"-> {escape(one.remedy)}"))
        show(table)
    raise typer.Exit(exit_code if failed else EXIT_PASS)
