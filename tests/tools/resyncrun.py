"""Reconnects in virtual time, healthy and with something left out: what the audit of the resync says
of each.

    python tests/tools/resyncrun.py --runs 500

Half of the runs have a fault that leaves something out of the resync: each must be found. The other
half are healthy reconnects of the same kinds, with and without bitmaps that are stale on one side:
none must be hit. The truth is what the simulated firmware really did; the audit sees the capture and
the host's journal.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shards import shared
from virtualbench import VirtualBench, VirtualHost, evidence

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import Trigger
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.wire.faults import FAULTS, FaultKind

SIZE_BYTES: Final = 2 << 20
OMISSIONS: Final = (
    FaultKind.RESYNC_BITS_DROPPED, FaultKind.RESYNC_DENIED, FaultKind.RESYNC_EMPTY,
)  # fmt: skip
STALE: Final = ("none", "primary", "secondary")
OMITTED: Final = "omitted"
"""The kind of the verdict's finding."""
RULE: Final = "link-resync-omitted"


class WatchedBench(VirtualBench):
    """A bench that nobody freezes: link hits are collected."""

    hits: list[Trigger]

    def _hit(self, triggers: list[Trigger]) -> None:
        if "hits" in self.__dict__:
            self.hits += triggers


@dataclass(frozen=True)
class Rejoined:
    """One reconnect judged."""

    outage: str
    fault: str
    stale: str
    seed: int
    has_fired: bool
    is_live: bool
    """The link watch itself hit."""
    is_found: bool
    """The verdict says that the resync left something out."""
    is_different: bool
    """The two sides really differ at the end."""
    verdict: Verdict


def _drop(bench: VirtualBench, host: VirtualHost, dice: random.Random) -> None:
    """The connections break, with writes in flight; the host goes on."""
    bench.drop_connections()
    _write(host, dice, dice.randrange(12))


def _cut(bench: VirtualBench, host: VirtualHost, dice: random.Random) -> None:
    """The cable is out until the primary gives up."""
    bench.cut_link()
    _write(host, dice, 6)
    bench.run_for(13)
    bench.heal_link()
    _write(host, dice, dice.randrange(6))


def _power(bench: VirtualBench, host: VirtualHost, dice: random.Random) -> None:
    """The secondary loses its power and comes back."""
    bench.power_off("secondary")
    _write(host, dice, dice.randrange(1, 12))
    bench.power_on("secondary")


OUTAGES: Final[dict[str, Callable[[VirtualBench, VirtualHost, random.Random], None]]] = {
    "connections dropped": _drop,
    "link cut": _cut,
    "secondary without power": _power,
}


def _write(host: VirtualHost, dice: random.Random, count: int) -> None:
    for _ in range(count):
        sectors = dice.choice((1, 2, 8, 8, 24, 64))
        host.write(dice.randrange(SIZE_BYTES // 512 - sectors), sectors)


def rejoin_run(fault: str, stale: str, seed: int, rules: RuleSet) -> Rejoined:
    """One outage and what became of it; the seed decides all else."""
    dice = random.Random(f"{fault}/{stale}/{seed}")
    outage = list(OUTAGES)[seed // 3 % len(OUTAGES)]
    if fault == FaultKind.RESYNC_EMPTY and outage == "secondary without power":
        outage = "connections dropped"  # what was armed went with the power
    bench = WatchedBench(rules, seed, size_bytes=SIZE_BYTES)
    host = VirtualHost(bench, seed, depth=dice.choice((2, 8, 16)))
    bench.arm()
    bench.hits = []
    for number in range(SIZE_BYTES // 512 // 64):
        host.write(number * 64, 64)
    host.drain()
    bench.run_for(1.5)
    _write(host, dice, dice.randrange(20))
    if stale != "none":
        host.drain()
        blocks = bench.controller(stale).store.metadata.bitmap.blocks
        for _ in range(dice.randrange(1, 5)):
            bench.controller(stale).store.metadata.bitmap.set_blocks(dice.randrange(blocks), 1)
    if fault:
        plan = {"seed": dice.randrange(1 << 32), "faults": [{"kind": fault}]}
        bench.controller(FAULTS[FaultKind(fault)].side).faults.arm(plan)
    OUTAGES[outage](bench, host, dice)
    bench.run_until(lambda: not bench.full_duplex, 5)
    bench.run_until(lambda: bench.full_duplex, 60)
    _write(host, dice, dice.randrange(4))
    host.drain()
    bench.run_for(1)
    parts = bench.parts(bytes(host.journal))
    verdict = judge(evidence(parts))
    fired = [
        one for side in ("primary", "secondary") for one in bench.controller(side).faults.armed()
    ]
    return Rejoined(
        outage, fault, stale, seed,
        has_fired=any(one["fired"] for one in fired),
        is_live=any(one.rule == RULE for one in bench.hits),
        is_found=OMITTED in [verdict.kind, *(one.kind for one in verdict.also)],
        is_different=bench.content("primary") != bench.content("secondary"),
        verdict=verdict,
    )  # fmt: skip


def omitted_run(number: int) -> Rejoined:
    """The ``number``-th run in which something was left out and the sides really differ in the end:
    seeds at which the fault had nothing to leave out are passed over."""
    rules = load_bench("sim").rules()
    for again in range(50):
        one = rejoin_run(OMISSIONS[number % 3], "none", number + again * 100_000, rules)
        if one.has_fired and one.is_different:
            return one
    raise AssertionError(f"run {number}: the fault never did anything")


def healthy_run(number: int) -> Rejoined:
    return rejoin_run("", STALE[number % 3], number, load_bench("sim").rules())


def wrong(one: Rejoined) -> str:
    """What is wrong with what was said of it; "": nothing."""
    where = f"{one.fault or 'healthy'}, {one.outage}, stale bitmap: {one.stale}, seed {one.seed}"
    if one.fault and not one.is_found:
        return f"{where}: not found: {one.verdict.text}"
    if not one.fault and (one.is_found or one.is_live):
        return f"{where}: a false hit: {one.verdict.text}"
    if not one.fault and one.is_different:
        return f"{where}: the two sides differ"
    return ""


def table(omitted: list[Rejoined], healthy: list[Rejoined]) -> list[str]:
    lines = [
        "| reconnect | runs | the sides differed | verdict: omitted | link watch: hit |",
        "|---|---:|---:|---:|---:|",
    ]
    groups = {
        **{f"fault {fault}": [one for one in omitted if one.fault == fault] for fault in OMISSIONS},
        **{
            f"healthy, stale bitmap: {stale}": [one for one in healthy if one.stale == stale]
            for stale in STALE
        },
    }
    for name, own in groups.items():
        counts = [
            sum(one.is_different for one in own),
            sum(one.is_found for one in own),
            sum(one.is_live for one in own),
        ]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(map(str, counts)) + " |")
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Is every omission of a resync found, and nothing else?"
    )
    parser.add_argument("--runs", type=int, default=500, help="of each half")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    omitted = shared(omitted_run, range(given.runs), given.processes)
    healthy = shared(healthy_run, range(given.runs), given.processes)
    print("\n".join(table(omitted, healthy)))
    failed = [said for said in map(wrong, (*omitted, *healthy)) if said]
    print("\n".join(failed[:20]))
    print(dict(Counter((one.outage, bool(one.fault)) for one in (*omitted, *healthy))))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
