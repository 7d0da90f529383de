"""The verdict: where an incident's data first diverged, or honestly that the evidence does not say.
Pure.

    evidence -> findings (a thing that went wrong each) -> the first of them in time -> verdict

The same evidence always gives the same verdict, to the byte: nothing here reads a clock, a file or
a random number.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.rootcause import StateRecord
from freezeframe.harness.core.text import sector_range
from freezeframe.harness.core.verdict.answerfindings import answer_findings
from freezeframe.harness.core.verdict.assurance import not_judged
from freezeframe.harness.core.verdict.copyfindings import MISPLACED, STALE, copy_findings
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import DATA_STAGES, Finding, Stage
from freezeframe.harness.core.verdict.grade import Grade, grade
from freezeframe.harness.core.verdict.record import (
    AlsoFound,
    ClockFit,
    NotChecked,
    NotSeen,
    Verdict,
)
from freezeframe.harness.core.verdict.resyncfindings import (
    REPAIRED,
    Audited,
    audit,
    hidden,
    omitted_findings,
    records,
    repaired_findings,
)
from freezeframe.harness.core.verdict.route import numbers, route
from freezeframe.harness.core.verdict.statediff import differences
from freezeframe.harness.core.verdict.storefindings import compared_findings, store_findings
from freezeframe.harness.core.verdict.wayfindings import (
    digest_findings,
    ghost_findings,
    unchecked_findings,
)

MAX_ALSO: Final = 16
GARBLED: Final = re.compile(rb"[\x80-\xff].{0,16}[\x80-\xff]")
"""Firmware prints ASCII; two foreign bytes so near each other are noise."""
HUNG_STEPS: Final = frozenset(
    {
        "hung, a BREAK can be sent",
        "hung, power can be cycled",
        "hung, power cannot be cycled",
        "power cycled",
    }
)
"""Steps of the recovery (core.recovery.table.Signal) that say that a controller did not come back by
itself."""
UNANSWERED_STEPS: Final = frozenset({"no answer", "refused"})


def judge(e: Evidence) -> Verdict:
    """The verdict, as incident.json, ``run --json`` and ``replay --json`` carry it."""
    audited = audit(e)
    found = findings(e, audited)
    quality = grade(e)
    state_differences = differences(
        _state(e.primary), _state(e.secondary), {side: own.healthy for side, own in e.sides.items()}
    )
    first = found[0] if found else None
    if first is None:
        return Verdict(
            conclusive=e.is_uneventful and not not_judged(e), text=_text(e, None, (), quality), reason=_reason(e, None),
            t_detect_ns=e.t_detect_ns, evidence_grade=quality.letter, evidence_lacks=quality.lacks,
            not_seen=_not_seen(e), not_checked=_not_checked(e), clocks=_clocks(e),
            resyncs=records(e, audited), state_differences=state_differences,
        )  # fmt: skip
    place, write = first.place, first.write
    primary_no, secondary_no = numbers(e, first)
    return Verdict(
        conclusive=first.conclusive,
        text=_text(e, first, found[1:], quality, hidden(e, audited)),
        stage=str(first.stage) if first.stage is not None else None,
        candidates=tuple(str(one) for one in first.candidates),
        kind=first.kind,
        side=first.side or None,
        write_id=first.write_id,
        block_id=first.block_id,
        write_lba=first.write_lba,
        write_sectors=first.write_sectors,
        packet_no=write.packet_no if write is not None else None,
        primary_no=primary_no,
        secondary_no=secondary_no,
        lba=first.lba,
        byte_offset=place.byte_offset if place is not None else None,
        bit_mask=place.bit_mask if place is not None else None,
        bytes_different=place.bytes_different if place is not None else None,
        expected=(place.expected if place is not None else first.expected) or None,
        found=(place.found if place is not None else first.found) or None,
        reason=_reason(e, first),
        reasons=first.reasons,
        confidence=_confidence(found, quality, hidden(e, audited)),
        t_detect_ns=e.t_detect_ns,
        t_cause_ns=first.t_cause_ns,
        t_cause_error_ns=first.t_cause_error_ns,
        evidence_grade=quality.letter,
        evidence_lacks=quality.lacks,
        not_seen=_not_seen(e),
        not_checked=_not_checked(e),
        also=tuple(_also(one) for one in found[1 : 1 + MAX_ALSO]),
        resyncs=records(e, audited),
        route=route(e, first),
        clocks=_clocks(e),
        state_differences=state_differences,
    )


def findings(e: Evidence, audited: Sequence[Audited] | None = None) -> list[Finding]:
    """All findings: of the trigger's own write first, then the first divergence first; what a resync repaired for no
    reason that is known, and console and control trouble, after the data's."""
    audited = audit(e) if audited is None else audited
    data = [*digest_findings(e), *unchecked_findings(e), *store_findings(e), *answer_findings(e)]
    data += [*ghost_findings(e), *copy_findings(e), *omitted_findings(e, audited)]
    if not data:
        data = compared_findings(e)
    # What nobody can time comes last; of two at one time the one that is earlier on the way.
    data.sort(
        key=lambda one: (
            not _is_the_triggers(e, one), one.t_cause_ns is None, one.t_cause_ns or 0, _order(one),
        )
    )  # fmt: skip
    repaired = repaired_findings(e, audited)
    if repaired and not data and e.is_uneventful:
        repaired = []  # nothing went wrong that it could hide: the record of the resync has it
    return [*data, *repaired, *_console_findings(e), *_control_findings(e)]


def _is_the_triggers(e: Evidence, one: Finding) -> bool:
    """Whether it is about what the trigger itself names: its frame, its write, or its place."""
    own = e.own_write
    if own is None:
        return False
    if own.packet_no is not None and own.packet_no == one.packet_no:
        return True
    if own.block_id and one.block_id:
        return own.block_id == one.block_id
    if own.sector is None:
        return False
    if one.write_lba is None or one.write_sectors is None:
        return one.lba == own.sector
    return one.write_lba <= own.sector < one.write_lba + max(one.write_sectors, 1)


def _order(one: Finding) -> int:
    stages = [one.stage] if one.stage is not None else list(one.candidates)
    return min(list(Stage).index(stage) for stage in stages) if stages else len(Stage)


def _console_findings(e: Evidence) -> list[Finding]:
    found = []
    for side in e.sides.values():
        if b"\0" in side.console:
            continue  # a shared UART carries frames
        noise, read_ns = _own_noise(side)
        if noise is not None:
            found.append(
                Finding(
                    stage=Stage.CONSOLE, kind="garbled console", side=side.side, t_cause_ns=read_ns,
                    expected="ASCII", found=side.console[noise.start() : noise.start() + 16].hex(),
                    reasons=(f"from byte {noise.start()} on the {side.side}'s console carries noise",),
                )
            )  # fmt: skip
    return found


def _own_noise(side: SideEvidence) -> tuple[re.Match[bytes] | None, int | None]:
    """The first noise that was read since the bench was armed, and when."""
    for noise in GARBLED.finditer(side.console):
        read_ns = max(
            (t_ns for t_ns, offset in side.console_times if offset <= noise.start()), default=None
        )
        if read_ns is None or read_ns >= side.armed_ns:
            return noise, read_ns
    return None, None


def _control_findings(e: Evidence) -> list[Finding]:
    found = []
    for side in e.sides:
        steps = [one for one in e.record.recovery if one.side == side]
        for kind, names, what in (
            ("hung warmstart", HUNG_STEPS, "did not come back from its warmstart by itself"),
            ("control frame unanswered", UNANSWERED_STEPS, "did not carry out its control frame"),
        ):
            hit = next((one for one in steps if one.step in names), None)
            if hit is not None:
                found.append(
                    Finding(
                        stage=Stage.CONTROL, kind=kind, side=side, t_cause_ns=hit.t_ns,
                        found=hit.step, reasons=(f"the {side} {what}: {hit.step}",),
                    )
                )  # fmt: skip
                break
    return found


# --- the object ---------------------------------------------------------------------------------------------
def _not_seen(e: Evidence) -> NotSeen:
    link = e.link
    silent = []
    if link is not None:
        if not link.writes:
            silent.append(SIDES[0])
        if not link.answers and not any(one.is_acked for one in link.writes):
            silent.append(SIDES[1])
    return NotSeen(
        capture=link is None and not e.link_is_recorded,
        protocol=e.link_is_recorded,
        link_gaps=link.gaps if link is not None else 0,
        frames_dropped=e.capture_drops,
        frames_missing=e.frames_missing,
        directions=tuple(silent),
        consoles=tuple(side for side, own in e.sides.items() if not own.console),
        sets=tuple(side for side, own in e.sides.items() if own.set is None),
        journal=e.journal is None,
    )


def _not_checked(e: Evidence) -> NotChecked:
    writes = e.own_writes
    return NotChecked(
        writes=sum(one.digest_is_right is None for one in writes),
        writes_captured=len(writes),
        unanswered=sum(not one.is_acked for one in writes),
        data_compared=e.comparison is not None,
    )


def _reason(e: Evidence, first: Finding | None) -> str:
    """Why it is not conclusive; "" when it is."""
    if first is None:
        if e.is_uneventful:
            return "; ".join(not_judged(e))
        if e.trigger is None:
            return "nothing triggered, and the data of the two sides were not compared"
        return f"nothing in the evidence explains the trigger {e.trigger.rule}"
    return "" if first.conclusive else first.missing


def _confidence(found: Sequence[Finding], quality: Grade, hides: str) -> str:
    """certain: two sources or more say so, the evidence is good, and no resync has hidden what may have been older;
    likely: one does, or some is missing."""
    first = found[0]
    if not first.conclusive:
        return "open"
    if hides or any(one.kind == REPAIRED for one in found):
        return "likely"
    return "certain" if len(first.reasons) > 1 and quality.letter in "AB" else "likely"


def _also(one: Finding) -> AlsoFound:
    return AlsoFound(
        stage=str(one.stage) if one.stage is not None else None,
        candidates=tuple(str(stage) for stage in one.candidates),
        kind=one.kind,
        side=one.side or None,
        write_id=one.write_id,
        lba=one.lba,
        reason=one.reasons[0] if one.reasons else "",
    )


def _clocks(e: Evidence) -> dict[Side, ClockFit | None]:
    return {side: _clock(own) for side, own in e.sides.items()}


def _clock(own: SideEvidence) -> ClockFit | None:
    if own.clock is None:
        return None
    return ClockFit(
        offset_ns=own.clock.offset_ns, error_ns=own.clock.error_ns, consistent=own.clock.consistent
    )


def _state(own: SideEvidence) -> StateRecord | None:
    return own.set.state if own.set is not None else None


# --- in words -----------------------------------------------------------------------------------------------
_WHERE: Final[Mapping[Stage, str]] = {
    Stage.HOST_BUFFER: "in the host's buffer, before the primary had them",
    Stage.PRIMARY_BEFORE_DIGEST: "in the primary, before it made the digest",
    Stage.PRIMARY_AFTER_DIGEST: "in the primary, after it made the digest",
    Stage.ON_THE_LINK: "on the link",
    Stage.SECONDARY_BEFORE_CHECK: "in the secondary, before its check",
    Stage.STORE_AFTER_ACK: "in the secondary's store, after it had acknowledged the write",
    Stage.PRIMARY_STORE: "in the primary's store",
}


def _text(
    e: Evidence, first: Finding | None, others: Sequence[Finding], quality: Grade, hides: str = ""
) -> str:
    """One or two sentences for a person."""
    if first is None:
        if e.is_uneventful:
            unknown = not_judged(e)
            if not unknown:
                return "Nothing diverged."
            return (
                "No difference was found, but not all could be judged: "
                f"{'; '.join(unknown)} (evidence grade {quality.letter})."
            )
        return f"Inconclusive: {_reason(e, first)} (evidence grade {quality.letter})."
    if not first.conclusive:
        open_stages = " or ".join(str(one) for one in first.candidates)
        what = (
            f"{first.kind}{_named(first)}{_byte(first)}: {open_stages}"
            if open_stages
            else first.kind
        )
        return f"Inconclusive between {what}; missing: {first.missing} (evidence grade {quality.letter})."
    said = f"{_sentence(e, first)}; evidence grade {quality.letter}."
    repaired = [one for one in others if one.kind == REPAIRED]
    why = repaired[0].reasons[0] if repaired else hides
    if why:
        said += f" It may not be the first: {why}."
    extra = [one for one in others if one.stage not in DATA_STAGES and one.stage is not None]
    if extra:
        said += " Also: " + ", ".join(f"{one.kind} on the {one.side}" for one in extra) + "."
    return said


def _named(first: Finding) -> str:
    """of write 148 (sectors 18944-19071)"""
    which = f" of write {first.write_id}" if first.write_id is not None else ""
    if first.write_lba is not None:
        return f"{which} ({sector_range(first.write_lba, first.write_sectors)})"
    return which + (f" (sector {first.lba})" if first.lba is not None else "")


def _byte(first: Finding) -> str:
    if first.place is None:
        return ""
    at = f"sector {first.lba}, byte {first.place.byte_offset} of the write"
    return f", first in {at}, bits {first.place.bit_mask:#04x}"


def _sentence(e: Evidence, first: Finding) -> str:
    assert first.stage is not None
    where = _WHERE.get(first.stage)
    if first.kind in (MISPLACED, STALE):
        said = f"The {first.side} sent, in place of the copy{_named(first)}, {first.found}"
        return f"{said}: a {first.kind} with a right digest; it belongs to {first.expected}"
    if where is not None:
        return f"The data{_named(first)} first diverged {where}{_byte(first)}"
    match first.stage:
        case Stage.LOST_WRITE:
            return f"The {first.side} acknowledged the data{_named(first)} and did not store them; it holds {first.found}"
        case Stage.MISDIRECTED_WRITE:
            return f"The {first.side} stored the data{_named(first)} in the wrong place: {first.expected} at {first.found}"
        case Stage.RESYNC:
            due = f"{first.expected}{_named(first)} was due"
            return f"The resync left something out: {due}, and a side calls both up to date"
        case Stage.STALL:
            return f"The {first.side} left the link alone: it read the data{_named(first)} too late, {first.found}"
        case Stage.RESPONSE:
            found = f": {first.found}" if first.found else ""
            return f"The {first.side}'s answer{_named(first)} was wrong, {first.kind}{found}"
        case _:
            data = {
                True: "The data agree",
                False: "The data differ",
                None: "The data were not compared",
            }[e.data_equal]
            return f"{data}; {first.kind} on the {first.side}"
