"""A healthy pair gives no trigger, whatever the capture loses, and wherever it begins."""

import random
import socket
import struct
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from link_script import UNPLUG, P, S, features, h80, h100, p_ack, p_barrier, p_barrier_ack, p_data, protocol

from harness.core.events import NS_PER_MS, Trigger
from harness.core.linkrules import EVENTS, LinkRule
from harness.core.linkview import LinkEnds, LinkView
from harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"
MSS = 1448
STEP_NS = NS_PER_MS // 20


class Wire:
    """Two TCP connections as frames: each send is cut into segments, each is acknowledged by the other end."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.seq: dict[tuple[str, str], int] = {}
        for kind, opener, other in (("data", P, S), ("meta", S, P)):
            self.seq[kind, opener], self.seq[kind, other] = 1000, 5000
            self._segment(kind, opener, 2, b"")
            self.seq[kind, opener] += 1
            self._segment(kind, other, 18, b"")
            self.seq[kind, other] += 1

    def send(self, kind: str, sender: str, *packets: bytes) -> None:
        data = b"".join(packets)
        for at in range(0, len(data), MSS):
            piece = data[at : at + MSS]
            self._segment(kind, sender, 24, piece)
            self.seq[kind, sender] += len(piece)
        self._segment(kind, S if sender == P else P, 16, b"")

    def _segment(self, kind: str, sender: str, flags: int, data: bytes) -> None:
        receiver = S if sender == P else P
        opener = P if kind == "data" else S
        ports = (40000, 7788) if sender == opener else (7788, 40000)
        seq, ack = self.seq[kind, sender], self.seq[kind, receiver]
        tcp = struct.pack(">HHIIBBHHH", *ports, seq, ack, 0x50, flags, 65535, 0, 0) + data
        ends = socket.inet_aton(sender) + socket.inet_aton(receiver)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
        self.frames.append(bytes(12) + b"\x08\x00" + ip + ends + tcp)


def healthy_exchange(epochs: int) -> list[bytes]:
    wire, rnd = Wire(), random.Random(5)
    wire.send("data", P, h80(0xFFF2))
    wire.send("meta", S, h80(0xFFF1))
    for end in (P, S):
        wire.send("data", end, features())
    for end in (P, S):
        wire.send("data", end, protocol())
    number = 0
    for epoch in range(epochs):
        writes = [(number := number + 1, rnd.choice([512, 4096, 8192])) for _ in range(rnd.randrange(1, 6))]
        for one, size in writes:
            wire.send("data", P, p_data(one % 7, one * 16, rnd.randbytes(size)))
        for one, size in writes:
            wire.send("meta", S, p_ack(one % 7, one * 16, size))
        wire.send("data", P, p_barrier(epoch + 1), h100(UNPLUG))
        wire.send("meta", S, p_barrier_ack(epoch + 1, len(writes)))
    return wire.frames


FRAMES = healthy_exchange(40)


def watch(frames: list[bytes], kept: list[bool], deadline_ms: int) -> tuple[LinkView, list[Trigger]]:
    rules = [
        LinkRule(name=e, event=e, deadline_ms=deadline_ms if e in ("late-ack", "missing-ack") else None)
        for e in EVENTS
    ]
    view = LinkView(LinkEnds(primary_address=P, secondary_address=S, ports=frozenset({7788})), rules)
    triggers, now_ns = [], 10**9
    for number, (frame, keep) in enumerate(zip(frames, kept, strict=True), 1):
        now_ns += STEP_NS
        if keep:
            triggers += view.tick(now_ns)
            triggers += view.feed(now_ns, frame, number, now_ns)
    for _ in range(100):
        now_ns += 20 * NS_PER_MS
        triggers += view.tick(now_ns)
    return view, triggers + view.close(now_ns)


def test_the_whole_exchange_is_understood() -> None:
    view, triggers = watch(FRAMES, [True] * len(FRAMES), 100)
    assert triggers == []
    totals = view.ledger.totals
    assert totals.writes == totals.acks == totals.digests_checked > 100


@settings(max_examples=40, deadline=None)
@given(
    begin=st.sampled_from([0, 0, 100, 333]),
    lost=st.sampled_from([0.002, 0.02, 0.1, 0.5]),
    burst=st.sampled_from([1, 4, 25]),
    seed=st.integers(0, 10**6),
)
def test_no_loss_of_frames_makes_a_trigger(begin: int, lost: float, burst: int, seed: int) -> None:
    rnd, kept, gone = random.Random(seed), [], 0
    for number in range(len(FRAMES)):
        if not gone and rnd.random() < lost / burst:
            gone = burst
        kept.append(gone == 0 and number >= begin)
        gone = max(0, gone - 1)
    # The last answers of all stay: nothing behind them could tell that the capture has lost them.
    kept[-60:] = [True] * 60
    _, triggers = watch(FRAMES, kept, 1000)
    assert [trigger.detail for trigger in triggers] == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 0.4]))
def test_a_lossy_view_of_a_real_failure_tells_only_what_happened(seed: int, lost: float) -> None:
    rnd = random.Random(seed)
    ends = LinkEnds(
        primary_address="10.99.0.1",
        secondary_address="10.99.0.2",
        ports=frozenset({7788}),
        integrity_alg="crc32c",
    )
    view = LinkView(ends, [LinkRule(name=event, event=event) for event in EVENTS])
    triggers = []
    for number, frame in enumerate(read_frames(GOLDEN / "small-failure.pcap"), 1):
        if rnd.random() >= lost:
            triggers += view.tick(frame.t_ns)
            triggers += view.feed(frame.t_ns, frame.data, number, frame.t_ns)
    assert {trigger.rule for trigger in triggers} <= {"digest-mismatch", "unacked-close"}
    assert all(trigger.sector == 89600 for trigger in triggers)
