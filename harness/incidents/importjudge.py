"""What the rules find in evidence that was imported, and what that evidence cannot show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from freezeframe.harness.core.console.logtimes import LogTimes
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.console.triggers import Hit, Scanner
from freezeframe.harness.core.events import NS_PER_MS, SIDES, Ns, Side, Trigger
from freezeframe.harness.core.link.blindness import HARMLESS, BlindKind, Demand, Sight, unproved
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.tcpstream import ClockSign
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.incidents.store import StoredIncident, link_runs

MAX_HITS: Final = 100
"""Listed of one rule and side; more are counted."""
MAX_ALL_HITS: Final = 100_000
CLOCK_STEP_NS: Final = 250 * NS_PER_MS
"""More than any disorder of frames; the times of two frames that are so far apart are looked at."""
EXCERPT_BYTES: Final = 256
USUAL_ALGORITHM: Final = "crc32c"
PROOF_DIGESTS: Final = 16
"""So many digests that fit are no chance."""
_ONE_BIT: Final = re.compile(r"; bit \d of byte \d+")
_DIGEST_LINE: Final = re.compile(rb"Digest integrity check FAILED: (\d{1,18})s ")


@dataclass(frozen=True, kw_only=True)
class ImportHit:
    """One thing that a rule found."""

    rule: str
    source: str
    side: str
    place: int
    """Link: number of the frame in the incident's capture, 0 for something that is missing.
    Console: offset behind the match."""
    tap: tuple[str, int] | None
    """With several captures: the file that the frame is from, and its number there."""
    t_ns: Ns
    """CLOCK_REALTIME, as far as the evidence tells."""
    text: str
    sector: int | None

    @classmethod
    def of(cls, one: Trigger, tap: tuple[str, int] | None) -> ImportHit:
        return cls(
            rule=one.rule,
            source=one.source,
            side=one.side,
            place=one.offset_bytes,
            tap=tap,
            t_ns=one.t_match_ns,
            text=one.words,
            sector=one.sector if one.sector >= 0 else None,
        )

    def as_json(self) -> dict[str, object]:
        fields: dict[str, object] = {"rule": self.rule, "source": self.source, "side": self.side}
        fields["packet" if self.source == "link" else "offset"] = self.place
        if self.tap is not None:
            fields |= {"tap": self.tap[0], "tap_packet": self.tap[1]}
        return fields | {"t_ns": self.t_ns, "sector": self.sector, "text": self.text}


def bounded(hits: Sequence[Trigger]) -> list[Trigger]:
    """At most MAX_HITS of each rule and side."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for one in hits:
        seen[one.rule, one.side] += 1
        if seen[one.rule, one.side] <= MAX_HITS:
            kept.append(one)
    return kept


# --- the link -----------------------------------------------------------------------------------------------
def link_hits(
    stored: StoredIncident, ends: LinkEnds, rules: Sequence[LinkRule]
) -> tuple[LinkView, list[Trigger]]:
    """(what was understood, what the rules found) of the incident's capture."""
    return hits_of(link_runs(stored.path), ends, rules)


def hits_of(
    runs: Iterable[Run], ends: LinkEnds, rules: Sequence[LinkRule]
) -> tuple[LinkView, list[Trigger]]:
    """The same of runs of frames."""
    tells = ends.speak().tells
    shown = [rule for rule in rules if EVENTS[rule.event].needs in tells]
    view, hits = LinkView(ends, shown), list[Trigger]()
    t_ns, last_ns, count = 0, 0, 0
    for run in runs:
        for at_ns, frame, number in view.frames(run.data, count + 1, 0):
            far = last_ns and abs(at_ns - last_ns) > CLOCK_STEP_NS
            sign = view.reassembler.clock_of(at_ns, frame) if far else ClockSign.RUNS
            if at_ns < last_ns and far:
                sign = ClockSign.SET
            if sign is ClockSign.SET:
                view.clock_set(at_ns)
            elif sign is ClockSign.FIRST:  # a pause or a clock that was set
                view.frames_lost(at_ns)
            if sign is not ClockSign.NONE:
                last_ns = at_ns
            due_ns = view.next_deadline()
            if due_ns is not None and due_ns <= at_ns:
                hits += view.tick(due_ns)
            hits += view.feed(at_ns, frame, number, at_ns)
        t_ns, count = run.t_last_ns, count + run.frames
        hits += view.tick(t_ns)
        del hits[MAX_ALL_HITS:]
    return view, hits + view.close(t_ns)


def with_algorithm(
    stored: StoredIncident, ends: LinkEnds, rules: Sequence[LinkRule]
) -> tuple[tuple[LinkView, list[Trigger]], str] | None:
    """The same with the digest that is usual, where the capture does not show which was agreed on.
    None: it is not proved to be that one.

    Proof is digests that fit, and of those that do not, that they differ as by one flipped bit: a
    digest of another algorithm does so by chance in 1 of 8,000 writes of 64 KiB.
    """
    view, hits = link_hits(stored, replace(ends, integrity_alg=USUAL_ALGORITHM), rules)
    digest_rules = {rule.name for rule in rules if rule.event == "digest-mismatch"}
    wrong = [one for one in hits if one.source == "link" and one.rule in digest_rules]
    checked = view.ledger.totals.digests_checked
    one_bit = [one for one in wrong if _ONE_BIT.search(one.detail)]
    is_proved = len(one_bit) == len(wrong) or checked - len(wrong) >= PROOF_DIGESTS
    return ((view, hits), USUAL_ALGORITHM) if checked and is_proved else None


def blindness(view: LinkView, ends: LinkEnds, frames: int) -> list[str]:
    """What this capture of so many frames did not show of the link, a sentence each."""
    tells = ends.speak().tells
    if not tells:
        return ["the link is recorded and not understood: no protocol was named for it"]
    totals = view.ledger.totals
    sight = Sight(
        writes=totals.writes, answers=totals.acks, digests_checked=totals.digests_checked,
        gaps=view.reassembler.gaps, blind={one.kind: one.says for one in view.blindness(frames)},
    )  # fmt: skip
    demand = Demand(protocol=ends.protocol, tells=tells, ports=tuple(ends.ports))
    lacks = unproved(demand, sight, wrote=None)
    if sight.blind.keys() - HARMLESS:
        lacks.pop(BlindKind.NO_WRITE, None)  # the other sentences say why
    says = list(lacks.values())
    if view.clock_steps:
        says.append(
            f"the clock that times the frames was set {view.clock_steps} times: how long an answer took is not known then"
        )
    if view.ledger.doubts:
        says.append(
            f"{len(view.ledger.doubts)} answers fit no captured write that waits for one, and nothing captured later "
            "shows that no write was missed"
        )
    return says


def strangers(view: LinkView, frames: int) -> list[str]:
    """Who else speaks on the port, a sentence each."""
    return [one.says for one in view.blindness(frames) if one.kind in HARMLESS]


# --- the consoles -------------------------------------------------------------------------------------------
def placed(
    side: Side, log: bytes, times: LogTimes, hits: Sequence[Trigger], begin_ns: Ns
) -> tuple[tuple[tuple[Ns, int], ...], str]:
    """(time and offset of the console's reads, what is to be said of them).

    A log that has only the device's uptime is put where it names a sector whose digest was wrong on
    the link; else at the begin of the evidence.
    """
    if times.scale == "wall":
        return times.starts, ""
    if times.scale == "none":
        return (
            (begin_ns, 0),
        ), f"the {side}'s console has no times: its lines are not ordered in time"
    wrong = {one.sector: one.t_match_ns for one in hits if one.source == "link" and one.sector >= 0}
    for match in _DIGEST_LINE.finditer(log):
        t_ns = wrong.get(int(match[1]))
        if t_ns is not None:
            return times.moved(t_ns - times.time_at(match.start())), (
                f"the {side}'s console has only its uptime; it was put on the capture's clock by the line about sector "
                f"{int(match[1])}"
            )
    first_ns = times.starts[0][0] if times.starts else 0
    return times.moved(begin_ns - first_ns), (
        f"the {side}'s console has only its uptime, and no line of it is on the link too: its first line was put at the "
        "begin of the evidence, so that its order against the link is not known"
    )


def console_hits(
    reads: Mapping[Side, Sequence[tuple[Ns, bytes]]], rules: Sequence[ConsoleRule]
) -> list[Trigger]:
    """What the console rules find in both logs, in the order of their times."""
    if not rules or not reads:
        return []
    scanner = Scanner(rules, {side: side for side in SIDES})
    tails: dict[Side, bytes] = dict.fromkeys(SIDES, b"")
    offsets: dict[Side, int] = dict.fromkeys(SIDES, 0)
    found: list[Trigger] = []
    ordered = sorted(
        chain.from_iterable(
            ((t_ns, number, side, data) for number, (t_ns, data) in enumerate(reads.get(side, ())))
            for side in SIDES
        ),
        key=lambda one: one[0],
    )
    for t_ns, _, side, data in ordered:
        hits = [*_silences(scanner, t_ns), *((side, hit) for hit in scanner.feed(side, data, t_ns))]
        offsets[side] += len(data)
        tails[side] = (tails[side] + data)[-(EXCERPT_BYTES + len(data)) :]
        for one, hit in hits:
            end = len(tails[one]) - (offsets[one] - hit.end_offset_bytes)
            excerpt = tails[one][max(0, end - EXCERPT_BYTES) : max(0, end)]
            found.append(_trigger(one, hit, rules[hit.rule], t_ns, excerpt))
        if len(found) > MAX_ALL_HITS:
            break
        tails[side] = tails[side][-EXCERPT_BYTES:]
    return found


def _trigger(side: Side, hit: Hit, rule: ConsoleRule, t_ns: Ns, excerpt: bytes) -> Trigger:
    return Trigger(
        t_ns=t_ns,
        rule=rule.name,
        source="console",
        side=side,
        offset_bytes=hit.end_offset_bytes,
        t_arrival_ns=t_ns,
        t_match_ns=t_ns,
        excerpt=excerpt,
    )


def _silences(scanner: Scanner, until_ns: Ns) -> Iterator[tuple[Side, Hit]]:
    """What the passing of time until the next line makes certain."""
    for _ in range(MAX_HITS):
        due_ns = scanner.next_deadline()
        if due_ns is None or due_ns > until_ns:
            return
        for side in SIDES:
            for hit in scanner.tick(side, due_ns):
                yield side, hit
