"""How much of a controller's event log still told of the failing write when the log was saved: what
the speed is for.

The log is a ring. Each event that is logged between the trigger and the save is one that was known
at the trigger and may be overwritten; once as many have come as the ring holds, the failing write's
own events are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.rootcause import RootCauseSet, this_boot

WRITE_EVENTS: Final = frozenset({"HOST_WRITE", "REPL_SEND", "REPL_RECEIVE", "REPL_UNACKED"})
"""Events that name a write and where it went."""
BLOCK_ID_BYTES: Final = 8


@dataclass(frozen=True)
class RingDepth:
    held: int
    """Events in the saved log."""
    overwritten: int
    """Events that the ring had lost by then."""
    since_trigger: int | None
    """Logged from the trigger's arrival to the save; None: the controller's clock could not be told
    from ours."""
    since_write: int | None
    """Logged behind the failing write's first event that is still there; None: it is gone, or was
    never logged."""


def ring_depth(
    saved: RootCauseSet, t_arrival_ns: Ns | None, verdict: Mapping[str, Any], side: str
) -> RingDepth:
    """``side``: whose log it is; ``verdict``: which write failed, and the controllers' clocks."""
    events = saved.events
    first_seq = events[0]["seq"] if events else 0
    clock = (verdict.get("clocks") or {}).get(side) or {}
    since_trigger = None
    if t_arrival_ns is not None and isinstance(clock.get("offset_ns"), int):
        uptime_ns = t_arrival_ns - clock["offset_ns"]
        since_trigger = sum(event["uptime_ns"] > uptime_ns for event in this_boot(events))
    return RingDepth(len(events), first_seq, since_trigger, _since_write(saved, verdict))


def _since_write(saved: RootCauseSet, verdict: Mapping[str, Any]) -> int | None:
    sector, numbers = verdict.get("write_lba"), _write_numbers(verdict)
    # Both the clock and the primary's count of writes begin anew with each boot, and the log
    # outlives them.
    events = this_boot(saved.events)
    for at, event in enumerate(events):
        if (
            event["name"] in WRITE_EVENTS
            and event.get("sector") == sector
            and event.get("write_no") in numbers
        ):
            return len(events) - at - 1
    return None


def _write_numbers(verdict: Mapping[str, Any]) -> set[int]:
    """By which a log may know the write: the primary's own count, which is its block id read from
    the small end; or the secondary's, the low 63 bits of the block id read from the big end."""
    block_id = verdict.get("block_id")
    if not block_id:
        return set()
    raw = int(block_id, 16).to_bytes(BLOCK_ID_BYTES, "big")
    return {int.from_bytes(raw, "little"), int.from_bytes(raw, "big") & (1 << 63) - 1}
