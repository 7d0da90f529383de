"""Implement ``stats`` and ``remark``: the history of a bench."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import typer

from freezeframe.harness.cli import complete
from freezeframe.harness.cli.output import (
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    print_json,
    say,
    say_command,
)
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.text import counted, escape
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents import repeats, store
from freezeframe.harness.incidents.benchhistory import (
    MAX_RUNS,
    BenchStats,
    Wanted,
    percentiles,
    rate_in_words,
    rearm_times,
    stats_of,
)
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.index import Index, Indexed
from freezeframe.harness.incidents.remarks import add_remark
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.report.text import duration
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
        said = _percents(answer_us, 1000)
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


def _percents(values: Mapping[int, float], unit_ns: int) -> str:
    return (
        ", ".join(
            f"{percent} % {duration(round(value * unit_ns))}" for percent, value in values.items()
        )
        or "not known"
    )


def _days_in_words(days: float) -> str:
    for unit, per_day in (("days", 1), ("hours", 24), ("minutes", 1440)):
        if days * per_day >= 1:
            return f"{days * per_day:.1f} {unit}"
    return f"{days * 86400:.1f} s"


def _say_times(made: BenchStats) -> None:
    between = made.mean_days_between
    failures = "not known: fewer than two failures"
    if between is not None:
        failures = _days_in_words(between)
    say(
        f"mean time between failures: {failures} (from begin to begin, the bench's idle time included)"
    )
    for name, values, unit_ns in (
        ("reaction, from the trigger read to the first frame sent", made.reaction_us, 1000),
        ("from a strike of a watch, or its disarming, to armed again", made.rearm_s, NS_PER_S),
    ):
        say(f"{name}: {_percents(values, unit_ns)}")


def prove_fixed(kind: str, out_dir: Path, *, as_json: bool) -> None:
    """Exit 0 when enough clean runs have shown it, 4 when more are needed."""
    made = repeats.proofs(repeats.read(out_dir), kind)
    if as_json:
        print_json({"proofs": [{**asdict(one), "is_proved": one.is_proved} for one in made]})
    for one in () if as_json else made:
        say(
            f"{one.scenario} on {one.bench}: {escape(kind)} came in {rate_in_words(one.count, one.runs)} runs; clean "
            f"since: {one.clean}"
        )
        careful = (
            f"{one.needed_at_least_rate} if the rate was at the low end of the interval"
            if one.needed_at_least_rate < MAX_RUNS
            else "no number if the rate was at the low end of the interval"
        )
        runs = counted(one.needed, "clean run")
        needed = f"at 95 %, {runs} in a row would show that it is fixed ({careful})"
        if one.is_proved:
            say(f"  fixed: {needed}")
        else:
            say(f"  not shown yet: {needed}; {one.needed - one.clean} to go:")
            more = f"--repeat {one.needed - one.clean} --seed {one.next_seed} --out {out_dir}"
            # Only what comes with FreezeFrame is found by its name; a scenario has its file's.
            scenario = one.scenario if complete.is_built_in("scenarios", one.scenario) else "FILE"
            named = one.bench if complete.is_built_in(".", one.bench) else "FILE"
            again = f"freezeframe run {scenario} --bench {named} {more}"
            say_command(f"  {escape(again)}")
    raise typer.Exit(EXIT_PASS if all(one.is_proved for one in made) else EXIT_INCONCLUSIVE)
