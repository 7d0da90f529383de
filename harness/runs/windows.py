"""Expected windows of a run: hits of one rule that are wanted for some time instruct nobody and fail
nothing. All others do."""

from dataclasses import dataclass, field

from freezeframe.harness.core.events import Ns, Trigger


@dataclass
class ExpectedWindow:
    """Hits of ``rule`` until ``until_ns`` are wanted."""

    rule: str
    from_ns: Ns
    until_ns: Ns
    triggers: list[Trigger] = field(default_factory=list)
    """Those that came."""


class ExpectedWindows:
    """All windows of a run, also those that are over: what was seen in time may be reported
    late."""

    def __init__(self) -> None:
        self._windows: list[ExpectedWindow] = []

    def open(self, rule: str, now: Ns, within_ns: Ns) -> ExpectedWindow:
        window = ExpectedWindow(rule, now, now + within_ns)
        self._windows.append(window)
        return window

    def muted(self, now: Ns) -> frozenset[str]:
        """Rules that instruct nobody now."""
        return frozenset(one.rule for one in self._windows if one.from_ns <= now < one.until_ns)

    def excuses(self, trigger: Trigger) -> bool:
        """Whether the hit is a wanted one; it is noted in its window. When its bytes came in
        counts, not when it is reported."""
        for window in self._windows:
            is_in_time = window.from_ns <= trigger.t_arrival_ns < window.until_ns
            if trigger.rule == window.rule and is_in_time and not trigger.is_cause:
                window.triggers.append(trigger)
                return True
        return False

    def is_excused(self, trigger: Trigger) -> bool:
        return any(one is trigger for window in self._windows for one in window.triggers)
