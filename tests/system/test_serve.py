"""Two controller processes on real ports: independent NBD clients write, control frames warmstart
in between."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest
from waiting import LIMIT_S

from freezeframe.firmware_sim.control import Frame, Receiver, encode
from freezeframe.harness.wire import control as wire
from freezeframe.harness.wire.control import Op, PairState, Reason, Status

pytestmark = pytest.mark.system
SIZE_MIB = 32
SERIALS = {"primary": "FFSIM-P-0001", "secondary": "FFSIM-S-0001"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Side:
    """One controller process and a terminal at its console and control line."""

    def __init__(self, side: str, directory: Path, *arguments: str, control: str = "") -> None:
        self.side = side
        self.directory = directory
        self.nbd = f"nbd+unix:///?socket={directory}/{side}.nbd"
        self.arguments = [
            sys.executable, "-m", "freezeframe.firmware_sim", "serve", "--side", side, "--serial-number", SERIALS[side],
            "--state-dir", str(directory / side), "--size-mib", str(SIZE_MIB),
            "--host", f"unix:{directory}/{side}.nbd", "--console", f"pty:{directory}/{side}.console",
            "--control", f"pty:{directory}/{side}.control", "--boot-ms", "200", *arguments,
        ]  # fmt: skip
        self.control_name = "console" if control else "control"
        if control:
            self.arguments[self.arguments.index("--control") + 1] = control
        self.text = b""
        self.seq = 0
        self.start()

    def start(self) -> None:
        for line in ("control", "console"):
            # A link of an earlier life may lead to a terminal that is somebody else's by now.
            (self.directory / f"{self.side}.{line}").unlink(missing_ok=True)
        self.process = subprocess.Popen(self.arguments, stderr=subprocess.PIPE)
        control = self.directory / f"{self.side}.{self.control_name}"
        wait(lambda: self.process.poll() is not None or (control.exists() and self._opens(control)))
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()

    def _opens(self, control: Path) -> bool:
        try:
            self.control = os.open(control, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            self.console = os.open(
                self.directory / f"{self.side}.console", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK
            )
        except OSError:
            return False
        return True

    def read_console(self) -> str:
        while select.select([self.console], [], [], 0)[0]:
            try:
                self.text += os.read(self.console, 65536)
            except OSError:
                break
        return self.text.decode("ascii", "backslashreplace")

    def ask(self, op: int, payload: bytes = b"", replies: int = 1) -> list[bytes]:
        """Send a request until it is answered; the payloads of its replies."""
        self.seq += 1
        receiver, got = Receiver(), []
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            os.write(self.control, encode(Frame(op, self.seq, payload)))
            while select.select([self.control], [], [], 0.5)[0]:
                got += [
                    frame.payload
                    for frame in receiver.feed(os.read(self.control, 65536))
                    if frame.seq == self.seq
                ]
                if len(got) >= replies:
                    return got
        raise AssertionError(f"{self.side} does not answer\n{self.read_console()}")

    def identity(self) -> tuple[object, ...]:
        (payload,) = self.ask(Op.IDENTIFY)
        return wire.IDENTITY.unpack_from(payload, 1)

    def pair_state(self) -> int:
        return int(str(self.identity()[5]))

    def warmstart(self) -> bytes:
        epoch = self.identity()[3]
        payload = wire.FREEZE.pack(SERIALS[self.side].encode(), epoch, 1, bytes(16))
        (reply,) = self.ask(Op.WARMSTART, payload)
        assert reply[0] == Status.OK, reply
        return reply

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.control)
        os.close(self.console)


def wait(reached: object, limit_s: float = LIMIT_S) -> None:
    until = time.monotonic() + limit_s
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < until, "not reached in time"
        select.select([], [], [], 0.02)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    port = free_port()
    sides = [
        Side("secondary", tmp_path, "--replication-listen", f"127.0.0.1:{port}"),
        Side("primary", tmp_path, "--replication-connect", f"127.0.0.1:{port}"),
    ]
    secondary, primary = sides
    try:
        wait(lambda: primary.pair_state() == PairState.FULL_DUPLEX)
        yield primary, secondary
    finally:
        for side in sides:
            if side.process.poll() is None:
                side.kill()
            print(f"--- {side.side}\n{side.text.decode('ascii', 'backslashreplace')[-3000:]}")
            print(side.process.stderr.read().decode() if side.process.stderr else "")


def run(*command: str, limit_s: float = LIMIT_S) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def same(pair: tuple[Side, Side], directory: Path) -> bytes:
    """The volume as read through both host ports, which must agree."""
    contents = []
    for side in pair:
        image = directory / f"{side.side}.img"
        run("nbdcopy", side.nbd, str(image))
        contents.append(image.read_bytes())
    assert contents[0] == contents[1], "the two volumes differ"
    return contents[0]


def test_a_warmstart_in_the_middle_of_a_copy_loses_nothing(
    pair: tuple[Side, Side], tmp_path: Path
) -> None:
    primary, secondary = pair
    source = tmp_path / "source.img"
    source.write_bytes(os.urandom(SIZE_MIB << 20))
    copy = subprocess.Popen(
        ["nbdcopy", "--flush", "--request-size=65536", str(source), primary.nbd]
    )
    wait(lambda: "host: " in primary.read_console())
    primary.warmstart()
    assert copy.wait(LIMIT_S) == 0
    wait(lambda: primary.pair_state() == PairState.FULL_DUPLEX == secondary.pair_state())
    assert primary.identity()[3] == 2
    assert same(pair, tmp_path) == source.read_bytes()
    assert "boot epoch 2, warmstart" in primary.read_console()


def test_fio_verifies_what_it_wrote_over_two_warmstarts(
    pair: tuple[Side, Side], tmp_path: Path
) -> None:
    primary, secondary = pair
    fio = subprocess.Popen(
        [
            "fio", "--name=w", "--ioengine=nbd", "--verify_state_save=0",
            f"--uri={primary.nbd}", "--rw=randwrite", "--bs=4k", "--iodepth=16",
            f"--size={SIZE_MIB}m", "--io_size=16m", "--verify=crc32c", "--verify_fatal=1", "--minimal",
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    wait(lambda: "host: " in primary.read_console())
    primary.warmstart()
    secondary.warmstart()
    output, _ = fio.communicate(timeout=200)
    assert fio.returncode == 0, output
    wait(lambda: primary.pair_state() == PairState.FULL_DUPLEX == secondary.pair_state())
    same(pair, tmp_path)


def test_sets_outlive_the_power(pair: tuple[Side, Side], tmp_path: Path) -> None:
    primary, secondary = pair
    primary.warmstart()
    wait(lambda: primary.identity()[3] == 2)
    (before,) = primary.ask(Op.LIST_SETS)
    primary.kill()
    primary.start()
    wait(lambda: primary.identity()[3] == 3)
    (after,) = primary.ask(Op.LIST_SETS)
    assert after == before
    assert len(after) == 1 + wire.SET_ENTRY.size
    wait(lambda: primary.pair_state() == PairState.FULL_DUPLEX)
    run(
        "qemu-io",
        "-f",
        "raw",
        "-c",
        "write -P 0x5a 0 1M",
        "-c",
        "read -P 0x5a 0 1M",
        "-c",
        "flush",
        primary.nbd,
    )
    assert same(pair, tmp_path)[: 1 << 20] == b"\x5a" * (1 << 20)
    assert secondary.identity()[3] == 1


def test_a_polite_stop_leaves_everything_on_the_medium(
    pair: tuple[Side, Side], tmp_path: Path
) -> None:
    primary, _ = pair
    run("qemu-io", "-f", "raw", "-c", "write -P 0x77 1M 1M", primary.nbd)
    for side in pair:
        side.process.send_signal(signal.SIGTERM)
        assert side.process.wait(LIMIT_S) == 0
    for side in pair:
        assert (tmp_path / side.side / "volume").read_bytes()[1 << 20 : 2 << 20] == b"\x77" * (
            1 << 20
        )


def test_the_secondary_alone_instructs_the_primary_over_the_second_link(tmp_path: Path) -> None:
    port, second_link = free_port(), f"unix:{tmp_path}/peer"
    # The secondary's console and control frames share one line.
    secondary = Side(
        "secondary", tmp_path, "--replication-listen", f"127.0.0.1:{port}", "--autonomic",
        "--peer-control", second_link, control="console",
    )  # fmt: skip
    primary = Side(
        "primary",
        tmp_path,
        "--replication-connect",
        f"127.0.0.1:{port}",
        "--peer-control-listen",
        second_link,
    )
    try:
        wait(lambda: primary.pair_state() == PairState.FULL_DUPLEX)
        epoch = int(str(secondary.identity()[3]))
        plan = {"seed": 1, "faults": [{"kind": "bit_flip_receiver", "at_write": 3}]}
        target = wire.TARGET.pack(SERIALS["secondary"].encode(), epoch)
        assert secondary.ask(Op.SET_FAULTS, target + cbor2.dumps(plan))[0][0] == Status.OK
        run(
            "qemu-io",
            "-f",
            "raw",
            *(word for at in range(8) for word in ("-c", f"write -P {at} {at}M 64k")),
            primary.nbd,
        )
        wait(lambda: primary.identity()[3] == secondary.identity()[3] == 2)
        wait(lambda: primary.pair_state() == secondary.pair_state() == PairState.FULL_DUPLEX)
        (listed,) = primary.ask(Op.LIST_SETS)
        assert wire.SET_ENTRY.unpack_from(listed, 1)[3] == Reason.PEER_TRIGGER
        content = same((primary, secondary), tmp_path)
        assert [content[at << 20] for at in range(8)] == list(range(8))
    finally:
        primary.kill()
        secondary.kill()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "tcp:127.0.0.1:{used}"], "{used}"),
        (["--replication-listen", "127.0.0.1:{used}"], "{used}"),
        (["--console", "/dev/ttyNONE"], "/dev/ttyNONE"),
        (["--console", "fd:99"], "fd:99"),
        (["--control", "nonsense"], "nonsense"),
        (["--netns", "/nowhere"], "/nowhere"),
        (["--replication-listen", "nonsense"], "nonsense"),
        (["--state-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--serial-number", "x" * 17], "serial number"),
    ],
)
def test_a_missing_port_is_one_line_and_exit_3(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        number = str(used.getsockname()[1])
        base = {
            "--side": "primary", "--serial-number": "S", "--state-dir": str(tmp_path / "state"),
            "--host": f"unix:{tmp_path}/nbd", "--replication-listen": "127.0.0.1:0",
            "--console": f"pty:{tmp_path}/console", "--control": "console",
        }  # fmt: skip
        base |= {arguments[0]: arguments[1].format(used=number)}
        words = [word for pair in base.items() for word in pair]
        done = subprocess.run(
            [sys.executable, "-m", "freezeframe.firmware_sim", "serve", *words],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1 and named.format(used=number) in done.stderr
