"""Autonomic mode, where the secondary's own monitor has to be armed before it can act."""

from collections.abc import Mapping

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.roles import Controller, Identity, Preparable, SelfMonitoring
from freezeframe.harness.wire.control import Reason


def arm_secondary(
    controllers: Mapping[Side, Controller],
    identities: Mapping[Side, Identity],
    incident_id: bytes,
    deadline_ns: Ns,
) -> None:
    """Hand it both frames, for these boots, where its driver plays that role. Nothing before both are
    identified."""
    secondary = controllers.get("secondary")
    if not isinstance(secondary, SelfMonitoring) or not identities.keys() >= set(SIDES):
        return
    frames: dict[Side, bytes] = {}
    for side in SIDES:
        reason = Reason.PEER_TRIGGER if side == "primary" else Reason.SELF
        controller = controllers[side]
        if isinstance(controller, Preparable):
            controller.prepare(identities[side], incident_id, deadline_ns)
        frames[side] = controller.freeze_frame(identities[side], reason, incident_id)
    secondary.monitor(incident_id, frames["primary"], frames["secondary"], deadline_ns)
