"""An incident in words, for a terminal. Everything in a record may stem from a device: all of it is escaped."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.core.text import escape

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
    where = f"{trigger.get('side')} {trigger.get('source')}, offset {trigger.get('offset_bytes')}"
    rows: list[Row] = [("trigger", Text(f"{text(trigger.get('rule'))} ({text(where)})"))]
    if trigger.get("excerpt") and trigger.get("source") == "console":
        line = text(trigger["excerpt"]).rsplit("\\n", 1)[-1]
        rows.append(("seen", Text(line[-160:], "cyan")))
    if trigger.get("detail"):
        rows.append(("found", Text(text(trigger["detail"]), "cyan")))
    if trigger.get("t_frame_done_ns") and trigger.get("t_arrival_ns"):
        spent = duration(trigger["t_frame_done_ns"] - trigger["t_arrival_ns"])
        answered = ""
        if trigger.get("t_ack_ns"):
            answered = f", answered after {duration(trigger['t_ack_ns'] - trigger['t_arrival_ns'])}"
        rows.append(("reaction", Text(f"control frame out {spent} after the trigger was read{answered}")))
    return rows


def _set_rows(sets: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for side, one in sets.items():
        if one.get("complete"):
            said = Text(f"complete, {byte_count(one.get('bytes', 0))}, {one.get('events', 0)} events logged")
        else:
            said = Text(f"INCOMPLETE: {text(one.get('reason', 'it did not arrive'))}", "bold red")
        rows.append((f"{text(side)} root cause set", said))
    return rows


def _run_rows(record: Mapping[str, Any]) -> list[Row]:
    scenario = text(record.get("scenario") or "watch")
    rows: list[Row] = [("", Text(text(reason))) for reason in record.get("reasons", [])]
    rows.append(("run", Text(f"{scenario} on {text(record.get('bench'))}, seed {text(record.get('seed'))}")))
    if record.get("created"):
        rows.append(("began", Text(text(record["created"]))))
    return rows


def _action_rows(record: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    more = len(record.get("more_triggers", []))
    if more:
        rows.append(
            ("", Text(f"and {more} more trigger{'s' if more > 1 else ''} after it (see timeline.jsonl)"))
        )
    for action in record.get("actions", []):
        reply = action.get("reply") or {}
        said = action.get("error") or reply.get("status") or "no answer yet"
        rows.append((f"{text(action.get('side'))} instructed", Text(text(said))))
    return rows


def _data_rows(record: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    workload = record.get("workload") or {}
    if workload:
        acknowledged = byte_count(workload.get("bytes_written", 0))
        longest = duration(workload.get("longest_hold_ns", 0))
        said = f"{acknowledged} acknowledged in {workload.get('writes_acked', 0)} writes, longest wait for one {longest}"
        rows.append(("host", Text(said)))
    rows.append(("data equal", _yes(record.get("data_equal"))))
    lost = record.get("lost_acked_writes")
    if lost is None:
        rows.append(("lost writes", Text("not known", "yellow")))
    else:
        rows.append(("lost writes", Text(f"{lost} acknowledged", "green" if lost == 0 else "bold red")))
    return rows


def _capture_rows(capture: Mapping[str, Any]) -> list[Row]:
    if not capture:
        return []
    drops = capture.get("kernel_drops", 0)
    said = (
        f"{capture.get('packets', 0)} frames, {byte_count(capture.get('bytes_captured', 0))}, "
        f"{capture.get('digests_checked', 0)} digests checked, {drops} dropped"
    )
    return [("capture", Text(said, "bold red" if drops else ""))]


def summary(record: Mapping[str, Any], outcome: str) -> RenderableType:
    """What happened, in the order in which a person asks."""
    trigger = record.get("trigger")
    rows: list[Row] = [
        ("outcome", outcome_line(outcome)),
        *_run_rows(record),
        *(_trigger_rows(trigger) if trigger else [("trigger", Text("none"))]),
        *_action_rows(record),
        *_set_rows(record.get("sets", {})),
        *_data_rows(record),
        *_capture_rows(record.get("capture") or {}),
        *(("note", Text(text(note), "dim")) for note in record.get("notes", [])),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
