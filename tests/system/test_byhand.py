"""Commands by hand beside a watch: they go through its station, which is disarmed meanwhile, and are on record."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import COMMAND, Output, freezeframe, told
from journal import journal
from waiting import LIMIT_S, await_true
from watched_bench import complain, named_bench, watched_bench

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core import byhand
from freezeframe.harness.core.policy import Health
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.edge.ownsocket import connect
from freezeframe.harness.runs.audit import state_directory
from freezeframe.harness.runs.watching import Watch

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
BENCH = ("--bench", "lab.toml")


def await_armed(watched: Watch) -> None:
    machine = await_true(lambda: getattr(watched.station, "machine", None), LIMIT_S, "a machine")
    # Its frames have reached the reflex: it heard canaries that were asked for after them.
    await_true(lambda: machine.status.health is Health.ARMED, LIMIT_S, "an armed bench")


def acting_socket(folder: Path) -> Path:
    pattern = f"{load_bench(str(folder / 'lab.toml')).id}.*.act"
    (path,) = await_true(lambda: list(state_directory().glob(pattern)), LIMIT_S, "a socket")
    return path


def bench_name() -> str:
    """Of the only bench that has a journal: each test has a state directory of its own."""
    (path,) = state_directory().glob("*.audit.jsonl")
    return path.name.removesuffix(".audit.jsonl")


def actions() -> list[tuple[str, str]]:
    return [(one["action"], one["about"]) for one in journal(bench_name())]


def test_frames_by_hand_go_through_the_watch_which_is_disarmed_before(tmp_path: Path) -> None:
    """Seen: the lines are in use, so a person had to end the watch before."""
    with watched_bench(tmp_path) as watched:
        await_armed(watched)
        done = freezeframe("save", "secondary", *BENCH, cwd=tmp_path)
        assert done.returncode == 0 and "set 1 stored; the controller continues" in done.stdout
        assert f"through the watch (pid {os.getpid()}): nobody is armed" in done.stderr
        await_armed(watched)
        done = freezeframe("warmstart", "primary", "--yes", "--json", *BENCH, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answer = told(done)
        assert (answer["side"], answer["ok"], answer["boot_epoch"]) == ("primary", True, 2)
        assert answer["up_after_ms"] > 0 and answer["serial_number"] == "FFSIM-P-0001"
        await_armed(watched)
        assert watched.station.machine.loaded is not None
        assert watched.station.machine.loaded.epochs["primary"] == 2
        assert watched.results == [], "what a person does is no incident"
        done = freezeframe("warmstart", "primary", *BENCH, cwd=tmp_path)
        assert done.returncode == 2 and "add --yes" in done.stderr
        done = freezeframe("warmstart", "left", "--yes", *BENCH, cwd=tmp_path)
        assert done.returncode == 2
    seen = journal(bench_name())
    at = next(n for n, one in enumerate(seen) if one["why"].startswith("warmstart by hand"))
    assert seen[at]["why"] == "warmstart by hand, confirmed with --yes, boot epoch 1"
    assert ", warmstart (pid " in seen[at]["who"] and f"(pid {os.getpid()})" in seen[at]["who"]
    before = [one["action"] for one in seen[:at] if one["action"] in ("arm", "disarm")]
    assert before[-1] == "disarm", "disarmed before the frame went out"
    assert (
        "warmstarts the primary by hand"
        in [one for one in seen[:at] if one["action"] == "disarm"][-1]["why"]
    )


def test_a_person_disarms_and_arms_and_nobody_is_instructed_between(tmp_path: Path) -> None:
    with watched_bench(tmp_path) as watched:
        await_armed(watched)
        done = freezeframe("disarm", "--reason", " ", *BENCH, cwd=tmp_path)
        assert done.returncode == 2 and "--reason is empty" in done.stderr
        assert watched.station.machine.loaded is not None
        done = freezeframe("disarm", "--reason", "a visit", *BENCH, cwd=tmp_path)
        assert done.returncode == 0 and "no frame is loaded" in done.stdout
        assert watched.station.machine.loaded is None and watched.station.unconfirmed == 0
        complain(watched.station.opened)
        await_true(lambda: "not acted" in dict(actions()), LIMIT_S, "a trigger that nobody acts on")
        assert "strike" not in dict(actions())
        done = freezeframe("arm", "--reason", "they are gone", "--json", *BENCH, cwd=tmp_path)
        assert told(done)["health"].startswith(("armed", "degraded")), done.stdout
        assert told(done)["watch"] == os.getpid()
        complain(watched.station.opened)
        await_true(lambda: watched.results, LIMIT_S, "an incident")
    said = [one["why"] for one in journal(bench_name()) if one["action"] == "person"]
    assert "disarms: a visit" in said and "arms: they are gone" in said


def test_while_an_incident_is_collected_nothing_is_sent_by_hand(tmp_path: Path) -> None:
    with watched_bench(tmp_path) as watched:
        await_armed(watched)
        station = watched.station
        is_over = threading.Event()
        station.dialogue.put(lambda: is_over.wait(LIMIT_S) and None)  # so it stays open
        complain(station.opened)
        await_true(lambda: station.machine.open_incident, LIMIT_S, "an incident")
        try:
            done = freezeframe("save", "primary", *BENCH, cwd=tmp_path)
            assert (
                done.returncode == 3
                and "is being collected; again when that is over" in done.stderr
            )
            assert freezeframe("disarm", "-r", "x", *BENCH, cwd=tmp_path).returncode == 0
        finally:
            is_over.set()
    assert "frame" not in dict(actions())


def test_nothing_is_sent_for_who_has_given_up_before(tmp_path: Path) -> None:
    """Ctrl-C while the warmstart waits for its turn."""
    with watched_bench(tmp_path) as watched:
        await_armed(watched)
        station = watched.station
        is_over = threading.Event()
        station.dialogue.put(lambda: is_over.wait(LIMIT_S) and None)
        with connect(acting_socket(tmp_path)) as one:
            one.sendall(
                byhand.encode(byhand.WarmstartRequest(side="primary", confirmed="by the test"))
            )
            await_true(lambda: station.machine.persons.in_hand, LIMIT_S, "the request")
        await_true(lambda: not station.hands.is_asked, LIMIT_S, "the end of its connection")
        is_over.set()
        await_armed(watched)
        assert station.machine.loaded is not None and station.machine.loaded.epochs["primary"] == 1
    assert "frame" not in dict(actions())


def test_a_shared_line_is_not_taken_while_anothers_frame_waits(tmp_path: Path) -> None:
    """Seen: what was typed met the warmstart on the line, and the controller was blamed."""
    with watched_bench(tmp_path, "sim_shared") as watched:
        await_armed(watched)
        station = watched.station
        assert freezeframe("disarm", "-r", "a visit", *BENCH, cwd=tmp_path).returncode == 0
        is_over = threading.Event()
        station.dialogue.put(lambda: is_over.wait(LIMIT_S) and None)
        with connect(acting_socket(tmp_path)) as one, connect(acting_socket(tmp_path)) as other:
            save = byhand.SaveRequest(side="primary")
            one.sendall(byhand.encode(save))
            await_true(lambda: station.machine.persons.in_hand, LIMIT_S, "the request")
            other.sendall(byhand.encode(byhand.TakeRequest(side="primary")))
            answer = byhand.decode_answer(other.makefile("rb").readline())
            assert (
                answer.whose == "rig"
                and "not now" in answer.text
                and "saves the primary" in answer.text
            )
            is_over.set()
            saved = byhand.decode_answer(one.makefile("rb").readline())
            assert saved.instructed is not None and saved.instructed.ok
            other.sendall(byhand.encode(byhand.TakeRequest(side="primary")))
            assert byhand.decode_answer(other.makefile("rb").readline()).whose == ""


def test_text_that_is_not_utf_8_is_asked_and_answered() -> None:
    """A Latin-1 terminal's reason, or the path of a bench file."""
    asked = byhand.encode(byhand.DisarmRequest(reason="gr\udcfcn"))
    assert byhand.decode_request(asked) == byhand.DisarmRequest(reason="gr?n")
    answered = byhand.encode(byhand.HandAnswer(text="/b\udce4nk.toml"))
    assert byhand.decode_answer(answered).text == "/b?nk.toml"


def test_without_a_watch_arm_and_disarm_say_so(tmp_path: Path) -> None:
    name = named_bench(tmp_path)
    for command in (("arm",), ("disarm", "--reason", "x")):
        done = freezeframe(*command, *BENCH, cwd=tmp_path)
        assert done.returncode == 3 and f"nobody watches the bench {name}" in done.stderr


def ask(connection: socket.socket, line: bytes) -> byhand.HandAnswer | None:
    """None: it hung up."""
    connection.settimeout(LIMIT_S)
    with contextlib.suppress(ConnectionError):
        connection.sendall(line)
        data = b""
        while not data.endswith(b"\n"):
            if not (more := connection.recv(4096)):
                return None
            data += more
        return byhand.decode_answer(data)
    return None


GARBAGE = [
    b"\n", b"{}\n", b"\xff\xfe\n", b'{"do":"warmstart","side":"primary"}\n', b'{"do":"disarm"}\n',
    b'{"do":"arm","who":1}\n', b'{"do":"save","side":"left"}\n', b"[" * 10_000 + b"\n", b"x" * 40_000,
    b'{"do":"warmstart","side":"primary","confirmed":""}\n', b'{"do":"reboot"}\n', b"GET / HTTP/1.1\r\n\r\n",
]  # fmt: skip


def test_garbage_and_peers_that_never_read_neither_act_nor_hold_up(tmp_path: Path) -> None:
    with watched_bench(tmp_path) as watched, contextlib.ExitStack() as stack:
        await_armed(watched)
        path = acting_socket(tmp_path)
        silent = stack.enter_context(connect(path))
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.send(byhand.encode(byhand.WriteRequest(data=b"x")) * 100)
        for line in GARBAGE:
            with connect(path) as one:
                answer = ask(one, line)
                assert answer is None or (answer.whose, answer.text[:13]) == (
                    "usage",
                    "not a request",
                ), line
                assert ask(one, byhand.encode(byhand.ArmRequest())) is None, "it was hung up on"
        assert watched.station.machine.loaded is not None and "frame" not in dict(actions())
        assert freezeframe("disarm", "-r", "x", *BENCH, cwd=tmp_path).returncode == 0


@contextlib.contextmanager
def watch_process(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Output]]:
    with subprocess.Popen(
        [*COMMAND, "watch", "--json", *BENCH],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process, Output(process)
        finally:
            process.kill()


def test_a_disarmed_bench_stays_so_after_a_kill_of_the_watch(tmp_path: Path) -> None:
    """Seen: the service manager's restart of a killed watch armed what a person had disarmed."""
    named_bench(tmp_path)
    with watch_process(tmp_path) as (first, output):
        output.until(b'"health": "armed"')
        assert freezeframe("disarm", "-r", "hands inside", *BENCH, cwd=tmp_path).returncode == 0
        with connect(acting_socket(tmp_path)) as waiting:
            first.send_signal(signal.SIGKILL)
            first.wait(LIMIT_S)
            assert ask(waiting, byhand.encode(byhand.ArmRequest())) is None
    done = freezeframe("arm", *BENCH, cwd=tmp_path)
    assert done.returncode == 3, "what the killed one left is no watch"
    with watch_process(tmp_path) as (second, output):
        output.until(b"the bench stays disarmed by")
        acting_socket(tmp_path)
        done = freezeframe("arm", *BENCH, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        output.until(b'"health": "armed"')
        second.send_signal(signal.SIGINT)
        assert second.wait(LIMIT_S) in (0, 4)
    assert not list(state_directory().glob("*.act")), "the killed one's was removed by the next"
