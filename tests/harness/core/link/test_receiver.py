"""A byte counts as received only if the receiving TCP took it; its acknowledgements are the first
witness. The same rules on random scripts, against Linux itself: tests/system/test_kernel_tcp.py."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tcp import ones_sum, packet
from tcp_frames import A, B, feed, opening, segment, stream

from freezeframe.harness.core.link import skim, skimpure
from freezeframe.harness.core.link.linkrules import EVENTS, LinkRule
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.streams import Flow
from freezeframe.harness.core.link.tcpreceiver import (
    HOLE_LIMIT_NS,
    HOLE_PATIENCE_NS,
    AddressPair,
    Half,
    QueuedSegment,
    TcpOptions,
    parse_options,
)
from freezeframe.harness.core.link.tcpstream import (
    Reassembler,
    StreamClosed,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.edge.pcapng import read_frames

FIELD = Path(__file__).parents[3] / "golden" / "field"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TWINS = [skimpure, skim] if skim.NATIVE else [skimpure]


def summed(frame: bytes, spoil: int = 0, *, unfinished: bool = False) -> bytes:
    """The IPv4 frame with a right checksum, or a spoilt one, or what checksum offload leaves."""
    tcp, ends = frame[34:], frame[26:34]
    pseudo = ends + struct.pack(">HH", 6, len(tcp))
    value = ones_sum(pseudo + tcp[:16] + b"\0\0" + tcp[18:]) ^ 0xFFFF
    if unfinished:
        value = ones_sum(pseudo)
    return frame[:50] + struct.pack(">H", (value + spoil) % 65536) + frame[52:]


def right(frames: Sequence[bytes]) -> list[bytes]:
    return [summed(frame) for frame in frames]


def closed(events: Sequence[StreamEvent]) -> list[str]:
    return [event.reason for event in events if isinstance(event, StreamClosed)]


# --- captures from the field ----------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["healthy-base", "rst-out-of-window", "bad-checksum-then-retransmitted"]
)
def test_what_the_receiver_ignores_triggers_nothing(name: str) -> None:
    rules = [LinkRule(name=event, event=event) for event in EVENTS]
    view = LinkView(LinkEnds(ports=frozenset({7788}), integrity_alg="crc32c"), rules)
    triggers = []
    for number, frame in enumerate(read_frames(FIELD / f"{name}.pcap"), 1):
        triggers += view.tick(frame.t_ns)
        triggers += view.feed(frame.t_ns, frame.data, number, frame.t_ns)
    triggers += view.tick(frame.t_ns + 10**10)
    triggers += view.close(frame.t_ns + 10**10)
    assert triggers == []
    totals = view.ledger.totals
    assert (totals.writes, totals.acks, totals.digests_checked) == (12, 12, 12)
    assert view.reassembler.gaps == 0


def test_the_wrong_bytes_under_a_right_checksum_are_hit() -> None:
    """The speech to the silence above: the receiver took them."""
    frames = [one.data for one in read_frames(FIELD / "bad-checksum-then-retransmitted.pcap")]
    rules = [LinkRule(name=event, event=event) for event in EVENTS]
    view = LinkView(LinkEnds(ports=frozenset({7788}), integrity_alg="crc32c"), rules)
    found = []
    for number, frame in enumerate(frames, 1):
        found += view.feed(number, summed(frame), number, number)
    assert "digest-mismatch" in {trigger.rule for trigger in found}


# --- checksums ------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(
    before=st.integers(0, 9),
    tcp=st.binary(min_size=20, max_size=200),
    addresses=st.one_of(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32)),
    field=st.sampled_from(["right", "unfinished", "zero", "as it is"]),
)
def test_a_checksum_is_judged_alike_and_as_the_slow_way_does(
    before: int, tcp: bytes, addresses: bytes, field: str
) -> None:
    pseudo = ones_sum(addresses + struct.pack(">HH", 6, len(tcp)))
    whole = addresses + struct.pack(">HH", 6, len(tcp))
    value = {
        "right": ones_sum(whole + tcp[:16] + b"\0\0" + tcp[18:]) ^ 0xFFFF,
        "unfinished": pseudo,
        "zero": 0,
        "as it is": int.from_bytes(tcp[16:18], "big"),
    }[field]
    tcp = tcp[:16] + struct.pack(">H", value) + tcp[18:]
    frame = bytes(before) + tcp
    told = [twin.judge_sum(frame, before, len(frame), addresses) for twin in TWINS]
    assert all(one == told[0] for one in told)
    is_right = ones_sum(whole + tcp) == 0xFFFF
    assert (told[0] == skim.GOOD) == is_right
    if not is_right and field in ("zero", "unfinished") and value:
        assert told[0] == skim.UNFINISHED


@pytest.mark.parametrize("seq", range(50))
def test_a_checksum_that_a_script_spoils_is_neither_right_nor_unfinished(seq: int) -> None:
    right = packet((1, 2), seq, 7, 16, b"data")
    addresses, size = right[12:20], len(right) - 20
    unfinished = ones_sum(addresses + struct.pack(">HH", 6, size))
    value = int.from_bytes(right[36:38], "big")
    for spoil in ((unfinished - value) % 65536, 0xFFFF, 1, 300):
        spoilt = packet((1, 2), seq, 7, 16, b"data", spoil=spoil)
        assert skim.judge_sum(spoilt, 20, len(spoilt), addresses) in (skim.BAD, skim.ZERO)
    assert skim.judge_sum(right, 20, len(right), addresses) == skim.GOOD


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("at", "end"), [(-1, 30), (0, 19), (0, 41), (30, 45)])
def test_a_checksum_outside_of_the_frame_is_refused(twin, at: int, end: int) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        twin.judge_sum(bytes(40), at, end, bytes(8))


def test_a_wrong_segment_does_not_count_and_the_right_one_does() -> None:
    reassembler = Reassembler()
    events = feed(
        reassembler,
        [
            *right(opening()),
            summed(segment(A, B, 101, 901, ACK, b"wrong!"), spoil=9),
            summed(segment(A, B, 101, 901, ACK, b"right.")),
            summed(segment(B, A, 901, 107, ACK)),
        ],
    )
    assert stream(events) == b"right."
    assert reassembler.refused["checksum"] == 1


def test_wrong_bytes_that_are_acknowledged_are_a_hole_where_checksums_mean_something() -> None:
    reassembler = Reassembler()
    events = feed(
        reassembler,
        [
            *right(opening()),
            summed(segment(A, B, 101, 901, ACK, b"wrong!"), spoil=9),
            summed(segment(B, A, 901, 107, ACK)),
        ],
    )
    events += reassembler.tick(10 * HOLE_PATIENCE_NS)
    assert [(e.offset, e.length_bytes) for e in events if isinstance(e, StreamGap)] == [(0, 6)]


def test_unfinished_checksums_are_no_reason_to_doubt() -> None:
    frames = [*right(opening()), summed(segment(A, B, 101, 901, ACK, b"data"), unfinished=True)]
    assert stream(feed(Reassembler(), frames)) == b"data"


def test_a_direction_without_any_right_checksum_is_believed() -> None:
    """A capture whose addresses were changed and whose checksums were not."""
    frames = [
        *(summed(frame, spoil=77) for frame in opening()),
        *(summed(segment(A, B, 101 + 4 * n, 901, ACK, b"data"), spoil=77) for n in range(5)),
        summed(segment(B, A, 901, 121, ACK), spoil=77),
    ]
    assert stream(feed(Reassembler(), frames)) == b"data" * 5


def test_checksums_of_joined_segments_are_learned_to_mean_nothing() -> None:
    """An adapter that joins segments leaves the first one's checksum: small segments are right,
    the joined ones wrong, and the receiver acknowledges all of them."""
    reassembler = Reassembler()
    events = feed(reassembler, right(opening()))
    t_ns = 0
    for n in range(12):
        at = 101 + 100 * n
        for frame in (
            summed(segment(A, B, at, 901, ACK, bytes([n]) * 100), spoil=5),
            summed(segment(B, A, 901, at + 100, ACK)),
        ):
            t_ns += HOLE_PATIENCE_NS + 1
            events += reassembler.tick(t_ns)
            events += reassembler.feed(t_ns, frame, 10 + n)
    seen = stream(events)
    assert seen == b"".join(bytes([n]) * 100 for n in range(4, 12))


# --- RST and SYN ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("at", "is_reset"), [(104, True), (103, False), (105, False), (104 - 2_000_000_000, False)]
)
def test_only_a_reset_at_the_exact_position_ends_the_connection(at: int, is_reset: bool) -> None:
    events = feed(
        Reassembler(),
        [
            *opening(),
            segment(A, B, 101, 901, ACK, b"one"),
            segment(A, B, at, 901, RST | ACK),
            segment(A, B, 104, 901, ACK, b"two"),
        ],
    )
    assert stream(events) == (b"one" if is_reset else b"onetwo")
    assert closed(events) == (["rst", "rst"] if is_reset else [])


def test_a_reset_where_the_receiver_is_although_the_capture_missed_bytes() -> None:
    frames = [
        *opening(),
        segment(B, A, 901, 150, ACK),
        segment(A, B, 150, 901, RST),
    ]
    assert closed(feed(Reassembler(), frames)) == ["rst", "rst"]


def test_a_refused_connection_is_reset() -> None:
    frames = [segment(A, B, 100, 0, SYN), segment(B, A, 0, 101, RST | ACK)]
    assert closed(feed(Reassembler(), frames)) == ["rst"]


def test_a_syn_on_a_connection_that_lives_is_ignored() -> None:
    events = feed(
        Reassembler(),
        [
            *opening(),
            segment(A, B, 101, 901, ACK, b"one"),
            segment(A, B, 70000, 0, SYN),
            segment(B, A, 901, 104, ACK),  # the challenge
            segment(A, B, 104, 901, ACK, b"two"),
        ],
    )
    assert stream(events) == b"onetwo"
    assert closed(events) == []


def test_a_syn_whose_answer_was_captured_without_it_begins_anew_once_acknowledged() -> None:
    events = feed(
        Reassembler(),
        [
            *opening(),
            segment(A, B, 101, 901, ACK, b"one"),
            segment(B, A, 5000, 70001, SYN | ACK),
            segment(A, B, 70001, 5001, ACK, b"two"),
        ],
    )
    opened = [e for e in events if isinstance(e, StreamOpened)]
    assert len(opened) == 4
    assert closed(events) == ["reused", "reused"]


# --- copies, windows, timestamps ------------------------------------------------------------------
def test_what_was_delivered_first_stays() -> None:
    frames = [
        *opening(),
        segment(A, B, 101, 901, ACK, b"first"),
        segment(A, B, 101, 901, ACK, b"SECOND!"),
    ]
    assert stream(feed(Reassembler(), frames)) == b"firstD!"


def test_a_hole_that_the_receiver_asks_for_is_waited_for() -> None:
    reassembler = Reassembler()
    events = feed(
        reassembler,
        [*opening(), segment(A, B, 104, 901, ACK, b"two"), segment(B, A, 901, 101, ACK)],
    )
    events += reassembler.tick(10 * HOLE_LIMIT_NS)
    assert reassembler.certain
    events += reassembler.feed(11 * HOLE_LIMIT_NS, segment(A, B, 101, 901, ACK, b"one"), 9)
    assert stream(events) == b"onetwo"
    assert reassembler.gaps == 0


def with_options(frame: bytes, options: bytes) -> bytes:
    size = 20 + len(options)
    frame = frame[:46] + bytes([size // 4 << 4]) + frame[47:54] + options + frame[54:]
    return frame[:16] + struct.pack(">H", len(frame) - 14) + frame[18:]


def stamped(frame: bytes, tsval: int) -> bytes:
    return with_options(frame, b"\1\1\x08\x0a" + struct.pack(">II", tsval % 2**32, 0))


def windowed(frame: bytes, window: int) -> bytes:
    return frame[:48] + struct.pack(">H", window) + frame[50:]


def test_an_old_timestamp_is_refused_until_the_receiver_says_otherwise() -> None:
    opened = [stamped(frame, 1000 + n) for n, frame in enumerate(opening())]
    old = stamped(segment(A, B, 101, 901, ACK, b"old"), 500)
    new = stamped(segment(A, B, 101, 901, ACK, b"new"), 1100)
    acknowledged = stamped(segment(B, A, 901, 104, ACK), 1101)
    assert stream(feed(Reassembler(), [*opened, old, new, acknowledged])) == b"new"
    assert stream(feed(Reassembler(), [*opened, old, acknowledged])) == b"old"


def test_the_timestamp_of_an_early_segment_is_not_kept_though_the_receiver_took_it() -> None:
    """It crosses the window's edge, and the receiver's selective acknowledgement overrules the
    model."""

    def options(tsval: int, more: bytes = b"") -> bytes:
        return b"\1\1\x08\x0a" + struct.pack(">II", tsval, 0) + more

    opened = [
        with_options(frame, options(1000 + n, (b"\1\3\3\0" if n < 2 else b"") + b"\4\2\1\1"))
        for n, frame in enumerate(opening())
    ]
    opened[1] = windowed(opened[1], 40)
    across = stamped(segment(A, B, 131, 901, ACK, b"x" * 20), 2000)
    sack = options(1003, b"\1\1\x05\x0a" + struct.pack(">II", 131, 151))
    says_so = with_options(windowed(segment(B, A, 901, 101, ACK), 40), sack)
    before = stamped(segment(A, B, 101, 901, ACK, b"y" * 30), 1500)
    events = feed(Reassembler(), [*opened, across, says_so, before])
    assert stream(events) == b"y" * 30 + b"x" * 20


def test_without_frames_of_the_receiver_its_window_is_not_known() -> None:
    opened = [with_options(frame, b"\1\3\3\0") for frame in opening()[:2]]
    reassembler = Reassembler()
    first = [segment(A, B, 101 + 60000 * n, 901, ACK, bytes(60000)) for n in range(4)]
    events = feed(reassembler, [*opened, *first])
    assert len(stream(events)) == 60000
    events += reassembler.tick(2 * HOLE_LIMIT_NS)
    assert len(stream(events)) == 4 * 60000


def test_data_beyond_the_window_is_refused_until_the_receiver_says_otherwise() -> None:
    scaled = b"\1\3\3\0"
    opened = [with_options(frame, scaled) for frame in opening()[:2]]
    opened[1] = windowed(opened[1], 10)
    beyond = segment(A, B, 101, 901, ACK, bytes(20))
    within = segment(A, B, 101, 901, ACK, b"within")
    events = feed(Reassembler(), [*opened, opening()[2], beyond, within])
    assert stream(events) == b"within"
    taken = [*opened, opening()[2], beyond, segment(B, A, 901, 121, ACK)]
    assert stream(feed(Reassembler(), taken)) == bytes(20)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=12), st.integers(0, 40), st.integers(1, 12)
)  # fmt: skip
def test_the_queue_knows_which_bytes_it_holds(
    queued: list[tuple[int, int]], at: int, size: int
) -> None:
    half = Half(Flow(0, 0, A, 1, B, 2), AddressPair())
    held: set[int] = set()
    for start, length in queued:
        node = QueuedSegment(start, start + length, 0, 0, bytes(length), False)
        assert half.overlaps(node) == bool(held & set(range(start, start + length)))
        half.hold(node)
        held |= set(range(start, start + length))
    assert [one.at for one in half.pending] == sorted({one.at for one in half.pending})
    assert [one.end for one in half.pending] == sorted({one.end for one in half.pending})
    asked = set(range(at, at + size))
    assert half.holds(QueuedSegment(at, at + size, 0, 0, b"", False)) == (asked <= held)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", TcpOptions()),
        (b"\x04\x02", TcpOptions(sack_ok=True)),
        (b"\x01\x01\x04\x02", TcpOptions(sack_ok=True)),
        (b"\x04\x03\x00", TcpOptions()),
        (b"\x09\x02", TcpOptions()),
        (b"\x03\x03\x07", TcpOptions(scale=7)),
        (b"\x03\x04\x07\x00", TcpOptions()),
        (b"\x08\x0a" + bytes(3) + b"\x05" + bytes(4), TcpOptions(tsval=5)),
        (b"\x08\x08" + bytes(3) + b"\x05" + bytes(2), TcpOptions()),
        (b"\x05\x0a" + bytes(3) + b"\x05" + bytes(3) + b"\x09", TcpOptions(sacks=((5, 9),))),
        (b"\x05\x06" + bytes(4), TcpOptions()),
        (b"\x00\x04\x02", TcpOptions()),
        (b"\x09\x01\x04\x02", TcpOptions()),
        (b"\x04\x02\x03\x09\x07", TcpOptions(sack_ok=True)),
    ],
)
def test_an_option_counts_with_its_own_length_only(raw: bytes, expected: TcpOptions) -> None:
    assert parse_options(memoryview(raw)) == expected
