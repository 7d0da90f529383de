"""A healthy pair gives no trigger, whatever the capture loses, and wherever it begins."""

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from link_script import P, S
from link_wire import healthy_exchange

from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"
STEP_NS = NS_PER_MS // 20


FRAMES = healthy_exchange(40)


def watch(
    frames: list[bytes], kept: list[bool], deadline_ms: int
) -> tuple[LinkView, list[Trigger]]:
    rules = [
        LinkRule(name=e, event=e, deadline_ms=deadline_ms if EVENTS[e].is_timed else 0)
        for e in EVENTS
    ]
    view = LinkView(
        LinkEnds(primary_address=P, secondary_address=S, ports=frozenset({7788})), rules
    )
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
