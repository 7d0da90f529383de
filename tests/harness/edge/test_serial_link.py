"""Serial lines over real PTYs, sockets and RFC 2217."""

import contextlib
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serial
import serial.rfc2217

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.edge.clock import MonotonicClock, read_wall_clock
from freezeframe.harness.edge.locks import holder
from freezeframe.harness.edge.serial_link import BREAK, SerialLink, open_serial, silent_line
from freezeframe.harness.errors import LineGoneError, RigError
from freezeframe.harness.roles import ByteLink
from freezeframe.harness.wire.control import BREAK_NULS


def soon(seconds: float = 5.0) -> int:
    return time.monotonic_ns() + int(seconds * NS_PER_S)


def read_exactly(link: ByteLink, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = link.read(65536, soon())
        assert piece, f"only {got!r} came"
        got += piece
    return got


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The device's end of a PTY, and a link in the file system to the rig's end, as udev makes
    them."""
    device, rig = pty.openpty()
    path = tmp_path / "usb-FTDI_board-if00"
    path.symlink_to(os.ttyname(rig))
    yield device, str(path)
    with contextlib.suppress(OSError):
        os.close(device)
    os.close(rig)


EVERY_BYTE = bytes(range(256)) * 8


def test_a_pty_by_a_link_carries_every_byte(line: tuple[int, str]) -> None:
    device, path = line
    link = open_serial(path, baud=115_200)
    assert isinstance(link, ByteLink)
    try:
        tty.setraw(device)
        link.write(EVERY_BYTE)
        assert os.read(device, 4096) == EVERY_BYTE
        os.write(device, EVERY_BYTE)
        assert read_exactly(link, len(EVERY_BYTE)) == EVERY_BYTE
        speed = termios.tcgetattr(link.fileno())[4]
        assert speed == termios.B115200
    finally:
        link.close()


def test_a_line_whose_driver_does_not_count_says_nothing(line: tuple[int, str]) -> None:
    """Not even zero: that would be a good sign."""
    _, path = line
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"socket://127.0.0.1:{server.getsockname()[1]}"
        for link in (open_serial(path), open_serial(url), open_serial("exec:cat")):
            assert link.errors_since() is None
            link.close()
            assert link.errors_since() is None


class CountingLink(SerialLink):
    """Its kernel is a list of readings; None: the line is gone."""

    def __init__(self, path: str, readings: list[LineErrors | None]) -> None:
        self._readings = readings
        super().__init__(path, serial.Serial(path), [])

    def _read_counters(self) -> LineErrors | None:
        return self._readings.pop(0)


def test_what_grew_since_it_was_last_asked_is_counted_once(line: tuple[int, str]) -> None:
    _, path = line
    counted = [LineErrors(overruns=7), LineErrors(overruns=9), LineErrors(overruns=9, parity=1)]
    link = CountingLink(path, [*counted, None, counted[-1], counted[-1]])
    assert link.errors_since() == LineErrors(overruns=2), "what was before it was opened is not its"
    assert link.errors_since() == LineErrors(parity=1)
    assert link.errors_since() is None, "the line does not answer"
    assert link.errors_since() == LineErrors()
    link.close()
    assert link.errors_since() is None, "another line may have its descriptor by now"


def test_a_bench_adds_up_what_its_lines_counted_before_and_after_they_were_opened_again(
    line: tuple[int, str],
) -> None:
    _, path = line
    bench = OpenBench.__new__(OpenBench)
    bench.controllers, bench._line_errors = {}, {}
    old = CountingLink(path, [LineErrors(), LineErrors(overruns=2)])
    bench._count("primary console", old)  # it is opened again
    old.close()
    new = CountingLink(path, [LineErrors(overruns=50), LineErrors(overruns=51), None])
    bench.consoles = {"primary": new}
    assert bench.count_line_errors() == {"primary console": LineErrors(overruns=3)}
    assert bench.count_line_errors() == {}, "it is gone: nothing is known of it"
    new.close()


def test_read_keeps_to_its_deadline(line: tuple[int, str]) -> None:
    device, path = line
    link = open_serial(path)
    begun_ns = time.monotonic_ns()
    assert link.read(10, begun_ns + 50_000_000) == b""
    assert 50_000_000 <= time.monotonic_ns() - begun_ns < NS_PER_S
    assert link.read(10, begun_ns) == b""
    os.write(device, b"late")
    assert link.read(2, soon()) == b"la"
    assert link.read(2, 0) == b"te"
    link.close()


def test_the_descriptor_works_in_another_process(line: tuple[int, str]) -> None:
    device, path = line
    link = open_serial(path)
    fd = link.fileno()
    subprocess.run(
        [sys.executable, "-c", f"import os; os.write({fd}, b'frame')"], pass_fds=[fd], check=True
    )
    assert os.read(device, 100) == b"frame"
    link.close()


def test_in_use_names_the_holder(line: tuple[int, str]) -> None:
    _, path = line
    code = f"import serial; s = serial.Serial({path!r}, exclusive=True); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin and other.stdout
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RigError) as caught:
            open_serial(path)
        name = Path(f"/proc/{other.pid}/comm").read_text().strip()
        said = str(caught.value)
        assert said.startswith(f"{path} is in use by {name} (pid {other.pid}): end it, with Ctrl-C")
        assert "`freezeframe top`" in said
        assert holder(path) == f"{name} (pid {other.pid})"
    finally:
        other.communicate(b"\n")
    open_serial(path).close()
    assert holder(path) is None


def test_twice_in_one_process(line: tuple[int, str]) -> None:
    _, path = line
    link = open_serial(path)
    with pytest.raises(RigError, match="is in use by"):
        open_serial(path)
    link.close()
    open_serial(path).close()


def test_missing_tells_what_is_there() -> None:
    with pytest.raises(
        RigError, match=r"^/dev/ttyNOTHERE is not there\. (There are: /dev|This machine has no)"
    ):
        open_serial("/dev/ttyNOTHERE")


def test_what_is_no_serial_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RigError, match="is not a serial line"):
        open_serial(str(tmp_path / "file"))
    with pytest.raises(RigError, match="is not a serial line"):
        open_serial(str(tmp_path))
    with pytest.raises(RigError, match="/dev/full is not a serial line"):
        open_serial("/dev/full")


@pytest.mark.parametrize(
    "url", ["nonsense://x", "socket://", "socket://host", "rfc2217://127.0.0.1:notaport"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(RigError, match="cannot be opened"):
        open_serial(url)


def test_the_far_end_of_a_pty_goes_away(line: tuple[int, str]) -> None:
    device, path = line
    link = open_serial(path)
    os.close(device)
    with pytest.raises(RigError, match="is gone"):
        link.read(10, soon())
    link.close()


def test_nobody_takes_the_bytes(line: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freezeframe.harness.edge.serial_link.WRITE_TIMEOUT_NS", 100_000_000)
    link = open_serial(line[1])
    with pytest.raises(RigError, match="accepts no bytes"):
        link.write(bytes(1 << 20))
    link.close()


def test_a_line_that_takes_some_bytes_now_and_then_outlives_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen: each byte that was taken began the time-out anew."""
    monkeypatch.setattr("freezeframe.harness.edge.serial_link.WRITE_TIMEOUT_NS", NS_PER_S // 2)
    monkeypatch.setattr("freezeframe.harness.edge.serial_link.SLOWEST_BAUD", 1 << 40, raising=False)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    taken, is_over = bytearray(), threading.Event()

    def take() -> None:
        while piece := theirs.recv(1024):
            taken.extend(piece)
            is_over.wait(0.01)

    far = threading.Thread(target=take, daemon=True)
    far.start()
    link = SerialLink("a slow line", ours, [])
    try:
        with pytest.raises(RigError, match="a slow line accepts no bytes"):
            link.write(bytes(1 << 20))  # 10 s at least
        assert taken, "it took some"
        monkeypatch.setattr("freezeframe.harness.edge.serial_link.WRITE_TIMEOUT_NS", 60 * NS_PER_S)
        link.write(bytes(1 << 15))
    finally:
        is_over.set()
        link.close()
        far.join(60)
        theirs.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        yield listening


def test_socket_url(server: socket.socket) -> None:
    link = open_serial(f"socket://127.0.0.1:{server.getsockname()[1]}")
    far, _ = server.accept()
    link.write(EVERY_BYTE)
    assert far.recv(len(EVERY_BYTE), socket.MSG_WAITALL) == EVERY_BYTE
    far.sendall(EVERY_BYTE)
    assert read_exactly(link, len(EVERY_BYTE)) == EVERY_BYTE
    far.close()
    with pytest.raises(RigError, match="closed by the other end"):
        link.read(10, soon())
    link.close()


def test_socket_refused(server: socket.socket) -> None:
    port = server.getsockname()[1]
    server.close()
    with pytest.raises(
        RigError, match=rf"socket://127\.0\.0\.1:{port} cannot be opened: Connection refused$"
    ):
        open_serial(f"socket://127.0.0.1:{port}")


class PortOfAServer(serial.Serial):
    """A PTY has no modem lines; a serial server's port has."""

    cts = dsr = ri = cd = dtr = rts = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.done: list[bool | bytes] = []
        """In their order: BREAK begins (True), ends (False), bytes."""
        super().__init__(*args, **settings)

    def write(self, data: bytes, /) -> int | None:
        if data:
            self.done.append(bytes(data))
        return super().write(data)

    def _update_break_state(self) -> None:
        self.done.append(self._break_state)


class Rfc2217Server:
    """A serial server for one client: pyserial's own port manager in front of a PTY."""

    def __init__(self, listening: socket.socket, path: str) -> None:
        self.port = PortOfAServer(path, timeout=0.05)
        self.listening = listening
        self.is_stopping = False
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        client, _ = self.listening.accept()
        with client:
            manager = serial.rfc2217.PortManager(self.port, _Writer(client))
            while not self.is_stopping:
                if select.select([client], [], [], 0.01)[0]:
                    data = client.recv(1024)
                    if not data:
                        return
                    self.port.write(b"".join(manager.filter(data)))
                if waiting := self.port.in_waiting:
                    client.sendall(b"".join(manager.escape(self.port.read(waiting))))

    def stop(self) -> None:
        self.is_stopping = True
        self.thread.join(60)
        self.port.close()


class _Writer:
    def __init__(self, client: socket.socket) -> None:
        self.write = client.sendall


def test_rfc2217_is_pumped_to_a_raw_descriptor(
    server: socket.socket, line: tuple[int, str]
) -> None:
    device, path = line
    tty.setraw(device)
    far = Rfc2217Server(server, path)
    link: SerialLink | None = None
    try:
        link = open_serial(f"rfc2217://127.0.0.1:{server.getsockname()[1]}", baud=115_200)
        assert any("thread" in note for note in link.notes)
        os.write(link.fileno(), EVERY_BYTE)
        got = b""
        while len(got) < len(EVERY_BYTE):
            assert select.select([device], [], [], 5)[0]
            got += os.read(device, 4096)
        assert got == EVERY_BYTE
        os.write(device, EVERY_BYTE)
        assert read_exactly(link, len(EVERY_BYTE)) == EVERY_BYTE
        far.stop()
        with pytest.raises(RigError, match="is gone"):
            while True:
                link.read(100, soon())
    finally:
        far.stop()
        if link is not None:
            link.close()


def test_a_break_in_the_bytes_becomes_one_on_the_line_of_a_serial_server(
    server: socket.socket, line: tuple[int, str]
) -> None:
    device, path = line
    tty.setraw(device)
    far = Rfc2217Server(server, path)
    link = open_serial(f"rfc2217://127.0.0.1:{server.getsockname()[1]}", breaks=True)
    try:
        for written, arrives in ((b"ls\n", b"ls\n"), (BREAK + b"c", b"c")):
            os.write(link.fileno(), written)
            got = b""
            while len(got) < len(arrives):
                assert select.select([device], [], [], 5)[0]
                got += os.read(device, 4096)
            assert got == arrives
        assert far.port.done == [b"ls\n", True, False, b"c"]
    finally:
        link.close()
        far.stop()


def test_a_break_by_itself_goes_to_the_serial_server_and_as_nulls_to_a_pty(
    server: socket.socket, line: tuple[int, str]
) -> None:
    device, path = line
    tty.setraw(device)
    direct = open_serial(path)
    try:
        direct.write(b"a")
        direct.send_break()
        got = b""
        while len(got) < 1 + BREAK_NULS:
            assert select.select([device], [], [], 5)[0]
            got += os.read(device, 4096)
        assert got == b"a" + bytes(BREAK_NULS)
    finally:
        direct.close()
    far = Rfc2217Server(server, path)
    link = open_serial(f"rfc2217://127.0.0.1:{server.getsockname()[1]}")
    try:
        link.send_break()
        link.write(b"b")
        assert select.select([device], [], [], 5)[0] and os.read(device, 4096) == b"b"
        assert far.port.done == [True, False, b"b"]
    finally:
        link.close()
        far.stop()


def test_other_lines_send_no_break(server: socket.socket) -> None:
    link = open_serial(f"socket://127.0.0.1:{server.getsockname()[1]}")
    try:
        with pytest.raises(RigError, match="cannot send a BREAK: use a serial device"):
            link.send_break()
    finally:
        link.close()
    gone = silent_line("primary control line", is_gone=True)
    try:
        with pytest.raises(LineGoneError):
            gone.send_break()
    finally:
        gone.close()


def test_a_line_that_can_carry_no_break_is_refused_for_one(server: socket.socket) -> None:
    with pytest.raises(
        RigError, match="cannot send a BREAK: use the terminal server's rfc2217:// port"
    ):
        open_serial(f"socket://127.0.0.1:{server.getsockname()[1]}", breaks=True)


def test_clocks() -> None:
    before_ns = MonotonicClock().now()
    reading = read_wall_clock()
    assert before_ns <= reading.monotonic_ns <= MonotonicClock().now()
    assert abs(reading.wall_ns - time.time_ns()) < 5 * NS_PER_S
    assert 0 <= reading.error_ns < NS_PER_S
