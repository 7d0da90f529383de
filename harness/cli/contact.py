"""Implement ``ports`` and ``init``: what is plugged into this machine, and a bench file for it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import typer

from freezeframe.harness.bench.newbench import BenchAnswers, SideAnswers, write_bench
from freezeframe.harness.bench.registry import find, names_of
from freezeframe.harness.cli.output import print_json, say, say_command
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.portscan import PortHeard, SerialPort, hear, serial_ports
from freezeframe.harness.errors import UsageError
from freezeframe.harness.roles import Controller

_SAYS: Final = {
    "text": "text at {baud} baud: {excerpt}",
    "noise": "{excerpt}, at no rate that was tried: another rate, or another format than 8N1?",
    "silent": "silent",
    "closed": "{excerpt}",
}


def ports(named: Sequence[str], probe: Sequence[str], listen_s: float, *, as_json: bool) -> None:
    """List all ports, or those named. Only those in ``probe`` are written to."""
    known = {one.device: one for one in serial_ports()}
    known |= {one.name: one for one in known.values()}
    wanted = list(dict.fromkeys([*named, *probe])) or list(
        dict.fromkeys(one.name for one in known.values())
    )
    rows = []
    for name in wanted:
        if "://" in name:
            raise UsageError(f"ports: {name}: only ports of this machine can be listed")
        port = known.get(name) or SerialPort(
            name=escape(name), device=escape(name), what="", in_use_by=""
        )
        heard = None
        if listen_s > 0 and not port.in_use_by:
            heard = hear(name, listen_s, probe=name in probe)
        rows.append((port, heard))
        if not as_json:
            _say(port, heard)
    if as_json:
        shown = [
            {**asdict(port), "heard": asdict(heard) if heard else None} for port, heard in rows
        ]
        print_json({"ports": shown})
    elif any(heard is not None and heard.kind == "silent" for _, heard in rows):
        say("a silent port may wait for a key: freezeframe ports --probe PORT presses Enter there")
    elif not rows:
        say("no serial ports on this machine; a simulated bench needs none")


def init(path: Path) -> None:
    """Ask, write the bench file and its rules, and say what to do next. Nothing is opened."""
    if path.exists():
        raise UsageError(f"{path}: exists; nothing is overwritten")
    found = serial_ports()
    if found:
        say("serial ports of this machine (freezeframe ports listens to them):")
    for one in found:
        say(f"  {one.name}: {one.what}")
    try:
        answers = _asked(path)
    except typer.Abort:
        raise UsageError("init: the questions were not answered; no file was written") from None
    for written in write_bench(path, answers):
        say(f"written: {escape(str(written))}")
    say_command(f"next: freezeframe check {escape(str(path))} --touch")


def _asked(path: Path) -> BenchAnswers:
    name = typer.prompt("name of the bench", default=path.stem)
    say(f"drivers of controllers: {', '.join(names_of(Controller))}")
    driver = typer.prompt("driver of the controllers", default="linux_drbd")
    find(driver)  # UsageError: there is none
    sides: dict[Side, SideAnswers] = {}
    for side in SIDES:
        console = typer.prompt(f"{side}: console, a port or URL")
        baud = typer.prompt(f"{side}: baud rate", default=115200, type=int)
        control = typer.prompt(
            f"{side}: control line; the same if one line carries both", default=console
        )
        serial_number = typer.prompt(
            f"{side}: serial number that its controller answers with (check --touch names it)",
            default=f"unknown-{side}",
        )
        host = typer.prompt(
            f"{side}: volume as its host reaches it, such as nbd://HOST:10809; Enter: none",
            default="",
            show_default=False,
        )
        sides[side] = SideAnswers(
            serial_number=serial_number, console=console, control=control, host=host, baud=baud
        )
    interface = typer.prompt("replication link: interface of this machine", default="eth1")
    port = typer.prompt("replication link: TCP port", default=7788, type=int)
    return BenchAnswers(name=name, driver=driver, interface=interface, port=port, sides=sides)


def _say(port: SerialPort, heard: PortHeard | None) -> None:
    device = f" ({port.device})" if port.device != port.name else ""
    say(f"{port.name}{device}{f': {port.what}' if port.what else ''}")
    if port.in_use_by:
        say(f"    in use by {port.in_use_by}; not opened")
    elif heard is not None:
        say(f"    {_SAYS[heard.kind].format(baud=heard.baud, excerpt=heard.excerpt)}")
