"""Implement the commands ``doctor``, ``check`` and ``sim``."""

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import typer
from rich.text import Text

from freezeframe.harness.bench import benchfile, checks
from freezeframe.harness.bench.attached import attached
from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.cli.output import EXIT_PASS, EXIT_RIG, EXIT_USAGE, out, print_json, say
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge import system
from freezeframe.harness.edge.system import CheckResult
from freezeframe.harness.edge.wholefile import make_folder
from freezeframe.harness.errors import UsageError
from freezeframe.harness.runs.rundirectory import run_directory

MARK: Final = {
    "ok": ("ok", "green"),
    "warning": ("note", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}


def doctor(out_dir: Path, *, as_json: bool) -> None:
    _report(system.examine(out_dir), as_json=as_json, exit_code=EXIT_RIG)


def check(bench: str, *, with_touch: bool = False, as_json: bool) -> None:
    findings = checks.check(bench)
    is_wrong = any(one.status == "problem" for one in findings)
    if not with_touch or is_wrong:
        _report(findings, as_json=as_json, exit_code=EXIT_USAGE)
    from freezeframe.harness.bench.touch import touch

    described = benchfile.load_bench(bench)
    prepare(described)
    _report([*findings, *touch(described)], as_json=as_json, exit_code=EXIT_RIG)


def _report(findings: Sequence[CheckResult], *, as_json: bool, exit_code: int) -> None:
    failed = any(one.status == "problem" for one in findings)
    if as_json:
        rows: list[dict[str, object]] = [
            {"name": one.name, "status": one.status, "detail": one.detail, "remedy": one.remedy}
            for one in findings
        ]
        print_json({"ok": not failed, "findings": rows})
    else:
        for one in findings:
            mark, style = MARK[one.status]
            out.print(
                Text.assemble((f"{mark:<8}", style), f"{escape(one.name)}: {escape(one.detail)}")
            )
            if one.remedy and one.status != "ok":
                out.print(Text(f"{'':<8}-> {escape(one.remedy)}"))
    raise typer.Exit(exit_code if failed else EXIT_PASS)


def simulate(name: str, directory: Path | None, *, seed: int, as_json: bool) -> None:
    bench = benchfile.load_bench(name)
    if bench.simulation is None:
        raise UsageError(
            f"{bench.path}: has no [simulation] table, so there is nothing to simulate"
        )
    prepare(bench)
    if directory is None:
        # The volumes are of no use after the pair has ended.
        with run_directory() as run_dir:
            _simulate(bench, run_dir, seed=seed, as_json=as_json)
    else:
        _simulate(bench, make_folder(directory).absolute(), seed=seed, as_json=as_json)


def _simulate(bench: Bench, run_dir: Path, *, seed: int, as_json: bool) -> None:
    stop: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.append(number)

    with OpenBench(bench, run_dir, seed=seed) as opened:
        attach = run_dir / "bench.toml"
        attach.write_text(attached(opened.bench))
        # Other commands open the lines.
        opened.release_lines()
        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)
        if as_json:
            print_json({"bench": str(attach), "directory": str(run_dir)})
        else:
            say("a simulated pair is running; stop it with Ctrl-C")
            for side in SIDES:
                table = opened.bench.controller(side)
                for port, url in (
                    ("console", table.console),
                    ("control", table.control),
                    ("host", table.host),
                ):
                    say(f"  {side:<9} {port:<7} {escape(url or 'none')}")
            say("use it from another terminal, one command at a time, for example:")
            for line in ("watch", "run neg_ack", "save secondary"):
                say(f"  freezeframe {line} --bench {escape(str(attach))}")
        while not stop:
            signal.pause()
