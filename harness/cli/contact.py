"""Implement ``ports``: what is plugged into this machine, and what it says."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from freezeframe.harness.cli.output import out, print_json, say
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.portscan import Heard, SerialPort, hear, serial_ports
from freezeframe.harness.errors import UsageError

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
    elif not rows:
        say("no serial ports on this machine; a simulated bench needs none")


def _say(port: SerialPort, heard: Heard | None) -> None:
    device = f" ({port.device})" if port.device != port.name else ""
    out.print(f"{port.name}{device}{f': {port.what}' if port.what else ''}", markup=False)
    if port.in_use_by:
        say(f"    in use by {port.in_use_by}; not opened")
    elif heard is not None:
        say(f"    {_SAYS[heard.kind].format(baud=heard.baud, excerpt=heard.excerpt)}")
