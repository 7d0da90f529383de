"""Implement the commands ``driver new`` and ``driver check``."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.text import Text

from freezeframe.harness.bench import boundary, registry
from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.bench.scaffold import TEMPLATES, write_scaffold
from freezeframe.harness.cli.output import EXIT_DEVICE_FAILED, EXIT_PASS, out, print_json, say
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import UsageError
from freezeframe.harness.promises.cases import Case, ControllerCase, HostCase, PowerCase, check_case
from freezeframe.harness.roles import HostPort, PowerRail
from freezeframe.harness.runs.rundirectory import run_directory

CHECK_TIMEOUT_S = 30.0
"""Bound of one call to a real device."""


def new(name: str, parent: Path, kind: str, *, as_json: bool) -> None:
    written = write_scaffold(name, parent, kind)
    folder = parent / name
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        say(f"written  {escape(str(path))}")
    say(
        f"next     export PYTHONPATH={escape(str(folder.absolute()))}   (later: pip install -e {name})"
    )
    say(f"         freezeframe driver check {name}")
    say(
        f"         then change {name}_{kind}/{TEMPLATES[kind].driver} into yours, one method at a time"
    )


@dataclass
class _Checked:
    """What became of one case."""

    what: str
    held: list[str] = field(default_factory=list)
    broken: str = ""


def check(name: str, bench: str | None, *, overwrite: bool, verbose: bool, as_json: bool) -> None:
    if bench is None and overwrite:
        raise UsageError("--overwrite is about the devices of a bench: give --bench FILE")
    results = []
    with contextlib.ExitStack() as closing:
        cases = (
            _registered(name)
            if bench is None
            else _on_bench(name, load_bench(bench), closing, overwrite=overwrite)
        )
        for what, case in cases:
            result = _Checked(what)
            try:
                check_case(case, passed=result.held.append)
            except AssertionError as error:
                result.broken = str(error)
            results.append(result)
            if not as_json:
                _print(result, verbose=verbose)
    failed = any(one.broken for one in results)
    if as_json:
        rows: list[dict[str, object]] = [
            {"what": one.what, "held": one.held, "broken": one.broken} for one in results
        ]
        print_json({"ok": not failed, "driver": name, "checked": rows})
    raise typer.Exit(EXIT_DEVICE_FAILED if failed else EXIT_PASS)


def _print(result: _Checked, *, verbose: bool) -> None:
    for statement in result.held if verbose else ():
        say(f"        {escape(statement)}")
    if result.broken:
        out.sentence(
            Text.assemble(("BROKEN  ", "bold red"), escape(f"{result.what}: {result.broken}"))
        )
        say(f"        {len(result.held)} statements held before it")
        return
    held = f"{result.what}: {len(result.held)} statements hold"
    out.sentence(Text.assemble(("ok      ", "green"), escape(held)))


def _registered(name: str) -> Iterator[tuple[str, Case]]:
    """The cases that the driver's package gives."""
    for case in registry.cases(name):
        yield type(case).__name__.removesuffix("Case").lower(), case


def _on_bench(
    name: str, bench: Bench, closing: contextlib.ExitStack, *, overwrite: bool
) -> Iterator[tuple[str, Case]]:
    """Real devices: what of the bench this driver drives."""
    controllers = [side for side in bench.controlled if bench.controller(side).driver == name]
    hosts = [
        side
        for side in SIDES
        if bench.controller(side).host_driver == name and bench.controller(side).host is not None
    ]
    is_power = bench.power is not None and bench.power.driver == name
    if not controllers and not hosts and not is_power:
        raise UsageError(f"driver {name!r} drives nothing of {bench.path}")
    if not controllers and not overwrite:
        raise UsageError(
            f"driver {name!r} drives volumes or the supply of {bench.path}: to check it overwrites or "
            "switches them off; --overwrite allows that"
        )
    if overwrite and (bench.simulation is not None or bench.rig is not None):
        raise UsageError(
            f"the volumes and the supply of {bench.name} are there only while it runs: start it with "
            "`freezeframe sim` or `rig up`, and give the bench file that it prints"
        )
    if controllers:
        prepare(bench)
    for side in controllers:
        with run_directory() as run_dir, OpenBench(bench, run_dir, only=side) as opened:
            yield (
                f"{side} controller",
                ControllerCase(controller=opened.controllers[side], timeout_s=CHECK_TIMEOUT_S),
            )
    if overwrite:
        yield from _destructive(bench, hosts, closing, is_power=is_power)


def _destructive(
    bench: Bench, hosts: list[Side], closing: contextlib.ExitStack, *, is_power: bool
) -> Iterator[tuple[str, Case]]:
    for side in hosts:
        table = bench.controller(side)
        assert table.host is not None
        maker = registry.load(table.host_driver, HostPort)
        port = boundary.make_host(maker, table.host_driver, side, table.host)
        closing.callback(port.close)
        yield f"{side} host", HostCase(port=port)
    if is_power and (power := bench.power) is not None:
        rail = boundary.make_power(
            registry.load(power.driver, PowerRail), power.driver, power.resource, volts=power.volts,
            limit_a=power.limit_a, safe_state=power.safe_state,
        )  # fmt: skip
        closing.callback(rail.close)
        yield "power", PowerCase(rail=rail)
