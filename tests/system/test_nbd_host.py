"""NbdHost against nbdkit, an independent server, and against servers that misbehave."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_test_server import served
from waiting import await_listener

from freezeframe import testing
from freezeframe.drivers.hosts.nbd import NbdConnection, NbdHost
from freezeframe.harness.errors import RigError, UsageError

pytestmark = pytest.mark.system

SIZE_BYTES = 32 << 20


@pytest.fixture
def nbdkit(tmp_path: Path) -> Iterator[str]:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is missing: apt install nbdkit")
    path = tmp_path / "kit.sock"
    strict = ["exportname-strict=true", "exportname=disk"]
    process = subprocess.Popen(
        ["nbdkit", "-f", "-U", str(path), "--filter=exportname", "memory", str(SIZE_BYTES), *strict]
    )
    try:
        await_listener(path)
        yield f"nbd+unix:///disk?socket={path}"
    finally:
        process.kill()
        process.wait()


def test_read_write_trim_flush_of_any_length(nbdkit: str) -> None:
    data = os.urandom(5 << 20)
    with NbdHost(nbdkit) as host:
        assert (host.size_bytes, host.read_only) == (SIZE_BYTES, False)
        host.write(512, data)
        host.write(SIZE_BYTES - 512, b"e" * 512, fua=True)
        host.flush()
        assert host.read(512, len(data)) == data
        assert host.read(SIZE_BYTES - 1024, 1024) == bytes(512) + b"e" * 512
        host.trim(512, len(data))
        assert host.read(0, SIZE_BYTES - 512) == bytes(SIZE_BYTES - 512)
        for offset, length in ((SIZE_BYTES, 512), (-512, 512), (0, 0), (0, SIZE_BYTES + 512)):
            with pytest.raises(UsageError, match="but it has"):
                host.read(offset, length)


def test_the_driver_keeps_the_promises_of_its_role(nbdkit: str) -> None:
    with NbdHost(nbdkit) as host:
        testing.check_host_port(host)


def test_pipelined_requests_are_all_answered(nbdkit: str) -> None:
    connection = NbdConnection(nbdkit)
    cookies = {
        connection.submit("write", i * 65536, data=bytes([i]) * 65536): i for i in range(128)
    }
    assert connection.outstanding == 128
    done = []
    while connection.outstanding:
        done += connection.pump(15)
    assert sorted(c.cookie for c in done) == sorted(cookies)
    assert {c.error for c in done} == {0}
    assert not connection.wants_write
    cookie = connection.submit("read", 127 * 65536, 65536)
    while not (done := connection.pump(15)):
        pass
    assert (done[0].cookie, done[0].data) == (cookie, bytes([127]) * 65536)
    connection.close()


def test_errors_of_the_device_are_named_and_the_next_call_works(tmp_path: Path) -> None:
    with served(tmp_path, SIZE_BYTES) as server, NbdHost(server.uri) as host:
        server.failing.add(3 << 20)
        host.write(0, os.urandom(1 << 20))
        with pytest.raises(RigError, match=r"nbd\.sock: read at 0 failed: EIO"):
            host.read(0, 8 << 20)
        with pytest.raises(RigError, match="EINVAL"):
            host.read(100, 512)
        assert len(host.read(0, 1 << 20)) == 1 << 20
    with served(tmp_path / "..", SIZE_BYTES, read_only=True) as server, NbdHost(server.uri) as host:
        assert host.read_only
        with pytest.raises(RigError, match="EPERM"):
            host.write(0, bytes(512))
        assert host.read(0, 512) == bytes(512)


def test_a_hold_is_waited_for_and_silence_has_an_end(tmp_path: Path) -> None:
    with served(tmp_path, SIZE_BYTES) as server:
        host = NbdHost(server.uri, timeout_s=10)
        server.hold()
        release = threading.Timer(0.2, server.release)
        release.start()
        host.write(0, b"w" * 512)
        release.join()
        assert host.read(0, 512) == b"w" * 512
        hurried = NbdHost(server.uri, timeout_s=0.1)
        server.hold()
        with pytest.raises(RigError, match=r"read at 0 not answered within 0\.1 s"):
            hurried.read(0, 512)
        with pytest.raises(RigError, match="is closed"):
            hurried.read(0, 512)
        server.hang_up()
        with pytest.raises(RigError, match=r"closed the connection|Broken pipe|reset"):
            host.read(0, 512)
        host.close()
        hurried.close()


def test_nobody_there_a_stranger_and_a_mute_one(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="nothing listens there"):
        NbdHost(f"nbd+unix:///?socket={tmp_path}/nothing")
    with pytest.raises(UsageError, match="not an NBD address"):
        NbdHost("tcp:nowhere")
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(RigError, match=r"no NBD greeting within 0.1 s"):
            NbdHost(f"nbd+unix:///?socket={path}", timeout_s=0.1)
        listener.accept()[0].close()
        greeter = threading.Thread(
            target=lambda: listener.accept()[0].sendall(b"220 mail.example ESMTP ready\r\n")
        )
        greeter.start()
        with pytest.raises(RigError, match="no newstyle greeting"):
            NbdHost(f"nbd+unix:///?socket={path}", timeout_s=10)
        greeter.join()


def test_an_unknown_export_is_named(nbdkit: str) -> None:
    with pytest.raises(RigError, match=r"unknown export|option error"):
        NbdHost(nbdkit.replace("/disk?", "/nodisk?"))
