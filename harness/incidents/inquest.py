"""A recorded incident -> its verdict and its timeline. What is missing or damaged is said, not raised.

The run that recorded the incident and ``replay``, years later and without a bench, come through
here: the same files give the same verdict, byte for byte.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

import msgspec

from freezeframe.harness.core.events import NS_PER_MS, SIDES, Side
from freezeframe.harness.core.link.protocol import Tell
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict import oneclock
from freezeframe.harness.core.verdict.failingblock import with_rejoin
from freezeframe.harness.core.verdict.record import VERDICT_FORMAT, Verdict
from freezeframe.harness.core.verdict.ringdepth import RingDepth, ring_depth
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.errors import HarnessError, WireError
from freezeframe.harness.incidents.dossier import NONSENSE, Dossier
from freezeframe.harness.incidents.incident import Incident, Json
from freezeframe.harness.incidents.store import StoredIncident

AROUND_NS: Final = 20 * NS_PER_MS
"""Before the cause and after the detection: so much of the timeline is about the failure
itself."""


def verdict_of(what: StoredIncident | Dossier) -> Verdict:
    """The verdict on a recorded incident. WireError: what it holds is no incident of ours."""
    dossier = what if isinstance(what, Dossier) else Dossier(what)
    verdict, why = dossier.judgement
    if why:
        raise WireError(f"{dossier.stored.path}: {why}")
    return verdict


def known_verdict(dossier: Dossier) -> Verdict | None:
    """The recorded verdict where this version would give the same, else a new one; None: there is none to be had, or
    nothing has been recorded yet."""
    recorded = dossier.record.verdict
    if recorded is not None and recorded.format == VERDICT_FORMAT:
        return recorded
    verdict, why = dossier.judgement
    return None if why else verdict


def timeline_of(dossier: Dossier, verdict: Verdict | None, *, whole: bool = False) -> list[Row]:
    """All sources on one clock, from shortly before the cause to shortly after the detection;
    ``whole``: also what else was noted and printed in the run. WireError: what it holds is no
    incident of ours."""
    times = (verdict.t_cause_ns, verdict.t_detect_ns) if verdict is not None else ()
    known = [t_ns for t_ns in times if t_ns is not None]
    start_ns, end_ns = (min(known) - AROUND_NS, max(known) + AROUND_NS) if known else (0, 0)
    if not known and not whole:
        return []
    try:
        return oneclock.rows(dossier.evidence, start_ns, end_ns, recorded=dossier.rows, whole=whole)
    except NONSENSE as error:
        raise WireError(
            f"{dossier.stored.path}: its record makes no sense: {type(error).__name__}: {error}"
        ) from error


def conclude(incident: Incident) -> None:
    """Give a recorded incident its verdict; all else that goes into incident.json but its outcome
    is in it by now."""
    incident.update(clock_end=asdict(read_wall_clock()))
    try:
        dossier = Dossier(StoredIncident.open(incident.path))
        verdict = verdict_of(dossier)
        logs = event_logs(dossier, verdict)
        incident.update(
            verdict=plain(verdict),
            event_logs={side: asdict(one) for side, one in logs.items()},
            **_failing_block(dossier),
        )
    except HarnessError as error:
        incident.note(f"no verdict: {error}")


def _failing_block(dossier: Dossier) -> Json:
    """When the failing block was read, held against the link; {}: nobody could read one."""
    block, record, link = dossier.record.failing_block, dossier.record, dossier.evidence.link
    if block is None or record.trigger is None:
        return {}
    drops = record.capture.kernel_drops if record.capture is not None else 0
    is_whole = link is not None and not (link.gaps or link.blind or link.malformed or drops)
    since_ns, rejoins = record.trigger.t_arrival_ns or 0, link.rejoins if link is not None else ()
    judged = with_rejoin(
        block,
        shows_rejoins=link is None or Tell.RESYNC in link.protocol.tells,
        rejoins_ns=[began for one in rejoins if (began := one.began_after(since_ns)) is not None],
        seen_until_ns=link.t_last_ns if link is not None and is_whole else 0,
    )
    return {"failing_block": msgspec.to_builtins(judged)}


def plain(verdict: Verdict) -> Json:
    """The verdict as JSON has it."""
    made: Json = msgspec.json.decode(msgspec.json.encode(verdict))
    return made


def event_logs(dossier: Dossier, verdict: Verdict) -> Mapping[Side, RingDepth]:
    """A side whose set is there: how much of its log was left when it was saved."""
    trigger = dossier.record.trigger
    t_arrival_ns = trigger.t_arrival_ns if trigger is not None else None
    return {
        side: ring_depth(dossier.sets[side], t_arrival_ns, verdict, side)
        for side in SIDES
        if side in dossier.sets
    }
