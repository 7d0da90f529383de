"""Who and what is there: parts that come and go, controllers that answer, boots, canaries.

A part that is lost is opened again with back-off; the time between is a gap in the record and is
marked. A controller is asked who it is when its line comes back, when it boots, after each incident,
and every ``poll_s``. An answer counts only when it was asked for after the last boot that was seen.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.policy.facts import (
    CONSOLE,
    CONTROL,
    FULL_DUPLEX,
    SIDE_OF,
    PartFacts,
    SideFacts,
)
from freezeframe.harness.core.policy.messages import (
    Action,
    Announcement,
    ArmBench,
    Back,
    BenchPart,
    Canary,
    Heard,
    Identified,
    Identify,
    Lost,
    MarkGap,
    NotHeard,
    NotIdentified,
    PairBroke,
    Rebooted,
    Reopen,
    ReportKind,
)
from freezeframe.harness.core.policy.settings import Settings, ns

PresenceEvent = (
    Lost | Back | Identified | NotIdentified | Rebooted | PairBroke | Heard | NotHeard
)  # fmt: skip
Due = tuple[Ns, Callable[[Ns], None]]
"""When something is to be asked for, and what asks for it."""
LINE_GONE: Final = "its control line is gone"
EYES: Final = (*CONSOLE.values(), BenchPart.LINK)
"""One of them must be there, or nothing is seen."""


class Presence:
    """``out`` takes the actions."""

    def __init__(
        self,
        settings: Settings,
        now: Ns,
        out: list[Action],
        lost: Mapping[BenchPart, Ns] | None = None,
    ) -> None:
        """``lost``: after a kill, the parts that were lost then, and when; None: no kill."""
        self._settings = settings
        self._out = out
        self.parts = {
            part: PartFacts(
                was_up=lost is not None,
                lost_ns=now if lost is None else lost.get(part),
                reopen_ns=now,
            )
            for part in BenchPart
            if part not in CONTROL.values() or SIDE_OF[part] in settings.controlled
        }
        self.sides: dict[Side, SideFacts] = {
            side: SideFacts(ask_ns=now, canary_ns=now) for side in settings.controlled
        }
        """Of whoever can be asked."""

    # --- what follows ---------------------------------------------------------------------------------------
    @property
    def down(self) -> dict[BenchPart, str]:
        """Parts that are not there, and why."""
        return {part: facts.reason for part, facts in self.parts.items() if not facts.up}

    @property
    def lost(self) -> tuple[tuple[BenchPart, Ns], ...]:
        """Parts that were there and are not, and since when."""
        return tuple(
            (part, facts.lost_ns)
            for part, facts in self.parts.items()
            if facts.was_up and not facts.up and facts.lost_ns is not None
        )

    def can_ask(self, sides: Iterable[Side]) -> bool:
        """Whether the control lines of these are there, as far as the bench has any."""
        return all(self.parts[CONTROL[side]].up for side in sides if side in self.sides)

    @property
    def unseen(self) -> str:
        """Why nothing can be seen; "" when something can."""
        down = self.down
        if BenchPart.REFLEX in down:
            return f"the reflex is gone: {down[BenchPart.REFLEX]}"
        is_blind = all(part in down for part in EYES)
        return "neither a console nor the link can be seen" if is_blind else ""

    @property
    def armable(self) -> dict[Side, int]:
        """Who could be armed, with its boot epoch."""
        return {
            side: facts.epoch
            for side in self._settings.instruct
            if (facts := self.sides[side]).epoch is not None and self.parts[CONTROL[side]].up
        }

    def unreached(
        self, arm: ArmBench, failed: Mapping[Side, str], now: Ns, *, is_save: bool
    ) -> dict[Side, str]:
        """Whom no frame of that arming reached, and why; it is reported. ``failed``: what could not be
        written, of a ``Save`` only to those who were armed."""
        found: dict[Side, str] = {}
        absent = self._settings.instruct if is_save else ()
        for side in dict.fromkeys((*failed, *absent)):
            if side not in arm.epochs:
                found[side] = f"it was not armed: {self._why_unarmed(side) or failed.get(side, '')}"
                self._report("frame", side, f"it was not instructed: {found[side]}")
            elif side in failed:
                found[side] = failed[side]
                text = f"rig trouble, the frame could not go out: {failed[side]}"
                self._report("frame", side, text)
                self.sides[side].forget("its frame could not go out", now)
        return found

    def _why_unarmed(self, side: Side) -> str:
        """Why no frame can be armed for it now; "": one can be."""
        if side not in self.sides:
            return "it has no control line"
        return self.down.get(CONTROL[side], "") or self.sides[side].why

    @property
    def pending(self) -> tuple[Side, ...]:
        """Whose answer is still to come."""
        return tuple(
            side
            for side in self._settings.instruct
            if self.sides[side].is_pending and self.parts[CONTROL[side]].up
        )

    @property
    def apart(self) -> tuple[str, ...]:
        """Who says that the pair is not in full duplex."""
        said: dict[str, list[Side]] = {}
        for side, facts in self.sides.items():
            if facts.epoch is not None and facts.pair_state != FULL_DUPLEX:
                said.setdefault(facts.pair_state, []).append(side)
        return tuple(
            f"the pair is {state}, " + (f"says the {who[0]}" if len(who) == 1 else "say both")
            for state, who in said.items()
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """What is lost, who is not armed, whose console is not heard."""
        down, armable = self.down, self.armable
        found = [f"{part.value}: {reason}" for part, reason in down.items()]
        for side in self._settings.instruct:
            if side not in armable and CONTROL[side] not in down:
                found.append(f"{side} is not armed: {self.sides[side].why}")
        for side, facts in self.sides.items():
            if facts.unheard and facts.can_print:
                found.append(f"{side} console: {facts.unheard}")
        return (*found, *self.apart)

    @property
    def unheard(self) -> tuple[str, ...]:
        """Whose console has not been heard since it, its boot and the reflex are what they are, and
        whose frames could not be tried out."""
        silent = (
            f"{side} console: {facts.unheard or 'its canary has not come yet'}"
            for side, facts in self.sides.items()
            if not facts.heard
        )
        untried = (
            f"{side}: {facts.unrehearsed}"
            for side, facts in self.sides.items()
            if facts.unrehearsed and facts.epoch is not None
        )
        mute = (
            f"{side} console: it has no control line to ask it for a canary"
            for side in SIDES
            if side not in self.sides
        )
        return (*silent, *mute, *untried)

    def openings(self) -> list[Due]:
        """Lost parts that are to be opened again."""
        return [
            (facts.reopen_ns, partial(self._reopen, part))
            for part, facts in self.parts.items()
            if not (facts.up or facts.opening)
        ]

    def questions(self) -> list[Due]:
        """Identities and canaries that are to be asked for."""
        dues: list[Due] = []
        for side, facts in self.sides.items():
            if not self.parts[CONTROL[side]].up:
                continue
            if not facts.asking:
                dues.append((facts.ask_ns, partial(self._identify, side)))
            is_audible = self.parts[CONSOLE[side]].up and self.parts[BenchPart.REFLEX].up
            if facts.epoch is not None and is_audible and facts.can_print and not facts.listening:
                dues.append((facts.canary_ns, partial(self._canary, side)))
        return dues

    # --- what happened --------------------------------------------------------------------------------------
    def take(self, event: PresenceEvent, now: Ns, instructed: tuple[Side, ...]) -> None:
        """``instructed``: whose restart is our own doing."""
        match event:
            case Lost():
                self._take_lost(event, now)
            case Back():
                self._take_back(event, now)
            case Identified():
                self._take_identified(event, now)
            case NotIdentified():
                self.sides[event.side].asking = False
                if self.parts[CONTROL[event.side]].up:
                    self._unidentified(event.side, event.reason, now)
            case Rebooted():
                self._take_rebooted(event, now, instructed)
            case PairBroke():
                self._report("pair", "pair", event.evidence)
                for facts in self.sides.values():
                    facts.ask_ns, facts.pause_s = min(facts.ask_ns, now), 0.0
            case Heard():
                facts = self.sides[event.side]
                facts.listening, facts.unheard = False, ""
                facts.heard = facts.epoch is not None
                # One of the boot before proves nothing of this one: it is asked for again.
                facts.canary_ns = now + ns(self._settings.poll_s) if facts.heard else now
            case NotHeard():
                self._take_not_heard(event, now)

    def _take_lost(self, event: Lost, now: Ns) -> None:
        facts, settings = self.parts[event.part], self._settings
        if facts.up:
            facts.lost_ns = now
            self._report("lost", event.part.value, event.reason)
        elif facts.reason != event.reason:
            self._report("lost", event.part.value, f"not opened: {event.reason}")
        facts.up, facts.opening, facts.reason = False, False, event.reason
        facts.reopen_ns = now + ns(facts.pause_s or settings.reopen_s)
        facts.pause_s = min(2 * (facts.pause_s or settings.reopen_s), settings.reopen_max_s)
        if event.part is BenchPart.REFLEX:
            for one in self.sides.values():
                one.heard = False
        elif (side := SIDE_OF.get(event.part)) is not None and side in self.sides:
            if event.part is CONTROL[side]:
                self.sides[side].forget(LINE_GONE, now)
            self.sides[side].heard = False

    def _take_back(self, event: Back, now: Ns) -> None:
        facts = self.parts[event.part]
        if facts.up:
            return
        if facts.was_up:
            self._out.append(MarkGap(part=event.part, from_ns=facts.lost_ns, to_ns=now))
            since = "" if facts.lost_ns is None else f" after {(now - facts.lost_ns) / 1e9:.3f} s"
            self._report("back", event.part.value, f"there again{since}")
        facts.up, facts.was_up, facts.opening, facts.reason = True, True, False, ""
        facts.pause_s = 0.0
        for side in self._sides_of(event.part):
            if self.sides[side].why == LINE_GONE:
                self.sides[side].why = "it has not answered since its control line is there again"
            # It may have booted unseen, and another device may stand there now.
            one = self.sides[side]
            one.ask_ns, one.pause_s = min(one.ask_ns, now), 0.0
            one.canary_ns = min(one.canary_ns, now)

    def _take_rebooted(self, event: Rebooted, now: Ns, instructed: tuple[Side, ...]) -> None:
        facts = self.sides[event.side]
        if (
            event.t_read_ns is not None
            and event.t_read_ns < facts.asked_ns
            and facts.epoch is not None
        ):
            return  # a banner that waited in the line: who answered later is in that boot, or a newer one
        if event.side not in instructed:
            self._report("rebooted", event.side, event.evidence)
        facts.forget("it restarted", now)

    def _take_identified(self, event: Identified, now: Ns) -> None:
        facts, settings = self.sides[event.side], self._settings
        facts.asking = False
        if not self.parts[CONTROL[event.side]].up:
            return
        if event.t_asked_ns < facts.since_ns:
            facts.ask_ns = now
            return
        if event.serial_number != settings.serial_numbers[event.side]:
            self._unidentified(event.side, f"another device answers: {event.serial_number}", now)
            return
        if facts.epoch is not None and facts.epoch != event.boot_epoch:
            text = f"boot epoch {event.boot_epoch}, was {facts.epoch}: it restarted unseen"
            self._report("rebooted", event.side, text)
            facts.forget("it restarted", now)
        if facts.epoch is None or facts.pair_state != event.pair_state:
            text = f"boot epoch {event.boot_epoch}, the pair is {event.pair_state}"
            self._report("identity", event.side, text)
        facts.epoch, facts.pair_state, facts.why = event.boot_epoch, event.pair_state, ""
        facts.unrehearsed, facts.asked_ns = event.unrehearsed, event.t_asked_ns
        facts.is_pending = False
        if event.pair_state == FULL_DUPLEX:
            facts.pause_s, facts.ask_ns = 0.0, now + ns(settings.poll_s)
        else:
            self._look_again(facts, now)

    def _unidentified(self, side: Side, why: str, now: Ns) -> None:
        facts = self.sides[side]
        if facts.epoch is not None or facts.why != why:
            self._report("identity", side, why)
        pause_s = facts.pause_s
        facts.forget(why, now)
        facts.pause_s, facts.is_pending = pause_s, False
        self._look_again(facts, now)

    def _look_again(self, facts: SideFacts, now: Ns) -> None:
        facts.pause_s = min(2 * facts.pause_s or self._settings.look_s, self._settings.look_max_s)
        facts.ask_ns = now + ns(facts.pause_s)

    def _take_not_heard(self, event: NotHeard, now: Ns) -> None:
        facts = self.sides[event.side]
        facts.listening = False
        if facts.unheard != event.reason:
            self._report("canary", event.side, event.reason)
        facts.heard, facts.unheard, facts.can_print = False, event.reason, event.can_print
        facts.canary_ns = now + ns(min(self._settings.poll_s, self._settings.reopen_max_s))

    def _reopen(self, part: BenchPart, _now: Ns) -> None:
        self.parts[part].opening = True
        self._out.append(Reopen(part=part))

    def _identify(self, side: Side, now: Ns) -> None:
        self.sides[side].asking = True
        deadline_ns = now + ns(self._settings.identify_timeout_s)
        self._out.append(Identify(side=side, deadline_ns=deadline_ns))

    def _canary(self, side: Side, now: Ns) -> None:
        self.sides[side].listening = True
        deadline_ns = now + ns(self._settings.canary_timeout_s)
        self._out.append(Canary(side=side, deadline_ns=deadline_ns))

    def _report(self, kind: ReportKind, about: str, text: str) -> None:
        self._out.append(Announcement(kind=kind, about=about, text=text))

    def _sides_of(self, part: BenchPart) -> tuple[Side, ...]:
        """Who is to be asked because of it: whose line it is; of the reflex all."""
        is_whole = part is BenchPart.REFLEX
        return tuple(one for one in self.sides if is_whole or SIDE_OF.get(part) == one)
