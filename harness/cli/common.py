"""The options and arguments that several commands have, declared once for ``harness.cli.app``."""

from pathlib import Path
from typing import Annotated, Final

import typer

from freezeframe.harness.cli import complete

DEFAULT_OUT: Final = Path("incidents")

BenchOption = Annotated[
    str,
    typer.Option(
        "--bench",
        "-b",
        envvar="FREEZEFRAME_BENCH",
        help="Bench file, or the name of a built-in bench.",
        metavar="FILE",
        autocompletion=complete.benches,
    ),
]
AimedBenchOption = Annotated[
    str,
    typer.Option(
        "--bench",
        "-b",
        help="Bench file, or the name of a built-in bench. FREEZEFRAME_BENCH is not read here.",
        metavar="FILE",
        autocompletion=complete.benches,
    ),
]
"""Of a command that restarts a controller: what it is aimed at stands on its line."""
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", envvar="FREEZEFRAME_OUT", help="Folder of the incidents.", metavar="DIR"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print all details and proofs in the summary.")
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        help="Seed of the workload and the faults; the same seed repeats the run.",
        min=0,
        max=2**63 - 1,
    ),
]
SideArgument = Annotated[
    str, typer.Argument(help="primary or secondary.", metavar="SIDE", autocompletion=complete.sides)
]
WantedBench = Annotated[
    str, typer.Option("--bench", "-b", help="Only of this bench.", metavar="NAME")
]
WantedSide = Annotated[
    str,
    typer.Option(
        "--side", help="Only triggers of this side.", metavar="SIDE", autocompletion=complete.sides
    ),
]
WantedOutcome = Annotated[
    str,
    typer.Option(
        "--outcome", help="Only with this outcome: pass, fail, inconclusive ...", metavar="OUTCOME"
    ),
]
WantedKind = Annotated[
    str,
    typer.Option("--kind", help="Only of this kind, or with this trigger rule.", metavar="KIND"),
]
Since = Annotated[
    str, typer.Option("--since", help="Only from this day or time (UTC) on.", metavar="DATE")
]
Until = Annotated[
    str,
    typer.Option("--until", help="Only up to this day or time (UTC), included.", metavar="DATE"),
]
IncidentArgument = Annotated[
    str,
    typer.Argument(
        help="Incident id or its first characters, its folder, or 'last', the newest that has ended.",
        metavar="INCIDENT",
        autocompletion=complete.incidents,
    ),
]
