"""``check --touch``: open every line of a bench, ask who is there, and look at the link; report all that
was found at once.

Nothing is instructed: each controller is identified, asked for its state, and where it can print, for
one line on its console.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from freezeframe.harness.bench import boundary, registry
from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import NO_CONTROL
from freezeframe.harness.core.console.textscore import looks_like_text
from freezeframe.harness.core.events import NS_PER_S, SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.netns import Namespace
from freezeframe.harness.edge.serial_link import SerialLink, open_serial
from freezeframe.harness.edge.shared_line import SharedLine
from freezeframe.harness.edge.system import CheckResult
from freezeframe.harness.errors import HarnessError, RigError, WrongDeviceError
from freezeframe.harness.roles import Controller, Identity, Printing
from freezeframe.harness.wire.drbd import Role

ANSWER_S: Final = 5.0
"""For an identity, a state, and a canary on its console."""
LISTEN_S: Final = 1.0
"""For what a line says that nobody asked, and for frames on the link."""
MAX_HEARD_BYTES: Final = 65536
SETTINGS: Final = ("protocol_version",)
SETTING_WORDS: Final = ("digest", "integrity", "alg", "timeout", "mtu", "compress")
"""Fields of the state record that are settings of the link: of this name, or with these words."""


@dataclass
class _Touched:
    """What is known of one side."""

    console: SerialLink | None = None
    control: SerialLink | None = None
    controller: Controller | None = None
    identity: Identity | None = None
    is_another: bool = False
    """It answers, and is another one than the bench file says."""
    state: Mapping[str, object] = field(default_factory=dict)


def touch(bench: Bench) -> list[CheckResult]:
    """Touch a bench that is not simulated. Raises nothing that the bench is to blame for."""
    if bench.simulation is not None:
        said = "a simulated bench is made for each run; freezeframe sim makes one to touch"
        return [CheckResult(name="touch", status="ok", detail=said)]
    with contextlib.ExitStack() as closing:
        sides = {side: _Touched() for side in SIDES}
        findings = [one for side in SIDES for one in _open(bench, side, sides[side], closing)]
        findings += [one for side in SIDES for one in _identify(bench, side, sides[side])]
        findings += _canaries(bench, sides)
        findings += _link(bench)
        findings += _settings(sides)
        return findings


def _ok(name: str, detail: str) -> CheckResult:
    return CheckResult(name=name, status="ok", detail=detail)


def _problem(name: str, detail: str, remedy: str = "") -> CheckResult:
    return CheckResult(name=name, status="problem", detail=detail, remedy=remedy)


# --- lines ------------------------------------------------------------------------------------------------
def _open(
    bench: Bench, side: Side, touched: _Touched, closing: contextlib.ExitStack
) -> Iterator[CheckResult]:
    table = bench.controller(side)
    wanted = {}
    if table.console is not None:
        wanted["console"] = (table.console, table.console_baud)
    if table.control is not None and table.control != table.console:
        wanted["control"] = (table.control, table.control_baud)
    for what, (url, baud) in wanted.items():
        breaks = what == "control" and bool(
            getattr(registry.load(table.driver, Controller), "sends_break", False)
        )
        try:
            line = open_serial(url, baud=baud, breaks=breaks)
        except HarnessError as error:
            yield _problem(f"{side} {what}", escape(str(error)))
            continue
        closing.callback(line.close)
        setattr(touched, what, line)
        yield _ok(
            f"{side} {what}",
            f"{url} is open at {baud} baud" if "://" not in url else f"{url} is open",
        )


def _read(line: SerialLink, seconds: float, until: bytes = b"") -> bytes:
    deadline_ns = time.monotonic_ns() + int(seconds * NS_PER_S)
    data = b""
    with contextlib.suppress(RigError):
        while time.monotonic_ns() < deadline_ns and len(data) < MAX_HEARD_BYTES:
            data += line.read(4096, deadline_ns)
            if until and until in data:
                break
    return data


def _identify(bench: Bench, side: Side, touched: _Touched) -> Iterator[CheckResult]:
    table = bench.controller(side)
    is_shared = table.control is not None and table.control == table.console
    line = touched.console if is_shared else touched.control
    if line is None:
        return
    name = f"{side} controller"
    try:
        controller = touched.controller = boundary.make_controller(
            registry.load(table.driver, Controller),
            table.driver,
            side,
            SharedLine(line) if is_shared else line,
            serial_number=table.serial_number,
            options=table.options,
            folder=bench.path.parent,
        )
        who = touched.identity = controller.identify(_deadline_ns())
        touched.state = controller.state(_deadline_ns())
    except WrongDeviceError as error:
        other = bench.controller("secondary" if side == "primary" else "primary")
        is_known = other.serial_number != table.serial_number
        swapped = is_known and other.serial_number in str(error)
        remedy = (
            "the control lines of primary and secondary are exchanged"
            if swapped
            else f"if that is the controller you mean, write its serial number into [{side}]"
        )
        touched.is_another = True
        yield _problem(name, escape(str(error)), remedy)
    except HarnessError as error:
        yield _problem(name, escape(str(error)), _guess(_read(line, LISTEN_S), table.control_baud))
    else:
        yield _ok(
            name,
            escape(
                f"{who.model} {who.serial_number}, firmware {who.firmware_version}, {_role(who)}, {who.pair_state}"
            ),
        )


def _role(who: Identity) -> str:
    return next((one.name.lower() for one in Role if one == who.role), "role unknown")


def _guess(data: bytes, baud: int) -> str:
    """What a line that should have answered sent instead."""
    if looks_like_text(data):
        return "text comes out of this line: is it the console's?"
    if data:
        return f"{len(data)} bytes that are no text came: is {baud} the right baud rate?"
    return "nothing came: is the controller powered, and the line plugged in?"


def _deadline_ns() -> int:
    return time.monotonic_ns() + int(ANSWER_S * NS_PER_S)


def _canaries(bench: Bench, sides: Mapping[Side, _Touched]) -> Iterator[CheckResult]:
    """Each controller that can prints a line; both consoles are read for it."""
    for side, touched in sides.items():
        if touched.console is None:
            continue
        name = f"{side} console heard"
        controller, baud = touched.controller, bench.controller(side).console_baud
        if touched.identity is None or not isinstance(controller, Printing):
            data = _read(touched.console, LISTEN_S)
            says = "text" if looks_like_text(data) else "no text" if data else "nothing"
            can = (
                NO_CONTROL
                if side not in bench.controlled
                else "its controller is another one"
                if touched.is_another
                else "its controller does not answer"
                if touched.identity is None
                else "its driver cannot print"
            )
            yield CheckResult(
                name=name,
                status="warning",
                detail=f"{says} came in {LISTEN_S:g} s; no canary: {can}",
            )
            continue
        yield _canary(side, controller, sides, name, baud)


def _canary(
    side: Side, controller: Printing, sides: Mapping[Side, _Touched], name: str, baud: int
) -> CheckResult:
    text = f"freezeframe canary {secrets.token_hex(4)}"
    try:
        reply = controller.print_line(text, _deadline_ns())
    except HarnessError as error:
        return _problem(name, escape(str(error)))
    if not reply.ok:
        return _problem(name, f"the controller refused to print: {escape(reply.status)}")
    own = sides[side].console
    assert own is not None
    data = _read(own, ANSWER_S / 2, text.encode())
    if text.encode() in data:
        return _ok(name, "the canary came")
    other_side: Side = "secondary" if side == "primary" else "primary"
    other = sides[other_side].console
    if other is not None and text.encode() in _read(other, LISTEN_S, text.encode()):
        return _problem(
            name,
            f"the canary of the {side} came out of the {other_side}'s console",
            "the console lines of primary and secondary are exchanged",
        )
    if data and not looks_like_text(data):
        return _problem(
            name, f"{len(data)} bytes that are no text came", f"is {baud} the right baud rate?"
        )
    return _problem(name, "the canary did not come", "is it this controller's console?")


# --- the link ---------------------------------------------------------------------------------------------
def _link(bench: Bench) -> Iterator[CheckResult]:
    name, interface = "link", bench.link.interface
    try:
        if bench.link.namespace:
            namespace = Namespace.open(bench.link.namespace)
            try:
                before, after = namespace.run(lambda: _counted(interface))
            finally:
                namespace.close()
        else:
            before, after = _counted(interface)
    except (HarnessError, OSError) as error:
        yield _problem(name, escape(str(error)))
        return
    if before is None or after is None:
        where = bench.link.namespace or "this machine"
        yield _problem(
            name,
            f"{escape(where)} has no interface {escape(interface)}",
            "ip link lists them; one in a network namespace needs namespace = PATH in [link]",
        )
        return
    frames = after - before
    yield CheckResult(
        name=name,
        status="ok" if frames else "warning",
        detail=f"{escape(interface)}: {frames} frames received and sent in {LISTEN_S:g} s",
        remedy=""
        if frames
        else "no carrier, or nobody writes: is it the replication link's interface?",
    )


def _counted(interface: str) -> tuple[int | None, int | None]:
    """Frames of an interface in this thread's namespace, at two times."""
    before = _frames(interface)
    if before is not None:
        time.sleep(LISTEN_S)
    return before, _frames(interface)


def _frames(interface: str) -> int | None:
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() == interface:
            fields = counters.split()
            return int(fields[1]) + int(fields[9])
    return None


def _settings(sides: Mapping[Side, _Touched]) -> Iterator[CheckResult]:
    """What both devices say of the link, side by side."""
    states = {side: one.state for side, one in sides.items() if one.state}
    if len(states) < len(SIDES):
        return
    for key in dict.fromkeys(key for state in states.values() for key in state):
        if key not in SETTINGS and not any(word in str(key) for word in SETTING_WORDS):
            continue
        values = [str(states[side].get(key, "not reported"))[:80] for side in SIDES]
        yield CheckResult(
            name=f"setting {escape(str(key))}",
            status="problem" if values[0] != values[1] else "ok",
            detail=escape(f"primary {values[0]}, secondary {values[1]}"),
        )
