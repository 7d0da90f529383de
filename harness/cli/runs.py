"""``run`` and ``watch``."""

from pathlib import Path

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from harness import campaign
from harness.benchfile import load_bench, load_scenario
from harness.cli.output import EXIT_OF_OUTCOME, EXIT_PASS, complain, err, out, print_json, say
from harness.cli.privileges import prepare
from harness.core.events import AnyEvent, Trigger
from harness.core.text import escape
from harness.report import text


class TerminalView:
    """A progress bar on a terminal; without one, a line for each thing that a person would want to know."""

    def __init__(self, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        )
        self._task: TaskID | None = None
        self._quiet = quiet
        self._description = ""

    def phase(self, description: str) -> None:
        self._description = description
        if self._task is not None:
            self._bar.update(self._task, description=escape(description))
        if not self._quiet:
            self._bar.console.print(f"  {escape(description)}", markup=False, style="dim")

    def progress(self, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(escape(self._description), total=total)
        self._bar.update(self._task, completed=done, total=total)

    def happened(self, source: str, event: AnyEvent) -> None:
        if isinstance(event, Trigger) and source == "reflex" and not self._quiet:
            seen = escape(event.detail or event.excerpt.rpartition(b"\n")[2])
            self._bar.console.print(
                f"  {event.rule} on the {event.side}'s {event.source}: {seen}", markup=False, style="yellow"
            )

    def close(self) -> None:
        self._bar.stop()


def run(scenario: str, bench: str, *, seed: int, out_dir: Path, keep: bool, as_json: bool) -> None:
    plan, rig = load_scenario(scenario), load_bench(bench)
    prepare(rig)
    view = TerminalView(quiet=as_json)
    try:
        result = campaign.run(rig, plan, seed=seed, out_dir=out_dir, view=view, keep=keep)
    finally:
        view.close()
    if as_json:
        print_json(result.as_json())
    elif result.incident is not None or result.outcome == "pass":
        out.print(text.summary(result.record, result.outcome))
        if result.incident is not None:
            say(f"incident: {escape(str(result.incident))}")
        elif result.outcome == "pass":
            say("no incident: nothing went wrong, so nothing was kept (--keep keeps it)")
    if result.error is not None:
        complain(result.error)
    raise typer.Exit(EXIT_OF_OUTCOME[result.outcome])


def watch(bench: str, *, out_dir: Path, as_json: bool) -> None:
    rig = load_bench(bench)
    prepare(rig)
    view = TerminalView(quiet=as_json)
    results = []
    try:
        for result in campaign.watch(rig, out_dir=out_dir, view=view):
            results.append(result)
            if as_json:
                print_json(result.as_json())
            else:
                out.print(text.summary(result.record, result.outcome))
                say(f"incident: {escape(str(result.incident))}")
    except KeyboardInterrupt:
        # How a watch is meant to end.
        if not as_json:
            say(f"stopped; {len(results)} incident{'' if len(results) == 1 else 's'}")
    finally:
        view.close()
    raise typer.Exit(EXIT_OF_OUTCOME[results[-1].outcome] if results else EXIT_PASS)
