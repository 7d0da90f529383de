"""Carries out a recovery's actions: replies, boots, power, pulls, the pair's return. Each call is
bounded.

It runs in a thread of its own beside the supervisor, which goes on reading what the other processes
tell.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core import recovery
from freezeframe.harness.core.events import NS_PER_S, FrameSent, Ns, Side, Trigger
from freezeframe.harness.core.recovery import (
    Action,
    Answered,
    AwaitBoot,
    AwaitFullDuplex,
    AwaitReply,
    Compare,
    Compared,
    Finish,
    PowerCycle,
    PowerCycled,
    Pull,
    PullBroke,
    Pulled,
    Recovery,
    Rejoined,
    Replied,
    TimedOut,
    Transition,
)
from freezeframe.harness.errors import RigError, WireError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Serviceable, SetEntry
from freezeframe.harness.runs.redrive import Redrive

IDENTIFY_STEP_NS = NS_PER_S // 2
"""One question while a controller boots: most are asked into silence."""


class Collector:
    """One incident's recovery under way. ``feed`` gives it the frames that went out; ``finish`` is
    set at its end."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        armed: Mapping[Side, int],
        compare: Callable[[], Compared],
        changed: Callable[[], None],
    ) -> None:
        """``armed``: the instructed sides in their order with the boot epochs of their frames.
        ``compare`` is called once the pair is whole; ``changed`` after each step, from the
        collector's thread. In autonomic mode the sides instruct themselves: there is no frame of
        ours to be answered, and their newest sets are this incident's."""
        self.finish: Finish | None = None
        self.failure: Exception | None = None
        """What the bench did that no action foresaw; the recovery ended there."""
        self._opened = opened
        self._incident = incident
        self._is_autonomic = opened.bench.policy.instructed_by == "secondary"
        self._armed = dict(armed)
        self._recovery = Recovery(opened.bench.policy.recovery(), armed)
        self._compare = compare
        self._changed = changed
        self._redrive: Redrive | None = None
        self._frames: dict[Side, bytes] = {}
        self._told = 0
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def redrive_first(self, cause: Trigger, triggers: Sequence[Trigger]) -> None:
        """The frames that will be told of only save: the failing write is sent again, and the
        warmstart frames are written here. ``triggers`` goes on growing."""
        self._redrive = Redrive(
            self._opened, self._incident, cause, triggers, self._cancelled.wait, self._tell_step
        )

    def feed(self, event: recovery.FrameOut | recovery.FrameNotOut, frame: bytes = b"") -> None:
        """A frame went out or could not; the first action starts once all sides have been told
        of."""
        self._frames[event.side] = frame
        if self._redrive is not None:
            if self._frames.keys() >= self._armed.keys():
                self._start(self._run_redrive, self._redrive)
            return
        actions = self._on(event)
        if actions:
            self._start(self._run, actions)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._thread = threading.Thread(target=target, args=args, name="collector", daemon=True)
        self._thread.start()

    @property
    def steps(self) -> list[recovery.Transition]:
        """What the recovery has come to so far; it only grows."""
        return self._recovery.history

    def cancel(self, wait_s: float) -> None:
        """Give up: the action under way ends by its own bound, and nothing follows it."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _run_redrive(self, redrive: Redrive) -> None:
        actions: list[Action] = []
        try:
            redrive.carry_out(self._frames)
            if self._cancelled.is_set():
                return
            for sent in redrive.warmstart(list(self._armed)):
                self._incident.acted(sent, "redrive")
                if isinstance(sent, FrameSent):
                    self._frames[sent.side] = sent.frame
                    actions = self._on(recovery.FrameOut(side=sent.side, t_ns=sent.t_done_ns))
                else:
                    actions = self._on(recovery.FrameNotOut(side=sent.side, reason=sent.error))
        except Exception as error:  # noqa: BLE001 - as in _run
            self.failure = error
            self._changed()
            return
        self._run(actions)

    def _run(self, actions: list[Action]) -> None:
        try:
            while actions and not self._cancelled.is_set():
                action = actions[-1]
                if isinstance(action, Finish):
                    self.finish = action
                    break
                actions = self._on(self._carry_out(action))
        except Exception as error:  # noqa: BLE001 - told to the supervisor, which raises it in its own thread
            self.failure = error
        self._changed()

    def _tell_step(self, step: str, detail: str, side: Side | None) -> None:
        self._recovery.history.append(
            Transition(t_ns=time.monotonic_ns(), side=side or "", step=step, detail=detail)
        )
        self._tell()

    def _on(self, event: recovery.RecoveryEvent) -> list[Action]:
        actions = self._recovery.on(event, time.monotonic_ns())
        self._tell()
        return actions

    def _tell(self) -> None:
        for line in self._recovery.history[self._told :]:
            self._incident.step(line.t_ns, line.side, line.step, line.detail)
        self._told = len(self._recovery.history)
        self._changed()

    def _carry_out(self, action: Action) -> recovery.RecoveryEvent:
        try:
            match action:
                case AwaitReply():
                    return self._await_reply(action)
                case AwaitBoot():
                    return self._await_boot(action)
                case PowerCycle():
                    return self._power_cycle(action.side)
                case Pull():
                    return self._pull(action)
                case AwaitFullDuplex():
                    self._opened.await_full_duplex(action.deadline_ns)
                    return Rejoined()
                case Compare():
                    return self._compare()
                case Finish():
                    raise AssertionError("Finish is not carried out")
                case _ as never:
                    assert_never(never)
        except (RigError, WireError) as error:
            return TimedOut(detail=str(error))

    def _await_reply(self, action: AwaitReply) -> recovery.RecoveryEvent:
        if self._is_autonomic:
            return Replied(side=action.side, ok=True, status="instructed by the secondary")
        reply = self._opened.controllers[action.side].freeze_reply(
            self._frames[action.side], action.deadline_ns
        )
        self._incident.replied(action.side, reply, time.monotonic_ns())
        if reply is None:
            return TimedOut(detail="no answer to the control frame")
        return Replied(side=action.side, ok=reply.ok, status=reply.status)

    def _await_boot(self, action: AwaitBoot) -> recovery.RecoveryEvent:
        last = "no answer"
        while not self._cancelled.is_set():
            now = time.monotonic_ns()
            if now >= action.deadline_ns:
                break
            try:
                seen = self._opened.controllers[action.side].identify(
                    min(now + IDENTIFY_STEP_NS, action.deadline_ns)
                )
            except RigError as error:
                last = str(error)
                continue
            answered = Answered(side=action.side, boot_epoch=seen.boot_epoch)
            if seen.boot_epoch > action.armed_epoch:
                return answered
            last = f"still in boot epoch {seen.boot_epoch}"
            self._on(answered)
            # It has not gone down yet; its answer came at once, so do not ask in a tight loop.
            self._cancelled.wait(0.02)
        return TimedOut(detail=last)

    def _power_cycle(self, side: Side) -> recovery.RecoveryEvent:
        try:
            self._opened.power_cycle(side)
        except RigError as error:
            return PowerCycled(side=side, error=str(error))
        return PowerCycled(side=side)

    def _pull(self, action: Pull) -> recovery.RecoveryEvent:
        side, controller = action.side, self._opened.controllers[action.side]
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
        except RigError as error:
            self._incident.missing_set(side, str(error))
            return PullBroke(side=side, reason=str(error), arrived_bytes=arrived_bytes)
        self._incident.store_set(side, pulled)
        if not entry.complete:
            # All that there is: the controller was stopped before it had stored it whole.
            reason = "its controller did not store it whole"
            self._incident.missing_set(side, reason)
            return PullBroke(
                side=side, reason=reason, arrived_bytes=entry.stored_bytes, resumable=False
            )
        self._acknowledge(side, action.deadline_ns, entry_id=entry.set_id)
        if self._redrive is not None:
            self._keep_saves(
                side, [one for one in self._ours(listed) if one != entry], action.deadline_ns
            )
        return Pulled(side=side)

    def _keep_saves(self, side: Side, saves: list[SetEntry], deadline_ns: Ns) -> None:
        """The set that was saved before the redrive: nearest to the failure. It is an extra, and
        its loss a note."""
        for entry in saves[-1:]:
            arrived = bytearray()
            try:
                self._opened.controllers[side].pull(entry, b"", deadline_ns, arrived.extend)
            except (RigError, WireError) as error:
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
        controller = self._opened.controllers[side]
        if not isinstance(controller, Serviceable):
            return
        try:
            entry = next(one for one in controller.sets(deadline_ns) if one.set_id == entry_id)
            reply = controller.acknowledge(entry, controller.identify(deadline_ns), deadline_ns)
            if not reply.ok:
                self._incident.note(f"{side}: would not free its set: {reply.status}")
        except (RigError, WireError, StopIteration) as error:
            self._incident.note(f"{side}: its set was not acknowledged: {error}")
