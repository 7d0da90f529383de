"""Ghost writes on NVMe/TCP: each is named, and no ordinary retry is taken for one. The bytes are made
here, from the specification."""

import gzip
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from crc32c import crc32c

from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.ledgerevents import GhostWrite, LedgerEvent
from freezeframe.harness.core.link.linkevidence import LinkEvidence
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.nvme_tcp import NvmeLink
from freezeframe.harness.core.link.protocol import Direction, LinkOptions, Opening
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.core.verdict.evidence import gather
from freezeframe.harness.core.verdict.findings import Stage
from freezeframe.harness.core.verdict.record import IncidentRecord
from freezeframe.harness.core.verdict.verdict import findings
from freezeframe.harness.edge.pcapng import frames_of

HOST, TARGET = "10.77.0.1", "10.77.0.2"
MS = 1_000_000
GOLDEN = Path(__file__).parents[3] / "golden" / "mirrors"


def pdu(kind: int, body: bytes, data: bytes = b"", *, digests: bool = True) -> bytes:
    """Common header, the rest of the header, header digest, data and their digest."""
    header = 8 + len(body)
    flags = (1 | (2 if data else 0)) if digests else 0
    data_at = header + 4 if data else 0
    whole = header + (4 if digests else 0) + (len(data) + 4 if data else 0)
    head = struct.pack("<BBBBI", kind, flags, header, data_at, whole) + body
    out = head + (struct.pack("<I", crc32c(head)) if digests else b"")
    return out + data + (struct.pack("<I", crc32c(data)) if data else b"")


def command(opcode: int, cid: int, *, at: int = 0, data: bytes = b"", queue: int = 0) -> bytes:
    entry = bytearray(64)
    struct.pack_into("<BBH", entry, 0, opcode, 0x40, cid)
    if opcode == 0x7F:
        entry[4] = 1
        struct.pack_into("<H", entry, 42, queue)
    else:
        struct.pack_into("<I", entry, 32, len(data))
        struct.pack_into("<QHH", entry, 40, at // 512, len(data) // 512 - 1, 0)
    return pdu(4, bytes(entry), data)


def answer(cid: int) -> bytes:
    return pdu(5, struct.pack("<IIHHHH", 0, 0, 0, 0, cid, 0))


class Bench:
    """A host and a target, whose bytes arrive as the test says."""

    def __init__(self) -> None:
        self.link = NvmeLink(LinkOptions(primary_address=HOST, secondary_address=TARGET))
        self.ledger = Ledger()
        self.events: list[LedgerEvent] = []
        self.now_ns = 0
        self.packet_no = 0
        self.connections = 0

    def connect(self) -> "Queue":
        """A new association; its I/O queue."""
        Queue(self, 0)
        return Queue(self, 1)

    def feed(self, direction: Direction, data: bytes) -> None:
        self.now_ns += MS
        self.packet_no += 1
        for message in direction.feed(data, self.now_ns, self.packet_no):
            self.events += self.ledger.on(message)

    @property
    def ghosts(self) -> list[GhostWrite]:
        return [one for one in self.events if isinstance(one, GhostWrite)]


class Queue:
    def __init__(self, bench: Bench, number: int) -> None:
        self.bench = bench
        bench.connections += 1
        one, port = bench.connections, 40000 + bench.connections
        ends = ((HOST, port, TARGET, 4420), (TARGET, 4420, HOST, port))
        made = [
            bench.link.connection(
                Opening(
                    flow=2 * one + index, connection=one, source=end[0], source_port=end[1],
                    destination=end[2], destination_port=end[3], from_start=True, opener=not index,
                    t_ns=bench.now_ns, packet_no=bench.packet_no, ports=frozenset({4420}),
                )
            )
            for index, end in enumerate(ends)
        ]  # fmt: skip
        assert made[0] is not None and made[1] is not None
        self.out, self.back = made[0], made[1]
        hello = struct.pack("<HBBI", 0, 0, 3, 0).ljust(120, b"\0")
        bench.feed(self.out, pdu(0, hello, digests=False))
        bench.feed(self.back, pdu(1, hello, digests=False))
        bench.feed(self.out, command(0x7F, 1, queue=number))
        bench.feed(self.back, answer(1))

    def write(self, cid: int, at: int, data: bytes) -> None:
        self.bench.feed(self.out, command(1, cid, at=at, data=data))

    def answer(self, cid: int) -> None:
        self.bench.feed(self.back, answer(cid))


def story(
    dice: random.Random, *, retried: bool = True, newer: bool = True, late: bool = True
) -> tuple[Bench, tuple[int, bytes]]:
    """A write on a queue that stalls, its retry on the next one, a newer write there, then the old
    copy; among other writes."""
    bench = Bench()
    old_queue = bench.connect()
    place = 4096 * dice.randrange(16, 64)
    data = dice.randbytes(dice.choice((4096, 8192)))

    def others(queue: Queue, first_cid: int) -> None:
        for cid in range(first_cid, first_cid + dice.randrange(5)):
            queue.write(cid, 4096 * dice.randrange(200, 300), dice.randbytes(4096))
            queue.answer(cid)

    others(old_queue, 100)
    held = command(1, 7, at=place, data=data)
    new_queue = bench.connect()
    others(new_queue, 200)
    if retried:
        new_queue.write(8, place, data)
        new_queue.answer(8)
    if newer:
        shift = 4096 if len(data) > 4096 and dice.random() < 0.5 else 0
        new_queue.write(9, place + shift, dice.randbytes(4096))
        new_queue.answer(9)
    others(new_queue, 300)
    if late:
        for at in range(0, len(held), 1448):
            bench.feed(old_queue.out, held[at : at + 1448])
    others(new_queue, 400)
    return bench, (place, data)


@pytest.mark.parametrize("seed", range(50))
def test_a_ghost_write_is_named_with_its_retry_and_the_newer_write(seed: int) -> None:
    bench, (place, data) = story(random.Random(seed))
    (ghost,) = bench.ghosts
    assert (ghost.row.offset_bytes, ghost.row.length_bytes) == (place, len(data))
    assert ghost.retry.session is not ghost.row.session
    assert (ghost.retry.write_id_text, ghost.newer.write_id_text) == (
        "queue 1 cmd 8",
        "queue 1 cmd 9",
    )
    rules = LinkRules([LinkRule(name="ghost", event="ghost-write")])
    (hit,) = rules.on(ghost, 1)
    assert "an old copy, after its retry queue 1 cmd 8 was answered" in hit.detail


def test_the_verdict_names_it_by_place_and_frame() -> None:
    bench, (place, data) = story(random.Random(1))
    record = IncidentRecord()
    link = LinkEvidence(LinkEnds(protocol="nvme_tcp", ports=frozenset({4420})))
    link.ghosts = bench.ghosts
    (found,) = findings(replace(gather(record, sets={}), link=link))
    assert (found.stage, found.kind, found.conclusive) == (Stage.ON_THE_LINK, "ghost write", True)
    assert (found.write_lba, found.write_sectors) == (place // 512, len(data) // 512)
    assert found.packet_no == bench.ghosts[0].row.packet_no
    assert "an old copy of queue 1 cmd 8" in found.reasons[0]


@pytest.mark.parametrize("case", ["no newer write", "no late copy", "no retry"])
def test_an_ordinary_retry_is_no_ghost(case: str) -> None:
    """200 of each; that these bytes can show a ghost is the test above."""
    changed = {"no newer write": "newer", "no late copy": "late", "no retry": "retried"}[case]
    for seed in range(200):
        bench, _ = story(random.Random(seed), **{changed: False})
        assert bench.ghosts == [], seed


def test_ghost_writes_of_two_real_kernels_are_named() -> None:
    """The secondary's disk held the old data after each."""
    with gzip.open(GOLDEN / "nvme-ghost-write.pcap.gz") as packed:
        frames = list(frames_of(cast(BinaryIO, packed), "nvme-ghost-write"))
    ends = LinkEnds(protocol="nvme_tcp", ports=frozenset({4420}))
    view = LinkView(ends, [LinkRule(name="ghost", event="ghost-write")])
    hits = [
        hit
        for number, one in enumerate(frames, 1)
        for hit in view.feed(one.t_ns, one.data, number, one.t_ns)
    ]
    assert [(one.offset_bytes, one.sector, one.sectors) for one in hits] == [
        (400, 2848, 8),
        (514, 2856, 8),
    ]
