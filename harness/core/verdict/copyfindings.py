"""Findings in copies that are whole and right by their digest, and not the copy that was due: of
another place, or of an older write. Pure.

Only the stamps of the host's blocks and its journal contradict them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from freezeframe.harness.core.blocks.blockstamp import Write
from freezeframe.harness.core.link.linkevidence import NO_ID, LinkWrite
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.findings import Finding, Stage

MISPLACED: Final = "misplaced copy"
STALE: Final = "stale copy"
BEFORE: Final = (Stage.HOST_BUFFER, Stage.PRIMARY_BEFORE_DIGEST)


def copy_findings(e: Evidence) -> list[Finding]:
    """Copies whose stamps contradict their place, or that were through already."""
    if e.journal is None or e.link is None or not e.link.protocol.host_addresses:
        return []
    found = []
    sent: dict[int, list[LinkWrite]] = {}
    for write in e.own_writes:
        written = e.journal.writes.get(write.write_id)
        if written is None or write.write_id == NO_ID or not _is_whole(write):
            continue
        if write.stamped_lba != write.sector:
            if written.lba <= write.stamped_lba < written.lba + written.sectors:
                found.append(_misplaced(e, write, written))
            continue
        before = sent.setdefault(write.write_id, [])
        if any(_was_through(one, write) for one in before):
            found.append(_stale(e, write))
        else:
            before.append(write)
    return found


def _is_whole(write: LinkWrite) -> bool:
    return (
        write.digest_is_right is not False
        and not write.has_broken_stamps
        and write.stamped_lba >= 0
    )


def _was_through(before: LinkWrite, write: LinkWrite) -> bool:
    """In the same session, and acknowledged before the other was sent."""
    return (
        before.row.session is write.row.session
        and before.row.answer == "ok"
        and before.t_ack_ns <= write.t_sent_ns
        and before.sector < write.sector + write.sectors
        and write.sector < before.sector + before.sectors
    )


def _misplaced(e: Evidence, write: LinkWrite, written: Write) -> Finding:
    reasons = [
        f"the capture shows data with a right digest at sector {write.sector}, and by their stamps they belong to "
        f"sector {write.stamped_lba}, where the host's journal has write {write.write_id}",
    ]
    found = Finding(
        stage=None, kind=MISPLACED, side="", candidates=BEFORE, expected=f"sector {write.stamped_lba}",
        found=f"sector {write.sector}", missing="the primary's event log, which tells where it took the write",
    ).of_write(e, write, write.write_id)  # fmt: skip
    arrived = e.primary.of_write("HOST_WRITE", e.primary_number(write))
    if arrived is None:
        return replace(found, reasons=tuple(reasons))
    if arrived["sector"] == written.lba:
        reasons.append(
            f"the primary took the write at sector {arrived['sector']}, where it belongs"
        )
        stage, side = Stage.PRIMARY_BEFORE_DIGEST, "primary"
    else:
        reasons.append(f"it arrived at the primary for sector {arrived['sector']}")
        stage, side = Stage.HOST_BUFFER, "host"
    return replace(found, stage=stage, side=side, candidates=(), missing="", reasons=tuple(reasons))


def _stale(e: Evidence, write: LinkWrite) -> Finding:
    reasons = [
        f"the capture shows data with a right digest, which are those of write {write.write_id}, whose copy had been "
        "acknowledged before",
    ]
    meant = _due(e, write, [one.write_id for one in e.own_writes])
    if meant is not None:
        reasons.append(
            f"by its journal the host wrote write {meant.write_id} there, of which no copy was captured"
        )
    found = Finding(
        stage=None, kind=STALE, side="", candidates=BEFORE, found=f"write {write.write_id}",
        expected=f"write {meant.write_id}" if meant is not None else "",
        missing="what the primary itself holds there",
    ).of_write(e, write, meant.write_id if meant is not None else None)  # fmt: skip
    if meant is None:
        found = replace(found, write_id=None)
    compared = e.comparison
    stage: Stage | None = None
    if compared is not None and compared.sides_equal is False:
        reasons.append("the two sides differ: the primary stored what it did not send")
        stage, side = Stage.PRIMARY_BEFORE_DIGEST, "primary"
    elif compared is not None and compared.data_equal and meant is not None and _stands(e, meant):
        reasons.append(
            "the primary holds the write, as the comparison found: it stored what it did not send"
        )
        stage, side = Stage.PRIMARY_BEFORE_DIGEST, "primary"
    elif compared is not None and compared.sides_equal and not compared.data_equal:
        reasons.append("both sides hold the same, which is not what the host was promised")
        stage, side = Stage.HOST_BUFFER, "host"
    if stage is None:
        return replace(found, reasons=tuple(reasons))
    return replace(found, stage=stage, side=side, candidates=(), missing="", reasons=tuple(reasons))


def _stands(e: Evidence, meant: Write) -> bool:
    """Whether the write is still the newest of some of its sectors."""
    assert e.journal is not None
    there = range(meant.lba, meant.lba + meant.sectors)
    return any(e.journal.expected(lba)[0] == meant for lba in there)


def _due(e: Evidence, write: LinkWrite, captured: Sequence[int]) -> Write | None:
    """The host's write to just these sectors that was due, and of which no copy was captured."""
    assert e.journal is not None
    seen = set(captured)
    due = [
        one
        for one in e.journal.writes.values()
        if (one.lba, one.sectors) == (write.sector, write.sectors)
        and one.write_id > write.write_id
        and one.write_id not in seen
        and one.time_ns <= write.t_sent_ns + e.link_error_ns
    ]
    return due[-1] if due else None
