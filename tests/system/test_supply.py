"""The supply as a real process with real children, driven through ScpiSupply over PyVISA."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freezeframe import testing
from freezeframe.drivers.power.scpi_supply import ScpiSupply
from freezeframe.harness.errors import RigError

pytestmark = pytest.mark.system

LIMIT_S = 60
RUN_SUPPLY = (
    "import sys; from freezeframe.firmware_sim.supply import main; sys.exit(main(sys.argv[1:]))"
)
# A controller: says who it is on its console, then answers each line on its control port; its child
# is in its group.
CHILD = """
import os, subprocess, sys, tty
console, control, pid_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.set_blocking(control, True)
helper = subprocess.Popen(["sleep", "1000"])
with open(pid_file + ".new", "w") as file:
    file.write(f"{os.getpid()} {helper.pid}")
os.replace(pid_file + ".new", pid_file)
os.write(console, b"boot\\n")
while True:
    line = os.read(control, 100)
    if line == b"exit\\n":
        sys.exit(0)
    os.write(control, b"heard " + line)
"""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        select.select([], [], [], 0.005)


def gone(pid: int) -> bool:
    """Dead, if only not yet reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def read_some(fd: int, wanted: bytes) -> bytes:
    data = b""
    end = time.monotonic() + LIMIT_S
    while wanted not in data:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{data!r} came, not {wanted!r}"
        data += os.read(fd, 4096)
    return data


@dataclass
class Bench:
    process: "subprocess.Popen[bytes]"
    folder: Path
    resource: str
    port: int

    def pids(self, side: str) -> list[int]:
        path = self.folder / f"{side}.pid"
        until(path.exists)
        return [int(word) for word in path.read_text().split()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    outputs = {
        side: {
            "argv": [
                sys.executable, "-c", CHILD, "{console_fd}", "{control_fd}", str(tmp_path / f"{side}.pid"),
            ],
            "lines": {name: str(tmp_path / f"{side}.{name}") for name in ("console", "control")},
            "log": str(tmp_path / f"{side}.log"),
        }
        for side in ("primary", "secondary")
    }  # fmt: skip
    config = tmp_path / "supply.json"
    port_file = tmp_path / "port"
    config.write_text(
        json.dumps({"listen": "127.0.0.1:0", "port_file": str(port_file), "outputs": outputs})
    )
    argv = [sys.executable, "-c", RUN_SUPPLY, "--config", str(config)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        until(port_file.exists)
        port = int(port_file.read_text())
        yield Bench(process, tmp_path, f"TCPIP::127.0.0.1::{port}::SOCKET", port)
    finally:
        process.communicate(timeout=LIMIT_S)
        for path in tmp_path.glob("*.pid"):
            # The helper of a controller whose supply was killed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text().split()[1]), signal.SIGKILL)


def test_power_on_off_and_measured_values(bench: Bench) -> None:
    with ScpiSupply(bench.resource) as supply:
        assert "SimSupply" in supply.identify()
        assert not supply.output("primary")
        supply.set_output("primary", True)
        pids = bench.pids("primary")
        volts, amperes = supply.measure("primary")
        assert volts == pytest.approx(12.0, rel=0.05)
        assert amperes > 0.1
        assert supply.measure("secondary") == (0.0, 0.0)
        assert not any(gone(pid) for pid in pids)
        supply.set_output("primary", False)
        until(lambda: all(gone(pid) for pid in pids))
        assert supply.measure("primary") == (0.0, 0.0)


def test_the_driver_keeps_the_promises_of_its_role(bench: Bench) -> None:
    with ScpiSupply(bench.resource) as supply:
        testing.check_power_rail(supply, "secondary")


def test_lines_outlive_power_cycles_and_bytes_to_a_dark_controller_are_lost(bench: Bench) -> None:
    console = os.open(bench.folder / "primary.console", os.O_RDWR | os.O_NOCTTY)
    control = os.open(bench.folder / "primary.control", os.O_RDWR | os.O_NOCTTY)
    try:
        with ScpiSupply(bench.resource) as supply:
            for _ in range(2):
                # More than the line itself could hold: without power nothing piles up, and nothing
                # blocks.
                for _ in range(64):
                    os.write(control, b"lost" * 256)
                supply.set_output("primary", True)
                assert read_some(console, b"boot\n") == b"boot\n"
                os.write(control, b"hello\n")
                assert read_some(control, b"hello\n").endswith(b"heard hello\n")
                supply.set_output("primary", False)
    finally:
        os.close(console)
        os.close(control)


def test_a_controller_that_ends_by_itself_draws_no_current(bench: Bench) -> None:
    with ScpiSupply(bench.resource) as supply:
        supply.set_output("secondary", True)
        leader, helper = bench.pids("secondary")
        control = os.open(bench.folder / "secondary.control", os.O_RDWR | os.O_NOCTTY)
        os.write(control, b"exit\n")
        until(lambda: gone(leader))
        assert supply.measure("secondary") == (pytest.approx(12.0), 0.0)
        assert supply.output("secondary")
        supply.set_output("secondary", False)
        until(lambda: gone(helper))
        os.close(control)


def test_brown_out_kills(bench: Bench) -> None:
    with ScpiSupply(bench.resource) as supply:
        supply.set_output("primary", True)
        pids = bench.pids("primary")
        supply._tell("VOLT 8.0,(@1)")
        until(lambda: all(gone(pid) for pid in pids))


def test_close_leaves_the_safe_state_also_on_exceptions(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), ScpiSupply(bench.resource) as supply:
        supply.set_output("primary", True)
        pids = bench.pids("primary")
        raise ZeroDivisionError
    until(lambda: all(gone(pid) for pid in pids))
    supply.close()  # once more does nothing
    with pytest.raises(RigError, match="is closed"):
        supply.output("primary")

    leaving = ScpiSupply(bench.resource, safe_state="leave")
    (bench.folder / "primary.pid").unlink()
    leaving.set_output("primary", True)
    pids = bench.pids("primary")
    leaving.close()
    assert not any(gone(pid) for pid in pids)


def test_the_interpreters_end_leaves_the_safe_state(bench: Bench) -> None:
    script = (
        "import sys; from freezeframe.drivers.power.scpi_supply import ScpiSupply; "
        "ScpiSupply(sys.argv[1]).set_output('primary', True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, bench.resource], stdin=subprocess.PIPE
    )
    pids = bench.pids("primary")
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    until(lambda: all(gone(pid) for pid in pids))


def test_refused_values_are_told_with_the_instruments_words(bench: Bench) -> None:
    with ScpiSupply(bench.resource, volts=24.0) as supply:
        with pytest.raises(RigError, match=r"VOLT 24.000,\(@1\).*-222,\"Data out of range"):
            supply.set_output("primary", True)
        assert not supply.output("primary")
    with ScpiSupply(bench.resource, limit_a=0.1) as supply:
        with pytest.raises(
            RigError, match=r"output primary measures 1\.50 V at 0\.10 A, not 12\.00 V"
        ):
            supply.set_output("primary", True)


def test_a_missing_instrument_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for resource in (f"TCPIP::127.0.0.1::{port}::SOCKET", "nonsense"):
        with pytest.raises(RigError, match=resource):
            ScpiSupply(resource)


def test_a_supply_that_dies_is_told_and_takes_the_controllers_along(bench: Bench) -> None:
    supply = ScpiSupply(bench.resource)
    supply.set_output("primary", True)
    leader, _ = bench.pids("primary")
    bench.process.kill()
    bench.process.wait()
    until(lambda: gone(leader))
    with pytest.raises(RigError, match=r"127\.0\.0\.1"):
        supply.output("primary")
    with pytest.raises(RigError, match="may still be on, switch it off by hand"):
        supply.close()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
def test_the_supply_ends_cleanly(bench: Bench, how: str) -> None:
    with ScpiSupply(bench.resource, safe_state="leave") as supply:
        supply.set_output("primary", True)
        pids = bench.pids("primary")
    assert (bench.folder / "primary.console").is_symlink()
    if how == "stdin":
        assert bench.process.stdin is not None
        bench.process.stdin.close()
        bench.process.stdin = None
    else:
        bench.process.send_signal(signal.Signals[how])
    assert bench.process.wait(LIMIT_S) == 0
    until(lambda: all(gone(pid) for pid in pids))
    left = {path.name for path in bench.folder.iterdir()}
    assert left == {"supply.json", "primary.log", "primary.pid"}


def test_hostile_clients_do_not_disturb_the_others(bench: Bench) -> None:
    others = [
        socket.create_connection(("127.0.0.1", bench.port), timeout=LIMIT_S) for _ in range(5)
    ]
    others[0].sendall(b"x" * 100_000)
    others[1].sendall(b"\x00\xff\xfe;;;\n" * 100 + b"(@(@(@\nOUTP 1,(@99999999)\n")
    others[2].close()
    others[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    others[3].sendall(b"*IDN?\n" * 10)
    others[3].close()
    with ScpiSupply(bench.resource) as supply:
        supply.set_output("primary", True)
        bench.pids("primary")
        others[4].sendall(b"*IDN?;OUTP? (@1)\n")
        assert others[4].recv(1000).endswith(b";1\n")
    # Connections beyond the limit are hung up on at once; the first ones go on.
    crowd = [
        socket.create_connection(("127.0.0.1", bench.port), timeout=LIMIT_S) for _ in range(20)
    ]
    assert crowd[-1].recv(10) == b""
    others[4].sendall(b"OUTP? (@1)\n")
    assert others[4].recv(1000) == b"0\n"
    for connection in [*others, *crowd]:
        connection.close()
    assert bench.process.poll() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"outputs": {"primary": {"argv": []}}, "listen": "127.0.0.1:0", "port_file": "/nowhere/port"}',
    ],
)
def test_a_wrong_config_is_one_line(tmp_path: Path, text: str) -> None:
    config = tmp_path / "supply.json"
    config.write_text(text)
    argv = [sys.executable, "-c", RUN_SUPPLY, "--config", str(config)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"supply.json" in done.stderr


def test_an_interrupted_query_does_not_shift_the_answers(tmp_path: Path) -> None:
    """Ctrl-C while an answer is awaited: the outputs are then switched off and measured, and that
    must be true."""
    asked, late = threading.Event(), threading.Event()

    def instrument(listener: socket.socket) -> None:
        """Answers each query with itself; the first measurement only after the interruption."""
        for _ in range(2):
            connection, _ = listener.accept()
            with (
                contextlib.suppress(OSError),  # the driver hangs up without having read all
                connection,
                connection.makefile("rw", newline="\n") as lines,
            ):
                for line in lines:
                    if line.startswith("MEAS") and not asked.is_set():
                        asked.set()
                        late.wait(LIMIT_S)
                    if "?" in line:
                        lines.write("0\n" if line.startswith("SYST") else f"{line.strip()}\n")
                        lines.flush()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=instrument, args=(listener,), daemon=True)
        thread.start()
        supply = ScpiSupply(
            f"TCPIP::127.0.0.1::{listener.getsockname()[1]}::SOCKET", safe_state="leave"
        )
        before = signal.signal(signal.SIGUSR1, interrupt)
        main = threading.get_ident()
        threading.Thread(
            target=lambda: (asked.wait(LIMIT_S), signal.pthread_kill(main, signal.SIGUSR1)),
            daemon=True,
        ).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                supply.measure("primary")
        finally:
            signal.signal(signal.SIGUSR1, before)
        late.set()
        assert supply.identify() == "*IDN?"
        supply.close()
        thread.join(LIMIT_S)
