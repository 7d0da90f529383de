"""Drives the policy's machine by hand: a bench where all is well until a test says otherwise."""

from typing import Any, Final, TypeVar

from freezeframe.harness.core.events import NS_PER_S, SIDES, Ns, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.guard import Rung
from freezeframe.harness.core.policy.machine import Machine
from freezeframe.harness.core.policy.messages import BenchPart
from freezeframe.harness.core.policy.settings import Settings

SERIALS: Final[dict[Side, str]] = {"primary": "P1", "secondary": "S1"}
A = TypeVar("A")


class Play:
    """``step`` answers nothing; ``settle`` answers what a healthy bench would, at once."""

    def __init__(self, saved: m.Saved | None = None, **settings: Any) -> None:
        self.now: Ns = 1_000 * NS_PER_S
        self.settings = Settings(serial_numbers=SERIALS, **settings)
        self.machine = Machine(self.settings, self.now, saved)
        self.log: list[m.Action] = []
        """Every action so far."""
        self.saved = saved or m.Saved()
        self.epochs: dict[Side, int] = {"primary": 5, "secondary": 7}
        self.states = dict.fromkeys(SIDES, "full duplex")
        self.is_gone: set[BenchPart] = set()
        """Parts that cannot be opened."""
        self.silent: set[Side] = set()
        self.mute: set[Side] = set()
        """Whose canary does not come."""
        self.serials = dict(SERIALS)

    def step(self, event: m.Event) -> list[m.Action]:
        actions = self.machine.step(self.now, event)
        self.log += actions
        self.saved = next((one.saved for one in actions if isinstance(one, m.Persist)), self.saved)
        return actions

    def settle(self, *events: m.Event) -> list[m.Action]:
        """Give ``events``, and answer all questions that follow from them."""
        done: list[m.Action] = []
        waiting = list(events or [m.Tick()])
        while waiting:
            actions = self.step(waiting.pop(0))
            done += actions
            waiting += [answer for one in actions if (answer := self._answer(one)) is not None]
        return done

    def _answer(self, action: m.Action) -> m.Event | None:
        match action:
            case m.Reopen():
                if action.part in self.is_gone:
                    return m.Lost(part=action.part, reason="no such device")
                return m.Back(part=action.part)
            case m.Identify(side=side):
                if side in self.silent:
                    return m.NotIdentified(side=side, reason="no answer")
                return m.Identified(
                    side=side, serial_number=self.serials[side], boot_epoch=self.epochs[side],
                    pair_state=self.states[side], t_asked_ns=self.now,
                )  # fmt: skip
            case m.Canary(side=side):
                if side in self.mute:
                    return m.NotHeard(side=side, reason="no canary came")
                return m.Heard(side=side)
        return None

    def wait(self, seconds: float) -> list[m.Action]:
        """Let time pass, deadline by deadline."""
        end = self.now + round(seconds * NS_PER_S)
        done: list[m.Action] = []
        for _ in range(100_000):
            due = self.machine.next_deadline_ns()
            if due is None or due > end:
                self.now = end
                return done
            self.now = max(self.now, due)
            done += self.settle()
        raise AssertionError("the machine asks for the same deadline without end")

    def idle(self, seconds: float, each_s: float = 0.05) -> None:
        """Let time pass as a station does: it wakes up at least so often, late by up to that much, and
        steps when a deadline has passed by then."""
        end = self.now + round(seconds * NS_PER_S)
        while self.now < end:
            self.now = min(end, self.now + round(each_s * NS_PER_S))
            due = self.machine.next_deadline_ns()
            if due is not None and due <= self.now:
                self.settle()

    def armed(self) -> "Play":
        """Everything is there, a person wants it armed."""
        self.settle()
        self.settle(m.BenchArmed(who="test"))
        return self

    def strike(self, rule: str = "digest", side: Side = "secondary", **changes: Any) -> m.Struck:
        """What the reflex tells of a trigger, with the frames that it has."""
        arm = self.machine.loaded
        assert arm is not None, f"nothing is armed: {self.machine.status}"
        gentle = m.kind_of(rule, side) in arm.gentle
        fields: dict[str, Any] = {
            "arming": arm.arming, "rule": rule, "side": side, "t_ns": self.now,
            "rung": Rung.SAVE if gentle else arm.rung, "out": tuple(arm.epochs),
        }  # fmt: skip
        return m.Struck(**(fields | changes))

    def recover(self, *, well: bool = True) -> list[m.Action]:
        """The incident under way ends; instructed sides are in their next boot."""
        incident = self.machine.open_incident
        assert incident
        collect = next(one for one in reversed(self.log) if isinstance(one, m.Collect))
        if collect.rung is Rung.WARMSTART:
            for side in collect.out:
                self.epochs[side] += 1
        return self.settle(m.Collected(incident=incident, well=well))

    def reports(self, kind: str = "") -> list[str]:
        return [
            f"{one.about}: {one.text}"
            for one in self.log
            if isinstance(one, m.Announcement) and kind in ("", one.kind)
        ]


def of(actions: list[m.Action], kind: type[A]) -> list[A]:
    return [one for one in actions if isinstance(one, kind)]


def hit(
    now: Ns, rule: str = "digest", side: Side = "secondary", *, instructs: bool = True
) -> m.TriggerSeen:
    return m.TriggerSeen(rule=rule, side=side, instructs=instructs, t_ns=now)
