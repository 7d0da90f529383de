"""The summary of a run or an incident for a terminal.

It leads with what happened, why, and what to do now; then at most MAX_FACTS facts; with ``verbose``
all details and proofs. Everything in a record may come from a device, so all of it is escaped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import RenderableType
from rich.text import Text

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.blindness import QUIET
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.core.verdict.assurance import (
    data_equal,
    has_promises,
    lost_writes,
    slow_reaction,
)
from freezeframe.harness.core.verdict.evidence import link_ends
from freezeframe.harness.core.verdict.failingblock import in_words
from freezeframe.harness.core.verdict.record import (
    ActionRecord,
    CaptureRecord,
    EventLogRecord,
    IncidentRecord,
    SetRecord,
    TriggerRecord,
    WorkloadRecord,
)
from freezeframe.harness.report.text import (
    OUTCOME_STYLE,
    TableRow,
    byte_count,
    canaries_in_words,
    duration,
    meaning,
    recheck_in_words,
    table_of,
    text,
    verdict_line,
)

MAX_FACTS: Final = 10
"""Rows after the lead without ``verbose``; a test counts them."""
MAX_LINE_CHARS: Final = 160
"""Length of a console line in the summary; its end is shown."""
UNJUDGED: Final = frozenset({"drill", "open"})
"""Outcomes without a cause: nothing has failed, or nobody has looked yet."""
BAD: Final = "bold red"
UNKNOWN: Final = "yellow"


def summary(record: IncidentRecord, outcome: str, *, verbose: bool = False) -> RenderableType:
    """The three leading lines and the facts; with ``verbose`` the details too."""
    lead, facts = _lead(record, outcome), _facts(record)
    if verbose:
        return table_of([*lead, *facts, *_details(record)])
    return table_of([*lead, *facts[:MAX_FACTS]])


# --- what happened, why, what to do now ---------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class RunAnswer:
    """What a reader wants to know first. Texts are escaped; the terminal, the page, the ticket and
    the report of a test show the same."""

    outcome: str
    happened: str
    """A sentence: the reasons of the outcome."""
    trigger: str
    """What triggered, and where; "": nothing did."""
    why: str
    """The verdict; "": there is none."""
    is_sure: bool
    """The verdict is conclusive."""
    now: str
    """What to do next."""


def answer(record: IncidentRecord, outcome: str) -> RunAnswer:
    """What happened, why, and what to do now."""
    trigger, verdict = record.trigger, record.verdict
    seen = _trigger_sentence(trigger, record) if trigger is not None else ""
    said = [text(one).rstrip(".") for one in record.reasons]
    # A watch gives its trigger as the reason: once is enough.
    reasons = "; ".join(one for one in said if not seen.casefold().startswith(one.casefold()))
    happened = reasons or meaning(record, outcome)
    if outcome in UNJUDGED:
        verdict = None
    why = text(verdict.text or verdict.reason) if verdict is not None else ""
    return RunAnswer(
        outcome=outcome,
        happened=f"{happened}{'' if happened.endswith(('?', '!')) else '.'}",
        trigger=seen,
        why=why.removeprefix("Inconclusive: ") if outcome == "inconclusive" else why,
        is_sure=verdict is not None and verdict.conclusive,
        now=_next_step(record, outcome),
    )


def _lead(record: IncidentRecord, outcome: str) -> list[TableRow]:
    said = answer(record, outcome)
    style = OUTCOME_STYLE.get(outcome, "")
    rows: list[TableRow] = [
        (
            "result",
            Text.assemble(
                (outcome.upper(), style),
                f": {' '.join(filter(None, (said.happened, said.trigger)))}",
            ),
        )
    ]
    if record.verdict is not None and outcome not in UNJUDGED:
        rows.append(("cause", verdict_line(record.verdict)))
    rows.append(("next", Text(said.now)))
    return rows


def facts(record: IncidentRecord) -> list[tuple[str, str]]:
    """The facts after the lead, as (name, text)."""
    return [(name, value.plain) for name, value in _facts(record) if isinstance(value, Text)]


def _trigger_sentence(trigger: TriggerRecord, record: IncidentRecord) -> str:
    place = f"{text(trigger.side)} {text(trigger.source)}"
    found = text(trigger.detail)
    if trigger.source == "console" and trigger.excerpt:
        found = text(trigger.line or trigger.excerpt).rsplit("\\n", 1)[-1][-MAX_LINE_CHARS:]
    more = len(record.more_triggers)
    also = f" ({more} more followed)" if more else ""
    return f"Trigger {text(trigger.rule)} on the {place}{also}: {found}"


def _next_step(record: IncidentRecord, outcome: str) -> str:
    incident = text(record.id or "last")
    if outcome == "rig-trouble":
        return "repair the bench and run again; freezeframe doctor and freezeframe check test its parts"
    if outcome == "open":
        return "wait until it has ended; freezeframe top shows a watch, freezeframe list what has ended"
    if outcome == "drill":
        return "nothing to do"
    if record.trigger is None:
        if outcome == "pass":
            return "nothing to do"
        if outcome == "inconclusive" and record.is_import:
            return "capture and log what was not seen, and import all of it again (docs/import.md)"
        if outcome == "interrupted":
            return "run it again"
        return f"look for the reason with freezeframe show {incident} --timeline"
    if outcome == "pass":
        return (
            f"nothing to do; to look at what was detected, read {_place(record.trigger, link_ends(record))}, "
            f"or freezeframe show {incident} --timeline (--verbose: all details)"
        )
    missing = "replay lists the missing evidence; " if outcome == "inconclusive" else ""
    return (
        f"{missing}read {_place(record.trigger, link_ends(record))}; "
        f"then freezeframe show {incident} --timeline (--verbose: all details)"
    )


def _place(trigger: TriggerRecord, ends: LinkEnds) -> str:
    """The trigger's place in the evidence."""
    if trigger.source == "console":
        return f"{text(trigger.side)}/console.log at byte {_line_at(trigger)}"
    place = f"link.pcapng, packet {trigger.offset_bytes}"
    template = ends.speak().wireshark
    if trigger.block_id and template:
        shown = template.format(write_id=text(trigger.block_id))
        heuristic = " with drbd_tcp" if ends.protocol == byname.USUAL else ""
        place += f" (Wireshark{heuristic}: {shown})"
    return place


def _line_at(trigger: TriggerRecord) -> int | None:
    """Offset of the first byte of a console trigger's line, as far as its excerpt contains it;
    otherwise the end of the match."""
    end = trigger.offset_bytes
    try:
        before = bytes.fromhex(trigger.excerpt_hex)
    except ValueError:
        before = b""
    return None if end is None else end - (len(before) - 1 - before.rfind(b"\n"))


# --- at most ten facts --------------------------------------------------------------------------------------
def _facts(record: IncidentRecord) -> list[TableRow]:
    scenario = text(record.scenario or "watch")
    run = f"{scenario} on {text(record.bench)}, seed {text(record.seed)}"
    if record.is_import:
        run = "imported evidence, without a bench"
    workload = record.workload or WorkloadRecord()
    found: list[TableRow | None] = [
        ("run", Text(run)),
        _instructed(record),
        _sets(record),
        _failing_block(record),
        _sent_again(record),
        _host(workload),
        _read_back(workload),
        _data(record, workload),
        _capture(record),
        _watched(record),
        _notes(record),
    ]
    return [one for one in found if one is not None]


def _instructed(record: IncidentRecord) -> TableRow | None:
    if not record.actions:
        return None
    answers: dict[str, list[str]] = {}
    for one in record.actions:
        answers.setdefault(one.side, []).append(_answer(one))
    said = "; ".join(f"{side} {', then '.join(came)}" for side, came in answers.items())
    spent = _reaction(record.trigger)
    is_bad = any(
        one.error or (one.reply is not None and not one.reply.ok) for one in record.actions
    )
    budget_us = record.judged_by.reaction_budget_us if record.judged_by is not None else None
    trigger = record.trigger or TriggerRecord()
    slow = slow_reaction(trigger.source, trigger.reaction_us, budget_us)
    first = slow or (f"first frame {spent}" if spent else "")
    return "instructed", Text("; ".join(one for one in (said, first) if one), BAD if is_bad else "")


def _answer(action: ActionRecord) -> str:
    status = action.reply.status if action.reply is not None else ""
    return text(action.error or status or "no answer")


def _reaction(trigger: TriggerRecord | None) -> str:
    if trigger is None or not trigger.t_frame_done_ns or not trigger.t_arrival_ns:
        return ""
    return f"sent {duration(trigger.t_frame_done_ns - trigger.t_arrival_ns)} after the trigger was read"


def _sets(record: IncidentRecord) -> TableRow | None:
    if not record.sets:
        return None
    said = "; ".join(f"{side} {_set(one)}" for side, one in record.sets.items())
    is_bad = any(not one.complete for one in record.sets.values())
    return "root cause sets", Text(said, BAD if is_bad else "")


def _set(one: SetRecord) -> str:
    if one.complete:
        return f"complete ({byte_count(one.bytes)}, {one.events} events)"
    return f"INCOMPLETE ({text(one.reason or 'it did not arrive')})"


def _failing_block(record: IncidentRecord) -> TableRow | None:
    block = record.failing_block
    said = in_words(block) if block is not None else ""
    if block is None or not said:
        return None
    is_good = block.is_read and all(one.rejoin == "before" for one in block.sides.values())
    return "failing block", Text(text(said), "" if is_good else UNKNOWN)


def _sent_again(record: IncidentRecord) -> TableRow | None:
    redrive = record.redrive
    if redrive is None:
        return None
    return "write sent again", Text(text(f"{redrive.outcome}: {redrive.reason}"))


def _host(workload: WorkloadRecord) -> TableRow | None:
    if workload.writes_acked is None:
        return None
    said = f"{byte_count(workload.bytes_written)} acknowledged in {workload.writes_acked} writes"
    return "host", Text(f"{said}, longest wait {duration(workload.longest_hold_ns)}")


def _read_back(workload: WorkloadRecord) -> TableRow | None:
    if not workload.verified_bytes:
        return None
    wrong = workload.wrong_reads_total
    verified = byte_count(workload.verified_bytes)
    said = f"{verified} verified by {text(workload.driver)}, {wrong} blocks wrong"
    return "read back", Text(said, BAD if wrong else "")


def _data(record: IncidentRecord, workload: WorkloadRecord) -> TableRow:
    equal = {
        True: ("equal on both sides", "green"),
        False: ("NOT EQUAL on both sides", BAD),
        None: ("not compared", UNKNOWN),
    }[data_equal(record)]
    if record.outcome == "drill":
        return "data", Text("not compared: a drill writes nothing")
    return "data", Text.assemble(equal, "; ", _lost(record, workload))


def _lost(record: IncidentRecord, workload: WorkloadRecord) -> tuple[str, str]:
    lost = lost_writes(record)
    if lost is None:
        why = ""
        if workload.keeps_journal is False:
            why = f" ({text(workload.driver)} keeps no journal)"
        elif record.comparison is not None and not has_promises(record):
            why = " (the journal compared with holds no acknowledged write)"
        return f"lost acknowledged writes: not known{why}", UNKNOWN
    said = f"{lost or 'no'} acknowledged write{'s' if lost > 1 else ''} lost"
    unflushed = record.comparison.lost_unflushed_writes if record.comparison is not None else 0
    said += f", {unflushed} of them never flushed" if unflushed else ""
    return said, BAD if lost else "green"


def _capture(record: IncidentRecord) -> TableRow | None:
    capture = record.capture
    if capture is None or capture == CaptureRecord():
        return "capture", Text("nothing is known of it", UNKNOWN)
    drops = capture.kernel_drops
    said = (
        f"{capture.packets or 0} frames, {capture.digests_checked} digests checked, {drops} dropped"
    )
    is_drill = record.outcome == "drill"
    blind = [
        f"BLIND: {text(one)}"
        for kind, one in capture.blind.items()
        if not is_drill or kind not in QUIET
    ]
    if is_drill and not capture.digests_checked:
        said += "; a drill writes nothing: a run shows whether the link is seen"
    style = BAD if drops else UNKNOWN if blind else ""
    return "capture", Text("; ".join([said, *blind]), style)


def _watched(record: IncidentRecord) -> TableRow | None:
    """Whether the consoles were proved to be watched: one fact; ``_details`` has the proofs."""
    silent = [side for side, one in record.canaries.items() if one.seen is not True]
    differing = [side for side, one in record.recheck.items() if one.agrees is False]
    undone = [
        side
        for side, one in record.recheck.items()
        if one.agrees is None or (one.agrees and not one.checked_bytes)
    ]
    if not record.canaries and not record.recheck:
        return None
    problems = [
        *(f"the canary of the {side} was NOT HEARD" for side in silent),
        *(f"the recheck of the {side} DIFFERS" for side in differing),
        *(f"the recheck of the {side} was NOT DONE" for side in undone),
    ]
    if not problems:
        return "consoles", Text(", ".join(_heard_and_agrees(record)))
    return "consoles", Text("; ".join(problems), BAD if differing else UNKNOWN)


def _heard_and_agrees(record: IncidentRecord) -> Iterator[str]:
    """Which side was proved to be watched, and by what."""
    for what, sides in (("canaries heard", record.canaries), ("recheck agrees", record.recheck)):
        if sides:
            only = "" if len(sides) == len(SIDES) else f" ({', '.join(sides)} only)"
            yield f"{what}{only}"


def _notes(record: IncidentRecord) -> TableRow | None:
    if not record.notes:
        return None
    more = len(record.notes) - 1
    rest = f" (and {more} more: --verbose)" if more else ""
    return "note", Text(f"{text(record.notes[0])}{rest}", "dim")


# --- with --verbose -----------------------------------------------------------------------------------------
def _details(record: IncidentRecord) -> list[TableRow]:
    rows: list[TableRow] = [("began", Text(text(record.created)))] if record.created else []
    trigger = record.trigger
    if trigger is not None:
        end = f", its match ends at byte {trigger.offset_bytes}"
        place = _place(trigger, link_ends(record))
        rows.append(("trigger at", Text(place + (end if trigger.source == "console" else ""))))
        if trigger.t_ack_ns and trigger.t_arrival_ns:
            answered = duration(trigger.t_ack_ns - trigger.t_arrival_ns)
            rows.append(
                ("reaction", Text(f"control frame {_reaction(trigger)}, answered after {answered}"))
            )
    for action in record.actions:
        if action.t_warmstart_ns and action.t_frame_done_ns:
            spent = duration(action.t_warmstart_ns - action.t_frame_done_ns)
            rows.append((f"{action.side} warmstart", Text(f"began {spent} after the frame")))
    rows += [(f"{side} event log", Text(_log(log))) for side, log in record.event_logs.items()]
    rows += _capture_details(record.capture)
    for name, said in (
        ("canaries", canaries_in_words(record)),
        ("recheck", recheck_in_words(record)),
    ):
        if said:
            rows.append((name, Text(said)))
    rows += [("note", Text(text(note), "dim")) for note in record.notes[1:]]
    return rows


def _log(log: EventLogRecord) -> str:
    """How much of an event log was left when it was saved."""
    count = "an unknown number of" if log.since_trigger is None else str(log.since_trigger)
    said = f"{count} event{'' if log.since_trigger == 1 else 's'} between the trigger and the save"
    if log.since_write is not None:
        said += (
            f"; the failing write is {log.since_write} events before the end, of {log.held} kept"
        )
    elif log.overwritten:
        said += f"; {log.overwritten} older events were overwritten"
    return said


def _capture_details(capture: CaptureRecord | None) -> Sequence[TableRow]:
    if capture is None or capture.packets is None:
        return []
    said = f"{byte_count(capture.bytes_captured)}, {capture.gaps} gaps in TCP streams"
    stored = capture.frames_stored
    if stored is not None and stored < capture.packets:
        said += f"; link.pcapng has {stored} frames, from number {capture.first_packet_no} on"
    return [("capture detail", Text(said))]
