"""The host's cable to a node: what ends on both sides at once, a node that is not there yet, bytes
both ways."""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from freezeframe.harness.rigs.relay import MAX_HELD_BYTES, Relay
from freezeframe.harness.rigs.rounds import dispatch

T = TypeVar("T")


class Here:
    """In place of the rig's namespace: the one that the test runs in."""

    def run(self, act: Callable[[], T]) -> T:
        return act()


class Cable:
    def __init__(self, path: Path) -> None:
        self.node = socket.create_server(("127.0.0.1", 0))
        self.selector = selectors.DefaultSelector()
        self.path = path
        self.relay = Relay(self.selector, Here(), path, self.node.getsockname())  # type: ignore[arg-type]

    def turn(self, until: Callable[[], object]) -> None:
        """Rounds until something is so, at most 10 s."""
        deadline = time.monotonic() + 10
        while not until():
            assert time.monotonic() < deadline
            self.round(0.05)

    def round(self, wait_s: float = 0.0) -> None:
        dispatch(self.selector, wait_s)
        self.relay.tick(time.monotonic_ns())

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The host's end and the node's."""
        host = socket.socket(socket.AF_UNIX)
        host.connect(str(self.path))
        self.node.setblocking(False)
        accepted: list[socket.socket] = []

        def arrived() -> bool:
            try:
                accepted.append(self.node.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.turn(arrived)
        for end in (host, accepted[0]):
            end.settimeout(60)
        return host, accepted[0]

    def close(self) -> None:
        self.relay.close()
        self.node.close()
        self.selector.close()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    made = Cable(tmp_path / "nbd")
    yield made
    made.close()


def test_bytes_go_both_ways_and_none_is_lost(cable: Cable) -> None:
    ends = cable.connect()
    for source, sink in (ends, ends[::-1]):
        data, rest, got = os.urandom(3_000_000), bytearray(), bytearray()
        rest += data
        source.setblocking(False)
        sink.setblocking(False)
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                del rest[: source.send(rest)]
            cable.round(0.01)
            with contextlib.suppress(BlockingIOError):
                got += sink.recv(1 << 20)
        assert got == data
    for end in ends:
        end.close()


@pytest.mark.parametrize("order", ["host first", "node first"])
def test_both_ends_that_end_in_the_same_round(cable: Cable, order: str) -> None:
    """A node that crashes and a host that gives up: whoever is seen first, the other's event is of
    an end that is gone."""
    for _ in range(20):
        host, node = cable.connect()
        for end in (host, node) if order == "host first" else (node, host):
            end.sendall(b"last words")
            end.close()
        for _ in range(4):
            cable.round()
    # It still serves.
    host, node = cable.connect()
    host.sendall(b"hello")
    cable.round(0.1)
    assert node.recv(5) == b"hello"
    host.close()
    node.close()


def test_a_node_that_listens_late_is_waited_for(cable: Cable) -> None:
    address = cable.node.getsockname()
    cable.node.close()
    host = socket.socket(socket.AF_UNIX)
    host.connect(str(cable.path))
    host.sendall(b"held")
    for _ in range(5):
        cable.round(0.05)
    cable.node = socket.create_server(address)
    cable.node.setblocking(False)
    accepted: list[socket.socket] = []

    def arrived() -> bool:
        try:
            accepted.append(cable.node.accept()[0])
        except BlockingIOError:
            return False
        return True

    cable.turn(arrived)
    accepted[0].settimeout(60)
    for _ in range(3):
        cable.round(0.05)
    assert accepted[0].recv(4) == b"held"
    host.close()
    accepted[0].close()


def test_a_host_that_sends_on_to_a_node_that_is_away_keeps_nobody_busy(cable: Cable) -> None:
    """All that is held for the node is there: the host has to wait, and the rig's process sleeps
    meanwhile."""
    cable.node.close()
    host = socket.socket(socket.AF_UNIX)
    host.connect(str(cable.path))
    host.setblocking(False)
    sent = idle = 0
    while idle < 50:
        cable.round()
        try:
            sent, idle = sent + host.send(bytes(1 << 16)), 0
        except BlockingIOError:
            idle += 1
    assert sent >= MAX_HELD_BYTES
    began = time.monotonic()
    for _ in range(5):
        dispatch(cable.selector, 0.1)
    assert time.monotonic() - began > 0.3
    host.close()
