"""What persons do by hand at a bench under watch, through its station. For the station's thread.

A frame by hand and a BREAK are sent while the bench is disarmed and no incident is being collected: the policy has it
from a person "in hand" (``Held``), which disarms first, asks nobody anything meanwhile, and asks everybody anew
afterwards. Whoever writes to a console has its one place, until his connection ends. A console that is the control
line, too, is in hand as long as its place is taken, and that needs a bench that a person has disarmed before.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from freezeframe.harness.bench.opened import NO_CONTROL, OpenBench, deadline_in
from freezeframe.harness.core import byhand
from freezeframe.harness.core.byhand import HandAnswer
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.policy import Machine
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.edge.clock import utc_now
from freezeframe.harness.edge.serial_link import SerialLink
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.dialogue import Dialogue
from freezeframe.harness.runs.instructing import instruct

DISARM_S: Final = 5.0
"""For the reflex to confirm that it has no frames; it takes a millisecond."""
ASK_S: Final = 2.0
"""For the controller to say who it is, before a frame by hand."""
Reply = Callable[[HandAnswer], None]
"""Takes the answer to one request, in any thread."""


class Handled(Protocol):
    """The station, as persons use it."""

    opened: OpenBench
    audit: AuditJournal
    dialogue: Dialogue
    machine: Machine

    unconfirmed: int
    """How often the reflex is still to confirm that it has no frames."""

    def step(self, event: m.Event) -> None: ...
    def post(self, work: Callable[[], None]) -> None: ...


@dataclass(frozen=True)
class WritersPlace:
    """The one writer's place of a console."""

    number: int
    """Of the connection that has it."""
    who: str
    since_utc: str
    is_shared: bool


class _Typist(threading.Thread):
    """Writes to one console, one job after another: a console that takes nothing delays nobody else."""

    def __init__(self, side: Side) -> None:
        super().__init__(name=f"typist of the {side}", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self.jobs.get()()


class Hands:
    """``take`` takes a request of the connection ``number``; its answer comes when it is done."""

    def __init__(self, station: Handled) -> None:
        self._station = station
        self._askers: set[int] = set()
        """Connections that have asked for something, and are still there."""
        self._places: dict[Side, WritersPlace] = {}
        self._typists: dict[Side, _Typist] = {}
        self._typing: Counter[Side] = Counter()
        """Writes that are still going out."""
        self._held: dict[str, tuple[int, Side]] = {}
        """What is in hand -> (its connection, whose line it needs)."""
        self._waiting: list[tuple[Ns, Callable[[str], None]]] = []
        """What is done once the reflex has no frames: (at the latest, what takes why it still may)."""

    def turn(self) -> None:
        """Once in each turn of the station's loop."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        now, awaits = time.monotonic_ns(), self._station.unconfirmed > 0
        for until_ns, work in waiting:
            if awaits and now < until_ns:
                self._waiting.append((until_ns, work))
            else:
                work(
                    f"the reflex has not confirmed in {DISARM_S:g} s that it has no frames"
                    if awaits
                    else ""
                )

    @property
    def is_asked(self) -> bool:
        """Whether anybody who has asked for something is there."""
        return bool(self._askers)

    def take(self, request: byhand.Request, who: str, number: int, reply: Reply) -> None:
        self._askers.add(number)
        try:
            self._take(request, who, number, reply)
        except HarnessError as error:
            reply(_refused(error))
        except Exception as error:  # noqa: BLE001 - of one request; the watch goes on
            reply(HandAnswer(whose="rig", text=f"internal error: {type(error).__name__}: {error}"))

    def gone(self, number: int) -> None:
        """That connection has ended, however its process has."""
        self._askers.discard(number)
        for side in list(self._places):
            self._leave(side)

    def _leave(self, side: Side) -> None:
        """A place whose connection has ended is free once what it wrote is out."""
        place = self._places.get(side)
        if place is None or place.number in self._askers or self._typing[side]:
            return
        del self._places[side]
        self._station.audit.add("console", side, "leaves the writer's place", who=place.who)
        self._release(_console_key(side, place.number))

    def _take(self, request: byhand.Request, who: str, number: int, reply: Reply) -> None:
        machine = self._station.machine
        match request:
            case byhand.ArmRequest():
                self._station.step(m.BenchArmed(who=who, why=request.reason))
                reply(HandAnswer(text=self._armed_text(), health=str(machine.status)))
            case byhand.DisarmRequest():
                self._station.step(m.BenchDisarmed(who=who, why=request.reason))
                self._when_disarmed(lambda wrong: reply(self._disarmed(wrong)))
            case byhand.SaveRequest() | byhand.WarmstartRequest():
                self._instruct(request, who, number, reply)
            case byhand.TakeRequest():
                self._take_place(request.side, who, number, reply)
            case byhand.WriteRequest():
                self._write(request, number, reply)
            case byhand.BreakRequest():
                self._break(request, number, reply)

    # --- armed or not -----------------------------------------------------------------------------------
    def _armed_text(self) -> str:
        machine = self._station.machine
        if machine.settings.dry_run:
            return "it is a dry run: nobody is armed in it"
        return f"a person wants it armed; it is {machine.status}"

    def _disarmed(self, wrong: str) -> HandAnswer:
        machine = self._station.machine
        if wrong:
            return HandAnswer(whose="rig", text=wrong, health=str(machine.status))
        text = "disarmed: no frame is loaded, and nobody is instructed until a person arms it"
        if machine.under_way:
            text += f"; what was instructed before is collected: {machine.under_way}"
        return HandAnswer(text=text, health=str(machine.status))

    def _when_disarmed(self, work: Callable[[str], None]) -> None:
        """``work`` takes why frames may still be loaded; "": none are."""
        self._waiting.append((deadline_in(DISARM_S), work))

    def _refuse_busy(self) -> None:
        if self._station.machine.under_way:
            raise RigError(f"not now: {self._station.machine.under_way}; again when that is over")

    def _refuse_in_hand(self, side: Side, number: int) -> None:
        """While another connection's frame or BREAK is under way on that line."""
        if any(one != number and whose == side for one, whose in self._held.values()):
            in_hand = self._station.machine.persons.in_hand
            raise RigError(f"not now: {in_hand}; again when that is over")

    def _hold(
        self,
        key: str,
        holder: tuple[int, Side],
        who: str,
        what: str,
        work: Callable[[], None],
        reply: Reply,
    ) -> None:
        """Have it in hand, and then do ``work``; whoever did it releases ``key``."""
        self._refuse_busy()
        self._held[key] = holder
        self._station.step(m.Held(key=key, who=who, what=what))

        def begin(wrong: str) -> None:
            # What crossed the disarming is an incident by now.
            wrong = wrong or self._station.machine.under_way
            if wrong:
                self._release(key)
                reply(HandAnswer(whose="rig", text=f"nothing was sent: {wrong}"))
            else:
                work()

        self._when_disarmed(begin)

    def _release(self, key: str) -> None:
        self._held.pop(key, None)
        self._station.step(m.Released(key=key))

    # --- frames -----------------------------------------------------------------------------------------
    def _instruct(
        self,
        request: byhand.SaveRequest | byhand.WarmstartRequest,
        who: str,
        number: int,
        reply: Reply,
    ) -> None:
        station, side = self._station, request.side
        opened, disruptive = station.opened, isinstance(request, byhand.WarmstartRequest)
        if side not in opened.controllers:
            raise UsageError(f"the {side} cannot be instructed: {NO_CONTROL}")
        place = self._places.get(side)
        if place is not None and place.is_shared:
            raise RigError(
                f"{place.who} writes to the {side}'s console, which is its control line, too"
            )
        how = request.confirmed if isinstance(request, byhand.WarmstartRequest) else ""
        key = f"request {number}"

        def work() -> None:
            """In the thread ``dialogue``."""
            try:
                if number not in self._askers:
                    raise RigError("whoever asked has given up")
                with opened.dialogue:
                    seen = opened.identify(side, deadline_in(ASK_S))
                    if seen.serial_number != opened.bench.controller(side).serial_number:
                        raise RigError(f"another device answers: {seen.serial_number}")
                    opened.identities = {**opened.identities, side: seen}
                    found = instruct(
                        opened, side, station.audit, disruptive=disruptive, how=how, who=who
                    )
                answer = HandAnswer(instructed=found)
            except HarnessError as error:
                answer = _refused(error)
            except Exception as error:  # noqa: BLE001 - of a driver; the dialogue goes on
                answer = HandAnswer(whose="rig", text=f"{type(error).__name__}: {error}")
            finally:
                station.dialogue.forget(side)
                station.post(lambda: self._release(key))
            reply(answer)

        what = f"{'warmstarts' if disruptive else 'saves'} the {side} by hand"
        self._hold(key, (number, side), who, what, lambda: station.dialogue.put(work), reply)

    # --- consoles ---------------------------------------------------------------------------------------
    def _take_place(self, side: Side, who: str, number: int, reply: Reply) -> None:
        station = self._station
        if station.opened.bench.controller(side).console is None:
            raise UsageError(f"the bench file names no console of the {side}")
        if (taken := self._places.get(side)) is not None:
            raise RigError(
                f"the writer's place of the {side}'s console is taken since {taken.since_utc} by {taken.who}; it "
                "is free when that command ends"
            )
        is_shared = station.opened.is_shared(side)
        if is_shared:
            self._refuse_armed(
                f"the {side}'s console is its control line, too, which carries the armed frames"
            )
            self._refuse_in_hand(side, number)
        place = WritersPlace(number, who, utc_now(), is_shared)

        def given() -> None:
            if self._places.get(side) is place:  # else it has gone meanwhile
                station.audit.add("console", side, "takes the writer's place", who=who)
                reply(
                    HandAnswer(
                        text=f"the {side}'s console is yours to write to",
                        health=str(station.machine.status),
                    )
                )

        if not is_shared:
            self._places[side] = place
            given()
            return

        def answered(answer: HandAnswer) -> None:
            if self._places.get(side) is place:  # nothing but a refusal comes this way
                del self._places[side]
            reply(answer)

        what = f"writes to the {side}'s console"
        self._hold(_console_key(side, number), (number, side), who, what, given, answered)
        self._places[side] = place

    def _refuse_armed(self, why: str) -> None:
        machine = self._station.machine
        if machine.persons.is_wanted and not machine.settings.dry_run:
            raise RigError(
                f"{why}: disarm the bench first: freezeframe disarm --bench {self._station.opened.bench.path} "
                "--reason WHY"
            )

    def _place_of(self, number: int) -> tuple[Side, WritersPlace]:
        for side, place in self._places.items():
            if place.number == number:
                return side, place
        raise UsageError("this connection has no writer's place: take one first")

    def _write(self, request: byhand.WriteRequest, number: int, reply: Reply) -> None:
        side, place = self._place_of(number)
        # Not the text: it may be a password. What the device echoes is in the console's record.
        about = f"{len(request.data)} bytes{f' of {request.named}' if request.named else ''}"
        self._type(
            side, place, "console", about, lambda: self._link(side).write(request.data), reply
        )

    def _link(self, side: Side) -> SerialLink:
        return self._station.opened.consoles[side]

    def _break(self, request: byhand.BreakRequest, number: int, reply: Reply) -> None:
        side, place = self._place_of(number)
        self._refuse_armed("a BREAK can stop or restart a device")
        self._refuse_in_hand(side, number)
        key = f"BREAK {number}"
        about = f"BREAK{f' of {request.named}' if request.named else ''}"

        def done(answer: HandAnswer) -> None:
            self._station.post(lambda: self._release(key))
            reply(answer)

        def work() -> None:
            self._type(side, place, "break", about, lambda: self._link(side).send_break(), done)

        what = f"sends a BREAK to the {side}'s console"
        self._hold(key, (number, side), place.who, what, work, reply)

    def _type(
        self,
        side: Side,
        place: WritersPlace,
        action: str,
        about: str,
        write: Callable[[], None],
        reply: Reply,
    ) -> None:
        """The line in the journal is on the disk before the first byte goes out."""
        station, audit = self._station, self._station.audit

        def typed() -> None:
            self._typing[side] -= 1
            self._leave(side)

        def job() -> None:
            try:
                if place.number not in self._askers:
                    raise RigError("whoever typed it has gone")
                audit.add(action, side, about, "goes out", who=place.who)
                write()
                answer = HandAnswer()
            except Exception as error:  # noqa: BLE001 - of one write; the next one may go well
                audit.add(action, side, about, str(error) or type(error).__name__, who=place.who)
                answer = HandAnswer(whose="rig", text=str(error) or type(error).__name__)
            reply(answer)
            station.post(typed)

        self._typing[side] += 1
        if side not in self._typists:
            self._typists[side] = _Typist(side)
        self._typists[side].jobs.put(job)


def _console_key(side: Side, number: int) -> str:
    """What a connection that has the place of a shared line has in hand."""
    return f"the {side}'s console, connection {number}"


def _refused(error: HarnessError) -> HandAnswer:
    return HandAnswer(whose="usage" if isinstance(error, UsageError) else "rig", text=str(error))
