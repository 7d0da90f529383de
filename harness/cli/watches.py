"""Define the commands ``watch``, ``console``, ``top``, ``arm``, ``disarm``, ``resume`` and ``drill``."""

from typing import Annotated

import typer

from freezeframe.harness.cli.common import (
    DEFAULT_OUT,
    BenchOption,
    IncidentArgument,
    JsonOption,
    OutOption,
    SideArgument,
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


ArmOption = Annotated[
    bool,
    typer.Option(
        "--arm",
        help="Close the breaker of the storm guard, which disarms a bench after too many warmstarts or "
        "saves. A watch that is started by hand after one that was stopped does so, too; a service, "
        "a dry run, and a watch after a killed one do not.",
    ),
]


def watch(
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    dry_run: DryRunOption = False,
    arm: ArmOption = False,
    verbose: VerboseOption = False,
    as_json: LinesOption = False,
) -> None:
    """Watch a pair that other hosts write to, until Ctrl-C. Each trigger becomes an incident.

    It records without a gap, and is armed again as soon as both controllers are collected.
    """
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.watch(bench, out_dir=out, dry_run=dry_run, arm=arm, verbose=verbose, as_json=as_json)


def console(
    side: SideArgument,
    bench: BenchOption = "sim",
    lines: Annotated[
        int,
        typer.Option("--lines", "-n", help="Newest lines to begin with.", metavar="N", min=0),
    ] = 20,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Time (UTC) in front of each line.")
    ] = False,
    write: Annotated[
        bool,
        typer.Option("--write", "-w", help="Write to the device, too; ctrl-t ? lists the keys."),
    ] = False,
    send: Annotated[
        str,
        typer.Option(
            "--send", help="Send this list of [breaks] of the bench file, and end.", metavar="NAME"
        ),
    ] = "",
    serve: Annotated[
        str,
        typer.Option(
            "--serve",
            help="Serve it to other programs: HOST:PORT with RFC 2217, or unix:PATH as plain bytes.",
            metavar="ADDRESS",
        ),
    ] = "",
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Look at a console while a watch or a run records it: the newest lines first, then live.

    It is read-only, and nothing is asked of the command that records. Any number of them may look. In a
    pipe, stdout has the console's text alone. Ctrl-C ends it. With --write it takes the one writer's place
    of the console from the watch: what is typed, or piped in, goes to the device, and ctrl-t q ends it. A BREAK,
    and a console that is the control line, too, need `disarm` first.
    """
    with reported(False):
        from freezeframe.harness.cli import console as looking

        looking.console(
            side,
            bench,
            out_dir=out,
            lines=lines,
            timestamps=timestamps,
            write=write,
            send=send,
            serve=serve,
        )


def top(
    bench: BenchOption = "sim",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print each status as one JSON object per line: see docs/watch.md."
        ),
    ] = False,
) -> None:
    """Look at a bench while a watch watches it: health, lines, pair, link, rules, incidents, consoles.

    It only looks; up to 16 of them may at a time. Where stdout is no terminal it prints plain lines. Ctrl-C or q ends it.
    """
    with reported(False):
        from freezeframe.harness.cli import top as looking

        looking.top(bench, as_json=as_json)


def arm(
    bench: BenchOption = "sim",
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; for the audit journal.", metavar="TEXT")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Arm a bench under watch again: after `disarm`, and after the storm guard has opened its breaker.

    It asks the watch; where nobody watches the bench it says so (exit status 3).
    """
    with reported(as_json):
        from freezeframe.harness.cli import byhand

        byhand.arm(bench, reason=reason, as_json=as_json)


def disarm(
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; the watch shows it.", metavar="TEXT")
    ],
    bench: BenchOption = "sim",
    as_json: JsonOption = False,
) -> None:
    """Disarm a bench under watch: it goes on recording, and nobody is instructed until `arm`.

    It returns once no frame is loaded any more. A service that is started again stays disarmed.
    """
    with reported(as_json):
        from freezeframe.harness.cli import byhand

        byhand.disarm(bench, reason=reason, as_json=as_json)


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
    app.command(short_help="Look at a console while a watch or a run records it.")(console)
    app.command(short_help="A live view of a bench under watch.")(top)
    app.command(short_help="Arm a bench under watch again.")(arm)
    app.command(short_help="Disarm a bench under watch: it only records.")(disarm)
    app.command(short_help="Go on with an incident whose process was killed.")(resume)
    app.command(short_help="Prove the whole chain of a bench without harm.")(drill)
