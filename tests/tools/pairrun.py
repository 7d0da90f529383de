"""Two faults in one incident, in virtual time: does the verdict name the first, and is it never certain
of the wrong one?

    python tests/tools/pairrun.py --runs 2000 [--processes 2]

The second strikes one to a few writes after the first, so that it often triggers while the first is
still latent: the warmstart that follows, and its resync, may heal it. What counts is what had happened
when the pair was frozen; an answer that is late or lost has not happened before it is overdue.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shards import shared
from truths import TRUTHS, Truth, judged
from virtualbench import VirtualBench, VirtualHost, evidence

from freezeframe.firmware_sim.controller import Controller
from freezeframe.firmware_sim.faults import Faults
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.blocks.blockstamp import Write
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.verdict.record import AlsoFound, Verdict
from freezeframe.harness.core.verdict.resyncfindings import REPAIRED
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.wire.faults import FAULTS, FaultKind

SIZE_BYTES: Final = 2 << 20
FILL_SECTORS: Final = 64
WRITES: Final = 70
STRIKES_BY: Final = 40
GAPS: Final = (1, 1, 1, 2, 2, 3, 5, 9)
SIZES: Final = (1, 1, 2, 2, 8, 8, 24, 64)
KINDS: Final = (
    FaultKind.BIT_FLIP_SENDER, FaultKind.BIT_FLIP_RECEIVER, FaultKind.BIT_FLIP_STORE, FaultKind.NEG_ACK,
    FaultKind.LOST_ACK, FaultKind.LATE_ACK, FaultKind.REPEATED_ACK, FaultKind.WRONG_BARRIER_COUNT,
    FaultKind.LOST_WRITE, FaultKind.MISDIRECTED_WRITE, FaultKind.STALL, FaultKind.MISPLACED_COPY,
    FaultKind.STALE_COPY,
)  # fmt: skip
OVERDUE_NS: Final = NS_PER_S
"""An answer that is missing for less is no error yet."""
LATENT: Final = frozenset({FaultKind.LATE_ACK, FaultKind.LOST_ACK, FaultKind.STALL})
ON_THE_WAY: Final = frozenset(
    {FaultKind.BIT_FLIP_SENDER, FaultKind.MISPLACED_COPY, FaultKind.STALE_COPY}
)
"""A copy that the link took with it when it broke did no harm."""
DELAYED: Final = frozenset({FaultKind.LATE_ACK, FaultKind.STALL})
MAY_BE_LATER: Final = "It may not be the first"


@dataclass
class Fired:
    """One fault that struck."""

    kind: FaultKind
    write_no: int
    t_ns: int
    bit: int | None = None

    @property
    def t_shows_ns(self) -> int:
        return self.t_ns + (OVERDUE_NS if self.kind in LATENT else 0)


@dataclass(frozen=True)
class PairOutcome:
    """One pair of faults judged."""

    kinds: tuple[str, str]
    gap: int
    seed: int
    result: str
    """right | inconclusive | wrong"""
    is_certain: bool
    named: str
    """first | later | none"""
    fired: int
    """How many had happened when the pair was frozen."""
    detail: str


def _controllers(fired: list[Fired], now_ns: Callable[[], int]) -> dict[str, type[Controller]]:
    class NotingFaults(Faults):
        def _fire(self, fault: Any, write_no: int) -> None:
            super()._fire(fault, write_no)
            fired.append(Fired(fault.kind, write_no, now_ns()))

        def _flip(self, data: bytes) -> bytes:
            flipped = super()._flip(data)
            fired[-1].bit = changed_bit(data, flipped)
            return flipped

        def store(self, write_no: int, offset_bytes: int, data: bytes, backend: Any) -> None:
            super().store(write_no, offset_bytes, data, backend)
            for one in fired:
                if (
                    one.kind is FaultKind.BIT_FLIP_STORE
                    and one.write_no == write_no
                    and one.bit is None
                ):
                    one.bit = changed_bit(data, backend.read(offset_bytes, len(data)))

    class NotingController(Controller):
        faults_class = NotingFaults

    return {"primary": NotingController, "secondary": NotingController}


def changed_bit(before: bytes, after: bytes) -> int | None:
    """The number of the only bit that differs; None when it is not one."""
    changed = [(at, a ^ b) for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if len(changed) != 1 or changed[0][1].bit_count() != 1:
        return None
    return changed[0][0] * 8 + changed[0][1].bit_length() - 1


def pair_run(kinds: tuple[FaultKind, FaultKind], seed: int, rules: RuleSet) -> PairOutcome:
    """Two faults; the seed decides all else."""
    dice = random.Random(f"{kinds}/{seed}")
    strike, gap = dice.randint(5, STRIKES_BY), dice.choice(GAPS)
    fired: list[Fired] = []
    clock: list[VirtualBench] = []
    bench = VirtualBench(
        rules, seed, size_bytes=SIZE_BYTES, controllers=_controllers(fired, lambda: clock[0].now_ns)
    )
    clock.append(bench)
    host = VirtualHost(bench, seed, depth=dice.choice((1, 2, 8, 16)))
    bench.arm()
    fill = SIZE_BYTES // 512 // FILL_SECTORS
    for number in range(fill):
        host.write(number * FILL_SECTORS, FILL_SECTORS)
    host.drain()
    bench.run_for(0.3)
    entries: list[dict[str, Any]] = [
        {"kind": str(kind), "at_write": at}
        for kind, at in zip(kinds, (strike, strike + gap), strict=True)
    ]
    for entry in entries:
        if entry["kind"] in DELAYED:
            entry["delay_ms"] = dice.randint(1300, 2800)
    for side in ("primary", "secondary"):
        plan = [one for one in entries if FAULTS[FaultKind(one["kind"])].side == side]
        bench.controller(side).faults.arm({"seed": dice.randrange(1 << 32), "faults": plan})
    _write(host, {fill + strike - 1, fill + strike + gap - 1}, dice)
    host.drain()
    bench.run_for(0.3)
    host.drain()
    frozen_ns = bench.actions[0]["t_frame_ns"] if bench.actions else bench.now_ns
    e = evidence(bench.parts(bytes(host.journal)))
    verdict = judge(e)
    assert e.link is not None
    arrived = {int.from_bytes(one.row.write_id, "big") for one in e.link.writes}
    happened = sorted(
        (
            one
            for one in fired
            if one.t_shows_ns <= frozen_ns
            and (one.kind not in ON_THE_WAY or one.write_no in arrived)
        ),
        key=lambda one: one.t_shows_ns,
    )
    result, named, detail = judge_pair(happened, verdict, host.writes)
    return PairOutcome(
        (str(kinds[0]), str(kinds[1])), gap, seed, result, verdict.confidence == "certain", named, len(happened),
        "" if result == "right" else f"{detail}: {verdict.text}",
    )  # fmt: skip


def _write(host: VirtualHost, struck: set[int], dice: random.Random) -> None:
    """Writes into the lower half, over older ones too, but never over one that is struck: that would
    heal it."""
    taken: list[range] = []
    for _ in range(WRITES):
        sectors = dice.choice(SIZES)
        while True:
            lba = dice.randrange(SIZE_BYTES // 1024 - sectors)
            if not any(lba < one.stop and one.start < lba + sectors for one in taken):
                break
        if host.write(lba, sectors).write_id in struck:
            taken.append(range(lba, lba + sectors))


def judge_pair(
    happened: list[Fired], verdict: Verdict, writes: list[Write]
) -> tuple[str, str, str]:
    """(right | inconclusive | wrong, which was named, why)."""
    if not happened:
        return "inconclusive", "none", "nothing had happened"
    if not verdict.conclusive:
        return "inconclusive", "none", "not conclusive"
    said = [
        judged(str(one.kind), Truth(one.write_no, one.bit), verdict, writes) for one in happened
    ]
    if said[0][0] == "right":
        return "right", "first", ""
    if not any(result == "right" for result, _ in said):
        return "wrong", "none", "; ".join(why for _, why in said)
    if any(_names(one, happened[0], writes) for one in verdict.also):
        return "right", "later", ""
    if MAY_BE_LATER in verdict.text and verdict.confidence != "certain":
        return "inconclusive", "later", "it says that it may not be the first"
    return "wrong", "later", f"the first, {happened[0].kind}, is not named"


def _names(also: AlsoFound, first: Fired, writes: list[Write]) -> bool:
    """Whether what else was found is the first fault, or what a resync repaired of it."""
    stage, kind, _ = TRUTHS[str(first.kind)]
    is_it = (also.stage, also.kind) == (stage, kind) or also.kind == REPAIRED
    if first.kind is FaultKind.WRONG_BARRIER_COUNT:
        return is_it
    write = writes[first.write_no - 1]
    return is_it and (
        also.write_id == write.write_id or also.lba in range(write.lba, write.lba + write.sectors)
    )


def numbered_run(number: int) -> PairOutcome:
    """All ordered pairs of kinds in turn."""
    first, second = divmod(number % len(KINDS) ** 2, len(KINDS))
    return pair_run((KINDS[first], KINDS[second]), 1 + number // len(KINDS) ** 2, _rules())


_kept: dict[str, RuleSet] = {}


def _rules() -> RuleSet:
    if not _kept:
        _kept["sim"] = load_bench("sim").rules()
    return _kept["sim"]


@dataclass
class Tally:
    runs: int = 0
    results: Counter[str] = field(default_factory=Counter)
    certain: Counter[str] = field(default_factory=Counter)

    def add(self, one: PairOutcome) -> None:
        self.runs += 1
        self.results[one.result] += 1
        self.certain[one.result] += one.is_certain


def table(outcomes: list[PairOutcome]) -> list[str]:
    lines = [
        "| first fault | runs | right | inconclusive | wrong | certain | certain and wrong |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in (*map(str, KINDS), ""):
        tally = Tally()
        for one in outcomes:
            if kind in ("", one.kinds[0]):
                tally.add(one)
        counts = [tally.results[name] for name in ("right", "inconclusive", "wrong")]
        counts += [sum(tally.certain.values()), tally.certain["wrong"]]
        lines.append(
            f"| {kind or '**all**'} | {tally.runs} | " + " | ".join(map(str, counts)) + " |"
        )
    return [*lines, ""]


def is_good(outcomes: list[PairOutcome]) -> bool:
    """Wrong 0, certain never wrong, right at least 90 %."""
    results = Counter(one.result for one in outcomes)
    return not results["wrong"] and results["right"] >= 0.9 * len(outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Two faults in one incident: is the first one named?"
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.runs)
    outcomes = shared(numbered_run, numbers, given.processes)
    for one in outcomes:
        if one.result != "right":
            print(one.kinds, "gap", one.gap, "seed", one.seed, one.result, one.named, one.detail)
    print("\n".join(table(outcomes)))
    return 0 if is_good(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
