"""A watch: others write, each trigger becomes an incident, and one storm guard counts over all of
them."""

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.link.blindness import not_understood, unproved
from freezeframe.harness.core.policy import Guard, Limits
from freezeframe.harness.core.recovery import messages as recovery
from freezeframe.harness.edge.clock import WallReading, read_wall_clock
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.basis import keep_basis
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import conclude
from freezeframe.harness.incidents.store import Outcome
from freezeframe.harness.runs import linksight
from freezeframe.harness.runs.campaign import TICK_S, Result, run_directory
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.view import View
from freezeframe.harness.wire import control

REOPEN_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pause before lost lines are opened again: the longer the more often they were lost."""
STEADY_S: Final = 60.0
"""After so long without a loss the pause is the shortest again."""


def watch(bench: Bench, *, out_dir: Path, view: View) -> Iterator[Result]:
    """Watch a pair that others write to; yields each incident when it is closed, then watches on.
    Ends by exception."""
    with run_directory() as run_dir, OpenBench(bench, run_dir) as opened:
        yield from watch_opened(opened, out_dir=out_dir, view=view)


class Stopped(KeyboardInterrupt):
    """A watch without an incident was stopped, which is its regular end."""

    def __init__(self, unproved: Sequence[str]) -> None:
        super().__init__()
        self.unproved = unproved
        """What the capture of the link did not show, a sentence each."""


class _BlindError(RigError):
    """A line or a watcher is gone: what was recorded is kept, and the watch goes on."""


def watch_opened(opened: OpenBench, *, out_dir: Path, view: View) -> Iterator[Result]:
    """The same on a rig that is open. Between two incidents the watchers are started anew, and the
    next one says so. One storm guard counts over all of them.

    A watch outlives its lines: when one is lost, what was recorded becomes an incident of outcome
    rig-trouble, all lines are opened again as soon as they are there, and the bench is armed again.
    """
    before: tuple[Ns, Ns] | None = None
    guard = Guard(Limits())
    losses = 0
    while True:
        armed_ns = time.monotonic_ns()
        result, before, is_blind = _watch_once(opened, out_dir, view, before, guard)
        yield result
        if not is_blind:
            losses = 0
            continue
        if time.monotonic_ns() - armed_ns > STEADY_S * NS_PER_S:
            losses = 0
        _await_lines(opened, view, REOPEN_S[min(losses, len(REOPEN_S) - 1)])
        losses += 1


def _await_lines(opened: OpenBench, view: View, pause_s: float) -> None:
    """Open all lines again, however long it takes; each new reason why not is said once."""
    said = ""
    while True:
        time.sleep(pause_s)
        try:
            opened.reopen_lines()
        except RigError as error:
            if str(error) != said:
                said = str(error)
                view.phase(f"blind: {said}; it is tried again until the line is back")
            pause_s = min(2 * pause_s, REOPEN_S[-1])
        else:
            view.phase("all lines are open again")
            return


def _close(session: Session, incident: Incident, outcome: Outcome) -> None:
    """The watch ends here; without a trigger there is no incident to keep."""
    session.close()
    if session.triggers:
        with contextlib.suppress(HarnessError):
            conclude(incident)
        incident.finish(outcome)
    else:
        incident.discard()


def _blinded(
    session: Session, incident: Incident, view: View, error: RigError
) -> tuple[Result, tuple[Ns, Ns], bool]:
    """What was recorded until then is kept."""
    lost_ns = time.monotonic_ns()
    view.phase(str(error))
    session.close()
    incident.record["reasons"] = [str(error)]
    conclude(incident)
    incident.finish("rig-trouble")
    result = Result(
        outcome="rig-trouble",
        record=incident.record,
        incident=incident.path.absolute(),
        error=error,
        reasons=incident.record["reasons"],
    )
    return result, (lost_ns, time.monotonic_ns()), True


def _unproved(session: Session) -> list[str]:
    """What the capture did not show; whether anybody wrote, a watch does not know."""
    link = session.opened.bench.link
    missing = not_understood(link.protocol, link.tells)
    lacks = unproved(link.demand, linksight.sight_now(session.observation.link), wrote=None)
    return [*([missing] if missing else []), *lacks.values()]


def _gap(disarmed_ns: Ns, stopped_ns: Ns, now: WallReading) -> str:
    """What is not seen between two incidents of a watch; an arming is good for one action."""
    seconds = (now.monotonic_ns - disarmed_ns) / 1e9
    return (
        f"not armed from {now.utc(disarmed_ns)} to {now.utc(now.monotonic_ns)} UTC ({seconds:.1f} s),"
        f" since the incident before; from {now.utc(stopped_ns)} on its watchers were started anew, and nothing was recorded"
    )


def _watch_once(
    opened: OpenBench, out_dir: Path, view: View, before: tuple[Ns, Ns] | None, guard: Guard
) -> tuple[Result, tuple[Ns, Ns], bool]:
    """``before``: when the former incident began, and when its watchers were stopped. Returns the
    incident, its own times, and whether the watch had become blind."""
    incident = Incident.create(
        out_dir,
        bench=opened.bench.name,
        seed=0,
        versions=versions(),
        rules=[str(path) for path in opened.bench.rule_paths()],
        incident_id=secrets.token_bytes(control.INCIDENT_ID_BYTES),
    )
    keep_basis(incident, opened.bench)
    # Others go on writing while the volumes would be read: a comparison would compare moving
    # targets.
    session = Session(
        opened,
        incident,
        view,
        lambda: recovery.Compared(equal=None, detail="others go on writing"),
        guard=guard,
    )
    try:
        session.arm(patiently=before is not None)
        if before is not None:
            gap = _gap(*before, read_wall_clock())
            incident.note(gap)
            incident.milestone()
            view.phase(gap)
        view.phase(f"watching; the host's port is {opened.bench.primary.host}; stop with Ctrl-C")
        while session.collector is None or session.recovering:
            session.pump(TICK_S)
            if session.lost_evidence and not session.recovering:
                raise _BlindError("the watch is blind: " + "; ".join(session.lost_evidence))
    except RigError as error:
        if before is None and not isinstance(error, _BlindError):
            _close(session, incident, "rig-trouble")
            raise
        return _blinded(session, incident, view, error)
    except BaseException as error:
        with contextlib.suppress(HarnessError):
            session.end("the watch was being stopped")
        _close(
            session, incident, "rig-trouble" if isinstance(error, HarnessError) else "interrupted"
        )
        if isinstance(error, KeyboardInterrupt) and before is None:
            raise Stopped(_unproved(session)) from None
        raise
    stopped_ns = time.monotonic_ns()
    session.close()
    for says in _unproved(session):
        incident.note(f"not seen on the link: {says}")
    conclude(incident)
    cause = session.causes[0]
    incident.record["reasons"] = [
        f"trigger {cause.rule} on the {cause.side}",
        *session.lost_evidence,
    ]
    incident.finish("fail")
    result = Result(
        outcome="fail",
        record=incident.record,
        incident=incident.path.absolute(),
        reasons=incident.record["reasons"],
    )
    return result, (cause.t_match_ns, stopped_ns), False
