"""A capture file, understood once from end to end: its replicated writes, and the data of those that matter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from harness.core import ledgerevents
from harness.core.drbdsession import Dissector, Seen
from harness.core.drbdstream import command_name
from harness.core.events import Ns
from harness.core.ledger import Ledger
from harness.core.ledgerevents import WriteRow, WriteSent
from harness.core.linkview import LinkEnds
from harness.core.skim import Run
from harness.core.tcpstream import Reassembler, StreamEvent
from harness.core.writepath import LinkWrite, mapping, number
from harness.wire import drbd
from harness.wire.drbd import Cmd

MAX_WRITES: Final = 1 << 20
MAX_PAYLOADS: Final = 8
"""Writes over the sector in question whose data is kept: the last ones."""
MAX_MARKS: Final = 4096
ASSUMED_ALGORITHM: Final = "crc32c"
"""Of a capture that lacks the handshake, in an incident that does not name it either."""
MAX_PORTS: Final = 64


@dataclass
class LinkEvidence:
    frames: int = 0
    bytes_captured: int = 0
    t_first_ns: Ns = 0
    t_last_ns: Ns = 0
    writes: list[LinkWrite] = field(default_factory=list)
    payloads: dict[int, bytes] = field(default_factory=dict)
    """Number of a write's last frame -> its data, for the writes over the sector that was asked for."""
    marks: dict[int, list[str]] = field(default_factory=dict)
    """Frame number, from 1 -> what is worth a comment."""
    gaps: int = 0


class _Reader:
    def __init__(self, ends: LinkEnds, sector: int) -> None:
        self.evidence = LinkEvidence()
        self.rows: list[tuple[WriteRow, Ns]] = []
        self._sector = sector
        self._dissector = Dissector(
            primary_address=ends.primary_address,
            secondary_address=ends.secondary_address,
            integrity_alg=ends.integrity_alg,
        )
        self._ledger = Ledger()

    def take(self, events: Iterable[StreamEvent]) -> None:
        for event in events:
            for seen in self._dissector.on(event):
                for found in self._ledger.on(seen):
                    self._found(found, seen)

    def tick(self, t_ns: Ns) -> None:
        for found in self._ledger.tick(t_ns):
            self._found(found, None)

    def _found(self, found: ledgerevents.LedgerEvent, seen: object) -> None:
        match found:
            case WriteSent(row=row):
                first_ns = seen.packet.t_first_ns if isinstance(seen, Seen) else 0
                if len(self.rows) < MAX_WRITES:
                    self.rows.append((row, first_ns))
                if isinstance(seen, Seen) and self._covers(row):
                    self._keep(row, seen)
            case ledgerevents.DigestMismatch():
                pass  # told by the rows, once it is known whether the algorithm was the right one
            case ledgerevents.BrokenStamp(row=row):
                self.mark(row.packet_no, "digest right, but not what the host's writer stamped")
            case ledgerevents.NegativeAck(packet=packet):
                self.mark(packet.packet_no, "negative acknowledgement")
            case ledgerevents.RepeatedAck(packet=packet):
                self.mark(packet.packet_no, "acknowledged a second time")
            case ledgerevents.UnknownAck(packet=packet):
                self.mark(packet.packet_no, "acknowledges no write that was sent")
            case ledgerevents.BarrierMismatch(packet=packet, detail=detail):
                self.mark(packet.packet_no, detail)
            case ledgerevents.UnackedClose(closed=closed, rows=rows):
                self.mark(closed.packet_no, f"closed with {len(rows)} unacknowledged writes")
            case ledgerevents.MalformedSeen(malformed=malformed):
                self.mark(malformed.packet_no, malformed.what)
            case ledgerevents.Acknowledged():
                pass

    def _covers(self, row: WriteRow) -> bool:
        sectors = max(row.size_bytes // drbd.SECTOR_BYTES, 1)
        return row.command == Cmd.DATA and row.sector <= self._sector < row.sector + sectors

    def _keep(self, row: WriteRow, seen: Seen) -> None:
        body = seen.packet.body
        kept = self.evidence.payloads
        kept[row.packet_no] = bytes(body[len(body) - row.size_bytes :])
        if len(kept) > MAX_PAYLOADS:
            del kept[next(iter(kept))]

    def mark(self, packet_no: int, text: str) -> None:
        if len(self.evidence.marks) < MAX_MARKS:
            self.evidence.marks.setdefault(packet_no, []).append(text)


def link_ends(record: Mapping[str, Any]) -> LinkEnds:
    """Which connections are the replication link, as far as the incident's record tells."""
    told = mapping(record.get("link"))
    addresses = [str(told.get(name) or "") for name in ("primary_address", "secondary_address")]
    ports = told.get("ports")
    known = [port for port in ports if number(port) is not None] if isinstance(ports, list) else []
    algorithm = told.get("integrity_alg")
    return LinkEnds(
        primary_address=addresses[0],
        secondary_address=addresses[1],
        ports=frozenset(known[:MAX_PORTS]),
        integrity_alg=algorithm if isinstance(algorithm, str) and algorithm else ASSUMED_ALGORITHM,
    )


def read_link(runs: Iterable[Run], ends: LinkEnds, wall_offset_ns: Ns, sector: int) -> LinkEvidence:
    """Understand a capture; times become those of CLOCK_MONOTONIC. ``sector`` (-1: none): whose data is kept."""
    reassembler, reader = Reassembler(ports=ends.ports), _Reader(ends, sector)
    evidence = reader.evidence
    t_ns = 0
    for run in runs:
        evidence.t_first_ns = evidence.t_first_ns or run.t_first_ns - wall_offset_ns
        for at_ns, frame, frame_no in reassembler.frames(run.data, evidence.frames + 1, wall_offset_ns):
            reader.take(reassembler.feed(at_ns, frame, frame_no))
        evidence.frames += run.frames
        evidence.bytes_captured += run.bytes_captured
        t_ns = run.t_last_ns - wall_offset_ns
        reader.take(reassembler.tick(t_ns))
        reader.tick(t_ns)
    reader.take(reassembler.close(t_ns))
    evidence.t_last_ns = t_ns
    evidence.gaps = reassembler.gaps
    checked = [row for row, _ in reader.rows if row.digest_computed]
    wrong = [row for row in checked if row.digest_wire != row.digest_computed]
    is_judged = len(wrong) * 2 < len(checked)
    """More wrong than right: not the algorithm that was used."""
    for row in wrong if is_judged else ():
        reader.mark(row.packet_no, f"digest wrong: sector {row.sector} + {row.size_bytes} bytes")
    evidence.writes = [_write_of(row, first_ns, is_judged) for row, first_ns in reader.rows]
    return evidence


def _write_of(row: WriteRow, t_first_ns: Ns, is_judged: bool) -> LinkWrite:
    acked = row.ack >= 0 and row.t_ack_ns > 0
    checked = is_judged and bool(row.digest_computed)
    return LinkWrite(
        sector=row.sector,
        size_bytes=row.size_bytes,
        block_id=row.block_id_text,
        t_first_ns=t_first_ns,
        t_sent_ns=row.t_sent_ns,
        first_packet_no=row.first_packet_no,
        packet_no=row.packet_no,
        t_ack_ns=row.t_ack_ns if acked else 0,
        ack=command_name(row.ack) if acked else "",
        ack_packet_no=row.ack_packet_no if acked else 0,
        digest_right=row.digest_wire == row.digest_computed if checked else None,
    )
