"""Findings on a write's way from the host to the secondary's check: who had the right data last,
who had wrong ones. Pure.

    host journal -> primary's log (host write, send) -> transmit buffer -> capture -> secondary's digest check

The capture stands at the secondary's end of the link, so that what it shows right was right until
the secondary had it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from freezeframe.harness.core.blocks.blockstamp import stamped_crc
from freezeframe.harness.core.events import NS_PER_MS
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.text import sector_range
from freezeframe.harness.core.verdict.complaints import Complaint, printed_digests
from freezeframe.harness.core.verdict.evidence import (
    Evidence,
    SideEvidence,
)
from freezeframe.harness.core.verdict.findings import (
    BytePlace,
    Finding,
    Stage,
    difference,
    host_write,
    single_bit,
)
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

ON_THE_WAY: Final = (Stage.PRIMARY_AFTER_DIGEST, Stage.ON_THE_LINK)
CRC_BYTES: Final = 4
GHOST_WRITE: Final = "ghost write"
SECOND_DIGEST_NS: Final = 250 * NS_PER_MS
"""A primary's second digest follows its sending at once; so much is left for its log and the
capture."""


def digest_findings(e: Evidence) -> list[Finding]:
    """Data that do not fit their digest: on the link for all to see, or only where the secondary
    checked."""
    wrong = [one for one in e.own_writes if one.digest_is_right is False]
    found = [_wrong_on_the_wire(e, write) for write in wrong]
    known = {(one.sector, one.size_bytes) for one in wrong}
    for side in e.sides.values():
        for complaint in _complaints(side):
            where = complaint.sector, complaint.size
            if where not in known:
                known.add(where)
                found.append(_wrong_at_the_check(e, side, complaint))
    return [_with_complaint(e, one) for one in found]


def _complaints(side: SideEvidence) -> list[Complaint]:
    """Digest failures that the side complained of: in its event log, or where that does not reach back, on its
    console."""
    if side.tells("REPL_DIGEST_FAILED"):
        logged = [
            Complaint(one["sector"], one["bytes"], one) for one in side.named("REPL_DIGEST_FAILED")
        ]
        if logged or side.log_is_whole:
            return logged
    return printed_digests(side)


def _with_complaint(e: Evidence, found: Finding) -> Finding:
    """The finding with the record in which a side refused that write."""
    where = found.write_lba, found.write_sectors
    for side in e.sides.values():
        for one in _complaints(side):
            if one.record is not None and (one.sector, one.size // 512) == where:
                return replace(found, complaint=one.record, complained=side.side)
    return found


def _complaints_of(side: SideEvidence, sector: int, size: int) -> list[Complaint]:
    return [one for one in _complaints(side) if (one.sector, one.size) == (sector, size)]


def _content_of(e: Evidence, write: LinkWrite) -> tuple[int, bytes] | None:
    """(write id, content) as the host wrote it."""
    return host_write(e, write.sector, write.sectors, write.data or None, write.write_id)


def _wrong_on_the_wire(e: Evidence, write: LinkWrite) -> Finding:
    """The capture shows data that do not fit their digest: it was before the secondary."""
    meant = _content_of(e, write)
    place = difference(meant[1], write.data) if meant is not None and write.data else None
    if place is None and write.row.algorithm == "crc32c":
        right = int.from_bytes(write.row.digest_wire, "little")
        if (
            write.data
            and (flipped := single_bit(right, write.crc32c, write.size_bytes, None)) is not None
        ):
            place = _undone(write.data, flipped)
    reasons = [f"the capture shows {write.size_bytes} bytes of data that do not fit their digest"]
    if write.resent_as is not None:
        again, answer = write.resent_as, write.resent_as.ack
        reasons.append(
            f"the same data were sent again as {again.row.session.id_name} {again.block_id}"
            + (f" and answered {answer}: the write is not lost" if again.row.answer == "ok" else "")
        )
    stage, side, missing = _sender_or_link(e, write, reasons)
    return Finding(
        stage=stage, kind="data changed", side=side, candidates=() if stage else ON_THE_WAY,
        reasons=tuple(reasons), missing=missing,
    ).of_write(e, write, _id(meant)).located(place)  # fmt: skip


def _id(meant: tuple[int, bytes] | None) -> int | None:
    return meant[0] if meant is not None else None


def _undone(data: bytes, flipped: BytePlace) -> BytePlace | None:
    """Where the one bit is that makes ``data`` fit their digest again."""
    right = bytearray(data)
    right[flipped.byte_offset] ^= flipped.bit_mask
    return difference(bytes(right), data)


def _sender_or_link(
    e: Evidence, write: LinkWrite, reasons: list[str]
) -> tuple[Stage | None, str, str]:
    """Was it changed in the primary's memory or under way? What the primary's transmit buffer held
    afterwards tells."""
    primary, number = e.primary, e.primary_number(write)
    if primary.set is None:
        return (
            None,
            "",
            f"the primary's root cause data set cannot be used: {primary.set_problem or 'no reason given'}",
        )
    if not primary.tells("REPL_SEND", "REPL_UNACKED"):
        return _by_the_second_digest(e, write, reasons)
    sent, kept = primary.of_write("REPL_SEND", number), primary.of_write("REPL_UNACKED", number)
    if sent is None or kept is None:
        return None, "", "the primary's event log does not tell what its transmit buffer held"
    if sent["crc32c"] == write.crc32c:
        reasons.append(
            "it is the digest that was changed: the data are those that the primary logged"
        )
    if kept["crc32c"] != sent["crc32c"]:
        reasons.append(
            f"the primary logged CRC-32C {sent['crc32c']:08x} when it made the digest, and found "
            f"{kept['crc32c']:08x} in its transmit buffer afterwards"
        )
        return Stage.PRIMARY_AFTER_DIGEST, "primary", ""
    reasons.append(
        f"the primary's transmit buffer still holds what it made the digest of ({kept['crc32c']:08x})"
    )
    return Stage.ON_THE_LINK, "link", ""


def _by_the_second_digest(
    e: Evidence, write: LinkWrite, reasons: list[str]
) -> tuple[Stage | None, str, str]:
    """A primary that tells no more than that it made a digest again, once the data were in its
    socket, and found its buffer changed."""
    primary = e.primary
    if not primary.tells("REPL_BUFFER_CHANGED"):
        return None, "", "the primary's event log does not tell what its transmit buffer held"
    there = e.writes_to(write.sector, write.size_bytes)
    changed_buffers = _changed_buffers(e, write.sector, write.size_bytes)
    if any(_is_of(e, one, write, there) for one in changed_buffers):
        reasons.append(
            "the primary made the digest again when the data were in its socket, and logged that its buffer had changed"
        )
        return Stage.PRIMARY_AFTER_DIGEST, "primary", ""
    if changed_buffers:
        return (
            None,
            "",
            "which of the writes to this place it was whose buffer the primary found changed",
        )
    first = primary.at(primary.events[0]) if primary.events else None
    if not primary.log_is_whole and (first is None or first[0] + first[1] > write.t_sent_ns):
        return None, "", "the primary's event log does not reach back to the write"
    reasons.append(
        "the primary logged no change of its buffer: once the data were in its socket, it was as the digest says"
    )
    return (
        None,
        "",
        "what the primary's socket and transmit path sent: a capture at its own end of the link",
    )


def _changed_buffers(e: Evidence, sector: int, size: int) -> list[EventRecord]:
    named = e.primary.named("REPL_BUFFER_CHANGED")
    return [one for one in named if (one["sector"], one["bytes"]) == (sector, size)]


def _is_of(e: Evidence, record: EventRecord, write: LinkWrite, there: Sequence[LinkWrite]) -> bool:
    """Whether the record can only be about this one of the writes to its place."""
    if len(there) == 1 and e.capture_is_whole:
        return True
    at = e.primary.at(record)
    if at is None or not e.link_times_hold or not e.capture_is_whole:
        return False
    near = [one for one in there if abs(one.t_sent_ns - at[0]) <= at[1] + SECOND_DIGEST_NS]
    return near == [write]


def _wrong_at_the_check(e: Evidence, side: SideEvidence, complaint: Complaint) -> Finding:
    """A side refused data; was what arrived there right?"""
    sector, size = complaint.sector, complaint.size
    reasons = [
        f"the {side.side} refused {sector_range(sector, size // SECTOR_BYTES)}: digest wrong"
    ]
    refused = [one for one in e.writes_to(sector, size) if _may_be_refused(e, one)]
    if not refused:
        return _refused_and_not_captured(e, side, complaint, reasons)
    write = refused[-1]
    meant = _content_of(e, write)
    base = Finding(stage=None, kind="data changed", side="").of_write(e, write, _id(meant))
    if write.digest_is_right is None and write.data and write.has_broken_stamps:
        return _wrong_before_the_digest(e, write, meant)
    if write.digest_is_right is None:
        return replace(
            base, candidates=(*ON_THE_WAY, Stage.SECONDARY_BEFORE_CHECK), reasons=tuple(reasons),
            missing="the capture's digest of this write cannot be checked",
        )  # fmt: skip
    reasons.append(
        "the capture at that side's end of the link shows the data right, with their right digest"
    )
    content = write.data or (meant[1] if meant is not None else None)
    place = _flipped_at(complaint, content)
    if place is not None:
        reasons.append("one flipped bit explains both digests that it logged")
    return replace(
        base, stage=Stage.SECONDARY_BEFORE_CHECK, side=side.side, reasons=tuple(reasons)
    ).located(place)


def _may_be_refused(e: Evidence, write: LinkWrite) -> bool:
    """Whether the secondary may have refused this write, by the way in which the protocol refuses
    data with a wrong digest. One that was answered as good was not refused."""
    row = write.row
    if e.link is not None and e.link.protocol.refuses_by == "status":
        return row.answer == "refused" or (row.unknown and not row.is_answered)
    return not row.is_answered


def _refused_and_not_captured(
    e: Evidence, side: SideEvidence, complaint: Complaint, reasons: list[str]
) -> Finding:
    """The capture does not hold the refused write: what the two logs say of it."""
    sector, size = complaint.sector, complaint.size
    base = Finding(stage=None, kind="data changed", side="").of_place(
        sector, size, _only_write(e, sector, size)
    )
    place, changed = _flipped_at(complaint, None), _changed_buffers(e, sector, size)
    if len(changed) == 1 and len(_complaints_of(side, sector, size)) == 1:
        reasons.append(
            "the primary made the digest of its write there again when the data were in its socket, and logged that "
            "its buffer had changed"
        )
        made = replace(
            base, stage=Stage.PRIMARY_AFTER_DIGEST, side="primary", reasons=tuple(reasons)
        )
        return made.timed(e.primary, changed[0]).located(place)
    missing = "the write is not in the capture" if e.link else e.link_problem
    open_stages = (*ON_THE_WAY, Stage.SECONDARY_BEFORE_CHECK)
    made = replace(base, candidates=open_stages, reasons=tuple(reasons), missing=missing)
    return made.timed(side, complaint.record).located(place)


def _only_write(e: Evidence, sector: int, size: int) -> int | None:
    """Without a capture: the host's write there, when it wrote only one."""
    if e.journal is None:
        return None
    there = [
        one for one in e.journal.writes.values() if one.lba == sector and one.sectors * 512 == size
    ]
    return there[0].write_id if len(there) == 1 else None


def _flipped_at(complaint: Complaint, content: bytes | None) -> BytePlace | None:
    """From the two digests that the side logged: which bit, when it was one and the digest is a
    CRC-32C."""
    record = complaint.record
    if record is None or "digest" not in record:
        return None
    if max(record["digest"], record["computed"]) >> (8 * CRC_BYTES):
        return None
    return single_bit(record["digest"], record["computed"], complaint.size, content)


def ghost_findings(e: Evidence) -> list[Finding]:
    """Old copies of writes that came after their retries and after newer writes: each digest is right,
    and the copy holds old data."""
    if e.link is None:
        return []
    return [
        Finding(
            stage=Stage.ON_THE_LINK, kind=GHOST_WRITE, side="link", packet_no=one.row.packet_no,
            t_cause_ns=one.row.t_sent_ns, t_cause_error_ns=e.link_error_ns,
            reasons=(
                f"an old copy of {one.retry.write_id_text} came over a session that its sender had given up, "
                f"after {one.newer.write_id_text} had written to that place",
            ),
        ).of_place(e.of_host(one.row.sector), one.row.length_bytes)
        for one in e.link.ghosts
        if e.is_own(one.row.t_sent_ns)
    ]  # fmt: skip


def unchecked_findings(e: Evidence) -> list[Finding]:
    """Data that fit their digest and are not what the host was to write: wrong before the digest
    was made."""
    found = []
    for write in e.own_writes:
        if write.data and write.digest_is_right is not False and write.has_broken_stamps:
            found.append(_wrong_before_the_digest(e, write, _content_of(e, write)))
    return found


def _wrong_before_the_digest(
    e: Evidence, write: LinkWrite, meant: tuple[int, bytes] | None
) -> Finding:
    has_digest = bool(write.digest_is_right)
    unchecked = "have no digest that can be checked, and do not fit"
    fits = "fit their digest and not" if has_digest else unchecked
    reasons = [
        f"the capture shows data that {fits} the checksums that their writer stamped into them"
    ]
    candidates: tuple[Stage, ...] = (Stage.HOST_BUFFER, Stage.PRIMARY_BEFORE_DIGEST)
    if not has_digest:
        candidates += ON_THE_WAY
    arrived = e.primary.of_write("HOST_WRITE", e.primary_number(write))
    stage: Stage | None = None
    side = missing = ""
    if arrived is None:
        missing = (
            e.primary.set_problem
            or "the primary's event log does not tell how the write arrived there"
        )
        if not has_digest:
            missing += "; without a digest nothing on the link tells who changed them"
    elif arrived["crc32c"] == write.crc32c:
        stage, side = Stage.HOST_BUFFER, "host"
        reasons.append(f"they arrived so at the primary (CRC-32C {arrived['crc32c']:08x})")
    elif arrived["crc32c"] == stamped_crc(write.sectors):
        reasons.append(f"they arrived right at the primary (CRC-32C {arrived['crc32c']:08x})")
        candidates = tuple(one for one in candidates if one is not Stage.HOST_BUFFER)
        sent = e.primary.of_write("REPL_SEND", e.primary_number(write))
        if has_digest or (sent is not None and sent["crc32c"] == write.crc32c):
            stage, side = Stage.PRIMARY_BEFORE_DIGEST, "primary"
        elif sent is not None:
            stage, side, missing = _sender_or_link(e, write, reasons)
        else:
            missing = "the primary's event log does not tell what it sent"
    else:
        stage, side = Stage.HOST_BUFFER, "host"
        reasons.append(
            f"they arrived wrong at the primary (CRC-32C {arrived['crc32c']:08x}), and left it changed again"
        )
    return Finding(
        stage=stage, kind="data changed", side=side, candidates=() if stage else candidates,
        reasons=tuple(reasons), missing=missing,
    ).of_write(e, write, _id(meant)).located(_changed(write, meant))  # fmt: skip


def _changed(write: LinkWrite, meant: tuple[int, bytes] | None) -> BytePlace | None:
    """From the host's content, or without the journal from the checksum that all stamped data
    have."""
    if meant is not None:
        return difference(meant[1], write.data)
    flipped = single_bit(stamped_crc(write.sectors), write.crc32c, write.size_bytes, None)
    return _undone(write.data, flipped) if flipped is not None else None
