"""The groups of commands: ``rules`` and ``rig``. As in ``app``, the work is in modules of its own."""

from pathlib import Path
from typing import Annotated

import typer

from freezeframe.harness.cli.common import DEFAULT_OUT, BenchOption, JsonOption, OutOption
from freezeframe.harness.cli.output import reported

rules_app = typer.Typer(help="Test rule files before use.", no_args_is_help=True)


@rules_app.callback()
def _rules() -> None:
    pass


@rules_app.command(
    "test", short_help="Apply rule files to recorded incidents; list new and lost hits."
)
def rules_test(
    files: Annotated[
        list[Path],
        typer.Argument(help="Rule file to test; several are combined.", metavar="FILE..."),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            help="Compare with this rule file instead of the recorded triggers.",
            metavar="FILE",
        ),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Apply rule files to all recorded consoles and captures; list new and lost hits.

    Give all rule files of a bench together: a hit of a rule in none of them counts as lost.
    """
    with reported(as_json):
        from freezeframe.harness.cli import lab

        lab.test(files, against or [], out, as_json=as_json)


rig_app = typer.Typer(
    help="Start and stop a pair of virtual Linux nodes that replicate.", no_args_is_help=True
)
RigDirectory = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of the rig; runs find the default one by themselves."),
]


@rig_app.command("image")
def rig_image(bench: BenchOption = "drbd_qemu", as_json: JsonOption = False) -> None:
    """Build the image of the nodes of a bench, unless it exists."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.build_image(bench, as_json=as_json)


@rig_app.command("up")
def rig_up(
    bench: BenchOption = "drbd_qemu", directory: RigDirectory = None, as_json: JsonOption = False
) -> None:
    """Boot both nodes and keep them running after this command."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.up(bench, directory, as_json=as_json)


@rig_app.command("down")
def rig_down(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Stop the rig. Its logs and disks stay in its folder."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.down(directory, as_json=as_json)


@rig_app.command("status")
def rig_status(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Report which parts of the rig are running."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.status(directory, as_json=as_json)
