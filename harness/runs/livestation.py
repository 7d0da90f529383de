"""What a station says of itself to whoever looks on. For its own thread; nothing here waits."""

import math
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_S, SIDES, Ns, PowerSample, Side
from freezeframe.harness.core.livestatus import (
    ConsoleStatus,
    ControlStatus,
    GuardStatus,
    RuleStatus,
    SideStatus,
    Supply,
)
from freezeframe.harness.core.policy import Machine, Rung
from freezeframe.harness.core.policy.facts import CONSOLE, CONTROL, PartFacts, SideFacts
from freezeframe.harness.core.policy.messages import BenchPart
from freezeframe.harness.core.text import escape
from freezeframe.harness.runs.live import LiveView
from freezeframe.harness.runs.selfcheck import is_own_rule
from freezeframe.harness.runs.station import Station

HOUR_NS: Final = 3600 * NS_PER_S
UNKNOWN: Final = PartFacts(reason="the bench has none")


def describe(station: Station, view: LiveView, now: Ns) -> dict[str, Any]:
    """Return the fields of a LiveStatus that the station knows."""
    machine, intake = station.machine, station.intake
    parts = machine.presence.parts
    link, reflex = parts[BenchPart.LINK], parts[BenchPart.REFLEX]
    seen = view.link(now, there=link.up, why=link.reason)
    if link.up and intake.link is not None and intake.link.down:
        seen = view.link(now, there=False, why=intake.link.down)
    return {
        "collecting": bool(machine.open_incident),
        "recording": str(intake.current.incident.path.absolute()),
        "sides": {side: _side(machine, side, intake.samples.get(side), now) for side in SIDES},
        "link": seen,
        "reflex_why": "" if reflex.up else escape(reflex.reason),
        "rules": _rules(station),
        "guard": _guard(machine, now),
    }


def _side(machine: Machine, side: Side, sample: PowerSample | None, now: Ns) -> SideStatus:
    parts = machine.presence.parts
    facts = machine.presence.sides.get(side, SideFacts(why="it has no control line"))
    console, control = parts.get(CONSOLE[side], UNKNOWN), parts.get(CONTROL[side], UNKNOWN)
    answer_age_s = (now - facts.asked_ns) / NS_PER_S if facts.asked_ns >= 0 else None
    return SideStatus(
        console=ConsoleStatus(
            there=console.up, why=escape(console.reason), heard=facts.heard, unheard=escape(facts.unheard)
        ),
        control=ControlStatus(
            there=control.up, why=escape(control.reason), last_answer_age_s=answer_age_s
        ),
        pair_state=facts.pair_state,
        boot_epoch=facts.epoch,
        why=escape(facts.why),
        supply=None
        if sample is None
        else Supply(
            volts=_finite(sample.volts), amperes=_finite(sample.amperes), age_s=(now - sample.t_ns) / NS_PER_S
        ),
    )  # fmt: skip


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def _rules(station: Station) -> list[RuleStatus]:
    found, hits = station.intake.rules.rules, station.intake.hits
    console = [(one.name, one.instruct) for one in found.console if not is_own_rule(one.name)]
    link = [(one.name, one.instruct) for one in found.link]
    return [
        RuleStatus(
            name=name,
            source="console" if at < len(console) else "link",
            instructs=instruct != (),
            hits=hits[name],
        )
        for at, (name, instruct) in enumerate([*console, *link])
    ]


def _guard(machine: Machine, now: Ns) -> GuardStatus:
    allowed = machine.guard.allowed(now)
    recent = [one.rung for one in machine.guard.log if one.t_ns > now - HOUR_NS]
    return GuardStatus(
        allows=allowed.rung.name.lower(),
        why=allowed.why,
        until_s=None if allowed.until_ns is None else (allowed.until_ns - now) / NS_PER_S,
        warmstarts_in_hour=recent.count(Rung.WARMSTART),
        saves_in_hour=recent.count(Rung.SAVE),
    )
