"""The storm guard: how harsh the next action may be.

A warmstart costs the pair its full duplex for seconds, so a watch that nobody looks at must not
repeat it without end. The guard keeps the times of past actions and answers with a rung:

    WARMSTART   save the root cause data set, then restart
    SAVE        save only; the controller runs on
    NOTHING     record only: for a pause, or until a person arms again

* Between two warmstarts lies ``min_interval_s``. Each one that comes before ``calm_s`` have passed
  doubles the interval, up to ``max_interval_s`` (back-off). Inside the interval the armed frames only
  save.
* ``caps`` are counts in sliding windows: two minutes, one hour. A full window only saves, until
  it has moved on.
* ``per_kind_per_hour``: an incident of one kind (the rule and the side) that has been collected so
  often is known; its rule only saves.
* After three saves in an hour a pause lies between two, 10 s, then twice as long each time, up to
  ``max_interval_s``; inside it the bench records only.
* Two things open the breaker, and only a person closes it: the cap of a day, and ``max_saves`` saves
  in an hour. The second is there because a controller keeps a limited number of sets, and a storm of
  saves would push the first one out. A restart of the process closes nothing: see ``WatchStart``.

With the defaults a storm warmstarts at 0, 15, 45 and 105 s of the first two minutes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns

HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
UNTIL_A_PERSON: Final = "until a person arms again"
"""The end of the reason why a bench is disarmed while the breaker is open."""
MAX_LOG: Final = 4096
"""Actions remembered. Far above what the caps of a day allow."""


class Rung(IntEnum):
    """How harsh an action is."""

    NOTHING = 0
    SAVE = 1
    WARMSTART = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The storm guard's limits."""

    min_interval_s: float = 15.0
    """A warmstart with its collection takes 2 to 7 s: a healthy answer to a single fault fits in."""
    max_interval_s: float = 600.0
    calm_s: float = 1800.0
    """After so long without a warmstart the interval is the smallest again."""
    caps: tuple[tuple[float, int], ...] = ((120.0, 6), (HOUR_S, 12))
    """(window in seconds, warmstarts in it)."""
    per_kind_per_hour: int = 4
    per_day: int = 60
    free_saves: int = 3
    """Saves in one hour that need no pause between them."""
    save_interval_s: float = 10.0
    """Pause before the next one; it doubles with each. A save with its collection takes 0.2 s: without
    a pause a storm would spend the hour's saves in 5 s."""
    max_saves: int = 12
    """Saves in one hour. The simulated controllers keep 16 sets."""


@dataclass(frozen=True)
class Acted:
    """One action of the past."""

    t_ns: Ns
    kind: str
    rung: Rung


@dataclass(frozen=True)
class Allowed:
    """The rung, why it is not the highest ("" when it is), and when this may change by itself."""

    rung: Rung
    why: str = ""
    until_ns: Ns | None = None


class Guard:
    """``log`` and ``broken`` outlive the process: give them back after a restart."""

    def __init__(self, limits: Limits, log: Sequence[Acted] = (), broken: str = "") -> None:
        self._limits = limits
        self._log = list(log)[-MAX_LOG:]
        self.broken = broken
        """Why the breaker is open; "" while it is closed."""

    @property
    def log(self) -> tuple[Acted, ...]:
        return tuple(self._log)

    def acted(self, now: Ns, kind: str, rung: Rung) -> None:
        """An action went out. It may open the breaker."""
        if rung is Rung.NOTHING:
            return
        self._forget(now)
        self._log = [*self._log, Acted(now, kind, rung)][-MAX_LOG:]
        warmstarts = len(self._times(now, DAY_S, Rung.WARMSTART))
        saves = len(self._times(now, HOUR_S, Rung.SAVE))
        if warmstarts >= self._limits.per_day:
            self.broken = f"{warmstarts} warmstarts in 24 hours"
        elif saves >= self._limits.max_saves:
            self.broken = f"{saves} saves in one hour: the triggers do not stop"

    def recall(self, log: Sequence[Acted], broken: str) -> None:
        """Actions of a process that ended in order count, too, and its open breaker stays open."""
        self._log = [*log, *self._log][-MAX_LOG:]
        self.broken = self.broken or broken

    def reset(self) -> None:
        """A person arms again: the breaker closes and the past counts no more."""
        self._log.clear()
        self.broken = ""

    def allowed(self, now: Ns) -> Allowed:
        """What the next action may be, whatever its kind."""
        if self.broken:
            return Allowed(Rung.NOTHING, f"storm guard: {self.broken}")
        ends = [(self._interval_end(), "the last warmstart is less than {:.0f} s old")]
        for window_s, cap in self._limits.caps:
            times = self._times(now, window_s, Rung.WARMSTART)
            if len(times) >= cap:
                text = f"{cap} warmstarts in {window_s:.0f} s"
                ends.append((times[-cap] + _ns(window_s), text))
        until_ns, why = max(ends, key=lambda one: one[0])
        if until_ns <= now:
            return Allowed(Rung.WARMSTART)
        saves = self._times(now, HOUR_S, Rung.SAVE)
        pause_s = self._save_pause_s(len(saves))
        if saves and saves[-1] + _ns(pause_s) > now:
            text = f"storm guard: {len(saves)} saves in one hour, the next after {pause_s:.0f} s"
            return Allowed(Rung.NOTHING, text, min(until_ns, saves[-1] + _ns(pause_s)))
        why = why.format(self.interval_s)
        return Allowed(Rung.SAVE, f"storm guard: only saves, {why}", until_ns)

    def _save_pause_s(self, saves: int) -> float:
        """What must lie between the last save and the next, after so many in one hour."""
        if saves < self._limits.free_saves:
            return 0.0
        doubled = self._limits.save_interval_s * 2.0 ** min(saves - self._limits.free_saves, 16)
        return min(doubled, self._limits.max_interval_s)

    def known_kinds(self, now: Ns) -> frozenset[str]:
        """Kinds of incident that have been collected often enough: their rules only save."""
        recent = [one for one in self._log if one.t_ns > now - _ns(HOUR_S)]
        counts = Counter(one.kind for one in recent if one.rung is Rung.WARMSTART)
        return frozenset(
            kind for kind, count in counts.items() if count >= self._limits.per_kind_per_hour
        )

    def next_change_ns(self, now: Ns) -> Ns | None:
        """When ``allowed`` or ``known_kinds`` may change although nothing happens, after ``now``."""
        ends = [one.t_ns + _ns(HOUR_S) for one in self._log]
        until_ns = self.allowed(now).until_ns
        later = [one for one in (*ends, until_ns) if one is not None and one > now]
        return min(later, default=None)

    @property
    def interval_s(self) -> float:
        """The time that must lie between the last warmstart and the next."""
        interval_s, before_ns = self._limits.min_interval_s, None
        for one in self._log:
            if one.rung is not Rung.WARMSTART:
                continue
            if before_ns is not None:
                is_calm = one.t_ns - before_ns >= _ns(self._limits.calm_s)
                interval_s = (
                    self._limits.min_interval_s
                    if is_calm
                    else min(2 * interval_s, self._limits.max_interval_s)
                )
            before_ns = one.t_ns
        return interval_s

    def _interval_end(self) -> Ns:
        last = [one.t_ns for one in self._log if one.rung is Rung.WARMSTART][-1:]
        return last[0] + _ns(self.interval_s) if last else 0

    def _times(self, now: Ns, window_s: float, rung: Rung) -> list[Ns]:
        return [
            one.t_ns for one in self._log if one.rung is rung and one.t_ns > now - _ns(window_s)
        ]

    def _forget(self, now: Ns) -> None:
        """Nothing looks further back than a day or the calm."""
        oldest_ns = now - _ns(max(DAY_S, self._limits.calm_s))
        self._log = [one for one in self._log if one.t_ns > oldest_ns]


def _ns(seconds: float) -> Ns:
    return round(seconds * NS_PER_S)
