"""One write's way, step by step: who had it, when (with the error), and with which checksum. Everybody who shows the way
takes it from here. Pure."""

from collections.abc import Iterator
from typing import Final

from freezeframe.harness.core.blocks.blockstamp import stamped_crc
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import Finding
from freezeframe.harness.core.verdict.record import WayStep

HOST_INTENT: Final = "host intent"
LINK_DATA: Final = "link data"
LINK_ANSWER: Final = "link "
"""Before the name of the answer."""
_PRIMARY_STEPS: Final = (
    "HOST_WRITE",
    "REPL_SEND",
    "REPL_UNACKED",
    "REPL_ACK_RECEIVED",
    "REPL_NEG_ACK",
    "HOST_ACK",
)
_SECONDARY_STEPS: Final = ("REPL_RECEIVE", "REPL_STORE", "REPL_ACK_SENT", "REPL_NEG_ACK")
_BEFORE_THE_ANSWER: Final = frozenset({"REPL_DIGEST_FAILED"})
"""Complaints that come instead of a good answer; a scrub's come long after."""


def route(e: Evidence, first: Finding) -> tuple[WayStep, ...]:
    """The steps of the finding's write in the order of the way; () when it is about no certain
    write."""
    primary_no, secondary_no = numbers(e, first)
    is_early = first.complaint is not None and first.complaint["name"] in _BEFORE_THE_ANSWER
    return (
        *_host(e, first),
        *_logged(e.primary, primary_no, _PRIMARY_STEPS[:3]),
        *(_captured(e, first.write) if first.write is not None else ()),
        *_logged(e.secondary, secondary_no, _SECONDARY_STEPS),
        *(_complained(e, first) if is_early else ()),
        *(_answered(e, first.write) if first.write is not None else ()),
        *_logged(e.primary, primary_no, _PRIMARY_STEPS[3:]),
        *(() if is_early else _complained(e, first)),
    )


def numbers(e: Evidence, first: Finding) -> tuple[int | None, int | None]:
    """The numbers of the finding's write in the primary's and the secondary's event logs."""
    if first.write is None:
        return first.primary_no, first.secondary_no
    return e.primary_number(first.write), e.secondary_number(first.write)


def _host(e: Evidence, first: Finding) -> Iterator[WayStep]:
    written = (
        e.journal.writes.get(first.write_id) if e.journal and first.write_id is not None else None
    )
    if written is not None:
        crc = f"{stamped_crc(written.sectors):08x}"
        yield WayStep(
            at=HOST_INTENT, source="host.journal", t_ns=written.time_ns, error_ns=0, crc32c=crc
        )


def _logged(side: SideEvidence, number: int | None, names: tuple[str, ...]) -> Iterator[WayStep]:
    for name in names:
        record = side.of_write(name, number)
        if record is not None:
            yield _step_of(side, record)


def _complained(e: Evidence, first: Finding) -> Iterator[WayStep]:
    if first.complaint is not None and first.complained is not None:
        yield _step_of(e.sides[first.complained], first.complaint)


def _step_of(side: SideEvidence, record: EventRecord) -> WayStep:
    t_ns, error_ns = side.at(record) or (None, None)
    return WayStep(
        at=f"{side.side} {record['name']}",
        source=f"{side.side}/events.log",
        t_ns=t_ns,
        error_ns=error_ns,
        seq=record["seq"],
        crc32c=f"{record['crc32c']:08x}" if "crc32c" in record else None,
    )


def _captured(e: Evidence, write: LinkWrite) -> Iterator[WayStep]:
    is_checked = write.digest_is_right is not None
    yield WayStep(
        at=LINK_DATA,
        source="link.pcapng",
        t_ns=write.t_sent_ns,
        error_ns=e.link_error_ns,
        packet_no=write.packet_no,
        first_packet_no=write.first_packet_no,
        crc32c=f"{write.crc32c:08x}" if write.crc32c >= 0 else None,
        digest=write.row.digest_wire.hex() if is_checked else None,
        digest_right=write.digest_is_right,
    )


def _answered(e: Evidence, write: LinkWrite) -> Iterator[WayStep]:
    if write.is_acked:
        yield WayStep(
            at=LINK_ANSWER + write.ack,
            source="link.pcapng",
            t_ns=write.t_ack_ns,
            error_ns=e.link_error_ns,
            packet_no=write.ack_packet_no,
        )
