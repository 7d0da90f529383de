"""``check --touch`` beside a watch: it has opened every line and asks both controllers, so what it
knows is reported, and nothing is touched a second time."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final, Literal

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.livestatus import LinkStatus, LiveStatus, SideStatus, decode
from freezeframe.harness.core.policy import Health
from freezeframe.harness.core.text import counted, escape
from freezeframe.harness.edge.onlookers import Lines, listeners
from freezeframe.harness.edge.ownsocket import wait_readable
from freezeframe.harness.edge.system import CheckResult
from freezeframe.harness.errors import RigError
from freezeframe.harness.runs.audit import state_directory

ANSWER_S: Final = 5.0
"""For its first status, which comes at once."""
Status = Literal["ok", "warning", "problem"]
_OF_HEALTH: Final[dict[str, Status]] = {
    Health.ARMED: "ok",
    Health.UNREHEARSED: "ok",
    Health.DEGRADED: "warning",
}


def seen_by_watch(bench: Bench) -> list[CheckResult]:
    """What a watch of this bench reports; empty: there is none that may be looked at."""
    with contextlib.suppress(RigError):
        for lines in listeners(state_directory(), bench.id):
            with contextlib.closing(lines):
                if (status := _first(lines)) is not None:
                    return list(findings(status))
    return []


def _first(lines: Lines) -> LiveStatus | None:
    until_s = time.monotonic() + ANSWER_S
    while not lines.is_over and (left_s := until_s - time.monotonic()) > 0:
        if wait_readable([lines.fileno()], left_s):
            for line in lines.read():
                one = decode(line)
                if isinstance(one, LiveStatus):
                    return one
    return None


def findings(status: LiveStatus) -> Iterator[CheckResult]:
    """One status as ``check --touch`` shows what it found by itself."""
    says = f"pid {status.pid} watches this bench; nothing is touched, what it knows follows"
    yield CheckResult(name="watch", status="ok", detail=says)
    health = f"{status.health or 'not armed yet'}{f': {status.why}' if status.why else ''}"
    yield CheckResult(
        name="health", status=_OF_HEALTH.get(status.health, "problem"), detail=escape(health)
    )
    if status.reflex_why:
        yield CheckResult(name="reflex", status="problem", detail=escape(status.reflex_why))
    for side in SIDES:
        if (one := status.sides.get(side)) is not None:
            yield from _side(side, one)
    yield _link(status.link)


def _side(side: str, one: SideStatus) -> Iterator[CheckResult]:
    console, control = one.console, one.control
    name = f"{side} console"
    if not console.there:
        yield CheckResult(name=name, status="problem", detail=escape(console.why))
    elif console.heard:
        yield CheckResult(name=name, status="ok", detail="the canary came")
    else:
        why = escape(console.unheard or "its canary has not come yet")
        yield CheckResult(name=name, status="warning", detail=why)
    name = f"{side} control"
    if not control.there:
        yield CheckResult(name=name, status="problem", detail=escape(control.why))
    elif control.last_answer_age_s is None:
        yield CheckResult(name=name, status="warning", detail="no answer yet")
    else:
        said = f"answered {control.last_answer_age_s:.0f} s ago"
        yield CheckResult(name=name, status="ok", detail=said)
    name = f"{side} controller"
    if one.pair_state:
        said = f"boot epoch {one.boot_epoch}, {escape(one.pair_state)}"
        yield CheckResult(name=name, status="ok", detail=said)
    else:
        yield CheckResult(name=name, status="problem", detail=escape(one.why or "not identified"))


def _link(link: LinkStatus) -> CheckResult:
    if not link.there:
        return CheckResult(name="link", status="problem", detail=escape(link.why))
    said = (
        f"{counted(link.writes, 'write')}, {link.answers} answered, "
        f"{counted(link.digests_checked, 'digest')} checked, {counted(link.frames_dropped, 'frame')} dropped"
    )
    is_seen = bool(link.writes or link.answers)
    return CheckResult(
        name="link", status="ok" if is_seen else "warning", detail=said,
        remedy="" if is_seen else "nobody has written since the watch began, or it is another link's interface",
    )  # fmt: skip
