"""The history of a bench: which incidents are wanted, how often each kind comes, and what a number
of runs proves. Pure; the index gives the incidents.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, SIDES
from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.index import Indexed
from freezeframe.harness.incidents.store import OPEN, OUTCOMES

CONFIDENCE: Final = 0.95
_Z: Final = 1.959963984540054
"""Quantile of the normal distribution for a two-sided interval of CONFIDENCE."""
PERCENTILES: Final = (50, 90, 99)
MAX_RUNS: Final = 10**9
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


# --- which incidents --------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A filter; an empty field lets everything through. UsageError: a field cannot be meant."""

    bench: str = ""
    side: str = ""
    outcome: str = ""
    kind: str = ""
    """A kind's name, its first characters, or the rule of its trigger."""
    since: str = ""
    until: str = ""
    """ISO 8601, UTC; a day alone is its begin, for ``until`` its end."""

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--side", self.side, SIDES),
            ("--outcome", self.outcome, (*OUTCOMES, OPEN)),
        ):
            if value and value not in known:
                near = did_you_mean(value, known)
                raise UsageError(f"{option} {value}: not known{near}; allowed: {', '.join(known)}")
        _ = self._span

    @property
    def _span(self) -> tuple[float, float]:
        """Seconds since 1970: not before, and before."""
        low = _moment("--since", self.since).timestamp() if self.since else -math.inf
        high = math.inf
        if self.until:
            end = _moment("--until", self.until)
            high = (
                end + timedelta(days=1)
                if _DAY.fullmatch(self.until)
                else end + timedelta(microseconds=1)
            ).timestamp()
        return low, high

    def select(self, everything: Sequence[Indexed]) -> list[Indexed]:
        """Return those that fit, in their order."""
        low, high = self._span
        return [
            one
            for one in everything
            if not one.is_recording
            and (not self.bench or one.listed.get("bench") == self.bench)
            and (not self.side or one.side == self.side)
            and (not self.outcome or one.outcome == self.outcome)
            and (not self.kind or one.rule == self.kind or one.signature.startswith(self.kind))
            and low <= one.started_ns / NS_PER_S < high
        ]


def _moment(option: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{option} {text}: not a date; write 2026-11-29 or 2026-11-29T18:30 (UTC)"
        ) from error


# --- how often --------------------------------------------------------------------------------------------
def interval(count: int, runs: int) -> tuple[float, float]:
    """The Wilson score interval at CONFIDENCE for ``count`` of ``runs``, each from 0 to 1.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. It keeps its level for small numbers and
    for 0 or all, where the usual interval is empty.
    """
    if runs <= 0:
        return 0.0, 1.0
    share, square = count / runs, _Z * _Z
    middle = share + square / (2 * runs)
    half = _Z * math.sqrt(share * (1 - share) / runs + square / (4 * runs * runs))
    low, high = ((middle - half) / (1 + square / runs), (middle + half) / (1 + square / runs))
    return (0.0 if count == 0 else max(0.0, low)), (1.0 if count == runs else min(1.0, high))


def rate_in_words(count: int, runs: int) -> str:
    """``3 of 40 (7.5 %, 95 % interval 2.6 to 19.9 %)``."""
    low, high = interval(count, runs)
    share = f"{100 * count / runs:.1f} %, " if runs else ""
    return f"{count} of {runs} ({share}95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def clean_runs_needed(rate: float) -> int:
    """How many runs without it show, at CONFIDENCE, that something no longer comes at ``rate``: at
    that rate so many clean runs in a row have a chance of at most 1 - CONFIDENCE. MAX_RUNS: it can
    hardly be shown."""
    if rate >= 1.0:
        return 1
    if rate <= 0.0:
        return MAX_RUNS
    return min(MAX_RUNS, math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate)))


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Percent -> value, by nearest rank; empty: no values."""
    ordered = sorted(values)
    return {
        percent: ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
        for percent in PERCENTILES
        if ordered
    }


@dataclass(frozen=True, kw_only=True)
class BenchStats:
    """What the incidents of a bench, or of a filter, come to."""

    incidents: int
    first: str
    last: str
    outcomes: Mapping[str, int]
    kinds: Mapping[str, int]
    per_day: Mapping[str, int]
    """Day (UTC) -> incidents; days without one are left out."""
    mean_days_between: float | None
    """Between the begins of incidents in which a device failed; None: fewer than two."""
    reaction_us: Mapping[int, float]
    """Percentiles of the time from reading the trigger to the first frame out."""
    rearm_s: Mapping[int, float]
    """Percentiles of the time from a strike or a disarming to armed again, by the audit journal."""


def stats_of(found: Sequence[Indexed], rearm_s: Sequence[float] = ()) -> BenchStats:
    """``found``: oldest first. ``rearm_s``: what ``rearm_times`` gave."""
    failed = [one.started_ns for one in found if one.outcome == "fail" and one.started_ns]
    span_ns = failed[-1] - failed[0] if len(failed) > 1 else 0
    return BenchStats(
        incidents=len(found),
        first=found[0].started if found else "",
        last=found[-1].started if found else "",
        outcomes=dict(Counter(one.outcome for one in found)),
        kinds=dict(Counter(one.signature for one in found)),
        per_day=dict(Counter(one.started[:10] for one in found if one.started)),
        mean_days_between=span_ns / (len(failed) - 1) / NS_PER_S / 86400 if span_ns else None,
        reaction_us=percentiles([value / 1000 for value in _numbers(found, "reaction_ns")]),
        rearm_s=percentiles(rearm_s),
    )


def rearm_times(journal: Iterable[bytes]) -> list[float]:
    """Seconds from each strike, which uses the arming up, or disarming to the next arming, from the lines of
    an audit journal (``runs/audit.py``). A line that is none is passed over."""
    found, since = [], None
    for line in journal:
        try:
            entry = json.loads(line)
            action, at = entry["action"], datetime.fromisoformat(entry["utc"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if action in ("disarm", "strike"):
            since = at if since is None else since
        elif action == "arm" and since is not None:
            if (took_s := (at - since).total_seconds()) >= 0:
                found.append(took_s)
            since = None
        elif action == "end":
            since = None
    return found


def _numbers(found: Sequence[Indexed], key: str) -> list[int]:
    values = [one.listed.get(key) for one in found]
    return [value for value in values if type(value) is int and value >= 0]
