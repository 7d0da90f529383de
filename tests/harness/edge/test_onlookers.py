"""The look-only socket: whose it is, who may look, and that nobody who looks delays who writes."""

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import LIMIT_S

from freezeframe.harness.cli import watches
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge import onlookers, ownsocket
from freezeframe.harness.edge.onlookers import MAX_LINE_BYTES, Lines, Onlookers, listeners
from freezeframe.harness.edge.ownsocket import MAX_PEERS, peer_of, wait_readable
from freezeframe.harness.errors import RigError

NOBODY = 65534


def all_of(lines: Lines) -> list[bytes]:
    found: list[bytes] = []
    while not lines.is_over:
        found += lines.read()
    return found


def test_lines_go_to_all_who_look_and_the_last_one_ends_them(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)  # a unix socket's own path has at most 107 bytes
    writer = Onlookers(folder, "lab")
    assert not writer.any and listeners(folder, "la") == listeners(folder, "lab.x") == []
    (one,), (other,) = listeners(folder, "lab"), listeners(folder, "lab")
    assert one.pid == os.getpid()
    for _ in range(2):
        assert wait_readable([writer.fileno()], LIMIT_S) and writer.accept()
    assert writer.any
    writer.send(b"first\n")
    writer.close(b"last\n")
    assert all_of(one) == all_of(other) == [b"first", b"last"]
    assert listeners(folder, "lab") == [] and list(folder.iterdir()) == []


def test_it_is_its_owners_alone_from_the_first_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        writer = Onlookers(tmp_path, "lab")
    finally:
        os.umask(before)
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o600
    assert writer.path.stat().st_uid == os.geteuid()
    writer.close(b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_may_not_look_even_where_the_mode_would_let_him() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o711)
        _another_user_may_not_look(Onlookers(Path(folder), "lab"))


def _another_user_may_not_look(writer: Onlookers) -> None:
    script = (
        "import os, sys, socket\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "try:\n    one.connect(sys.argv[1])\n"
        "except PermissionError:\n    sys.exit(13)\n"
        "sys.exit(0 if one.recv(9) == b'' else 1)\n"
    )
    command = [sys.executable, "-S", "-c", script, str(writer.path)]
    assert subprocess.run(command, timeout=LIMIT_S).returncode == 13
    writer.path.chmod(0o666)
    with subprocess.Popen(command) as process:
        assert wait_readable([writer.fileno()], LIMIT_S)
        assert not writer.accept() and not writer.any
        assert process.wait(LIMIT_S) == 0, "he was hung up on and got nothing"
    writer.close(b"")


def test_the_peer_is_who_the_kernel_says(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == (os.getpid(), os.getuid())


def test_who_reads_nothing_skips_lines_whole_and_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Onlookers(tmp_path, "lab")
    (idle,), (reader,) = listeners(tmp_path, "lab"), listeners(tmp_path, "lab")
    writer.accept()
    writer.accept()
    line = b"x" * 100_000 + b"\n"
    begun_s = time.monotonic()
    read: list[bytes] = []
    for _ in range(50):  # far more than the socket holds
        writer.send(line)
        while wait_readable([reader.fileno()], 0):
            read += reader.read()
    assert time.monotonic() - begun_s < LIMIT_S
    assert len(read) > 10 and set(read) == {line[:-1]}, "who reads gets whole lines"
    monkeypatch.setattr(onlookers, "STUCK_NS", 0)
    writer.send(line)
    monkeypatch.undo()
    read_idle = all_of(idle)  # what the socket held, and then its end
    assert 1 <= len(read_idle) < 10 and set(read_idle) == {line[:-1]}
    writer.close(b"")


def test_there_is_a_limit_on_who_looks_and_on_a_line(tmp_path: Path) -> None:
    writer = Onlookers(tmp_path, "lab")
    found = []
    for _ in range(MAX_PEERS):
        found += listeners(tmp_path, "lab")
        assert writer.accept()
    (one_more,) = listeners(tmp_path, "lab")
    assert not writer.accept() and all_of(one_more) == []
    assert f"up to {MAX_PEERS} of them" in str(watches.top.__doc__)
    with pytest.raises(RigError, match="a line has more than"):
        while True:
            writer.send(b"y" * (MAX_LINE_BYTES + 1))
            wait_readable([found[0].fileno()], LIMIT_S)
            found[0].read()
    for one in found:
        one.close()
    writer.close(b"")


def test_without_a_descriptor_who_comes_waits_and_the_writer_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the thread asked again and again, with a whole processor."""
    writer = Onlookers(tmp_path, "lab")
    (reader,) = listeners(tmp_path, "lab")
    mine, other = socket.socketpair()
    monkeypatch.setattr(ownsocket, "REST_NS", 1000 * NS_PER_S)
    with mine, other, no_descriptor_left():
        assert writer.await_caller([mine.fileno()], LIMIT_S) == [writer.fileno()]
        assert not writer.accept()
        assert writer.await_caller([mine.fileno()], 0) == []
        other.send(b"x")
        assert writer.await_caller([mine.fileno()], None) == [mine.fileno()], "others are heard"
        mine.recv(1)
        writer._listening._rests_until_ns = 0
        monkeypatch.setattr(ownsocket, "REST_NS", 1)
        assert not writer.accept()
    while not writer.await_caller([], LIMIT_S):
        pass  # the rest is over
    assert writer.accept()
    writer.close(b"last\n")
    assert all_of(reader) == [b"last"]


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_a_killed_one_left_is_passed_over_and_removed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, signal\n"
        "from freezeframe.harness.edge.onlookers import Onlookers\n"
        "one = Onlookers(pathlib.Path(sys.argv[1]), 'lab')\n"
        "print('there', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        (alive,) = listeners(tmp_path, "lab")
        assert alive.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)
        assert all_of(alive) == []
    assert listeners(tmp_path, "lab") == [] and len(list(tmp_path.iterdir())) == 1
    writer = Onlookers(tmp_path, "lab")
    assert list(tmp_path.iterdir()) == [writer.path]
    writer.close(b"")


def test_where_no_socket_can_be_made_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RigError, match="nobody can look on"):
        Onlookers(tmp_path / "file", "lab")
