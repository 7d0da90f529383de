"""Carries out one action of a recovery: replies, boots, power, pulls, the pair's return. Each call is
bounded by the action's deadline.

The clock, the bench and the place where results are kept are given, so that the same code runs in
virtual time.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol, assert_never

from freezeframe.harness.core.events import NS_PER_S, FrameFailed, FrameSent, Ns, Side
from freezeframe.harness.core.recovery.messages import (
    Action,
    Answered,
    AwaitBoot,
    AwaitFullDuplex,
    AwaitReply,
    BreakSent,
    Compare,
    Compared,
    Finish,
    FrameNotOut,
    FrameOut,
    Kept,
    PowerCycle,
    PowerCycled,
    Pull,
    PullBroke,
    Pulled,
    RecoveryEvent,
    Rejoined,
    Replied,
    SaveLate,
    SendBreak,
    TimedOut,
    TooLate,
)
from freezeframe.harness.errors import (
    DriverError,
    HarnessError,
    LineGoneError,
    RigError,
    WireError,
    WrongDeviceError,
)
from freezeframe.harness.roles import (
    Acknowledging,
    BreakingIn,
    ByteLink,
    Clock,
    Controller,
    Identity,
    Preparable,
    Reply,
    RootCauseSet,
    SetEntry,
)
from freezeframe.harness.watch.reflex_io import sequence_number
from freezeframe.harness.wire.control import Reason

IDENTIFY_STEP_NS: Final = NS_PER_S // 2
"""One question while a controller boots: most are asked into silence."""
REOPEN_PAUSE_S: Final = 0.1
ASK_AGAIN_S: Final = 0.02
"""Pause before a question that was answered at once is put again."""


class Reach(Protocol):
    """What a recovery needs of an opened bench."""

    @property
    def controllers(self) -> Mapping[Side, Controller]: ...
    def await_full_duplex(self, deadline_ns: Ns) -> object:
        """RigError when the pair does not get there."""
        ...

    def power_cycle(self, side: Side) -> None: ...
    def reopen_control(self, side: Side, gone: ByteLink) -> None:
        """Open the side's control line again, unless it is another one than ``gone`` by now.
        RigError: it is not there."""
        ...


class Keep(Protocol):
    """Where a recovery's results are kept: an incident."""

    incident_id: bytes

    def note(self, text: str) -> None: ...
    def replied(self, side: Side, reply: Reply | None, now: Ns) -> None: ...
    def received_set(self, side: Side) -> bytes:
        """What has arrived of the side's set."""
        ...

    def append_set(self, side: Side, data: bytes) -> None: ...
    def missing_set(self, side: Side, reason: str) -> None: ...
    def set_aside(self, side: Side) -> None:
        """What has arrived is damaged: keep it elsewhere; the set begins anew."""
        ...

    def store_set(self, side: Side, pulled: RootCauseSet) -> None: ...
    def store_save(self, side: Side, stored: bytes) -> None: ...


def send(link: ByteLink, side: Side, frame: bytes, clock: Clock) -> FrameSent | FrameFailed:
    """Write a control frame from here, not from the reflex."""
    t_ns = clock.now()
    try:
        link.write(frame)
    except RigError as error:
        return FrameFailed(t_ns=t_ns, side=side, error=str(error))
    return FrameSent(
        t_ns=t_ns, side=side, seq=sequence_number(frame), t_done_ns=clock.now(), frame=frame
    )


class Carrier:
    """One incident's actions. ``frames``: what was written to each side."""

    def __init__(
        self,
        reach: Reach,
        keep: Keep,
        clock: Clock,
        *,
        armed: Mapping[Side, int],
        is_autonomic: bool,
        has_no_replies: bool = False,
        acted: Callable[[FrameSent | FrameFailed, str], object],
        compare: Callable[[], Compared],
        heard: Callable[[Answered], object],
        pause: Callable[[float], object],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """``armed``: see Recovery. ``acted`` takes each frame that is written here, or could not be, and
        what for. ``heard`` takes answers that do not end the action under way;
        ``pause`` takes seconds. ``has_no_replies``: the
        answers to the frames cannot be had."""
        self.frames: dict[Side, bytes] = {}
        self.keeps_saves = False
        """A redrive has saved before it warmstarted: that set is pulled, too."""
        self._gone: dict[Side, ByteLink] = {}
        """Lines that were gone when a pull broke off: the next attempt waits for them."""
        self._reach = reach
        self._incident = keep
        self._clock = clock
        self._armed = dict(armed)
        self._is_autonomic = is_autonomic
        self._has_no_replies = has_no_replies
        self._acted = acted
        self._compare = compare
        self._heard = heard
        self._pause = pause
        self._is_cancelled = is_cancelled

    def carry_out(self, action: Action) -> RecoveryEvent:
        """Do it, within its deadline; what came of it."""
        try:
            match action:
                case AwaitReply():
                    return self._await_reply(action)
                case SaveLate():
                    return self._save_late(action)
                case AwaitBoot():
                    return self._await_boot(action)
                case SendBreak():
                    return self._answered(action.side) or self._send_break(action)
                case PowerCycle():
                    return self._answered(action.side) or self._power_cycle(action.side)
                case Pull():
                    return self._pull(action)
                case AwaitFullDuplex():
                    self._reach.await_full_duplex(action.deadline_ns)
                    return Rejoined()
                case Compare():
                    return self._compare()
                case Finish():
                    raise AssertionError("Finish is not carried out")
                case _ as never:
                    assert_never(never)
        except HarnessError as error:
            detail = str(error).removeprefix(f"{getattr(action, 'side', '')}: ")
            return TimedOut(detail=detail, line_gone=isinstance(error, LineGoneError))

    def _await_reply(self, action: AwaitReply) -> RecoveryEvent:
        if self._is_autonomic:
            return Replied(side=action.side, ok=True, status="instructed by the secondary")
        if self._has_no_replies:
            return TimedOut(detail="its answer was lost with the process that was killed")
        controller, frame = self._reach.controllers[action.side], self.frames[action.side]
        if action.attempt > 1:
            sent = send(controller.link, action.side, frame, self._clock)
            self._acted(sent, "no answer, written again")
            if isinstance(sent, FrameFailed):
                return TimedOut(detail=sent.error)
        reply = controller.freeze_reply(frame, action.deadline_ns)
        self._incident.replied(action.side, reply, self._clock.now())
        if reply is None:
            return TimedOut(detail="no answer to the control frame")
        return Replied(side=action.side, ok=reply.ok, status=reply.status)

    def _save_late(self, action: SaveLate) -> RecoveryEvent:
        last, answer_by_ns = "no answer", self._clock.now() + action.answer_ns
        while not self._is_cancelled() and (now := self._clock.now()) < answer_by_ns:
            controller = self._reach.controllers[action.side]
            try:
                seen = controller.identify(min(now + IDENTIFY_STEP_NS, answer_by_ns))
            except HarnessError as error:
                last = str(error).removeprefix(f"{action.side}: ")
                self._ask_again(action.side, controller, error)
                continue
            return self._save_now(action, controller, seen, asked_ns=now)
        return TimedOut(detail=last)

    def _save_now(
        self, action: SaveLate, controller: Controller, seen: Identity, *, asked_ns: Ns
    ) -> RecoveryEvent:
        """It is who it should be, and answers."""
        side, keep = action.side, self._incident
        self._heard(Answered(side=side, boot_epoch=seen.boot_epoch))
        if self._entry(side, controller.sets(action.deadline_ns)) is not None:
            return Kept(side=side, boot_epoch=seen.boot_epoch)
        if action.since_ns is None:
            return TooLate(side=side, reason="it keeps no set of this incident")
        if (has_booted := _booted_since(seen, action, asked_ns)) is None:
            return TooLate(side=side, reason="not known whether it restarted")
        if has_booted:
            return TooLate(side=side, reason="it restarted after the trigger")
        if isinstance(controller, Preparable):
            controller.prepare(seen, keep.incident_id, action.deadline_ns)
        frame = controller.freeze_frame(
            seen, Reason.SECOND_CONTROLLER, keep.incident_id, disruptive=False
        )
        sent = send(controller.link, side, frame, self._clock)
        self._acted(sent, "no frame had reached it, asked to save")
        if isinstance(sent, FrameFailed):
            return FrameNotOut(side=side, reason=sent.error)
        self.frames[side] = frame
        return FrameOut(side=side, t_ns=sent.t_done_ns)

    def _ask_again(self, side: Side, controller: Controller, error: HarnessError) -> None:
        """A line that is gone, or noise on it, answers at once: do not ask in a tight loop. Some control
        ports close with a restart."""
        self._pause(ASK_AGAIN_S)
        if isinstance(error, LineGoneError):
            with contextlib.suppress(RigError):
                self._reach.reopen_control(side, controller.link)

    def _await_boot(self, action: AwaitBoot) -> RecoveryEvent:
        last, is_gone, is_stranger, limit_ns = "no answer", False, False, action.deadline_ns
        while not self._is_cancelled():
            now = self._clock.now()
            if now >= limit_ns:
                if limit_ns > action.deadline_ns:
                    break
                # One last look: what came up during the last question does not lose its power.
                limit_ns = now + IDENTIFY_STEP_NS
            controller = self._reach.controllers[action.side]
            try:
                seen = controller.identify(min(now + IDENTIFY_STEP_NS, limit_ns))
            except HarnessError as error:
                last = str(error).removeprefix(f"{action.side}: ")
                is_gone = isinstance(error, LineGoneError)
                is_stranger = is_stranger or isinstance(error, WrongDeviceError)
                self._ask_again(action.side, controller, error)
                continue
            is_gone = False
            answered = Answered(side=action.side, boot_epoch=seen.boot_epoch)
            if seen.boot_epoch > action.armed_epoch:
                return answered
            last = f"still in boot epoch {seen.boot_epoch}"
            self._heard(answered)
            # It has not gone down yet.
            self._pause(ASK_AGAIN_S)
        return TimedOut(detail=last, line_gone=is_gone, is_stranger=is_stranger)

    def _answered(self, side: Side) -> RecoveryEvent | None:
        """One last look: it may have come up while the other side was waited for. Another device in its place
        gets neither a BREAK nor its power switched."""
        try:
            seen = self._reach.controllers[side].identify(self._clock.now() + IDENTIFY_STEP_NS)
        except WrongDeviceError as error:
            return TimedOut(detail=str(error).removeprefix(f"{side}: "), is_stranger=True)
        except HarnessError:
            return None
        return Answered(side=side, boot_epoch=seen.boot_epoch)

    def _send_break(self, action: SendBreak) -> RecoveryEvent:
        controller = self._reach.controllers[action.side]
        try:
            if not isinstance(controller, BreakingIn):
                raise RigError("its driver sends none")
            controller.break_in(action.deadline_ns)
        except LineGoneError:
            raise
        except HarnessError as error:
            return BreakSent(side=action.side, error=str(error))
        return BreakSent(side=action.side)

    def _power_cycle(self, side: Side) -> RecoveryEvent:
        try:
            self._reach.power_cycle(side)
        except RigError as error:
            return PowerCycled(side=side, error=str(error))
        return PowerCycled(side=side)

    def _pull(self, action: Pull) -> RecoveryEvent:
        side = action.side
        if (gone := self._gone.pop(side, None)) is not None:
            self._await_line(side, gone, action.deadline_ns)
        controller = self._reach.controllers[side]
        arrived = self._incident.received_set(side)
        arrived_bytes = len(arrived)

        def keep(data: bytes) -> None:
            nonlocal arrived_bytes
            self._incident.append_set(side, data)
            arrived_bytes += len(data)

        try:
            listed = controller.sets(action.deadline_ns)
            entry = self._entry(side, listed)
            if entry is None:
                reason = f"it lists {len(listed)} sets, none of this incident"
                self._incident.missing_set(side, reason)
                return PullBroke(side=side, reason=reason, arrived_bytes=0, resumable=False)
            pulled = controller.pull(entry, arrived, action.deadline_ns, keep)
        except WireError as error:
            # What arrived cannot be mended by reading on: keep it for the inquest and start anew.
            if self._incident.received_set(side):
                self._incident.set_aside(side)
            self._incident.missing_set(side, str(error))
            return PullBroke(side=side, reason=str(error), arrived_bytes=0)
        except HarnessError as error:
            # What has arrived stays: also a driver that cannot read it has passed it on.
            self._incident.missing_set(side, str(error))
            is_broken = isinstance(error, DriverError) and error.is_broken
            if isinstance(error, LineGoneError):
                self._gone[side] = controller.link
            return PullBroke(
                side=side, reason=str(error), arrived_bytes=arrived_bytes, resumable=not is_broken
            )
        self._incident.store_set(side, pulled)
        if not entry.complete:
            # All that there is: the controller was stopped before it had stored it whole.
            reason = "its controller did not store it whole"
            self._incident.missing_set(side, reason)
            return PullBroke(
                side=side, reason=reason, arrived_bytes=entry.stored_bytes, resumable=False
            )
        self._acknowledge(side, action.deadline_ns, entry_id=entry.set_id)
        if self.keeps_saves:
            self._keep_saves(
                side, [one for one in self._ours(listed) if one != entry], action.deadline_ns
            )
        return Pulled(side=side)

    def _await_line(self, side: Side, gone: ByteLink, deadline_ns: Ns) -> None:
        """A line that is gone fails at once: the attempt begins when it is there again."""
        while not self._is_cancelled() and self._clock.now() < deadline_ns:
            try:
                self._reach.reopen_control(side, gone)
            except RigError:
                self._pause(REOPEN_PAUSE_S)
                continue
            return

    def _keep_saves(self, side: Side, saves: list[SetEntry], deadline_ns: Ns) -> None:
        """The set that was saved before the redrive: nearest to the failure. It is an extra, and
        its loss a note."""
        for entry in saves[-1:]:
            arrived = bytearray()
            try:
                self._reach.controllers[side].pull(entry, b"", deadline_ns, arrived.extend)
            except HarnessError as error:
                self._incident.note(
                    f"{side}: the set saved before the redrive was not pulled: {error}"
                )
                return
            self._incident.store_save(side, bytes(arrived))
            self._acknowledge(side, deadline_ns, entry_id=entry.set_id)

    def _entry(self, side: Side, listed: list[SetEntry]) -> SetEntry | None:
        """The set of this incident among those that a controller lists."""
        if self._is_autonomic:
            # Its id is the pair's own. One of an earlier boot than the armed one is of another
            # incident.
            ours = [one for one in listed if one.boot_epoch >= self._armed[side]]
            return max(ours, key=lambda one: one.set_id, default=None)
        # After a redrive there are two: the save before it, and the warmstart's, which is the
        # newest.
        return max(self._ours(listed), key=lambda one: one.set_id, default=None)

    def _ours(self, listed: list[SetEntry]) -> list[SetEntry]:
        return [one for one in listed if one.incident_id == self._incident.incident_id]

    def _acknowledge(self, side: Side, deadline_ns: Ns, *, entry_id: int) -> None:
        """The set is safe here: the controller may free it. One that does not understand keeps
        it."""
        controller = self._reach.controllers[side]
        if not isinstance(controller, Acknowledging):
            return
        try:
            entry = next(one for one in controller.sets(deadline_ns) if one.set_id == entry_id)
            reply = controller.acknowledge(entry, controller.identify(deadline_ns), deadline_ns)
            if not reply.ok:
                self._incident.note(f"{side}: would not free its set: {reply.status}")
        except (HarnessError, StopIteration) as error:
            self._incident.note(f"{side}: its set was not acknowledged: {error}")


def _booted_since(seen: Identity, action: SaveLate, asked_ns: Ns) -> bool | None:
    """Whether it began its boot after the frames of the trigger had gone out; None: nobody knows."""
    if action.armed_epoch:
        return seen.boot_epoch != action.armed_epoch
    if action.since_ns is None or not seen.uptime_ns:
        return None
    return asked_ns - seen.uptime_ns - seen.uptime_error_ns > action.since_ns
