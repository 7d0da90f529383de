"""A console served to pyserial's own RFC 2217 client, and as plain bytes: who may look, who may write, and that a peer
holds up nobody."""

import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
from waiting import LIMIT_S, await_true

from freezeframe.harness.edge import consoleport
from freezeframe.harness.edge.consoleport import BREAK_SENT, MAX_HELD_BYTES, ConsolePort
from freezeframe.harness.errors import RigError, UsageError

BAUD = 57_600
NOBODY = 65534


class Serving(threading.Thread):
    """Serves in a thread of its own; what the writer sends is in ``came``."""

    def __init__(self, address: str, *, may_write: bool) -> None:
        super().__init__(daemon=True)
        self.port = ConsolePort(address, baud=BAUD, may_write=may_write)
        self.came: list[bytes] = []
        self.has_come = threading.Condition()
        self._said: list[bytes] = []
        self._is_over = False
        self.start()

    def say(self, data: bytes) -> None:
        self._said.append(data)

    def run(self) -> None:
        while not self._is_over:
            while self._said:
                self.port.say(self._said.pop(0))
            if found := self.port.turn(0.01):
                with self.has_come:
                    self.came += found
                    self.has_come.notify_all()

    def await_bytes(self, data: bytes) -> None:
        with self.has_come:
            assert self.has_come.wait_for(lambda: b"".join(self.came) == data, LIMIT_S), self.came

    def close(self) -> None:
        self._is_over = True
        self.join(LIMIT_S)
        self.port.close()


@pytest.fixture(params=[True, False])
def serving(request: pytest.FixtureRequest) -> Iterator[Serving]:
    one = Serving("127.0.0.1:0", may_write=request.param)
    yield one
    one.close()


EVERYTHING = bytes(range(256)) * 4


def test_pyserial_gets_every_byte_and_only_where_it_may_its_own_are_written(
    serving: Serving,
) -> None:
    url = f"rfc2217://{serving.port.address}"
    with serial.serial_for_url(url, baudrate=BAUD, timeout=LIMIT_S) as one:
        serving.say(EVERYTHING)
        assert one.read(len(EVERYTHING)) == EVERYTHING
        one.write(EVERYTHING)
        if serving.port._may_write:
            serving.await_bytes(EVERYTHING)
            one.send_break(0.01)
            with serving.has_come:
                assert serving.has_come.wait_for(lambda: BREAK_SENT in serving.came, LIMIT_S)
        else:
            serving.say(b"end")
            assert one.read(3) == b"end" and serving.came == []
            assert "without --write it is read-only" in serving.port.notes[0]


def test_another_rate_than_the_lines_is_refused(serving: Serving) -> None:
    with pytest.raises((serial.SerialException, ValueError)):
        serial.serial_for_url(f"rfc2217://{serving.port.address}", baudrate=9600, timeout=LIMIT_S)


def test_one_writes_at_a_time_and_its_place_is_free_when_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "console"
    serving = Serving(f"unix:{path}", may_write=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(path))
        second.connect(str(path))
        first.sendall(b"one")
        serving.await_bytes(b"one")
        second.sendall(b"lost")
        await_true(lambda: serving.port.notes, LIMIT_S, "a note of what is not written")
        serving.say(b"hello")
        assert second.recv(5) == first.recv(5) == b"hello", "both look"
        first.close()
        with socket.socket(socket.AF_UNIX) as third:
            third.connect(str(path))
            await_true(lambda: serving.port._writer is None, LIMIT_S, "the first one's end")
            third.sendall(b"3")
            serving.await_bytes(b"one3")
    serving.close()
    assert not path.exists()


@pytest.mark.parametrize("may_write", [True, False])
def test_garbage_hangs_up_and_who_never_reads_misses_bytes_alone(may_write: bool) -> None:
    port = ConsolePort("127.0.0.1:0", baud=BAUD, may_write=may_write)
    host, _, number = port.address.rpartition(":")
    garbage = [
        b"\xff\xfa\x2c\x01\xff\xf0",
        b"\xff\xfa\xff\xf0",
        b"\xff\xfa\x2c" + b"x" * 5000,
        b"\xff\xfa\x2c\x05\x99\xff\xf0",
    ]
    for data in garbage:
        with socket.create_connection((host, int(number)), timeout=LIMIT_S) as one:
            port.turn(LIMIT_S)
            one.sendall(data)
            for _ in range(5):
                assert port.turn(0.05) == []
    with socket.create_connection((host, int(number)), timeout=LIMIT_S):
        while not port._peers:
            port.turn(LIMIT_S)
        for _ in range(200):
            port.say(b"y" * 100_000)
            port.turn(0)
        (peer,) = port._peers.values()
        assert len(peer.held) <= MAX_HELD_BYTES
    port.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_of_this_machine_gets_nothing() -> None:
    serving = Serving("127.0.0.1:0", may_write=True)
    script = (
        "import encodings.idna, os, sys, socket\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "one = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "try:\n    one.sendall(b'reboot'); got = one.recv(9)\n"
        "except ConnectionError:\n    sys.exit(0)\n"
        "sys.exit(1 if got else 0)\n"
    )
    command = [sys.executable, "-S", "-c", script, serving.port.address.rpartition(":")[2]]
    assert subprocess.run(command, timeout=LIMIT_S).returncode == 0
    assert serving.came == [] and "was refused: it is another user" in serving.port.notes[0]
    serving.close()


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_that_its_process_has_closed_is_nobodys(is_reset: bool) -> None:
    """The kernel calls root its owner: another user could have written with it, and be gone. One that was reset has
    no other end: seen, it ended the serving for everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            assert consoleport.owner_of(theirs) == os.geteuid()
            if is_reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            assert consoleport.owner_of(theirs) is None


def test_addresses_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    for address in ("4001", "localhost:", ":1", "h:99999", "127.0.0.1:x"):
        with pytest.raises(UsageError, match="no address; allowed: HOST:PORT, unix:PATH"):
            ConsolePort(address, baud=BAUD, may_write=False)
    with pytest.raises(UsageError, match="whoever reaches that address could write"):
        ConsolePort("0.0.0.0:0", baud=BAUD, may_write=True)
    ConsolePort("0.0.0.0:0", baud=BAUD, may_write=False).close()
    (tmp_path / "there").write_text("")
    with pytest.raises(RigError, match="Address already in use"):
        ConsolePort(f"unix:{tmp_path / 'there'}", baud=BAUD, may_write=False)
