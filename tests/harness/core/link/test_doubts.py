"""Answers that fit no write, or one that was answered: a healthy pair shows them wherever a tap or a mirror
loses a write together with its acknowledgement, since ids are used again. They are a finding only
where the capture shows that no write was missed; a true one then is found."""

from collections.abc import Callable, Collection
from functools import partial

import pytest
import vendor_link as vendor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from link_script import UNPLUG, P, S, h100, p_ack, p_barrier, p_barrier_ack, p_data
from link_wire import Wire, handshake

from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link.linkevidence import LinkEvidence
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.protocol import LinkOptions, ReplicationProtocol
from freezeframe.harness.core.link.skim import run_of
from freezeframe.harness.core.linkevents import LinkRule

ABOUT_ANSWERS = ("repeated-ack", "unknown-ack", "barrier-count")
WRITES = 4
Frames = list[tuple[int, bytes]]


class TimedWire(Wire):
    """A frame each 0.02 ms, and pauses."""

    def __init__(self, kinds: Collection[str] = ("data", "meta")) -> None:
        self.t_ns, self.timed = 10**18, Frames()
        super().__init__(kinds)

    def _segment(self, kind: str, sender: str, flags: int, data: bytes) -> None:
        super()._segment(kind, sender, flags, data)
        self.t_ns += NS_PER_MS // 50
        self.timed.append((self.t_ns, self.frames[-1]))

    def wait(self, ms: int) -> None:
        self.t_ns += ms * NS_PER_MS

    def acknowledge(self, kind: str, sender: str) -> None:
        """A bare acknowledgement, as the receiver sends one up to 40 ms late."""
        self._segment(kind, sender, 16, b"")


def drbd(
    again: int = 0, pause_ms: int = 300, *, epochs: bool = True, is_acknowledged: bool = True
) -> Frames:
    """One block is written over and over under one id. ``again``: the write, counted from 1, that is
    answered twice. ``epochs``: each write is one. ``is_acknowledged``: TCP says so once more later."""
    wire = TimedWire()
    handshake(wire)
    for number in range(1, WRITES + 1):
        wire.wait(pause_ms)
        wire.send("data", P, p_data(7, 64, bytes([number]) * 512))
        for _ in range(1 + (number == again)):
            wire.send("meta", S, p_ack(7, 64))
        if epochs:
            wire.send("data", P, p_barrier(number), h100(UNPLUG))
            wire.send("meta", S, p_barrier_ack(number, 1))
    if is_acknowledged:
        wire.wait(40)
        wire.acknowledge("data", S)
    return wire.timed


def one_connection(again: int = 0, pause_ms: int = 300) -> Frames:
    """The same of a protocol whose answers travel on the connection of the writes."""
    wire = TimedWire(["data"])
    for end in (P, S):
        wire.send("data", end, vendor.message(vendor.HELLO, 0, b"one"))
    for number in range(1, WRITES + 1):
        wire.wait(pause_ms)
        wire.send("data", P, vendor.write(7, 4096, 512, bytes([number]) * 512))
        for _ in range(1 + (number == again)):
            wire.send("data", S, vendor.message(vendor.ANSWER, 7))
    return wire.timed


class VendorEnds(LinkEnds):
    def speak(self, *, must_match: bool = True) -> ReplicationProtocol:
        return vendor.VendorLink(LinkOptions(primary_address=P, must_match=must_match))


DRBD = LinkEnds(primary_address=P, secondary_address=S, ports=frozenset({7788}))
EXCHANGES: dict[str, tuple[Callable[..., Frames], LinkEnds]] = {
    "drbd": (drbd, DRBD),
    "drbd, one epoch": (partial(drbd, epochs=False), DRBD),
    "one connection": (
        one_connection,
        VendorEnds(primary_address=P, secondary_address=S, ports=frozenset({7788})),
    ),
}


def judged(
    ends: LinkEnds, frames: Frames, lost: Collection[int] = ()
) -> tuple[LinkView, list[Trigger]]:
    """As the watch judges, and as ``import`` does at the end."""
    view = LinkView(ends, [LinkRule(name=one, event=one) for one in ABOUT_ANSWERS])
    hits, now_ns = list[Trigger](), 0
    for number, (t_ns, frame) in enumerate(frames, 1):
        if number - 1 not in lost:
            due_ns = view.next_deadline()
            if due_ns is not None and due_ns <= t_ns:
                hits += view.tick(due_ns)
            hits += view.tick(t_ns)
            hits += view.feed(t_ns, frame, number, t_ns)
        now_ns = t_ns
    for _ in range(8):
        now_ns += 125 * NS_PER_MS
        hits += view.tick(now_ns)
    return view, hits + view.close(now_ns)


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("pause_ms", [0, 300])
def test_frames_that_are_lost_without_a_word_accuse_nobody(name: str, pause_ms: int) -> None:
    """Runs of frames at each place, also the last."""
    make, ends = EXCHANGES[name]
    frames = make(pause_ms=pause_ms)
    for at in range(len(frames)):
        for size in (1, 2, 4, 7):
            _, hits = judged(ends, frames, range(at, at + size))
            assert [one.detail for one in hits] == [], f"frames {at} to {at + size - 1} lost"


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(EXCHANGES)),
    pause_ms=st.sampled_from([0, 1, 20, 300]),
    lost=st.sets(st.integers(0, 48), max_size=15),
)
@example(name="drbd, one epoch", pause_ms=20, lost={7, 8, 12, 16, 18, 19, 20})
@example(name="drbd", pause_ms=300, lost={5, 9, 12, 15, 17, 24, 27, 29, 30, 31, 32, 35, 37, 39, 43})
@example(name="one connection", pause_ms=1, lost={0, 1, 2, 3, 4, 6, 7, 10, 13, 14, 19, 21})
def test_nor_do_frames_that_are_lost_anywhere(name: str, pause_ms: int, lost: set[int]) -> None:
    """In the examples a write has the answer that an earlier one got, which was missed."""
    make, ends = EXCHANGES[name]
    _, hits = judged(ends, make(pause_ms=pause_ms), lost)
    assert [one.detail for one in hits] == []


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("again", range(1, WRITES + 1))
@pytest.mark.parametrize("pause_ms", [0, 300])
def test_a_write_that_was_answered_twice_is_found(name: str, again: int, pause_ms: int) -> None:
    make, ends = EXCHANGES[name]
    view, hits = judged(ends, make(again, pause_ms))
    assert [one.rule for one in hits] == ["repeated-ack"]
    assert not view.ledger.doubts


def test_a_second_answer_after_which_nothing_more_was_captured_waits() -> None:
    """Nothing tells it from the answer to a write that the capture lacks with its acknowledgement."""
    view, hits = judged(DRBD, drbd(WRITES, is_acknowledged=False))
    assert hits == []
    assert len(view.ledger.doubts) == 1


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_a_capture_from_elsewhere_may_lack_is_no_evidence(is_whole: bool) -> None:
    """The last write and its acknowledgement are not in it, and its answer is. In a capture of one's own, which
    counts what it loses, that is a second answer."""
    frames = drbd(epochs=False, is_acknowledged=False)
    found = LinkEvidence(DRBD)
    found.feed(run_of([*frames[:-4], *frames[-2:]]), 0)
    found.close(is_whole=is_whole)
    assert [one.kind for one in found.answers] == ["repeated"] * is_whole
    twice = LinkEvidence(DRBD)
    twice.feed(run_of(drbd(2)), 0)
    twice.close(is_whole=is_whole)
    assert [one.kind for one in twice.answers] == ["repeated"]


def test_what_a_doubt_asks_for_costs_nothing_when_it_is_over() -> None:
    """While an answer is in doubt no frame of its session's writes is passed over."""
    view, hits = judged(DRBD, drbd(2))
    assert len(hits) == 1
    assert not any(half.attended for half in view.reassembler.halves.values())


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_answer_too_much_is_hit_in_the_silence_after_it(name: str) -> None:
    """Nothing more is captured: the watch says it when its doubt is over."""
    exchange, ends = EXCHANGES[name]
    view = LinkView(ends, [LinkRule(name=one, event=one) for one in ABOUT_ANSWERS])
    fed = [
        hit
        for number, (t_ns, frame) in enumerate(exchange(WRITES), 1)
        for hit in view.feed(t_ns, frame, number, t_ns)
    ]
    ticked, due_ns = list[Trigger](), view.next_deadline()
    while due_ns is not None:
        ticked += view.tick(due_ns)
        due_ns = view.next_deadline()
    assert (fed, [one.rule for one in ticked]) == ([], ["repeated-ack"])
