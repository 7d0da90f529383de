"""``exec:COMMAND``: a line that a program brings."""

import contextlib
import os
import shlex
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge.exec_line import ExecPort, command_of
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


def kept_bytes() -> int:
    """What this process holds in files without a name."""
    kept = 0
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found = os.fstat(int(name.name))
            kept += found.st_size if stat.S_ISREG(found.st_mode) and not found.st_nlink else 0
    return kept


def test_of_what_a_program_complains_only_the_end_is_kept() -> None:
    """Seen: all of it, for as long as the line lived."""
    before = kept_bytes()
    code = "import sys; sys.stderr.write('no answer\\n' * 200_000); print('said', flush=True); sys.exit('the last word')"
    link = open_serial(python(code))
    try:
        assert read_exactly(link, 5) == b"said\n"
        assert kept_bytes() - before < 100_000
        with pytest.raises(
            LineGoneError, match=r"ended with status 1: (\S+ )?(no answer )+the last word"
        ) as caught:
            link.read(1, soon())
        assert len(str(caught.value)) < 1000
    finally:
        link.close()


def test_the_number_of_its_program_is_no_other_process_s_until_the_line_is_closed() -> None:
    """Seen: it was reaped when it had ended, and the signals of ``close`` went to whatever process
    group had its number by then."""
    link = open_serial(python("import os; print(os.getpid())"))
    text = b""
    while not text.endswith(b"\n"):
        text += link.read(64, soon())
    with pytest.raises(LineGoneError, match="ended with status 0"):
        link.read(1, soon())
    os.kill(int(text), 0)
    link.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(text), 0)


def test_a_program_that_was_killed_is_said_to_be() -> None:
    link = open_serial(python("import os; os.kill(os.getpid(), 9)"))
    try:
        with pytest.raises(LineGoneError, match="ended with status -9"):
            link.read(1, soon())
    finally:
        link.close()


def test_a_line_that_was_closed_is_gone() -> None:
    """Seen: ProcessLookupError, from the number of a program that had been reaped."""
    link = open_serial("exec:cat")
    link.close()
    for use in (lambda: link.write(b"frame"), lambda: link.read(1, soon())):
        with pytest.raises(LineGoneError, match="is gone: closed here"):
            use()


def test_why_a_line_has_ended_is_known_while_it_is_closed() -> None:
    """Seen: ProcessLookupError or ChildProcessError, when the program was reaped meanwhile. The ends
    of two threads meet in each order; neither may fail."""
    for _ in range(20):
        port = ExecPort("exec:true")
        said: list[str] = []
        asks = threading.Thread(target=lambda: said.append(port.reason()))  # noqa: B023
        asks.start()
        port.close()
        asks.join(60)
        assert len(said) == 1
        assert port.reason().startswith("its program ended with status ")


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
