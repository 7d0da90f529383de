"""Several captures of one link, from one real capture seen by taps with clocks of their own."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.link import taps
from freezeframe.harness.core.link.ipheaders import locate_tcp
from freezeframe.harness.core.link.taps import Merge, TapFrame, TapIndex, segment_of, skew
from freezeframe.harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"
MS = 1_000_000
WAY_NS = 3 * MS // 10
PRIMARY = bytes([10, 99, 0, 1])


def link() -> list[TapFrame]:
    return [
        (one.t_ns, one.data, one.original_length)
        for one in read_frames(GOLDEN / "small-failure.pcap")
        if segment_of(one.data) is not None
    ]


@dataclass
class Tap:
    """At one end of the link: what the primary sends passes the near one WAY_NS before the far one."""

    ahead_ns: int
    drift: float = 0.0
    is_far: bool = False

    def of(self, frames: list[TapFrame]) -> list[TapFrame]:
        seen = []
        for t_ns, data, length in frames:
            is_late = (data[26:30] == PRIMARY) == self.is_far
            at_ns = t_ns + (WAY_NS if is_late else 0)
            moved = at_ns + self.ahead_ns + round((at_ns - frames[0][0]) * self.drift)
            seen.append((moved, data, length))
        return sorted(seen, key=lambda one: one[0])


def index(frames: list[TapFrame]) -> TapIndex:
    made = TapIndex()
    for one in frames:
        made.add(one)
    return made


def merged(*seen: list[TapFrame]) -> tuple[Merge, list[tuple[int, int, TapFrame]]]:
    indexes = [index(one) for one in seen]
    made = Merge(indexes, [None, *(skew(indexes[0], one) for one in indexes[1:])])
    return made, list(made.frames(seen))


@pytest.mark.parametrize("ahead_ns", [0, 41 * MS, -7_200_000 * MS])
def test_the_skew_is_found_within_its_error(ahead_ns: int) -> None:
    near, far = Tap(0).of(link()), Tap(ahead_ns, is_far=True).of(link())
    found = skew(index(near), index(far))
    assert found is not None
    assert found.error_ns is not None
    assert abs(found.offset_ns - ahead_ns) <= found.error_ns
    assert found.error_ns <= WAY_NS + 1000
    assert found.segments > 100


def test_one_direction_alone_does_not_tell_the_way() -> None:
    near, far = Tap(0).of(link()), Tap(5 * MS, is_far=True).of(link())
    only = [one for one in far if one[1][26:30] == PRIMARY]
    found = skew(index(near), index(only))
    assert found is not None
    assert (found.error_ns, found.offset_ns) == (None, 5 * MS + WAY_NS)


def test_captures_of_different_links_have_no_skew() -> None:
    other = [
        (one.t_ns, one.data, one.original_length)
        for one in read_frames(GOLDEN / "small-handshake.pcap")
    ]
    assert skew(index(link()), index(other)) is None


def test_a_clock_that_drifts_is_followed() -> None:
    frames = [(t_ns * 200, data, length) for t_ns, data, length in link()]
    far = Tap(3 * MS, drift=200e-6, is_far=True).of(frames)
    found = skew(index(Tap(0).of(frames)), index(far))
    assert found is not None
    assert len(found.knots) > 4
    inner = far[20:-20]
    wrong = [
        abs(found.corrected(t_ns) - (t_ns - 3 * MS - (t_ns - far[0][0]) * 200e-6))
        for t_ns, _, _ in inner
    ]
    steady = max(abs(t_ns - found.offset_ns - found.corrected(t_ns)) for t_ns, _, _ in inner)
    assert max(wrong) < steady / 2


def test_each_segment_is_kept_once_and_in_order() -> None:
    frames = link()
    made, found = merged(Tap(0).of(frames), Tap(90 * MS, is_far=True).of(frames))
    assert sorted(data for _, _, (_, data, _) in found) == sorted(data for _, data, _ in frames)
    assert made.copies_left_out == len(frames)
    assert made.differing == 0
    times = [t_ns for _, _, (t_ns, _, _) in found]
    assert times == sorted(times)


def test_what_one_tap_lost_the_other_gives() -> None:
    frames, dice = link(), random.Random(5)
    near = [one for one in Tap(0).of(frames) if dice.random() < 0.8]
    far = [one for one in Tap(MS, is_far=True).of(frames) if dice.random() < 0.8]
    _, found = merged(near, far)
    kept = [data for _, _, (_, data, _) in found]
    seen = {data for _, data, _ in (*near, *far)}
    assert set(kept) == seen
    assert len(kept) < len(near) + len(far)


def flipped(frame: TapFrame) -> TapFrame:
    return frame[0], frame[1][:-1] + bytes([frame[1][-1] ^ 1]), frame[2]


@pytest.mark.parametrize("changed_at_far", [True, False])
def test_the_copy_nearest_to_the_receiver_is_kept(changed_at_far: bool) -> None:
    frames = link()
    wanted = next(
        number
        for number, (_, data, _) in enumerate(frames)
        if data[26:30] == PRIMARY and len(data) > 1000
    )
    near, far = Tap(0).of(frames), Tap(20 * MS, is_far=True).of(frames)
    seen = far if changed_at_far else near
    at = next(n for n, one in enumerate(seen) if one[1] == frames[wanted][1])
    seen[at] = flipped(seen[at])
    made, found = merged(near, far)
    kept = {data for _, _, (_, data, _) in found}
    assert (flipped(frames[wanted])[1] in kept) is changed_at_far
    assert (frames[wanted][1] in kept) is not changed_at_far
    assert made.differing == 1
    assert made.copies_left_out == len(frames)


def test_a_whole_copy_is_kept_before_one_that_was_cut() -> None:
    frames = link()
    near = Tap(0).of(frames)
    far = [(t_ns, data[:80], length) for t_ns, data, length in Tap(MS, is_far=True).of(frames)]
    for seen in ((near, far), (far, near)):
        _, found = merged(*seen)
        assert {data for _, _, (_, data, _) in found} == {data for _, data, _ in frames}


def test_a_segment_sent_twice_is_kept_twice() -> None:
    frames = link()
    again = (frames[-1][0] + 5 * MS, frames[10][1], frames[10][2])
    both = [*frames, again]
    _, found = merged(Tap(0).of(both), Tap(MS, is_far=True).of(both))
    assert [data for _, _, (_, data, _) in found].count(again[1]) == 2
    _, found = merged(Tap(0).of(both), Tap(MS, is_far=True).of(frames))
    assert [data for _, _, (_, data, _) in found].count(again[1]) == 2


def test_the_checksum_does_not_tell_segments_apart() -> None:
    data = next(data for _, data, _ in link() if len(data) > 1000)
    located = locate_tcp(memoryview(data))
    assert located is not None
    at = located[0]
    offloaded = data[: at + 16] + b"\x12\x34" + data[at + 18 :]
    assert segment_of(offloaded) == segment_of(data)
    other = data[: at + 4] + b"\x12\x34" + data[at + 6 :]
    assert segment_of(other) != segment_of(data)


@given(frame=st.binary(max_size=200))
def test_any_bytes_are_a_segment_or_none(frame: bytes) -> None:
    segment_of(frame)
    segment_of(bytes(12) + b"\x08\x00\x45" + frame)


def test_the_number_of_segments_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "MAX_SEGMENTS", 20)
    made = index(link())
    assert len(made.copies) == 20
    assert made.frames == len(link())
