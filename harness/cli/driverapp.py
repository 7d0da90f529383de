"""The command group ``driver``: its options. ``drivers.py`` implements it."""

from pathlib import Path
from typing import Annotated

import typer

from freezeframe.harness.cli import complete
from freezeframe.harness.cli.common import JsonOption
from freezeframe.harness.cli.output import reported

driver_app = typer.Typer(
    help="Write a driver for a device type of your own, and check it.", no_args_is_help=True
)
DriverArgument = Annotated[str, typer.Argument(help="Name of the driver.", metavar="NAME")]


@driver_app.command("new")
def new(
    name: DriverArgument,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where to make the folder NAME.", metavar="DIR")
    ] = Path(),
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="What it is for: pair (controllers and their link), host (a volume) or "
            "supply.", metavar="KIND",
        ),
    ] = "pair",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write a package NAME with a working driver, made-up device and test; for a pair also the protocol
    of its link. Change it into yours: docs/drivers.md."""
    with reported(as_json):
        from freezeframe.harness.cli import drivers

        drivers.new(name, folder, kind, as_json=as_json)


@driver_app.command("check")
def check(
    name: DriverArgument,
    bench: Annotated[
        str | None,
        typer.Option(
            "--bench", "-b", help="Check on the real devices of this bench file that NAME drives: a data "
            "set is SAVED on each controller.", metavar="FILE", autocompletion=complete.benches,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="With --bench: also check volumes, whose first MiB is OVERWRITTEN, and the "
            "supply, whose outputs are SWITCHED OFF."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print each statement that holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Hold the driver or protocol NAME to the promises of its role: against the made-up device that
    its package registers, or with --bench against real ones. Exit status 1: one is broken."""
    with reported(as_json):
        from freezeframe.harness.cli import drivers

        drivers.check(name, bench, overwrite=overwrite, verbose=verbose, as_json=as_json)
