"""Findings in a resync: what it left out although a side calls both equal, and what it repaired for
no reason that the evidence shows. Pure.

The link shows which writes were open when the two parted, both bitmaps, and each block that was
copied. The host's journal shows what was written while they were apart; the event logs, what a side
itself had found damaged. The two dangers are opposite: a resync that omits something leaves the
sides different, and one that copies more than it had to heals, and hides, an older divergence.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns, Side
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.link.ranges import Ranges
from freezeframe.harness.core.link.resync import BLOCK_BYTES, Rejoin, left_out, sectors
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.findings import Finding, Stage
from freezeframe.harness.core.verdict.resyncrecord import ResyncRecord
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

OMITTED: Final = "omitted"
REPAIRED: Final = "repaired without an explanation"
MAX_RECORDS: Final = 32
MAX_LISTED: Final = 16
"""Ranges of one record; their number and their bytes are exact."""
PARTING_NS: Final = NS_PER_S
"""A side notices that the link is gone, and answers its host, so long before the capture shows it, at most."""
ANSWER_NS: Final = 10 * NS_PER_MS
"""After both are equal, a host's answer that comes so soon was decided before; frames after it need not exist."""
OLDER: Final = (Stage.LOST_WRITE, Stage.MISDIRECTED_WRITE, Stage.STORE_AFTER_ACK)


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One rejoin, held against everything that is known beside the link."""

    rejoin: Rejoin
    omitted: Ranges
    unexplained: Ranges


def audit(e: Evidence) -> list[Audited]:
    """Each rejoin of the capture; nothing is claimed of one that the capture does not show whole."""
    if e.link is None or e.capture_drops or e.link.gaps or e.frames_missing:
        return []
    return [
        Audited(
            rejoin=one,
            omitted=one.omitted(_unreplicated(e, one)),
            unexplained=_unexplained(e, one),
        )
        for one in e.link.rejoins
        if e.is_own(one.t_equal_ns or one.t_first_ns)
    ]


def _unexplained(e: Evidence, rejoin: Rejoin) -> Ranges:
    if e.journal is None or rejoin.t_parted_ns is None or not e.link_times_hold:
        return Ranges()  # whatever the host wrote while they were apart may explain it
    known = _written_meanwhile(e, rejoin) | _found_damaged(e)
    return rejoin.unexplained(known)


def _unreplicated(e: Evidence, rejoin: Rejoin) -> Ranges:
    """What the host wrote while the two were apart and had acknowledged, by its journal, as far as the
    link shows no answer to a copy of it."""
    owed = Ranges()
    if e.journal is None or rejoin.t_parted_ns is None or not e.link_times_hold:
        return owed
    assert e.link is not None
    answered = {one.write_id for one in e.link.writes if one.is_acked}
    # What was written before an earlier rejoin ended was that one's to copy.
    before = [
        one.t_equal_ns
        for one in e.link.rejoins
        if one.t_equal_ns < rejoin.t_parted_ns and one is not rejoin
    ]
    begin_ns = max(rejoin.t_parted_ns - PARTING_NS, e.link.t_first_ns + e.link_error_ns, *before)
    end_ns = rejoin.t_equal_ns - e.link_error_ns
    # What was under way at the end would be copied, and captured, before its host has an answer, unless
    # they parted again.
    again = [
        one.t_parted_ns for one in e.link.rejoins if (one.t_parted_ns or 0) > rejoin.t_equal_ns
    ]
    until_ns = min((one - PARTING_NS for one in again if one), default=e.link.t_last_ns)
    until_ns = max(until_ns, end_ns + ANSWER_NS)
    for written in e.journal.writes.values():
        acked_ns = e.journal.acked_ns.get(written.write_id, 0)
        is_apart = begin_ns < written.time_ns < end_ns
        if 0 < acked_ns < until_ns and is_apart and written.write_id not in answered:
            owed.add(written.lba * SECTOR_BYTES, (written.lba + written.sectors) * SECTOR_BYTES)
    return owed


def _written_meanwhile(e: Evidence, rejoin: Rejoin) -> Ranges:
    """What the host had begun to write before the two were equal, and was not answered when they
    parted."""
    found = Ranges()
    assert e.journal is not None and rejoin.t_parted_ns is not None
    begin_ns = rejoin.t_parted_ns - e.link_error_ns
    end_ns = (rejoin.t_equal_ns or rejoin.t_copied_last_ns) + e.link_error_ns
    for written in e.journal.writes.values():
        acked_ns = e.journal.acked_ns.get(written.write_id)
        if written.time_ns <= end_ns and (acked_ns is None or acked_ns >= begin_ns):
            found.add(written.lba * SECTOR_BYTES, (written.lba + written.sectors) * SECTOR_BYTES)
    return found


def _found_damaged(e: Evidence) -> Ranges:
    """What a side's own scrub had found damaged, and logged: a finding of its own."""
    found = Ranges()
    for side in e.sides.values():
        for record in side.named("SCRUB_MISMATCH"):
            start = record["sector"] * SECTOR_BYTES
            found.add(start, start + record["bytes"])
    return found


# --- findings -------------------------------------------------------------------------------------
def omitted_findings(e: Evidence, audited: Iterable[Audited]) -> list[Finding]:
    """A resync that left something out: the two sides differ, and call themselves equal."""
    found = []
    for one in audited:
        rejoin = one.rejoin
        if not one.omitted and not rejoin.blocks_lost:
            continue
        first = next((start // SECTOR_BYTES for start, _ in one.omitted), None)
        size = max(one.omitted.bytes, rejoin.blocks_lost * BLOCK_BYTES)
        reasons = (
            f"the capture shows a side that calls both up to date (frame {rejoin.equal_packet_no}), and "
            f"{left_out(one.omitted, rejoin.blocks_lost, SECTOR_BYTES)}",
            *_why_due(rejoin, one.omitted),
        )
        found.append(
            Finding(
                stage=Stage.RESYNC, kind=OMITTED, side=_side(e, rejoin.source), lba=first, reasons=reasons,
                expected=f"a copy of {size} bytes", found=f"{rejoin.copied_bytes} bytes copied",
                t_cause_ns=rejoin.t_equal_ns, t_cause_error_ns=e.link_error_ns, packet_no=rejoin.equal_packet_no,
            )
        )  # fmt: skip
    return found


def _why_due(rejoin: Rejoin, omitted: Ranges) -> list[str]:
    why = []
    if rejoin.exchanged & omitted:
        why.append("their bitmaps, as the capture shows them, mark these blocks as out of sync")
    if rejoin.owed & omitted:
        why.append("writes to them were unanswered when the two sides parted")
    if omitted - rejoin.exchanged - rejoin.owed:
        why.append("by its journal the host wrote them while the two sides were apart")
    return why


def repaired_findings(e: Evidence, audited: Iterable[Audited]) -> list[Finding]:
    """What was copied and had no reason to differ: an older divergence, or a mark that was stale. Where
    the secondary had read back all that it had stored, it can only be a mark."""
    found: list[Finding] = []
    if is_read_back(e):
        return found
    for one in audited:
        if not one.unexplained:
            continue
        first = next(iter(one.unexplained))[0] // SECTOR_BYTES
        target = next((a for a in one.rejoin.addresses if a != one.rejoin.source), "")
        older = _newest_write(e, one)
        said = (
            f"the resync copied {sectors(one.unexplained, SECTOR_BYTES)}, which nothing in the evidence had made "
            "differ: an older divergence there is healed, and hidden"
        )
        finding = Finding(
            stage=None, kind=REPAIRED, side=_side(e, target), candidates=OLDER, lba=first, reasons=(said,),
            missing="what these sectors held before they were copied over",
        )  # fmt: skip
        found.append(finding if older is None else finding.of_write(e, older))
    return found


def hidden(e: Evidence, audited: Iterable[Audited]) -> str:
    """Why an older divergence may have been healed without a trace, in what the resync copied though it
    had been acknowledged; "": a side had read back all of it before."""
    if is_read_back(e):
        return ""
    for one in audited:
        if one.rejoin.rewritten_blindly:
            there = sectors(one.rejoin.rewritten_blindly, SECTOR_BYTES)
            return f"the resync copied {there} again, and nobody had read back what the secondary held there"
    return ""


def is_read_back(e: Evidence) -> bool:
    """Whether the secondary had verified all that it had stored when its set was saved, before the two
    sides came together again."""
    own = e.secondary
    diagnostics = own.set.state.get("diagnostics") if own.set is not None else None
    left = diagnostics.get("unscrubbed_blocks") if isinstance(diagnostics, dict) else None
    return left == 0 and own.tells("SCRUB_MISMATCH")


def _newest_write(e: Evidence, one: Audited) -> LinkWrite | None:
    """The newest acknowledged write before the two parted that lies in what was repaired."""
    parted_ns = one.rejoin.t_parted_ns or 0
    for write in reversed(e.own_writes):
        start = write.row.offset_bytes
        if (
            write.is_acked
            and write.t_sent_ns < parted_ns
            and one.unexplained.touches(start, start + write.size_bytes)
        ):
            return write
    return None


def _side(e: Evidence, address: str) -> Side | str:
    ends = e.record.link
    if not address or ends is None:
        return ""
    if address == ends.primary_address:
        return "primary"
    return "secondary" if address == ends.secondary_address else ""


# --- the record -----------------------------------------------------------------------------------
def records(e: Evidence, audited: Iterable[Audited]) -> tuple[ResyncRecord, ...]:
    """What incident.json keeps of them: those that copied something, or should have."""
    shown = [one for one in audited if one.rejoin.copied or one.rejoin.exchanged or one.omitted]
    return tuple(_record(e, one) for one in shown[-MAX_RECORDS:])


def _record(e: Evidence, one: Audited) -> ResyncRecord:
    rejoin = one.rejoin
    return ResyncRecord(
        session=rejoin.session,
        volume=rejoin.volume,
        source=_side(e, rejoin.source),
        t_parted_ns=_time(rejoin.t_parted_ns),
        t_begin_ns=_time(rejoin.t_copied_first_ns),
        t_end_ns=_time(rejoin.t_copied_last_ns),
        t_equal_ns=_time(rejoin.t_equal_ns),
        bytes_copied=rejoin.copied_bytes,
        ranges=len(rejoin.copied),
        copied=_listed(rejoin.copied),
        bytes_marked=rejoin.exchanged.bytes,
        bitmap_packets=rejoin.plain_packets,
        compressed_bitmap_packets=rejoin.compressed_packets,
        bytes_omitted=one.omitted.bytes,
        omitted=_listed(one.omitted),
        blocks_lost=rejoin.blocks_lost,
        bytes_unexplained=one.unexplained.bytes,
        unexplained=_listed(one.unexplained),
        seen_whole=rejoin.is_judged and rejoin.t_parted_ns is not None,
    )


def _time(t_ns: Ns | None) -> Ns | None:
    return t_ns if t_ns else None


def _listed(ranges: Ranges) -> tuple[tuple[int, int], ...]:
    """(first sector, sectors) of the first ones."""
    pairs = [(start // SECTOR_BYTES, (end - start) // SECTOR_BYTES) for start, end in ranges]
    return tuple(pairs[:MAX_LISTED])
