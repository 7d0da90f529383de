"""A console is followed through the folders of a recorder that goes on: whatever comes between two
looks, each byte is given out once."""

import os
import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.events import Side
from freezeframe.harness.incidents.following import Chunk, ConsoleFollower, recorders
from freezeframe.harness.incidents.incident import Incident

SIDE: Side = "primary"
LAB, OTHER = (f"{name}-{os.getpid()}" for name in ("lab", "other"))
"""Not those of a test in another process."""


class Station:
    """Writes as the reflex and the station do: a record is complete before the next is made."""

    def __init__(self, out_dir: Path, bench: str = LAB, pair: str = "pair") -> None:
        self.out_dir, self.bench, self.pair = out_dir, bench, pair
        self.all = b""
        self.incident = Incident.create(out_dir, bench=bench, bench_id=bench, pair_id=pair, seed=0)
        self.before: list[Incident] = []
        self.open_record()

    def open_record(self) -> None:
        self.log = self.incident.console_path(SIDE).open("ab", buffering=0)
        self.times = self.incident.console_times_path(SIDE).open("ab", buffering=0)

    def say(self, data: bytes, *, is_timed: bool = True, after_s: float = 0.0) -> None:
        self.all += data
        at = self.log.tell()
        self.log.write(data)
        t_ns = self.incident.record["clock"]["monotonic_ns"] + int(after_s * 1e9)
        self.owed = struct.pack("<QQ", t_ns, at)
        if is_timed:
            self.time()

    def time(self) -> None:
        self.times.write(self.owed)

    def cut(self) -> None:
        fresh = Incident.create(
            self.out_dir, bench=self.bench, bench_id=self.bench, pair_id=self.pair, seed=0
        )
        self.before.append(self.incident)
        self.incident = fresh
        self.open_record()

    def set_aside(self) -> None:
        path = self.incident.console_path(SIDE)
        path.replace(path.with_name("console.old.log"))
        times = self.incident.console_times_path(SIDE)
        times.replace(times.with_name("console.old.times"))
        self.open_record()

    def judge(self) -> None:
        for one in self.before:
            one.finish("fail")
        self.before.clear()

    def end(self) -> None:
        self.judge()
        self.incident.finish("interrupted")


def follow(station: Station, *, with_times: bool = False) -> ConsoleFollower:
    (recorder,) = recorders(LAB, SIDE, [station.out_dir])
    return ConsoleFollower(recorder, SIDE, with_times=with_times)


def rest(follower: ConsoleFollower) -> list[Chunk]:
    found = []
    while not follower.is_over:
        found += follower.read()
    follower.close()
    return found


def joined(chunks: list[Chunk]) -> bytes:
    return b"".join(one.data for one in chunks)


STEPS = st.lists(st.sampled_from(["say", "cut", "set aside", "judge", "look"]), max_size=14)


@settings(max_examples=15, deadline=None)
@given(STEPS, st.booleans())
def test_each_byte_is_given_out_once_whatever_the_recorder_does(
    steps: list[str], with_times: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        station = Station(Path(folder))
        station.say(b"first\n")
        follower = follow(station, with_times=with_times)
        seen = joined(follower.newest_lines(100))
        has_looked = True
        for number, step in enumerate(steps):
            match step:
                case "say":
                    station.say(b"line %d\nhalf" % number)
                case "cut":
                    station.cut()
                    has_looked = False
                case "set aside":
                    seen += joined([one for _ in range(8) for one in follower.read()])
                    station.set_aside()
                case "judge" if has_looked:  # judged within one look: not even a save is so fast
                    station.judge()
                case _:
                    seen += joined([one for _ in range(8) for one in follower.read()])
                    has_looked = True
        seen += joined([one for _ in range(8) for one in follower.read()])
        station.end()
        seen += joined(rest(follower))
        assert seen == station.all


def test_the_newest_lines_come_from_what_was_set_aside_and_from_incidents_before(
    tmp_path: Path,
) -> None:
    station = Station(tmp_path)
    station.say(b"one\ntwo\n")
    station.cut()
    station.judge()
    station.say(b"three\nfour\n")
    station.set_aside()
    station.say(b"five\nsix: ")
    for count in range(8):
        follower = follow(station)
        expected = b"".join(station.all.splitlines(keepends=True)[max(0, 6 - count) :])
        assert joined(follower.newest_lines(count)) == expected
        follower.close()
    chunks = follow(station).newest_lines(100)
    assert [one.incident.id for one in chunks][1:] == [station.incident.path.name] * 2
    station.end()


def test_only_who_records_this_bench_now_is_found(tmp_path: Path) -> None:
    assert recorders(LAB, SIDE, [tmp_path / "none"]) == []
    station, other = Station(tmp_path), Station(tmp_path, OTHER)
    waiting = Incident.create(
        tmp_path, bench=LAB, bench_id=LAB, seed=0
    )  # nobody records into it yet
    (found,) = recorders(LAB, SIDE, [tmp_path])
    assert found.newest.path == station.incident.path and "(pid " in found.holder
    waiting.finish("interrupted")
    station.end()
    assert recorders(LAB, SIDE, [tmp_path]) == []
    assert len(recorders(OTHER, SIDE, [tmp_path])) == 1
    other.end()


def test_another_recorder_of_a_bench_of_that_name_is_not_followed(tmp_path: Path) -> None:
    station = Station(tmp_path)
    follower = follow(station)
    assert follower.read() == [] and not follower.is_over
    other = Station(tmp_path, OTHER)
    other.say(b"not ours")
    station.say(b"ours\n")
    station.end()
    assert joined(rest(follower)) == b"ours\n"
    other.end()


def test_a_line_has_the_time_of_its_read_and_waits_for_it(tmp_path: Path) -> None:
    station = Station(tmp_path)
    station.say(b"one\n", after_s=1)
    follower = follow(station, with_times=True)
    before = follower.newest_lines(9)
    station.say(b"two\n", after_s=2)
    station.say(b"three\n", after_s=3, is_timed=False)
    chunks = [*follower.read(), *follower.read()]
    assert joined([*before, *chunks]) == b"one\n"  # where the read of "two" ends is not known yet
    station.time()
    chunks += follower.read()
    chunks += follower.read()
    station.end()
    chunks = [*before, *chunks, *rest(follower)]
    assert joined(chunks) == station.all
    clock = station.incident.record["clock"]

    def second(text: str) -> float:
        hours, minutes, seconds = text.split(":")
        return (int(hours) * 60 + int(minutes)) * 60 + float(seconds)

    begin_s = clock["wall_ns"] / 1e9
    found = {}
    for one in chunks:
        at = 0
        for line in one.data.splitlines(keepends=True):
            found[line] = round((second(one.utc(at)) - begin_s) % 86400)
            at += len(line)
    assert found == {b"one\n": 1, b"two\n": 2, b"three\n": 3}


def test_a_bench_of_the_same_name_is_not_found_and_its_lines_are_not_shown(tmp_path: Path) -> None:
    """Seen: with a watch on one pair, 19 of 20 lines came from another pair's run, ended by then."""
    ended = Station(tmp_path, pair="of a demo")
    ended.say(b"the demo's\n")
    ended.end()
    station = Station(tmp_path)
    station.say(b"before\n")
    station.cut()
    station.judge()
    station.say(b"ours\n")
    other = Incident.create(tmp_path, bench=LAB, bench_id=OTHER, pair_id="another", seed=0)
    other.console_path(SIDE).write_bytes(b"another pair's\n")
    follower = follow(station)
    assert joined(follower.newest_lines(20)) == b"before\nours\n"
    (found,) = recorders(OTHER, SIDE, [tmp_path])
    assert found.newest.path == other.path
    other.finish("interrupted")
    station.end()
    assert joined(rest(follower)) == b""


def test_of_a_pair_made_for_one_run_only_that_run_is_shown(tmp_path: Path) -> None:
    before = Station(tmp_path, pair="")
    before.say(b"an earlier run's\n")
    before.end()
    station = Station(tmp_path, pair="")
    station.say(b"ours\n")
    assert joined(follow(station).newest_lines(20)) == b"ours\n"
    station.end()
