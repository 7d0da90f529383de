"""Decide which write failed, whether it may be sent again, and whether it failed again. Pure.

A write is sent again with the content known from the host journal, and only while its range must
hold that content: never over a newer write, acknowledged or in flight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from freezeframe.harness.core.blocks.blockstamp import Journal, Write
from freezeframe.harness.core.console.places import ConsoleText, place_in, places
from freezeframe.harness.core.events import NS_PER_S, Ns, Trigger

Outcome = Literal["transient", "deterministic", "not possible"]
UNANSWERED_NS: Final = NS_PER_S
"""A write without an answer for this long has failed. A healthy pair answers in a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class RedriveResult:
    """The result of sending the write again."""

    again: bool | None
    """Whether the write failed again; None: unknown."""
    reason: str
    write: Write | None = None

    @property
    def outcome(self) -> Outcome:
        if self.again is None:
            return "not possible"
        return "deterministic" if self.again else "transient"

    def as_record(self) -> dict[str, object]:
        """Return the entry ``redrive`` of incident.json, without the saves."""
        write = self.write
        return {
            "write_id": write.write_id if write else None,
            "sector": write.lba if write else None,
            "sectors": write.sectors if write else None,
            "again": self.again,
            "outcome": self.outcome,
            "reason": self.reason,
        }


def sector_in_line(line: bytes, texts: Sequence[ConsoleText]) -> int:
    """Return the sector named by a console line; -1: it names none."""
    found = place_in(line, texts)
    return found.sector if found is not None else -1


def failing_write(journal: Journal, sector: int, until_ns: Ns) -> Write | None:
    """Return the write that failed.

    With a sector: the last host write over it before ``until_ns``. Without (-1): the oldest write
    that had no answer for UNANSWERED_NS at that time.
    """
    if sector < 0:
        return next(
            (one for one in journal.unacked if one.time_ns <= until_ns - UNANSWERED_NS), None
        )
    over = [
        one for one in journal.writes.values() if _covers(one, sector) and one.time_ns <= until_ns
    ]
    return over[-1] if over else None


def why_not(journal: Journal, write: Write, writes_planned: int) -> str:
    """Return why ``write`` must not be sent again now; "": it may. ``writes_planned`` is the
    number of writes of the whole workload."""
    for one in journal.writes.values():
        overlaps = one.lba < write.lba + write.sectors and write.lba < one.lba + one.sectors
        if overlaps and one.write_id != write.write_id:
            if one.write_id > write.write_id:
                return f"a newer write, {one.write_id}, overlaps it"
            if one.write_id not in journal.acked:
                return f"an older write that overlaps it, {one.write_id}, is still in flight"
    if write.write_id not in journal.acked:
        return "it is still in flight"
    comes_round = writes_planned * write.sectors > journal.sectors
    if comes_round and len(journal.acked) < writes_planned:
        return (
            "the workload overwrites the volume repeatedly and may write this range at any moment"
        )
    return ""


def failed_again(
    triggers: Sequence[Trigger],
    cause: Trigger,
    write: Write,
    since_ns: Ns,
    line_of: Callable[[Trigger], bytes],
    texts: Sequence[ConsoleText],
) -> RedriveResult | None:
    """Return what the triggers since the resend say about the write; None: nothing yet.
    ``line_of`` returns the console line of a trigger; ``texts`` are those of the device."""
    earlier = {one.block_id for one in triggers if one.t_arrival_ns < since_ns and one.block_id}
    unnamed: RedriveResult | None = None
    for one in triggers:
        # A late report about the first attempt has the block id of the first attempt.
        if one.t_arrival_ns < since_ns or one.block_id in earlier:
            continue
        line = line_of(one) if one.source == "console" else b""
        if places(line, texts, "out-of-sync"):
            continue  # it is about the volume, which is read and compared anyway
        sector = one.sector if one.sector >= 0 else sector_in_line(line, texts)
        if sector >= 0 and _covers(write, sector):
            return RedriveResult(
                again=True, reason=f"{one.rule} names sector {sector} again", write=write
            )
        if sector < 0 and one.rule == cause.rule:
            reason = (
                f"{one.rule} triggered again and names no sector: it may be about another write"
            )
            unnamed = RedriveResult(again=None, reason=reason, write=write)
    return unnamed


def _covers(write: Write, sector: int) -> bool:
    return write.lba <= sector < write.lba + write.sectors
