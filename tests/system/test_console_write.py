"""`freezeframe console --write` beside a watch: one writer, through a pipe and through a terminal, on record."""

import contextlib
import os
import select
import signal
import subprocess
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serial
from command import COMMAND, Output, changed, freezeframe, simulated_bench
from journal import journal
from terminal import Terminal
from waiting import LIMIT_S, await_true
from watched_bench import watched_bench

from freezeframe.harness.core.policy import Health
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.runs.audit import state_directory
from freezeframe.harness.runs.watching import Watch

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
BENCH = ("--bench", "lab.toml")
WRITE = ("console", "primary", "--write", *BENCH, "-n", "0")
BREAKS = '\n[breaks]\nnmi = ["BREAK", 10, "x"]\nhello = ["hel", 1, "lo\\r"]\n'


@contextlib.contextmanager
def armed_bench(folder: Path, source_name: str = "sim") -> Iterator[Watch]:
    with watched_bench(folder, source_name) as watched:
        with (folder / "lab.toml").open("a") as file:
            file.write(BREAKS)
        machine = await_true(
            lambda: getattr(watched.station, "machine", None), LIMIT_S, "a machine"
        )
        await_true(lambda: machine.status.health is Health.ARMED, LIMIT_S, "an armed bench")
        yield watched


@contextlib.contextmanager
def writer(folder: Path, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", Output]]:
    """One that has the place, in a pipe."""
    with subprocess.Popen(
        [*COMMAND, *WRITE, *options],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            process.stdout = process.stderr
            said = Output(process)
            said.until(b"is yours to write to")
            yield process, said
        finally:
            process.kill()


def written() -> list[tuple[str, str, str]]:
    (path,) = state_directory().glob("*.audit.jsonl")
    kept = journal(path.name.removesuffix(".audit.jsonl"))
    return [
        (one["action"], one["why"], one["result"])
        for one in kept
        if one["action"] in ("console", "break")
    ]


def typed_at(watched: Watch) -> Callable[[], bytes]:
    """What has reached the line: the simulated console is a pseudo-terminal, and says nothing of its own input."""
    received = bytearray()
    line = watched.station.opened.consoles["primary"]
    send = line.write

    def write(data: bytes) -> None:
        assert written()[-1][2] == "goes out", "on record before the first byte"
        send(data)
        received.extend(data)

    line.write = write  # type: ignore[method-assign]
    return lambda: bytes(received)


def test_one_writer_in_a_pipe_is_on_record_and_its_place_is_free_when_it_is_killed(
    tmp_path: Path,
) -> None:
    with armed_bench(tmp_path) as watched:
        received = typed_at(watched)
        with writer(tmp_path) as (first, _):
            assert first.stdin is not None
            first.stdin.write(b"secret\r")
            first.stdin.flush()
            await_true(lambda: received() == b"secret\r", LIMIT_S, "what was written")
            done = freezeframe(*WRITE, cwd=tmp_path)
            assert done.returncode == 3
            assert "is taken since" in done.stderr and f"console (pid {first.pid})" in done.stderr
            looking = freezeframe("disarm", "-r", "x", *BENCH, cwd=tmp_path)
            assert looking.returncode == 0, "other commands go on"
            first.send_signal(signal.SIGKILL)
            first.wait(LIMIT_S)
            with writer(tmp_path) as (second, _):
                assert second.stdin is not None
                second.stdin.write(b"mine\r")
                second.stdin.close()
                assert second.wait(LIMIT_S) == 0, "the end of its input ends it"
            assert received() == b"secret\rmine\r"
        assert ("console", "7 bytes", "goes out") in written()
        assert not any("secret" in why for _, why, _ in written()), "it may be a password"


def test_in_a_terminal_keys_go_to_the_device_and_ctrl_t_q_ends_it(tmp_path: Path) -> None:
    with armed_bench(tmp_path) as watched:
        received = typed_at(watched)
        with Terminal(*WRITE, columns=100, lines=30, cwd=tmp_path) as terminal:
            terminal.until(lambda text: "is yours to write to" in text, "the place")
            await_true(
                lambda: terminal.modes_now != terminal.modes, LIMIT_S, "keys that come at once"
            )
            terminal.type(b"ls\x03\x14\x14")
            await_true(lambda: received() == b"ls\x03\x14", LIMIT_S, "the keys, Ctrl-C among them")
            terminal.type(b"\x14?")
            terminal.until(lambda text: "ctrl-t 2: hello: 'hel', 1 ms, 'lo" in text, "the lists")
            terminal.type(b"\x142")
            await_true(lambda: received().endswith(b"hello\r"), LIMIT_S, "a list")
            terminal.type(b"\x14b")
            terminal.until(lambda text: "not sent: a BREAK can stop or restart" in text, "why not")
            assert freezeframe("disarm", "-r", "x", *BENCH, cwd=tmp_path).returncode == 0
            terminal.type(b"\x14b")
            terminal.until(
                lambda text: "boot epoch 2" in text, "the device, which took it as an NMI"
            )
            terminal.type(b"\x14q")
            assert terminal.ended() == 0
            assert terminal.modes_now == terminal.modes and b"Traceback" not in terminal.raw
        assert (
            freezeframe("console", "primary", "--send", "hello", *BENCH, cwd=tmp_path).returncode
            == 0
        )
    assert ("break", "BREAK", "goes out") in written()
    assert ("console", "3 bytes of hello", "goes out") in written()


def test_a_line_that_carries_armed_frames_is_written_only_when_a_person_has_disarmed(
    tmp_path: Path,
) -> None:
    with armed_bench(tmp_path, "sim_shared") as watched:
        machine = watched.station.machine
        done = freezeframe(*WRITE, cwd=tmp_path)
        assert (
            done.returncode == 3 and "its control line, too, which carries the armed" in done.stderr
        )
        assert machine.loaded is not None
        assert freezeframe("disarm", "-r", "typing", *BENCH, cwd=tmp_path).returncode == 0
        with writer(tmp_path) as (first, _):
            assert "writes to the primary's console" in machine.persons.in_hand
            done = freezeframe("save", "primary", *BENCH, cwd=tmp_path)
            assert done.returncode == 3 and "which is its control line, too" in done.stderr
            assert freezeframe("arm", *BENCH, cwd=tmp_path).returncode == 0
            assert machine.loaded is None and "writes to the primary's console" in str(
                machine.status
            )
            first.send_signal(signal.SIGKILL)
            first.wait(LIMIT_S)
        await_true(lambda: machine.loaded, LIMIT_S, "an armed bench, once the line is free")


def test_what_cannot_be_written_to_is_refused_in_words(tmp_path: Path) -> None:
    with armed_bench(tmp_path):
        done = freezeframe("console", "primary", "--send", "nmo", *BENCH, cwd=tmp_path)
        assert done.returncode == 2 and "did you mean nmi?" in done.stderr
        done = freezeframe("console", "primary", "--send", "nmi", *BENCH, cwd=tmp_path)
        assert done.returncode == 3 and "disarm the bench first" in done.stderr
    done = freezeframe(*WRITE, cwd=tmp_path)
    assert done.returncode == 3 and "nothing to write to" in done.stderr


@contextlib.contextmanager
def own_console(folder: Path) -> Iterator[tuple[Path, int]]:
    """A simulated pair whose primary has another console: a pseudo-terminal, of which this is the other end."""
    mine, theirs = os.openpty()
    tty.setraw(theirs)
    with simulated_bench(folder) as bench:
        copy = changed(
            bench, r'^console = ".*primary.console"$', f'console = "{os.ttyname(theirs)}"'
        )
        try:
            yield copy, mine
        finally:
            os.close(mine)
            os.close(theirs)


def read_all(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], LIMIT_S)[0], f"there is {data!r}"
        data += os.read(fd, count - len(data))
    return data


def test_the_device_gets_each_byte_and_one_that_takes_none_holds_up_its_writer_alone(
    tmp_path: Path,
) -> None:
    everything = bytes(range(256)) * 8
    with own_console(tmp_path) as (bench, device):
        file = ("--bench", str(bench))
        with subprocess.Popen(
            [*COMMAND, "watch", "--json", *file],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as watching:
            Output(watching).until(b"watching; ")
            command = [*COMMAND, "console", "primary", "--write", "-n", "0", *file]
            done = subprocess.run(
                command, input=everything, cwd=tmp_path, capture_output=True, timeout=LIMIT_S
            )
            assert done.returncode == 0, done.stderr
            assert read_all(device, len(everything)) == everything
            with subprocess.Popen(
                command,
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as stuck:
                assert stuck.stdin is not None and stuck.stderr is not None
                stuck.stdin.write(b"x" * (64 << 10))  # nobody reads it
                stuck.stdin.flush()
                done_too = freezeframe("disarm", "-r", "x", *file, cwd=tmp_path)
                assert done_too.returncode == 0 and stuck.poll() is None
                stuck.stdin.close()
                assert stuck.wait(LIMIT_S) == 3
                assert b"accepts no bytes: flow control" in stuck.stderr.read()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(LIMIT_S) in (0, 4)


def test_other_programs_attach_to_a_watched_console(tmp_path: Path) -> None:
    with own_console(tmp_path) as (bench, device), contextlib.ExitStack() as stack:
        file = ("--bench", str(bench))
        watching = stack.enter_context(
            subprocess.Popen(
                [*COMMAND, "watch", "--json", *file], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        )  # fmt: skip
        stack.callback(watching.kill)
        Output(watching).until(b"watching; ")
        serve = [*COMMAND, "console", "primary", "--serve", "127.0.0.1:0", *file]
        served = []
        for options in (["--write"], []):
            one = stack.enter_context(
                subprocess.Popen([*serve, *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            )  # fmt: skip
            stack.callback(one.kill)
            one.stdout = one.stderr
            said = Output(one)
            said.until(b"served on 127.0.0.1:")
            url = f"rfc2217://127.0.0.1:{int(said.until(b';')[:-1])}"
            port = serial.serial_for_url(url, baudrate=115_200, timeout=LIMIT_S)
            served.append(stack.enter_context(port))
        writing, looking = served
        os.write(device, b"login: ")
        assert writing.read(7) == looking.read(7) == b"login: "
        looking.write(b"lost")
        writing.write(b"root\r")
        assert read_all(device, 5) == b"root\r"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(LIMIT_S) in (0, 4)
