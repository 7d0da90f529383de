"""How good the evidence is, A to F: what is missing, and what its clocks are worth. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Side
from freezeframe.harness.core.link.blindness import HARMLESS
from freezeframe.harness.core.verdict.assurance import line_losses
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence

GRADES: Final = "ABCDEF"
CLOCK_LIMIT_NS: Final = 250 * NS_PER_MS
"""A device's clock that is known no better orders nothing against the link."""
DEPTH_NS: Final = NS_PER_S
"""Of an event log before the trigger: less says nothing of how it came to it."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    letter: str
    """A: all of it, F: next to nothing."""
    lacks: tuple[str, ...]
    """What is missing or doubtful, a sentence each."""


def grade(e: Evidence) -> Grade:
    """Each lack costs one letter, the link's and a side's two."""
    lacks = list(_lacks(e))
    down = sum(cost for cost, _ in lacks)
    return Grade(letter=GRADES[min(down, len(GRADES) - 1)], lacks=tuple(text for _, text in lacks))


def _lacks(e: Evidence) -> Iterator[tuple[int, str]]:
    yield from _link(e)
    for side in SIDES:
        yield from _side(e, side)
    if e.journal is None:
        yield 1, e.journal_problem
    elif e.journal.torn_bytes:
        yield (
            1,
            f"the host's journal ends in {e.journal.torn_bytes} bytes of a record that was cut off",
        )
    if not e.link_times_hold:
        yield (
            1,
            f"the wall clock, by which frames are timed, was set by {e.record.wall_step_ns / NS_PER_MS:+.0f} ms in the run",
        )
    if e.comparison is None:
        yield 1, "the data of the two sides were not compared"


def _link(e: Evidence) -> Iterator[tuple[int, str]]:
    if e.link is None:
        yield 1 if e.link_is_recorded else 2, e.link_problem
        return
    if e.link_problem:
        yield 1, e.link_problem
    if e.capture_drops:
        yield 1, f"the capture dropped {e.capture_drops} frames"
    for blind in e.link.blind:
        if blind.kind not in HARMLESS:
            yield 1, blind.says
    if not e.link.writes and not e.link.blind and e.is_uneventful:
        yield 2, "no replicated write was captured"
    if e.link.gaps:
        yield 1, f"the capture has {e.link.gaps} holes"
    if e.link.is_cut_short:
        yield 1, "the capture holds more writes than are looked at"
    if e.frames_missing:
        yield 1, f"the capture lacks {e.frames_missing} of the frames that were recorded"


def _side(e: Evidence, side: Side) -> Iterator[tuple[int, str]]:
    own = e.sides[side]
    if lost := line_losses(e.record, side):
        yield 1, lost
    if e.is_uneventful:  # nobody was asked for a set
        if not own.console:
            yield 1, f"there is no console log of the {side}"
        return
    if own.set is None:
        yield (
            2,
            f"the {side}'s root cause data set cannot be used: {own.set_problem or 'no reason given'}",
        )
    elif not own.log_is_whole and (not own.events or _depth_ns(own) < DEPTH_NS):
        yield 1, f"the {side}'s event log reaches back less than {DEPTH_NS // NS_PER_MS} ms"
    if not own.console:
        yield 1, f"there is no console log of the {side}"
    if own.set is None:
        return
    if not own.set.tells_each_write:
        yield 1, f"the {side}'s event log tells what went wrong, not each write's way"
    if own.clock is None:
        yield 1, f"nothing ties the {side}'s clock to ours"
    elif not own.clock.consistent:
        yield 1, f"what ties the {side}'s clock to ours contradicts itself: one of them was set"
    elif own.clock.error_ns > CLOCK_LIMIT_NS:
        yield 1, f"the {side}'s clock is known to {own.clock.error_ns / NS_PER_MS:.0f} ms only"


def _depth_ns(own: SideEvidence) -> int:
    return int(own.events[-1]["uptime_ns"] - own.events[0]["uptime_ns"])
