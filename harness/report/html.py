"""An incident as one self-contained page: what happened, pictures of it, and the evidence to look
through.

Everything that stems from the incident is text to the template, which escapes it; no markup is made
here. A content security policy lets nothing run but the page's own script, and nothing load at all.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2

from freezeframe.harness.core.blocks.blockdiff import HexRow, hex_rows
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.statediff import field_rows
from freezeframe.harness.core.verdict.writepath import items, mapping, number
from freezeframe.harness.incidents.evidence import Evidence
from freezeframe.harness.report import pictures
from freezeframe.harness.report.pictures import Lane, duration
from freezeframe.harness.report.text import OUTCOME_MEANING, byte_count, watching_rows

LINES_BEFORE: Final = 300
LINES_AFTER: Final = 200
"""Of each console, around the trigger's time; the pcapng export has all."""
MAX_ROWS: Final = 1000
MAX_TEXT_CHARS: Final = 600
VERDICT_KEYS: Final = (
    "stage", "kind", "side", "write_id", "lba", "byte_offset", "bit_mask", "expected", "found", "confidence",
    "evidence_grade",
)  # fmt: skip
_DIFFERENCE_KEYS: Final = ("field", "primary", "secondary", "healthy_primary", "healthy_secondary")
MARGIN_NS: Final = 30 * NS_PER_MS
"""Shown before and behind the failing write's way in the close view."""
_TEMPLATE, _SCRIPT = "incident.html.j2", "incident.js"


@dataclass(frozen=True)
class Card:
    label: str
    value: str
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class HexCell:
    hex: str
    glyph: str
    differs: bool


@dataclass(frozen=True)
class ShownLine:
    number: int
    since: str
    text: str
    rules: str
    is_trigger: bool


def page(evidence: Evidence) -> str:
    """The whole page."""
    script = _read(_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    trigger = mapping(evidence.record.get("trigger"))
    zero_ns = number(trigger.get("t_match_ns"))
    return _template().render(
        script=script,
        script_hash=f"sha256-{digest}",
        incident=evidence.stored.id,
        outcome=evidence.stored.outcome,
        meaning=OUTCOME_MEANING.get(evidence.stored.outcome, ""),
        headline=headline(evidence),
        run=_run(evidence.record),
        cards=_cards(evidence),
        verdict=_verdict(evidence.record),
        suspect=evidence.suspect,
        way=pictures.way(evidence.path),
        row_height=pictures.ROW_HEIGHT,
        pictures=_timelines(evidence, zero_ns),
        latencies=pictures.latencies(
            evidence.link.writes, evidence.failing, zero_ns or evidence.link.t_first_ns
        ),
        diff=evidence.diff,
        diff_note=_diff_note(evidence),
        hex=_hex(evidence),
        consoles=[(side, _console(evidence, side, zero_ns)) for side in SIDES],
        fields=field_rows(evidence.sets.get("primary"), evidence.sets.get("secondary")),
        rows=_rows(evidence, zero_ns),
        notes=[_short(note) for note in _texts(evidence.record.get("notes"))],
        problems=[*map(escape, evidence.stored.problems), *dict.fromkeys(evidence.problems)],
        versions=_versions(evidence.record),
    )


def headline(evidence: Evidence) -> str:
    """One sentence: the verdict where there is one, else what triggered."""
    record = evidence.record
    verdict, trigger = mapping(record.get("verdict")), mapping(record.get("trigger"))
    if verdict.get("conclusive") is True and verdict.get("text"):
        return _short(verdict["text"])
    if not trigger:
        return "Nothing triggered."
    if trigger.get("source") == "link":
        return _short(f"On the link: {trigger.get('detail') or trigger.get('rule')}")
    return _short(f"On the {trigger.get('side')}'s console: {escape(evidence.trigger_text)}")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_read),
    )
    return environment.get_template(_TEMPLATE)


def _read(name: str) -> str:
    return (
        resources.files("freezeframe.harness.report").joinpath("templates", name).read_text("utf-8")
    )


def _short(value: object) -> str:
    return escape(str(value)[:MAX_TEXT_CHARS])


def _texts(value: object) -> list[str]:
    return (
        [one for one in value if isinstance(one, str)][:MAX_ROWS] if isinstance(value, list) else []
    )


def _run(record: Mapping[str, Any]) -> str:
    said = f"{record.get('scenario') or 'watch'} on bench {record.get('bench')}, seed {record.get('seed')}"
    return _short(f"{said}, {record['created']}" if record.get("created") else said)


def _cards(evidence: Evidence) -> list[Card]:
    record = evidence.record
    trigger, capture = mapping(record.get("trigger")), mapping(record.get("capture"))
    cards = []
    if trigger:
        more = len(items(record.get("more_triggers")))
        where = f"{trigger.get('side')} {trigger.get('source')}" + (
            f", {more} more after it" if more else ""
        )
        cards.append(Card("trigger", _short(trigger.get("rule")), _short(where), "bad"))
    arrival_ns, done_ns = (
        number(trigger.get("t_arrival_ns")),
        number(trigger.get("t_frame_done_ns")),
    )
    if arrival_ns is not None and done_ns is not None:
        answered_ns = number(trigger.get("t_ack_ns"))
        note = (
            f"answered after {duration(answered_ns - arrival_ns)}"
            if answered_ns is not None
            else ""
        )
        cards.append(
            Card("trigger read to control frame out", duration(done_ns - arrival_ns), note)
        )
    for side in SIDES:
        one = mapping(mapping(record.get("sets")).get(side))
        if one:
            size = byte_count(number(one.get("bytes")) or 0)
            said, kind = (
                ("complete", "good") if one.get("complete") is True else ("INCOMPLETE", "bad")
            )
            note = (
                f"{size}, {_short(one.get('events', 0))} events"
                if kind == "good"
                else _short(one.get("reason"))
            )
            cards.append(Card(f"{side}'s root cause set", said, note, kind))
    equal = record.get("data_equal")
    if isinstance(equal, bool):
        cards.append(
            Card(
                "data equal",
                "yes" if equal else "NO",
                "host, primary, secondary",
                "good" if equal else "bad",
            )
        )
    lost = number(record.get("lost_acked_writes"))
    if lost is not None:
        unflushed = number(mapping(record.get("comparison")).get("lost_unflushed_writes"))
        note = f"{unflushed} of them never flushed" if unflushed else ""
        cards.append(Card("acknowledged writes lost", str(lost), note, "bad" if lost else "good"))
    if capture:
        drops = number(capture.get("kernel_drops")) or 0
        note = f"{drops} dropped, {number(capture.get('digests_checked')) or 0} digests checked"
        cards.append(
            Card(
                "frames captured",
                str(number(capture.get("packets")) or 0),
                note,
                "bad" if drops else "",
            )
        )
    return cards


def _verdict(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page says of the verdict; None while there is none."""
    verdict = mapping(record.get("verdict"))
    if not verdict:
        return None
    rows = [
        (name.replace("_", " "), _short(_value(name, verdict[name])))
        for name in VERDICT_KEYS
        if verdict.get(name) not in (None, "", []) and isinstance(verdict[name], str | int)
    ]
    also = [f"{one.get('kind')}: {one.get('reason')}" for one in items(verdict.get("also"))]
    return {
        "text": _short(verdict.get("text") or verdict.get("reason") or ""),
        "is_sure": verdict.get("conclusive") is True,
        "rows": rows,
        "reasons": [_short(one) for one in _texts(verdict.get("reasons"))],
        "also": [_short(one) for one in also[:100]],
        "lacks": [_short(one) for one in _texts(verdict.get("evidence_lacks"))],
        "differences": [
            [_short(one.get(name, "-")) for name in _DIFFERENCE_KEYS]
            for one in items(verdict.get("state_differences"))[:MAX_ROWS]
        ],
    }


def _value(name: str, value: object) -> str:
    return f"0x{value:02x}" if name == "bit_mask" and isinstance(value, int) else str(value)


def _timelines(evidence: Evidence, zero_ns: Ns | None) -> list[tuple[str, str, pictures.Timeline]]:
    """(id, name, picture): the whole run, and the time around the failing write's way."""
    times = [number(row.get("t_ns")) for row in evidence.rows]
    known = [t_ns for t_ns in times if t_ns is not None]
    if evidence.link.frames:
        known += [evidence.link.t_first_ns, evidence.link.t_last_ns]
    if not known:
        return []
    lanes = _lanes(evidence)
    made = [("whole", "the whole run", pictures.timeline(lanes, min(known), max(known), zero_ns))]
    steps = [step.t_ns for step in evidence.path.steps]
    if steps:
        start_ns, end_ns = (
            min(steps) - MARGIN_NS,
            min(max(steps), min(steps) + NS_PER_S) + MARGIN_NS,
        )
        made.insert(
            0, ("close", "around the trigger", pictures.timeline(lanes, start_ns, end_ns, zero_ns))
        )
    return made


def _lanes(evidence: Evidence) -> list[Lane]:
    lanes = [Lane("host writes", [one.t_ns for one in evidence.host_writes], "writes")]
    lanes.append(
        Lane("copies on the link", [one.t_sent_ns for one in evidence.link.writes], "copies")
    )
    acks = [one.t_ack_ns for one in evidence.link.writes if one.t_ack_ns]
    lanes.append(Lane("acknowledgements", acks, "acknowledgements"))
    for side in SIDES:
        times = [line.t_ns for line in evidence.consoles[side] if line.t_ns]
        lanes.append(Lane(f"{side}'s console", times, "lines"))
    steps = [(step.t_ns, step.name, step.kind) for step in evidence.path.steps]
    lanes.append(Lane("the write's way", single=steps))
    recovery = []
    for row in items(evidence.record.get("recovery")):
        t_ns = number(row.get("t_ns"))
        if t_ns is not None:
            said = " ".join(str(row.get(name) or "") for name in ("side", "step", "detail"))
            recovery.append((t_ns, _short(said), "act"))
    lanes.append(Lane("recovery", single=recovery))
    return lanes


def _diff_note(evidence: Evidence) -> str:
    diff = evidence.diff
    if diff is None:
        return ""
    at = diff.offsets[0]
    mask = diff.expected[at] ^ diff.found[at]
    count = len(diff.offsets)
    said = f"{count} of {len(diff.expected)} bytes differ" if count > 1 else "One byte differs"
    return f"{said}: {'the first is ' if count > 1 else ''}byte {at} from sector {diff.sector}, bit mask 0x{mask:02x}."


def _hex(evidence: Evidence) -> list[tuple[str, list[HexCell], list[HexCell]] | None]:
    """(offset, expected, found) of each row of the hex view; None: rows left out."""
    if evidence.diff is None:
        return []
    return [
        None
        if row is None
        else (f"{row.offset:06x}", _cells(row, row.expected), _cells(row, row.found))
        for row in hex_rows(evidence.diff)
    ]


def _cells(row: HexRow, shown: bytes) -> list[HexCell]:
    return [
        HexCell(f"{byte:02x}", chr(byte) if 32 <= byte < 127 else "·", one != other)
        for byte, one, other in zip(shown, row.expected, row.found, strict=True)
    ]


def _console(evidence: Evidence, side: Side, zero_ns: Ns | None) -> dict[str, Any]:
    """The lines around the trigger, and how many were left out before and behind them."""
    lines = evidence.consoles[side]
    centre = len(lines)
    if evidence.trigger_line is not None and evidence.trigger_line[0] == side:
        centre = evidence.trigger_line[1]
    elif zero_ns is not None:
        centre = next((at for at, line in enumerate(lines) if line.t_ns > zero_ns), len(lines))
    first, last = max(centre - LINES_BEFORE, 0), min(centre + LINES_AFTER, len(lines))
    shown = [
        ShownLine(
            number=first + at + 1,
            since=duration(line.t_ns - (zero_ns or lines[0].t_ns)) if line.t_ns else "",
            text=escape(line.data),
            rules=", ".join(line.rules),
            is_trigger=line.is_trigger,
        )
        for at, line in enumerate(lines[first:last])
    ]
    return {"lines": shown, "before": first, "after": len(lines) - last}


def _rows(evidence: Evidence, zero_ns: Ns | None) -> list[tuple[str, ...]]:
    """(since the trigger, give or take, source, side, event, the rest) of the timeline's rows."""
    told: list[tuple[str, ...]] = []
    for row in evidence.rows[:MAX_ROWS]:
        t_ns = number(row.get("t_ns"))
        rest = ", ".join(
            f"{name} {row[name]}"
            for name in row
            if name not in ("t_ns", "error_ns", "source", "side", "event", "excerpt_hex")
            and row[name] not in ("", [], None)
        )
        since = duration(t_ns - zero_ns) if t_ns is not None and zero_ns is not None else ""
        error = f"± {duration(number(row.get('error_ns')) or 0)}"
        told.append(
            (
                since,
                error,
                *(_short(row.get(name, "")) for name in ("source", "side", "event")),
                _short(rest),
            )
        )
    return told


def _versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run stood on: the proofs of its watching, the controllers, our own versions."""
    rows = [(name, _short(said)) for name, said in watching_rows(record)]
    for side, one in mapping(record.get("controllers")).items():
        about = mapping(one)
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
        rows.append((_short(side), _short(said)))
    versions = mapping(record.get("versions"))
    for name, value in versions.items():
        said = (
            ", ".join(f"{one} {two}" for one, two in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        rows.append((_short(name), _short(said)))
    return rows[:40]
