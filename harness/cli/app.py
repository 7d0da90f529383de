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

from freezeframe.harness.cli import complete, options, watches
from freezeframe.harness.cli.common import (
    DEFAULT_OUT,
    BenchOption,
    IncidentArgument,
    JsonOption,
    OutOption,
    SeedOption,
    SideArgument,
    VerboseOption,
)
from freezeframe.harness.cli.driverapp import driver_app
from freezeframe.harness.cli.formats import FORMATS, with_options
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
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario: write data, inject faults, react to triggers, collect, compare."""
    with reported(as_json):
        from freezeframe.harness.cli import runs

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
            as_json=as_json,
        )  # fmt: skip


@app.command("list")
def list_(
    out: OutOption = DEFAULT_OUT,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds", help="One row per kind of incident, with its number of occurrences."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the incidents, oldest first."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.list_incidents(out, kinds=kinds, as_json=as_json)


@app.command(short_help="Search incidents for words.")
def search(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Words or word beginnings; an incident must contain all of them.", metavar="WORDS"
        ),
    ],
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Search the consoles, triggers and notes of all incidents. Exit status 2 without a hit."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.search(" ".join(words), out, as_json=as_json)


@app.command(short_help="Remove old incidents; keep first and newest of each kind.")
def prune(
    keep_gib: Annotated[
        float,
        typer.Option(
            "--keep-gib", help="Remove incidents until the folder is at most N GiB.", metavar="N"
        ),
    ],
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old incidents. The first and the newest of each kind are kept."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.prune_incidents(out, keep_gib, dry_run=dry_run, as_json=as_json)


@app.command()
def show(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Also print the events of all sources around the failure, on one clock.",
        ),
    ] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one incident."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.show(incident, out, timeline=timeline, verbose=verbose, as_json=as_json)


@app.command(short_help="Compute the verdict again from an incident's files.")
def replay(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Also print the events of all sources from cause to detection, on one clock.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the verdict again from an incident's files, without a bench.

    Exit status 0 if it is the recorded verdict, 1 if it differs, 4 if it is inconclusive.
    """
    with reported(as_json):
        from freezeframe.harness.cli import verdicts

        verdicts.replay(incident, out, timeline=timeline, as_json=as_json)


@app.command(short_help="Turn an incident into a scenario and a pytest.")
def adopt(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    to: Annotated[
        Path, typer.Option("--to", help="Folder for the two files.", metavar="DIR")
    ] = Path("adopted"),
    as_json: JsonOption = False,
) -> None:
    """Write a scenario and a pytest that reproduce an incident on the simulated pair."""
    with reported(as_json):
        from freezeframe.harness.cli import verdicts

        verdicts.adopt(incident, out, to, as_json=as_json)


@app.command()
@with_options(FORMATS)
def export(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Omit the data of the host; replace serial numbers by hashes."
        ),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="With --redact: list what would be masked; write nothing."),
    ] = False,
    as_json: JsonOption = False,
    **targets: Path | None,
) -> None:
    """Write an incident as one file per format."""
    with reported(as_json):
        from freezeframe.harness.cli import exports

        exports.export(incident, out, targets, redact=redact, preview=preview, as_json=as_json)


@app.command("import", short_help="Judge captures and logs that you have.")
def import_(
    more: options.MoreLinks = None,
    link: options.Links = None,
    primary_console: options.PrimaryConsole = None,
    secondary_console: options.SecondaryConsole = None,
    port: options.Ports = None,
    primary_address: options.PrimaryAddress = "",
    secondary_address: options.SecondaryAddress = "",
    protocol: options.Protocol = "drbd",
    rules: options.Rules = None,
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Make an incident of captures and logs that you have, without a bench, and judge it.

    Exit status: 0 nothing wrong was seen, 1 a device failed, 4 not enough could be seen, 2 a file
    cannot be read.
    """
    with reported(as_json):
        from freezeframe.harness.cli import importing
        from freezeframe.harness.incidents.importing import Given

        given = Given(
            links=(*(link or []), *(more or [])),
            primary_console=primary_console,
            secondary_console=secondary_console,
            ports=tuple(port or ()),
            primary_address=primary_address,
            secondary_address=secondary_address,
            protocol=protocol,
        )
        importing.import_(given, rules or [], out, as_json=as_json)


@app.command(short_help="Make one controller store a set and warmstart.")
def warmstart(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Make one controller store a root cause data set and warmstart."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.instruct(side, bench, disruptive=True, as_json=as_json)


@app.command(short_help="Make one controller store a set without a restart.")
def save(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Make one controller store a root cause data set and continue without a restart."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.instruct(side, bench, disruptive=False, as_json=as_json)


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


@app.command(short_help="Check a bench file without opening the bench.")
def check(
    bench: Annotated[
        str,
        typer.Argument(
            help="Bench file, or the name of a built-in bench.",
            metavar="BENCH",
            autocompletion=complete.benches,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a bench file, its rules, drivers and scenarios, without opening the bench."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.check(bench, as_json=as_json)


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
    until Ctrl-C."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.simulate(bench, directory, seed=seed, as_json=as_json)


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
