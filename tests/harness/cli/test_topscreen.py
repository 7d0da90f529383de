"""The screen of `freezeframe top` at several sizes: nothing is cut that must be seen, whatever a device says."""

import io
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from freezeframe.harness.cli.topscreen import Screen, age, summary_line
from freezeframe.harness.core.livestatus import (
    ConsoleStatus,
    ControlStatus,
    GuardStatus,
    IncidentStatus,
    LinkStatus,
    LiveStatus,
    News,
    RuleStatus,
    SideStatus,
    Supply,
)

SIZES = [(80, 24), (100, 30), (132, 43), (200, 60)]
HOSTILE = "\x1b[2J\x1b]0;title\x07\u202e[bold]red[/] \u6f22\u5b57"


def side(**changes: Any) -> SideStatus:
    console = ConsoleStatus(
        last_byte_age_s=0.3, heard=True, tail=[f"line {n} {HOSTILE} {'x' * 300}" for n in range(20)]
    )
    whole = SideStatus(
        console=console, control=ControlStatus(last_answer_age_s=12.0), pair_state="full duplex",
        boot_epoch=3, supply=Supply(volts=12.01, amperes=0.84, age_s=1.0),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def status(**changes: Any) -> LiveStatus:
    whole = LiveStatus(
        utc="2026-01-02T03:04:05.678Z", bench="lab", command="watch", pid=4242, who="eva", age_s=0.0,
        started_utc="2026-01-02T01:00:00.000Z", health="armed", sides={"primary": side(), "secondary": side()},
        link=LinkStatus(
            last_frame_age_s=0.2, rate_bytes_per_s=12.3 * (1 << 20), writes=123456, answers=123454,
            outstanding=2, digests_checked=1000, frames_dropped=7, gaps=1,
        ),
        rules=[
            RuleStatus(name=f"rule-number-{n}", source="console", instructs=n > 2, hits=5 * (n == 30))
            for n in range(40)
        ],
        guard=GuardStatus(allows="warmstart", warmstarts_in_hour=1, saves_in_hour=2),
        incidents=3,
        newest_incidents=[
            IncidentStatus(
                utc="2026-01-02T02:00:00.000Z", id="20260102T020000Z-1a2b3c4d", outcome="fail", rule="digest-failed",
                side="secondary",
            )
        ],
        news=[
            News(n=n, utc="2026-01-02T03:04:05.000Z", kind="report", text=f"report {n} {HOSTILE}")
            for n in range(1, 51)
        ],
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def drawn(columns: int, lines: int, one: LiveStatus, silent_s: float = 0.0) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=lines, color_system=None)
    options = console.options.update(height=lines)
    shown = console.render_lines(Screen(one, silent_s, "03:04:06"), options, pad=False)
    return ["".join(segment.text for segment in line) for line in shown]


@pytest.mark.parametrize("columns, lines", SIZES)
def test_all_that_matters_is_on_every_screen(columns: int, lines: int) -> None:
    found = drawn(columns, lines, status())
    assert len(found) == lines and all(cell_len(line) <= columns for line in found)
    text = "\n".join(found)
    for wanted in (
        "lab  watch of eva (pid 4242), since 01:00:00", "03:04:06 UTC", "armed", "full duplex", "0.3 s ago",
        "12 s ago", "12.01 V  0.840 A", "12.3 MiB/s", "2 outstanding", "1000 digests checked", "7 frames dropped",
        "1 gap", "allows warmstart", "40 in force, 37 instruct", "rule-number-30 5", "incidents  3",
        "newest 20260102T020000Z-1a2b3c4d fail digest-failed (secondary)", "03:04:05 report 50",
        "primary console", "secondary console",
    ):  # fmt: skip
        assert wanted in text, wanted
    # Both consoles end with their newest line.
    assert text.count("line 19 ") == 2 and text.count("line 17 ") == 2
    assert not set(text) & {"\x1b", "\x07", "\u202e"} and "\\x1b[2J" in text and "[bold]" in text


@pytest.mark.parametrize("columns, lines", SIZES)
def test_what_is_wrong_is_there_too(columns: int, lines: int) -> None:
    why = "secondary console: the line hung up; storm guard: only saves, the last warmstart is less than 15 s old"
    bad = side(
        console=ConsoleStatus(there=False, why="gone"), control=ControlStatus(there=False, why="gone"),
        pair_state="", boot_epoch=None, supply=None,
    )  # fmt: skip
    odd = side(supply=Supply(volts=None, amperes=0.5, age_s=1.0))
    assert "? V  0.500 A" in "\n".join(drawn(columns, lines, status(sides={"primary": odd})))
    guard = GuardStatus(allows="save", why="storm guard: only saves", until_s=14.0)
    one = status(
        health="degraded", why=why, collecting=True, sides={"primary": side(), "secondary": bad}, guard=guard,
        link=LinkStatus(there=False, why="eth1 has no carrier"), reflex_why="it was killed", age_s=7.0,
    )  # fmt: skip
    text = "\n".join(drawn(columns, lines, one))
    assert "LOST" in text and "not identified" in text and "not measured" in text
    assert "LOST: eth1 has no carrier" in text and "reflex     it was killed" in text
    assert "allows save for 14 s; 0 warmstarts, 0 saves in the last hour (storm" in text
    assert "degraded  collecting" in text and "less than 15 s old" in text
    assert "the watch does not answer for 7 s" in text
    assert "nothing has come for 9 s" in "\n".join(drawn(columns, lines, one, silent_s=9.0))


def test_a_watch_that_has_just_begun_and_a_screen_too_small_draw_what_they_can() -> None:
    fresh = LiveStatus(
        utc="x", bench="lab", command="watch", pid=1, who="eva", age_s=0.0, started_utc="y"
    )
    assert "not armed yet" in "\n".join(drawn(80, 24, fresh))
    for columns, lines in ((40, 10), (20, 5), (1, 1)):
        found = drawn(columns, lines, status())
        assert len(found) <= lines and all(cell_len(line) <= columns for line in found)


def test_one_line_where_no_screen_is() -> None:
    line = summary_line(status(health="blind", why="no \x1b eye", age_s=9.0))
    assert line.startswith(
        "blind: no \\x1b eye; primary full duplex, secondary full duplex; link 12.3"
    )
    assert line.endswith("3 incidents; no answer for 9.0 s") and line.isprintable()


def test_ages_are_short() -> None:
    ages = [age(one) for one in (-1, 0.04, 9.94, 11.6, 119, 600, 9000)]
    assert ages == ["0.0 s", "0.0 s", "9.9 s", "12 s", "119 s", "10 min", "2.5 h"]
