"""Go on with an incident whose process was killed: the sets are still on the devices, and are found by
the incident's id. Nobody is instructed and no power is switched."""

import time
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import Side
from freezeframe.harness.core.recovery.messages import FrameOut
from freezeframe.harness.errors import RigError, UsageError, WireError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import conclude
from freezeframe.harness.incidents.reopening import reopen
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.strike import not_compared, what_is_missing
from freezeframe.harness.runs.view import View

LIST_TIMEOUT_S: Final = 10.0


def resume(bench: Bench, path: Path, view: View) -> Result:
    """Collect what is missing of the incident at ``path``, and judge it. UsageError: it is closed,
    or neither controller keeps a set of it; RigError: the bench."""
    incident = reopen(path)
    try:
        with run_directory() as run_dir, OpenBench(bench, run_dir) as opened:
            wrong = _collected(opened, incident, view)
            recording = Recording(incident, view)
            recording.close(opened, (), (), None)
    except BaseException:
        incident.leave()  # open, as it was found: it may be resumed again
        raise
    incident.record["reasons"] = ["resumed after its process was killed", *wrong]
    conclude(incident)
    incident.finish("fail")
    AuditJournal(bench.name, "resume", bench.path).add(
        "resumed", incident.path.name, "", "; ".join(wrong) or "ok"
    )
    return Result(
        outcome="fail",
        record=incident.record,
        incident=incident.path.absolute(),
        reasons=incident.record["reasons"],
    )


def _collected(opened: OpenBench, incident: Incident, view: View) -> list[str]:
    missing: list[Side] = [
        side
        for side in opened.controllers
        if not incident.record["sets"].get(side, {}).get("complete")
    ]
    found = {side: _keeps(opened, incident, side) for side in missing}
    sides = [side for side in missing if found[side]]
    for side in missing:
        if not found[side]:
            incident.missing_set(side, "it lists no set of this incident")
    if not sides:
        if len(missing) == len(opened.controllers):
            raise UsageError(
                f"neither controller keeps a set of incident {incident.path.name}: its frames had not gone "
                "out, or the sets were replaced by newer ones"
            )
        return [f"{side}: it lists no set of this incident" for side in missing]
    epochs = {side: opened.identities[side].boot_epoch for side in sides}
    # Not disruptive: straight to the pull. Whoever has not obeyed by now is left alone.
    collector = Collector(
        opened, incident, epochs, not_compared, lambda: None, disruptive=False, is_resumed=True
    )
    steps_seen = 0
    for side in sides:
        view.phase(f"{side}: it keeps a set of this incident")
        collector.feed(FrameOut(side=side, t_ns=time.monotonic_ns()))
    collector.wait()
    for one in collector.steps[steps_seen:]:
        view.step(one.side, one.step, one.detail)
    if collector.failure is not None:
        raise collector.failure
    lost = [f"{side}: it lists no set of this incident" for side in missing if side not in sides]
    return lost + what_is_missing(collector.finish)


def _keeps(opened: OpenBench, incident: Incident, side: Side) -> bool:
    try:
        entries = opened.controllers[side].sets(deadline_in(LIST_TIMEOUT_S))
    except WireError as error:
        raise RigError(f"the {side} controller does not list its sets: {error}") from error
    return any(one.incident_id == incident.incident_id for one in entries)
