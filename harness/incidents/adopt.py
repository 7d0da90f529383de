"""An incident, adopted: a scenario that makes the simulated pair do the same, and a pytest that
expects the same verdict.

What went wrong is taken from the verdict, not from how the incident was made: that of a real rig is
adopted alike.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.bench.benchfile import MIB
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.findings import Stage
from freezeframe.harness.core.verdict.record import IncidentRecord, Verdict
from freezeframe.harness.core.verdict.resyncfindings import OMITTED, REPAIRED
from freezeframe.harness.core.verdict.wayfindings import GHOST_WRITE
from freezeframe.harness.errors import UsageError
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES
from freezeframe.harness.wire.faults import FaultKind

FAULT_OF: Final[Mapping[tuple[str, str | None], FaultKind]] = {
    (Stage.PRIMARY_AFTER_DIGEST, None): FaultKind.BIT_FLIP_SENDER,
    (Stage.ON_THE_LINK, None): FaultKind.BIT_FLIP_SENDER,
    (Stage.SECONDARY_BEFORE_CHECK, None): FaultKind.BIT_FLIP_RECEIVER,
    (Stage.STORE_AFTER_ACK, None): FaultKind.BIT_FLIP_STORE,
    (Stage.LOST_WRITE, None): FaultKind.LOST_WRITE,
    (Stage.MISDIRECTED_WRITE, None): FaultKind.MISDIRECTED_WRITE,
    (Stage.STALL, None): FaultKind.STALL,
    (Stage.RESPONSE, "neg-ack"): FaultKind.NEG_ACK,
    (Stage.RESPONSE, "lost"): FaultKind.LOST_ACK,
    (Stage.RESPONSE, "late"): FaultKind.LATE_ACK,
    (Stage.RESPONSE, "repeated"): FaultKind.REPEATED_ACK,
    (Stage.RESPONSE, "wrong barrier"): FaultKind.WRONG_BARRIER_COUNT,
    (Stage.PRIMARY_BEFORE_DIGEST, "misplaced copy"): FaultKind.MISPLACED_COPY,
    (Stage.PRIMARY_BEFORE_DIGEST, "stale copy"): FaultKind.STALE_COPY,
    (Stage.CONSOLE, None): FaultKind.CONSOLE_GARBLE,
}
"""(stage, kind; None: any) of a verdict -> the fault that gives it. What the link did to the data a
sender can do."""
SAME_STAGE: Final[Mapping[str, str]] = {Stage.ON_THE_LINK: Stage.PRIMARY_AFTER_DIGEST}
"""Stages whose scenario is distinguished by the simulation: the link of the simulated bench does
nothing wrong."""
LEAVES_DIFFERENT: Final = frozenset({FaultKind.MISPLACED_COPY, FaultKind.STALE_COPY})
"""No resync mends what they did: the copy was acknowledged."""
DEFAULT_WRITE_KIB: Final = 64
KIB: Final = 1024
MAX_WRITE_KIB: Final = 1024
STEP_KIB: Final = 4
MAX_BYTES_MIB: Final = 64
"""Of host writes in an adopted scenario: what the built-in bench writes."""
MIN_DELAY_MS: Final = 1500
"""A little above what a healthy pair may take, so that the rules see it."""


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """The two files, by content."""

    name: str
    scenario: str
    test: str


def adopt(record: IncidentRecord, verdict: Verdict, evidence: Evidence) -> Adoption:
    """UsageError when the verdict names nothing that the simulated pair can be made to do."""
    kind = _fault(verdict)
    name = f"incident_{_id(record)}"
    write_kib, bytes_mib = _workload(evidence, verdict)
    at_write = _ordinal(evidence, verdict, last=bytes_mib * KIB // write_kib // 2)
    faults: list[dict[str, str | int]] = [
        {"kind": str(kind), "at_write": at_write, **_delay(kind, verdict)}
    ]
    also = {one.kind for one in verdict.also} - {REPAIRED}
    if "garbled console" in also:
        faults.append({"kind": str(FaultKind.CONSOLE_GARBLE), "at_write": at_write})
    hung = [one.side or "" for one in verdict.also if one.kind == "hung warmstart"]
    faults += [{"kind": str(FaultKind.HUNG_WARMSTART), "side": side} for side in hung]
    if OMITTED in also:
        faults.append({"kind": str(_omission(verdict))})
    lines = [
        "# Adopted from a recorded incident; what it is to reproduce stands in the description.",
        f"name = {_toml(name)}",
        f"title = {_toml('Adopted: ' + (verdict.kind or '') + ', ' + (verdict.stage or ''))}",
        f"description = {_toml(escape(verdict.text))}",
    ]
    for fault in faults:
        lines += ["", "[[faults]]", *(f"{key} = {_toml(value)}" for key, value in fault.items())]
    lines += ["", "[workload]", f"bytes_mib = {bytes_mib}", f"write_kib = {write_kib}"]
    lines += ["", "[expect]", "detected = true", *(["power_cycle = true"] if hung else [])]
    if OMITTED in also or kind in LEAVES_DIFFERENT:
        lines.append("data_equal = false")
    stage = SAME_STAGE.get(verdict.stage or "", verdict.stage or "")
    test = _TEST.format(
        name=name, text=escape(verdict.text).replace("\\", "\\\\").replace('"', "'"), stage=str(stage),
        kind=verdict.kind, also=sorted(also),
    )  # fmt: skip
    return Adoption(name=name, scenario="\n".join(lines) + "\n", test=test)


_TEST: Final = '''\
"""Adopted from a recorded incident: does the pair still do that, and is it still understood?

{text}
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

SCENARIO = Path(__file__).with_name("{name}.toml")


def test_{name}(run_scenario: Callable[..., Any]) -> None:
    result = run_scenario(str(SCENARIO))
    assert result.outcome == "pass", result.reasons
    verdict = result.record["verdict"]
    assert verdict["conclusive"], verdict["text"]
    assert (verdict["stage"], verdict["kind"]) == ({stage!r}, {kind!r}), verdict["text"]
    assert {also!r} == sorted(one["kind"] for one in verdict["also"])
'''


def _id(record: IncidentRecord) -> str:
    """It becomes part of file names and of a function's: nothing but hex digits of it is
    believed."""
    found = re.match(r"[0-9a-f]{8}", record.incident_id_hex)
    if found is None:
        raise UsageError("the incident has no id")
    return found[0]


def _fault(verdict: Verdict) -> FaultKind:
    if not verdict.conclusive or verdict.stage is None:
        raise UsageError(f"nothing to adopt: {verdict.text}")
    stage = Stage(verdict.stage)
    kind = FAULT_OF.get((stage, verdict.kind)) or FAULT_OF.get((stage, None))
    if kind is None or verdict.kind == GHOST_WRITE:  # a DRBD link sends nothing twice
        raise UsageError(f"the simulated controllers have no fault for {stage}: {verdict.kind}")
    return kind


def _omission(verdict: Verdict) -> FaultKind:
    """How the resync left something out: without bitmaps, without a copy, or in part."""
    one = next(one for one in verdict.resyncs if one.bytes_omitted or one.blocks_lost)
    if not one.bitmap_packets + one.compressed_bitmap_packets:
        return FaultKind.RESYNC_DENIED
    is_part = one.blocks_lost or one.bytes_copied
    return FaultKind.RESYNC_BITS_DROPPED if is_part else FaultKind.RESYNC_EMPTY


def _delay(kind: FaultKind, verdict: Verdict) -> dict[str, int]:
    if kind not in (FaultKind.LATE_ACK, FaultKind.STALL):
        return {}
    found = [int(word) for word in (verdict.found or "").split() if word.isdecimal()]
    return {"delay_ms": max(MIN_DELAY_MS, min(found[0], 60_000)) if found else MIN_DELAY_MS}


def _workload(e: Evidence, verdict: Verdict) -> tuple[int, int]:
    """(KiB a write, MiB in all): as in the incident, as far as the simulated bench can do it."""
    write_kib = (verdict.write_sectors or 0) * SECTOR_BYTES // KIB
    if not STEP_KIB <= write_kib <= MAX_WRITE_KIB or write_kib % STEP_KIB:
        write_kib = DEFAULT_WRITE_KIB
    written = (
        sum(one.sectors for one in e.journal.writes.values()) * SECTOR_BYTES if e.journal else 0
    )
    return write_kib, max(1, min(-(-written // MIB), MAX_BYTES_MIB)) if written else MAX_BYTES_MIB


def _ordinal(e: Evidence, verdict: Verdict, *, last: int) -> int:
    """The how-manieth replicated write it was: by the journal, else by the capture; never beyond
    the workload's middle."""
    number = 1
    if e.journal is not None and verdict.write_id in e.journal.writes:
        number = list(e.journal.writes).index(verdict.write_id) + 1
    elif e.link is not None and verdict.t_cause_ns is not None:
        number = sum(one.t_sent_ns <= verdict.t_cause_ns for one in e.link.writes)
    return max(1, min(number, last))


def _toml(value: object) -> str:
    """Numbers, and strings of printable characters: JSON's form of them is TOML's."""
    return json.dumps(value)
