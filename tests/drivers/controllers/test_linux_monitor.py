"""The secondary's own monitor in each shell: when it is armed, what makes it act, and what it does then. Its
kernel log is a FIFO here, of which it reads what it writes, like /dev/kmsg; the peer's shell is a
terminal that the test answers."""

import contextlib
import os
import pty
import re
import select
import subprocess
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from linux_node import INCIDENT, SHELLS, NodeOnDisk, armed, soon
from waiting import await_true

from freezeframe.drivers.controllers import linux_monitor, linux_scripts
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.drivers.controllers.linux_nbd import LinuxNbd
from freezeframe.drivers.controllers.linux_node import LinuxNode
from freezeframe.drivers.controllers.linux_nvme import LinuxNvme
from freezeframe.harness.bench import boundary
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import Controller, SelfMonitoring

ID = INCIDENT.hex()
DIGEST = "3,812,8296893,-;block drbd0: Digest integrity check FAILED: 89600s +65536"
PRIMARY = (
    f"\nif [ -r /x ];then ff_i={ID};ff_r=5;ff_w=OTHER/boot;ff_a=crash;. /x;ff_go;fi\n".encode()
)
TRIAL = PRIMARY.strip().replace(b"ff_a=crash", b"ff_a=tryit")


class Peer:
    """The other end of the line: what comes in, and answers."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.master)
        self.got = b""

    def await_line(self, wanted: bytes, limit_s: float = 60) -> None:
        def is_here() -> bool:
            if select.select([self.master], [], [], 0)[0]:
                self.got += os.read(self.master, 65536)
            return wanted in self.got

        await_true(is_here, limit_s, f"{wanted!r} on the line; came: {self.got!r}")
        self.got = self.got.partition(wanted)[2]

    def say(self, status: str) -> None:
        os.write(self.master, f"noise\n@ff! {ID} {status}\n".encode())


class Log:
    """The node's kernel log."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.end = os.open(path, os.O_RDWR)

    def add(self, line: str) -> None:
        os.write(self.end, line.encode() + b"\n")


def end_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, 9)


@pytest.fixture
def log(node: NodeOnDisk) -> Iterator[Log]:
    made = Log(node.root / "kmsg")
    yield made
    os.close(made.end)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    os.close(made.master)
    os.close(made.slave)


class Running:
    """The program in one shell, with a line of its own that touches a file."""

    def __init__(self, shell: list[str], node: NodeOnDisk, peer: Peer, log: Log) -> None:
        self.root, self.peer, self.log = node.root, peer, log
        self.crashed, said = node.root / "crashed", node.root / "said"
        text = linux_monitor.program(
            LinuxDrbd.replication.scripts, os.ttyname(peer.slave), INCIDENT, PRIMARY,
            f"\necho yes >{self.crashed}\n".encode(),
        )  # fmt: skip
        (node.root / "monitor").write_text(text)
        self.said = said
        with said.open("wb") as errors:
            self.process = subprocess.Popen(
                [*shell, str(node.root / "monitor")], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def await_said(self, words: str) -> None:
        await_true(
            lambda: words in self.said.read_text(), 60, f"{words!r}: {self.said.read_text()}"
        )

    def arm(self) -> None:
        self.peer.await_line(TRIAL)
        self.peer.say("rehearsed")
        self.await_said(f"{ID}: armed")


PATIENT = pytest.mark.parametrize("answer_s", [3600])
"""Silence is no part of the test, however slow the machine."""


@pytest.fixture
def answer_s() -> int:
    return 1


@pytest.fixture(params=SHELLS)
def running(
    request: pytest.FixtureRequest,
    node: NodeOnDisk,
    peer: Peer,
    log: Log,
    answer_s: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Running]:
    monkeypatch.setattr(linux_monitor, "ANSWER_S", answer_s)
    log.add(DIGEST)  # of before it began
    made = Running([word for word in SHELLS[request.param] if word != "-i"], node, peer, log)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        end_session(made.process.pid)


@PATIENT
def test_a_complaint_of_the_kernel_instructs_the_primary_and_then_itself(running: Running) -> None:
    running.arm()
    assert PRIMARY.strip() not in running.peer.got  # the old complaint was passed over
    running.log.add(DIGEST)
    running.peer.await_line(PRIMARY.strip())
    assert not running.crashed.exists()
    running.peer.say("ok")
    await_true(running.crashed.exists, 60, "its own line")
    running.await_said(f"{ID}: instructs the primary, for record 3,812,8296893,- of this log")
    running.await_said(f"{ID}: ended")


@PATIENT
@pytest.mark.parametrize(
    "line",
    [
        "12,813,8296893,-;block drbd0: Digest integrity check FAILED: 89600s +65536",  # a program's
        "6,813,8296893,-;drbd r0: conn( WFConnection -> Connected )",
        f"12,814,8296894,-;freezeframe: monitor {ID}: answer: rehearsed",  # of a trial sent twice
        f"12,814,8296894,-;freezeframe: monitor {'0' * 32}: answer: ok",
        f"12,814,8296894,-;freezeframe: monitor {ID}: silence: 9",
    ],
)
def test_other_lines_instruct_nobody(line: str, running: Running) -> None:
    running.arm()
    running.log.add(line)
    running.log.add(DIGEST)
    running.peer.await_line(PRIMARY.strip())  # once
    running.log.add(line)
    running.peer.say("stale epoch")  # an answer ends it, whichever
    running.await_said(f"{ID}: ended")
    assert running.said.read_text().count("instructs the primary") == 1
    assert running.crashed.exists()


def test_a_primary_that_does_not_answer_is_told_three_times(running: Running) -> None:
    running.arm()
    running.log.add(DIGEST)
    for _ in range(3):
        running.peer.await_line(PRIMARY.strip())
    await_true(running.crashed.exists, 60, "its own line")
    running.await_said(f"{ID}: ended")
    running.peer.say("ok")
    assert PRIMARY.strip() not in running.peer.got


@pytest.mark.parametrize("status", ["stale epoch", "not prepared", ""])
def test_a_line_that_leads_to_nobody_is_not_armed(status: str, running: Running) -> None:
    """And its complaints then instruct nobody."""
    running.peer.await_line(TRIAL)
    if status:
        running.peer.say(status)
    running.await_said(f"{ID}: not armed: {status or 'the primary does not answer'}")
    running.await_said(f"{ID}: ended")
    running.log.add(DIGEST)
    assert running.process.wait() == -9
    assert not running.crashed.exists()


# --- armed by its driver -----------------------------------------------------------------------------------
@pytest.fixture
def monitor(
    device: LinuxDrbd,
    node: NodeOnDisk,
    peer: Peer,
    log: Log,
    answer_s: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SelfMonitoring]:
    options = LinuxNode.Options(peer_line=os.ttyname(peer.slave))
    made = LinuxDrbd("secondary", device.link, serial_number="FFTEST-1", options=options)
    monkeypatch.setattr(linux_monitor, "ANSWER_S", answer_s)
    bound = boundary.guarded(made, Controller, "linux_drbd", "secondary")
    assert isinstance(bound, SelfMonitoring) and not isinstance(device, SelfMonitoring)
    yield bound
    pid = node.root / "run/freezeframe/monitor.pid"
    if pid.exists():  # in a session of its own, which the end of the device's shell does not reach
        end_session(int(pid.read_text()))


@PATIENT
def test_the_driver_arms_it_and_it_carries_out_the_nodes_own_line(
    monitor: SelfMonitoring, device: LinuxDrbd, node: NodeOnDisk, peer: Peer, log: Log
) -> None:
    frame = armed(device, 6)
    for _ in range(2):  # a later arming ends an earlier one

        def answered() -> None:
            peer.await_line(TRIAL)
            peer.say("rehearsed")

        with ThreadPoolExecutor() as threads:
            is_answered = threads.submit(answered)
            monitor.monitor(INCIDENT, PRIMARY, frame, soon())
            is_answered.result()
    log.add(DIGEST)
    peer.await_line(PRIMARY.strip())
    peer.say("ok")
    await_true((node.root / "crashed").exists, 60, "the crash")
    assert PRIMARY.strip() not in peer.got


def test_an_earlier_one_has_ended_before_the_next_goes_on(
    monitor: SelfMonitoring, device: LinuxDrbd, node: NodeOnDisk
) -> None:
    """Also one that does not end when it is asked to."""
    frame, file = armed(device, 6), f"{linux_scripts.FOLDER}/monitor"
    deaf = ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done", file]
    with subprocess.Popen(deaf, stdout=subprocess.PIPE, start_new_session=True) as earlier:
        assert earlier.stdout is not None
        earlier.stdout.readline()
        (node.root / "run/freezeframe/monitor.pid").write_text(f"{earlier.pid}\n")
        try:
            with pytest.raises(RigError, match="the primary does not answer"):
                monitor.monitor(INCIDENT, PRIMARY, frame, soon())
            assert earlier.poll() == -9
        finally:
            end_session(earlier.pid)


def test_a_line_without_a_primary_is_an_error_that_names_the_option(
    monitor: SelfMonitoring, device: LinuxDrbd, peer: Peer
) -> None:
    frame = armed(device, 6)
    with pytest.raises(
        RigError, match=r"the primary does not answer: does peer_line lead to a root"
    ):
        monitor.monitor(INCIDENT, PRIMARY, frame, soon())


def test_a_node_whose_log_never_complains_is_refused(device: LinuxDrbd) -> None:
    options = LinuxNode.Options(peer_line="/dev/ttyS2")
    with pytest.raises(UsageError, match="says nothing in its log that it could watch for"):
        LinuxNbd("secondary", device.link, serial_number="FFTEST-1", options=options)
    LinuxNvme("secondary", device.link, serial_number="FFTEST-1", options=options)


@pytest.mark.parametrize("made", [LinuxDrbd, LinuxNvme])
def test_no_line_of_the_program_is_long(made: type[LinuxNode]) -> None:
    text = linux_monitor.program(made.replication.scripts, "/dev/ttyS2", INCIDENT, PRIMARY, PRIMARY)
    assert max(map(len, text.splitlines())) < linux_scripts.MAX_LINE_BYTES
    assert "{" not in re.sub(r"\$\{|\{$|\{ |^\w+\(\) \{", "", text, flags=re.M)
