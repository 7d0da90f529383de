"""What nobody reports about a bench is looked at: with times as arguments, on real descriptors."""

import os
import pty
import socket
from pathlib import Path
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from freezeframe.harness.core.events import NS_PER_S, LinkStats, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.messages import BenchPart
from freezeframe.harness.runs.liveness import GARBAGE_SHARE, Liveness, garbage_share, hung_up

TROUBLES = (m.Troubled, m.Eased)


class Looked:
    """A bench that is looked at twice a second; what is said of it."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.said: list[m.Event] = []
        self.liveness = Liveness(path, self.said.append, **limits)
        self.now_ns = 0
        self.wall_ns = 10**18
        self.consoles: dict[Side, Path] = {"primary": path / "console.log"}

    def look(self, seconds: float, link: LinkStats | None = None, step_s: float = 0.0) -> list[str]:
        """Let time pass; the wall clock is set by ``step_s`` at its end."""
        self.said.clear()
        for _ in range(round(2 * seconds)):
            self.now_ns += NS_PER_S // 2
            self.wall_ns += NS_PER_S // 2
            self.liveness.look(
                self.now_ns,
                self.wall_ns,
                control_fds={},
                consoles=self.consoles,
                link=link,
            )
        self.wall_ns += round(step_s * NS_PER_S)
        return [
            f"{type(one).__name__} {one.trouble.name}"
            for one in self.said
            if isinstance(one, TROUBLES)
        ]


def test_a_line_that_hangs_up_is_seen_and_one_that_does_not_is_not() -> None:
    ours, theirs = pty.openpty()
    one, other = socket.socketpair()
    fds = {"primary": theirs, "secondary": one.fileno()}
    os.write(ours, b"data is no hang-up\n")
    other.send(b"nor is this")
    assert hung_up(fds) == {}  # type: ignore[arg-type]
    os.close(ours)
    assert set(hung_up(fds)) == {"primary"}  # type: ignore[arg-type]
    other.close()
    assert set(hung_up(fds)) == {"primary", "secondary"}  # type: ignore[arg-type]
    os.close(theirs)
    one.close()


def test_a_control_line_that_hung_up_is_lost_to_the_policy(tmp_path: Path) -> None:
    said: list[m.Event] = []
    one, other = socket.socketpair()
    other.close()
    fds = {"secondary": one.fileno()}
    Liveness(tmp_path, said.append).look(0, 0, control_fds=fds, consoles={}, link=None)  # type: ignore[arg-type]
    one.close()
    lost = [event.part for event in said if isinstance(event, m.Lost)]
    assert lost == [BenchPart.SECONDARY_CONTROL]


def test_a_clock_that_is_set_is_reported_once_and_is_over_a_minute_later(tmp_path: Path) -> None:
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    assert bench.look(5, step_s=-3600) == []
    assert bench.look(5) == ["Troubled CLOCK"]
    assert "-3600.0 s" in next(one.detail for one in bench.said if isinstance(one, m.Troubled))
    assert bench.look(50, step_s=0.1) == [], "a clock that is slewed is not set"
    assert bench.look(10) == ["Eased CLOCK"]


def test_a_silent_link_is_reported_until_it_speaks(tmp_path: Path) -> None:
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    assert bench.look(59, LinkStats(t_ns=0, packets=7)) == []
    assert bench.look(59, LinkStats(t_ns=0, packets=8)) == [], "it spoke"
    assert bench.look(3, LinkStats(t_ns=0, packets=8)) == ["Troubled SILENT"]
    assert bench.look(100, LinkStats(t_ns=0, packets=8)) == [], "once"
    assert bench.look(1, LinkStats(t_ns=0, packets=9)) == ["Eased SILENT"]


def test_a_link_that_is_down_is_reported_until_it_is_up(tmp_path: Path) -> None:
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    why = "the interface eth1 has no carrier"
    assert bench.look(5, LinkStats(t_ns=0, packets=7)) == []
    assert bench.look(5, LinkStats(t_ns=0, packets=7, down=why)) == ["Troubled LINK_DOWN"]
    assert bench.said == [m.Troubled(trouble=m.Trouble.LINK_DOWN, detail=why)]
    assert bench.look(5, LinkStats(t_ns=0, packets=8)) == ["Eased LINK_DOWN"]


def test_little_space_is_reported_and_too_little_for_two_sets_disarms(tmp_path: Path) -> None:
    assert Looked(tmp_path, full_bytes=0, low_bytes=1 << 60).look(5) == ["Troubled DISK_LOW"]
    found = Looked(tmp_path, full_bytes=1 << 60, low_bytes=1 << 60).look(5)
    assert found == ["Troubled DISK_FULL", "Troubled DISK_LOW"]
    assert Looked(tmp_path, full_bytes=0, low_bytes=0).look(5) == []
    assert Looked(tmp_path / "gone").look(1)[0] == "Troubled DISK_FULL"


def test_a_console_full_of_garbage_is_reported_and_text_is_not(tmp_path: Path) -> None:
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    log = tmp_path / "console.log"
    log.write_bytes("[ 1.5] drbd: a line, \x1b[31min colour\x1b[0m: größer\r\n".encode() * 50)
    assert bench.look(2) == []
    with log.open("ab") as file:
        file.write(bytes(range(0x80, 0x100)) * 8)
    assert bench.look(2) == ["Troubled GARBAGE"]
    with log.open("ab") as file:
        file.write(b"text again\n" * 500)
    assert bench.look(61) == ["Eased GARBAGE"]


GARBAGE: Final = bytes(range(0x80, 0x100)) * 8


def test_two_consoles_full_of_garbage_do_not_take_turns_in_the_report(tmp_path: Path) -> None:
    """Seen: each look reported the other one, four times a second, into a journal that is synced."""
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    bench.consoles["secondary"] = tmp_path / "other.log"
    said = []
    for round_no in range(20):
        for path in bench.consoles.values() if round_no else [bench.consoles["primary"]]:
            with path.open("ab") as file:
                file.write(GARBAGE)
        bench.look(0.5)
        said += [one.detail.partition(":")[0] for one in bench.said if isinstance(one, m.Troubled)]
    assert said == ["the primary's", "the primary's and the secondary's"]
    with bench.consoles["secondary"].open("ab") as file:
        file.write(GARBAGE)
    assert bench.look(51) == []
    with bench.consoles["secondary"].open("ab") as file:
        file.write(GARBAGE)
    assert bench.look(20) == ["Troubled GARBAGE"], "the secondary's alone"
    assert bench.look(60) == ["Eased GARBAGE"]


def test_a_record_that_began_anew_is_looked_at_from_its_begin(tmp_path: Path) -> None:
    """Seen: after a console's record was set aside, no garbage was found in the next 64 MiB."""
    bench = Looked(tmp_path, full_bytes=0, low_bytes=0)
    log = tmp_path / "console.log"
    log.write_bytes(b"a line\n" * 10_000)
    assert bench.look(1) == []
    log.replace(tmp_path / "console.old.log")
    log.write_bytes(b"")
    assert bench.look(1) == []
    log.write_bytes(GARBAGE)
    assert bench.look(1) == ["Troubled GARBAGE"]


@example("\ufffd" * 100)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=100))
def test_text_of_any_language_is_no_garbage_wherever_it_is_cut(text: str) -> None:
    data = text.encode()
    assert garbage_share(data) == 0.0
    assert garbage_share(data[1:-1]) <= 4 / 100 < GARBAGE_SHARE
