import os
import selectors
import socket
from pathlib import Path

import pytest

from freezeframe.firmware_sim.channels import PortError, Stream, address, listen, open_line


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    while True:
        try:
            data += os.read(fd, 1 << 20)
        except BlockingIOError:
            return data


def test_a_line_nobody_reads_loses_old_text_and_says_how_much() -> None:
    reader, writer = os.pipe()
    stream = Stream(selectors.DefaultSelector(), writer, print, print, drop_above_bytes=20_000)
    lines = [b"%06d %s\r\n" % (number, b"x" * 91) for number in range(5000)]
    for line in lines:
        stream.queue(line)
        stream.flush()
        assert stream.pending_bytes <= 20_100
    got = b""
    while stream.pending_bytes:
        got += drain(reader)
        stream.flush()
    got += drain(reader)
    kept = [
        line + b"\r\n" for line in got.split(b"\r\n") if line and not line.startswith(b"[console:")
    ]
    assert kept[-1] == lines[-1] and kept[0] == lines[0], "the newest is there, and no line is torn"
    assert set(kept) <= set(lines)
    lost = [int(line.split()[1]) for line in got.split(b"\r\n") if line.startswith(b"[console:")]
    assert lost[-1] == sum(map(len, lines)) - sum(map(len, kept))


def test_a_stream_whose_output_piles_up_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    selector = selectors.DefaultSelector()
    stream = Stream(selector, ours, print, print)
    stream.queue(bytes(9 << 20))
    stream.flush()
    assert not selector.get_key(ours.fileno()).events & selectors.EVENT_READ
    theirs.setblocking(False)
    while stream.pending_bytes > 8 << 20:
        theirs.recv(1 << 20)
        stream.flush()
    assert selector.get_key(ours.fileno()).events & selectors.EVENT_READ


def test_output_that_has_to_wait_is_told_and_each_move_of_it() -> None:
    ours, theirs = socket.socketpair()
    told: list[bool] = []
    stream = Stream(selectors.DefaultSelector(), ours, print, print, on_blocked=told.append)
    stream.queue(b"short")
    stream.flush()
    assert told == []
    stream.queue(bytes(4 << 20))
    stream.flush()
    stream.flush()
    assert told == [True], "waiting, and nothing has moved since"
    theirs.setblocking(False)
    while stream.pending_bytes:
        theirs.recv(1 << 20)
        stream.flush()
    assert told[-1] is False
    assert set(told[:-1]) == {True}
    assert len(told) > 2
    ours.close()
    theirs.close()


def test_what_two_streams_read_in_one_round_is_there_until_the_next() -> None:
    selector = selectors.DefaultSelector()
    read: list[memoryview] = []
    theirs = []
    for words in (b"the first's", b"the second's"):
        ours, other = socket.socketpair()
        Stream(selector, ours, read.append, print)
        other.send(words)
        theirs.append(other)
    for key, mask in selector.select(1):
        key.data(mask)
    assert sorted(bytes(one) for one in read) == [b"the first's", b"the second's"]
    for other in theirs:
        other.close()


def test_the_end_of_a_stream_is_told_once() -> None:
    ours, theirs = socket.socketpair()
    selector = selectors.DefaultSelector()
    told: list[str] = []
    data: list[bytes] = []
    stream = Stream(selector, ours, data.append, told.append)
    theirs.send(b"last words")
    theirs.close()
    for _ in range(3):
        for key, mask in selector.select(0):
            key.data(mask)
    assert data == [b"last words"] and len(told) == 1 and not stream.open
    stream.queue(b"x")
    stream.flush()


def test_a_pty_replaces_what_is_in_its_way(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.write_text("old")
    fd, beside = open_line(f"pty:{link}")
    tap = os.open(link, os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b"hello\n\xff\x00")
    assert os.read(tap, 100) == b"hello\n\xff\x00", "raw: no byte is changed"
    for one in (fd, tap, *beside):
        os.close(one)


def test_a_unix_socket_replaces_what_is_in_its_way(tmp_path: Path) -> None:
    for _ in range(2):
        listener = listen(f"unix:{tmp_path}/nbd")
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "nbd"))
        client.close()
        listener.close()


@pytest.mark.parametrize("text", ["", "host", ":1", "a:b", "a:65536", "a:-1"])
def test_a_wrong_address_is_named(text: str) -> None:
    with pytest.raises(PortError, match="not ADDR:PORT"):
        address(text)
