"""A scripted DRBD pair for tests of what watches the link: byte builders, and a pair in virtual
time.

The builders are written from the published wire format, not from the harness's code.
"""

import struct
from dataclasses import dataclass, field

import crc32c

from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import (
    Flow,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.core.linkevents import EVENTS, LinkRule

P, S = "10.77.0.1", "10.77.0.2"
DATA, BARRIER, UNPLUG, STATE, PROTOCOL = 0x00, 0x03, 0x07, 0x0E, 0x0B
RECV_ACK, WRITE_ACK, RS_WRITE_ACK, NEG_ACK, BARRIER_ACK = 0x15, 0x16, 0x17, 0x19, 0x1C
RS_DATA_REPLY, STATE_CHG_REQ, CONN_ST_CHG_REQ, TRIM, PING = 0x02, 0x12, 0x2A, 0x31, 0x13
SYNCER = b"\xff" * 8


def h80(cmd: int, body: bytes = b"") -> bytes:
    return struct.pack(">IHH", 0x83740267, cmd, len(body)) + body


def h100(cmd: int, body: bytes = b"", volume: int = 0) -> bytes:
    return struct.pack(">IHHII", 0x8620EC20, volume, cmd, len(body), 0) + body


def features(highest: int = 101) -> bytes:
    return h80(0xFFFE, struct.pack(">III60x", 86, 4, highest))


def protocol(algorithm: str = "crc32c", wire: int = 3) -> bytes:
    return h100(PROTOCOL, struct.pack(">6I", wire, 0, 0, 0, 0, 0) + algorithm.encode() + b"\0")


def cookie(number: int) -> bytes:
    return struct.pack("<Q", 0xFFFF888000000000 + number)


def p_data(
    number: int,
    sector: int,
    data: bytes,
    *,
    digest: bytes | None = None,
    flags: int = 0x102,
    volume: int = 0,
) -> bytes:
    """A replicated write; ``digest`` None is the right crc32c."""
    if digest is None:
        digest = struct.pack("<I", crc32c.crc32c(data))
    body = (
        struct.pack(">Q", sector)
        + cookie(number)
        + struct.pack(">II", number, flags)
        + digest
        + data
    )
    return h100(DATA, body, volume)


def p_trim(number: int, sector: int, size: int) -> bytes:
    return h100(
        TRIM, struct.pack(">Q", sector) + cookie(number) + struct.pack(">III", number, 0x140, size)
    )


def p_ack(
    number: int, sector: int, size: int = 512, *, cmd: int = WRITE_ACK, block_id: bytes = b""
) -> bytes:
    body = (
        struct.pack(">Q", sector) + (block_id or cookie(number)) + struct.pack(">II", size, number)
    )
    return h100(cmd, body)


def p_barrier(number: int) -> bytes:
    return h100(BARRIER, struct.pack("<I", number) + bytes(4))


def p_barrier_ack(number: int, writes: int) -> bytes:
    return h100(BARRIER_ACK, struct.pack("<I", number) + struct.pack(">I", writes))


@dataclass
class Pair:
    """Two nodes whose sockets are told to the harness's core byte by byte, in virtual time
    (milliseconds)."""

    rules: list[LinkRule] = field(
        default_factory=lambda: [LinkRule(name=e, event=e) for e in EVENTS]
    )
    integrity_alg: str = ""
    triggers: list[Trigger] = field(default_factory=list)
    now_ms: float = 0.0
    packet_no: int = 0

    def __post_init__(self) -> None:
        options = LinkOptions(
            primary_address=P,
            secondary_address=S,
            integrity_alg=self.integrity_alg,
            must_match=True,
        )
        self.follower = Follower(DrbdLink(options))
        self.ledger = Ledger()
        self.link_rules = LinkRules(self.rules)
        self.flows: dict[tuple[str, str], Flow] = {}
        self.offsets: dict[int, int] = {}
        self.connections = 0

    @property
    def now_ns(self) -> int:
        return int(self.now_ms * NS_PER_MS)

    @property
    def hits(self) -> list[str]:
        return [trigger.rule for trigger in self.triggers]

    def on(self, event: StreamEvent) -> None:
        for found in self.follower.on(event):
            for entry in self.ledger.on(found):
                self.triggers += self.link_rules.on(entry, self.now_ns)

    def wait(self, ms: float) -> None:
        """Let time pass, a millisecond at a time."""
        end = self.now_ms + ms
        while self.now_ms < end:
            self.now_ms = min(end, self.now_ms + 1)
            for entry in self.ledger.tick(self.now_ns):
                self.triggers += self.link_rules.on(entry, self.now_ns)
            self.triggers += self.link_rules.tick(self.now_ns)

    def open(self, socket: str, from_start: bool = True) -> None:
        """The primary opens the data socket, the secondary the meta socket."""
        opener, other = (P, S) if socket == "data" else (S, P)
        number, port = self.connections * 2, 40000 + self.connections
        there = Flow(number, self.connections, opener, port, other, 7788)
        back = Flow(number + 1, self.connections, other, 7788, opener, port)
        self.connections += 1
        for flow in (there, back):
            self.packet_no += 1
            self.flows[socket, flow.source] = flow
            self.offsets[flow.number] = 0
            opening = from_start and flow is there
            self.on(StreamOpened(flow, self.now_ns, self.packet_no, from_start, opening))

    def send(self, socket: str, sender: str, *packets: bytes) -> None:
        data = b"".join(packets)
        flow = self.flows[socket, sender]
        self.packet_no += 1
        self.on(StreamData(flow, self.now_ns, self.packet_no, self.offsets[flow.number], data))
        self.offsets[flow.number] += len(data)

    def gap(self, socket: str, sender: str, length: int = 1000) -> None:
        flow = self.flows[socket, sender]
        self.on(StreamGap(flow, self.now_ns, self.packet_no, self.offsets[flow.number], length))
        self.offsets[flow.number] += length

    def close(self, socket: str, by: str, reason: str = "fin") -> None:
        other = S if by == P else P
        for end in (by, other):
            flow = self.flows[socket, end]
            self.on(
                StreamClosed(flow, self.now_ns, self.packet_no, self.offsets[flow.number], reason)
            )

    def connect(self, algorithm: str = "crc32c", wire: int = 3) -> None:
        """Both sockets and the handshake up to both states."""
        self.open("data")
        self.send("data", P, h80(0xFFF2))
        self.open("meta")
        self.send("meta", S, h80(0xFFF1))
        for end in (P, S):
            self.send("data", end, features())
        for end in (P, S):
            self.send("data", end, protocol(algorithm, wire))
            self.send("data", end, h100(STATE, struct.pack(">I", 0x11000 | 10 << 4)))

    def write(self, number: int, sector: int, size: int = 512) -> None:
        self.send("data", P, p_data(number, sector, bytes([number % 251]) * size))

    def ack(self, number: int, sector: int, size: int = 512) -> None:
        self.send("meta", S, p_ack(number, sector, size))

    def epoch(self, first: int, writes: int) -> None:
        """An epoch as a healthy pair has it."""
        for number in range(first, first + writes):
            self.write(number, number * 8)
            self.wait(1)
            self.ack(number, number * 8)
        self.send("data", P, p_barrier(first), h100(UNPLUG))
        self.wait(1)
        self.send("meta", S, p_barrier_ack(first, writes))
