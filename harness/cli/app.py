"""The command ``freezeframe``: its options, and nothing else. Each command's work is in its own module.

Modules of the bench are imported when a command needs them: ``--help`` and shell completion answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.output import reported, say

app = typer.Typer(
    name="freezeframe",
    help="Watch a pair of replicating storage controllers, freeze both at the first wrong byte, and collect what they knew.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 pass, 1 a device failed, 2 usage, 3 rig trouble, 4 inconclusive, 130 interrupted.",
)

DEFAULT_OUT = Path("incidents")

BenchOption = Annotated[
    str,
    typer.Option(
        "--bench",
        "-b",
        envvar="FREEZEFRAME_BENCH",
        help="Bench file, or the name of a built-in one.",
        metavar="FILE",
    ),
]
OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", envvar="FREEZEFRAME_OUT", help="Where the incidents are.", metavar="DIR"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Same seed, same run.", min=0, max=2**63 - 1)]
SideArgument = Annotated[str, typer.Argument(help="primary or secondary.", metavar="SIDE")]
IncidentArgument = Annotated[
    str, typer.Argument(help="Its id, the start of it, its folder, or 'last'.", metavar="INCIDENT")
]


def _version(value: bool) -> None:
    if value:
        from harness.edge.versions import versions

        say(f"freezeframe {versions()['freezeframe']}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="Scenario file, or the name of a built-in one.")] = "clean",
    bench: BenchOption = "sim",
    seed: SeedOption = 1,
    out: OutOption = DEFAULT_OUT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder of a clean run too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario: write, break, see, freeze, collect, compare."""
    with reported(as_json):
        from harness.cli import runs

        runs.run(scenario, bench, seed=seed, out_dir=out, keep=keep, as_json=as_json)


@app.command()
def watch(
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Watch a pair that others write to, until stopped with Ctrl-C; each trigger becomes an incident."""
    with reported(as_json):
        from harness.cli import runs

        runs.watch(bench, out_dir=out, as_json=as_json)


@app.command("list")
def list_(out: OutOption = DEFAULT_OUT, as_json: JsonOption = False) -> None:
    """List the incidents, oldest first."""
    with reported(as_json):
        from harness.cli import incidents

        incidents.list_incidents(out, as_json=as_json)


@app.command()
def show(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also every row of the timeline.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one incident."""
    with reported(as_json):
        from harness.cli import incidents

        incidents.show(incident, out, timeline=timeline, as_json=as_json)


@app.command()
def export(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    pcapng: Annotated[
        Path | None,
        typer.Option(
            "--pcapng", help="Link, consoles, control frames and actions, for Wireshark.", metavar="FILE"
        ),
    ] = None,
    lua: Annotated[
        Path | None,
        typer.Option(
            "--lua", help="The control frames' dissector, for wireshark -X lua_script:FILE.", metavar="FILE"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an incident as one file."""
    with reported(as_json):
        from harness.cli import exports

        exports.export(incident, out, exports.Targets(pcapng=pcapng, lua=lua), as_json=as_json)


@app.command()
def warmstart(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Warmstart one controller now: it stores its root cause data set and restarts."""
    with reported(as_json):
        from harness.cli import devices

        devices.freeze(side, bench, disruptive=True, as_json=as_json)


@app.command()
def save(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Make one controller store a root cause data set and run on."""
    with reported(as_json):
        from harness.cli import devices

        devices.freeze(side, bench, disruptive=False, as_json=as_json)


@app.command()
def pull(
    side: SideArgument,
    bench: BenchOption,
    out: OutOption = DEFAULT_OUT,
    set_id: Annotated[
        int | None, typer.Option("--set", help="Which one; the newest by default.", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pull a root cause data set that a controller holds."""
    with reported(as_json):
        from harness.cli import devices

        devices.pull(side, bench, out, set_id=set_id, as_json=as_json)


@app.command()
def doctor(out: OutOption = DEFAULT_OUT, as_json: JsonOption = False) -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    with reported(as_json):
        from harness.cli import benches

        benches.doctor(out, as_json=as_json)


@app.command()
def check(
    bench: Annotated[str, typer.Argument(help="Bench file, or the name of a built-in one.")],
    as_json: JsonOption = False,
) -> None:
    """Check a bench file, its rules, its drivers and its scenarios, without touching the bench."""
    with reported(as_json):
        from harness.cli import benches

        benches.check(bench, as_json=as_json)


@app.command()
def sim(
    bench: BenchOption = "sim",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where its ports appear; a new directory under /tmp by default."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a simulated pair until stopped with Ctrl-C, and print the bench file that other commands reach it by."""
    with reported(as_json):
        from harness.cli import benches

        benches.simulate(bench, directory, seed=seed, as_json=as_json)


rig_app = typer.Typer(
    help="A pair of virtual Linux nodes that replicate with DRBD, up between runs.", no_args_is_help=True
)
app.add_typer(rig_app, name="rig")
RigDirectory = Annotated[
    Path | None, typer.Option("--dir", help="Where the rig is; by default runs find it there by themselves.")
]


@rig_app.command("up")
def rig_up(
    bench: BenchOption = "drbd_qemu", directory: RigDirectory = None, as_json: JsonOption = False
) -> None:
    """Boot both nodes and leave them running."""
    with reported(as_json):
        from harness.cli import rig

        rig.up(bench, directory, as_json=as_json)


@rig_app.command("down")
def rig_down(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Take the rig down; nothing of it is left."""
    with reported(as_json):
        from harness.cli import rig

        rig.down(directory, as_json=as_json)


@rig_app.command("status")
def rig_status(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Say what of the rig is running."""
    with reported(as_json):
        from harness.cli import rig

        rig.status(directory, as_json=as_json)


def main() -> None:
    app()
