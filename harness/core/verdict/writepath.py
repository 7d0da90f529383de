"""One write's way through an incident: host, primary, link, secondary, acknowledgement, log line,
trigger, frame, sets.

Pure: what was read of the incident comes in, steps and the arrows between them go out. All of it
may stem from a device or from an attacker: every value is checked for its type before it is used.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.rootcause import this_boot
from freezeframe.harness.core.text import escape
from freezeframe.harness.wire import drbd

Lane = Literal["host", "primary", "link", "secondary", "harness"]
LANES: Final[tuple[Lane, ...]] = ("host", "primary", "link", "secondary", "harness")
MAX_STEPS: Final = 64
MAX_TEXT_CHARS: Final = 400

SUSPICIOUS_EVENTS: Final = ("REPL_DIGEST_FAILED", "REPL_NEG_ACK", "SCRUB_MISMATCH")
"""Event records of a root cause data set that name the sector that went wrong."""
_WAY: Final = {
    "HOST_WRITE": "takes the write from the host",
    "REPL_SEND": "sends the copy",
    "REPL_RECEIVE": "receives the copy",
    "REPL_STORE": "stores the copy",
    "REPL_ACK_SENT": "acknowledges the copy",
    "REPL_ACK_RECEIVED": "sees the acknowledgement",
    "REPL_DIGEST_FAILED": "finds the digest wrong",
    "REPL_NEG_ACK": "refuses, or sees the refusal of, the copy",
    "SCRUB_MISMATCH": "finds stored data wrong",
}
"""Event records of the write's way, in words."""
_CONSOLE_SECTOR: Final = (
    re.compile(rb"FAILED:\s*(\d{1,18})s\s*\+\d"),
    re.compile(rb"Out of sync: start=(\d{1,18})"),
    re.compile(rb"sector (\d{1,18})\b"),
)
"""How DRBD's messages name a sector."""


@dataclass(frozen=True, kw_only=True)
class HostWrite:
    """One write of the host's journal."""

    write_id: int
    sector: int
    sectors: int
    t_ns: Ns
    t_ack_ns: Ns
    """0: never acknowledged."""

    def covers(self, sector: int) -> bool:
        return self.sector <= sector < self.sector + self.sectors


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """The write that the incident is about."""

    sector: int
    block_id: str = ""
    why: str
    """What named it, in words."""


@dataclass(frozen=True, kw_only=True)
class DeviceClock:
    """A controller's uptime on the host's clock."""

    offset_ns: Ns
    """Add to an uptime."""
    error_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that happened to the write."""

    lane: Lane
    t_ns: Ns
    name: str
    detail: str = ""
    error_ns: Ns = 0
    """How wrong the time may be; 0 for the host's own clock."""
    packet_no: int = 0
    kind: Literal["ok", "bad", "act"] = "ok"


@dataclass(frozen=True, kw_only=True)
class WritePath:
    steps: tuple[Step, ...]
    arrows: tuple[tuple[int, int], ...]
    """Pairs of indices into ``steps``: from, to."""


def number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def suspect(
    record: Mapping[str, Any],
    events: Mapping[Side, Sequence[Mapping[str, Any]]],
    trigger_line: bytes,
) -> Suspect | None:
    """Which write the incident is about, from the surest source that names one."""
    verdict, trigger = mapping(record.get("verdict")), mapping(record.get("trigger"))
    lba = number(verdict.get("lba"))
    if lba is not None and lba >= 0:
        return Suspect(sector=lba, why="the verdict names it")
    sector = number(trigger.get("sector"))
    if sector is not None and sector >= 0:
        return Suspect(
            sector=sector, block_id=str(trigger.get("block_id", "")), why="the trigger names it"
        )
    for side in reversed(SIDES):
        for event in events.get(side, ()):
            if event["name"] in SUSPICIOUS_EVENTS and number(event.get("sector")) is not None:
                return Suspect(
                    sector=event["sector"], why=f"the {side}'s event log: {event['name']}"
                )
    for pattern in _CONSOLE_SECTOR:
        if found := pattern.search(trigger_line):
            return Suspect(sector=int(found[1]), why="the console's line names it")
    for more in items(record.get("more_triggers")):
        sector = number(more.get("sector"))
        if sector is not None and sector >= 0:
            block_id = str(more.get("block_id", ""))
            return Suspect(
                sector=sector,
                block_id=block_id,
                why=escape(f"trigger {more.get('rule')} names it")[:MAX_TEXT_CHARS],
            )
    return None


def device_clock(
    record: Mapping[str, Any], side: Side, header: Mapping[str, Any]
) -> DeviceClock | None:
    """Where a controller's uptime lies: it stored its set between the frame that asked for it and
    its reply."""
    uptime_ns, wall_ns = number(header.get("uptime_ns")), number(header.get("wall_ns"))
    clock = mapping(record.get("clock"))
    host_wall_ns, host_ns = number(clock.get("wall_ns")), number(clock.get("monotonic_ns"))
    if uptime_ns is None:
        return None
    window: tuple[Ns, Ns] | None = None
    for action in items(record.get("actions")):
        sent_ns = number(action.get("t_frame_ns"))
        answered_ns = number(mapping(action.get("reply")).get("t_ack_ns"))
        if action.get("side") == side and sent_ns is not None and answered_ns is not None:
            window = (sent_ns, answered_ns)
            break
    if wall_ns is not None and host_wall_ns is not None and host_ns is not None:
        stored_ns = wall_ns - host_wall_ns + host_ns
        if window is not None and window[0] <= stored_ns <= window[1]:
            # The device's wall clock agrees with the host's: the window bounds how far that can be
            # wrong.
            error_ns = max(stored_ns - window[0], window[1] - stored_ns)
            return DeviceClock(offset_ns=stored_ns - uptime_ns, error_ns=error_ns)
    if window is None:
        return None
    middle_ns = (window[0] + window[1]) // 2
    return DeviceClock(offset_ns=middle_ns - uptime_ns, error_ns=(window[1] - window[0] + 1) // 2)


def write_path(
    *,
    record: Mapping[str, Any],
    found: Suspect | None,
    host: Sequence[HostWrite],
    link: LinkWrite | None,
    events: Mapping[Side, Sequence[Mapping[str, Any]]],
    clocks: Mapping[Side, DeviceClock],
    trigger_line: str,
) -> WritePath:
    """The steps in the order of cause, and the arrows between them."""
    steps: list[Step] = []
    sector = found.sector if found is not None else -1
    trigger = mapping(record.get("trigger"))
    until_ns = number(trigger.get("t_match_ns"))
    if found is not None:
        steps += _host_steps(host, sector, until_ns)
        devices = _device_steps(events, clocks, sector)
        before = [step for step in devices if step.lane == "primary" and step.kind == "ok"]
        steps += [one for one in before if "acknowledg" not in one.name]
        steps += _link_steps(link)
        steps += [step for step in devices if step.lane == "secondary"]
        steps += _ack_steps(link)
        steps += [step for step in devices if step.lane == "primary" and step not in steps]
    arrows = [(at, at + 1) for at in range(len(steps) - 1)]
    tail = _action_steps(record, trigger_line)
    first = len(steps)
    arrows += [(at + first, to + first) for at, to in tail.arrows]
    if steps and tail.steps:
        arrows.append((first - 1, first))
    return WritePath(
        steps=tuple(
            replace(
                step,
                name=escape(step.name)[:MAX_TEXT_CHARS],
                detail=escape(step.detail)[:MAX_TEXT_CHARS],
            )
            for step in [*steps, *tail.steps][:MAX_STEPS]
        ),
        arrows=_kept(arrows),
    )


def _kept(arrows: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(pair for pair in arrows if max(pair) < MAX_STEPS))


def _host_steps(host: Sequence[HostWrite], sector: int, until_ns: Ns | None) -> list[Step]:
    before = [w for w in host if w.covers(sector) and (until_ns is None or w.t_ns <= until_ns)]
    if not before:
        return []
    write = before[-1]
    where = f"write {write.write_id}, sectors {write.sector} to {write.sector + write.sectors - 1}"
    return [Step(lane="host", t_ns=write.t_ns, name="host writes", detail=where)]


def _device_steps(
    events: Mapping[Side, Sequence[Mapping[str, Any]]],
    clocks: Mapping[Side, DeviceClock],
    sector: int,
) -> list[Step]:
    """Each event of the way once a side, the last before the set was stored."""
    steps: list[Step] = []
    for side in SIDES:
        clock, newest = clocks.get(side), dict[str, Mapping[str, Any]]()
        if clock is None:
            continue
        for event in this_boot(events.get(side, ())):
            at, size = number(event.get("sector")), number(event.get("bytes"))
            if event["name"] not in _WAY or at is None:
                continue
            sectors = max((size or 0) // drbd.SECTOR_BYTES, 1)
            if at <= sector < at + sectors:
                newest[event["name"]] = event
        for name, event in sorted(newest.items(), key=lambda one: one[1]["seq"]):
            bad = name in SUSPICIOUS_EVENTS
            steps.append(
                Step(
                    lane=side,
                    t_ns=event["uptime_ns"] + clock.offset_ns,
                    name=f"{side} {_WAY[name]}",
                    detail=f"{name}, event {event['seq']}",
                    error_ns=clock.error_ns,
                    kind="bad" if bad else "ok",
                )
            )
    return steps


def _link_steps(link: LinkWrite | None) -> list[Step]:
    if link is None:
        return []
    where = f"sector {link.sector} + {link.size_bytes} bytes, block_id {link.block_id}"
    wrong = link.digest_is_right is False
    return [
        Step(
            lane="link",
            t_ns=link.t_sent_ns,
            name="the copy on the link" + (", digest wrong" if wrong else ""),
            detail=f"{where}, frames {link.first_packet_no} to {link.packet_no}",
            packet_no=link.packet_no,
            kind="bad" if wrong else "ok",
        )
    ]


def _ack_steps(link: LinkWrite | None) -> list[Step]:
    if link is None or not link.t_ack_ns:
        return []
    return [
        Step(
            lane="link",
            t_ns=link.t_ack_ns,
            name=f"{link.ack} on the link",
            detail=f"{link.latency_ns / 1e6:.3f} ms after the copy, frame {link.ack_packet_no}",
            packet_no=link.ack_packet_no,
            kind="bad" if link.ack == "P_NEG_ACK" else "ok",
        )
    ]


def _action_steps(record: Mapping[str, Any], trigger_line: str) -> WritePath:
    """Log line, trigger, then for each instructed side its frame, its reply and its set."""
    steps: list[Step] = []
    arrows: list[tuple[int, int]] = []
    trigger = mapping(record.get("trigger"))
    arrival_ns, match_ns = number(trigger.get("t_arrival_ns")), number(trigger.get("t_match_ns"))
    if arrival_ns is None or match_ns is None:
        return WritePath(steps=(), arrows=())
    where = trigger.get("side")
    lane: Lane = "link" if trigger.get("source") == "link" else "harness"
    if trigger.get("source") == "console" and where in SIDES:
        lane = "primary" if where == "primary" else "secondary"
    seen = (
        "log line arrives"
        if trigger.get("source") == "console"
        else f"seen on the {trigger.get('source')}"
    )
    steps.append(Step(lane=lane, t_ns=arrival_ns, name=seen, detail=trigger_line, kind="bad"))
    steps.append(
        Step(lane="harness", t_ns=match_ns, name=f"trigger {trigger.get('rule')}", kind="act")
    )
    arrows.append((0, 1))
    for action in items(record.get("actions"))[:8]:
        side, sent_ns = action.get("side"), number(action.get("t_frame_ns"))
        if side not in SIDES or sent_ns is None:
            continue
        said = str(action.get("error") or f"sequence number {action.get('seq')}")
        steps.append(
            Step(
                lane="harness",
                t_ns=sent_ns,
                name=f"control frame to the {side}",
                detail=said,
                kind="act",
            )
        )
        arrows.append((1, len(steps) - 1))
        reply = mapping(action.get("reply"))
        answered_ns = number(reply.get("t_ack_ns"))
        if answered_ns is not None:
            lane = "primary" if side == "primary" else "secondary"
            said = f"{reply.get('status')}, set {reply.get('set_id')}, boot epoch {reply.get('boot_epoch')}"
            steps.append(Step(lane=lane, t_ns=answered_ns, name=f"{side} answers", detail=said))
            arrows.append((len(steps) - 2, len(steps) - 1))
        for done in items(record.get("recovery")):
            pulled_ns = number(done.get("t_ns"))
            if (
                done.get("side") == side
                and done.get("step") == "set pulled"
                and pulled_ns is not None
            ):
                said = f"{mapping(mapping(record.get('sets')).get(side)).get('bytes')} bytes"
                steps.append(
                    Step(lane="harness", t_ns=pulled_ns, name=f"{side}'s set pulled", detail=said)
                )
                arrows.append((len(steps) - 2, len(steps) - 1))
                break
    return WritePath(steps=tuple(steps), arrows=tuple(arrows))
