"""Reassembly: whatever the network and the capture did to the segments, the streams are the
senders' bytes."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_frames import ACK, FIN, PSH, RST, SYN, A, B, feed, opening, segment, stream

from freezeframe.harness.core.events import NS_PER_MS
from freezeframe.harness.core.link.tcpstream import (
    HOLE_PATIENCE_NS,
    Reassembler,
    StreamClosed,
    StreamData,
    StreamGap,
    StreamOpened,
)


def cut(data: bytes, cuts: Sequence[int], seq: int, ack: int) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [segment(A, B, seq + a, ack, ACK | PSH, data[a:b]) for a, b in pairwise(edges)]


def test_both_directions_open_carry_and_close() -> None:
    frames = [
        *opening(),
        segment(A, B, 101, 901, ACK | PSH, b"hello"),
        segment(B, A, 901, 106, ACK | PSH, b"world!"),
        segment(A, B, 106, 907, FIN | ACK),
        segment(B, A, 907, 107, FIN | ACK),
        segment(A, B, 107, 908, ACK),
    ]
    events = feed(Reassembler(), frames)
    assert [type(e).__name__ for e in events] == [
        "StreamOpened", "StreamOpened", "StreamData", "StreamData", "StreamClosed", "StreamClosed",
    ]  # fmt: skip
    first, second = events[0], events[1]
    assert isinstance(first, StreamOpened)
    assert isinstance(second, StreamOpened)
    assert first.opener
    assert not second.opener
    assert first.from_start
    assert first.flow.connection == second.flow.connection
    data = events[2]
    assert isinstance(data, StreamData)
    assert (data.t_ns, data.packet_no, data.offset, bytes(data.data)) == (4000, 4, 0, b"hello")
    assert [e.reason for e in events if isinstance(e, StreamClosed)] == ["fin", "fin"]


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=20),
    overlaps=st.lists(st.integers(0, 300), max_size=8),
    isn=st.sampled_from([100, 2**32 - 2, 2**32 - 150, 2**31 - 20]),
    ipv6=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_any_segmentation_repetition_and_order_gives_the_same_stream(
    data, cuts, overlaps, isn, ipv6, random
) -> None:  # type: ignore[no-untyped-def]
    frames = cut(data, cuts, isn + 1, 901) + cut(data, overlaps, isn + 1, 901)
    frames += random.choices(frames, k=len(frames) // 2)
    frames.append(segment(A, B, isn + 1 + len(data), 901, FIN | ACK))
    frames.append(segment(A, B, isn, 901, ACK, b"\0"))  # a keep-alive
    random.shuffle(frames)
    reassembler = Reassembler()
    events = feed(reassembler, [*opening(isn), *frames])
    assert stream(events) == data
    assert reassembler.gaps == 0
    assert [e.reason for e in events if isinstance(e, StreamClosed)] == ["fin"]


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=20),
    lost=st.sets(st.integers(0, 20)),
    random=st.randoms(use_true_random=False),
)
def test_a_lossy_capture_gives_gaps_and_no_wrong_byte(data, cuts, lost, random) -> None:  # type: ignore[no-untyped-def]
    frames = cut(data, cuts, 101, 901)
    kept = [frame for number, frame in enumerate(frames) if number not in lost]
    random.shuffle(kept)
    reassembler = Reassembler()
    events = feed(reassembler, [*opening(), *kept, segment(B, A, 901, 101 + len(data), ACK)])
    events += reassembler.tick(10 * HOLE_PATIENCE_NS)
    seen, missing = bytearray(len(data)), 0
    for event in events:
        if isinstance(event, StreamData):
            assert data[event.offset : event.offset + len(event.data)] == event.data
            seen[event.offset : event.offset + len(event.data)] = b"\1" * len(event.data)
        elif isinstance(event, StreamGap):
            assert not any(seen[event.offset : event.offset + event.length_bytes])
            missing += event.length_bytes
    assert reassembler.gaps == sum(isinstance(event, StreamGap) for event in events)
    assert sum(seen) + missing == len(data)
    assert missing == len(data) - sum(len(f) - 54 for f in kept)


def test_a_hole_is_told_by_the_clock_once_the_receiver_has_acknowledged_it() -> None:
    reassembler = Reassembler()
    feed(
        reassembler,
        [*opening(), segment(A, B, 101, 901, ACK, b"one"), segment(B, A, 901, 110, ACK)],
    )
    due = reassembler.next_deadline()
    assert due == 5000 + HOLE_PATIENCE_NS
    assert reassembler.tick(due - 1) == []
    (gap,) = reassembler.tick(due)
    assert isinstance(gap, StreamGap)
    assert (gap.offset, gap.length_bytes) == (3, 6)
    assert reassembler.next_deadline() is None


def test_a_hole_is_no_gap_when_the_missing_segment_comes_in_time() -> None:
    reassembler = Reassembler()
    events = feed(
        reassembler,
        [
            *opening(),
            segment(A, B, 104, 901, ACK, b"two"),
            segment(B, A, 901, 107, ACK),
            segment(A, B, 101, 901, ACK, b"one"),
        ],
    )
    assert stream(events) == b"onetwo"
    assert reassembler.tick(10**12) == []


def test_much_out_of_order_data_ends_the_wait() -> None:
    reassembler = Reassembler(max_pending_bytes=1000)
    frames = [*opening(), *(segment(A, B, 201 + 100 * n, 901, ACK, bytes(100)) for n in range(11))]
    events = feed(reassembler, frames)
    gaps = [e for e in events if isinstance(e, StreamGap)]
    assert [(g.offset, g.length_bytes) for g in gaps] == [(0, 100)]
    assert len(stream(events)) == 1100


def test_mid_stream_start_counts_from_the_first_byte_seen() -> None:
    events = feed(
        Reassembler(), [segment(A, B, 5000, 1, ACK, b"abc"), segment(A, B, 5003, 1, ACK, b"def")]
    )
    opened = events[0]
    assert isinstance(opened, StreamOpened)
    assert not opened.from_start
    assert stream(events) == b"abcdef"


def test_reset_closes_both_and_later_segments_are_ignored() -> None:
    events = feed(
        Reassembler(),
        [
            *opening(),
            segment(A, B, 101, 901, ACK, b"x"),
            segment(B, A, 901, 102, RST | ACK),
            segment(A, B, 102, 901, ACK, b"y"),
        ],
    )
    assert [e.reason for e in events if isinstance(e, StreamClosed)] == ["rst", "rst"]
    assert stream(events) == b"x"


def test_reused_ports_begin_a_new_connection() -> None:
    events = feed(
        Reassembler(),
        [
            *opening(),
            segment(A, B, 101, 901, ACK, b"x"),
            *opening(70000),
            segment(A, B, 70001, 901, ACK, b"y"),
        ],
    )
    data = [e for e in events if isinstance(e, StreamData)]
    assert [(bytes(e.data), e.offset) for e in data] == [(b"x", 0), (b"y", 0)]
    assert data[0].flow.connection != data[1].flow.connection
    assert [e.reason for e in events if isinstance(e, StreamClosed)] == ["reused", "reused"]


def test_a_gap_at_the_close_is_told_before_it() -> None:
    reassembler = Reassembler()
    feed(reassembler, [*opening(), segment(A, B, 104, 901, ACK, b"two")])
    events = reassembler.close(10**9)
    assert [type(e).__name__ for e in events] == [
        "StreamGap",
        "StreamData",
        "StreamClosed",
        "StreamClosed",
    ]


def test_vlan_tags_and_ipv6_are_looked_through() -> None:
    six_a, six_b = ("fe80::1", 40000), ("fe80::2", 7788)
    events = feed(
        Reassembler(),
        [
            segment(A, B, 1, 1, ACK, b"in two tags", vlan=2),
            segment(six_a, six_b, 1, 1, ACK, b"in IPv6"),
        ],
    )
    assert stream(events) == b"in two tags"
    assert stream(events, six_a) == b"in IPv6"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=120), max_size=5),
    st.integers(0, 110),
    st.binary(min_size=1, max_size=8),
)
def test_hostile_frames_are_counted_and_never_raise(
    junk: list[bytes], at: int, patch: bytes
) -> None:
    reassembler = Reassembler()
    good = bytearray(segment(A, B, 101, 901, ACK, b"payload"))
    good[at : at + len(patch)] = patch
    feed(reassembler, [*opening(), *junk, bytes(good)])
    reassembler.close(10**9)


def test_impossible_header_lengths_are_hostile() -> None:
    reassembler = Reassembler()
    frame = bytearray(segment(A, B, 101, 901, ACK, b"payload"))
    frame[14] = 0x41  # IHL of 4 bytes
    assert reassembler.feed(1, bytes(frame), 1) == []
    frame[14], frame[46] = 0x45, 0x10  # TCP header of 4 bytes
    assert reassembler.feed(2, bytes(frame), 2) == []
    assert reassembler.hostile_frames == 2


def test_an_acknowledgement_beyond_any_window_is_not_believed() -> None:
    reassembler = Reassembler()
    feed(reassembler, [*opening(), segment(B, A, 901, 101 + 2**30 + 1, ACK)])
    assert reassembler.next_deadline() is None


def test_many_connections_evict_those_without_data_first() -> None:
    reassembler = Reassembler(max_connections=4)
    events = feed(reassembler, [*opening(), segment(A, B, 101, 901, ACK, b"x")])
    flood = [segment((A[0], 50000 + n), B, 1, 0, SYN) for n in range(20)]
    events += feed(reassembler, flood)
    events += reassembler.feed(10 * NS_PER_MS, segment(A, B, 102, 901, ACK, b"y"), 99)
    assert stream(events) == b"xy"


def test_of_an_evicted_connection_every_direction_that_was_opened_is_closed() -> None:
    reassembler = Reassembler(max_connections=2)
    frames = []
    for n in range(9):
        ends = ((A[0], 50000 + n), B)
        frames += [segment(*ends, 100, 0, SYN), segment(*ends[::-1], 900, 101, SYN | ACK)]
        frames += [segment(*ends, 101, 901, ACK, b"x"), segment(*ends[::-1], 901, 102, ACK, b"y")]
    events = feed(reassembler, frames)
    opened = [one.flow.number for one in events if isinstance(one, StreamOpened)]
    closed = [(one.flow.number, one.reason) for one in events if isinstance(one, StreamClosed)]
    assert len(opened) == 18
    assert closed == [(number, "evicted") for number in opened[:-4]]


def test_ports_limit_what_is_followed() -> None:
    reassembler = Reassembler(ports=frozenset({9}))
    assert feed(reassembler, opening()) == []
