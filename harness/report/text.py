"""An incident in words, for a terminal. Everything in a record may stem from a device: all of it is
escaped."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.writepath import mapping, number

Row = tuple[str, RenderableType]
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


def _trigger_rows(trigger: Mapping[str, Any]) -> list[Row]:
    unit = "packet" if trigger.get("source") == "link" else "offset"
    where = f"{trigger.get('side')} {trigger.get('source')}, {unit} {trigger.get('offset_bytes')}"
    rows: list[Row] = [("trigger", Text(f"{text(trigger.get('rule'))} ({text(where)})"))]
    if trigger.get("excerpt") and trigger.get("source") == "console":
        line = text(trigger.get("line") or trigger["excerpt"]).rsplit("\\n", 1)[-1]
        rows.append(("seen", Text(line[-160:], "cyan")))
    if trigger.get("detail"):
        rows.append(("found", Text(text(trigger["detail"]), "cyan")))
    if trigger.get("t_frame_done_ns") and trigger.get("t_arrival_ns"):
        spent = duration(trigger["t_frame_done_ns"] - trigger["t_arrival_ns"])
        answered = ""
        if trigger.get("t_ack_ns"):
            answered = f", answered after {duration(trigger['t_ack_ns'] - trigger['t_arrival_ns'])}"
        rows.append(
            ("reaction", Text(f"control frame out {spent} after the trigger was read{answered}"))
        )
    return rows


def _log_rows(record: Mapping[str, Any]) -> list[Row]:
    """How much of each event log was left: what the reaction's speed was for."""
    rows: list[Row] = []
    for side, log in (record.get("event_logs") or {}).items():
        since = log.get("since_trigger")
        count = (
            "not known how many events"
            if since is None
            else "1 event"
            if since == 1
            else f"{since} events"
        )
        said = f"{count} between the trigger and the save"
        behind = log.get("since_write")
        if behind is not None:
            said += f"; the failing write's first stood {behind} back, of {log.get('held')} held"
        elif log.get("overwritten"):
            said += f"; {log['overwritten']} older ones were overwritten"
        rows.append((f"{text(side)} event log", Text(text(said))))
    return rows


def _set_rows(sets: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for side, one in sets.items():
        if one.get("complete"):
            said = Text(
                f"complete, {byte_count(one.get('bytes', 0))}, {one.get('events', 0)} events logged"
            )
        else:
            said = Text(f"INCOMPLETE: {text(one.get('reason', 'it did not arrive'))}", "bold red")
        rows.append((f"{text(side)} root cause set", said))
    return rows


def _run_rows(record: Mapping[str, Any]) -> list[Row]:
    scenario = text(record.get("scenario") or "watch")
    rows: list[Row] = [("", Text(text(reason))) for reason in record.get("reasons", [])]
    rows.append(
        ("run", Text(f"{scenario} on {text(record.get('bench'))}, seed {text(record.get('seed'))}"))
    )
    if record.get("created"):
        rows.append(("began", Text(text(record["created"]))))
    return rows


def _action_rows(record: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    more = len(record.get("more_triggers", []))
    if more:
        rows.append(
            (
                "",
                Text(
                    f"and {more} more trigger{'s' if more > 1 else ''} after it (see timeline.jsonl)"
                ),
            )
        )
    for action in record.get("actions", []):
        reply = action.get("reply") or {}
        said = action.get("error") or reply.get("status") or "no answer yet"
        if action.get("t_warmstart_ns"):
            said += f", warmstart began {duration(action['t_warmstart_ns'] - action['t_frame_done_ns'])} after the frame"
        rows.append((f"{text(action.get('side'))} instructed", Text(text(said))))
    redrive = record.get("redrive")
    if redrive:
        rows.append(
            ("sent again", Text(text(f"{redrive.get('outcome')}: {redrive.get('reason')}")))
        )
    return rows


def _data_rows(record: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    workload = record.get("workload") or {}
    if "writes_acked" in workload:
        acknowledged = byte_count(workload.get("bytes_written", 0))
        longest = duration(workload.get("longest_hold_ns", 0))
        said = f"{acknowledged} acknowledged in {workload.get('writes_acked', 0)} writes, longest wait for one {longest}"
        rows.append(("host", Text(said)))
        if workload.get("verified_bytes"):
            wrong = workload.get("wrong_reads_total", 0)
            verified = byte_count(workload["verified_bytes"])
            said = f"{verified} verified by {text(workload.get('driver'))}, {wrong} blocks wrong"
            rows.append(("read back", Text(said, "bold red" if wrong else "")))
    rows.append(("data equal", _yes(record.get("data_equal"))))
    lost = record.get("lost_acked_writes")
    if lost is None:
        why = (
            ""
            if workload.get("keeps_journal", True)
            else f": {text(workload.get('driver'))} keeps no journal"
        )
        rows.append(("lost", Text(f"not known{why}", "yellow")))
    else:
        said = f"{lost or 'no'} acknowledged write{'s' if lost and lost > 1 else ''}"
        unflushed = (record.get("comparison") or {}).get("lost_unflushed_writes", 0)
        said += f", {unflushed} of them never flushed" if unflushed else ""
        rows.append(("lost", Text(said, "green" if lost == 0 else "bold red")))
    return rows


def _capture_rows(capture: Mapping[str, Any]) -> list[Row]:
    if not capture:
        return []
    drops = capture.get("kernel_drops", 0)
    said = (
        f"{capture.get('packets', 0)} frames, {byte_count(capture.get('bytes_captured', 0))}, "
        f"{capture.get('digests_checked', 0)} digests checked, {drops} dropped"
    )
    stored, packets = capture.get("frames_stored"), capture.get("packets")
    if isinstance(stored, int) and isinstance(packets, int) and stored < packets:
        said += f"; in link.pcapng the {stored} from number {capture.get('first_packet_no')} on"
    return [("capture", Text(said, "bold red" if drops else ""))]


def canaries_in_words(record: Mapping[str, Any]) -> str:
    """A console: how long its canary took; "" when the record has none."""
    return "; ".join(
        f"{side} {_canary_in_words(mapping(one))}" for side, one in _sides(record, "canaries")
    )


def _canary_in_words(canary: Mapping[str, Any]) -> str:
    if canary.get("seen") is not True:
        return f"NOT HEARD: {text(canary.get('reason') or 'it did not come in')}"
    trip_us, match_us = number(canary.get("round_trip_us")), canary.get("arrival_to_match_us")
    said = (
        "heard" if trip_us is None else f"heard {duration(trip_us * 1000)} after it was asked for"
    )
    return (
        f"{said}, {match_us:.0f} us after it was read"
        if isinstance(match_us, int | float)
        else said
    )


def recheck_in_words(record: Mapping[str, Any]) -> str:
    """A console: what searching its record once more came to; "" when it was not."""
    return "; ".join(
        f"{side} {_recheck_in_words(mapping(one))}" for side, one in _sides(record, "recheck")
    )


def _recheck_in_words(found: Mapping[str, Any]) -> str:
    if not isinstance(found.get("agrees"), bool):
        return f"NOT DONE: {text(found.get('reason') or 'its record was too large or not there')}"
    hits = number(found.get("hits")) or 0
    said = f"agrees ({byte_count(number(found.get('checked_bytes')) or 0)}, {hits} hit{'' if hits == 1 else 's'})"
    if not found["agrees"]:
        wrong = (
            f"{name}: {_places(found[key])}"
            for name, key in (("missed", "missed"), ("told but not there", "unfounded"))
            if found.get(key)
        )
        said = f"DIFFERS, {', '.join(wrong)}"
    left_out = found.get("not_checked")
    if isinstance(left_out, list) and left_out:
        said += f", not checked: {_some([text(one) for one in left_out])}"
    return said


def _proof_style(record: Mapping[str, Any], name: str) -> str:
    good = "seen" if name == "canaries" else "agrees"
    told = [mapping(one).get(good) for _, one in _sides(record, name)]
    if name == "recheck" and False in told:
        return "bold red"
    return "" if all(one is True for one in told) else "yellow"


def _some(told: list[str]) -> str:
    more = len(told) - MAX_PLACES
    return ", ".join(told[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")


def _places(hits: object) -> str:
    """(rule, offset) of the first few, and how many there are."""
    shown = hits if isinstance(hits, list) else []
    return _some(
        [
            " at byte ".join(text(part) for part in one)
            for one in shown
            if isinstance(one, list | tuple)
        ]
    )


def _sides(record: Mapping[str, Any], key: str) -> list[tuple[Side, object]]:
    told = mapping(record.get(key))
    return [(side, told[side]) for side in SIDES if side in told]


def watching_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What proves that the consoles were watched: the canaries before the run, the search of their
    record after it."""
    rows = [("canaries", canaries_in_words(record)), ("recheck", recheck_in_words(record))]
    return [(name, said) for name, said in rows if said]


def _line_at(trigger: Mapping[str, Any]) -> object:
    """Where the line of a console's trigger begins, as far as its excerpt shows; else where the
    match ends."""
    end, excerpt = trigger.get("offset_bytes"), trigger.get("excerpt_hex")
    try:
        before = bytes.fromhex(excerpt) if isinstance(excerpt, str) else b""
    except ValueError:
        before = b""
    if not isinstance(end, int):
        return end
    return end - (len(before) - 1 - before.rfind(b"\n"))


def _look_rows(trigger: Mapping[str, Any], incident: object) -> list[Row]:
    """Where a reader begins: the place of the trigger in the evidence."""
    if trigger.get("source") == "console":
        place = (
            f"{text(trigger.get('side'))}/console.log, the line at byte {text(_line_at(trigger))}"
        )
    else:
        place = f"link.pcapng, packet {text(trigger.get('offset_bytes'))}"
        if trigger.get("block_id"):
            place += (
                f", in Wireshark with drbd_tcp on: drbd.block_id == {text(trigger['block_id'])}"
            )
    return [("look first at", Text(f"{place}; then freezeframe show {text(incident)} --timeline"))]


CLOCK_HEAD: Final = f"{'happened, ms':>12} {'give or take':<12} {'detected, ms':>12}  {'side':<9} {'source':<9} what"
_OF_THE_CLOCK: Final = frozenset(
    {"t_ns", "error_ns", "t_detect_ns", "source", "side", "event", "text", "excerpt_hex"}
)


def clock_row(row: Mapping[str, Any], origin_ns: int | None) -> str:
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


def _verdict_line(verdict: Mapping[str, Any]) -> Text:
    return Text(text(verdict.get("text")), "bold" if verdict.get("conclusive") else "yellow")


def verdict_report(verdict: Mapping[str, Any]) -> RenderableType:
    """The verdict with what speaks for it, the write's way, and what the evidence lacks."""
    rows: list[Row] = [("verdict", _verdict_line(verdict))]
    rows += [("because", Text(text(reason))) for reason in verdict["reasons"]]
    rows += [("also", Text(text(f"{one['kind']}: {one['reason']}"))) for one in verdict["also"]]
    rows += [("way", Text(text(_step_line(step, verdict["route"])))) for step in verdict["route"]]
    for row in verdict["state_differences"]:
        healthy = f"healthy {row['healthy_primary']} / {row['healthy_secondary']}"
        rows.append(
            (
                "differs",
                Text(text(f"{row['field']}: {row['primary']} / {row['secondary']} ({healthy})")),
            )
        )
    rows += [("evidence", Text(text(lack), "yellow")) for lack in verdict["evidence_lacks"]]
    return _table(rows)


def _step_line(step: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """Time since the first step, with its error, and the checksum."""
    start_ns = next((one["t_ns"] for one in steps if one["t_ns"] is not None), None)
    when = "at an unknown time"
    if step["t_ns"] is not None and start_ns is not None:
        when = (
            f"{(step['t_ns'] - start_ns) / 1e6:+12.3f} ms (+-{(step['error_ns'] or 0) / 1e6:.3f})"
        )
    crc = f" crc32c {step['crc32c']}" if "crc32c" in step else ""
    digest = "" if step.get("digest_right") is not False else " DIGEST WRONG"
    return f"{when}  {step['at']}{crc}{digest}"


def _table(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def summary(record: Mapping[str, Any], outcome: str) -> RenderableType:
    """What happened, in the order in which a person asks."""
    trigger = record.get("trigger")
    rows: list[Row] = [
        ("outcome", outcome_line(outcome)),
        *_run_rows(record),
        *(_trigger_rows(trigger) if trigger else [("trigger", Text("none"))]),
        *_action_rows(record),
        *([("verdict", _verdict_line(record["verdict"]))] if record.get("verdict") else []),
        *_set_rows(record.get("sets", {})),
        *_log_rows(record),
        *_data_rows(record),
        *_capture_rows(record.get("capture") or {}),
        *((name, Text(said, _proof_style(record, name))) for name, said in watching_rows(record)),
        *(_look_rows(trigger, record.get("id", "last")) if trigger else []),
        *(("note", Text(text(note), "dim")) for note in record.get("notes", [])),
    ]
    return _table(rows)
