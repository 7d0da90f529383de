"""Healthy pairs of each protocol that write data which hold the protocol's own messages: a capture of a mirror
that the host copies onto the mirror. Captured from the middle, or with holes that cut messages.

The messages are written from the published formats (RFC 7143, the NVMe/TCP transport, the NBD protocol; DRBD's
are in ``link_script``), not from the harness's code.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import crc32c
from link_script import (
    features,
    h80,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    p_data,
    protocol,
)

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Trigger
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import (
    Flow,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.core.linkevents import EVENTS, LinkRule

P, S = "10.0.0.1", "10.0.0.2"
BLOCK_BYTES = 512
MAX_BLOCKS = 64
SEGMENT_BYTES = 1448
PATIENCE_NS = 10 * NS_PER_S
DEADLINES_MS = {"late-ack": 1500, "missing-ack": 4000}
RULES = [LinkRule(name=one, event=one, deadline_ms=DEADLINES_MS.get(one, 0)) for one in EVENTS]
UNDERSTOOD_AFTER = 150
"""Exchanges, at most, after a late start: what looks like the header of a long message is first waited for."""
PACKET_BYTES = 82
"""In a capture file before what a packet carries."""


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", crc32c.crc32c(data))


@dataclass
class Iscsi:
    """An initiator that sends immediate data, and a target."""

    header_digest: bool
    data_digest: bool
    number: int
    status: int

    def pdu(self, header: bytes, data: bytes = b"") -> bytes:
        header = header[:5] + len(data).to_bytes(3, "big") + header[8:]
        out = header + (_crc(header) if self.header_digest else b"")
        return out + data + (_crc(data) if self.data_digest and data else b"")

    def write(self, data: bytes) -> bytes:
        self.number += 1
        cdb = struct.pack(">BBIBHB6x", 0x2A, 0, self.number % 5000, 0, len(data) // BLOCK_BYTES, 0)
        tag, sequence = self.number % 128, self.number % 2**32
        head = struct.pack(">BB6x8xIIII", 0x01, 0xA0, tag, len(data), sequence, self.status % 2**32)
        return self.pdu(head + cdb, data)

    def answer(self) -> bytes:
        self.status += 1
        numbers = (self.number % 128, 0, self.status % 2**32, (self.number + 1) % 2**32)
        return self.pdu(struct.pack(">BB6x8xIIII16x", 0x21, 0x80, *numbers))


@dataclass
class Nvme:
    """A host that sends in-capsule data, and a controller."""

    header_digest: bool
    data_digest: bool
    number: int
    status: int

    def pdu(self, kind: int, header: bytes, data: bytes = b"") -> bytes:
        head_bytes = 8 + len(header)
        digest_bytes = 4 * self.header_digest
        at = head_bytes + digest_bytes if data else 0
        whole = head_bytes + digest_bytes + len(data) + 4 * (self.data_digest and bool(data))
        flags = self.header_digest | (self.data_digest and bool(data)) << 1
        header = struct.pack("<BBBBI", kind, flags, head_bytes, at, whole) + header
        out = header + (_crc(header) if self.header_digest else b"")
        return out + data + (_crc(data) if self.data_digest and data else b"")

    def write(self, data: bytes) -> bytes:
        self.number += 1
        command = struct.pack(
            "<BBHI16xQI3xBQHHI8x", 0x01, 0x40, self.number % 128, 1, 0, len(data), 1, self.number % 5000,
            len(data) // BLOCK_BYTES - 1, 0, 0,
        )  # fmt: skip
        return self.pdu(4, command, data)

    def answer(self) -> bytes:
        self.status += 1
        return self.pdu(5, struct.pack("<IIHHHH", 0, 0, self.status % 128, 1, self.number % 128, 0))


@dataclass
class Nbd:
    """A client and a server after their negotiation."""

    header_digest: bool
    data_digest: bool
    number: int
    status: int

    def write(self, data: bytes) -> bytes:
        self.number += 1
        request = (0x25609513, 0, 1, self.number, self.number % 5000 * BLOCK_BYTES, len(data))
        return struct.pack(">IHHQQI", *request) + data

    def answer(self) -> bytes:
        return struct.pack(">IIQ", 0x67446698, 0, self.number)


@dataclass
class Drbd:
    """A primary and a secondary; answers have a socket of their own."""

    header_digest: bool
    data_digest: bool
    number: int
    status: int
    size: int = 0
    epoch: int = 0

    def write(self, data: bytes) -> bytes:
        self.number += 1
        self.size = len(data)
        self.epoch += 1
        sector = self.number % 5000
        return p_data(self.number, sector, data, digest=None if self.data_digest else b"")

    def answer(self) -> bytes:
        return p_ack(self.number, self.number % 5000, self.size)

    def barrier(self) -> tuple[bytes, bytes]:
        """And its answer."""
        self.status += 1
        count, self.epoch = self.epoch, 0
        return p_barrier(self.status), p_barrier_ack(self.status, count)


Speaker = Iscsi | Nvme | Nbd | Drbd
PROTOCOLS: dict[str, tuple[Callable[[bool, bool, int, int], Speaker], int]] = {
    "iscsi": (Iscsi, 3260),
    "nvme_tcp": (Nvme, 4420),
    "nbd": (Nbd, 10809),
    "drbd": (Drbd, 7788),
}


@dataclass(frozen=True)
class Case:
    """One capture of one pair."""

    protocol: str
    seed: int
    header_digest: bool
    data_digest: bool
    small_numbers: bool
    """Of the session: as small as an opcode."""
    begins_late: bool


@dataclass
class Heard:
    """What was made of a capture."""

    hits: list[Trigger] = field(default_factory=list)
    writes: int = 0
    answers: int = 0
    holes: int = 0


def _number(rnd: random.Random, is_small: bool) -> int:
    return rnd.randrange(1, 70) if is_small else rnd.randrange(1 << 16, 1 << 31)


class NestedPair:
    """``exchange`` makes the steps of a healthy pair: (flow, bytes) each."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rnd = random.Random(repr(case))
        make, self.port = PROTOCOLS[case.protocol]
        numbers = [_number(self.rnd, case.small_numbers) for _ in range(4)]
        self.speaker = make(case.header_digest, case.data_digest, numbers[0], numbers[1])
        is_alike = self.rnd.random() < 0.5
        other = (case.header_digest, case.data_digest) if is_alike else (False, False)
        self.recorded = make(*other, numbers[2], numbers[3])
        self.kinds = self.rnd.sample(("random", "zeroes", "text", "stream", "file"), 3)
        self.reply = 2 if case.protocol == "drbd" else 1
        """The flow of answers."""

    def data(self) -> bytes:
        rnd, size = self.rnd, BLOCK_BYTES * self.rnd.choice((1, 1, 2, 8, MAX_BLOCKS))
        match rnd.choice(self.kinds):
            case "random":
                return rnd.randbytes(size)
            case "zeroes":
                return bytes(size)
            case "text":
                return (b"%d the quick brown fox\n" % rnd.randrange(1000) * (size // 20))[:size]
            case kind:
                return self.capture(size, is_file=kind == "file")

    def capture(self, size: int, *, is_file: bool) -> bytes:
        """Recorded messages; ``is_file``: with a packet's headers before some."""
        out = bytearray()
        ways = self.rnd.choice((1, 2, 3))
        while len(out) < size:
            if is_file and self.rnd.random() < 0.3:
                out += self.rnd.randbytes(PACKET_BYTES)
            if ways & 1:
                out += self.recorded.write(self.rnd.randbytes(BLOCK_BYTES))
            if ways & 2:
                out += self.recorded.answer()
        begin = self.rnd.randrange(0, max(1, len(out) - size + 1))
        return bytes(out[begin : begin + size])

    def exchange(self) -> list[tuple[int, bytes]]:
        steps = [(0, self.speaker.write(self.data())), (self.reply, self.speaker.answer())]
        if isinstance(self.speaker, Drbd):
            if self.rnd.random() < 0.2:
                asked, answered = self.speaker.barrier()
                steps += [(0, asked), (self.reply, answered)]
            if self.rnd.random() < 0.1:
                steps += [(1, h100(0x0E, struct.pack(">I", 0x11000 | 10 << 4)))]
        return steps


class Reader:
    """The harness's core, which is given streams."""

    def __init__(self, protocol: str, port: int) -> None:
        options = LinkOptions(primary_address=P, secondary_address=S, must_match=True)
        self.follower = Follower(byname.find(protocol)(options), frozenset({port}))
        self.ledger, self.rules, self.heard = Ledger(), LinkRules(RULES), Heard()
        self.port = port
        self.t_ns, self.packet_no = NS_PER_S, 0
        self.flows: dict[int, Flow] = {}
        self.offsets: dict[int, int] = {}

    def open(self, flow: int, *, from_start: bool) -> None:
        connection = flow // 2
        far = (P, 40000 + connection, S, self.port)
        ends = far if flow in (0, 3) else (*far[2:], *far[:2])
        if flow in (2, 3):  # the secondary opens the second connection
            far = (S, 40000 + connection, P, self.port)
            ends = far if flow == 2 else (*far[2:], *far[:2])
        self.flows[flow] = Flow(flow, connection, *ends)
        self.offsets[flow] = 0
        opener = from_start and flow in (0, 2)
        self.on(StreamOpened(self.flows[flow], self.t_ns, self.packet_no, from_start, opener))

    def on(self, event: StreamEvent) -> None:
        for found in self.follower.on(event):
            for entry in self.ledger.on(found):
                self.heard.hits += self.rules.on(entry, self.t_ns)

    def send(self, flow: int, data: bytes) -> None:
        for at in range(0, len(data), SEGMENT_BYTES):
            piece = data[at : at + SEGMENT_BYTES]
            self.t_ns += NS_PER_MS // 50
            self.packet_no += 1
            where = (self.flows[flow], self.t_ns, self.packet_no, self.offsets[flow])
            self.on(StreamData(*where, piece))
            self.offsets[flow] += len(piece)
        self.tick(NS_PER_MS)

    def gap(self, flow: int, length_bytes: int) -> None:
        where = (self.flows[flow], self.t_ns, self.packet_no, self.offsets[flow])
        self.heard.holes += 1
        self.on(StreamGap(*where, length_bytes))
        self.offsets[flow] += length_bytes

    def tick(self, pass_ns: int) -> None:
        self.t_ns += pass_ns
        for entry in self.ledger.tick(self.t_ns):
            self.heard.hits += self.rules.on(entry, self.t_ns)
        self.heard.hits += self.rules.tick(self.t_ns)

    def finish(self) -> Heard:
        for _ in range(100):
            self.tick(PATIENCE_NS // 100)
        totals = self.ledger.totals
        self.heard.writes, self.heard.answers = totals.writes, totals.acks
        return self.heard


def _cut(
    rnd: random.Random, steps: list[tuple[int, bytes]]
) -> tuple[list[tuple[int, bytes]], dict[int, int]]:
    """The steps from a point of time on, which cuts a message; and how much of each flow is missing."""
    at = rnd.randrange(len(steps))
    lost: dict[int, int] = {}
    for flow, data in steps[:at]:
        lost[flow] = lost.get(flow, 0) + len(data)
    flow, data = steps[at]
    begin = rnd.randrange(len(data))
    lost[flow] = lost.get(flow, 0) + begin
    return [(flow, data[begin:]), *steps[at + 1 :]], lost


def play(
    case: Case, *, exchanges: int = 40, spoil: bool = False, spoil_late: bool = False
) -> Heard:
    """What the harness makes of this capture. ``spoil``: the primary sends bytes that are no message at all,
    once, in a stream that is captured whole; ``spoil_late``: in one that is captured from its middle."""
    pair = NestedPair(case)
    rnd, reader = pair.rnd, Reader(case.protocol, pair.port)
    flows = range(4 if case.protocol == "drbd" else 2)
    follows = not spoil_late and (spoil or not case.begins_late)
    steps = [one for _ in range(exchanges) for one in pair.exchange()]
    if not follows:
        steps, _ = _cut(rnd, steps)
        if spoil_late:
            steps += [one for _ in range(UNDERSTOOD_AFTER) for one in pair.exchange()]
    for flow in flows:
        reader.open(flow, from_start=follows)
    if follows:
        for flow, data in greetings(case):
            reader.send(flow, data)
    for flow, data in steps:
        reader.send(flow, data)
    if spoil or spoil_late:
        bad = rnd.choice(flows) if spoil else 0
        reader.send(bad, b"\xfe" * 3 + rnd.randbytes(60))
    else:
        for _ in range(rnd.randrange(3)):
            missed = [one for _ in range(rnd.choice((1, 5, 80))) for one in pair.exchange()]
            rest, lost = _cut(rnd, missed)
            ends = rnd.choice((set(flows), {0}, {pair.reply}))
            if 0 in ends:
                reader.gap(0, lost.pop(0))
            for flow, data in missed:
                if flow not in ends:
                    reader.send(flow, data)
            for flow, length in lost.items():
                if flow in ends:
                    reader.gap(flow, length)
            for flow, data in rest:
                if flow in ends:
                    reader.send(flow, data)
            for flow, data in (one for _ in range(exchanges) for one in pair.exchange()):
                reader.send(flow, data)
    return reader.finish()


def greetings(case: Case) -> list[tuple[int, bytes]]:
    """What each protocol says first."""
    match case.protocol:
        case "iscsi":
            keys = [
                b"HeaderDigest=" + (b"CRC32C" if case.header_digest else b"None"),
                b"DataDigest=" + (b"CRC32C" if case.data_digest else b"None"),
            ]
            text = b"\0".join(keys) + b"\0"
            pad = bytes(-len(text) % 4)
            head = struct.pack(">BB3x", 0x43, 0x87) + len(text).to_bytes(3, "big") + bytes(40)
            reply = struct.pack(">BB3x", 0x23, 0x87) + len(text).to_bytes(3, "big") + bytes(40)
            return [(0, head + text + pad), (1, reply + text + pad)]
        case "nvme_tcp":
            digests = case.header_digest | case.data_digest << 1
            body = struct.pack("<HBBI", 0, 0, digests, 0) + bytes(112)
            return [(flow, struct.pack("<BBBBI", flow, 0, 128, 0, 128) + body) for flow in (0, 1)]
        case "nbd":
            greeting = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
            option = struct.pack(">8sII", b"IHAVEOPT", 1, 0)
            return [(1, greeting), (0, struct.pack(">I", 3)), (0, option), (1, bytes(8) + b"\0\3")]
        case _:
            name = "crc32c" if case.data_digest else ""
            both = [(0, h80(0xFFF2)), (2, h80(0xFFF1)), (0, features()), (1, features())]
            return [*both, (0, protocol(name)), (1, protocol(name))]
