"""Implement ``sim`` and ``inject``: a simulated pair to play with, and what breaks on it."""

import contextlib
import os
import signal
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import typer

from freezeframe.harness.bench.attached import attached
from freezeframe.harness.bench.benchfile import (
    Bench,
    Scenario,
    builtin_folder,
    load_bench,
    load_scenario,
)
from freezeframe.harness.bench.checks import unplayable
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.cli.keys import has_keys, keys_at_once
from freezeframe.harness.cli.output import (
    EXIT_DEVICE_FAILED,
    EXIT_PASS,
    complain,
    out,
    print_json,
    say,
    say_command,
)
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.cli.runs import RunView
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.ownsocket import wait_readable
from freezeframe.harness.edge.wholefile import make_folder
from freezeframe.harness.errors import HarnessError, UsageError
from freezeframe.harness.runs.playground import Injected, inject
from freezeframe.harness.runs.rundirectory import run_directory

LETTERS: Final = string.ascii_lowercase
_NAME_CELLS: Final = 22
_MARGIN: Final = 2


def simulate(name: str, directory: Path | None, *, seed: int, as_json: bool) -> None:
    """Implement ``sim``."""
    bench = load_bench(name)
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
    with OpenBench(bench, run_dir, seed=seed) as opened:
        attach = run_dir / "bench.toml"
        attach.write_text(attached(opened.bench))
        # Other commands open the lines.
        opened.release_lines()
        with _ended_by_signals() as (wake_fd, stop):
            if as_json:
                print_json({"bench": str(attach), "directory": str(run_dir)})
            else:
                _introduce(opened.bench, escape(str(attach)))
            if as_json or not has_keys():
                while not stop:
                    wait_readable([wake_fd], None)
                return
            with keys_at_once():
                _play(attach, wake_fd, stop)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[tuple[int, list[int]]]:
    """A descriptor that becomes readable at Ctrl-C or SIGTERM, and the list of those that came."""
    stop: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.append(number)

    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield woken, stop
    finally:
        signal.set_wakeup_fd(-1)
        os.close(woken)
        os.close(waker)


def _introduce(bench: Bench, file: str) -> None:
    say("a simulated pair is running; stop it with Ctrl-C")
    for side in SIDES:
        table = bench.controller(side)
        ports = (("console", table.console), ("control", table.control), ("host", table.host))
        for port, url in ports:
            say_command(f"  {side:<9} {port:<7} {escape(url or 'none')}")
    say("use it from other terminals:")
    for line in ("watch", "top", "inject neg_ack", "run neg_ack"):
        say_command(f"  freezeframe {line} --bench {file}")
    say("inject makes a fault while a watch runs; run needs a pair that nobody watches")


# --- keys -------------------------------------------------------------------------------------------------
def _play(attach: Path, wake_fd: int, stop: list[int]) -> None:
    """A scenario for each key, until a signal comes. Nothing that goes wrong ends the pair."""
    bench = load_bench(attach)
    of_key = dict(zip(LETTERS, _playable(bench), strict=False))
    say("or press a key here for a fault; the host writes each time:")
    _say_keys(of_key)
    seed = 0
    while not stop:
        ready = wait_readable([wake_fd, sys.stdin.fileno()], None)
        if sys.stdin.fileno() not in ready:
            continue
        typed = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
        if not typed:
            break  # the terminal is gone
        scenario = of_key.get(typed[0])
        if scenario is None:
            _say_keys(of_key)
            continue
        seed += 1
        view = RunView(quiet=False)
        say(f"{scenario.name}: {scenario.title}")
        try:
            made = inject(bench, scenario, seed=seed, view=view, is_stopped=lambda: bool(stop))
        except HarnessError as error:
            view.close()
            complain(error)
        else:
            view.close()
            _say_made(made)


def _playable(bench: Bench) -> list[Scenario]:
    found = [
        load_scenario(path) for path in sorted((builtin_folder() / "scenarios").glob("*.toml"))
    ]
    return [one for one in found if not unplayable(bench, one)]


def _say_keys(of_key: dict[str, Scenario]) -> None:
    cells = [f"{key} {one.name}".ljust(_NAME_CELLS) for key, one in of_key.items()]
    beside = max(1, (out.width - _MARGIN) // _NAME_CELLS)
    for at in range(0, len(cells), beside):
        say((" " * _MARGIN + " ".join(cells[at : at + beside])).rstrip()[: out.width])


def _say_made(made: Injected) -> None:
    done = made.done
    if done is None:
        say("stopped before all was written")
    elif done.ok:
        say(f"{done.writes_acked} host writes acknowledged")
    else:
        say(f"the host's writes failed: {escape(done.error)}")


# --- inject -----------------------------------------------------------------------------------------------
def inject_scenario(scenario: str, bench: str, *, seed: int, as_json: bool) -> None:
    """Implement ``inject``."""
    plan, described = load_scenario(scenario), load_bench(bench)
    prepare(described)
    view = RunView(quiet=as_json)
    try:
        made = inject(described, plan, seed=seed, view=view, is_stopped=lambda: False)
    finally:
        view.close()
    is_ok = made.done is not None and made.done.ok
    if as_json:
        done = made.done
        print_json(
            {
                "scenario": plan.name,
                "faults": made.faults,
                "writes_acked": done.writes_acked if done is not None else 0,
                "error": done.error if done is not None else "",
            }
        )
    else:
        _say_made(made)
    raise typer.Exit(EXIT_PASS if is_ok else EXIT_DEVICE_FAILED)
