"""Frames that went out for a trigger of a watch, and what of their recovery belongs to no incident."""

from dataclasses import dataclass

from freezeframe.harness.core.events import FrameFailed, FrameSent, Trigger
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.recovery.messages import Compared, Finish
from freezeframe.harness.runs.recording import Recording


@dataclass
class Strike:
    """Frames that went out, or could not."""

    recording: Recording
    cause: Trigger
    attempts: list[FrameSent | FrameFailed]
    resumed: bool = False


def not_compared() -> Compared:
    """Others go on writing while the volumes would be read."""
    return Compared(equal=None, detail="others go on writing")


def seen_before(action: m.Save) -> Trigger:
    """The trigger of an incident that was seen while nobody could be instructed."""
    hit = action.cause
    return Trigger(
        t_ns=hit.t_ns, t_match_ns=hit.t_ns, t_arrival_ns=hit.t_ns, rule=hit.rule, side=hit.side,
        source="operator", offset_bytes=0, instruct=list(action.epochs),
        detail="seen before the bench was armed again; saved as soon as it could be",
    )  # fmt: skip


def seen_before_kill(action: m.Collect) -> Trigger:
    """The trigger of an incident whose station was killed, as far as it is known."""
    rule, _, side = action.cause.rpartition(" on the ")
    return Trigger(
        t_ns=0, t_match_ns=0, t_arrival_ns=0, rule=rule or action.cause,
        side="primary" if side == "primary" else "secondary", source="operator", offset_bytes=0,
        instruct=list(action.out), detail="seen by a watch that was killed",
    )  # fmt: skip


def what_is_missing(finish: Finish | None) -> list[str]:
    """Why an incident was not collected whole; [] when it was."""
    if finish is None:
        return ["the recovery did not end"]
    wrong = [f"{one.side}: {one.reason}" for one in finish.sides if one.set != "complete"]
    if finish.rejoined is False:
        wrong.append(f"the pair did not return to full duplex: {finish.detail}")
    return wrong
