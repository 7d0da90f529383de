"""An incident in words, for a terminal. Everything in a record may stem from a device: all of it is
escaped."""

from collections.abc import Sequence
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.text import counted, escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.record import (
    CanaryRecord,
    IncidentRecord,
    RecheckRecord,
    Verdict,
    WayStep,
)

TableRow = tuple[str, RenderableType]
OUTCOME_STYLE: Final = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "drill": "bold green",
    "rig-trouble": "bold magenta",
    "interrupted": "bold yellow",
    "open": "bold cyan",
}
OUTCOME_MEANING: Final = {
    "pass": "all that was expected happened",
    "fail": "a device failed",
    "inconclusive": "the evidence does not suffice",
    "drill": "all works from a console's line to both decoded sets, and nobody was restarted",
    "rig-trouble": "the bench, not a device, is in trouble",
    "interrupted": "the run was stopped before its end",
    "open": "it is being recorded",
}


def meaning(record: IncidentRecord, outcome: str) -> str:
    """What an outcome means, where the record gives no reasons."""
    if outcome == "pass" and record.trigger is not None and record.has_deliberate_fault:
        return "the deliberate fault was detected, and all else that was expected happened"
    if outcome == "pass" and record.is_import:
        return "nothing wrong was seen in what was imported"
    return OUTCOME_MEANING.get(outcome, "")


MAX_PLACES: Final = 5
"""Of what a recheck found wrong or did not judge, for each kind; incident.json has all."""


def text(value: object) -> str:
    return escape(str(value))


def duration(ns: int) -> str:
    """A length of time in the unit a person would choose."""
    if ns < 1_000_000:
        return f"{ns / 1000:.0f} us"
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e9:.2f} s"


def byte_count(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def canaries_in_words(record: IncidentRecord) -> str:
    """A console: how long its canary took; "" when the record has none."""
    return "; ".join(f"{side} {_canary_in_words(one)}" for side, one in record.canaries.items())


def _canary_in_words(canary: CanaryRecord) -> str:
    if canary.seen is not True:
        return f"NOT HEARD: {text(canary.reason or 'it did not come in')}"
    trip_us, match_us = canary.round_trip_us, canary.arrival_to_match_us
    said = (
        "heard"
        if trip_us is None
        else f"heard {duration(int(trip_us * 1000))} after it was asked for"
    )
    return said if match_us is None else f"{said}, {match_us:.0f} us after it was read"


def recheck_in_words(record: IncidentRecord) -> str:
    """A console: what searching its record once more came to; "" when it was not."""
    return "; ".join(f"{side} {_recheck_in_words(one)}" for side, one in record.recheck.items())


def _recheck_in_words(found: RecheckRecord) -> str:
    if found.agrees is None:
        return f"NOT DONE: {text(found.reason or 'its record was too large or not there')}"
    if found.agrees and not found.checked_bytes:
        return "NOT DONE: nothing of it was recorded"
    size, hits = byte_count(found.checked_bytes), found.hits
    said = f"agrees ({size}, {counted(hits, 'hit')})"
    if not found.agrees:
        wrong = (
            f"{name}: {_places(hits)}"
            for name, hits in (
                ("missed", found.missed),
                ("reported but not there", found.unfounded),
            )
            if hits
        )
        said = f"DIFFERS, {', '.join(wrong)}"
    if found.not_checked:
        said += f", not checked: {_some([text(one) for one in found.not_checked])}"
    return said


def _some(places: Sequence[str]) -> str:
    more = len(places) - MAX_PLACES
    return ", ".join(places[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")


def _places(hits: Sequence[tuple[str, int]]) -> str:
    """(rule, offset) of the first few, and how many there are."""
    return _some([f"{text(rule)} at byte {offset}" for rule, offset in hits])


def watching_rows(record: IncidentRecord) -> list[tuple[str, str]]:
    """What proves that the consoles were watched: the canaries before the run, the search of their
    record after it."""
    rows = [("canaries", canaries_in_words(record)), ("recheck", recheck_in_words(record))]
    return [(name, said) for name, said in rows if said]


CLOCK_HEAD: Final = f"{'happened, ms':>12} {'give or take':<12} {'detected, ms':>12}  {'side':<9} {'source':<9} what"
_OF_THE_CLOCK: Final = frozenset(
    {"t_ns", "error_ns", "t_detect_ns", "source", "side", "event", "text", "excerpt_hex"}
)


def clock_row(row: Row, origin_ns: Ns | None) -> str:
    """One line of the timeline on one clock: when it happened and when it was detected, both in
    milliseconds from the detection that counts, and the error bound."""
    error_ns, detect_ns = row.get("error_ns"), row.get("t_detect_ns")
    error = "?" if type(error_ns) is not int else f"{error_ns / 1e6:.3f}"
    detected = "-" if type(detect_ns) is not int else f"{(detect_ns - (origin_ns or 0)) / 1e6:+.3f}"
    more = " ".join(
        f"{name}={value}"
        for name, value in row.items()
        if name not in _OF_THE_CLOCK and value not in ("", [], None)
    )
    said = " ".join(text(one) for one in (row.get("event"), row.get("text") or "", more) if one)
    at = f"{(row['t_ns'] - (origin_ns or 0)) / 1e6:+12.3f} +-{error:<10} {detected:>12}"
    return f"{at}  {text(row.get('side') or ''):<9} {text(row.get('source') or ''):<9} {said[:160]}"


def verdict_line(verdict: Verdict) -> Text:
    return Text(text(verdict.text), "bold" if verdict.conclusive else "yellow")


def verdict_report(verdict: Verdict) -> RenderableType:
    """The verdict with what speaks for it, the write's way, and what the evidence lacks."""
    rows: list[TableRow] = [("verdict", verdict_line(verdict))]
    rows += [("because", Text(text(reason))) for reason in verdict.reasons]
    rows += [("also", Text(text(f"{one.kind}: {one.reason}"))) for one in verdict.also]
    rows += [("way", Text(text(line))) for line in _way_lines(verdict.route)]
    for row in verdict.state_differences:
        healthy = f"healthy {row.healthy_primary} / {row.healthy_secondary}"
        rows.append(
            ("differs", Text(text(f"{row.field}: {row.primary} / {row.secondary} ({healthy})")))
        )
    rows += [("evidence", Text(text(lack), "yellow")) for lack in verdict.evidence_lacks]
    rows += [("not seen", Text(said, "yellow")) for said in unseen_in_words(verdict)]
    return table_of(rows)


def unseen_in_words(verdict: Verdict) -> list[str]:
    """What was not seen and not checked, beyond what the evidence lacks."""
    seen, checked = verdict.not_seen, verdict.not_checked
    said = [f"nothing of the {side}'s direction was captured" for side in seen.directions]
    if checked.writes:
        said.append(
            f"{checked.writes} of {checked.writes_captured} captured writes carry no digest that could be checked"
        )
    return said


def _way_lines(steps: Sequence[WayStep]) -> list[str]:
    """The steps of a write in the order of their times, from the earliest one; those without a time
    at the end."""
    times = [one.t_ns for one in steps if one.t_ns is not None]
    if not steps:
        return []
    start_ns = min(times, default=None)
    ordered = sorted(steps, key=lambda one: (one.t_ns is None, one.t_ns or 0))
    zero = "in the order of their times, zero: the first step"
    return [zero, *(_step_line(step, start_ns) for step in ordered)]


def _step_line(step: WayStep, start_ns: Ns | None) -> str:
    """Time since the first step, with its error, and the checksum."""
    when = "at an unknown time"
    if step.t_ns is not None and start_ns is not None:
        when = f"{(step.t_ns - start_ns) / 1e6:+12.3f} ms (+-{(step.error_ns or 0) / 1e6:.3f})"
    crc = f" crc32c {step.crc32c}" if step.crc32c is not None else ""
    digest = "" if step.digest_right is not False else " DIGEST WRONG"
    return f"{when}  {step.at}{crc}{digest}"


def table_of(rows: Sequence[TableRow]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
