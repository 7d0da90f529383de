"""How much of a controller's event log still held of the failing write when the log was saved: what
the speed is for.

The log is a ring. Each event that is logged between the trigger and the save is one that was known
at the trigger and may be overwritten; once as many have come as the ring holds, the failing write's
own events are gone.
"""

from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.rootcause import RootCauseSet, this_boot
from freezeframe.harness.core.verdict.record import Verdict

WRITE_EVENTS: Final = frozenset({"HOST_WRITE", "REPL_SEND", "REPL_RECEIVE", "REPL_UNACKED"})
"""Events that name a write and where it went."""


@dataclass(frozen=True)
class RingDepth:
    held: int
    """Events in the saved log."""
    overwritten: int
    """Events that the ring had lost by then."""
    since_trigger: int | None
    """Logged from the trigger's arrival to the save; None: the controller's clock could not be fitted
    from ours."""
    since_write: int | None
    """Logged behind the failing write's first event that is still there; None: it is gone, or was
    never logged."""


def ring_depth(
    saved: RootCauseSet, t_arrival_ns: Ns | None, verdict: Verdict, side: Side
) -> RingDepth:
    """``side``: whose log it is; ``verdict``: which write failed, and the controllers' clocks."""
    events = saved.events
    first_seq = events[0]["seq"] if events else 0
    clock = verdict.clocks.get(side)
    since_trigger = None
    if t_arrival_ns is not None and clock is not None:
        uptime_ns = t_arrival_ns - clock.offset_ns
        since_trigger = sum(event["uptime_ns"] > uptime_ns for event in this_boot(events))
    return RingDepth(len(events), first_seq, since_trigger, _since_write(saved, verdict, side))


def _since_write(saved: RootCauseSet, verdict: Verdict, side: Side) -> int | None:
    number = verdict.primary_no if side == "primary" else verdict.secondary_no
    if number is None:
        return None
    # Both the clock and the primary's count of writes begin anew with each boot, and the log
    # outlives them.
    events = this_boot(saved.events)
    for at, event in enumerate(events):
        if (
            event["name"] in WRITE_EVENTS
            and event.get("sector") == verdict.write_lba
            and event.get("write_no") == number
        ):
            return len(events) - at - 1
    return None
