"""The frames that matter are tried out before anything depends on them: when a line is first armed,
and after it was reopened."""

from collections.abc import Mapping
from typing import Any, Final

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError
from freezeframe.harness.roles import UNREHEARSED, Controller, Rehearsing

ARMED: Final = "armed"
ARMED_UNREHEARSED: Final = "armed (unrehearsed)"


def rehearse(
    controllers: Mapping[Side, Controller],
    frames: Mapping[Side, bytes],
    deadline_ns: Ns,
    record: dict[str, Any],
) -> list[str]:
    """Try each side's frame out, in its full length and without its effect. ``record["armed"]`` says
    for each side what was proved. RigError: one does not get through. Returned: what could not be
    rehearsed."""
    armed = record.setdefault("armed", {})
    notes = []
    for side, frame in frames.items():
        controller = controllers[side]
        if not isinstance(controller, Rehearsing):
            armed[side] = {"state": ARMED_UNREHEARSED, "why": "its driver cannot try a frame out"}
            notes.append(f"{side}: {ARMED_UNREHEARSED}: {armed[side]['why']}")
            continue
        reply = controller.rehearse(frame, deadline_ns)
        if not reply.ok:
            raise RigError(
                f"the {side} controller does not take the frame that would be armed: {escape(reply.status)} "
                f"{escape(reply.text)}".rstrip()
                + f": is {controller.link.name} clean, and can it carry {len(frame)} bytes at once?"
            )
        if reply.status == UNREHEARSED:
            armed[side] = {"state": ARMED_UNREHEARSED, "why": escape(reply.text)}
            notes.append(f"{side}: {ARMED_UNREHEARSED}: {armed[side]['why']}")
        else:
            armed[side] = {"state": ARMED, "rehearsed_bytes": len(frame)}
    return notes
