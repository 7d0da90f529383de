"""Define the command ``freezeframe`` and its options. The work of each command is in a module of
its own.

Modules of the bench are imported only when a command needs them, so that ``--help`` and shell
completion answer at once.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from freezeframe.harness.cli import complete, watches
from freezeframe.harness.cli.app_incidents import incidents_app
from freezeframe.harness.cli.common import (
    DEFAULT_OUT,
    AimedBenchOption,
    BenchOption,
    JsonOption,
    OutOption,
    SeedOption,
    SideArgument,
    VerboseOption,
)
from freezeframe.harness.cli.driverapp import driver_app
from freezeframe.harness.cli.groups import rig_app, rules_app
from freezeframe.harness.cli.interrupt import EXIT_INTERRUPTED
from freezeframe.harness.cli.output import CommandLineError, refuse, reported, say

app = typer.Typer(
    name="freezeframe",
    help="Watch a pair of replicating storage controllers. On a trigger, save what both know as one incident.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 pass, 1 a device failed, 2 usage, 3 rig trouble, 4 inconclusive, 130 interrupted.",
)


app.add_typer(incidents_app)
app.add_typer(rules_app, name="rules")
app.add_typer(rig_app, name="rig")
app.add_typer(driver_app, name="driver")


def _version(value: bool) -> None:
    if value:
        from freezeframe.harness.edge.versions import versions

        say(f"freezeframe {versions()['freezeframe']}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Run one scenario and print its result.")
def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="Scenario file, or the name of a built-in scenario.",
            metavar="SCENARIO",
            autocompletion=complete.scenarios,
        ),
    ] = "clean",
    bench: BenchOption = "sim",
    seed: SeedOption = 1,
    out: OutOption = DEFAULT_OUT,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the incident folder even if nothing went wrong.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(
            "--repeat",
            help="Run it N times, each with the next seed; count each kind, also for stats --prove-fixed.",
            metavar="N",
            min=1,
            max=10**6,
        ),
    ] = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario: write data, inject faults, react to triggers, collect, compare."""
    with reported(as_json):
        from freezeframe.harness.cli import repeating, runs

        if repeat is not None:
            repeating.run_repeatedly(
                scenario, bench, repeat, seed=seed, out_dir=out, keep=keep, as_json=as_json
            )
        runs.run(
            scenario, bench, seed=seed, out_dir=out, keep=keep, verbose=verbose, as_json=as_json
        )


watches.add_to(app)


@app.command(short_help="Play random histories of the policy against the simulated firmware.")
def explore(
    runs: Annotated[
        int, typer.Option("--runs", "-n", help="How many histories.", min=1, max=10**7)
    ] = 1000,
    seed: SeedOption = 1,
    workers: Annotated[
        int, typer.Option("--workers", "-w", help="Processes that play them.", min=1, max=256)
    ] = 1,
    shard: Annotated[
        str, typer.Option("--shard", help="Only the K-th of N parts.", metavar="K/N")
    ] = "1/1",
    mutant: Annotated[
        str,
        typer.Option(
            "--mutant",
            help="Play with this deliberate bug, which must be found; 'all': each of them, one after the "
            "other. An unknown name lists them.",
            metavar="NAME",
        ),
    ] = "",
    tests: Annotated[
        Path | None,
        typer.Option("--tests", help="Write each failing history as a test there.", metavar="DIR"),
    ] = None,
    dask: Annotated[
        str,
        typer.Option(
            "--dask",
            help="Play them on the workers of this Dask scheduler, such as tcp://HOST:8786.",
            metavar="ADDRESS",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Play random histories of the harness against the simulated firmware, in virtual time.

    Invariants are checked at every step. A history that breaks one is shrunk until no step of it can
    be removed, and printed with the command that repeats it.
    """
    with reported(as_json):
        from freezeframe.harness.cli import exploring

        exploring.explore(
            runs=runs, seed=seed, workers=workers, shard=shard, mutant=mutant, tests=tests,
            dask=dask, as_json=as_json,
        )  # fmt: skip


@app.command(short_help="Make one controller store a set and warmstart.")
def warmstart(
    side: SideArgument,
    bench: AimedBenchOption,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Needed where there is no terminal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one controller store a root cause data set and warmstart.

    On a terminal it asks first.
    """
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.warmstart(side, bench, yes=yes, as_json=as_json)


@app.command(short_help="Make one controller store a set without a restart.")
def save(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Make one controller store a root cause data set and continue without a restart."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.save(side, bench, as_json=as_json)


@app.command(short_help="Pull a stored set from a controller.")
def pull(
    side: SideArgument,
    bench: BenchOption,
    out: OutOption = DEFAULT_OUT,
    set_id: Annotated[
        int | None, typer.Option("--set", help="Number of the set; default: the newest.", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pull a stored root cause data set from a controller into a new incident."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.pull(side, bench, out, set_id=set_id, as_json=as_json)


@app.command(short_help="Check this machine; print what is missing.")
def doctor(out: OutOption = DEFAULT_OUT, as_json: JsonOption = False) -> None:
    """Check this machine: tools, permissions, devices, disk space. Print how to fix each problem."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.doctor(out, as_json=as_json)


@app.command(short_help="List serial ports, and listen to them.")
def ports(
    named: Annotated[
        list[str] | None,
        typer.Argument(help="Only these ports.", metavar="[PORT]...", show_default=False),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="Press Enter on this port, at each rate; several times.", metavar="PORT"
        ),
    ] = None,
    listen: Annotated[
        float,
        typer.Option(
            "--listen",
            help="How long to listen at each rate, in seconds; 0: open no port.",
            metavar="S",
            min=0.0,
            max=60.0,
        ),
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """List the serial ports of this machine by stable names, who uses them, and what comes out of them.

    Nothing is written, except to a port named with --probe. To open a port raises DTR and RTS.
    """
    with reported(as_json):
        from freezeframe.harness.cli import contact

        contact.ports(named or [], probe or [], listen, as_json=as_json)


@app.command(short_help="Write a bench file from the answers to a few questions.")
def init(
    file: Annotated[Path, typer.Argument(help="Bench file to write.", metavar="FILE")] = Path(
        "bench.toml"
    ),
) -> None:
    """Ask a few questions, and write a bench file with its rules beside it. Nothing is opened or
    overwritten."""
    with reported(False):
        from freezeframe.harness.cli import contact

        contact.init(file)


@app.command(short_help="Check a bench file; --touch: and the bench.")
def check(
    bench: Annotated[
        str,
        typer.Argument(
            help="Bench file, or the name of a built-in bench.",
            metavar="BENCH",
            autocompletion=complete.benches,
        ),
    ],
    touch: Annotated[
        bool,
        typer.Option(
            "--touch",
            help="Also open every line, identify both controllers, listen for canaries, look at the link.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a bench file, its rules, drivers and scenarios, without opening the bench.

    With --touch the bench is opened too, if its file is right: all that is wrong with it is reported at
    once. Nothing is instructed.
    """
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.check(bench, with_touch=touch, as_json=as_json)


@app.command(short_help="Start a simulated pair and keep it running.")
def sim(
    bench: BenchOption = "sim",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Folder of its ports; default: a new one under /tmp, removed at the end.",
            metavar="DIR",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Start a simulated pair, print the bench file that other commands use to reach it, and run
    until Ctrl-C.

    On a terminal each key makes a fault; from elsewhere `freezeframe inject` does.
    """
    with reported(as_json):
        from freezeframe.harness.cli import playground

        playground.simulate(bench, directory, seed=seed, as_json=as_json)


@app.command(short_help="Make a fault on a pair of `freezeframe sim`.")
def inject(
    scenario: Annotated[
        str,
        typer.Argument(
            help="Scenario file, or the name of a built-in scenario; clean: host writes only.",
            metavar="SCENARIO",
            autocompletion=complete.scenarios,
        ),
    ],
    bench: AimedBenchOption,
    seed: SeedOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Make a fault on a pair that `freezeframe sim` started, while a watch watches it.

    The faults of the scenario are armed, and the host's writes are written at which they come.
    """
    with reported(as_json):
        from freezeframe.harness.cli import playground

        playground.inject_scenario(scenario, bench, seed=seed, as_json=as_json)


def main() -> None:
    """Run the command and exit with its status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A closed terminal and a SIGTERM end a command as Ctrl-C does: everything is closed in
        # order, the bench goes to its safe state. A signal that nohup ignores stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
    except CommandLineError as error:
        status = refuse(error, as_json="--json" in sys.argv)
    except (KeyboardInterrupt, typer.Abort):
        # Outside of a command's body, where ``reported`` handles it: between two of its lines.
        status = EXIT_INTERRUPTED
    # The result stands: what is left is the end of the interpreter, which a signal would turn into
    # another exit status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
