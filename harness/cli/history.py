"""Implement ``stats``, ``remark`` and ``run --repeat``: the history of a bench."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer

from freezeframe.harness.bench.benchfile import Bench, Scenario, load_bench, load_scenario
from freezeframe.harness.cli.output import (
    EXIT_INCONCLUSIVE,
    EXIT_OF_OUTCOME,
    EXIT_PASS,
    complain,
    print_json,
    say,
    worst,
)
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.cli.runs import RunView
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents import repeats, store
from freezeframe.harness.incidents.benchhistory import (
    MAX_RUNS,
    BenchStats,
    Wanted,
    interval,
    percentiles,
    rate_in_words,
    rearm_times,
    stats_of,
)
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.index import Index, Indexed
from freezeframe.harness.incidents.remarks import add_remark
from freezeframe.harness.incidents.repeats import RepeatedRun
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.runs import campaign
from freezeframe.harness.runs.audit import NAME, state_directory

MAX_JOURNAL_BYTES: Final = 64 << 20
MAX_READ: Final = 20
"""Captures read for the times of answers: the newest, about half a second each."""
MAX_DAYS: Final = 31
"""Days printed by ``stats``, the newest; ``--json`` has all."""


def remark(what: str, words: str, out_dir: Path, *, as_json: bool) -> None:
    stored = store.find(what, out_dir)
    made = add_remark(stored, words)
    if as_json:
        print_json({"incident": str(stored.path.absolute()), **asdict(made)})
    else:
        say(f"remark on {escape(stored.id)}: {made.text}")


# --- stats ------------------------------------------------------------------------------------------------
def stats(out_dir: Path, wanted: Wanted, *, answers: bool = False, as_json: bool) -> None:
    """``answers``: read the captures of the newest MAX_READ incidents too."""
    with Index(out_dir) as index:
        found = wanted.select(index.incidents())
    answer_us, read = _answer_times(found, out_dir) if answers else ({}, 0)
    rules = {one.signature: one.rule or "-" for one in found}
    made = stats_of(found, _rearm_times(found))
    if as_json:
        more = {"answer_us": answer_us, "captures_read": read} if answers else {}
        print_json({**asdict(made), **more})
        return
    say(f"incidents  {made.incidents}" + (f", {made.first} to {made.last}" if found else ""))
    for outcome, count in sorted(made.outcomes.items(), key=lambda one: -one[1]):
        say(f"  {outcome:<14}{count}")
    if made.kinds:
        say("kinds")
        for kind, count in sorted(made.kinds.items(), key=lambda one: -one[1]):
            say(f"  {kind:<14}{count:<6}{rules[kind]}")
    if made.per_day:
        say("per day")
        for day in sorted(made.per_day)[-MAX_DAYS:]:
            say(f"  {escape(day):<14}{made.per_day[day]}")
    _say_times(made)
    if answers:
        said = _percents(answer_us, "us")
        say(f"from a replicated write's last byte to its answer, in {read} captures: {said}")


def _rearm_times(found: Sequence[Indexed]) -> list[float]:
    """From the audit journals, on this machine, of the benches of these incidents."""
    times: list[float] = []
    for bench in sorted({str(one.listed.get("bench") or "") for one in found} - {""}):
        path = state_directory() / NAME.format(bench=Path(bench).name)
        with contextlib.suppress(OSError), path.open("rb") as file:
            times += rearm_times(file.read(MAX_JOURNAL_BYTES).splitlines())
    return times


def _answer_times(found: Sequence[Indexed], out_dir: Path) -> tuple[dict[int, float], int]:
    """Percentiles in microseconds, and how many captures could be read."""
    values: list[float] = []
    read = 0
    for one in found[-MAX_READ:]:
        with contextlib.suppress(HarnessError):
            link = Dossier(StoredIncident.open(out_dir / one.name)).link
            times = [
                (write.t_ack_ns - write.t_sent_ns) / 1000
                for write in link.writes
                if write.t_ack_ns and write.t_ack_ns >= write.t_sent_ns
            ]
            values += times
            read += bool(times)
    return percentiles(values), read


def _percents(values: Mapping[int, float], unit: str) -> str:
    return (
        ", ".join(f"{percent} % {value:.1f} {unit}" for percent, value in values.items())
        or "not known"
    )


def _say_times(made: BenchStats) -> None:
    between = made.mean_days_between
    failures = "not known: fewer than two failures"
    if between is not None:
        failures = f"{between:.2f} days" if between >= 1 else f"{between * 24:.2f} hours"
    say(
        f"mean time between failures: {failures} (from begin to begin, the bench's idle time included)"
    )
    for name, values, unit in (
        ("reaction, from the trigger read to the first frame sent", made.reaction_us, "us"),
        ("from disarming a watched bench to arming it again", made.rearm_s, "s"),
    ):
        say(f"{name}: {_percents(values, unit)}")


def prove_fixed(kind: str, out_dir: Path, *, as_json: bool) -> None:
    """Exit 0 when enough clean runs have shown it, 4 when more are needed."""
    made = repeats.proofs(repeats.read(out_dir), kind)
    if as_json:
        print_json({"proofs": [{**asdict(one), "is_proved": one.is_proved} for one in made]})
    for one in () if as_json else made:
        say(
            f"{one.scenario} on {one.bench}: {escape(kind)} came in {rate_in_words(one.count, one.runs)} runs, and in "
            f"none of the {one.clean} since"
        )
        careful = (
            f"{one.needed_at_least_rate} if the rate was at the low end of the interval"
            if one.needed_at_least_rate < MAX_RUNS
            else "no number if the rate was at the low end of the interval"
        )
        needed = f"{one.needed} clean runs in a row show at 95 % that it is fixed ({careful})"
        if one.is_proved:
            say(f"  fixed: {needed}")
        else:
            say(f"  not shown yet: {needed}; {one.needed - one.clean} to go:")
            again = f"freezeframe run {one.scenario} --bench {one.bench} --repeat {one.needed - one.clean}"
            say(f"  {again}")
    raise typer.Exit(EXIT_PASS if all(one.is_proved for one in made) else EXIT_INCONCLUSIVE)


# --- run --repeat -----------------------------------------------------------------------------------------
def run_repeatedly(
    scenario: str, bench: str, count: int, *, seed: int, out_dir: Path, keep: bool, as_json: bool
) -> None:
    """Run it with the seeds from ``seed`` on; stops at the first trouble of the bench. Exits with the
    worst status."""
    plan, described = load_scenario(scenario), load_bench(bench)
    prepare(described)
    done: list[RepeatedRun] = []
    for number in range(count):
        view = RunView(quiet=as_json)
        try:
            result = campaign.run(
                described, plan, seed=seed + number, out_dir=out_dir, view=view, keep=keep
            )
        finally:
            view.close()
        one = _recorded(result, plan, described, seed + number, out_dir)
        done.append(one)
        if not as_json:
            what = f"{one.rule}, kind {one.kind}, {one.incident}" if one.incident else "no incident"
            say(f"run {number + 1} of {count}, seed {one.seed}: {one.outcome.upper()}; {what}")
            if result.error is not None:
                complain(result.error)
        if one.outcome not in repeats.JUDGED:
            break
    _say_rates(done, count, as_json=as_json)
    raise typer.Exit(worst(EXIT_OF_OUTCOME[one.outcome] for one in done))


def _recorded(
    result: campaign.Result, plan: Scenario, bench: Bench, seed: int, out_dir: Path
) -> RepeatedRun:
    """Write the line of one run."""
    name, kind, rule = "", "", ""
    if result.incident is not None:
        name = result.incident.name
        with Index(out_dir) as index:
            known = next((one for one in index.incidents() if one.name == name), None)
        if known is not None:
            kind, rule = known.signature, known.rule
    one = RepeatedRun(
        started=str(result.record.get("created") or datetime.now(UTC).isoformat()),
        scenario=plan.name,
        bench=bench.name,
        seed=seed,
        outcome=result.outcome,
        incident=name,
        kind=kind if rule else "",
        rule=rule,
    )
    repeats.append(out_dir, one)
    return one


def _say_rates(done: list[RepeatedRun], wanted: int, *, as_json: bool) -> None:
    judged = [one for one in done if one.outcome in repeats.JUDGED]
    outcomes = Counter(one.outcome for one in judged)
    kinds = Counter((one.kind, one.rule) for one in judged if one.kind)
    if as_json:
        rows = [
            {"kind": kind, "rule": rule, "count": count, "interval": interval(count, len(judged))}
            for (kind, rule), count in kinds.most_common()
        ]
        print_json(
            {
                "runs": len(judged), "wanted": wanted, "outcomes": outcomes, "kinds": rows,
                "each": [asdict(one) for one in done],
            }
        )  # fmt: skip
        return
    if len(judged) < wanted:
        say(f"stopped after {len(judged)} of {wanted} runs; only those count")
    for outcome, count in outcomes.most_common():
        say(f"{outcome}: {rate_in_words(count, len(judged))}")
    for (kind, rule), count in kinds.most_common():
        say(f"kind {kind}, {rule}: {rate_in_words(count, len(judged))}")
