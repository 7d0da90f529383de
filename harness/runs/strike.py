"""Frames that went out for a trigger of a watch, what of their recovery belongs to no incident, and what
a station says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import FrameFailed, FrameSent, Side, Trigger
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONTROL
from freezeframe.harness.core.recovery.messages import (
    Compared,
    Finish,
    FrameNotOut,
    FrameOut,
    Transition,
)
from freezeframe.harness.edge.clock import WallReading
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.view import View

HUNG: Final = "it did not come back from its warmstart"


@dataclass
class Strike:
    """Frames that went out, or could not."""

    recording: Recording
    cause: Trigger
    attempts: list[FrameSent | FrameFailed]
    resumed: bool = False

    def feed(self, collector: Collector, sides: Sequence[Side], failed: Mapping[Side, str]) -> None:
        """Give the recovery what went out to these sides, and why to the others nothing did."""
        sent = {one.side: one for one in self.attempts if isinstance(one, FrameSent)}
        began_ns = min((one.t_ns for one in self.attempts), default=None)
        for side in sides:
            if (reason := failed.get(side)) is not None:
                collector.feed(FrameNotOut(side=side, reason=reason, t_ns=began_ns))
                continue
            frame = sent.get(side)
            out = FrameOut(side=side, t_ns=frame.t_done_ns if frame else None)
            collector.feed(out, frame.frame if frame else b"")


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


def epochs_of(action: m.Collect, restarted: Mapping[Side, int]) -> dict[Side, int]:
    """Return whose sets are collected, with the oldest boot that they may be of. ``restarted``: the
    boot that an earlier incident ended with. A pair that acts by itself may do so before it is armed
    again, when what is armed is still of the boot before, and so is the set that was collected then."""
    return {
        side: max(action.epochs.get(side, 0), restarted.get(side, 0))
        for side in (*action.out, *action.failed)
    }


def restarted_in(finish: Finish | None) -> dict[Side, int]:
    """Return the boots in which a recovery left the sides that it saw restart."""
    sides = finish.sides if finish is not None else ()
    return {one.side: one.boot_epoch for one in sides if one.boot_epoch}


def tell_steps(steps: Sequence[Transition], view: View, audit: AuditJournal) -> None:
    """Show the steps of a recovery, and audit what was done to a controller that hung."""
    for one in steps:
        view.step(one.side, one.step, one.detail)
        if one.rung:
            audit.add(one.rung, one.side, HUNG, one.result)


def gap_in_words(gap: m.MarkGap, clock: WallReading) -> str:
    """What of a part was not recorded, or when it was gone."""
    since = "an unknown time" if gap.from_ns is None else f"{clock.utc(gap.from_ns)} UTC"
    what = "it was gone" if gap.part in CONTROL.values() else "nothing was recorded"
    text = f"{gap.part.value}: {what} from {since} to {clock.utc(gap.to_ns)} UTC"
    if gap.from_ns is None:
        return text
    return text + f" ({(gap.to_ns - gap.from_ns) / 1e9:.3f} s)"


def what_is_missing(finish: Finish | None) -> list[str]:
    """Why an incident was not collected whole; [] when it was."""
    if finish is None:
        return ["the recovery did not end"]
    wrong = [f"{one.side}: {one.reason}" for one in finish.sides if one.set != "complete"]
    if finish.rejoined is False:
        wrong.append(f"the pair did not return to full duplex: {finish.detail}")
    return wrong
