"""The commands on recorded incidents. As in ``app``, the work is in modules of its own."""

from pathlib import Path
from typing import Annotated

import typer

from freezeframe.harness.cli import options
from freezeframe.harness.cli.common import (
    DEFAULT_OUT,
    IncidentArgument,
    JsonOption,
    OutOption,
    Since,
    Until,
    VerboseOption,
    WantedBench,
    WantedKind,
    WantedOutcome,
    WantedSide,
)
from freezeframe.harness.cli.formats import FORMATS, with_options
from freezeframe.harness.cli.output import reported

incidents_app = typer.Typer()


@incidents_app.command("list", short_help="List the incidents, oldest first.")
def list_(
    out: OutOption = DEFAULT_OUT,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds", help="One row per kind of incident, with its number of occurrences."
        ),
    ] = False,
    bench: WantedBench = "",
    side: WantedSide = "",
    outcome: WantedOutcome = "",
    kind: WantedKind = "",
    since: Since = "",
    until: Until = "",
    as_json: JsonOption = False,
) -> None:
    """List the incidents, all, or those that fit every option given. Oldest first: an import by the time of
    its capture, whereas `last` is the one that was made last."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents
        from freezeframe.harness.incidents.benchhistory import Wanted

        wanted = Wanted(
            bench=bench, side=side, outcome=outcome, kind=kind, since=since, until=until
        )
        incidents.list_incidents(out, wanted, kinds=kinds, as_json=as_json)


@incidents_app.command(short_help="Count incidents, kinds and times; prove that a kind is gone.")
def stats(
    out: OutOption = DEFAULT_OUT,
    prove_fixed: Annotated[
        str,
        typer.Option(
            "--prove-fixed",
            help="How many clean runs show that this kind is fixed, and how many there were.",
            metavar="KIND",
        ),
    ] = "",
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Also how long replicated writes waited for their answers, in the newest 20 captures.",
        ),
    ] = False,
    bench: WantedBench = "",
    side: WantedSide = "",
    outcome: WantedOutcome = "",
    kind: WantedKind = "",
    since: Since = "",
    until: Until = "",
    as_json: JsonOption = False,
) -> None:
    """Count the incidents: outcomes, kinds, per day, mean time between failures, reaction and re-arm times.

    With --prove-fixed: exit status 0 when it is shown at 95 %, 4 when more runs are needed.
    """
    with reported(as_json):
        from freezeframe.harness.cli import history
        from freezeframe.harness.incidents.benchhistory import Wanted

        if prove_fixed:
            history.prove_fixed(prove_fixed, out, as_json=as_json)
        wanted = Wanted(
            bench=bench, side=side, outcome=outcome, kind=kind, since=since, until=until
        )
        history.stats(out, wanted, answers=answers, as_json=as_json)


@incidents_app.command(short_help="Write a remark on an incident.")
def remark(
    incident: IncidentArgument,
    words: Annotated[list[str], typer.Argument(help="The remark.", metavar="WORDS")],
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Write a remark on an incident. `show` prints it, and `search` finds it."""
    with reported(as_json):
        from freezeframe.harness.cli import history

        history.remark(incident, " ".join(words), out, as_json=as_json)


@incidents_app.command(short_help="Search incidents for words.")
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


@incidents_app.command(short_help="Remove old incidents; keep first and newest of each kind.")
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


@incidents_app.command()
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
        from freezeframe.harness.cli import showing

        showing.show(incident, out, timeline=timeline, verbose=verbose, as_json=as_json)


@incidents_app.command(short_help="Compute the verdict again from an incident's files.")
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


@incidents_app.command(short_help="Turn an incident into a scenario and a pytest.")
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


@incidents_app.command()
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


@incidents_app.command("import", short_help="Judge captures and logs that you have.")
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
