"""What is passed over tells nothing: skimmed and fed frame by frame, any capture gives the same
packets, times and counts; and the C module does what its Python twin does."""

import itertools
import random
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_wire import healthy_exchange
from tcp_follow import ByPython, Judging

from freezeframe.harness.core.link import skim, skimpure
from freezeframe.harness.core.link.check import plain
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Reassembler
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"
T_NS = 1_795_394_356_000_000_000
STEPS_NS = (50_000, 2_000_000, 30_000_000)
"""Between frames: a hole is told after 50 ms or 500 ms."""
TWINS = [skimpure, skim] if skim.NATIVE else [skimpure]
needs_native = pytest.mark.skipif(
    not skim.NATIVE, reason="the C module is not built: needs a compiler and python3-dev"
)
FRAMES = healthy_exchange(12, (512, 8192, 65536))
Told = list[tuple[Any, ...]]
MOVED = ("offset", "next_seq", "acked", "edge", "max_window", "ts_recent", "steady")
"""What a segment moves on in its two directions."""


class Reader:
    """One way of reading a capture; ``told`` is all that comes out of it."""

    def __init__(self, ports: frozenset[int], kind: type[Reassembler]) -> None:
        self.told: Told = []
        self.reassembler = kind(ports=ports, max_connections=3)
        self.follower = Follower(DrbdLink(LinkOptions(must_match=bool(ports))))

    def take(self, events: Iterable[Any]) -> None:
        for stream_event in events:
            self.told += [plain(message) for message in self.follower.on(stream_event)]

    def run(self, data: bytes, frames: int, first_no: int, *, skimmed: bool) -> None:
        twin = self.reassembler if skimmed else skimpure.Skimmer(())
        for t_ns, frame, number in twin.frames(data, first_no, T_NS):
            self.take(self.reassembler.feed(t_ns, frame, number))

    def end(self, t_ns: int) -> Told:
        self.told += [
            (half.flow.number, *(getattr(half, name) for name in MOVED))
            for half in self.reassembler.halves.values()
        ]
        self.take(self.reassembler.close(t_ns))
        one = self.reassembler
        counts = (one.skipped_frames, one.hostile_frames, one.gaps)
        return [*self.told, counts]


def both_ways(
    frames: Sequence[bytes], cuts: Sequence[int], ports: frozenset[int], step_ns: int = STEPS_NS[0]
) -> tuple[Told, Told]:
    """Each frame judged by all rules, and skimmed in runs; before that, skimmed by the Python twin."""
    outcome = []
    for kind, skimmed in ((Judging, False), (ByPython, True), (Reassembler, True)):
        reader, edges = (
            Reader(ports, kind),
            sorted({0, len(frames), *(cut % (len(frames) + 1) for cut in cuts)}),
        )
        for begin, end in itertools.pairwise(edges):
            data = skim.encode(
                (T_NS + number * step_ns, frame, len(frame))
                for number, frame in enumerate(frames[begin:end], begin)
            )
            reader.run(data, end - begin, begin + 1, skimmed=skimmed)
            reader.take(reader.reassembler.tick(end * step_ns))
        outcome.append(reader.end(len(frames) * step_ns))
    assert outcome[1] == outcome[0]
    return outcome[0], outcome[2]


def spoilt(frames: Sequence[bytes], rnd: random.Random, rate: float, kinds: str) -> list[bytes]:
    """The capture with frames lost, moved, repeated, cut short, bits flipped, tagged, and others in
    between."""
    out: list[bytes] = []
    for frame in frames:
        if rnd.random() >= rate:
            out.append(frame)
            continue
        kind = rnd.choice(kinds)
        if kind == "r":
            out += [frame, frame]
        elif kind == "m":
            out.insert(max(0, len(out) - rnd.randrange(1, 6)), frame)
        elif kind == "c":
            out.append(frame[: rnd.randrange(0, len(frame) + 1)])
        elif kind == "f":
            at, spoiled = rnd.randrange(12, min(len(frame), 80)), bytearray(frame)
            spoiled[at] ^= 1 << rnd.randrange(8)
            out.append(bytes(spoiled))
        elif kind == "x":
            out.append(rnd.randbytes(rnd.randrange(0, 120)))
            out.append(frame)
        elif kind == "v":
            out.append(frame[:12] + b"\x81\x00\x00\x05" + frame[12:])
        elif kind == "s":  # the data of another segment
            out.append(frame[:54] + frame[54:][::-1])
        elif kind == "g":  # a fragment
            out.append(
                frame[:20] + bytes([rnd.choice([0x20, 0x00]), rnd.randrange(1, 9)]) + frame[22:]
            )
        elif kind == "t":  # an IP length that is not the frame's
            out.append(
                frame[:16] + struct.pack(">H", rnd.choice([0, 20, 39, 45, 60, 1500])) + frame[18:]
            )
        elif kind == "a" and len(frame) > 47:
            out.append(frame[:47] + bytes([frame[47] & ~0x10]) + frame[48:])
        elif kind == "e" and len(frame) > 47:  # connections come and go
            out.append(frame[:47] + bytes([frame[47] ^ rnd.choice([1, 2, 4])]) + frame[48:])
    return out


@pytest.mark.parametrize("ports", [frozenset(), frozenset({7788}), frozenset({9})])
def test_a_healthy_exchange(ports: frozenset[int]) -> None:
    fed, skimmed = both_ways(FRAMES, [3, 100, 1000], ports)
    assert skimmed == fed
    assert (len(fed) > 50) == (ports != frozenset({9}))


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("total", [0, 5, 19, 20, 60])
def test_a_header_that_lies_is_counted_as_hostile_whatever_it_carries(
    protocol: int, total: int
) -> None:
    ip = struct.pack(">BBHIBB", 0x45, 0, total, 0, 64, protocol)
    fed, skimmed = both_ways([bytes(12) + b"\x08\x00" + ip + bytes(50)], [], frozenset({7788}))
    assert skimmed == fed


@needs_native
def test_most_of_a_healthy_transfer_is_passed_over() -> None:
    view = LinkView(LinkEnds(ports=frozenset({7788})), [])
    data, thought = skim.encode((T_NS, frame, len(frame)) for frame in FRAMES), 0
    for t_ns, frame, number in view.frames(data, 1, 0):
        view.feed(t_ns, frame, number, t_ns)
        thought += 1
    assert view.ledger.totals.digests_checked > 20
    assert thought < len(FRAMES) / 3


def test_while_a_connection_is_attended_none_of_its_frames_is_passed_over() -> None:
    reader = Reader(frozenset({7788}), Reassembler)
    runs = [
        skim.encode((T_NS, frame, len(frame)) for frame in FRAMES[at : at + len(FRAMES) // 3])
        for at in range(0, len(FRAMES), len(FRAMES) // 3)
    ]
    thought = []
    for at, run in enumerate(runs[:3]):
        if at == 1:
            for connection in {half.flow.connection for half in reader.reassembler.halves.values()}:
                reader.reassembler.attend(connection)
        elif at == 2:
            reader.reassembler.rest()
        thought.append(0)
        for t_ns, frame, number in reader.reassembler.frames(run, at * (len(FRAMES) // 3) + 1, 0):
            reader.take(reader.reassembler.feed(t_ns, frame, number))
            thought[-1] += 1
    third = len(FRAMES) // 3
    assert thought[0] < third / 2 and thought[1] == third and thought[2] < third / 2, thought


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate=st.sampled_from([0.0, 0.01, 0.1, 0.4]),
    kinds=st.sampled_from(
        ["l", "m", "r", "mrl", "c", "f", "x", "v", "s", "e", "g", "t", "a", "lmrcfxvsegta"]
    ),
    begin=st.sampled_from([0, 0, 1, 37, 300]),
    cuts=st.lists(st.integers(0, 5000), max_size=6),
    ports=st.sampled_from([frozenset(), frozenset({7788})]),
    step_ns=st.sampled_from(STEPS_NS),
)
def test_whatever_the_network_and_the_capture_did(
    seed, rate, kinds, begin, cuts, ports, step_ns
) -> None:  # type: ignore[no-untyped-def]
    frames = spoilt(FRAMES[begin:900], random.Random(seed), rate, kinds)
    fed, skimmed = both_ways(frames, cuts, ports, step_ns)
    assert skimmed == fed


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.lists(st.integers(0, 3000), max_size=5),
)
@pytest.mark.parametrize("capture", ["small-handshake", "small-failure"])
def test_captures_of_real_nodes(capture: str, seed: int, rate: float, cuts: list[int]) -> None:
    frames = [frame.data for frame in read_frames(GOLDEN / f"{capture}.pcap")]
    fed, skimmed = both_ways(
        spoilt(frames, random.Random(seed), rate, "lmrcfxvsegta"), cuts, frozenset({7788})
    )
    assert skimmed == fed
    assert fed


@settings(max_examples=60, deadline=None)
@given(
    isn=st.sampled_from([0, 2**32 - 1, 2**32 - 70_000, 2**31 - 3, 2**31]),
    seed=st.integers(0, 10**6),
    ack=st.booleans(),
)
def test_sequence_numbers_wrap(isn: int, seed: int, ack: bool) -> None:
    frames = []
    for frame in FRAMES[:400]:
        seq, told = struct.unpack_from(">II", frame, 38)
        moved = struct.pack(
            ">II", (seq + isn) % 2**32, (told + isn + (1 if ack and seed % 7 == 0 else 0)) % 2**32
        )
        frames.append(frame[:38] + moved + frame[46:])
    fed, skimmed = both_ways(
        spoilt(frames, random.Random(seed), 0.05, "lmr"), [seed], frozenset({7788})
    )
    assert skimmed == fed


def test_triggers_carry_the_same_frame_numbers() -> None:
    def triggers(skimmed: bool) -> list[tuple[Any, ...]]:
        view = LinkView(
            LinkEnds(ports=frozenset({7788}), integrity_alg="crc32c"),
            [LinkRule(name=event, event=event) for event in EVENTS],
        )
        frames = list(read_frames(GOLDEN / "small-failure.pcap"))
        data = skim.encode((one.t_ns, one.data, one.original_length) for one in frames)
        source = view if skimmed else skimpure.Skimmer(())
        found = []
        for t_ns, frame, number in source.frames(data, 1, 0):
            found += view.feed(t_ns, frame, number, t_ns)
        found += view.close(frames[-1].t_ns)
        return [
            (one.rule, one.side, one.offset_bytes, one.t_arrival_ns, one.detail) for one in found
        ]

    assert triggers(True) == triggers(False) != []


# --- the twin ------------------------------------------------------------------------------------------------------
def outcome(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (ValueError, BufferError) as error:
        return str(error)


def ring_bytes(frames: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """A block as the kernel fills it: (seconds, nanoseconds, original length, frame)."""
    body = b""
    for seconds, nanoseconds, length, data in frames:
        mac = 66
        size = -(-(mac + len(data)) // 16) * 16
        head = struct.pack(
            "=IIIIIIHH", size, seconds, nanoseconds, len(data), length, 1, mac, mac + 14
        )
        body += (head.ljust(mac, b"\7") + data).ljust(size, b"\7")
    return struct.pack("=IIIII", 3, 0, 1, len(frames), 48).ljust(48, b"\7") + body


FRAME = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=90),
)


@settings(max_examples=200, deadline=None)
@given(
    frames=st.lists(FRAME, max_size=5),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3),
    room=st.sampled_from([4096, 4096, 200, 0]),
)
def test_a_block_of_the_ring_becomes_a_run(frames, flips, room) -> None:  # type: ignore[no-untyped-def]
    block = bytearray(ring_bytes(frames))
    for at, value in flips:
        block[at % len(block)] = value
    outs = [bytearray(room) for _ in TWINS]
    told = [
        outcome(twin.ring_block, bytes(block), out) for twin, out in zip(TWINS, outs, strict=True)
    ]
    assert all(one == told[0] for one in told)
    assert not isinstance(told[0], tuple) or all(
        out[: told[0][0]] == outs[0][: told[0][0]] for out in outs
    )
    if not flips and room == 4096:
        used, count, size, _, _ = told[0]
        run = bytes(outs[0][:used])
        assert run == skim.encode((s * 10**9 + ns, data, length) for s, ns, length, data in frames)
        assert (count, size) == (len(frames), sum(len(data) for *_, data in frames))


@settings(max_examples=200, deadline=None)
@given(
    frames=st.lists(st.tuples(st.integers(0, 2**63 - 1), st.binary(max_size=70), st.integers(0, 99)), max_size=5),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 40), at=st.integers(-3, 60), most=st.integers(-1, 6),
)  # fmt: skip
def test_a_run_that_lies_is_read_up_to_the_lie(frames, flips, cut, at, most) -> None:  # type: ignore[no-untyped-def]
    run = bytearray(skim.encode(frames))
    run = run[: max(0, len(run) - cut)]
    for where, value in flips:
        if run:
            run[where % len(run)] = value
    told = [twin.survey(bytes(run), at, most) for twin in TWINS]
    assert all(one == told[0] for one in told)
    reassemblers = [Reassembler(), Reassembler()]
    given_out = [list(one.frames(bytes(run), 1, 5)) for one in reassemblers]
    every = list(skimpure.Skimmer(()).frames(bytes(run), 1, 5))
    assert [one for one in every if one in given_out[0]] == given_out[0]
    assert len(every) == len(given_out[0]) + reassemblers[0].skipped_frames


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(
    st.tuples(st.just("begin"), st.integers(-1, 12)), st.tuples(st.just("take"), st.binary(max_size=8)),
    st.tuples(st.just("swallow"), st.binary(max_size=8)), st.tuples(st.just("finish")), st.tuples(st.just("drop")),
    st.tuples(st.just("discard")),
), max_size=14))  # fmt: skip
def test_a_body_is_filled_alike(calls: list[tuple[Any, ...]]) -> None:
    fills = [twin.Fill() for twin in TWINS]
    for name, *arguments in calls:
        told = [outcome(getattr(fill, name), *arguments) for fill in fills]
        assert all(one == told[0] for one in told)
        seen = [(one.filled, one.length, one.complete, one.discarding) for one in fills]
        assert all(one == seen[0] for one in seen)


@needs_native
@pytest.mark.parametrize("spoil", ["half", "fill", "other"])
def test_state_of_other_types_is_left_to_python(spoil: str) -> None:
    one = Reassembler()
    data = skim.encode((T_NS, frame, len(frame)) for frame in FRAMES[:40])
    for t_ns, frame, number in one.frames(data, 1, 0):
        one.feed(t_ns, frame, number)
    for key, half in list(one.halves.items()):
        if spoil == "half":
            one.halves[key] = object()
        else:
            setattr(half, spoil, object())
    found = [
        number for _, frame, number in one.frames(data, 1, 0) if spoil != "fill" or len(frame) > 54
    ]
    assert len(found) >= (40 if spoil != "fill" else 10)
    with pytest.raises(TypeError):
        one.frames("text", 1, 0)  # type: ignore[arg-type]
    if spoil != "fill":
        assert not any(one.next_data(frame, 1) for frame in FRAMES[:40])
    for wrong in (("text", 1), (FRAMES[0], "text"), (FRAMES[0],)):
        with pytest.raises(TypeError):
            one.next_data(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("short_way", [ByPython, Reassembler])
def test_the_next_data_of_a_steady_stream_are_given_out_once(short_way: type[Reassembler]) -> None:
    one = short_way(ports=frozenset({7788}))
    data = skim.encode((T_NS, frame, len(frame)) for frame in FRAMES)
    given = repeated = 0
    for t_ns, frame, number in one.frames(data, 1, T_NS):
        found = one.next_data(frame, number)
        if found is None:
            one.feed(t_ns, frame, number)
        else:
            half, fresh = found
            given += len(fresh)
            assert half.last_packet_no == number
            assert bytes(frame).endswith(bytes(fresh))
            repeated += one.next_data(frame, number) is not None
    assert given > 1000
    assert repeated == 0


def test_everything_goes_on_without_the_c_module() -> None:
    here = Path(__file__).parent
    program = (
        "import sys; sys.modules['freezeframe.harness.core.link._native'] = None\n"
        "import pytest; from freezeframe.harness.core.link import skim; assert not skim.NATIVE\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    files = [
        here / name
        for name in ("test_tcpstream.py", "drbd/test_stream.py", "test_lossy_capture.py")
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *map(str, files)],
        capture_output=True, text=True, timeout=100, cwd=here.parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
