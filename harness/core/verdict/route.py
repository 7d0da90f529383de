"""One write's way, step by step: who had it, when (with the error), and with which checksum.
Pure."""

from typing import Any, Final

from freezeframe.harness.core.blocks.blockstamp import stamped_crc
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import Finding, link_error_ns

_PRIMARY_STEPS: Final = (
    "HOST_WRITE",
    "REPL_SEND",
    "REPL_UNACKED",
    "REPL_ACK_RECEIVED",
    "REPL_NEG_ACK",
    "HOST_ACK",
)
_SECONDARY_STEPS: Final = ("REPL_RECEIVE", "REPL_STORE", "REPL_ACK_SENT", "REPL_NEG_ACK")


def _step(
    at: str, source: str, t_ns: int | None, error_ns: int | None, **fields: Any
) -> dict[str, Any]:
    return {"at": at, "source": source, "t_ns": t_ns, "error_ns": error_ns, **fields}


def route(e: Evidence, first: Finding) -> list[dict[str, Any]]:
    """The steps of the finding's write in the order of the way; [] when it is about no certain
    write."""
    steps = _host(e, first)
    write = first.write
    if write is not None:
        steps += _logged(e.primary, e.primary_number(write), _PRIMARY_STEPS[:3])
        steps += _captured(e, write)
        steps += _logged(e.secondary, e.secondary_number(write), _SECONDARY_STEPS)
        steps += _answered(e, write)
        steps += _logged(e.primary, e.primary_number(write), _PRIMARY_STEPS[3:])
    return steps


def _host(e: Evidence, first: Finding) -> list[dict[str, Any]]:
    written = (
        e.journal.writes.get(first.write_id) if e.journal and first.write_id is not None else None
    )
    if written is None:
        return []
    crc = f"{stamped_crc(written.sectors):08x}"
    return [_step("host intent", "host.journal", written.time_ns, 0, crc32c=crc)]


def _logged(side: SideEvidence, number: int | None, names: tuple[str, ...]) -> list[dict[str, Any]]:
    steps = []
    for name in names:
        record = side.of_write(name, number)
        if record is not None:
            t_ns, error_ns = side.at(record) or (None, None)
            extra = {"crc32c": f"{record['crc32c']:08x}"} if "crc32c" in record else {}
            steps.append(
                _step(f"{side.side} {name}", f"{side.side}/events.log", t_ns, error_ns, **extra)
            )
    return steps


def _captured(e: Evidence, write: LinkWrite) -> list[dict[str, Any]]:
    row, error_ns = write.row, link_error_ns(e)
    fields: dict[str, Any] = {"packet_no": row.packet_no}
    if write.crc32c >= 0:
        fields["crc32c"] = f"{write.crc32c:08x}"
    if row.digest_computed:
        fields |= {"digest": row.digest_wire.hex(), "digest_right": write.digest_is_right}
    return [_step("link data", "link.pcapng", row.t_sent_ns, error_ns, **fields)]


def _answered(e: Evidence, write: LinkWrite) -> list[dict[str, Any]]:
    row = write.row
    if not row.is_answered:
        return []
    name = f"link {row.answer_name}"
    return [
        _step(
            name, "link.pcapng", row.t_answer_ns, link_error_ns(e), packet_no=row.answer_packet_no
        )
    ]
