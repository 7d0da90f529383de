"""Which write failed, whether it may be sent again, and whether it failed again. Pure.

A write is sent again with the content that the host's journal knows, and only while that is what
its place must hold: never over a newer write, acknowledged or under way.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from freezeframe.harness.core.blocks.blockstamp import Journal, Write
from freezeframe.harness.core.events import NS_PER_S, Ns, Trigger

Outcome = Literal["transient", "deterministic", "not possible"]
UNANSWERED_NS: Final = NS_PER_S
"""A healthy pair answers in a tenth of it."""
_TOLD: Final = re.compile(
    rb"(?:Digest integrity check FAILED: |Out of sync: start=|failed to find request 0x[0-9a-f]+, sector )(\d{1,18})"
)


@dataclass(frozen=True, kw_only=True)
class RedriveResult:
    """What the second try came to."""

    again: bool | None
    """Whether the write failed again; None: that could not be found out."""
    reason: str
    write: Write | None = None

    @property
    def outcome(self) -> Outcome:
        if self.again is None:
            return "not possible"
        return "deterministic" if self.again else "transient"

    def as_record(self) -> dict[str, Any]:
        """``redrive`` of incident.json, but for the saves."""
        write = self.write
        return {
            "write_id": write.write_id if write else None,
            "sector": write.lba if write else None,
            "sectors": write.sectors if write else None,
            "again": self.again,
            "outcome": self.outcome,
            "reason": self.reason,
        }


def told_sector(line: bytes) -> int:
    """The sector that a console line complains of; -1: it names none."""
    found = _TOLD.search(line)
    return int(found[1]) if found else -1


def failing_write(journal: Journal, sector: int, until_ns: Ns) -> Write | None:
    """The host's last write over ``sector`` (-1: not named) before ``until_ns``; where no sector is
    named, the oldest that had been without an answer for so long by then that this must be the
    failure."""
    if sector < 0:
        return next(
            (one for one in journal.unacked if one.time_ns <= until_ns - UNANSWERED_NS), None
        )
    over = [
        one for one in journal.writes.values() if _covers(one, sector) and one.time_ns <= until_ns
    ]
    return over[-1] if over else None


def why_not(journal: Journal, write: Write, writes_planned: int) -> str:
    """Why ``write`` must not be sent again now; "" when it may. ``writes_planned``: the workload's,
    in all."""
    for one in journal.writes.values():
        overlaps = one.lba < write.lba + write.sectors and write.lba < one.lba + one.sectors
        if overlaps and one.write_id != write.write_id:
            if one.write_id > write.write_id:
                return f"its place has a newer write, {one.write_id}"
            if one.write_id not in journal.acked:
                return f"an older write over its place, {one.write_id}, is still under way"
    if write.write_id not in journal.acked:
        return "it is still under way"
    comes_round = writes_planned * write.sectors > journal.sectors
    if comes_round and len(journal.acked) < writes_planned:
        return "the host writes its volume over and over, and may write this place at any moment"
    return ""


def failed_again(
    triggers: Sequence[Trigger],
    cause: Trigger,
    write: Write,
    since_ns: Ns,
    line_of: Callable[[Trigger], bytes],
) -> RedriveResult | None:
    """What the triggers since the write was sent again say of it; None: nothing. ``line_of`` gives
    a trigger's line."""
    earlier = {one.block_id for one in triggers if one.t_arrival_ns < since_ns and one.block_id}
    unnamed: RedriveResult | None = None
    for one in triggers:
        # What is told late of the first try has the first try's id.
        if one.t_arrival_ns < since_ns or one.block_id in earlier:
            continue
        line = line_of(one) if one.source == "console" else b""
        if b"Out of sync" in line:
            continue  # of the volume: it is read, which says more
        sector = one.sector if one.sector >= 0 else told_sector(line)
        if sector >= 0 and _covers(write, sector):
            return RedriveResult(
                again=True, reason=f"{one.rule} names sector {sector} again", write=write
            )
        if sector < 0 and one.rule == cause.rule:
            reason = f"{one.rule} triggered again and names no sector: it may be of another write"
            unnamed = RedriveResult(again=None, reason=reason, write=write)
    return unnamed


def _covers(write: Write, sector: int) -> bool:
    return write.lba <= sector < write.lba + write.sectors
