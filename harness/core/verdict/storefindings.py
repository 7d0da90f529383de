"""Findings in the stores: blocks that a controller's scrub, or the comparison at the end, found to
be not what was meant.

A scrub tells each damaged block with the checksums of what was meant and what was found, and its
state record keeps the first blocks of each damaged extent as they were. What the stamps in them say
tells lost, misdirected and rotten apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from freezeframe.harness.core.blocks import crcbits
from freezeframe.harness.core.blocks.blockstamp import Kind, check, decode
from freezeframe.harness.core.link.linkevidence import NO_ID, LinkWrite
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.verdict.complaints import printed_out_of_sync
from freezeframe.harness.core.verdict.evidence import (
    Evidence,
    SideEvidence,
)
from freezeframe.harness.core.verdict.findings import (
    BytePlace,
    Finding,
    Stage,
    difference,
    single_bit,
)
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

STORE_STAGES: Final = (Stage.LOST_WRITE, Stage.MISDIRECTED_WRITE, Stage.STORE_AFTER_ACK)
MAX_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Meant:
    """The write that a sector should hold."""

    write_no: int
    write_id: int
    """NO_ID: which write of the host it was is not known."""
    record: EventRecord
    """Of its storing, in the side's event log."""
    write: LinkWrite | None


@dataclass(frozen=True, slots=True)
class Wrong:
    """One damaged sector that was kept."""

    sector: int
    kind: Kind
    found: bytes
    meant: Meant | None
    record: EventRecord
    """Of the scrub."""


def store_findings(e: Evidence) -> list[Finding]:
    found: list[Finding] = []
    for side in e.sides.values():
        mismatches = side.named("SCRUB_MISMATCH")
        if mismatches:
            found += _scrubbed(e, side, mismatches)
        elif not side.tells("SCRUB_MISMATCH"):
            found += _only_told(e, side)
    return found


def _only_told(e: Evidence, side: SideEvidence) -> list[Finding]:
    """The console says which blocks are damaged, and nothing more."""
    complaints = printed_out_of_sync(side)
    if not complaints:
        return []
    sector, sectors = complaints[0].sector, complaints[0].size
    return [
        Finding(
            stage=None, kind="damaged blocks", side=side.side, candidates=STORE_STAGES, lba=sector,
            reasons=(f"the {side.side}'s console says that {sectors} sectors from {sector} on are out of sync",),
            missing=f"the {side.side}'s log tells no more of them" if side.set is not None
            else f"the {side.side}'s root cause data set cannot be used: {side.set_problem or 'no reason given'}",
        )
    ]  # fmt: skip


def kept_blocks(side: SideEvidence) -> dict[int, bytes]:
    """sector -> content as it was found, of the blocks that the state record keeps."""
    diagnostics = side.set.state.get("diagnostics") if side.set is not None else None
    listed = diagnostics.get("damaged_blocks") if isinstance(diagnostics, dict) else None
    return {
        row[0]: row[1]
        for row in (listed if isinstance(listed, list) else [])
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], int) and isinstance(row[1], bytes)
        and len(row[1]) <= MAX_BLOCK_BYTES
    }  # fmt: skip


def _scrubbed(e: Evidence, side: SideEvidence, mismatches: Sequence[EventRecord]) -> list[Finding]:
    """Sort the damaged sectors by what they hold, and make one finding of each write that went
    wrong."""
    kept = kept_blocks(side)
    wrong: list[Wrong] = []
    unread: list[EventRecord] = []
    for record in mismatches:
        content = kept.get(record["sector"])
        sectors = _wrong_sectors(e, side, record, content) if content is not None else []
        wrong += sectors
        if not sectors:
            unread.append(record)
    findings = _misdirected(e, side, wrong)
    explained = {finding.write_id for finding in findings}
    findings += _lost(
        e, side, [one for one in wrong if one.meant is None or one.meant.write_id not in explained]
    )
    findings += _rotten(e, side, [one for one in wrong if one.kind in (Kind.CORRUPT, Kind.TORN)])
    if not findings:
        findings += _by_checksums(e, side, unread)
    return findings


def _wrong_sectors(
    e: Evidence, side: SideEvidence, record: EventRecord, content: bytes
) -> list[Wrong]:
    found = []
    for at in range(0, len(content), SECTOR_BYTES):
        sector = record["sector"] + at // SECTOR_BYTES
        data = content[at : at + SECTOR_BYTES]
        meant = _meant_at(e, side, sector, record)
        promised = e.promised(meant.write_id, sector, 1) if meant is not None else None
        if promised is None or promised != data:
            known = meant is not None and meant.write_id != NO_ID
            kind = check(data, sector, {meant.write_id} if meant is not None and known else None)
            if promised is None and kind in (Kind.OK, Kind.LOST):
                continue  # nothing says that it should be otherwise
            found.append(Wrong(sector, kind, data, meant, record))
    return found


def _meant_at(e: Evidence, side: SideEvidence, sector: int, before: EventRecord) -> Meant | None:
    """The newest write to ``sector`` that the side logged as stored before that record."""
    name = "REPL_STORE" if side.side == "secondary" else "HOST_WRITE"
    for record in reversed(side.named(name)):
        if record["seq"] < before["seq"] and _holds(record, sector):
            write = _captured(e, side, record)
            write_id = write.write_id if write is not None else NO_ID
            if write_id == NO_ID:
                write_id = _only_write(e, record)
            return Meant(record["write_no"], write_id, record, write)
    return None


def _holds(record: EventRecord, sector: int) -> bool:
    return bool(record["sector"] <= sector < record["sector"] + record["bytes"] // SECTOR_BYTES)


def _captured(e: Evidence, side: SideEvidence, record: EventRecord) -> LinkWrite | None:
    """The captured write that the side's record is about."""
    for write in e.writes_to(record["sector"], record["bytes"]):
        number = e.secondary_number(write) if side.side == "secondary" else e.primary_number(write)
        if number == record["write_no"]:
            return write
    return None


def _only_write(e: Evidence, record: EventRecord) -> int:
    """Without a capture: the host's write to just these sectors, when there was only one."""
    if e.journal is None:
        return NO_ID
    sectors = record["bytes"] // SECTOR_BYTES
    there = [
        one
        for one in e.journal.writes.values()
        if one.lba == record["sector"] and one.sectors == sectors
    ]
    return there[0].write_id if len(there) == 1 else NO_ID


# --- what the sectors say -----------------------------------------------------------------------------------
def _about(
    found: Finding,
    e: Evidence,
    side: SideEvidence,
    meant: Meant | None,
    wrong: Wrong | None,
    sector: int,
) -> Finding:
    """The finding about the write that a damaged sector should hold."""
    found = replace(found, side=side.side, lba=sector)
    if wrong is not None:
        found = replace(found, complaint=wrong.record, complained=side.side)
    if meant is None:
        return found
    if meant.write is not None:
        found = found.of_write(e, meant.write)
    else:
        write_id = meant.write_id if meant.write_id != NO_ID else None
        found = found.of_place(meant.record["sector"], meant.record["bytes"], write_id)
    return replace(found.logged(side, meant.record), lba=sector).timed(side, meant.record)


def _misdirected(e: Evidence, side: SideEvidence, wrong: Sequence[Wrong]) -> list[Finding]:
    """Whole sectors of a write that belongs elsewhere: where it landed; its own place should be
    stale."""
    landed: dict[int, Wrong] = {}
    for one in wrong:
        stamp = decode(one.found) if one.kind is Kind.MISDIRECTED else None
        if stamp is not None:
            landed.setdefault(stamp.write_id, one)
    findings = []
    for write_id, one in landed.items():
        stamp = decode(one.found)
        assert stamp is not None
        home = [
            other for other in wrong if other.meant is not None and other.meant.write_id == write_id
        ]
        where = f"sector {stamp.lba} of write {write_id} was found whole at sector {one.sector}"
        stale = (
            "its own place holds what was there before"
            if home
            else "its own place was not found damaged"
        )
        found = Finding(
            stage=Stage.MISDIRECTED_WRITE, kind="stored elsewhere", side=side.side,
            expected=f"sector {stamp.lba}", found=f"sector {one.sector}", reasons=(where, stale),
        )  # fmt: skip
        found = _about(found, e, side, home[0].meant if home else None, one, stamp.lba)
        findings.append(replace(found, write_id=write_id))
    return findings


def _lost(e: Evidence, side: SideEvidence, wrong: Sequence[Wrong]) -> list[Finding]:
    """Whole old content where the write should be, and the write's sectors nowhere else."""
    first: dict[int, Wrong] = {}
    for one in wrong:
        if one.kind in (Kind.LOST, Kind.STALE) and one.meant is not None:
            first.setdefault(one.meant.write_no, one)
    findings = []
    for one in first.values():
        assert one.meant is not None
        stamp = decode(one.found)
        holds = "zeroes" if stamp is None else f"write {stamp.write_id}"
        found = _about(
            Finding(stage=Stage.LOST_WRITE, kind="not stored", side="", found=holds),
            e, side, one.meant, one, one.sector,
        )  # fmt: skip
        reasons = (
            f"the {side.side} logged the write as stored, and its place holds {holds}, whole",
            "it was found nowhere else",
        )
        expected = f"write {found.write_id}" if found.write_id is not None else "the write"
        findings.append(replace(found, expected=expected, reasons=reasons))
    return findings


def _rotten(e: Evidence, side: SideEvidence, wrong: Sequence[Wrong]) -> list[Finding]:
    """Content that is the write's, but for some bits."""
    stage = Stage.STORE_AFTER_ACK if side.side == "secondary" else Stage.PRIMARY_STORE
    first: dict[int, Wrong] = {}
    for one in wrong:
        if one.meant is not None:
            first.setdefault(one.meant.write_no, one)
    findings = []
    for one in first.values():
        assert one.meant is not None
        promised = e.promised(one.meant.write_id, one.sector, 1)
        start = (one.sector - one.meant.record["sector"]) * SECTOR_BYTES
        place = difference(promised, one.found, start) if promised is not None else None
        if place is None:
            place = _from_checksums(one.record, one.meant, None)
        reasons = (
            f"the {side.side} logged the write as stored, and a scrub of its own found other bits there",
        )
        found = Finding(stage=stage, kind="stored bits changed", side="", reasons=reasons)
        found = _about(found, e, side, one.meant, one, one.sector)
        findings.append(found.located(place))
    return findings


def _from_checksums(
    record: EventRecord, meant: Meant | None, content: bytes | None
) -> BytePlace | None:
    """The one flipped bit of the block, as an offset in the write that it belongs to."""
    flipped = single_bit(
        record["expected_crc32"],
        record["found_crc32"],
        record["bytes"],
        content,
        polynomial=crcbits.CRC32,
    )
    if flipped is None or meant is None:
        return None
    offset = (record["sector"] - meant.record["sector"]) * SECTOR_BYTES + flipped.byte_offset
    return replace(flipped, byte_offset=offset) if 0 <= offset < meant.record["bytes"] else None


def _by_checksums(e: Evidence, side: SideEvidence, records: Sequence[EventRecord]) -> list[Finding]:
    """Damaged blocks whose content was not kept: one flipped bit can still be found from the two
    checksums."""
    if not records:
        return []
    record = records[0]
    flipped = single_bit(
        record["expected_crc32"],
        record["found_crc32"],
        record["bytes"],
        None,
        polynomial=crcbits.CRC32,
    )
    said = f"the {side.side}'s scrub found a damaged block at sector {record['sector']}"
    if flipped is None or len(records) > 1:
        found = Finding(
            stage=None, kind="damaged blocks", side="", candidates=STORE_STAGES, reasons=(said,),
            missing="what the damaged blocks held was not kept", complaint=record, complained=side.side,
        )  # fmt: skip
        meant = _meant_at(e, side, record["sector"], record)
        return [_about(found, e, side, meant, None, record["sector"])]
    sector = record["sector"] + flipped.byte_offset // SECTOR_BYTES
    meant = _meant_at(e, side, sector, record)
    stage = Stage.STORE_AFTER_ACK if side.side == "secondary" else Stage.PRIMARY_STORE
    found = Finding(
        stage=stage, kind="stored bits changed", side="", complaint=record, complained=side.side,
        reasons=(said, "one flipped bit explains its two checksums"),
    )  # fmt: skip
    found = _about(found, e, side, meant, None, sector)
    return [found.located(_from_checksums(record, meant, None))]


def compared_findings(e: Evidence) -> list[Finding]:
    """What the comparison at the end, or the workload that read its data back, found wrong and
    nothing before it: the last resort."""
    before_both = (Stage.HOST_BUFFER, Stage.PRIMARY_STORE)
    missing = "what tells when it went wrong: the capture, or an event log that reaches back so far"
    if e.wrong_reads:
        wrong = e.wrong_reads[0]
        sector = wrong.offset_bytes // SECTOR_BYTES
        reasons = [
            f"the host's workload read back {wrong.size_bytes} bytes from sector {sector} on and found them wrong: "
            f"{wrong.text}"
        ]
        if e.comparison is not None and e.comparison.sides_equal:
            reasons.append(
                "the primary and the secondary hold the same: it was wrong before the copy was made"
            )
        return [
            Finding(
                stage=None, kind="wrong data read back", side="primary", candidates=before_both, lba=sector,
                reasons=tuple(reasons), missing=missing,
            )
        ]  # fmt: skip
    first = e.comparison.first_difference if e.comparison is not None else None
    if first is None:
        return []
    sector = first.offset_bytes // SECTOR_BYTES
    candidates = (
        (Stage.PRIMARY_BEFORE_DIGEST, *STORE_STAGES) if first.side == "secondary" else before_both
    )
    return [
        Finding(
            stage=None, kind=f"{first.kind} data", side=first.side, candidates=candidates, lba=sector,
            reasons=(f"at the end the {first.side}'s sector {sector} was found {first.kind}",), missing=missing,
        )
    ]  # fmt: skip
