"""A rig under watch, from armed to recovered: one incident. The supervisor's side of it, in one thread."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from harness.bench import Rig, deadline_in
from harness.collect import Collector
from harness.core import recovery
from harness.core.events import (
    SIDES,
    AnyEvent,
    ConsoleBytes,
    FrameFailed,
    FrameSent,
    LinkStats,
    Note,
    Side,
    StreamEnded,
    Trigger,
    WorkloadDone,
    WorkloadProgress,
)
from harness.errors import HarnessError
from harness.incident import Incident
from harness.observe import Observation
from harness.wire import control

READY_TIMEOUT_S: Final = 30.0
"""For the pair to reach full duplex before the run."""


class View(Protocol):
    """Who watches the run; called from the supervisor's thread only."""

    def phase(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def happened(self, source: str, event: AnyEvent) -> None: ...


class Silent:
    """Nobody watches."""

    def phase(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def happened(self, source: str, event: AnyEvent) -> None:
        pass


class Session:
    """A rig under watch, from armed to recovered: one incident."""

    def __init__(
        self, rig: Rig, incident: Incident, view: View, compare: Callable[[], recovery.Compared]
    ) -> None:
        self.rig = rig
        self.incident = incident
        self.view = view
        self.triggers: list[Trigger] = []
        self.collector: Collector | None = None
        self.workload_done: WorkloadDone | None = None
        self.progressed_ns = time.monotonic_ns()
        self.lost_evidence: list[str] = []
        """What could no longer be recorded, and why: a full disk, a console whose line ended."""
        self.is_autonomic = rig.bench.policy.instructed_by == "secondary"
        self._compare = compare
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self.observation = Observation(rig, incident, rig.bench.rules())

    def arm(self) -> None:
        """Identify both controllers, wait for full duplex, encode the frames, and hand them to the reflex."""
        self.view.phase("waiting for full duplex")
        self.observation.await_ready()
        identities = self.rig.await_full_duplex(deadline_in(READY_TIMEOUT_S))
        self.incident.record["controllers"] = {
            side: {"model": one.model, "serial_number": one.serial_number, "firmware_version": one.firmware_version,
                   "boot_epoch": one.boot_epoch}
            for side, one in identities.items()
        }  # fmt: skip
        for note in (*self.rig.notes, *self.observation.notes):
            self.incident.note(note)
        if self.is_autonomic:
            self.incident.milestone()
            return
        reasons = {"console": control.Reason.CONSOLE_TRIGGER, "link": control.Reason.LINK_TRIGGER}
        frames: dict[str, dict[Side, bytes]] = {source: {} for source in reasons}
        first = self.rig.bench.policy.instruct[0]
        for source, reason in reasons.items():
            for side in SIDES:
                why = reason if side == first else control.Reason.SECOND_CONTROLLER
                frames[source][side] = self.rig.controllers[side].freeze_frame(
                    identities[side], why, self.incident.incident_id
                )
        self.observation.arm(frames)
        self.incident.milestone()

    @property
    def recovering(self) -> bool:
        return self.collector is not None and self.collector.finish is None

    def pump(self, seconds: float) -> None:
        """Take what the other processes tell, for at most so long, and act on it."""
        for source, event in self.observation.wait(deadline_in(seconds), self._wake_read):
            self.take(source, event)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        if self.collector is not None and self.collector.failure is not None:
            raise self.collector.failure

    def take(self, source: str, event: AnyEvent) -> None:
        self.view.happened(source, event)
        match event:
            case Trigger():
                self._triggered(source, event)
            case FrameSent():
                self.incident.acted(event)
                self._frame(recovery.FrameOut(side=event.side), event.frame)
            case FrameFailed():
                self.incident.acted(event)
                self._frame(recovery.FrameNotOut(side=event.side, reason=event.error), b"")
            case WorkloadProgress():
                self.progressed_ns = event.t_ns
                self.view.progress(event.bytes_written, event.bytes_total)
            case WorkloadDone():
                self.workload_done = event
                self.incident.append_event(event, source)
            case StreamEnded():
                self.lost_evidence.append(f"{event.stream} ended: {event.error}")
                self.incident.note(f"{event.stream} ended: {event.error}")
                self.incident.append_event(event, source)
            case Note():
                if event.level != "info":
                    self.incident.note(f"{event.source}: {event.text}")
                if event.level == "error":
                    self.lost_evidence.append(event.text)
                self.incident.append_event(event, source)
            case ConsoleBytes() | LinkStats():
                pass
            case _:
                self.incident.append_event(event, source)

    def _triggered(self, source: str, trigger: Trigger) -> None:
        if source != "reflex":
            # A link trigger is told twice, by the link's watch and by the reflex that decides: the reflex's counts.
            return
        first = not self.triggers
        self.triggers.append(trigger)
        self.incident.triggered(trigger)
        if first:
            self.view.phase(f"trigger: {trigger.rule}")
        if self.collector is None and trigger.instruct:
            armed = {side: self.rig.identities[side].boot_epoch for side in trigger.instruct}
            self.collector = Collector(self.rig, self.incident, armed, self._compare, self._wake)
            if self.is_autonomic:
                for side in armed:
                    self._frame(recovery.FrameOut(side=side), b"")

    def _frame(self, event: recovery.FrameOut | recovery.FrameNotOut, frame: bytes) -> None:
        if self.collector is not None:
            self.collector.feed(event, frame)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Stop the watchers and take their last words; nothing writes into the incident afterwards."""
        if self.collector is not None:
            self.collector.cancel(wait_s=5.0)
        for source, event in self.observation.stop():
            if isinstance(event, StreamEnded):
                continue  # the watchers end one after the other, and tell it of each other
            with contextlib.suppress(HarnessError):
                self.take(source, event)
        if self.observation.link is not None:
            self.incident.record["capture"] = _plain_stats(self.observation.link)
        os.close(self._wake_read)
        os.close(self._wake_write)


def _plain_stats(stats: LinkStats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in stats.__struct_fields__ if name != "t_ns"}
