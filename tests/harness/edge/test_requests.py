"""The acting socket: whose it is, who may ask, and that nobody who asks can hold up another."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import LIMIT_S

from freezeframe.harness.edge import requests
from freezeframe.harness.edge.ownsocket import ACT, MAX_PEERS, connect, wait_readable
from freezeframe.harness.edge.requests import Asker, Asking, Requests, answering
from freezeframe.harness.errors import RigError
from freezeframe.harness.runs.waking import Waker

NOBODY = 65534
MAX_LINE = 100


class Served:
    """The answering end; ``turn`` serves until something has come."""

    def __init__(self, folder: Path) -> None:
        self._waker = Waker()
        self.requests = Requests(folder, "lab", MAX_LINE)

    def turn(self) -> list[tuple[Asker, bytes | None]]:
        for _ in range(1000):
            if found := self.requests.wait(self._waker.fileno(), LIMIT_S):
                return found
        raise AssertionError("nothing came")

    def look(self) -> list[tuple[Asker, bytes | None]]:
        return self.requests.wait(self._waker.fileno(), 0)

    def close(self) -> None:
        self.requests.close()
        self._waker.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    yield one
    one.close()


def rest_of(connection: socket.socket) -> bytes:
    connection.settimeout(LIMIT_S)
    found = b""
    while data := connection.recv(65536):
        found += data
    return found


def test_each_request_gets_its_answer_and_waits_for_the_one_before(
    served: Served, tmp_path: Path
) -> None:
    (asking,) = answering(tmp_path, "lab")
    assert asking.pid == os.getpid() and answering(tmp_path, "la") == []
    with connect(served.requests.path) as raw:
        raw.sendall(b"one\ntwo\nth")
        ((asker, line),) = served.turn()
        assert (line, asker.pid, asker.uid) == (b"one", os.getpid(), os.geteuid())
        assert served.look() == [], "the next one only after the answer"
        assert served.requests.answer(asker, b"1\n")
        assert served.turn() == [(asker, b"two")]
        raw.sendall(b"ree\n")
        assert served.requests.answer(asker, b"2\n")
        assert served.turn() == [(asker, b"three")]
        assert served.requests.answer(asker, b"3\n")
        assert raw.recv(100) == b"1\n2\n3\n"
    assert served.turn() == [(asker, None)]
    asking.close()


def test_it_is_its_owners_alone(served: Served) -> None:
    path = served.requests.path
    assert path.suffix == f".{ACT}" and stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_is_refused_even_where_the_mode_would_let_him() -> None:
    script = (
        "import os, sys, socket\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "try:\n    one.connect(sys.argv[1])\n"
        "except PermissionError:\n    sys.exit(13)\n"
        "try:\n    one.sendall(b'disarm\\n'); got = one.recv(9)\n"
        "except ConnectionError:\n    sys.exit(0)\n"
        "sys.exit(1 if got else 0)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o711)
        served = Served(Path(folder))
        command = [sys.executable, "-S", "-c", script, str(served.requests.path)]
        assert subprocess.run(command, timeout=LIMIT_S).returncode == 13
        served.requests.path.chmod(0o666)
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                assert served.requests.wait(served._waker.fileno(), 0.05) == []
            assert process.returncode == 0, "he was hung up on, and nothing of his was read"
        served.close()


def test_who_is_killed_is_gone_at_once_also_while_his_request_is_carried_out(
    served: Served, tmp_path: Path
) -> None:
    script = (
        "import sys, pathlib, signal\n"
        "from freezeframe.harness.edge.ownsocket import connect\n"
        "one = connect(pathlib.Path(sys.argv[1]))\n"
        "one.sendall(b'take\\nwrite\\n')\n"
        "signal.pause()\n"
    )
    with (
        subprocess.Popen([sys.executable, "-c", script, str(served.requests.path)]) as process,
        connect(served.requests.path) as other,
    ):
        ((asker, line),) = served.turn()
        assert (line, asker.pid) == (b"take", process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)
        other.sendall(b"take\n")
        found = served.turn()
        assert found[0] == (asker, None), "what he held is free before another's request"
        assert not served.requests.answer(asker, b"yours\n")
        assert [line for _, line in found[1:] or served.turn()] == [b"take"]


def test_who_never_reads_and_who_sends_without_end_hold_up_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(served.requests.path) as silent, connect(served.requests.path) as flood:
        flood.setblocking(False)
        silent.sendall(b"x\n")
        ((asker, _),) = served.turn()
        served.requests.answer(asker, b"y" * (8 << 20))  # far more than the socket holds
        assert served.look() == [] and not asker.is_gone
        with pytest.raises(BlockingIOError):
            while True:
                flood.send(b"z" * (MAX_LINE * 100))
        ((flooding, line),) = served.turn()
        assert line is not None and MAX_LINE < len(line) <= MAX_LINE + requests.RECEIVE_BYTES
        assert not served.requests.answer(flooding, b"too long\n", is_last=True)
        with connect(served.requests.path) as third:
            third.sendall(b"ask\n")
            ((other, line),) = served.turn()
            assert line == b"ask" and served.requests.answer(other, b"done\n")
            assert third.recv(100) == b"done\n"
            monkeypatch.setattr(requests, "STUCK_NS", 0)
            assert served.look() == [(asker, None)]
        assert set(rest_of(silent)) == set(b"y"), "what the socket held, and then its end"


def test_many_requests_at_once_cost_no_more_than_one_reading(served: Served) -> None:
    """Seen: each answer let 4 KiB more in, for one short line that went out."""
    with connect(served.requests.path) as flood:
        flood.setblocking(False)
        flood.send(b"arm\n" * (16 * requests.RECEIVE_BYTES))  # as much as the socket holds
        for _ in range(200):
            ((asker, line),) = served.turn()
            assert line == b"arm" and len(asker.held) <= requests.RECEIVE_BYTES
            served.requests.answer(asker, b"done\n")


def test_there_is_a_limit_on_who_asks(served: Served, tmp_path: Path) -> None:
    peers = [connect(served.requests.path) for _ in range(MAX_PEERS)]
    for _ in peers:
        assert served.look() == []
    with pytest.raises(RigError, match="takes nobody else"):
        with answering(tmp_path, "lab")[0] as one_more:
            assert served.look() == []
            one_more.ask(b"arm\n", LIMIT_S)
    for one in peers:
        one.close()


def test_who_asks_is_told_that_the_other_end_has_gone_or_is_silent(
    served: Served, tmp_path: Path
) -> None:
    with answering(tmp_path, "lab")[0] as asking:
        with pytest.raises(RigError, match=f"pid {os.getpid()} has not answered within 0.01 s"):
            asking.ask(b"arm\n", 0.01)
        served.turn()
        served.requests.close()
        assert wait_readable([asking.fileno()], LIMIT_S)
        with pytest.raises(RigError, match="did not answer: whether it was done is in"):
            asking.ask(b"arm\n", LIMIT_S)
    mine, other = socket.socketpair()
    with other, Asking(mine, tmp_path, 1) as asking:
        other.sendall(b"x" * (requests.MAX_ANSWER_BYTES + 1))
        with pytest.raises(RigError, match="an answer of more than"):
            asking.ask(b"arm\n", LIMIT_S)


def test_where_no_socket_can_be_made_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RigError, match="no command can act through this one"):
        Requests(tmp_path / "file", "lab", MAX_LINE)
