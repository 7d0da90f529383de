"""Implement the commands ``run``, ``watch``, ``resume`` and ``drill``."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import typer
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from freezeframe.harness.bench.benchfile import MIB, Bench, load_bench, load_scenario
from freezeframe.harness.cli import output
from freezeframe.harness.cli.output import (
    EXIT_OF_OUTCOME,
    EXIT_RIG,
    complain,
    err,
    print_json,
    print_line,
    say,
    worst,
)
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.events import AnyEvent, LinkStats, Trigger
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.core.text import counted, escape
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.incidents.store import LAST, find, incidents
from freezeframe.harness.report.summary import summary
from freezeframe.harness.runs import campaign, resuming, watching
from freezeframe.harness.runs import drill as drilling
from freezeframe.harness.runs.view import Silent, View

REFRESHES_PER_SECOND: Final = 4
"""Progress display updates per second. More would take processor time from the run."""


class _Speed(ProgressColumn):
    """Shows the writing speed in MiB/s, the unit of the sizes in the same row."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed / MIB:.1f} MiB/s" if speed else "", "progress.data.speed")


class TerminalView:
    """Prints one line per step of a run to stderr; on a terminal also a progress display."""

    def __init__(self, quiet: bool, *columns: ProgressColumn) -> None:
        self._bar = Progress(
            *columns,
            console=err,
            transient=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            disable=quiet or not err.is_terminal,
            # Results are printed while it is stopped, so that they go where stdout goes.
            redirect_stdout=False,
        )
        self._task: TaskID | None = None
        self._printing = threading.Lock()
        self._quiet = quiet

    def phase(self, text: str) -> None:
        self.line(text)

    def step(self, side: str, step: str, detail: str) -> None:
        self.line(f"{side or 'pair'}: {step}{f' ({detail})' if detail else ''}")

    def progress(self, done: int, total: int) -> None:
        self.move("host writes", done, total)

    def happened(self, source: str, event: AnyEvent) -> None:
        if isinstance(event, Trigger) and source == "reflex":
            self.line(f"{event.rule} on the {event.side}'s {event.source}: {event.words}", "yellow")

    def health(self, status: HealthStatus) -> None:
        styles = {Health.ARMED: "green", Health.UNREHEARSED: "green"}
        self.line(str(status), styles.get(status.health, "yellow"))

    def line(self, text: str, style: str = "dim") -> None:
        if self._quiet:
            return
        # A terminal wraps between words; a file or a pipe gets one line per message.
        shown = Text(escape(text), style)
        if err.is_terminal:
            err.print(Padding(shown, (0, 0, 0, 2)), soft_wrap=False)
        else:
            err.print(Text("  ") + shown)

    def move(self, text: str, done: int = 0, total: int | None = None) -> None:
        if not self._printing.acquire(blocking=False):
            return  # a result is being printed: the next one comes soon
        try:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task(escape(text), total=total)
            self._bar.update(self._task, description=escape(text), completed=done, total=total)
        finally:
            self._printing.release()

    def close(self) -> None:
        """Remove the progress display; the next ``move`` shows it again."""
        with self.aside():
            pass

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Remove the progress display while a result is printed, whose lines would be mixed with it: no
        ``move`` of another thread shows it again before the end."""
        with self._printing:
            self._bar.stop()
            if self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None
            yield


class RunView(TerminalView):
    def __init__(self, quiet: bool) -> None:
        super().__init__(
            quiet,
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            _Speed(),
            TimeElapsedColumn(),
        )


class WatchView(TerminalView):
    """Shows a spinner and the counters of the replication link while the watch runs."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(
            quiet,
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )

    def happened(self, source: str, event: AnyEvent) -> None:
        super().happened(source, event)
        if isinstance(event, LinkStats):
            self.move(
                f"writes copied: {event.writes}, answered: {event.acks}, frames dropped: {event.kernel_drops}"
            )


def run(
    scenario: str, bench: str, *, seed: int, out_dir: Path, keep: bool, verbose: bool, as_json: bool
) -> None:
    plan, described = load_scenario(scenario), load_bench(bench)
    prepare(described)
    view = RunView(quiet=as_json)
    try:
        result = campaign.run(described, plan, seed=seed, out_dir=out_dir, view=view, keep=keep)
    finally:
        view.close()
    if as_json:
        print_json(result.as_json())
    elif result.incident is not None or result.outcome == "pass":
        output.show(summary(read_record(result.record)[0], result.outcome, verbose=verbose))
        if result.incident is not None:
            say(f"incident: {escape(str(result.incident))}")
        elif result.outcome == "pass":
            say("no incident kept: nothing went wrong (use --keep to keep it anyway)")
    elif result.outcome == "interrupted":
        output.say_aside(
            "freezeframe: interrupted before the first host write; no incident was kept",
            "bold yellow",
        )
    if result.error is not None:
        complain(result.error)
    raise typer.Exit(EXIT_OF_OUTCOME[result.outcome])


class JsonWatchView(Silent):
    """Prints one JSON object per line; docs/watch.md lists them."""

    def phase(self, text: str) -> None:
        print_line(event="report", text=text)

    def step(self, side: str, step: str, detail: str) -> None:
        print_line(event="step", side=side, step=step, detail=detail)

    def health(self, status: HealthStatus) -> None:
        print_line(event="health", health=status.health.value, why=status.why)

    def happened(self, source: str, event: AnyEvent) -> None:
        if isinstance(event, Trigger) and source == "reflex":
            print_line(
                event="trigger", rule=event.rule, side=event.side, source=event.source,
                text=escape(event.detail or event.excerpt), acted=event.is_cause,
            )  # fmt: skip


def _killed(incident: str, out_dir: Path) -> Path:
    """The incident to be resumed; "last": the newest of a killed process that has a trigger. A watch
    has begun the folder of the next incident by then."""
    if incident != LAST:
        return find(incident, out_dir).path
    killed = [one for one in incidents(out_dir) if one.outcome == "interrupted"]
    with_trigger = [one for one in killed if one.record.trigger is not None]
    return with_trigger[-1].path if with_trigger else find(incident, out_dir).path


def resume(incident: str, bench: str, *, out_dir: Path, verbose: bool, as_json: bool) -> None:
    path = _killed(incident, out_dir)
    _one(bench, lambda one, view: resuming.resume(one, path, view), verbose, as_json)


def drill(bench: str, *, out_dir: Path, verbose: bool, as_json: bool) -> None:
    _one(
        bench,
        lambda one, view: drilling.drill(one, out_dir=out_dir, view=view),
        verbose,
        as_json,
    )


def _one(
    bench: str, work: Callable[[Bench, View], campaign.Result], verbose: bool, as_json: bool
) -> None:
    """Do what comes to one incident, and print that."""
    described = load_bench(bench)
    prepare(described)
    view = RunView(quiet=as_json)
    try:
        result = work(described, view)
    finally:
        view.close()
    if as_json:
        print_json(result.as_json())
    else:
        output.show(summary(read_record(result.record)[0], result.outcome, verbose=verbose))
        say(f"incident: {escape(str(result.incident))}")
    raise typer.Exit(EXIT_OF_OUTCOME[result.outcome])


def watch(
    bench: str, *, out_dir: Path, dry_run: bool, arm: bool, verbose: bool, as_json: bool
) -> None:
    described = load_bench(bench)
    prepare(described)
    view = JsonWatchView() if as_json else WatchView(quiet=False)
    shown = 0

    def show_new(watched: watching.Watch) -> None:
        nonlocal shown
        for result in watched.results[shown:]:
            if isinstance(view, JsonWatchView):
                print_line(event="incident", **result.as_json())
                continue
            with view.aside():
                output.show(summary(read_record(result.record)[0], result.outcome, verbose=verbose))
                say(f"incident: {escape(str(result.incident))}")
        shown = len(watched.results)

    watched: watching.Watch | None = None
    trouble: HarnessError | None = None
    try:
        with (
            output.classified(),
            watching.watch(
                described, out_dir=out_dir, view=view, dry_run=dry_run, arm=arm
            ) as watched,
        ):
            with contextlib.suppress(KeyboardInterrupt):  # the normal end of a watch
                for _ in watched:
                    show_new(watched)
    except HarnessError as error:
        if watched is None:
            raise
        trouble = error  # it does not take away what was collected before
    finally:
        if isinstance(view, WatchView):
            view.close()
        if watched is not None:
            show_new(watched)
    results = watched.results
    statuses = [EXIT_OF_OUTCOME[one.outcome] for one in results if one.outcome != "interrupted"]
    if trouble is not None:
        complain(trouble)
        statuses.append(EXIT_RIG)
    status = worst(statuses)
    if not results and not status and watched.unproved:
        status = EXIT_OF_OUTCOME["inconclusive"]
    if as_json:
        not_seen = [escape(says) for says in watched.unproved]
        print_line(
            event="end", incidents=len(results), status=status, not_seen=not_seen,
            error=escape(str(trouble or "")),
        )  # fmt: skip
    else:
        say(f"stopped; {counted(len(results), 'incident')}")
        for says in watched.unproved:
            output.say_aside(f"  not seen: {escape(says)}")
    raise typer.Exit(status)
