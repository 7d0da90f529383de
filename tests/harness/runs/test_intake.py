"""What belongs to which incident when a watcher is started again, with watchers that report what the test
says."""

from pathlib import Path
from typing import Any, cast

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import AnyEvent, LinkStats, Recorded, StreamEnded
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.intake import Decider, Intake
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.view import Silent


class Station:
    """What an intake needs of one; it keeps what it is given."""

    def __init__(self, opened: OpenBench) -> None:
        self.opened = opened
        self.steps: list[m.Event] = []

    def step(self, event: m.Event) -> None:
        self.steps.append(event)

    def post(self, work: Any) -> None:
        work()

    def lost(self, part: m.BenchPart, reason: str) -> None:
        self.step(m.Lost(part=part, reason=reason))


class Watchers:
    """Both run, record where they are asked to, and report what was put into ``reports``."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, AnyEvent]] = []
        self.starts = 0

    def wait(self, _limit_ns: int, _wake_fd: int) -> list[tuple[str, AnyEvent]]:
        reports, self.reports = self.reports, []
        return reports

    def is_running(self, _name: str) -> bool:
        return True

    def record_into(self, _incident: Incident) -> None: ...

    def start_linkwatch(self) -> None:
        self.starts += 1

    def stop(self) -> list[tuple[str, AnyEvent]]:
        return []


class World:
    """An intake whose capture has been started again after 5,000 writes."""

    def __init__(self, tmp_path: Path) -> None:
        opened = OpenBench.__new__(OpenBench)
        opened.bench = load_bench("sim")
        opened.controllers, opened.consoles, opened._line_errors = {}, {}, {}
        self.tmp_path, self.made = tmp_path, 0
        self.station, self.watchers = Station(opened), Watchers()
        self.intake = Intake(cast(Decider, self.station), Silent(), self.recording())
        self.intake._observation = cast(Observation, self.watchers)
        self.intake.start_again(m.BenchPart.LINK)  # as opened: nothing is started
        self.report(LinkStats(t_ns=1, writes=5000, packets=9000, kernel_drops=3))
        self.report(StreamEnded(t_ns=2, stream="linkwatch process", error="killed"))
        self.intake.start_again(m.BenchPart.LINK)
        assert self.watchers.starts == 1
        self.station.steps.clear()

    def recording(self) -> Recording:
        self.made += 1
        return Recording(Incident.create(self.tmp_path, bench="b", seed=self.made), Silent())

    def report(self, event: AnyEvent) -> None:
        self.watchers.reports.append(("linkwatch", event))
        self.intake.take_what_comes(0, -1)

    def cut(self) -> LinkStats | None:
        """Returns the counters of the incident that was cut."""
        self.intake.prepare_next(self.recording())
        self.intake.cut(self.intake.current)
        self.report(Recorded(t_ns=4))
        self.watchers.reports.append(("reflex", Recorded(t_ns=4)))
        self.intake.take_what_comes(0, -1)
        (done,) = self.intake.ready(1 << 63)
        return done.link


def test_the_counters_of_a_capture_that_has_died_are_in_no_later_incident(tmp_path: Path) -> None:
    """Seen: the incident that was cut first had the 5,000 writes of the process before, the next one
    -4,990."""
    world = World(tmp_path)
    assert world.cut() is None
    fresh = LinkStats(t_ns=5, writes=10, packets=40, kernel_drops=1, first_packet_no=2)
    world.report(fresh)
    assert world.cut() == fresh
    world.report(LinkStats(t_ns=6, writes=25, packets=90, kernel_drops=1, first_packet_no=51))
    assert world.cut() == LinkStats(t_ns=6, writes=15, packets=50, first_packet_no=11)


def test_frames_that_a_fresh_capture_loses_are_reported_from_the_first_on(tmp_path: Path) -> None:
    """Seen: as long as they were fewer than the process before had lost, they were not."""
    world = World(tmp_path)
    world.report(LinkStats(t_ns=5, packets=40, kernel_drops=1))
    world.report(LinkStats(t_ns=6, packets=50, kernel_drops=1))
    world.report(LinkStats(t_ns=7, packets=60, kernel_drops=2))
    drops = [one for one in world.station.steps if isinstance(one, m.Troubled)]
    assert [(one.trouble, one.detail[0]) for one in drops] == [
        (m.Trouble.DROPS, "1"),
        (m.Trouble.DROPS, "2"),
    ]
