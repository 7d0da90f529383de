"""The dialogue with a shell on a line whose bytes this test writes: what comes around an answer,
and what never ends."""

import pytest

from freezeframe.drivers.controllers import linux_shell
from freezeframe.drivers.controllers.linux_shell import MAX_ANSWER_BYTES, Shell
from freezeframe.harness.core.events import Ns
from freezeframe.harness.errors import RigError, WireError


class Line:
    """A ByteLink that gives what it was given, one piece a read, and the clock of its time: that
    goes on only while nothing comes."""

    name = "line"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.now_ns = 0

    def now(self) -> Ns:
        return self.now_ns

    def fileno(self) -> int:
        return -1

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        self.now_ns = max(self.now_ns, deadline_ns)
        return b""

    def write(self, data: bytes) -> None:
        """The question's marks, as the shell prints them: what is behind them in the same read is
        not of the answer."""
        number = data.split(b'""f+')[1].split(b'"')[0]
        self.pieces[0] = self.pieces[0].replace(b"N", number)

    def close(self) -> None:
        pass


SOON_NS = 2_000_000_000


def test_a_line_behind_an_answer_in_the_same_read_is_kept() -> None:
    line = Line(b"@ff+N\nyes\n@ff-N\n@ff! 00 ok\nsysrq: Trigger a crash\n")
    shell = Shell(line, line)
    assert shell.ask("true", SOON_NS) == ["yes"]
    assert shell.await_line(lambda text: "sysrq" in text, SOON_NS) == "sysrq: Trigger a crash"


@pytest.mark.parametrize(
    "prompts",
    ["# ", "> > > ", "# # > > > ", "~ # > ", "[root@host ~]# > ", "$ > ", "root@a:~# # > "],
)
def test_the_prompts_of_lines_typed_ahead_stand_before_a_mark(prompts: str) -> None:
    """A shell without a line editor prints one for each line when it reads it, also for an empty
    one."""
    line = Line(f"{prompts}@ff+N\nyes\n{prompts}@ff-N\n".encode())
    assert Shell(line, line).ask("true", SOON_NS) == ["yes"]
    assert line.now_ns < SOON_NS, "no second question"


def test_empty_lines_take_their_place_in_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_shell, "MAX_KEPT_BYTES", 1000)
    line = Line(b"\n" * 5000)
    shell = Shell(line, line)
    assert shell.await_line(lambda _: False, SOON_NS) is None
    assert len(shell.kept) == 1000


def test_an_answer_of_empty_lines_ends() -> None:
    line = Line(b"@ff+N\n", *[b"\n" * (MAX_ANSWER_BYTES // 4)] * 5)
    shell = Shell(line, line)
    with pytest.raises(WireError, match="an answer of more than"):
        shell.ask("true", SOON_NS)


class SlowShell(Line):
    """Prints its answer 4 s after it got a question, unless it is interrupted before that."""

    def __init__(self) -> None:
        super().__init__()
        self.due_ns = -1
        self.interrupts = 0

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        self.now_ns = max(self.now_ns, deadline_ns)
        return self.pieces.pop(0) if 0 <= self.due_ns <= self.now_ns else b""

    def write(self, data: bytes) -> None:
        if data.startswith(b"\x03"):
            self.interrupts += 1
            self.due_ns = -1
        else:
            self.due_ns = self.now_ns + 4_000_000_000
            self.pieces = [b"@ff+N\nyes\n@ff-N\n"]
            super().write(data)


def test_a_shell_that_is_slower_than_the_first_wait_is_heard() -> None:
    line = SlowShell()
    assert Shell(line, line).ask("true", 20_000_000_000) == ["yes"]
    assert line.interrupts == 3


def asked_in_steps(shell: Shell, line: Line, script: str, step_ns: int) -> tuple[list[str], int]:
    """The answer, and how many questions with a deadline of ``step_ns`` it took."""
    for number in range(1, 200):
        try:
            return shell.ask(script, line.now() + step_ns), number
        except RigError:
            continue
    pytest.fail("it is interrupted before each answer")


@pytest.mark.parametrize("step_ns", [100_000_000, 500_000_000, 1_000_000_000, 3_000_000_000])
def test_a_busy_node_that_is_asked_in_short_steps_is_heard(step_ns: int) -> None:
    """Its answer takes longer than each step."""
    line = SlowShell()
    answer, questions = asked_in_steps(Shell(line, line), line, "true", step_ns)
    assert (answer, questions > 1) == (["yes"], True)
    assert line.interrupts <= 4


def test_another_question_does_not_get_the_answer_of_the_one_given_up() -> None:
    line = SlowShell()
    shell = Shell(line, line)
    with pytest.raises(RigError, match="no answer"):
        shell.ask("one", 500_000_000)
    answer, _ = asked_in_steps(shell, line, "other", 30_000_000_000)
    assert answer == ["yes"] and line.interrupts >= 1


class BrokenOff(SlowShell):
    """Its first answer never ends."""

    def write(self, data: bytes) -> None:
        is_first = self.due_ns < 0 and not self.interrupts
        super().write(data)
        if is_first:
            self.due_ns = 0
            self.pieces = [self.pieces[0].split(b"@ff-")[0]] + [b""] * 1000


def test_an_answer_that_broke_off_is_asked_for_again() -> None:
    line = BrokenOff()
    shell = Shell(line, line)
    with pytest.raises(RigError, match="the answer broke off after 4 bytes"):
        shell.ask("true", 1_000_000_000)
    answer, _ = asked_in_steps(shell, line, "true", 1_000_000_000)
    assert (answer, line.interrupts >= 1) == (["yes"], True)
