"""``exec:COMMAND``: a line that a program brings."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge.exec_line import command_of
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import LineGoneError, RigError
from freezeframe.harness.roles import ByteLink


def soon() -> int:
    return time.monotonic_ns() + 60 * NS_PER_S


def python(code: str) -> str:
    return f"exec:{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def read_exactly(link: ByteLink, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = link.read(65536, soon())
        assert piece, got
        got += piece
    return got


def test_every_byte_goes_both_ways_as_it_is() -> None:
    every = bytes(range(256)) * 8
    link = open_serial("exec:cat")
    try:
        assert isinstance(link, ByteLink)
        link.write(every)
        assert read_exactly(link, len(every)) == every
        assert link.read(1, time.monotonic_ns()) == b""
    finally:
        link.close()


def test_a_program_that_ends_says_why() -> None:
    link = open_serial(python("import sys; print('hello'); sys.exit('node-a: no route to host')"))
    try:
        assert read_exactly(link, 6) == b"hello\n"
        with pytest.raises(LineGoneError, match="ended with status 1: node-a: no route to host"):
            link.read(1, soon())
        with pytest.raises(LineGoneError, match="ended with status 1"):
            for _ in range(100):
                link.write(bytes(1024))
    finally:
        link.close()


def test_its_program_ends_with_the_line(tmp_path: Path) -> None:
    """Also one that does not obey the end of its terminal."""
    code = "import os,signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); print(os.getpid(), flush=True); signal.pause()"
    link = open_serial(python(code))
    text = b""
    while not text.endswith(b"\n"):
        text += link.read(64, soon())
    link.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(text), 0)
    link.close()


def test_the_program_has_a_terminal_of_its_own() -> None:
    code = "import os; print(os.isatty(0), os.isatty(1), os.ttyname(0) == os.ctermid() or bool(os.open('/dev/tty', 2)))"
    link = open_serial(python(code))
    try:
        assert read_exactly(link, 15) == b"True True True\n"
    finally:
        link.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("exec:", "names no program"),
        ("exec:no-such-program-anywhere -v", "no-such-program-anywhere is not installed"),
        ("exec:ssh 'node", "not a command: No closing quotation"),
    ],
)
def test_what_is_no_command_is_named(url: str, words: str) -> None:
    with pytest.raises(RigError, match=words):
        open_serial(url)


def test_words_are_not_given_to_a_shell() -> None:
    assert command_of("exec:cat 'a b' $HOME ; rm") == ["cat", "a b", "$HOME", ";", "rm"]


def test_a_break_cannot_be_sent() -> None:
    with pytest.raises(RigError, match="cannot send a BREAK"):
        open_serial("exec:cat", breaks=True)
