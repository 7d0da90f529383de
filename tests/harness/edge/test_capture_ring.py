"""The capture on disk: bounded while nothing happens, whole around a trigger, one file at the end,
whatever is killed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from ring_link import FRAME_BYTES, MIB, STEP_NS, Link, in_file, is_gapless, kept, reading

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge.capture_ring import (
    MIN_SEGMENT_BYTES,
    PIN_NS,
    join,
    segment_path,
    segments,
)
from freezeframe.harness.edge.pcapng import (
    END,
    PcapngWriter,
    first_packet_at,
    whole_to,
)
from freezeframe.harness.errors import RigError


@pytest.fixture
def link(tmp_path: Path) -> Link:
    return Link(tmp_path)


def test_a_short_run_is_one_file_and_nothing_is_moved(link: Link) -> None:
    link.pass_on(50)
    link.close()
    assert segments(link.path) == []
    join(link.path)
    assert in_file(link.path) == list(range(1, 51))
    assert link.ring.number(7) == 7


def test_hours_without_a_trigger_stay_within_half_the_bound_and_the_newest_is_there(
    link: Link,
) -> None:
    most = 0
    for _ in range(120):
        link.pass_on(100)  # 94 MiB in all
        most = max(most, link.on_disk())
    assert most <= 8 * MIB + MIN_SEGMENT_BYTES
    link.close()
    before = kept(link.path)
    assert link.ring.frames_stored == len(before)
    join(link.path)
    found = in_file(link.path)
    assert found == before
    assert is_gapless(found) and found[-1] == link.number
    assert found[0] == link.ring.first_no > 1
    assert len(found) * FRAME_BYTES > 6 * MIB
    assert [one.name for one in link.path.parent.iterdir()] == ["link.pcapng"]


def test_the_window_around_a_trigger_stays_and_its_number_is_the_files(link: Link) -> None:
    link.pass_on(4000)
    trigger_no, trigger_ns = link.number, link.now_ns
    told = link.ring.number(trigger_no)
    link.ring.pin(trigger_ns)
    link.pass_on(100)
    link.ring.freeze(trigger_ns)
    link.pass_on(8000)
    assert link.ring.is_complete and not link.ring.full
    assert link.on_disk() <= 16 * MIB
    link.close()
    join(link.path)
    found = in_file(link.path)
    assert found[told - 1] == trigger_no
    assert is_gapless(found)
    behind = (found[-1] - trigger_no) * FRAME_BYTES
    assert behind > 7 * MIB


def test_a_pin_that_nobody_follows_up_ends(link: Link) -> None:
    link.pass_on(3000)
    first_no = link.ring.first_no
    link.ring.pin(link.now_ns)
    link.pass_on(PIN_NS // STEP_NS - 10)
    assert link.ring.first_no == first_no
    link.pass_on(3000)
    assert link.ring.first_no > first_no and not link.ring.is_complete
    assert link.on_disk() <= 9 * MIB


def test_the_window_is_counted_in_seconds(tmp_path: Path) -> None:
    link = Link(tmp_path, before_s=4, after_s=2)
    link.pass_on(2000, at_once=1)
    assert len(segments(link.path)) <= 10
    trigger_no = link.number
    link.ring.freeze(link.now_ns)
    link.pass_on(1000, at_once=1)
    link.close()
    join(link.path)
    found = in_file(link.path)
    assert 4 <= (trigger_no - found[0]) / 100 <= 5
    assert found[-1] - trigger_no == 200


def test_a_shorter_segment_in_the_place_of_a_longer_one_holds_nothing_of_it(tmp_path: Path) -> None:
    link = Link(tmp_path, before_s=4)
    link.pass_on(1000, at_once=1)
    for _ in range(100):
        link.number += 9  # a quieter link
        link.pass_on(1, at_once=1)
    for _, one in segments(link.path):
        data = one.read_bytes()
        assert whole_to(data, 0) == len(data) < 20 * FRAME_BYTES


def test_what_came_before_a_long_silence_is_kept(tmp_path: Path) -> None:
    link = Link(tmp_path, before_s=4)
    link.pass_on(10)
    link.number += 10_000
    link.pass_on(10)
    assert kept(link.path) == [*range(1, 11), *range(10_011, 10_021)]


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_step_of_the_hosts_clock_costs_no_frame(tmp_path: Path, step_s: int) -> None:
    link = Link(tmp_path, before_s=4, after_s=4)
    link.pass_on(1000, at_once=1)
    link.wall_ns += step_s * NS_PER_S
    link.pass_on(20, at_once=1)
    trigger_no = link.number
    link.ring.freeze(link.now_ns)
    link.pass_on(20, at_once=1)
    link.wall_ns += step_s * NS_PER_S
    link.pass_on(1000, at_once=1)
    link.close()
    join(link.path)
    found = in_file(link.path)
    assert is_gapless(found)
    assert 4 <= (trigger_no - found[0]) / 100 <= 5
    assert found[-1] - trigger_no == 400


def test_only_the_first_trigger_counts(tmp_path: Path) -> None:
    link = Link(tmp_path, after_s=2)
    link.ring.freeze(link.now_ns)
    link.pass_on(100)
    link.ring.freeze(link.now_ns)
    link.pass_on(500)
    assert link.ring.is_complete and link.ring.frames_stored == 200


def test_a_joined_file_is_one_section_with_names_and_statistics(link: Link) -> None:
    link.pass_on(2000)
    link.close()
    join(link.path)
    if shutil.which("capinfos") is None:
        pytest.skip("capinfos (Debian package wireshark-common) missing")
    told = subprocess.run(
        ["capinfos", "-M", str(link.path)], capture_output=True, text=True, check=True
    ).stdout
    assert f"Number of packets:   {link.ring.frames_stored}" in told
    assert "Number of interfaces in file: 1" in told
    assert f"begins with frame {link.ring.first_no} of the capture" in told


@pytest.mark.parametrize("torn", [0, 1, 30, FRAME_BYTES + 31])
def test_a_killed_writer_leaves_what_it_had_written(link: Link, torn: int) -> None:
    link.pass_on(2000)  # never closed
    with link.path.open("r+b") as file:
        file.truncate(link.path.stat().st_size - torn)
    before = kept(link.path)
    assert is_gapless(before) and before[-1] == link.number - (1 if torn else 0)
    join(link.path)
    assert in_file(link.path) == before


@pytest.mark.parametrize("more", [5, 60])
def test_a_killed_writer_leaves_nothing_of_a_segment_that_it_was_writing_over(
    link: Link, more: int
) -> None:
    link.pass_on(2000 + more)  # never closed
    assert link.path.stat().st_size > (more + 1) * (FRAME_BYTES + 32)  # the older segment's rest
    before = kept(link.path)
    assert is_gapless(before) and before[-1] == link.number
    assert len(before) == link.ring.frames_stored
    join(link.path)
    assert in_file(link.path) == before
    assert whole_to(link.path.read_bytes(), 0) == link.path.stat().st_size


def test_others_see_that_a_file_half_written_over_is_not_whole_and_no_old_frame(link: Link) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark missing")
    link.pass_on(2060)
    shown = subprocess.run(
        ["tshark", "-r", str(link.path)], capture_output=True, text=True, check=False
    )
    assert len(shown.stdout.splitlines()) == 60
    assert "damaged" in shown.stderr


def test_a_join_that_was_killed_may_have_set_aside_a_file_half_written_over(link: Link) -> None:
    link.pass_on(2060)
    before = kept(link.path)
    link.path.rename(segment_path(link.path, 2001))
    assert kept(link.path) == before
    join(link.path)
    assert in_file(link.path) == before


class Killed(BaseException):
    pass


def test_a_writer_killed_in_the_roll_that_gives_up_a_segment_leaves_the_others(link: Link) -> None:
    link.pass_on(2000)
    before, (_, oldest) = kept(link.path), segments(link.path)[0]
    lost = len(in_file(oldest))

    def die(path: Path, comment: str) -> PcapngWriter:
        raise Killed

    link.ring._make = die
    with pytest.raises(Killed):
        link.pass_on(1000)
    written = link.number - 5  # the last batch met the kill
    expected = [*before[lost:], *range(before[-1] + 1, written + 1)]
    assert kept(link.path) == expected
    join(link.path)
    assert in_file(link.path) == expected


def test_a_segment_that_cannot_be_begun_after_another_was_given_up_leaves_all_counts_right(
    link: Link,
) -> None:
    def no_room(path: Path, comment: str) -> PcapngWriter:
        raise RigError(f"cannot write the capture file {path}: No space left on device")

    link.pass_on(2000)
    link.ring._make = no_room
    link.pass_on(1000)
    assert "No space left" in link.ring.full
    found = kept(link.path)
    assert (
        is_gapless(found)
        and found[0] == link.ring.first_no
        and len(found) == link.ring.frames_stored
    )
    assert link.ring.number(found[-1]) == len(found)
    assert link.on_disk() == link.ring.size_bytes
    link.close()
    join(link.path)
    assert in_file(link.path) == found


def test_a_segment_that_somebody_removed_costs_only_itself(link: Link) -> None:
    link.pass_on(2000)
    segments(link.path)[0][1].unlink()
    link.pass_on(2000)
    link.close()
    join(link.path)
    found = in_file(link.path)
    assert is_gapless(found) and found[-1] == link.number and found[0] == link.ring.first_no


def test_a_segment_that_cannot_be_given_up_ends_the_record_and_is_still_counted(link: Link) -> None:
    link.pass_on(2000)
    (_, oldest), *_ = segments(link.path)
    hidden = oldest.with_suffix(".hidden")
    oldest.rename(hidden)
    oldest.mkdir()
    link.pass_on(1000)
    assert "Is a directory" in link.ring.full
    oldest.rmdir()
    hidden.rename(oldest)
    found = kept(link.path)
    assert (
        is_gapless(found)
        and found[0] == link.ring.first_no
        and len(found) == link.ring.frames_stored
    )


@pytest.mark.parametrize(
    ("before", "then"), [(2000, 1000), (300, 300)], ids=["written-over", "begun-anew"]
)
def test_a_reader_of_a_watch_that_goes_on_never_gets_new_frames_for_old_ones_nor_a_hole(
    link: Link, before: int, then: int
) -> None:
    link.pass_on(before)
    reader = reading(link.path)
    next(reader)
    link.pass_on(then)
    with pytest.raises(RigError, match="has moved on while it was read"):
        list(reader)


def test_a_reader_does_not_end_early_where_a_shorter_segment_took_the_place(tmp_path: Path) -> None:
    link = Link(tmp_path, before_s=4)
    link.pass_on(1000, at_once=1)
    reader = reading(link.path)
    next(reader)
    for _ in range(100):
        link.number += 9
        link.pass_on(1, at_once=1)
    with pytest.raises(RigError, match="has moved on while it was read"):
        list(reader)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_writer_that_was_killed_when_the_oldest_segment_had_to_go_leaves_the_others(
    link: Link, is_moved: bool
) -> None:
    link.pass_on(700)
    before, (_, oldest) = kept(link.path), segments(link.path)[0]
    lost = len(in_file(oldest))
    link.path.rename(
        segment_path(link.path, link.ring.number(link.number) - len(in_file(link.path)) + 1)
    )
    with oldest.open("r+b") as file:
        file.write(END)
    if is_moved:
        oldest.rename(link.path)
    assert kept(link.path) == before[lost:]
    join(link.path)
    assert in_file(link.path) == before[lost:]
    assert [one.name for one in link.path.parent.iterdir()] == ["link.pcapng"]


def test_a_writer_that_was_killed_before_a_segments_header_costs_nothing(link: Link) -> None:
    link.pass_on(700)
    before = kept(link.path)
    link.path.rename(
        segment_path(link.path, link.ring.number(link.number) - len(in_file(link.path)) + 1)
    )
    link.path.touch()
    assert kept(link.path) == before
    join(link.path)
    assert in_file(link.path) == before


def test_a_disk_that_is_full_when_a_segment_should_begin_ends_the_record_and_nothing_else(
    link: Link,
) -> None:
    def no_room(path: Path, comment: str) -> PcapngWriter:
        path.touch()
        raise RigError(f"cannot write the capture file {path}: No space left on device")

    link.pass_on(300)
    link.ring._make = no_room
    link.pass_on(300)
    assert "No space left" in link.ring.full
    link.close()
    before = kept(link.path)
    assert is_gapless(before) and before[-1] == link.ring.frames_stored >= 300
    join(link.path)
    assert in_file(link.path) == before


def test_a_join_that_was_killed_anywhere_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    link = Link(tmp_path / "whole")
    link.pass_on(700)
    link.close()
    whole, parts = kept(link.path), segments(link.path)
    assert len(parts) >= 4
    second = parts[1][1].read_bytes()
    at = first_packet_at(second)
    for copied in (0, 1, 100, 5000, len(second) - at):
        folder = tmp_path / f"copied-{copied}"
        shutil.copytree(link.path.parent, folder)
        path = folder / "link.pcapng"
        path.rename(segment_path(path, whole[-1] - len(in_file(path)) + 1))
        with (folder / parts[0][1].name).open("ab") as file:
            file.write(second[at : at + copied])
        assert kept(path) == whole
        join(path)
        assert in_file(path) == whole
        assert [one.name for one in folder.iterdir()] == ["link.pcapng"]


def test_a_segment_that_is_no_capture_is_an_error_and_nothing_is_lost(link: Link) -> None:
    link.pass_on(700)
    link.close()
    before, (_, last) = kept(link.path), segments(link.path)[-1]
    whole = last.read_bytes()
    last.write_bytes(b"nonsense")
    with pytest.raises(RigError, match="cannot be made one file"):
        join(link.path)
    last.write_bytes(whole)
    join(link.path)
    assert in_file(link.path) == before


def test_a_segment_that_has_lost_its_end_takes_nothing_else_with_it(link: Link) -> None:
    """As a machine that lost its power leaves it."""
    link.pass_on(700)
    link.close()
    before, (_, first) = kept(link.path), segments(link.path)[0]
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 10)
    lacking = len(in_file(first)) + 1
    with pytest.raises(RigError, match=f"has {lacking - 1} of {lacking} frames"):
        join(link.path)
    assert kept(link.path) == [number for number in before if number != before[lacking - 1]]


def test_a_segment_that_is_empty_takes_nothing_else_with_it(link: Link) -> None:
    link.pass_on(700)
    link.close()
    before, (_, first) = kept(link.path), segments(link.path)[0]
    lost = len(in_file(first))
    first.write_bytes(b"")
    with pytest.raises(RigError, match="is empty"):
        join(link.path)
    assert kept(link.path) == before[lost:]


def test_what_cannot_be_joined_is_an_error_and_nothing_is_lost(link: Link) -> None:
    link.pass_on(700)
    link.close()
    before, (_, first) = kept(link.path), segments(link.path)[0]
    hidden = first.with_suffix(".hidden")
    first.rename(hidden)
    first.mkdir()
    with pytest.raises(RigError, match="cannot be made one file"):
        join(link.path)
    first.rmdir()
    hidden.rename(first)
    join(link.path)
    assert in_file(link.path) == before
