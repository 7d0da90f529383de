"""What the reflex of a session is armed with, from the first frame to the end.

``guard``, where there is one, says how harsh the next action may be (``core/policy/guard.py``): the
frames warmstart, or only save, or none is loaded. Without one the frames warmstart: a run arms once.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Final, Protocol

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Ns, Side
from freezeframe.harness.core.policy import Guard, Rung
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Identity, Preparable
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.rehearsal import rehearse
from freezeframe.harness.wire.control import Reason

PREPARE_TIMEOUT_S: Final = 15.0
"""Some kilobytes to a node over a serial line, and a frame tried out."""
REASONS: Final = {"console": Reason.CONSOLE_TRIGGER, "link": Reason.LINK_TRIGGER}


class Says(Protocol):
    def phase(self, text: str) -> None: ...


class Arming:
    """One arming is good for one action; until it has struck, its frames may be replaced."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        view: Says,
        observation: Observation,
        guard: Guard | None,
    ) -> None:
        self.ended = ""
        """Why the end has begun; from then on nobody is instructed."""
        self.loaded_ns: Ns = 0
        """When the frames were last encoded; 0: nobody is armed."""
        self._arming = 0
        self._seen = 0
        """See events.Arm."""
        self._unconfirmed = 0
        """``Disarm`` that the reflex has not confirmed yet."""
        self._opened = opened
        self._incident = incident
        self._view = view
        self._observation = observation
        self._guard = guard
        self._identities: Mapping[Side, Identity] = {}
        self._rung: Rung | None = None
        """What is loaded; None: nothing was loaded yet."""
        self._has_struck = False
        self._is_disruptive: dict[bytes, bool] = {}
        """Frame -> whether it warmstarts."""

    def load(self, identities: Mapping[Side, Identity]) -> None:
        """Encode the frames for these boots, try them out, and hand them to the reflex."""
        try:
            self._try_out(identities)
        except HarnessError:
            self._identities = {}  # ``follow`` must not load what was not tried out
            raise
        self.follow()

    def _try_out(self, identities: Mapping[Side, Identity]) -> None:
        self._identities, self.loaded_ns = identities, time.monotonic_ns()
        for side, controller in self._opened.controllers.items():
            if isinstance(controller, Preparable):
                controller.prepare(
                    identities[side], self._incident.incident_id, deadline_in(PREPARE_TIMEOUT_S)
                )
        frames = self._frames(disruptive=not self._opened.bench.policy.redrive)["console"]
        limit_ns = deadline_in(PREPARE_TIMEOUT_S)
        for note in rehearse(self._opened.controllers, frames, limit_ns, self._incident.record):
            self._incident.note(note)

    def follow(self) -> None:
        """Load what the storm guard allows by now."""
        if not self._identities or self._has_struck or self.ended:
            return
        rung, why = self._allowed()
        if rung is self._rung:
            return
        was, self._rung = self._rung, rung
        if rung is not Rung.NOTHING:
            warmstarts = rung is Rung.WARMSTART and not self._opened.bench.policy.redrive
            self._arming += 1
            self._observation.arm(
                self._frames(disruptive=warmstarts), arming=self._arming, seen=self._seen
            )
        elif was is not None:
            self._disarm()
        if why or was is not None:
            text = why or "storm guard: the frames warmstart again"
            self._incident.note(text)
            self._incident.milestone()
            self._view.phase(text)

    def _allowed(self) -> tuple[Rung, str]:
        if self._guard is None:
            return Rung.WARMSTART, ""
        allowed = self._guard.allowed(time.monotonic_ns())
        if allowed.rung is Rung.NOTHING:
            return (
                allowed.rung,
                f"{allowed.why}: recording, and disarmed until a person starts the watch again",
            )
        return allowed.rung, allowed.why

    def _frames(self, *, disruptive: bool) -> dict[str, dict[Side, bytes]]:
        first = self._opened.bench.policy.instruct[0]
        frames: dict[str, dict[Side, bytes]] = {source: {} for source in REASONS}
        for source, reason in REASONS.items():
            for side in SIDES:
                why = reason if side == first else Reason.SECOND_CONTROLLER
                frame = self._opened.controllers[side].freeze_frame(
                    self._identities[side], why, self._incident.incident_id, disruptive=disruptive
                )
                frames[source][side] = frame
                self._is_disruptive[frame] = disruptive
        return frames

    def struck(self, kind: str, event: FrameSent | FrameFailed) -> bool:
        """The first frame of the incident: count it, and load nothing more. Whether the incident
        warmstarts, by the frame itself: its replacement may have crossed it."""
        self._has_struck, self._seen = True, event.arming
        self._disarm()  # what was sent while the frame went out
        warmstarts = self._rung is not Rung.SAVE
        if isinstance(event, FrameSent) and not self._opened.bench.policy.redrive:
            warmstarts = self._is_disruptive.get(event.frame, warmstarts)
        if self._guard is not None and isinstance(event, FrameSent):
            rung = Rung.WARMSTART if warmstarts else Rung.SAVE
            self._guard.acted(time.monotonic_ns(), kind, rung)
        return warmstarts

    def end(self, why: str) -> None:
        """Nobody is instructed from here on, once the reflex has confirmed it."""
        if not self.ended:
            self.ended = why
            self._disarm()

    def forget(self) -> None:
        """The frames are for a boot that is over. ``load`` arms again."""
        self._identities, self.loaded_ns, self._rung = {}, 0, None
        self._disarm()

    def confirmed(self) -> None:
        """The reflex has read a ``Disarm``."""
        self._unconfirmed -= 1

    @property
    def is_disarmed(self) -> bool:
        """For good, and the reflex has confirmed it."""
        return bool(self.ended) and self._unconfirmed <= 0

    def _disarm(self) -> None:
        with contextlib.suppress(RigError):  # a reflex that has died has no frames
            self._observation.disarm()
            self._unconfirmed += 1
