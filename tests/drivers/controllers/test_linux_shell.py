"""The dialogue with a shell on a line whose bytes this test writes: what comes around an answer,
and what never ends."""

import time

import pytest

from freezeframe.drivers.controllers import linux_shell
from freezeframe.drivers.controllers.linux_shell import MAX_ANSWER_BYTES, Shell
from freezeframe.harness.core.events import Ns
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.errors import WireError


class Line:
    """A ByteLink that gives what it was given, one piece a read."""

    name = "line"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def fileno(self) -> int:
        return -1

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def write(self, data: bytes) -> None:
        """The question's marks, as the shell prints them: what is behind them in the same read is
        not of the answer."""
        number = data.split(b'""f+')[1].split(b'"')[0]
        self.pieces[0] = self.pieces[0].replace(b"N", number)

    def close(self) -> None:
        pass


def soon() -> int:
    return time.monotonic_ns() + 2_000_000_000


def test_a_line_behind_an_answer_in_the_same_read_is_kept() -> None:
    line = Line(b"@ff+N\nyes\n@ff-N\n@ff! 00 ok\nsysrq: Trigger a crash\n")
    shell = Shell(line, MonotonicClock())
    assert shell.ask("true", soon()) == ["yes"]
    assert shell.await_line(lambda text: "sysrq" in text, soon()) == "sysrq: Trigger a crash"


def test_empty_lines_take_their_place_in_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_shell, "MAX_KEPT_BYTES", 1000)
    shell = Shell(Line(b"\n" * 5000), MonotonicClock())
    assert shell.await_line(lambda _: False, time.monotonic_ns() + 100_000_000) is None
    assert len(shell.kept) == 1000


def test_an_answer_of_empty_lines_ends() -> None:
    shell = Shell(Line(b"@ff+N\n", *[b"\n" * (MAX_ANSWER_BYTES // 4)] * 5), MonotonicClock())
    with pytest.raises(WireError, match="an answer of more than"):
        shell.ask("true", soon())
