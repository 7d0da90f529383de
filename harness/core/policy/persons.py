"""What persons want of a bench: whether it is armed, and what they have in hand themselves."""

from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.guard import UNTIL_A_PERSON, Guard

PersonEvent = m.BenchArmed | m.BenchDisarmed | m.Held | m.Released


class Persons:
    """``old``: what a process before had persisted. ``out`` takes the actions."""

    def __init__(self, old: m.Saved, guard: Guard, out: list[m.Action]) -> None:
        self.is_wanted = old.wanted
        self.why_not = old.why_not
        """Who has disarmed the bench, and why; "": nobody has."""
        self._guard, self._out = guard, out
        self._held: dict[str, m.Held] = {}

    @property
    def decided(self) -> str:
        """Why nobody wants the bench armed; "": somebody does."""
        return "" if self.is_wanted else self.why_not or "nobody has armed it"

    @property
    def in_hand(self) -> str:
        """Who does something by hand that nothing of ours may cross; "": nobody."""
        return "; ".join(f"{one.who} {one.what}" for one in self._held.values())

    def recall(self, saved: m.Saved) -> None:
        """Take over what outlives a process that ended in order."""
        self._guard.recall(saved.guard_log, saved.broken)
        self.why_not = saved.why_not

    def last_words(self, ended: str) -> m.Saved:
        """That of this process."""
        guard = self._guard
        return m.Saved(ended=ended, guard_log=guard.log, broken=guard.broken, why_not=self.why_not)

    def take(self, event: PersonEvent) -> bool:
        """Whether the devices may be others now, or in another state."""
        match event:
            case m.BenchArmed():
                self._arm(event)
            case m.BenchDisarmed():
                self.is_wanted, self.why_not = False, f"by {event.who}: {event.why}"
                self._report(event.who, f"disarms: {event.why}")
            case m.Held():
                self._held[event.key] = event
                self._report(event.who, event.what)
            case m.Released():
                return self._held.pop(event.key, None) is not None
        return False

    def _arm(self, event: m.BenchArmed) -> None:
        if self.why_not and not event.closes_breaker:
            self._report(event.who, f"starts; the bench stays disarmed {self.why_not}")
            return
        self.is_wanted, self.why_not = True, ""
        if self._guard.broken and event.closes_breaker:
            self._guard.reset()
        why = f": {event.why}" if event.why else ""
        is_kept = f"; the breaker stays open {UNTIL_A_PERSON}" if self._guard.broken else ""
        self._report(event.who, f"arms{why}{is_kept}")

    def _report(self, who: str, text: str) -> None:
        self._out.append(m.Announcement(kind="person", about=who, text=text))
