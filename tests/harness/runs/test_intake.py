"""What belongs to which incident when a watcher is started again, and when canaries come and do not come,
with watchers that report what the test says."""

from pathlib import Path
from typing import Any, cast

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import (
    SIDES,
    AnyEvent,
    FrameSent,
    LinkStats,
    Recorded,
    Side,
    StreamEnded,
    Trigger,
)
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.intake import Decider, Intake
from freezeframe.harness.runs.observe import Observation
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.selfcheck import CANARY_RULE, Canaries
from freezeframe.harness.runs.view import Silent


class Dialogue:
    """What was asked of the controllers."""

    def __init__(self) -> None:
        self.canaries = Canaries()


class Station:
    """What an intake needs of one; it keeps what it is given."""

    def __init__(self, opened: OpenBench) -> None:
        self.opened, self.dialogue = opened, Dialogue()
        self.steps: list[m.Event] = []

    def step(self, event: m.Event) -> None:
        self.steps.append(event)

    def post(self, work: Any) -> None:
        work()

    def heard(self, side: Side) -> None:
        self.step(m.Heard(side=side))

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

    def ask(self, side: Side) -> None:
        """A canary is on its way."""
        self.station.dialogue.canaries.text(side)

    def hear(self, side: Side) -> None:
        """The reflex reports a canary."""
        canary = Trigger(
            t_ns=2, t_match_ns=2, t_arrival_ns=1, rule=CANARY_RULE.name, side=side, source="console",
            offset_bytes=0, instruct=[],
        )  # fmt: skip
        self.watchers.reports.append(("reflex", canary))
        self.intake.take_what_comes(0, -1)

    def seen(self, recording: Recording) -> dict[Side, bool]:
        """Whether each side's canary was, by the incident."""
        record = recording.incident.record["canaries"]
        return {side: record[side]["seen"] for side in SIDES if side in record}

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


def test_frames_that_are_lost_again_and_again_are_no_storm_of_reports(tmp_path: Path) -> None:
    """Seen: the text had the number in it, and was another one each time."""
    world = World(tmp_path)
    for number in range(1, 5000):
        world.report(LinkStats(t_ns=number, packets=number, kernel_drops=number))
    details = [one.detail for one in world.station.steps if isinstance(one, m.Troubled)]
    assert len(details) == 4999 and len(set(details)) == 13
    assert details[-1] == "4096 or more since the capture began"


def test_an_incident_keeps_its_own_canaries_and_not_those_of_the_next(tmp_path: Path) -> None:
    """Seen: judged while those of the next incident were on their way, it said NOT HEARD of a canary that
    is the first line of its console.log."""
    world = World(tmp_path)
    first = world.intake.current
    for side in SIDES:
        world.ask(side)
        world.hear(side)
    world.ask("secondary")  # the poll's, on its way when the trigger comes
    world.cut()
    world.ask("primary")
    assert world.seen(first) == {"primary": True, "secondary": True}
    second = world.intake.current
    assert world.seen(second) == {}
    world.hear("primary")
    world.intake.unheard("secondary", "it would not print: \x1b")
    assert world.seen(second) == {"primary": True, "secondary": False}
    assert second.incident.record["canaries"]["secondary"]["reason"] == "it would not print: \\x1b"
    assert world.seen(first) == {"primary": True, "secondary": True}
    assert world.station.steps[-1] == m.NotHeard(
        side="secondary", reason="it would not print: \x1b"
    )


def test_a_canary_that_a_restart_takes_away_is_not_held_against_its_console(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.intake.current
    world.ask("primary")
    world.hear("primary")
    for side in SIDES:
        world.ask(side)
    first.acted(FrameSent(t_ns=3, side="primary", seq=1, frame=b"f", t_done_ns=4, arming=1))
    for side in SIDES:
        world.intake.unheard(side, "it did not come in")
    assert world.seen(first) == {"primary": True}
    world.cut()
    reason = first.incident.record["canaries"]["secondary"]["reason"]
    assert world.seen(first) == {"primary": True, "secondary": False} and "before its end" in reason


def test_of_a_side_that_cannot_print_each_incident_says_why(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.station.dialogue.canaries.impossible("primary", "it has no control line")
    for _ in range(2):
        recording = world.intake.current
        world.cut()
        found = recording.incident.record["canaries"]["primary"]
        assert found == {"seen": False, "reason": "it has no control line"}
