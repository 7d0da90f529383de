"""``make mutations``: captures of healthy and of faulty pairs, changed as the places where people capture
change them, through the judgement of the watch and of ``import``.

    python tests/tools/mutations.py --runs 10000 [--seed 0] [--show]

A healthy capture, however it is changed, must give no hit of a rule that would instruct anybody; and
whatever of it can no longer be seen must be named. A faulty one must give its hit, or a word on what was
not seen; under what loses nothing (tags, tunnels that are looked through, reordering, duplicates) the hit.

Not made, because no capture can show it: a loss after which nothing more of that direction is captured for a
second; a clock that is set forth by more than 0.25 s where TCP carries no timestamps.
"""

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from link_mutations import KINDS, Base, Frame, Mutation, bases

from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.blindness import Demand, unproved
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.sighting import Sighting
from freezeframe.harness.core.link.skim import Run, encode
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.incidents import importjudge
from freezeframe.harness.runs.linksight import sight_now

CHUNK_FRAMES: Final = 64
"""Frames in one run, as the watch gets them."""
DEADLINES_MS: Final = {"late-ack": 1500, "missing-ack": 4000}
"""Those of rules/drbd_link.toml."""
RULES: Final = [
    LinkRule(name=one, event=one, deadline_ms=DEADLINES_MS.get(one, 0)) for one in EVENTS
]
HIT_SHARE: Final = 0.95


@dataclass
class Judged:
    """What watch and import made of one."""

    hits: list[Trigger]
    says: list[str]
    counts: tuple[int, int, int]
    by: str


# --- the two ways to judge --------------------------------------------------------------------------------
def ends_of(base: Base, named: tuple[str, str] | None) -> LinkEnds:
    primary, secondary = named if named is not None else (base.primary, base.secondary)
    return LinkEnds(
        protocol=base.protocol, ports=frozenset({base.port}), primary_address=primary, secondary_address=secondary,
    )  # fmt: skip


def _run(frames: Sequence[Frame]) -> Run:
    size = sum(len(one.data) for one in frames)
    return Run(encode(frames), len(frames), size, frames[0].t_ns, frames[-1].t_ns)


def runs_of(frames: Sequence[Frame]) -> list[Run]:
    return [_run(frames[at : at + CHUNK_FRAMES]) for at in range(0, len(frames), CHUNK_FRAMES)]


def watched(base: Base, mutation: Mutation) -> Judged:
    """As the link watch judges: ticks at its deadlines while frames come, and no end."""
    ends = ends_of(base, mutation.ends)
    shown = [rule for rule in RULES if EVENTS[rule.event].needs in ends.speak().tells]
    view, hits, number, now_ns, is_told = LinkView(ends, shown), list[Trigger](), 0, 0, False
    for run in runs_of(mutation.frames):
        for t_ns, frame, packet_no in view.frames(run.data, number + 1, 0):
            if mutation.step_no and packet_no >= mutation.step_no and not is_told:
                view.frames_lost(
                    t_ns
                )  # as the source of frames does, which sees that the clock was set
                is_told, now_ns = True, t_ns
            now_ns = max(now_ns, t_ns)
            hits += view.tick(now_ns)
            hits += view.feed(t_ns, frame, packet_no, now_ns)
        number += run.frames
        now_ns = max(now_ns, run.t_last_ns)
        hits += view.tick(now_ns)
    for _ in range(100):  # and time goes on
        now_ns += 50 * NS_PER_MS
        hits += view.tick(now_ns)
    stats = view.stats(t_ns=now_ns, packets=number, bytes_captured=0, kernel_drops=0)
    protocol = ends.speak()
    demand = Demand(protocol=protocol.name, tells=protocol.tells, ports=(base.port,))
    lacks = unproved(demand, sight_now(stats), wrote=None)
    says = [*lacks.values(), *stats.blind.values()]
    if is_told:
        says.append("the clock was set")
    if view.ledger.doubts:
        says.append("answers wait for a later write")
    return Judged(hits, says, (stats.writes, stats.acks, stats.digests_checked), "watch")


def imported(base: Base, mutation: Mutation) -> Judged:
    """As ``import`` judges."""
    ends = ends_of(base, mutation.ends)
    sighting = Sighting(frozenset({base.port}))
    for one in mutation.frames:
        sighting.add(one.data, one.length)
    view, hits = importjudge.hits_of(runs_of(mutation.frames), ends, RULES)
    says = [*sighting.sentences(), *importjudge.blindness(view, ends, sighting.frames)]
    says += [one.says for one in view.blindness(sighting.frames)]
    totals = view.ledger.totals
    return Judged(hits, says, (totals.writes, totals.acks, totals.digests_checked), "import")


# --- one run ----------------------------------------------------------------------------------------------
@dataclass
class Outcome:
    """What a change of a capture came to."""

    number: int
    base: str
    kind: str
    wrong: list[str] = field(default_factory=list)
    is_faulty: bool = False
    is_hit: bool = False
    keeps_all: bool = False


@cache
def _unchanged(number: int, begins_at: int = 0) -> tuple[int, int, int]:
    base = bases()[number]
    return imported(base, Mutation("", list(base.frames[begins_at:]))).counts


def play(number: int, seed: int) -> Outcome:
    """Run ``number`` of the campaign with that seed."""
    rnd = random.Random(f"{seed}:{number}")
    chosen = number % len(bases())
    base = bases()[chosen]
    mutation = KINDS[number // len(bases()) % len(KINDS)](rnd, base)
    outcome = Outcome(
        number, base.name, mutation.kind, is_faulty=bool(base.fault), keeps_all=mutation.keeps_all
    )
    if not mutation.frames:
        return outcome
    hit_by = 0
    for judged in (watched(base, mutation), imported(base, mutation)):
        outcome.wrong += _problems(base, mutation, judged, _unchanged(chosen, mutation.begins_at))
        hit_by += bool({one.rule for one in judged.hits} & base.fault)
    outcome.is_hit = hit_by == 2
    return outcome


def _problems(
    base: Base, mutation: Mutation, judged: Judged, whole: tuple[int, int, int]
) -> list[str]:
    hits = {one.rule for one in judged.hits}
    found = []
    if base.fault:
        if not mutation.without_fault and not hits & base.fault and not judged.says:
            found.append(f"neither the fault nor what hides it is said; hits {sorted(hits)}")
    elif hits:
        first = judged.hits[0]
        found.append(f"a healthy pair is hit: {first.rule}, {first.detail}")
    counts = judged.counts
    if base.protocol != "drbd" and mutation.kind == "reordered":
        counts = (
            counts[0],
            whole[1],
            counts[2],
        )  # an answer before its question is known, not counted
    is_less = any(one < all_ for one, all_ in zip(counts, whole, strict=True))
    may_be_less = mutation.kind == "late start" and counts[0]
    seen = f"{judged.counts} of {whole} writes, answers, digests"
    if not base.fault and is_less and not judged.says and not may_be_less:
        found.append(f"{seen} were seen, and nothing is said")
    is_said = mutation.kind == "reordered" and judged.says  # a greeting out of order
    if not base.fault and mutation.keeps_all and counts != whole and not is_said:
        found.append(f"{seen}, though nothing was lost")
    said = "; ".join(judged.says)
    needs_word = mutation.must_say and not (mutation.kind == "cut frames" and judged.by == "watch")
    if needs_word and not any(word in said for word in mutation.must_say):
        found.append(f"no word of {' or '.join(mutation.must_say)}: {said or 'nothing'}")
    return [f"{judged.by}: {one}" for one in found]


def _play(both: tuple[int, int]) -> Outcome:
    return play(*both)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--show", action="store_true", help="every problem, not the first of each kind"
    )
    parser.add_argument("--only", type=int, help="one run, by its number")
    asked = parser.parse_args()
    byname.find = cache(byname.find)  # which looks through all packages, each time
    began = time.monotonic()
    numbers = range(asked.runs) if asked.only is None else [asked.only]
    with multiprocessing.Pool(min(2, len(numbers))) as pool:
        outcomes = pool.map(_play, [(one, asked.seed) for one in numbers], chunksize=16)
    wrong = [one for one in outcomes if one.wrong]
    shown: Counter[tuple[str, str]] = Counter()
    for one in wrong:
        shown[one.kind, one.base] += 1
        if asked.show or shown[one.kind, one.base] == 1:
            print(f"run {one.number} ({one.kind} of {one.base}): {'; '.join(one.wrong)}")
    print(f"{len(outcomes)} runs in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    status = 1 if wrong else 0
    for name in sorted({one.kind for one in outcomes}):
        of_kind = [one for one in outcomes if one.kind == name]
        faulty = [one for one in of_kind if one.is_faulty]
        share = sum(one.is_hit for one in faulty) / len(faulty) if faulty else 1.0
        bad = sum(bool(one.wrong) for one in of_kind)
        print(
            f"{name:20} {len(of_kind):6} runs {bad:5} wrong; the fault hit in {share:.1%} of {len(faulty)}"
        )
        if faulty and of_kind[0].keeps_all and share < HIT_SHARE:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
