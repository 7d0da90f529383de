"""What is made of a session's records once its watchers have stopped."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import SIDES, Trigger
from freezeframe.harness.core.verdict.onset import began_ns
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.selfcheck import read_console, recheck_console


def recheck_consoles(
    incident: Incident,
    throughout: Sequence[ConsoleRule],
    ever: Sequence[ConsoleRule],
    triggers: Sequence[Trigger],
) -> list[str]:
    """Search the recorded consoles once more, plainly: what the reflex reported must be what is
    there. Not for rules that a reload brought, changed or took (from which byte on it was in
    force is not recorded), nor for those whose hits were not all kept. Returns what differs."""
    recheck: dict[str, Any] = {}
    differ: list[str] = []
    counted = incident.record["counted_hits"]
    rules = tuple(rule for rule in throughout if rule.name not in counted)
    left_out = [rule for rule in ever if rule not in rules]
    for side in SIDES:
        log, times = incident.console_path(side), incident.console_times_path(side)
        try:
            found = recheck_console(rules, side, log, times, triggers)
        except RigError as error:
            recheck[side] = {"agrees": None, "reason": str(error)}
            incident.note(
                f"the record of the {side} console was not searched again, nor for the begin of a warmstart: {error}"
            )
            continue
        found.not_checked.extend(
            dict.fromkeys(rule.name for rule in left_out if rule.side in (side, "any"))
        )
        recheck[side] = asdict(found) | {"agrees": found.agrees}
        judged = {rule.name for rule in rules if rule.side in (side, "any")} - set(
            found.not_checked
        )
        if found.agrees and not judged:
            recheck[side] |= {"agrees": None, "reason": "it could judge none of the rules"}
        if not found.agrees:
            text = (
                f"the record of the {side} console and what the reflex reported differ: {len(found.missed)} missed "
                f"{found.missed[:3]}, {len(found.unfounded)} reported and not there {found.unfounded[:3]}"
            )
            differ.append(text)
    incident.record["recheck"] = recheck
    return differ


def time_warmstarts(incident: Incident, opened: OpenBench) -> None:
    """How long each side took from its control frame to the first word of its warmstart."""
    for action in incident.record["actions"]:
        side, sent_ns = action["side"], action.get("t_frame_done_ns")
        # A side whose control line was taken out of the bench file since then has no controller.
        pattern = getattr(opened.controllers.get(side), "warmstart_line", b"")
        if sent_ns is None or not pattern:
            continue
        try:
            recorded = read_console(incident.console_path(side), incident.console_times_path(side))
        except RigError:  # the recheck has made it a note
            continue
        began = began_ns(*recorded, pattern, sent_ns)
        action["t_warmstart_ns"] = began
        action["warmstart_us"] = None if began is None else (began - sent_ns) / 1000
