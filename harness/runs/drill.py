"""A fire drill: the whole chain of a bench, proved without harm.

Both consoles are heard (canaries), the frames that would warmstart are tried out without their effect,
and then a controller prints a line that is a trigger: the reflex answers it with frames that only
save, both sets are pulled and decoded, and the incident's outcome is "drill". Nobody restarts.
"""

import secrets
import time
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import conclude
from freezeframe.harness.incidents.store import Outcome
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.runs.recording import new_recording
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.strike import not_compared, what_is_missing
from freezeframe.harness.runs.view import View

TRIGGER_TIMEOUT_S: Final = 5.0
"""From the request to print the line to the frames."""
TICK_S: Final = 0.2


def drill(bench: Bench, *, out_dir: Path, view: View) -> Result:
    """Hold one drill. RigError: a link of the chain is not there, which is named. Outcome "drill", or
    "fail" when a controller did not save, or not whole."""
    if bench.policy.instructed_by != "harness":
        raise UsageError(
            "in autonomic mode the harness sends no frame, so there is no chain to be drilled"
        )
    audit = AuditJournal(bench.name, "drill", bench.path)
    with run_directory() as run_dir, OpenBench(bench, run_dir) as opened:
        incident = new_recording(opened, out_dir, view, scenario="drill").incident
        try:
            wrong = _held(opened, incident, view)
        except BaseException as error:
            incident.record["reasons"] = [str(error) or type(error).__name__]
            incident.finish("rig-trouble" if isinstance(error, HarnessError) else "interrupted")
            audit.add("drill", incident.path.name, "", str(error) or type(error).__name__)
            raise
    outcome: Outcome = "fail" if wrong else "drill"
    incident.record["reasons"] = wrong
    conclude(incident)
    incident.finish(outcome)
    audit.add("drill", incident.path.name, "", "; ".join(wrong) or "ok")
    return Result(
        outcome=outcome, record=incident.record, incident=incident.path.absolute(), reasons=wrong
    )


def _held(opened: OpenBench, incident: Incident, view: View) -> list[str]:
    # A new text for each drill: an old one that is still being printed is not this one's.
    line = f"freezeframe drill {secrets.token_hex(4)}"
    rule = ConsoleRule(name="freezeframe-drill", literal=line, instruct=opened.bench.controlled)
    session = Session(opened, incident, view, not_compared, drill_rule=rule)
    try:
        session.arm()
        view.phase(
            "the consoles are heard, the frames were tried out; the armed ones only save"
            if len(opened.bench.controlled) < len(SIDES)
            else "both consoles are heard, both frames were tried out; the armed ones only save"
        )
        side = _print(opened, line)
        deadline_ns = deadline_in(TRIGGER_TIMEOUT_S)
        while session.collector is None and time.monotonic_ns() < deadline_ns:
            session.pump(TICK_S)
        if session.collector is None:
            raise RigError(f"the {side} controller printed the drill's line, and no frame went out")
        while session.recovering:
            session.pump(TICK_S)
        session.end("the drill is over")
    finally:
        session.close()
    missing = what_is_missing(session.collector.finish)
    others = {one.rule for one in session.triggers} - {rule.name}
    unexpected = (f"{name} triggered during the drill" for name in sorted(others))
    return [*missing, *unexpected, *session.lost_evidence]


def _print(opened: OpenBench, line: str) -> Side:
    """Have the line printed by the side that would notice a failure first, else by the other."""
    for side in reversed(SIDES):
        controller = opened.controllers.get(side)
        if isinstance(controller, Printing) and not opened.unheard(side):
            reply = controller.print_line(line, deadline_in(TRIGGER_TIMEOUT_S))
            if not reply.ok:
                raise RigError(f"the {side} controller would not print a line: {reply.status}")
            return side
    raise UsageError(
        "neither controller can be asked to print a line, so no trigger can be made without harm"
    )
