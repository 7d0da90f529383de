"""An incident as one self-contained page: what happened, pictures of it, and the evidence to look
through.

Everything that stems from the incident is text to the template, which escapes it; no markup is made
here. A content security policy lets nothing run but the page's own script, and nothing load at all.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import jinja2
import msgspec

from freezeframe.harness.core.blocks.blockdiff import HexRow, hex_rows
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.assurance import data_equal, has_promises, lost_writes
from freezeframe.harness.core.verdict.failingblock import in_words
from freezeframe.harness.core.verdict.record import IncidentRecord, Verdict, WriteKey
from freezeframe.harness.core.verdict.statediff import field_rows
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report import pictures
from freezeframe.harness.report.pictures import Lane, duration
from freezeframe.harness.report.summary import answer
from freezeframe.harness.report.text import byte_count, watching_rows

LINES_BEFORE: Final = 300
LINES_AFTER: Final = 200
"""Of each console, around the trigger's time; the pcapng export has all."""
OPEN_BEFORE: Final = 30
OPEN_AFTER: Final = 15
"""Of these lines, shown without unfolding."""
MIN_FOLDED: Final = 10
"""Fewer lines than this are not worth a fold."""
ZOOMS_NS: Final = (NS_PER_S, 100 * NS_PER_MS, 10 * NS_PER_MS)
"""Widths of the timeline's close views around the trigger."""
MAX_ROWS: Final = 1000
MAX_TEXT_CHARS: Final = 600
VERDICT_ROWS: Final = (
    ("stage", "stage"), ("kind", "kind"), ("side", "side"), ("write", "write_id"), ("sector", "lba"),
    ("byte of the write", "byte_offset"), ("bits", "bit_mask"), ("expected", "expected"), ("found", "found"),
    ("confidence", "confidence"), ("evidence grade", "evidence_grade"),
)  # fmt: skip
"""Name on the page, field of the verdict."""
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


@dataclass(frozen=True)
class ShownConsole:
    """The lines of a console that the page has, and how many it leaves out."""

    earlier: Sequence[ShownLine]
    """Folded, as ``later``."""
    lines: Sequence[ShownLine]
    later: Sequence[ShownLine]
    before: int
    after: int


def page(dossier: Dossier) -> str:
    """The whole page."""
    script = _read(_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    record, verdict = dossier.record, dossier.verdict
    zero_ns = record.trigger.t_match_ns if record.trigger is not None else None
    return _template().render(
        script=script,
        script_hash=f"sha256-{digest}",
        incident=dossier.stored.id,
        answer=answer(
            msgspec.structs.replace(record, verdict=verdict, id=dossier.stored.id),
            dossier.stored.outcome,
        ),
        run=_run(record),
        cards=_cards(dossier),
        verdict=_verdict(verdict),
        write=_write(verdict.write, dossier),
        way=pictures.way(dossier.path),
        row_height=pictures.ROW_HEIGHT,
        pictures=_timelines(dossier, zero_ns),
        latencies=pictures.latencies(
            dossier.link.writes, dossier.failing, zero_ns or dossier.link.t_first_ns
        ),
        diff=dossier.diff,
        diff_note=_diff_note(dossier),
        hex=_hex(dossier),
        consoles=[(side, _console(dossier, side, zero_ns)) for side in SIDES],
        fields=field_rows(dossier.sets.get("primary"), dossier.sets.get("secondary")),
        rows=_rows(dossier, zero_ns),
        notes=[_short(note) for note in record.notes[:MAX_ROWS]],
        problems=[*map(escape, dossier.stored.problems), *dict.fromkeys(dossier.problems)],
        versions=_versions(record),
    )


def _write(write: WriteKey | None, dossier: Dossier) -> str:
    """Which write's way is shown, in words; "" when the verdict names none."""
    if write is None or write.sector is None:
        return ""
    named = f"Write {write.write_id}" if write.write_id is not None else "The write"
    on_link = "" if dossier.failing is not None else "; the capture does not hold its copy"
    return (
        f"{named} over sectors {write.sector} to {write.sector + (write.sectors or 1) - 1}{on_link}"
    )


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


def _run(record: IncidentRecord) -> str:
    said = f"{record.scenario or 'watch'} on bench {record.bench}, seed {record.seed}"
    if record.is_import:
        said = "imported evidence, without a bench"
    return _short(f"{said}, {record.created}" if record.created else said)


def _cards(dossier: Dossier) -> list[Card]:
    record = dossier.record
    return [*_trigger_cards(record), *_set_cards(record), *_data_cards(record)]


def _trigger_cards(record: IncidentRecord) -> Iterator[Card]:
    trigger = record.trigger
    if trigger is None:
        return
    more = len(record.more_triggers)
    where = f"{trigger.side} {trigger.source}" + (f", {more} more after it" if more else "")
    yield Card("trigger", _short(trigger.rule), _short(where), "bad")
    arrival_ns, done_ns, answered_ns = (
        trigger.t_arrival_ns,
        trigger.t_frame_done_ns,
        trigger.t_ack_ns,
    )
    if arrival_ns is not None and done_ns is not None:
        note = (
            f"answered after {duration(answered_ns - arrival_ns)}"
            if answered_ns is not None
            else ""
        )
        yield Card("trigger read to control frame out", duration(done_ns - arrival_ns), note)


def _set_cards(record: IncidentRecord) -> Iterator[Card]:
    for side in SIDES:
        one = record.sets.get(side)
        if one is not None and one.complete:
            note = f"{byte_count(one.bytes)}, {one.events} events"
            yield Card(f"{side}'s root cause set", "complete", note, "good")
        elif one is not None:
            yield Card(f"{side}'s root cause set", "INCOMPLETE", _short(one.reason), "bad")


def _data_cards(record: IncidentRecord) -> Iterator[Card]:
    equal, lost, capture = data_equal(record), lost_writes(record), record.capture
    between = "host, primary, secondary" if has_promises(record) else "primary, secondary"
    said, kind = {True: ("yes", "good"), False: ("NO", "bad"), None: ("not compared", "")}[equal]
    yield Card("data equal", said, "" if equal is None else between, kind)
    if lost is not None:
        unflushed = record.comparison.lost_unflushed_writes if record.comparison is not None else 0
        note = f"{unflushed} of them never flushed" if unflushed else ""
        yield Card("acknowledged writes lost", str(lost), note, "bad" if lost else "good")
    if capture is not None:
        note = f"{capture.kernel_drops} dropped, {capture.digests_checked} digests checked"
        blind = [f"not seen: {one}" for one in capture.blind.values()]
        note, kind = _short("; ".join([note, *blind])), "bad" if capture.kernel_drops else ""
        yield Card("frames captured", str(capture.packets or 0), note, kind)
    block = record.failing_block
    if block is not None and (words := in_words(block)):
        place, _, note = words.partition(": ")
        yield Card("failing block", _short(place), _short(note))


@dataclass(frozen=True)
class ShownVerdict:
    """What the page says of the verdict."""

    rows: Sequence[tuple[str, str]]
    reasons: Sequence[str]
    also: Sequence[str]
    lacks: Sequence[str]
    differences: Sequence[Sequence[str]]


def _verdict(verdict: Verdict) -> ShownVerdict:
    values = [(name, key, getattr(verdict, key)) for name, key in VERDICT_ROWS]
    return ShownVerdict(
        rows=[
            (name, _short(_value(key, value)))
            for name, key, value in values
            if value not in (None, "")
        ],
        reasons=[_short(one) for one in verdict.reasons],
        also=[_short(f"{one.kind}: {one.reason}") for one in verdict.also],
        lacks=[_short(one) for one in verdict.evidence_lacks],
        differences=[
            [
                "-" if (value := getattr(one, name)) is None else _short(value)
                for name in _DIFFERENCE_KEYS
            ]
            for one in verdict.state_differences[:MAX_ROWS]
        ],
    )


def _value(name: str, value: object) -> str:
    return f"0x{value:02x}" if name == "bit_mask" and isinstance(value, int) else str(value)


def _timelines(dossier: Dossier, zero_ns: Ns | None) -> list[tuple[str, str, pictures.Timeline]]:
    """(id, name, picture): the time around the failing write's way, the whole run, and ever closer
    views around the trigger."""
    known: list[Ns] = [row["t_ns"] for row in dossier.rows]
    if dossier.link.frames:
        known += [dossier.link.t_first_ns, dossier.link.t_last_ns]
    if not known:
        return []
    lanes = _lanes(dossier)
    made = [("whole", "the whole run", pictures.timeline(lanes, min(known), max(known), zero_ns))]
    whole_ns = max(known) - min(known)
    for span_ns in ZOOMS_NS:
        if zero_ns is not None and span_ns < whole_ns:
            edges = zero_ns - span_ns // 2, zero_ns + span_ns // 2
            name = f"{span_ns // NS_PER_MS}ms"
            label = pictures.tick_label(span_ns)
            made.append(
                (name, f"{label} around the trigger", pictures.timeline(lanes, *edges, zero_ns))
            )
    steps = [step.t_ns for step in dossier.path.steps]
    if steps:
        start_ns, end_ns = (
            min(steps) - MARGIN_NS,
            min(max(steps), min(steps) + NS_PER_S) + MARGIN_NS,
        )
        made.insert(
            0, ("close", "the write's way", pictures.timeline(lanes, start_ns, end_ns, zero_ns))
        )
    return made


def _lanes(dossier: Dossier) -> list[Lane]:
    lanes = [Lane("host writes", [one.time_ns for one in dossier.host_writes], "writes")]
    lanes.append(
        Lane("copies on the link", [one.t_sent_ns for one in dossier.link.writes], "copies")
    )
    acks = [one.t_ack_ns for one in dossier.link.writes if one.t_ack_ns]
    lanes.append(Lane("acknowledgements", acks, "acknowledgements"))
    for side in SIDES:
        times = [line.t_ns for line in dossier.consoles[side] if line.t_ns]
        lanes.append(Lane(f"{side}'s console", times, "lines"))
    steps = [(step.t_ns, step.name, step.kind) for step in dossier.path.steps]
    lanes.append(Lane("the write's way", single=steps))
    recovery = [
        (one.t_ns, _short(f"{one.side} {one.step} {one.detail}"), "act")
        for one in dossier.record.recovery
    ]
    lanes.append(Lane("recovery", single=recovery))
    return lanes


def _diff_note(dossier: Dossier) -> str:
    diff = dossier.diff
    if diff is None:
        return ""
    at = diff.offsets[0]
    mask = diff.expected[at] ^ diff.found[at]
    count = len(diff.offsets)
    said = f"{count} of {len(diff.expected)} bytes differ" if count > 1 else "One byte differs"
    return f"{said}: {'the first is ' if count > 1 else ''}byte {at} from sector {diff.sector}, bit mask 0x{mask:02x}."


def _hex(dossier: Dossier) -> list[tuple[str, list[HexCell], list[HexCell]] | None]:
    """(offset, expected, found) of each row of the hex view; None: rows left out."""
    if dossier.diff is None:
        return []
    return [
        None
        if row is None
        else (f"{row.offset:06x}", _cells(row, row.expected), _cells(row, row.found))
        for row in hex_rows(dossier.diff)
    ]


def _cells(row: HexRow, shown: bytes) -> list[HexCell]:
    return [
        HexCell(f"{byte:02x}", chr(byte) if 32 <= byte < 127 else "·", one != other)
        for byte, one, other in zip(shown, row.expected, row.found, strict=True)
    ]


def _console(dossier: Dossier, side: Side, zero_ns: Ns | None) -> ShownConsole:
    """The lines around the trigger, and how many were left out before and behind them."""
    lines = dossier.consoles[side]
    centre = len(lines)
    if dossier.trigger_line is not None and dossier.trigger_line[0] == side:
        centre = dossier.trigger_line[1]
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
    start, end = max(centre - first - OPEN_BEFORE, 0), min(centre - first + OPEN_AFTER, len(shown))
    if start < MIN_FOLDED:
        start = 0
    if len(shown) - end < MIN_FOLDED:
        end = len(shown)
    return ShownConsole(
        earlier=shown[:start],
        lines=shown[start:end],
        later=shown[end:],
        before=first,
        after=len(lines) - last,
    )


def _rows(dossier: Dossier, zero_ns: Ns | None) -> list[tuple[str, ...]]:
    """(since the trigger, give or take, source, side, event, the rest) of the timeline's rows."""
    shown: list[tuple[str, ...]] = []
    for row in dossier.rows[:MAX_ROWS]:
        t_ns, error_ns = row["t_ns"], row.get("error_ns")
        rest = ", ".join(
            f"{name} {row[name]}"
            for name in row
            if name not in ("t_ns", "error_ns", "source", "side", "event", "excerpt_hex")
            and row[name] not in ("", [], None)
        )
        since = duration(t_ns - zero_ns) if zero_ns is not None else ""
        error = f"± {duration(error_ns if type(error_ns) is int else 0)}"
        shown.append(
            (
                since,
                error,
                *(_short(row.get(name, "")) for name in ("source", "side", "event")),
                _short(rest),
            )
        )
    return shown


def _versions(record: IncidentRecord) -> list[tuple[str, str]]:
    """What the run stood on: the proofs of its watching, the controllers, our own versions."""
    rows = [(name, _short(said)) for name, said in watching_rows(record)]
    for side, one in record.controllers.items():
        about = msgspec.structs.asdict(one)
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
        rows.append((_short(side), _short(said)))
    for name, value in record.versions.items():
        said = (
            ", ".join(f"{one} {two}" for one, two in value.items())
            if isinstance(value, dict)
            else value
        )
        rows.append((_short(name), _short(said)))
    if record.judged_by is not None and record.judged_by.commit:
        rows.append(("commit", _short(record.judged_by.commit)))
    return rows[:40]
