"""The verdict: where an incident's data first diverged, or honestly that the evidence does not say.
Pure.

    evidence -> findings (a thing that went wrong each) -> the first of them in time -> verdict

The same evidence always gives the same verdict, to the byte: nothing here reads a clock, a file or
a random number.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from freezeframe.harness.core.verdict.answerfindings import answer_findings
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import DATA_STAGES, Finding, Stage
from freezeframe.harness.core.verdict.grade import Grade, grade
from freezeframe.harness.core.verdict.route import route
from freezeframe.harness.core.verdict.statediff import differences
from freezeframe.harness.core.verdict.storefindings import compared_findings, store_findings
from freezeframe.harness.core.verdict.wayfindings import digest_findings, unchecked_findings

FORMAT: Final = "freezeframe-verdict/1"
MAX_ALSO: Final = 16
GARBLED: Final = re.compile(rb"[\x80-\xff].{0,16}[\x80-\xff]")
"""Firmware prints ASCII; two foreign bytes so near each other are noise."""
HUNG_STEPS: Final = frozenset(
    {"hung, power can be cycled", "hung, power cannot be cycled", "power cycled"}
)
"""Steps of the recovery (core.recovery.Signal) that say that a controller did not come back by
itself."""
UNANSWERED_STEPS: Final = frozenset({"no answer", "refused", "frame not out"})


def judge(e: Evidence) -> dict[str, Any]:
    """The verdict object, as incident.json, ``run --json`` and ``replay --json`` carry it."""
    found = findings(e)
    first = found[0] if found else None
    quality = grade(e)
    return {
        "format": FORMAT,
        "conclusive": first.conclusive if first is not None else e.is_uneventful,
        "text": _text(e, first, found[1:], quality),
        **_divergence(first),
        "reason": _reason(e, first),
        "reasons": list(first.reasons) if first is not None else [],
        "confidence": _confidence(first, quality),
        "t_detect_ns": e.t_detect_ns,
        "t_cause_ns": first.t_cause_ns if first is not None else None,
        "t_cause_error_ns": first.t_cause_error_ns if first is not None else None,
        "evidence_grade": quality.letter,
        "evidence_lacks": list(quality.lacks),
        "also": [_also(one) for one in found[1 : 1 + MAX_ALSO]],
        "route": route(e, first) if first is not None else [],
        "clocks": {side: _clock(own) for side, own in e.sides.items()},
        "state_differences": differences(
            _state(e.primary),
            _state(e.secondary),
            {side: own.healthy for side, own in e.sides.items()},
        ),
    }


def findings(e: Evidence) -> list[Finding]:
    """All findings, the first divergence first; console and control trouble after the data's."""
    data = [*digest_findings(e), *unchecked_findings(e), *store_findings(e), *answer_findings(e)]
    if not data:
        data = compared_findings(e)
    # What nobody can time comes last; of two at one time the one that is earlier on the way.
    data.sort(key=lambda one: (one.t_cause_ns is None, one.t_cause_ns or 0, _order(one)))
    return [*data, *_console_findings(e), *_control_findings(e)]


def _order(one: Finding) -> int:
    stages = [one.stage] if one.stage is not None else list(one.candidates)
    return min(list(Stage).index(stage) for stage in stages) if stages else len(Stage)


def _console_findings(e: Evidence) -> list[Finding]:
    found = []
    for side in e.sides.values():
        noise = (
            None if b"\0" in side.console else GARBLED.search(side.console)
        )  # a shared UART carries frames
        if noise is not None:
            read_ns = max(
                (t_ns for t_ns, offset in side.console_times if offset <= noise.start()),
                default=None,
            )
            found.append(
                Finding(
                    stage=Stage.CONSOLE, kind="garbled console", side=side.side, t_cause_ns=read_ns,
                    expected="ASCII", found=side.console[noise.start() : noise.start() + 16].hex(),
                    reasons=(f"from byte {noise.start()} on the {side.side}'s console carries noise",),
                )
            )  # fmt: skip
    return found


def _control_findings(e: Evidence) -> list[Finding]:
    found = []
    for side in e.sides:
        steps = [one for one in e.recovery if one.get("side") == side]
        for kind, names, told in (
            ("hung warmstart", HUNG_STEPS, "did not come back from its warmstart by itself"),
            ("control frame unanswered", UNANSWERED_STEPS, "did not carry out its control frame"),
        ):
            hit = next((one for one in steps if one.get("step") in names), None)
            if hit is not None:
                found.append(
                    Finding(
                        stage=Stage.CONTROL, kind=kind, side=side, t_cause_ns=hit.get("t_ns"),
                        found=str(hit["step"]), reasons=(f"the {side} {told}: {hit['step']}",),
                    )
                )  # fmt: skip
                break
    return found


# --- the object ---------------------------------------------------------------------------------------------
def _divergence(first: Finding | None) -> dict[str, Any]:
    """Where: stage, side, the write, the sector, the byte and the bits."""
    place = first.place if first is not None else None
    return {
        "stage": str(first.stage) if first is not None and first.stage is not None else None,
        "candidates": [str(one) for one in first.candidates] if first is not None else [],
        "kind": first.kind if first is not None else None,
        "side": (first.side or None) if first is not None else None,
        "write_id": first.write_id if first is not None else None,
        "block_id": (first.block_id or None) if first is not None else None,
        "write_lba": first.write_lba if first is not None else None,
        "write_sectors": first.write_sectors if first is not None else None,
        "lba": first.lba if first is not None else None,
        "byte_offset": place.byte_offset if place is not None else None,
        "bit_mask": place.bit_mask if place is not None else None,
        "bytes_different": place.bytes_different if place is not None else None,
        "expected": (
            place.expected if place is not None else first.expected if first is not None else ""
        )
        or None,
        "found": (place.found if place is not None else first.found if first is not None else "")
        or None,
    }


def _reason(e: Evidence, first: Finding | None) -> str:
    """Why it is not conclusive; "" when it is."""
    if first is None:
        if e.is_uneventful:
            return ""
        if e.trigger is None:
            return "nothing triggered, and the data of the two sides were not compared"
        return f"nothing in the evidence explains the trigger {e.trigger.get('rule')}"
    return "" if first.conclusive else first.missing


def _confidence(first: Finding | None, quality: Grade) -> str:
    """certain: two sources or more say so and the evidence is good; likely: one does, or some is
    missing."""
    if first is None or not first.conclusive:
        return "open"
    return "certain" if len(first.reasons) > 1 and quality.letter in "AB" else "likely"


def _also(one: Finding) -> dict[str, Any]:
    return {
        "stage": str(one.stage) if one.stage is not None else None,
        "candidates": [str(stage) for stage in one.candidates],
        "kind": one.kind,
        "side": one.side or None,
        "write_id": one.write_id,
        "lba": one.lba,
        "reason": one.reasons[0] if one.reasons else "",
    }


def _clock(own: SideEvidence) -> dict[str, Any] | None:
    """The side's uptime on the host's clock: what to add, give or take."""
    if own.clock is None:
        return None
    return {
        "offset_ns": own.clock.offset_ns, "error_ns": own.clock.error_ns, "consistent": own.clock.consistent,
    }  # fmt: skip


def _state(own: SideEvidence) -> Mapping[str, Any] | None:
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


def _text(e: Evidence, first: Finding | None, others: Sequence[Finding], quality: Grade) -> str:
    """One or two sentences for a person."""
    if first is None:
        if e.is_uneventful:
            return "Nothing diverged."
        return f"Inconclusive: {_reason(e, first)} (evidence grade {quality.letter})."
    if not first.conclusive:
        open_stages = " or ".join(str(one) for one in first.candidates)
        what = (
            f"{first.kind}{_named(first)}{_byte(first)}: {open_stages}"
            if open_stages
            else first.kind
        )
        return f"Inconclusive between {what}; missing: {first.missing} (evidence grade {quality.letter})."
    told = f"{_sentence(e, first)}; evidence grade {quality.letter}."
    extra = [one for one in others if one.stage not in DATA_STAGES and one.stage is not None]
    if extra:
        told += " Also: " + ", ".join(f"{one.kind} on the {one.side}" for one in extra) + "."
    return told


def _named(first: Finding) -> str:
    """of write 148 (sector 18944 + 128)"""
    which = f" of write {first.write_id}" if first.write_id is not None else ""
    if first.write_lba is not None:
        return f"{which} (sector {first.write_lba} + {first.write_sectors})"
    return which + (f" (sector {first.lba})" if first.lba is not None else "")


def _byte(first: Finding) -> str:
    if first.place is None:
        return ""
    at = f"sector {first.lba}, byte {first.place.byte_offset} of the write"
    return f", first in {at}, bits {first.place.bit_mask:#04x}"


def _sentence(e: Evidence, first: Finding) -> str:
    assert first.stage is not None
    where = _WHERE.get(first.stage)
    if where is not None:
        return f"The data{_named(first)} first diverged {where}{_byte(first)}"
    match first.stage:
        case Stage.LOST_WRITE:
            return f"The {first.side} acknowledged the data{_named(first)} and did not store them; it holds {first.found}"
        case Stage.MISDIRECTED_WRITE:
            return f"The {first.side} stored the data{_named(first)} in the wrong place: {first.expected} at {first.found}"
        case Stage.STALL:
            return f"The {first.side} left the link alone: it read the data{_named(first)} too late, {first.found}"
        case Stage.RESPONSE:
            found = f": {first.found}" if first.found else ""
            return f"The {first.side}'s answer{_named(first)} was wrong, {first.kind}{found}"
        case _:
            data = (
                "The data agree"
                if (e.comparison or {}).get("data_equal")
                else "The data were not compared"
            )
            return f"{data}; {first.kind} on the {first.side}"
