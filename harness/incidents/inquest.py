"""An incident's folder -> its evidence -> the verdict. What is missing or damaged is said, not
raised.

The run that recorded the incident and ``replay``, years later and without a bench, come through
here: the same files give the same verdict, byte for byte.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_MS, SIDES, Ns, Side
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.rootcause import RootCauseSet, decode_cbor
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict import oneclock
from freezeframe.harness.core.verdict.evidence import Evidence, gather
from freezeframe.harness.core.verdict.ringdepth import ring_depth
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.errors import HarnessError, WireError
from freezeframe.harness.incidents.evidence import decode_set
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import (
    CONSOLE,
    HEALTHY,
    JOURNAL,
    LINK,
    SET,
    TIMES,
    StoredIncident,
    link_runs,
)
from freezeframe.harness.wire import control

MAX_CONSOLE_BYTES: Final = 64 << 20
MAX_JOURNAL_BYTES: Final = 1 << 30
MAX_FRAMES: Final = 20_000_000
AROUND_NS: Final = 20 * NS_PER_MS
"""Before the cause and behind the detection: so much of the timeline is about the failure
itself."""
MAX_OFFSET_NS: Final = 1 << 62
_TIMES: Final = struct.Struct("<QQ")
"""One entry of console.times a read: t_ns, offset_bytes of its first byte."""


def verdict_of(stored: StoredIncident) -> dict[str, Any]:
    """The verdict on a recorded incident. WireError: what it holds is no incident of ours."""
    try:
        return judge(evidence_of(stored))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise WireError(
            f"{stored.path}: its record makes no sense: {type(error).__name__}: {error}"
        ) from error


def timeline_of(
    stored: StoredIncident, verdict: Mapping[str, Any], *, whole: bool = False
) -> list[Row]:
    """All sources on one clock, from shortly before the cause to shortly behind the detection;
    ``whole``: also what else was noted and printed in the run. WireError: what it holds is no
    incident of ours."""
    known = [
        t_ns for t_ns in (verdict.get("t_cause_ns"), verdict.get("t_detect_ns")) if t_ns is not None
    ]
    start_ns, end_ns = (min(known) - AROUND_NS, max(known) + AROUND_NS) if known else (0, 0)
    if not known and not whole:
        return []
    try:
        recorded = stored.timeline()
        return oneclock.rows(evidence_of(stored), start_ns, end_ns, recorded=recorded, whole=whole)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise WireError(
            f"{stored.path}: its record makes no sense: {type(error).__name__}: {error}"
        ) from error


def conclude(incident: Incident) -> None:
    """Give a recorded incident its verdict; all else that goes into incident.json but its outcome
    is in it by now."""
    incident.update(clock_end=asdict(read_wall_clock()))
    try:
        stored = StoredIncident.open(incident.path)
        verdict = verdict_of(stored)
        incident.update(verdict=verdict, event_logs=event_logs(stored, verdict))
    except HarnessError as error:
        incident.note(f"no verdict: {error}")


def event_logs(stored: StoredIncident, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A side whose set is there: how much of its log was left when it was saved."""
    t_arrival_ns = (stored.record.get("trigger") or {}).get("t_arrival_ns")
    sets = {side: _set(stored, side)[0] for side in SIDES}
    return {
        side: asdict(ring_depth(one, t_arrival_ns, verdict, side))
        for side, one in sets.items()
        if one is not None
    }


def evidence_of(stored: StoredIncident) -> Evidence:
    record = stored.record
    sets: dict[Side, RootCauseSet | None] = {}
    problems: dict[Side, str] = {}
    for side in SIDES:
        sets[side], problems[side] = _set(stored, side)
    frames = _Frames(stored)
    return gather(
        record,
        sets=sets,
        set_problems=problems,
        healthy={side: _healthy(stored, side) for side in SIDES},
        consoles={side: _console(stored, side) for side in SIDES},
        journal=_part(stored, JOURNAL, MAX_JOURNAL_BYTES) or None,
        frames=frames,
        frames_offset_ns=frames.offset_ns,
        frames_problem=lambda: frames.problem,
    )


class _Frames:
    """The capture; ends early, and says why, where the file is damaged."""

    def __init__(self, stored: StoredIncident) -> None:
        self._folder = stored.path
        clock = stored.record.get("clock") or {}
        offset_ns = clock.get("wall_ns", 0) - clock.get("monotonic_ns", 0)
        self.offset_ns = min(max(offset_ns, -MAX_OFFSET_NS), MAX_OFFSET_NS)
        self.problem = ""

    def __iter__(self) -> Iterator[Run]:
        frames = 0
        try:
            for run in link_runs(self._folder):
                yield run
                frames += run.frames
                if frames >= MAX_FRAMES:
                    self.problem = f"only the first {frames} frames of {LINK} are read"
                    return
        except FileNotFoundError:
            self.problem = "there is no capture of the link"
        except (HarnessError, OSError) as error:
            self.problem = f"{LINK}: {error}"


def _part(stored: StoredIncident, name: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file; b"" when there is none that can be read."""
    try:
        return stored.part(name, limit)
    except HarnessError:
        return b""


def _set(stored: StoredIncident, side: Side) -> tuple[RootCauseSet | None, str]:
    """(the set, why there is none)"""
    told = (stored.record.get("sets") or {}).get(side) or {}
    data = _part(stored, f"{side}/{SET}", control.MAX_SET_BYTES)
    if not data:
        return None, told.get("reason") or "it was not pulled"
    try:
        return decode_set(stored.record, side, data), ""
    except WireError as error:
        return None, error.what
    except HarnessError as error:
        return None, str(error)


def _healthy(stored: StoredIncident, side: Side) -> Mapping[str, Any] | None:
    data = _part(stored, f"{side}/{HEALTHY}", control.MAX_SET_BYTES)
    try:
        state = decode_cbor(data) if data else None
    except WireError:
        return None
    return state if isinstance(state, dict) else None


def _console(stored: StoredIncident, side: Side) -> tuple[bytes, list[tuple[Ns, int]]]:
    times = _part(stored, f"{side}/{TIMES}", MAX_CONSOLE_BYTES)
    whole = len(times) // _TIMES.size * _TIMES.size
    return _part(stored, f"{side}/{CONSOLE}", MAX_CONSOLE_BYTES), list(
        _TIMES.iter_unpack(times[:whole])
    )
