"""Implement ``show``. ``list`` and ``search`` do without what it needs, and so answer sooner."""

from dataclasses import asdict
from pathlib import Path

import msgspec

from freezeframe.harness.cli import output
from freezeframe.harness.cli.output import print_json, say
from freezeframe.harness.cli.verdicts import say_timeline
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents import store
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.index import Index
from freezeframe.harness.incidents.inquest import known_verdict, plain, timeline_of
from freezeframe.harness.incidents.remarks import remarks_of
from freezeframe.harness.report.summary import summary


def show(what: str, out_dir: Path, *, timeline: bool, verbose: bool, as_json: bool) -> None:
    one = store.find(what, out_dir)
    dossier = Dossier(one)
    recurrence = _recurrence(one) if one.outcome != store.OPEN else ""
    verdict, altered = known_verdict(dossier), one.altered()
    if as_json:
        shown: dict[str, object] = {
            **one.raw,
            "outcome": one.outcome,
            "incident": str(one.path.absolute()),
            "altered": altered,
            "verdict": plain(verdict) if verdict is not None else None,
        }
        if recurrence:
            shown["recurrence"] = recurrence
        if said := remarks_of(one):
            shown["remarks"] = [asdict(remark) for remark in said]
        if one.problems:
            shown["problems"] = list(one.problems)
        if timeline:
            shown["timeline"] = _timeline(dossier, verdict)
        print_json(shown)
        return
    record = msgspec.structs.replace(one.record, verdict=verdict)
    output.show(summary(record, one.outcome, verbose=verbose))
    if recurrence:
        say(f"this kind: {recurrence}")
    for remark in remarks_of(one):
        say(f"remark, {remark.written}: {remark.text}")
    for problem in (*one.problems, *altered):
        output.say_aside(f"  {escape(problem)}")
    if timeline:
        trigger = one.record.trigger
        say_timeline(
            _timeline(dossier, verdict), trigger.t_match_ns if trigger is not None else None
        )
    say(f"incident: {escape(str(one.path.absolute()))}")


def _recurrence(one: store.StoredIncident) -> str:
    """How often its kind was seen among the incidents beside it."""
    with Index(one.path.absolute().parent) as index:
        everything, name = index.incidents(), one.path.absolute().name
        kind = next((known.signature for known in everything if known.name == name), "")
        found = index.recurrences(everything).get(kind)
    return found.text if found is not None else ""


def _timeline(dossier: Dossier, verdict: Verdict | None) -> list[Row]:
    """The whole run on one clock; of an incident that makes no sense only what its own timeline
    says."""
    try:
        return timeline_of(dossier, verdict, whole=True)
    except HarnessError:
        return dossier.rows
