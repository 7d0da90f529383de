"""An incident as a ticket: Markdown with the answer first, the facts, the grounds of the verdict and
the console around the trigger.

Everything that stems from the incident stands inside fenced code, where no renderer acts on it: no
link, image, mention or heading can be made of a device's text.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.summary import answer, facts
from freezeframe.harness.report.text import text

LINES_BEFORE: Final = 12
LINES_AFTER: Final = 4
"""Of the console, around the trigger's line; of a side without one, its last lines."""
MAX_LINE_CHARS: Final = 300
MAX_REASONS: Final = 20


def ticket(dossier: Dossier) -> str:
    """The whole text, with a newline at its end."""
    return "\n".join(_parts(dossier)) + "\n"


def _parts(dossier: Dossier) -> Iterator[str]:
    verdict = dossier.verdict
    record = msgspec.structs.replace(dossier.record, verdict=verdict, id=dossier.stored.id)
    said = answer(record, dossier.stored.outcome)
    yield f"## {said.outcome.upper()}: FreezeFrame incident\n"
    yield fenced(
        [
            f"what happened   {' '.join(filter(None, (said.happened, said.trigger)))}",
            f"why             {said.why or 'no verdict'}",
            f"what to do now  {said.now}",
        ]
    )
    rows = [("incident", text(dossier.stored.id)), *facts(record)]
    width = max(len(name) for name, _ in rows)
    yield "\n### Facts\n"
    yield fenced([f"{name:<{width}}  {value}" for name, value in rows])
    grounds = [*verdict.reasons, *(f"missing: {one}" for one in verdict.evidence_lacks)]
    if grounds:
        yield "\n### Grounds of the verdict\n"
        yield fenced([text(one) for one in grounds[:MAX_REASONS]])
    for side in SIDES:
        lines = console_tail(dossier, side)
        if lines:
            yield f"\n### Console of the {side}\n"
            yield fenced(lines)


def console_tail(dossier: Dossier, side: Side) -> list[str]:
    """Lines of a console, escaped: those around the trigger, which is marked, or the last ones
    before it."""
    lines = dossier.consoles[side]
    place = dossier.trigger_line
    at = place[1] if place is not None and place[0] == side else None
    if at is None:
        trigger = dossier.record.trigger
        limit_ns = trigger.t_match_ns if trigger is not None else None
        end = len(lines)
        if limit_ns is not None:
            end = next((n for n, line in enumerate(lines) if line.t_ns > limit_ns), end)
        start = max(0, end - LINES_BEFORE)
    else:
        start, end = max(0, at - LINES_BEFORE), min(len(lines), at + 1 + LINES_AFTER)
    return [
        f"{'>' if number == at else ' '} {escape(lines[number].data)[:MAX_LINE_CHARS]}"
        for number in range(start, end)
    ]


def fenced(lines: Sequence[str]) -> str:
    """A code block whose fence is longer than every run of backticks in it."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *lines, fence])
