"""Define the commands ``watch``, ``resume`` and ``drill``."""

from typing import Annotated

import typer

from freezeframe.harness.cli.common import (
    DEFAULT_OUT,
    BenchOption,
    IncidentArgument,
    JsonOption,
    OutOption,
    VerboseOption,
)
from freezeframe.harness.cli.output import reported

LinesOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line: see docs/watch.md.")
]


DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Arm nobody: print which frames each trigger would have sent to whom."
    ),
]


def watch(
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    as_json: LinesOption = False,
) -> None:
    """Watch a pair that other hosts write to, until Ctrl-C. Each trigger becomes an incident.

    It records without a gap, and is armed again as soon as both controllers are collected.
    """
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.watch(bench, out_dir=out, dry_run=dry_run, verbose=verbose, as_json=as_json)


def resume(
    incident: IncidentArgument = "last",
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with an incident whose process was killed.

    The sets that the controllers keep of it are found by its id and pulled. Nobody is instructed.
    """
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.resume(incident, bench, out_dir=out, verbose=verbose, as_json=as_json)


def drill(
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove the whole chain without harm, for commissioning and for every night.

    Both consoles are heard, the frames are tried out without their effect, a line that a controller
    prints makes the reflex save both, and both sets are pulled and decoded. Nobody restarts.
    """
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.drill(bench, out_dir=out, verbose=verbose, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program's."""
    app.command(short_help="Watch a pair that other hosts write to, until Ctrl-C.")(watch)
    app.command(short_help="Go on with an incident whose process was killed.")(resume)
    app.command(short_help="Prove the whole chain of a bench without harm.")(drill)
