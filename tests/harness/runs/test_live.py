"""What a command reports of itself to who looks on, without a bench."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT_S

from freezeframe.harness.core.events import NS_PER_S, READ_TIME, LinkStats, Trigger
from freezeframe.harness.core.livestatus import (
    MAX_NEWS,
    ConsoleStatus,
    ControlStatus,
    End,
    LiveStatus,
    SideStatus,
    decode,
)
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.edge.onlookers import Lines, listeners
from freezeframe.harness.runs import live
from freezeframe.harness.runs.audit import state_directory
from freezeframe.harness.runs.live import ConsoleTail, LiveView, looked_at, newest_lines
from freezeframe.harness.runs.view import Silent


class Told(Silent):
    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)


def hit(rule: str, line: bytes) -> Trigger:
    return Trigger(
        t_ns=1, rule=rule, source="console", side="secondary", offset_bytes=0, t_arrival_ns=1, t_match_ns=1,
        excerpt=line,
    )  # fmt: skip


def read(lines: Lines) -> list[LiveStatus | End]:
    return [decode(line) for line in lines.read()]


def wanted(lines: Lines, is_wanted: Callable[[LiveStatus], bool]) -> LiveStatus:
    """The first status like that; statuses that came at once, or before it, are passed over."""
    while True:
        for one in read(lines):
            assert isinstance(one, LiveStatus), "it has ended"
            if is_wanted(one):
                return one


def side_of(tail_folder: Path) -> dict[str, Any]:
    one = SideStatus(
        console=ConsoleStatus(heard=True), control=ControlStatus(), pair_state="simplex"
    )
    return {"sides": {"primary": one}, "recording": str(tail_folder)}  # fmt: skip


def test_the_newest_of_a_view_is_in_the_status_and_passed_on() -> None:
    told = Told()
    view = LiveView(told, "lab", "watch")
    for n in range(MAX_NEWS):
        view.phase(f"report {n}")
    view.happened("reflex", hit("digest-failed", b"before\nDigest \x1b[2Jfailed"))
    view.happened("linkwatch", hit("digest-failed", b"reported twice"))
    view.step("", "full duplex", "in 2 s")
    view.health(HealthStatus(Health.BLIND, "no \x07 eye"))
    view.incident(Path("/x/20260102T030405Z-1a2b3c4d"), "fail", {"rule": "r", "side": "primary"})
    view.incident(Path("/x/20260102T030406Z-1a2b3c4d"), "interrupted", None)
    status = view.status(NS_PER_S)
    assert len(told.phases) == MAX_NEWS == len(status.news)
    assert [one.n for one in status.news] == list(range(6, MAX_NEWS + 6))
    assert [(one.kind, one.text) for one in status.news[-5:]] == [
        ("trigger", "digest-failed on the secondary's console: Digest \\x1b[2Jfailed"),
        ("step", "pair: full duplex (in 2 s)"),
        ("health", "blind: no \\x07 eye"),
        ("incident", "incident 20260102T030405Z-1a2b3c4d: fail: r on the primary"),
        ("incident", "incident 20260102T030406Z-1a2b3c4d: interrupted"),
    ]
    assert (status.health, status.why, status.incidents) == ("blind", "no \\x07 eye", 2)
    assert [(one.outcome, one.rule) for one in status.newest_incidents] == [
        ("fail", "r"),
        ("interrupted", ""),
    ]


def test_the_link_is_the_captures_own_counters_and_their_growth() -> None:
    view = LiveView(Silent(), "lab", "watch")
    assert view.status(0).link.last_frame_age_s is None
    for n in range(41):  # ten seconds, a MiB in each quarter; nothing more after eight
        sent = min(n, 32)
        view.happened(
            "linkwatch",
            LinkStats(
                t_ns=n * NS_PER_S // 4, packets=sent, bytes_captured=sent << 20, writes=2 * sent, acks=sent,
                outstanding=7,
                digests_checked=5, kernel_drops=1, gaps=2,
            ),
        )  # fmt: skip
        if n == 32:
            assert view.status(8 * NS_PER_S).link.rate_bytes_per_s == 4 << 20
    link = view.status(11 * NS_PER_S).link
    assert (link.writes, link.answers, link.outstanding) == (64, 32, 7)
    assert (link.digests_checked, link.frames_dropped, link.gaps) == (5, 1, 2)
    assert (link.last_frame_age_s, link.rate_bytes_per_s) == (3.0, 0.0)
    assert not view.link(0, there=False, why="unplugged \x1b").there
    view.happened("linkwatch", LinkStats(t_ns=12 * NS_PER_S, packets=1, bytes_captured=9))
    link = view.status(12 * NS_PER_S).link  # the capture was started again
    assert (link.last_frame_age_s, link.rate_bytes_per_s, link.writes) == (0.0, 0.0, 0)


def test_a_console_ends_with_its_newest_lines_escaped(tmp_path: Path) -> None:
    tail = ConsoleTail("primary/console.log", "primary/console.times")
    assert tail.look(tmp_path, 5) == {"tail": [], "last_byte_age_s": None}
    (tmp_path / "primary").mkdir()
    (tmp_path / "primary/console.log").write_bytes(b"one\r\n\x1b[2Jtwo\tx\n\nprompt> ")
    times = READ_TIME.pack(NS_PER_S, 0) + READ_TIME.pack(3 * NS_PER_S, 5) + b"half a row"
    (tmp_path / "primary/console.times").write_bytes(times)
    found = tail.look(tmp_path, 4 * NS_PER_S)
    assert found == {"tail": ["one", "\\x1b[2Jtwo x", "prompt> "], "last_byte_age_s": 1.0}
    # The next incident's record has nothing yet: what it said last, and when, is known all the same.
    after = tmp_path / "next/primary"
    assert tail.look(after.parent, 5 * NS_PER_S) == {**found, "last_byte_age_s": 2.0}
    after.mkdir(parents=True)
    (after / "console.log").write_bytes(b"three\n")
    assert tail.look(after.parent, 5 * NS_PER_S)["tail"] == [*found["tail"], "three"]
    long = b"cut off" * 2000 + b"\n" + b"".join(b"line %d\n" % n for n in range(500))
    assert newest_lines(long[-live.TAIL_BYTES :]) == [f"line {n}" for n in range(480, 500)]
    assert newest_lines(b"") == []


def test_a_main_loop_that_answers_is_asked_and_the_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "primary").mkdir()
    (tmp_path / "primary/console.log").write_bytes(b"hello\n")
    view = LiveView(Silent(), "lab", "watch")
    asked: list[int] = []
    with looked_at(view, "lab") as status:
        status.look_at(
            lambda work: work(), lambda now: asked.append(now) or side_of(tmp_path)  # type: ignore[func-returns-value]
        )  # fmt: skip
        assert asked == [], "nobody looks"
        (lines,) = listeners(state_directory(), "lab")
        first = wanted(lines, lambda one: "primary" in one.sides)
        assert first.sides["primary"].console.tail == ["hello"]
        assert first.sides["primary"].console.heard and first.age_s < LIMIT_S
        view.phase("something")
        assert wanted(lines, lambda one: bool(one.news)).news[-1].text == "something"
    ends = read(lines)
    while not (ends and isinstance(ends[-1], End)):
        ends = read(lines)
    assert ends[-1].why == "" and read(lines) == [] and lines.is_over
    assert len(asked) >= 2 and listeners(state_directory(), "lab") == []


def test_a_main_loop_that_hangs_or_fails_is_seen_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "ANSWER_S", 0.01)
    told = Told()
    view = LiveView(told, "lab", "watch")
    posted: list[Any] = []

    def fails(now: int) -> dict[str, Any]:
        raise ZeroDivisionError("what a bug raises")

    with looked_at(view, "lab") as status:
        status.look_at(posted.append, fails)
        (lines,) = listeners(state_directory(), "lab")
        one, two = read(lines)[0], read(lines)[0]
        assert (
            isinstance(one, LiveStatus)
            and isinstance(two, LiveStatus)
            and 0 < one.age_s < two.age_s
        )
        assert len(posted) == 1, "it is asked once, until it answers"
        posted[0]()
        posted[0]()
    (said,) = told.phases
    assert "no status for who looks on: ZeroDivisionError" in said
    lines.close()


def test_a_folder_whose_name_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    """Seen: it ended the thread that reports, with UnicodeEncodeError."""
    folder = tmp_path / os.fsdecode(b"out-\xff-\xc3\xa4")
    (folder / "primary").mkdir(parents=True)
    (folder / "primary/console.log").write_bytes(b"hello\n")
    with looked_at(LiveView(Silent(), "lab", "watch"), "lab") as status:
        status.look_at(lambda work: work(), lambda _now: side_of(folder))
        (lines,) = listeners(state_directory(), "lab")
        one = wanted(lines, lambda one: bool(one.recording))
    assert one.recording == f"{tmp_path}/out-\\xff-ä"
    assert one.sides["primary"].console.tail == ["hello"], "its real path is read"
    lines.close()


def test_where_no_socket_can_be_made_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file"))
    told = Told()
    view = LiveView(told, "lab", "watch")
    with looked_at(view, "lab"):
        view.phase("goes on")
    assert "nobody can look on" in told.phases[0] and told.phases[1] == "goes on"
