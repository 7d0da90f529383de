"""What the reflex of a run is armed with, from the first frame to the end. A watch is armed by its
station (``station.py``)."""

import contextlib
import time
from collections.abc import Mapping
from typing import Final

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import FrameFailed, FrameSent, Ns, Side
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Identity, Preparable
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.rehearsal import rehearse
from freezeframe.harness.runs.selfmonitor import arm_secondary
from freezeframe.harness.wire.control import Reason

PREPARE_TIMEOUT_S: Final = 15.0
"""Some kilobytes to a node over a serial line, and a frame tried out."""
REASONS: Final = {"console": Reason.CONSOLE_TRIGGER, "link": Reason.LINK_TRIGGER}


class Arming:
    """One arming is good for one action; until it has struck, its frames may be replaced."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        observation: Observation,
        *,
        saves_only: bool = False,
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
        self._observation = observation
        self._identities: Mapping[Side, Identity] = {}
        self._frames_loaded: dict[str, dict[Side, bytes]] = {}
        self._muted: frozenset[str] = frozenset()
        self._has_struck = False
        self._saves_only = saves_only

    def load(self, identities: Mapping[Side, Identity]) -> None:
        """Encode the frames for these boots, try them out, and hand them to the reflex."""
        self._try_out(identities)
        warmstarts = not (self._opened.bench.policy.redrive or self._saves_only)
        self._frames_loaded = self._frames(disruptive=warmstarts)
        self._send()

    def leave_to_secondary(self, identities: Mapping[Side, Identity]) -> None:
        """Autonomic mode: no frame here; the secondary's own monitor has to be armed on some devices."""
        limit_ns = deadline_in(PREPARE_TIMEOUT_S)
        arm_secondary(self._opened.controllers, identities, self._incident.incident_id, limit_ns)

    def mute(self, rules: frozenset[str]) -> None:
        """Hits of these rules send no frame from here on."""
        if rules != self._muted:
            self._muted = rules
            if self._identities:
                self._send()

    def _send(self) -> None:
        if self._has_struck or self.ended:
            return
        self._arming += 1
        self._observation.arm(
            self._frames_loaded, arming=self._arming, seen=self._seen, muted=self._muted
        )

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

    def _frames(self, *, disruptive: bool) -> dict[str, dict[Side, bytes]]:
        first = self._opened.bench.instruct[0]
        frames: dict[str, dict[Side, bytes]] = {source: {} for source in REASONS}
        for source, reason in REASONS.items():
            for side, controller in self._opened.controllers.items():
                why = reason if side == first else Reason.SECOND_CONTROLLER
                frame = controller.freeze_frame(
                    self._identities[side], why, self._incident.incident_id, disruptive=disruptive
                )
                frames[source][side] = frame
        return frames

    def struck(self, event: FrameSent | FrameFailed) -> None:
        """The first frame of the incident: load nothing more."""
        self._has_struck, self._seen = True, event.arming
        self._disarm()  # what was sent while the frame went out

    def end(self, why: str) -> None:
        """Nobody is instructed from here on, once the reflex has confirmed it."""
        if not self.ended:
            self.ended = why
            self._disarm()

    def forget(self) -> None:
        """The frames are for a boot that is over. ``load`` arms again."""
        self._identities, self.loaded_ns = {}, 0
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
