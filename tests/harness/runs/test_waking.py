"""Work that could not be done is done again after growing pauses, by virtual time."""

from itertools import pairwise

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.runs.waking import Later


class FullDisk:
    """Work that fails until there is room; a loop that turns every millisecond."""

    def __init__(self) -> None:
        self.later, self.tried, self.has_room = Later(), list[float](), False
        self.now = 0

    def work(self) -> None:
        self.tried.append(self.now / NS_PER_S)
        if not self.has_room:
            self.later.put(self.now, self.work)

    def turn(self, seconds: float, *, at_once: bool = False) -> None:
        for _ in range(round(seconds * 1000)):
            self.now += NS_PER_S // 1000
            self.later.turn(self.now, at_once=at_once)


def test_a_full_disk_is_tried_after_growing_pauses_however_often_the_loop_turns() -> None:
    """Seen: tried in each turn, and each failure woke the loop: 264 turns in 2 s."""
    disk = FullDisk()
    disk.work()
    disk.turn(30)
    pauses = [b - a for a, b in pairwise(disk.tried)]
    assert pauses == [0.5, 1, 2, 4, 5, 5, 5, 5]


def test_it_is_done_once_there_is_room_and_a_later_trouble_begins_anew() -> None:
    disk = FullDisk()
    disk.work()
    disk.turn(4)
    disk.has_room = True
    disk.turn(60)
    assert disk.tried == [0, 0.5, 1.5, 3.5, 7.5]
    disk.has_room = False
    disk.work()
    disk.turn(0.5)
    assert disk.tried[-2:] == [64, 64.5]


def test_the_end_waits_for_no_pause() -> None:
    disk = FullDisk()
    disk.work()
    disk.has_room = True
    disk.turn(0.001, at_once=True)
    assert disk.tried == [0, 0.001]
