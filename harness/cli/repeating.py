"""Implement ``run --repeat``: how often each outcome and kind comes."""

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import typer

from freezeframe.harness.bench.benchfile import Bench, Scenario, load_bench, load_scenario
from freezeframe.harness.cli.output import EXIT_OF_OUTCOME, complain, print_json, say, worst
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.cli.runs import RunView
from freezeframe.harness.incidents import repeats
from freezeframe.harness.incidents.benchhistory import interval, rate_in_words
from freezeframe.harness.incidents.index import Index
from freezeframe.harness.incidents.repeats import RepeatedRun
from freezeframe.harness.runs import campaign


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
