"""An incident in words, for a terminal. Everything in a record may stem from a device: all of it is
escaped."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.record import (
    CanaryRecord,
    CaptureRecord,
    EventLogRecord,
    IncidentRecord,
    RecheckRecord,
    SetRecord,
    TriggerRecord,
    Verdict,
    WayStep,
    WorkloadRecord,
)

TableRow = tuple[str, RenderableType]
OUTCOME_STYLE: Final = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "rig-trouble": "bold magenta",
    "interrupted": "bold yellow",
    "open": "bold cyan",
}
OUTCOME_MEANING: Final = {
    "pass": "all that was expected happened",
    "fail": "a device failed",
    "inconclusive": "the evidence does not suffice",
    "rig-trouble": "the bench, not a device, is in trouble",
    "interrupted": "the run was stopped before its end",
    "open": "the run is still going on",
}

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


def _yes(value: object) -> Text:
    if value is None:
        return Text("not known", "yellow")
    return Text("yes", "green") if value else Text("NO", "bold red")


def outcome_line(outcome: str) -> Text:
    return Text.assemble(
        (outcome.upper(), OUTCOME_STYLE.get(outcome, "")), f": {OUTCOME_MEANING.get(outcome, '')}"
    )


def _trigger_rows(trigger: TriggerRecord) -> list[TableRow]:
    unit = "packet" if trigger.source == "link" else "offset"
    where = f"{trigger.side} {trigger.source}, {unit} {trigger.offset_bytes}"
    rows: list[TableRow] = [("trigger", Text(f"{text(trigger.rule)} ({text(where)})"))]
    if trigger.excerpt and trigger.source == "console":
        line = text(trigger.line or trigger.excerpt).rsplit("\\n", 1)[-1]
        rows.append(("seen", Text(line[-160:], "cyan")))
    if trigger.detail:
        rows.append(("found", Text(text(trigger.detail), "cyan")))
    if trigger.t_frame_done_ns and trigger.t_arrival_ns:
        spent = duration(trigger.t_frame_done_ns - trigger.t_arrival_ns)
        answered = ""
        if trigger.t_ack_ns:
            answered = f", answered after {duration(trigger.t_ack_ns - trigger.t_arrival_ns)}"
        rows.append(
            ("reaction", Text(f"control frame out {spent} after the trigger was read{answered}"))
        )
    return rows


def _log_rows(logs: Mapping[Side, EventLogRecord]) -> list[TableRow]:
    """How much of each event log was left: what the reaction's speed was for."""
    rows: list[TableRow] = []
    for side, log in logs.items():
        since = log.since_trigger
        count = (
            "not known how many events"
            if since is None
            else "1 event"
            if since == 1
            else f"{since} events"
        )
        said = f"{count} between the trigger and the save"
        if log.since_write is not None:
            said += f"; the failing write's first stood {log.since_write} back, of {log.held} held"
        elif log.overwritten:
            said += f"; {log.overwritten} older ones were overwritten"
        rows.append((f"{side} event log", Text(said)))
    return rows


def _set_rows(sets: Mapping[Side, SetRecord]) -> list[TableRow]:
    rows: list[TableRow] = []
    for side, one in sets.items():
        if one.complete:
            said = Text(f"complete, {byte_count(one.bytes)}, {one.events} events logged")
        else:
            said = Text(f"INCOMPLETE: {text(one.reason or 'it did not arrive')}", "bold red")
        rows.append((f"{side} root cause set", said))
    return rows


def _run_rows(record: IncidentRecord) -> list[TableRow]:
    scenario = text(record.scenario or "watch")
    rows: list[TableRow] = [("", Text(text(reason))) for reason in record.reasons]
    rows.append(("run", Text(f"{scenario} on {text(record.bench)}, seed {text(record.seed)}")))
    if record.created:
        rows.append(("began", Text(text(record.created))))
    return rows


def _action_rows(record: IncidentRecord) -> list[TableRow]:
    rows: list[TableRow] = []
    more = len(record.more_triggers)
    if more:
        rows.append(
            (
                "",
                Text(
                    f"and {more} more trigger{'s' if more > 1 else ''} after it (see timeline.jsonl)"
                ),
            )
        )
    for action in record.actions:
        status = action.reply.status if action.reply is not None else ""
        said = action.error or status or "no answer yet"
        if action.t_warmstart_ns and action.t_frame_done_ns:
            spent = duration(action.t_warmstart_ns - action.t_frame_done_ns)
            said += f", warmstart began {spent} after the frame"
        rows.append((f"{action.side} instructed", Text(text(said))))
    redrive = record.redrive
    if redrive is not None:
        rows.append(("sent again", Text(text(f"{redrive.outcome}: {redrive.reason}"))))
    return rows


def _host_rows(workload: WorkloadRecord) -> list[TableRow]:
    if workload.writes_acked is None:
        return []
    said = (
        f"{byte_count(workload.bytes_written)} acknowledged in {workload.writes_acked} writes, "
        f"longest wait for one {duration(workload.longest_hold_ns)}"
    )
    rows: list[TableRow] = [("host", Text(said))]
    if workload.verified_bytes:
        wrong = workload.wrong_reads_total
        verified = byte_count(workload.verified_bytes)
        said = f"{verified} verified by {text(workload.driver)}, {wrong} blocks wrong"
        rows.append(("read back", Text(said, "bold red" if wrong else "")))
    return rows


def _data_rows(record: IncidentRecord) -> list[TableRow]:
    workload = record.workload or WorkloadRecord()
    rows = [*_host_rows(workload), ("data equal", _yes(record.data_equal))]
    lost = record.lost_acked_writes
    if lost is None:
        why = (
            f": {text(workload.driver)} keeps no journal" if workload.keeps_journal is False else ""
        )
        rows.append(("lost", Text(f"not known{why}", "yellow")))
        return rows
    said = f"{lost or 'no'} acknowledged write{'s' if lost > 1 else ''}"
    unflushed = record.comparison.lost_unflushed_writes if record.comparison is not None else 0
    said += f", {unflushed} of them never flushed" if unflushed else ""
    rows.append(("lost", Text(said, "green" if lost == 0 else "bold red")))
    return rows


def _capture_rows(capture: CaptureRecord | None) -> list[TableRow]:
    if capture is None or capture == CaptureRecord():
        return []
    said = (
        f"{capture.packets or 0} frames, {byte_count(capture.bytes_captured)}, "
        f"{capture.digests_checked} digests checked, {capture.kernel_drops} dropped"
    )
    stored, packets = capture.frames_stored, capture.packets
    if stored is not None and packets is not None and stored < packets:
        said += f"; in link.pcapng the {stored} from number {capture.first_packet_no} on"
    blind = [("blind", Text(says, "bold yellow")) for says in capture.blind.values()]
    return [("capture", Text(said, "bold red" if capture.kernel_drops else "")), *blind]


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
    size, hits = byte_count(found.checked_bytes), found.hits
    said = f"agrees ({size}, {hits} hit{'' if hits == 1 else 's'})"
    if not found.agrees:
        wrong = (
            f"{name}: {_places(hits)}"
            for name, hits in (("missed", found.missed), ("told but not there", found.unfounded))
            if hits
        )
        said = f"DIFFERS, {', '.join(wrong)}"
    if found.not_checked:
        said += f", not checked: {_some([text(one) for one in found.not_checked])}"
    return said


def _proof_style(record: IncidentRecord, name: str) -> str:
    if name == "canaries":
        proofs = [one.seen for one in record.canaries.values()]
    else:
        proofs = [one.agrees for one in record.recheck.values()]
        if False in proofs:
            return "bold red"
    return "" if all(one is True for one in proofs) else "yellow"


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


def _line_at(trigger: TriggerRecord) -> int | None:
    """Where the line of a console's trigger begins, as far as its excerpt shows; else where the
    match ends."""
    end = trigger.offset_bytes
    try:
        before = bytes.fromhex(trigger.excerpt_hex)
    except ValueError:
        before = b""
    return None if end is None else end - (len(before) - 1 - before.rfind(b"\n"))


def _look_rows(trigger: TriggerRecord, incident: str) -> list[TableRow]:
    """Where a reader begins: the place of the trigger in the evidence."""
    if trigger.source == "console":
        place = f"{text(trigger.side)}/console.log, the line at byte {_line_at(trigger)}"
    else:
        place = f"link.pcapng, packet {trigger.offset_bytes}"
        if trigger.block_id:
            place += f", in Wireshark with drbd_tcp on: drbd.block_id == {text(trigger.block_id)}"
    return [("look first at", Text(f"{place}; then freezeframe show {text(incident)} --timeline"))]


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


def _verdict_line(verdict: Verdict) -> Text:
    return Text(text(verdict.text), "bold" if verdict.conclusive else "yellow")


def verdict_report(verdict: Verdict) -> RenderableType:
    """The verdict with what speaks for it, the write's way, and what the evidence lacks."""
    rows: list[TableRow] = [("verdict", _verdict_line(verdict))]
    rows += [("because", Text(text(reason))) for reason in verdict.reasons]
    rows += [("also", Text(text(f"{one.kind}: {one.reason}"))) for one in verdict.also]
    rows += [("way", Text(text(_step_line(step, verdict.route)))) for step in verdict.route]
    for row in verdict.state_differences:
        healthy = f"healthy {row.healthy_primary} / {row.healthy_secondary}"
        rows.append(
            ("differs", Text(text(f"{row.field}: {row.primary} / {row.secondary} ({healthy})")))
        )
    rows += [("evidence", Text(text(lack), "yellow")) for lack in verdict.evidence_lacks]
    rows += [("not seen", Text(said, "yellow")) for said in unseen_in_words(verdict)]
    return _table(rows)


def unseen_in_words(verdict: Verdict) -> list[str]:
    """What was not seen and not checked, beyond what the evidence lacks."""
    seen, checked = verdict.not_seen, verdict.not_checked
    said = [f"nothing of the {side}'s direction was captured" for side in seen.directions]
    if checked.writes:
        said.append(
            f"{checked.writes} of {checked.writes_captured} captured writes carry no digest that could be checked"
        )
    return said


def _step_line(step: WayStep, steps: Sequence[WayStep]) -> str:
    """Time since the first step, with its error, and the checksum."""
    start_ns = next((one.t_ns for one in steps if one.t_ns is not None), None)
    when = "at an unknown time"
    if step.t_ns is not None and start_ns is not None:
        when = f"{(step.t_ns - start_ns) / 1e6:+12.3f} ms (+-{(step.error_ns or 0) / 1e6:.3f})"
    crc = f" crc32c {step.crc32c}" if step.crc32c is not None else ""
    digest = "" if step.digest_right is not False else " DIGEST WRONG"
    return f"{when}  {step.at}{crc}{digest}"


def _table(rows: Sequence[TableRow]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def summary(record: IncidentRecord, outcome: str) -> RenderableType:
    """What happened, in the order in which a person asks."""
    trigger = record.trigger
    rows: list[TableRow] = [
        ("outcome", outcome_line(outcome)),
        *_run_rows(record),
        *(_trigger_rows(trigger) if trigger is not None else [("trigger", Text("none"))]),
        *_action_rows(record),
        *([("verdict", _verdict_line(record.verdict))] if record.verdict is not None else []),
        *_set_rows(record.sets),
        *_log_rows(record.event_logs),
        *_data_rows(record),
        *_capture_rows(record.capture),
        *((name, Text(said, _proof_style(record, name))) for name, said in watching_rows(record)),
        *(_look_rows(trigger, record.id or "last") if trigger is not None else []),
        *(("note", Text(text(note), "dim")) for note in record.notes),
    ]
    return _table(rows)
