"""Expected and found bytes of the write that the verdict names: only where the verdict says that bytes differ, and only
bytes that fit what it says. Pure."""

from collections.abc import Iterator
from typing import Final

from freezeframe.harness.core.blocks.blockdiff import BlockDiff
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.findings import difference
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.core.verdict.storefindings import kept_blocks
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

_JOURNAL: Final = "what the host wrote, by its journal"
_CHECKSUMS: Final = {"REPL_DIGEST_FAILED": "CRC-32C", "SCRUB_MISMATCH": "CRC-32"}
"""Event records that hold the checksum of what should be there, and of what was."""


def byte_diff(e: Evidence, verdict: Verdict) -> BlockDiff | None:
    """None: the verdict names no byte, or the evidence does not hold the bytes around it."""
    if verdict.byte_offset is None or verdict.bit_mask is None or verdict.write_lba is None:
        return None
    for made in _candidates(e, verdict, verdict.write_lba):
        if _is_the_verdicts(made, verdict):
            return made
    return None


def _is_the_verdicts(made: BlockDiff, verdict: Verdict) -> bool:
    assert verdict.write_lba is not None
    offset = (made.sector - verdict.write_lba) * SECTOR_BYTES
    place = difference(made.expected, made.found, offset)
    return place is not None and (place.byte_offset, place.bit_mask) == (
        verdict.byte_offset,
        verdict.bit_mask,
    )


def _candidates(e: Evidence, verdict: Verdict, first: int) -> Iterator[BlockDiff]:
    """What the sources hold of the write, the most direct first."""
    promised = None
    if verdict.write_id is not None:
        promised = e.promised(verdict.write_id, first, verdict.write_sectors or 0)
    on_link = next(
        (one.data for one in e.own_writes if one.packet_no == verdict.packet_no and one.data), None
    )
    frames = next(
        (f"frames {one.first_packet_no} to {one.packet_no}" for one in verdict.route if one.at == "link data"), ""
    )  # fmt: skip
    if promised is not None and on_link is not None:
        yield BlockDiff(
            sector=first, expected=promised, found=on_link, expected_from=_JOURNAL,
            found_from=f"what was on the link, {frames}",
        )  # fmt: skip
    if promised is not None:
        yield from _kept(e, verdict, first, promised)
    if verdict.bytes_different != 1:
        return
    # One bit: where one side of it is known, so is the other.
    proof = "what the checksums prove: one bit flipped"
    if promised is not None:
        yield BlockDiff(
            sector=first, expected=promised, found=_flipped(promised, verdict), expected_from=_JOURNAL,
            found_from=_complaint(verdict) or proof,
        )  # fmt: skip
    elif on_link is not None:
        other, link = _flipped(on_link, verdict), f"what was on the link, {frames}"
        if verdict.stage == "secondary before check":
            yield BlockDiff(
                sector=first, expected=on_link, found=other, expected_from=link,
                found_from=_complaint(verdict) or proof,
            )  # fmt: skip
        else:
            yield BlockDiff(
                sector=first, expected=other, found=on_link, expected_from=proof, found_from=link
            )


def _kept(e: Evidence, verdict: Verdict, first: int, promised: bytes) -> Iterator[BlockDiff]:
    """The damaged block that holds the first wrong sector, as its controller kept it."""
    side = next((own for name, own in e.sides.items() if name == verdict.side), None)
    for sector, content in (kept_blocks(side) if side is not None else {}).items():
        start = (sector - first) * SECTOR_BYTES
        if verdict.lba is None or not sector <= verdict.lba < sector + len(content) // SECTOR_BYTES:
            continue
        begin, end = max(start, 0), min(start + len(content), len(promised))
        yield BlockDiff(
            sector=first + begin // SECTOR_BYTES, expected=promised[begin:end], found=content[begin - start : end - start],
            expected_from=_JOURNAL, found_from=f"the damaged block that the {verdict.side} kept",
        )  # fmt: skip


def _flipped(data: bytes, verdict: Verdict) -> bytes:
    assert verdict.byte_offset is not None and verdict.bit_mask is not None
    changed = bytearray(data)
    if verdict.byte_offset < len(changed):
        changed[verdict.byte_offset] ^= verdict.bit_mask
    return bytes(changed)


def _complaint(verdict: Verdict) -> str:
    """The event record whose two checksums name the bit."""
    for step in verdict.route:
        side, _, event = step.at.partition(" ")
        if event in _CHECKSUMS:
            mask = verdict.bit_mask or 0
            return (
                f"what the {side} had, by the checksum in its event {step.seq}: only bit {mask.bit_length() - 1} of "
                f"byte {verdict.byte_offset} flipped gives that {_CHECKSUMS[event]}"
            )
    return ""
