"""Serial ports of this machine: their stable names, who uses them, and what comes out of them.

Nothing is written to a port unless the caller names it: a board may take any byte for a command. Opening
a port raises DTR and RTS, which the kernel does for every program.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.console.textscore import looks_like_text, text_share
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge import locks
from freezeframe.harness.edge.serial_link import BY_ID, DEFAULT_BAUD, SerialLink, open_serial
from freezeframe.harness.errors import RigError

BAUDS: Final = (DEFAULT_BAUD, 9600, 57600, 38400, 19200, 230400, 460800, 921600, 1_500_000)
"""Tried in this order: the commonest rates of consoles first."""
PROBE: Final = b"\r"
"""What a named port is sent: a terminal's Enter key, to which a shell or a boot loader answers."""
LISTEN_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class SerialPort:
    """One port. Texts are escaped."""

    name: str
    """Stable over restarts and other adapters, where udev gives one; else the device."""
    device: str
    what: str
    """What the adapter says of itself."""
    in_use_by: str
    """Another process that has it open; "": none that this user can see."""


@dataclass(frozen=True, kw_only=True)
class PortHeard:
    """What came out of a port."""

    kind: str
    """text, noise (bytes that are no text at any rate), silent, or closed (it cannot be opened)."""
    baud: int
    """The rate at which it was text; of noise and silence the last one tried."""
    excerpt: str
    """Its last line, escaped; of a port that cannot be opened, why."""


def serial_ports() -> list[SerialPort]:
    """Return all ports, by name. Opens none."""
    from serial.tools import list_ports

    by_id = {str(path.resolve()): str(path) for path in sorted(BY_ID.glob("*"))}
    found = []
    for port in list_ports.comports():
        what = port.description if port.description not in ("n/a", None) else "a serial port"
        found.append(
            SerialPort(
                name=escape(by_id.get(port.device, port.device)),
                device=escape(port.device),
                what=escape(str(what)),
                in_use_by=escape(locks.holder(port.device) or ""),
            )
        )
    return sorted(found, key=lambda one: one.name)


def hear(
    url: str, seconds: float, *, probe: bool = False, bauds: Sequence[int] = BAUDS
) -> PortHeard:
    """Listen for ``seconds`` at each rate until text comes; ``probe``: send PROBE first. A port that
    is silent without a probe is so at every rate, and only one is tried. Raises nothing: what is
    wrong is in the result."""
    noise, baud = b"", bauds[0]
    try:
        line = open_serial(url, baud=baud)
    except RigError as error:
        return PortHeard(kind="closed", baud=baud, excerpt=escape(str(error)))
    try:
        for baud in bauds:
            line.set_baud(baud)
            if probe:
                line.write(PROBE)
            data = _read(line, seconds)
            if looks_like_text(data):
                return PortHeard(kind="text", baud=baud, excerpt=_last_line(data))
            if not data and not probe:
                break
            noise = noise or data
    except RigError as error:
        return PortHeard(kind="closed", baud=baud, excerpt=escape(str(error)))
    finally:
        line.close()
    kind = "noise" if noise else "silent"
    said = f"{len(noise)} bytes, {text_share(noise):.0%} of them text" if noise else ""
    return PortHeard(kind=kind, baud=baud, excerpt=said)


def _read(line: SerialLink, seconds: float) -> bytes:
    """All that comes until ``seconds`` have passed; text ends it early."""
    deadline_ns = time.monotonic_ns() + int(seconds * NS_PER_S)
    data = b""
    while time.monotonic_ns() < deadline_ns and len(data) < LISTEN_BYTES:
        data += line.read(LISTEN_BYTES, deadline_ns)
        if looks_like_text(data) and data.endswith((b"\n", b"# ", b"$ ", b"> ", b": ")):
            break
    return data


def _last_line(data: bytes) -> str:
    lines = [line.strip() for line in data.replace(b"\r", b"\n").split(b"\n") if line.strip()]
    return escape(lines[-1][-200:]) if lines else ""
