"""The command ``freezeframe``: its options, and nothing else. Each command's work is in its own
module.

Modules of the bench are imported when a command needs them: ``--help`` and shell completion answer
at once.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from freezeframe.harness.cli import complete
from freezeframe.harness.cli.output import CommandLineError, refuse, reported, say

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
        autocompletion=complete.benches,
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", envvar="FREEZEFRAME_OUT", help="Where the incidents are.", metavar="DIR"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Same seed, same run.", min=0, max=2**63 - 1)
]
SideArgument = Annotated[
    str, typer.Argument(help="primary or secondary.", metavar="SIDE", autocompletion=complete.sides)
]
IncidentArgument = Annotated[
    str,
    typer.Argument(
        help="Its id, the start of it, its folder, or 'last'.",
        metavar="INCIDENT",
        autocompletion=complete.incidents,
    ),
]


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


@app.command()
def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="Scenario file, or the name of a built-in one.",
            metavar="SCENARIO",
            autocompletion=complete.scenarios,
        ),
    ] = "clean",
    bench: BenchOption = "sim",
    seed: SeedOption = 1,
    out: OutOption = DEFAULT_OUT,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder of a clean run too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario: write, break, see, freeze, collect, compare."""
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.run(scenario, bench, seed=seed, out_dir=out, keep=keep, as_json=as_json)


@app.command(short_help="Watch a pair that others write to, until Ctrl-C.")
def watch(
    bench: BenchOption = "sim",
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Watch a pair that others write to, until stopped with Ctrl-C; each trigger becomes an
    incident.

    Between two incidents nothing is watched for some seconds; the next incident says from when to
    when.
    """
    with reported(as_json):
        from freezeframe.harness.cli import runs

        runs.watch(bench, out_dir=out, as_json=as_json)


@app.command("list")
def list_(
    out: OutOption = DEFAULT_OUT,
    kinds: Annotated[
        bool, typer.Option("--kinds", help="A line a kind, with how often it was seen.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the incidents, oldest first."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.list_incidents(out, kinds=kinds, as_json=as_json)


@app.command(short_help="Find incidents by the words in them.")
def search(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Words, or how they begin; all of them must be in it.", metavar="WORDS"
        ),
    ],
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Find incidents by the text of their consoles, triggers and notes."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.search(" ".join(words), out, as_json=as_json)


@app.command(short_help="Remove old incidents, never the first or newest of a kind.")
def prune(
    keep_gib: Annotated[
        float, typer.Option("--keep-gib", help="Size to come down to.", metavar="N")
    ],
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be removed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old incidents; the first and the newest of each kind stay."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.prune_incidents(out, keep_gib, dry_run=dry_run, as_json=as_json)


@app.command()
def show(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also all sources on one clock, around the failure.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one incident."""
    with reported(as_json):
        from freezeframe.harness.cli import incidents

        incidents.show(incident, out, timeline=timeline, as_json=as_json)


@app.command(short_help="Judge a recorded incident again, from its files.")
def replay(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    timeline: Annotated[
        bool,
        typer.Option("--timeline", help="Also all sources on one clock, from cause to detection."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge a recorded incident again, from its files alone: the same evidence gives the same
    verdict."""
    with reported(as_json):
        from freezeframe.harness.cli import verdicts

        verdicts.replay(incident, out, timeline=timeline, as_json=as_json)


@app.command(short_help="Turn an incident into a scenario and a pytest.")
def adopt(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    to: Annotated[Path, typer.Option("--to", help="Where the two files go.", metavar="DIR")] = Path(
        "adopted"
    ),
    as_json: JsonOption = False,
) -> None:
    """Turn a recorded incident into a scenario and a pytest that reproduce it on the simulated
    pair."""
    with reported(as_json):
        from freezeframe.harness.cli import verdicts

        verdicts.adopt(incident, out, to, as_json=as_json)


@app.command()
def export(
    incident: IncidentArgument = "last",
    out: OutOption = DEFAULT_OUT,
    pcapng: Annotated[
        Path | None,
        typer.Option(
            "--pcapng",
            help="Link, consoles, control frames and actions, for Wireshark.",
            metavar="FILE",
        ),
    ] = None,
    lua: Annotated[
        Path | None,
        typer.Option(
            "--lua",
            help="The control frames' dissector, for wireshark -X lua_script:FILE.",
            metavar="FILE",
        ),
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option("--perfetto", help="A trace for ui.perfetto.dev.", metavar="FILE"),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="One page for a browser, with everything in it.", metavar="FILE"
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Without the host's data, and with hashes for serial numbers."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an incident as one file."""
    with reported(as_json):
        from freezeframe.harness.cli import exports

        targets = exports.Targets(pcapng=pcapng, lua=lua, perfetto=perfetto, html=html)
        exports.export(incident, out, targets, redact=redact, as_json=as_json)


rules_app = typer.Typer(help="Rule files, before they are armed.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")


@rules_app.callback()
def _rules() -> None:
    pass


@rules_app.command("test")
def rules_test(
    files: Annotated[
        list[Path],
        typer.Argument(help="The rule file to try; several count as one.", metavar="FILE..."),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            help="Compare with this rule file, not with what was found then.",
            metavar="FILE",
        ),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Replay all recorded consoles and captures against a rule file: which hits are new, which are
    lost?"""
    with reported(as_json):
        from freezeframe.harness.cli import lab

        lab.test(files, against or [], out, as_json=as_json)


@app.command(short_help="Make one controller store a set and warmstart, now.")
def warmstart(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Warmstart one controller now: it stores its root cause data set and restarts."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

        devices.freeze(side, bench, disruptive=True, as_json=as_json)


@app.command(short_help="Make one controller store a set and run on.")
def save(side: SideArgument, bench: BenchOption, as_json: JsonOption = False) -> None:
    """Make one controller store a root cause data set and run on."""
    with reported(as_json):
        from freezeframe.harness.cli import devices

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
        from freezeframe.harness.cli import devices

        devices.pull(side, bench, out, set_id=set_id, as_json=as_json)


@app.command(short_help="Say what this machine lacks, and the line to type.")
def doctor(out: OutOption = DEFAULT_OUT, as_json: JsonOption = False) -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.doctor(out, as_json=as_json)


@app.command(short_help="Check a bench file without touching the bench.")
def check(
    bench: Annotated[
        str,
        typer.Argument(
            help="Bench file, or the name of a built-in one.",
            metavar="BENCH",
            autocompletion=complete.benches,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a bench file, its rules, its drivers and its scenarios, without touching the bench."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.check(bench, as_json=as_json)


@app.command(short_help="Run a simulated pair to play with, until Ctrl-C.")
def sim(
    bench: BenchOption = "sim",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Where its ports appear; by default a new directory under /tmp, gone at the end.",
            metavar="DIR",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a simulated pair until stopped with Ctrl-C, and print the bench file that other commands
    reach it by."""
    with reported(as_json):
        from freezeframe.harness.cli import benches

        benches.simulate(bench, directory, seed=seed, as_json=as_json)


rig_app = typer.Typer(help="A pair of virtual Linux nodes with DRBD.", no_args_is_help=True)
app.add_typer(rig_app, name="rig")
RigDirectory = Annotated[
    Path | None,
    typer.Option("--dir", help="Where the rig is; by default runs find it there by themselves."),
]


@rig_app.command("up")
def rig_up(
    bench: BenchOption = "drbd_qemu", directory: RigDirectory = None, as_json: JsonOption = False
) -> None:
    """Boot both nodes and leave them running."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.up(bench, directory, as_json=as_json)


@rig_app.command("down")
def rig_down(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Take the rig down; only its logs and disks stay in its folder."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.down(directory, as_json=as_json)


@rig_app.command("status")
def rig_status(directory: RigDirectory = None, as_json: JsonOption = False) -> None:
    """Say what of the rig is running."""
    with reported(as_json):
        from freezeframe.harness.cli import rig

        rig.status(directory, as_json=as_json)


def main() -> None:
    """The command; its exit status is the process's."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A closed terminal and a polite kill end a command as Ctrl-C does: in order, with the bench
        # in its safe state.
        if signal.getsignal(number) is signal.SIG_DFL:  # but nohup means what it says
            signal.signal(number, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
    except CommandLineError as error:
        status = refuse(error, as_json="--json" in sys.argv)
    sys.exit(status)
