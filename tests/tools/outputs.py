"""Page, capture file, trace, ``show`` and ``replay`` of one incident, held against its verdict."""

from pathlib import Path

import msgspec
from named_writes import Named, by_comments, by_page, by_trace, by_verdict
from rich.console import Console, RenderableType

from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import known_verdict, plain, verdict_of
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.report.html import page
from freezeframe.harness.report.pcapng import frame_comments
from freezeframe.harness.report.perfetto import trace
from freezeframe.harness.report.summary import summary
from freezeframe.harness.report.text import verdict_report


def exported(e: Evidence) -> Dossier:
    """The evidence as an incident that pages and exports are made of."""
    stored = StoredIncident(
        path=Path("/nonexistent"), record=e.record, raw={}, outcome="fail", problems=()
    )
    return Dossier(stored, given=e)


def contradicted(dossier: Dossier, verdict: Verdict) -> str:
    """Which output names another write, other sectors or other bytes than the verdict; "": none does."""
    wanted = by_verdict(plain(verdict))
    if wanted.write_id is None and wanted.packet_no is None:
        wanted = Named(differs=wanted.differs)  # no step of any write is shown
    on_page, in_trace = by_page(page(dossier)), by_trace(trace(dossier))
    packet_no, differs = by_comments(frame_comments(dossier))
    told = {
        "the page": on_page,
        "the trace": Named(
            in_trace.write_id, in_trace.sectors, in_trace.block_id, in_trace.packet_no, wanted.differs
        ),
        "the capture": Named(
            wanted.write_id, wanted.sectors, wanted.block_id, packet_no,
            differs if wanted.packet_no is not None else wanted.differs,
        ),
    }  # fmt: skip
    for output, found in told.items():
        if found != wanted:
            return f"{output} says {found}, the verdict {wanted}"
    # As the two commands do it: what they print is not handed to them here.
    recorded = msgspec.structs.replace(dossier.record, verdict=known_verdict(dossier))
    printed = {
        "show": summary(recorded, "fail"),
        "replay": verdict_report(verdict_of(dossier)),
    }
    for command, shown in printed.items():
        if verdict.text not in _printed(shown):
            return f"{command} does not say: {verdict.text}"
    return ""


def _printed(shown: RenderableType) -> str:
    console = Console(width=1000, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
