"""What each kind of fault is in truth, and how a verdict is held against it: right, inconclusive, or
wrong."""

from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.blocks.blockstamp import Write
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.wire.faults import FaultKind

OUTSIDE: Final = ("host_buffer", "primary_before_digest", "on_the_link")
"""Faults that no firmware can be asked for: made by the bench around it."""
CLEAN: Final = "clean"
ALONE: Final = "console_garble_alone"
KINDS: Final = (*(str(kind) for kind in FaultKind), *OUTSIDE, ALONE, CLEAN)

CHECK: Final = ("secondary before check", "data changed", "secondary")
TRUTHS: Final[dict[str, tuple[str | None, str | None, str | None]]] = {
    "bit_flip_sender": ("primary after digest", "data changed", "primary"),
    "bit_flip_receiver": CHECK,
    "bit_flip_store": ("secondary store after ack", "stored bits changed", "secondary"),
    "neg_ack": ("response", "neg-ack", "secondary"),
    "lost_ack": ("response", "lost", "secondary"),
    "late_ack": ("response", "late", "secondary"),
    "repeated_ack": ("response", "repeated", "secondary"),
    "wrong_barrier_count": ("response", "wrong barrier", "secondary"),
    "lost_write": ("lost write", "not stored", "secondary"),
    "misdirected_write": ("misdirected write", "stored elsewhere", "secondary"),
    "stall": ("stall", "not reading", "secondary"),
    "console_garble": CHECK,
    "hung_warmstart": CHECK,
    "misplaced_copy": ("primary before digest", "misplaced copy", "primary"),
    "stale_copy": ("primary before digest", "stale copy", "primary"),
    "resync_bits_dropped": CHECK,
    "resync_denied": CHECK,
    "resync_empty": CHECK,
    "host_buffer": ("host buffer", "data changed", "host"),
    "primary_before_digest": ("primary before digest", "data changed", "primary"),
    "on_the_link": ("on the link", "data changed", "link"),
    ALONE: ("console", "garbled console", "secondary"),
    CLEAN: (None, None, None),
}
"""Kind -> (stage, kind, side) that the verdict must name."""
OMISSIONS: Final = ("resync_bits_dropped", "resync_denied", "resync_empty")
ALSO: Final = {
    "console_garble": "garbled console", "hung_warmstart": "hung warmstart",
    **dict.fromkeys(OMISSIONS, "omitted"),
}  # fmt: skip
FLIPS: Final = frozenset({"bit_flip_sender", "bit_flip_receiver", "bit_flip_store", *ALSO})
NO_WRITE: Final = frozenset({"wrong_barrier_count", ALONE, CLEAN})
"""Kinds that are about no single write."""


@dataclass
class Truth:
    """What was really done, noted by the hooks."""

    write_no: int | None = None
    """The primary's number of the write: counts the host's writes from 1."""
    bit: int | None = None
    """Of the write's data, when one was flipped."""


def judged(kind: str, truth: Truth, verdict: Verdict, writes: list[Write]) -> tuple[str, str]:
    """(right | inconclusive | wrong, why) of a verdict, held against what was really done."""
    expected = TRUTHS[kind]
    said = (verdict.stage, verdict.kind, verdict.side)
    if not verdict.conclusive:
        return "inconclusive", verdict.reason
    if said != expected:
        return "wrong", f"said {said}, it was {expected}: {verdict.text}"
    if kind in NO_WRITE:
        return "right", ""
    assert truth.write_no is not None
    write = writes[truth.write_no - 1]
    if verdict.write_id != write.write_id:
        return "wrong", f"said write {verdict.write_id}, it was {write.write_id}"
    if truth.bit is not None:
        place = (verdict.byte_offset, verdict.bit_mask, verdict.lba)
        really = (truth.bit // 8, 1 << truth.bit % 8, write.lba + truth.bit // 8 // 512)
        if place != really:
            return "wrong", f"said byte, mask, sector {place}, it was {really}"
    if kind in ALSO and ALSO[kind] not in [one.kind for one in verdict.also]:
        return "wrong", f"did not tell of the {ALSO[kind]}"
    return "right", ""


def lies(kind: str, truth: Truth, verdict: Verdict, writes: list[Write]) -> str:
    """What a verdict on cut evidence says that is not so; "" when it says less than could be known,
    and nothing wrong."""
    expected = TRUTHS[kind]
    if not verdict.conclusive:
        said = [*verdict.candidates, *([verdict.stage] if verdict.stage else [])]
        return (
            f"it says one of {said}, it was {expected[0]}"
            if said and expected[0] not in said
            else ""
        )
    if kind in ALSO and verdict.stage in ("console", "control", "resync"):
        return ""  # the data's divergence is not to be seen any more, the other trouble is
    if (verdict.stage, verdict.kind, verdict.side) != expected:
        return f"said {verdict.stage}, {verdict.kind}, {verdict.side}; it was {expected}"
    if kind in NO_WRITE or truth.write_no is None:
        return ""
    write = writes[truth.write_no - 1]
    if verdict.write_id not in (None, write.write_id):
        return f"said write {verdict.write_id}, it was {write.write_id}"
    if truth.bit is not None and verdict.byte_offset is not None:
        said_place, place = (
            (verdict.byte_offset, verdict.bit_mask),
            (truth.bit // 8, 1 << truth.bit % 8),
        )
        return f"said byte, mask {said_place}, it was {place}" if said_place != place else ""
    return ""
