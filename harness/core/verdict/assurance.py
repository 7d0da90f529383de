"""What may be said as good news of an incident, and what takes it away: a thing that was not seen, or not
checked, is never good. Pure.

The verdict, the summary, the page and the list ask here before they say that data are equal, that no
write was lost, that consoles were watched, or that nothing diverged.
"""

from collections.abc import Iterator

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.core.link.blindness import Demand, Sight, unproved
from freezeframe.harness.core.link.protocol import Tell
from freezeframe.harness.core.link.resync import BLOCK_BYTES
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.record import IncidentRecord


# --- of a record ----------------------------------------------------------------------------------------------
def data_equal(record: IncidentRecord) -> bool | None:
    """Whether primary and secondary hold the same, and what the host was promised as far as that
    is known. None: not one byte was compared, the record does not say, or a resync left something out
    that differed, so that what was equal when it was compared was so by chance."""
    compared = record.comparison
    if record.data_equal is False or (compared is not None and not compared.data_equal):
        return False
    if left_out(record):
        return None
    if compared is not None:
        return True if compared.bytes_compared else None
    return record.data_equal


def left_out(record: IncidentRecord) -> tuple[str, ...]:
    """What resyncs left out although a side calls both up to date, as the verdict found; a sentence
    each."""
    resyncs = record.verdict.resyncs if record.verdict is not None else ()
    return tuple(
        f"a resync left out {max(one.bytes_omitted, one.blocks_lost * BLOCK_BYTES)} bytes that differ, and a side calls "
        "both up to date"
        for one in resyncs
        if one.bytes_omitted or one.blocks_lost
    )


def has_promises(record: IncidentRecord) -> bool:
    """What the host was promised took part in the comparison: a journal with acknowledged writes."""
    compared = record.comparison
    return compared is not None and compared.acked_writes > 0


def lost_writes(record: IncidentRecord) -> int | None:
    """Acknowledged writes that are lost; None: not known, or there was none that could be lost."""
    lost = record.lost_acked_writes
    if lost:
        return lost
    compared = record.comparison
    if compared is not None and not (compared.bytes_compared and compared.acked_writes):
        return None
    return None if data_equal(record) is None else lost


def slow_reaction(source: str, reaction_us: float | None, budget_us: float | None) -> str:
    """Say that the first frame was later than the bench allows; "" when it was not, when the bench
    allows any time, or when nobody had to be quick: ``source`` operator."""
    if budget_us is None or reaction_us is None or source == "operator" or reaction_us <= budget_us:
        return ""
    return (
        f"slow reaction: the first frame was written {reaction_us:.1f} us after the trigger was read, "
        f"{budget_us:g} us are allowed"
    )


def not_watched(record: IncidentRecord) -> Iterator[str]:
    """Consoles of which it was tried, and not proved, that they were watched; a sentence each."""
    for side in SIDES:
        canary, recheck = record.canaries.get(side), record.recheck.get(side)
        if canary is not None and canary.seen is not True:
            yield f"the canary of the {side} was not heard"
        if recheck is not None and recheck.agrees is not True:
            differs = "was not done" if recheck.agrees is None else "differs"
            yield f"the recheck of the {side}'s console {differs}"
        elif recheck is not None and not recheck.checked_bytes:
            yield f"nothing of the {side}'s console was searched again"


def line_losses(record: IncidentRecord, side: Side) -> str:
    """Say what a side's console lacks because its serial driver lost it; "": nothing, or its driver
    does not count."""
    counted = record.line_errors.get(f"{side} console", LineErrors())
    if not counted.losses:
        return ""
    return (
        f"bytes of the {side}'s console are missing or wrong, its serial driver counted: "
        f"{counted.losses}"
    )


# --- of the evidence ------------------------------------------------------------------------------------------
def not_judged(e: Evidence) -> tuple[str, ...]:
    """Why a run in which nothing was found wrong is no proof that nothing diverged, a sentence each."""
    return tuple(dict.fromkeys(_not_judged(e)))


def _not_judged(e: Evidence) -> Iterator[str]:
    for side, own in e.sides.items():
        if not own.console:
            yield f"nothing of the {side}'s console was recorded"
        if lost := line_losses(e.record, side):
            yield lost
    yield from not_watched(e.record)
    if e.journal is None:
        yield e.journal_problem
    elif e.journal.torn_bytes:
        yield "the host's journal ends in a record that was cut off"
    elif not e.journal.acked:
        yield "no write of the host was acknowledged"
    if not has_promises(e.record):
        yield "the data were not compared with what the host was promised"
    yield from _of_the_link(e)


def _of_the_link(e: Evidence) -> Iterator[str]:
    link = e.link
    if e.link_problem:
        yield e.link_problem
    if link is None:
        return
    writes = e.own_writes
    checked = sum(one.digest_is_right is not None for one in writes)
    with_data = sum(one.crc32c >= 0 for one in writes)
    answered = sum(one.is_acked for one in writes)
    demand = Demand(
        protocol=link.ends.protocol, tells=link.protocol.tells, ports=tuple(link.ends.ports)
    )
    sight = Sight(
        writes=len(writes), answers=answered, digests_checked=checked,
        frames_dropped=e.capture_drops, gaps=link.gaps,
        blind={str(one.kind): one.says for one in link.blind},
    )  # fmt: skip
    yield from unproved(demand, sight, wrote=True).values()
    if Tell.DIGEST not in demand.tells:
        yield f"protocol {demand.protocol} carries no digest: damage on the link would not be seen there"
    elif 0 < checked < with_data:
        yield f"{with_data - checked} of {with_data} captured writes carry no digest that could be checked"
    if Tell.ANSWER in demand.tells and 0 < answered < len(writes):
        yield f"of {len(writes) - answered} of {len(writes)} captured writes no answer was captured"
    if link.is_cut_short:
        yield "the capture holds more writes than are looked at"
    if e.frames_missing:
        yield f"the capture lacks {e.frames_missing} of the frames that were recorded"
