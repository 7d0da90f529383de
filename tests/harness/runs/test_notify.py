"""Notices as they arrive: at a real command, and at a real server."""

import http.server
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT_S, await_true

from freezeframe.harness.bench.notifytable import OCCASIONS, NotifyTable
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.notify import MAX_WAITING, Notifier

APPEND = ["sh", "-c", "cat >> notices.jsonl; echo >> notices.jsonl"]
BLIND = HealthStatus(Health.BLIND, "neither a console nor the link can be seen")


def make(folder: Path, **table: object) -> tuple[Notifier, list[str]]:
    said: list[str] = []
    described = NotifyTable(
        **{"on": list(OCCASIONS), "settle_s": 0.0, "timeout_s": LIMIT_S} | table
    )
    return Notifier("lab", described, folder / "lab.toml", said.append), said


def incident(notifier: Notifier, name: str) -> None:
    trigger = {"rule": "digest-failed", "side": "secondary"}
    notifier.incident(Path("/incidents") / name, "fail", trigger, ["trigger digest-failed"])


def received(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "notices.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def journal() -> list[dict[str, str]]:
    path = AuditJournal("lab", "", Path()).path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_command_gets_each_notice_on_its_stdin(tmp_path: Path) -> None:
    notifier, said = make(tmp_path, command=APPEND)
    notifier.health(BLIND)
    incident(notifier, "first")
    notifier.start()
    notifier.close()
    assert not notifier.is_alive() and said == []
    notices = received(tmp_path)
    assert sorted(one["event"] for one in notices) == ["blind", "incident"]
    (found,) = [one for one in notices if one["incident"]]
    assert found["incident"]["id"] == "first" and found["machine"] == socket.gethostname()
    assert found["text"].endswith("fail: digest-failed on the secondary")
    assert {(one["action"], one["about"], one["result"]) for one in journal()} == {
        ("notify", "blind", "ok"), ("notify", "incident", "ok"),
    }  # fmt: skip


def test_what_is_not_asked_for_is_not_sent(tmp_path: Path) -> None:
    notifier, _ = make(tmp_path, command=APPEND, on=["incident"])
    notifier.start()
    notifier.health(BLIND)
    incident(notifier, "first")
    notifier.close()
    assert [one["event"] for one in received(tmp_path)] == ["incident"]


def test_a_health_that_passes_is_not_reported_and_the_last_one_is(tmp_path: Path) -> None:
    notifier, _ = make(tmp_path, command=APPEND, settle_s=LIMIT_S)
    notifier.start()
    notifier.health(BLIND)
    notifier.health(HealthStatus(Health.DISARMED, "the end has begun"))
    notifier.close()
    assert [one["event"] for one in received(tmp_path)] == ["disarmed"]


def test_nobody_waits_for_a_command_that_hangs_and_what_it_delays_is_bounded(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)  # of both kinds, so that nobody waits to open it
    script = (
        "touch started; test -e open || read x < gate; cat >> notices.jsonl; echo >> notices.jsonl"
    )
    notifier, said = make(tmp_path, command=["sh", "-c", script])
    notifier.start()
    incident(notifier, "hangs")
    await_true((tmp_path / "started").exists, LIMIT_S, "the command")
    for number in range(MAX_WAITING + 9):  # a call that waited would wait for the gate
        incident(notifier, str(number))
    (tmp_path / "open").touch()
    os.write(gate, b"go\n")
    notifier.close()
    os.close(gate)
    assert len(received(tmp_path)) == MAX_WAITING + 1
    assert said == ["notify: 9 notices were not sent: those before them took too long"]
    assert said[0].removeprefix("notify: ") in {one["result"] for one in journal()}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_does_not_end_is_killed_with_what_it_started_and_reported_once(
    tmp_path: Path,
) -> None:
    script = "sleep 1000 & echo $! > child.new; mv child.new child; wait"
    notifier, said = make(tmp_path, command=["sh", "-c", script], timeout_s=0.5)
    notifier.start()
    incident(notifier, "first")
    incident(notifier, "second")
    await_true(lambda: len(journal()) == 2, LIMIT_S, "both time-outs")
    notifier.close()
    assert said == [
        "notify: the command sh did not end within 0.5 s and was killed; the watch goes on"
    ]
    if (tmp_path / "child").exists():  # a busy machine may not have come so far
        child = int((tmp_path / "child").read_text())
        await_true(lambda: not is_running(child), LIMIT_S, "the end of what it started")


def test_a_failing_command_is_reported_once_and_again_when_it_works(tmp_path: Path) -> None:
    script = "test -e fine || { printf 'no \\033[2Jpager'; exit 3; }"
    notifier, said = make(tmp_path, command=["sh", "-c", script])
    notifier.start()
    for name in ("first", "second"):
        incident(notifier, name)
    await_true(lambda: len(journal()) == 2, LIMIT_S, "both failures")
    (tmp_path / "fine").touch()
    incident(notifier, "third")
    notifier.close()
    failed = "the command sh ended with status 3: no \\x1b[2Jpager"
    assert said == [f"notify: {failed}; the watch goes on", "notify: the command works again"]
    assert [one["result"] for one in journal()] == [failed, failed, "ok"]


def test_whatever_keeps_a_notice_from_being_sent_the_next_one_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: no room for the command's output ended the thread, and nobody was notified any more."""
    notifier, said = make(tmp_path, command=APPEND)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    notifier.start()
    for name in ("first", "second"):
        incident(notifier, name)
    await_true(lambda: len(journal()) == 2, LIMIT_S, "both failures")
    (tmp_path / "missing").mkdir()
    incident(notifier, "third")
    notifier.close()
    failed = "the command failed: No such file or directory"
    assert said == [f"notify: {failed}; the watch goes on", "notify: the command works again"]
    assert [one["result"] for one in journal()] == [failed, failed, "ok"]
    assert [one["incident"]["id"] for one in received(tmp_path)] == ["third"]


def test_an_argument_that_cannot_be_one_fails_like_any_other(tmp_path: Path) -> None:
    notifier, said = make(tmp_path, command=["sh", "-c", "cat\0hunter2"])
    notifier.start()
    for name in ("first", "second"):
        incident(notifier, name)
    notifier.close()
    assert said == ["notify: the command failed: ValueError; the watch goes on"]
    assert [one["about"] for one in journal()] == ["incident", "incident"]


ANOTHER_USER = """
import sys
sys.path[:0] = {path!r}
import subprocess
from pathlib import Path
from waiting import LIMIT_S, await_true
from freezeframe.harness.runs.notify import is_killed
for is_mine in (True, False):
    command = ["sleep", "1000"] if is_mine else ["setpriv", "--reuid=65534", "sleep", "1000"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    status = Path(f"/proc/{{process.pid}}/status")
    if not is_mine:
        await_true(lambda: "\\nUid:\\t65534\\t65534\\t" in status.read_text(), LIMIT_S, "its user")
    print(is_killed(process), process.pid, flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_a_command_that_became_another_users_cannot_be_killed_and_nobody_waits_for_it() -> None:
    """Seen: what sudo had started ended the thread."""
    script = ANOTHER_USER.format(path=sys.path)
    argv = ["setpriv", "--bounding-set=-kill", sys.executable, "-c", script]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    found = [one.split() for one in done.stdout.splitlines()]
    for _, pid in found[1:]:
        os.kill(int(pid), signal.SIGKILL)
    assert [one for one, _ in found] == ["True", "False"] and done.returncode == 0


class Server(http.server.ThreadingHTTPServer):
    """Keeps what is posted; answers with the next of ``statuses``."""

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = statuses
        self.posted: queue.SimpleQueue[tuple[str, dict[str, str], bytes]] = queue.SimpleQueue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.put((self.path, dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(statuses: list[int]) -> Iterator[Server]:
    with Server(statuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(LIMIT_S)


def test_json_is_posted_with_the_secrets_which_are_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving([200, 500, 302, 204]) as server:
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/hunter2?k=hunter3")
        monkeypatch.setenv("PAGER", "Bearer hunter4")
        notifier, said = make(
            tmp_path, post={"env": "HOOK"}, headers={"Authorization": {"env": "PAGER"}}
        )
        notifier.start()
        for name in ("first", "second", "third", "fourth"):
            incident(notifier, name)
        posted = [server.posted.get(timeout=LIMIT_S) for _ in range(4)]
        notifier.close()
    path, headers, body = posted[0]
    assert path == "/hunter2?k=hunter3" and headers["Authorization"] == "Bearer hunter4"
    assert headers["Content-Type"] == "application/json"
    assert [json.loads(one[2])["incident"]["id"] for one in posted] == [
        "first", "second", "third", "fourth",
    ]  # fmt: skip
    assert said == [
        "notify: the server 127.0.0.1 answered with status 500; the watch goes on",
        "notify: the post works again",
    ]
    everything = "".join(said) + AuditJournal("lab", "", Path()).path.read_text() + body.decode()
    assert "hunter" not in everything and len(journal()) == 4


def test_a_server_that_is_not_there_is_named_without_its_path(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    notifier, said = make(tmp_path, post=f"http://127.0.0.1:{port}/hunter2")
    notifier.start()
    incident(notifier, "first")
    notifier.close()
    assert said == [
        "notify: the server 127.0.0.1 cannot be posted to: Connection refused; the watch goes on"
    ]


@pytest.mark.parametrize("drop", [b"", b"H"])
def test_a_server_that_is_silent_or_answers_byte_by_byte_is_hung_up_on(
    drop: bytes, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def trickle() -> None:
            peer, _ = listener.accept()
            with peer:
                try:
                    while not is_over.wait(0.05):
                        peer.sendall(drop)
                except OSError:
                    pass

        thread = threading.Thread(target=trickle)
        thread.start()
        port = listener.getsockname()[1]
        notifier, said = make(tmp_path, post=f"http://127.0.0.1:{port}/", timeout_s=0.5)
        notifier.start()
        incident(notifier, "first")
        await_true(lambda: bool(said), LIMIT_S, "the report")
        notifier.close()
        is_over.set()
        thread.join(LIMIT_S)
    assert said == ["notify: the server 127.0.0.1 did not answer within 0.5 s; the watch goes on"]
