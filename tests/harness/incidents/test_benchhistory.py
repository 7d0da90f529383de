"""Filters, rates and their intervals, and what a number of clean runs proves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents import repeats
from freezeframe.harness.incidents.benchhistory import (
    MAX_RUNS,
    Wanted,
    clean_runs_needed,
    interval,
    percentiles,
    rearm_times,
    stats_of,
)
from freezeframe.harness.incidents.index import Indexed
from freezeframe.harness.incidents.repeats import RepeatedRun

NS_PER_HOUR = 3_600 * 10**9
DAY_S = 86_400
START_S = 1_767_225_600  # 2026-01-01


def incident(hour: int, **fields: Any) -> Indexed:
    day, rest = divmod(hour, 24)
    known: dict[str, Any] = {
        "name": f"i{hour}", "started_ns": START_S * 10**9 + hour * NS_PER_HOUR,
        "started": f"2026-01-{1 + day:02}T{rest:02}:00:00Z", "outcome": "fail", "scenario": "", "rule": "r",
        "side": "secondary", "stage": "", "line": "", "signature": "0123456789", "firmware": "",
        "contexts": frozenset(), "listed": {"bench": "lab"},
    }  # fmt: skip
    return Indexed(**{**known, **fields})


def names(wanted: Wanted, *found: Indexed) -> list[str]:
    return [one.name for one in wanted.select(found)]


def test_each_filter_lets_through_what_fits_and_nothing_else() -> None:
    other = {
        "bench": incident(1, listed={"bench": "sim"}), "side": incident(1, side="primary"),
        "outcome": incident(1, outcome="pass"), "kind": incident(1, signature="9999999999", rule="q"),
        "since": incident(-1), "until": incident(24),
    }  # fmt: skip
    fits = incident(1)
    for field, value in (
        ("bench", "lab"), ("side", "secondary"), ("outcome", "fail"), ("kind", "r"), ("kind", "01234"),
        ("since", "2026-01-01"), ("until", "2026-01-01"), ("since", "2026-01-01T01:00+00:00"),
        ("until", "2026-01-01T02:00"),
    ):  # fmt: skip
        assert names(Wanted(**{field: value}), fits, other[field]) == ["i1"], field
    assert names(Wanted(), fits, *other.values()) == ["i1"] * 5 + ["i-1", "i24"]


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [("side", "primry", "primary"), ("outcome", "failed", "fail"), ("since", "yesterday", "2026-11-29")],
)  # fmt: skip
def test_a_filter_that_cannot_be_meant_is_refused(field: str, value: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        Wanted(**{field: value})


@given(st.integers(0, 200), st.integers(1, 200))
def test_the_interval_holds_the_rates_that_the_score_test_does_not_reject(
    count: int, runs: int
) -> None:
    """The oracle: a rate is within exactly when (share - rate)^2 <= z^2 rate (1 - rate) / runs."""
    count = min(count, runs)
    low, high = interval(count, runs)
    assert 0 <= low <= count / runs <= high <= 1
    for step in range(1, 100):
        rate = step / 100
        excess = (count / runs - rate) ** 2 - 1.959963984540054**2 * rate * (1 - rate) / runs
        if abs(excess) > 1e-9:
            assert (low <= rate <= high) == (excess < 0)


def test_known_intervals() -> None:
    """R: prop.test(x, n, correct = FALSE)."""
    assert [round(one, 4) for one in interval(3, 40)] == [0.0258, 0.1986]
    assert [round(one, 4) for one in interval(0, 20)] == [0.0, 0.1611]
    assert interval(0, 0) == (0.0, 1.0)


@given(st.floats(1e-6, 1.0))
def test_so_many_clean_runs_have_a_chance_below_one_in_twenty(rate: float) -> None:
    runs = clean_runs_needed(rate)
    assert (1 - rate) ** runs <= 0.05 + 1e-9
    assert runs == 1 or (1 - rate) ** (runs - 1) > 0.05 - 1e-9
    assert clean_runs_needed(0.0) == MAX_RUNS and clean_runs_needed(0.05) == 59


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_percentile_is_a_value_that_was_seen(values: list[float]) -> None:
    found = percentiles(values)
    assert bool(found) == bool(values)
    for percent, value in found.items():
        assert value in values
        assert sum(one <= value for one in values) >= math.ceil(percent / 100 * len(values))


def test_what_the_incidents_of_a_bench_come_to() -> None:
    found = [
        incident(0, listed={"reaction_ns": 50_000}),
        incident(12, outcome="pass", listed={}),
        incident(48, listed={"reaction_ns": None}),
    ]
    made = stats_of(found, [5.1, 4.9])
    assert (made.incidents, made.outcomes) == (3, {"fail": 2, "pass": 1})
    assert made.per_day == {"2026-01-01": 2, "2026-01-03": 1}
    assert made.mean_days_between == 2.0
    assert made.reaction_us == {50: 50.0, 90: 50.0, 99: 50.0}
    assert made.rearm_s == {50: 4.9, 90: 5.1, 99: 5.1}
    assert stats_of([]).mean_days_between is None and stats_of(found[:1]).mean_days_between is None


def test_the_times_of_arming_again_come_from_the_audit_journal() -> None:
    def entry(action: str, second: float) -> bytes:
        return json.dumps({"utc": f"2026-01-01T00:00:{second:06.3f}Z", "action": action}).encode()

    journal = [
        entry("arm", 0), entry("disarm", 1), entry("disarm", 1.5), entry("health", 2), b"[", b"[]", b"{}", b"\xff",
        entry("arm", 3.25), entry("arm", 4), entry("disarm", 5), entry("end", 6), entry("arm", 50),
        entry("disarm", 51), entry("arm", 40), b'{"utc": 3, "action": "arm"}', b"[" * 99_999,
    ]  # fmt: skip
    assert rearm_times(journal) == [2.25]
    # Seen: an incident of a watch did not count, for its arming ends with the strike.
    struck = [entry("arm", 0), entry("strike", 7), entry("strike", 7.1), entry("arm", 8.5)]
    assert rearm_times(struck) == [1.5]
    assert rearm_times([]) == []


def repeated(outcome: str, kind: str = "") -> RepeatedRun:
    return RepeatedRun(
        started="2026-01-01T00:00:00Z", scenario="clean", bench="lab", seed=1, outcome=outcome,
        incident="x" if kind else "", kind=kind, rule="link-digest" if kind else "",
    )  # fmt: skip


def test_a_kind_is_fixed_after_enough_clean_runs_and_not_before(tmp_path: Path) -> None:
    history = [repeated("pass")] * 9 + [repeated("fail", "abc")] + [repeated("rig-trouble")] * 50
    for one in history + [repeated("pass")] * 28:
        repeats.append(tmp_path, one)
    with (tmp_path / repeats.FILE).open("ab") as file:
        file.write(b'\xff{\n[]\n{"seed": 1}\n' + b"[" * 100_000 + b"\n")
    (made,) = repeats.proofs(repeats.read(tmp_path), "link-digest")
    assert (made.count, made.runs, made.clean, made.needed) == (1, 10, 28, 29)
    assert not made.is_proved and made.needed_at_least_rate > made.needed
    repeats.append(tmp_path, repeated("pass"))
    (made,) = repeats.proofs(repeats.read(tmp_path), "ab")
    assert made.is_proved
    repeats.append(tmp_path, repeated("fail", "abc"))
    (made,) = repeats.proofs(repeats.read(tmp_path), "abc")
    assert (made.count, made.runs, made.clean) == (2, 40, 0) and not made.is_proved
    with pytest.raises(UsageError, match="did you mean link-digest"):
        repeats.proofs(repeats.read(tmp_path), "link-digets")


def test_lines_of_the_file_are_escaped(tmp_path: Path) -> None:
    line = json.loads(json.dumps(repeated("fail", "abc").__dict__)) | {
        "rule": "\x1b[2J",
        "bench": "x" * 999,
    }
    (tmp_path / repeats.FILE).write_text(json.dumps(line) + "\n")
    (one,) = repeats.read(tmp_path)
    assert one.rule == "\\x1b[2J" and len(one.bench) == 200
