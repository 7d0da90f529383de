"""What is remembered of a pair while all is well: a verdict leans on it."""

import time
from collections.abc import Sequence
from typing import Final

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import Side
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.incident import Incident

STATE_TIMEOUT_S: Final = 5.0
"""For one question to a controller that has just answered others."""


def remember_healthy(
    opened: OpenBench,
    incident: Incident,
    sides: Sequence[Side] = (),
    timeout_s: float = STATE_TIMEOUT_S,
) -> None:
    """Record who is there, how its clock runs against ours, and its state; and the link's
    ends. ``sides``: empty: all that can be asked."""
    link, known_controllers = opened.bench.link, dict(incident.record.get("controllers", {}))
    for side in sides or opened.controllers:
        controller, asked_ns = opened.controllers[side], time.monotonic_ns()
        one = controller.identify(deadline_in(timeout_s))
        known_controllers[side] = {
            "driver": opened.bench.controller(side).driver, "uptime_error_ns": one.uptime_error_ns,
            "model": one.model, "serial_number": one.serial_number, "firmware_version": one.firmware_version,
            "boot_epoch": one.boot_epoch, "uptime_ns": one.uptime_ns, "t_asked_ns": asked_ns,
            "t_answered_ns": time.monotonic_ns(),
        }  # fmt: skip
        try:
            incident.store_healthy(side, controller.state(deadline_in(timeout_s)))
        except HarnessError as error:
            incident.note(f"{side}: no state record of its health: {error}")
    fields = {
        "controllers": known_controllers,
        "link": {
            "primary_address": link.primary_address, "secondary_address": link.secondary_address,
            "protocol": link.protocol, "ports": link.ports, "integrity_alg": link.integrity_alg,
            "must_check": link.to_check,
        },
    }  # fmt: skip
    incident.update(**fields)
