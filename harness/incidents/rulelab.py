"""Rule lab: a changed rule file against everything that was recorded, before it is armed.

The consoles are replayed read by read with the times of the reads, the captures frame by frame,
through the same code that watches a bench. What the rules find now is compared with what they found
then (the timeline), or with what another rule file finds.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.console.triggers import Hit, Scanner
from freezeframe.harness.core.events import SIDES, Ns, Side, Trigger
from freezeframe.harness.core.link.linkview import LinkView
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.evidence import link_ends
from freezeframe.harness.incidents.dossier import Dossier

MAX_HITS: Final = 20_000
"""Of one incident; a rule that hits more often is wrong anyway."""
MAX_SHOWN_CHARS: Final = 200
Source = Literal["console", "link"]


@dataclass(frozen=True, order=True)
class HitPlace:
    """Where a rule hit: what makes two hits the same one."""

    source: Source
    side: str
    where: int
    """Console: offset of the line's begin. Link: number of the frame."""
    rule: str


@dataclass(frozen=True, kw_only=True)
class RuleComparison:
    """One incident: hits that both find, that only the new rules find, and that they no longer
    find."""

    incident: str
    kept: int
    new: tuple[tuple[HitPlace, str], ...]
    """With the line, or what was found on the link."""
    lost: tuple[tuple[HitPlace, str], ...]
    problems: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        return not self.new and not self.lost


def compare(dossier: Dossier, rules: RuleSet, against: RuleSet | None) -> RuleComparison:
    """``against`` None: with what was found when the incident was recorded."""
    now = found(dossier, rules)
    then = recorded(dossier) if against is None else found(dossier, against)
    more = dossier.record.counted_hits if against is None else {}
    counted = [
        escape(
            f"{rule}: {count} hits were only counted then; what is new of this rule may be some of these"
        )
        for rule, count in more.items()
    ]
    return RuleComparison(
        incident=dossier.stored.id,
        kept=len(now.keys() & then.keys()),
        new=tuple(sorted((place, now[place]) for place in now.keys() - then.keys())),
        lost=tuple(sorted((place, then[place]) for place in then.keys() - now.keys())),
        problems=tuple(dict.fromkeys([*dossier.stored.problems, *dossier.problems, *counted])),
    )


def found(dossier: Dossier, rules: RuleSet) -> dict[HitPlace, str]:
    """Every hit of ``rules`` in the incident's consoles and capture."""
    hits: dict[HitPlace, str] = {}
    for place, text in (*_on_consoles(dossier, rules), *_on_link(dossier, rules)):
        if len(hits) < MAX_HITS:
            hits.setdefault(place, text)
    return hits


def recorded(dossier: Dossier) -> dict[HitPlace, str]:
    """Every hit that the timeline tells; the record of the incident where the timeline is lost."""
    hits: dict[HitPlace, str] = {}
    rows = [row for row in dossier.rows if row.get("event") == "trigger"]
    lines = _Lines(dossier)
    for where, side, at, rule, detail in _noted_rows(rows) if rows else _noted_triggers(dossier):
        if len(hits) >= MAX_HITS:
            break
        if where == "console":
            place, text = lines.place(side, at, rule)
            hits.setdefault(place, text)
        elif where == "link":
            hits.setdefault(HitPlace("link", side, at, escape(rule)), _short(detail))
    return hits


_Noted = tuple[object, Side, int, str, object]
"""(console or link, side, offset, rule, detail) of a hit that the run noted."""


def _noted_rows(rows: Sequence[Row]) -> Iterator[_Noted]:
    for row in rows:
        at, rule, side = row.get("offset_bytes"), row.get("rule"), row.get("side")
        is_own = str(rule).startswith("freezeframe-")  # a drill's; no rule file has it
        if type(at) is int and isinstance(rule, str) and side in SIDES and not is_own:
            yield row.get("where"), side, at, rule, row.get("detail")


def _noted_triggers(dossier: Dossier) -> Iterator[_Noted]:
    for one in dossier.triggers:
        if one.offset_bytes is not None and one.side in SIDES:
            side: Side = "primary" if one.side == "primary" else "secondary"
            yield one.source, side, one.offset_bytes, one.rule, one.detail


class _Lines:
    """From an offset on a console to its line."""

    def __init__(self, dossier: Dossier) -> None:
        self._lines = dossier.consoles
        self._starts = {side: [line.offset_bytes for line in self._lines[side]] for side in SIDES}

    def place(self, side: Side, end_offset: int, rule: str) -> tuple[HitPlace, str]:
        at = bisect_right(self._starts[side], max(end_offset - 1, 0)) - 1
        if at < 0:
            return HitPlace("console", side, 0, escape(rule)), ""
        line = self._lines[side][at]
        return HitPlace("console", side, line.offset_bytes, escape(rule)), _short(escape(line.data))


def _short(text: object) -> str:
    return escape(str(text or "")[:MAX_SHOWN_CHARS])


def _on_consoles(dossier: Dossier, rules: RuleSet) -> Iterator[tuple[HitPlace, str]]:
    if not rules.console:
        return
    scanner, lines = Scanner(rules.console, {side: side for side in SIDES}), _Lines(dossier)
    reads = sorted(
        ((t_ns, side, data) for side in SIDES for t_ns, data in dossier.reads(side)),
        key=lambda read: read[0],
    )
    for t_ns, side, data in reads:
        hits = list(_silences(scanner, t_ns))
        hits += [(side, hit) for hit in scanner.feed(side, data, t_ns)]
        for one, hit in hits:
            yield lines.place(one, hit.end_offset_bytes, rules.console[hit.rule].name)


def _silences(scanner: Scanner, until_ns: Ns) -> Iterator[tuple[Side, Hit]]:
    """What the passing of time until the next read makes certain."""
    for _ in range(MAX_HITS):
        due_ns = scanner.next_deadline()
        if due_ns is None or due_ns > until_ns:
            return
        for side in SIDES:
            for hit in scanner.tick(side, due_ns):
                yield side, hit


def _on_link(dossier: Dossier, rules: RuleSet) -> Iterator[tuple[HitPlace, str]]:
    if not rules.link:
        return
    view, t_ns, count = LinkView(link_ends(dossier.record), rules.link), 0, 0
    view.expect_stamps(dossier.sole_writer)
    for run in dossier.runs():
        for at_ns, frame, frame_no in view.frames(run.data, count + 1, dossier.wall_offset_ns):
            due_ns = view.next_deadline()
            if due_ns is not None and due_ns <= at_ns:
                yield from _placed(view.tick(due_ns))
            yield from _placed(view.feed(at_ns, frame, frame_no, at_ns))
        t_ns, count = run.t_last_ns - dossier.wall_offset_ns, count + run.frames
        yield from _placed(view.tick(t_ns))
    yield from _placed(view.close(t_ns))


def _placed(triggers: Iterable[Trigger]) -> Iterator[tuple[HitPlace, str]]:
    for one in triggers:
        yield HitPlace("link", one.side, one.offset_bytes, one.rule), _short(one.detail)


def totals(results: Sequence[RuleComparison]) -> dict[str, tuple[int, int]]:
    """Rule -> (new hits, lost hits), of all incidents together."""
    counts: dict[str, tuple[int, int]] = {}
    for result in results:
        for change, hits in ((1, result.new), (-1, result.lost)):
            for place, _ in hits:
                new, lost = counts.get(place.rule, (0, 0))
                counts[place.rule] = (new + 1, lost) if change > 0 else (new, lost + 1)
    return dict(sorted(counts.items()))
