"""The link's process on a real veth pair: everything is recorded, a wrong digest comes out as a
trigger at once."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from link_script import (
    RS_WRITE_ACK,
    UNPLUG,
    P,
    S,
    features,
    h80,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    p_data,
    protocol,
)
from tshark import malformed, tshark

from freezeframe.harness.core import events
from freezeframe.harness.core.events import (
    NS_PER_MS,
    NS_PER_S,
    AnyEvent,
    KeepCapture,
    LinkStats,
    Note,
    ProcessReady,
    Stop,
    StreamEnded,
    Trigger,
)
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.edge.capture_ring import join, segments
from freezeframe.harness.edge.netns import INTERFACE, LinkPair, make_pair, missing_capabilities
from freezeframe.harness.edge.pcapng import read_frames, read_runs
from freezeframe.harness.watch.linkwatch import Linkwatch, LinkwatchConfig

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()),
        reason=f"needs {', '.join(missing_capabilities())}: run as root",
    ),
]
TIMEOUT_S = 60
DIALLING_PORTS = 40000, 40001
"""Wireshark knows no protocol by them; by one that the kernel picks, 44818 say, it would, and take
a link whose beginning is not captured for that."""


@pytest.fixture(scope="module")
def link() -> Iterator[LinkPair]:
    pair = make_pair()
    yield pair
    pair.close()


class Watch:
    """A running linkwatch process."""

    def __init__(self, link: LinkPair, path: Path, **config: Any) -> None:
        self.path = path
        self.trigger_fd, write_fd = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "freezeframe.harness.watch.linkwatch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write_fd,),
        )
        plain = {
            "interface": INTERFACE,
            "namespace": link.secondary.path,
            "pcapng_path": str(path),
            "trigger_fd": write_fd,
            "primary_address": P,
            "secondary_address": S,
            "ring_mib": 8,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(plain | config).encode() + b"\n")
        self.process.stdin.flush()
        os.close(write_fd)
        self._decoders = {
            self.process.stdout.fileno(): events.Decoder(),
            self.trigger_fd: events.Decoder(),
        }
        self.told: list[AnyEvent] = []

    def wait(self, kind: type[Any], *, on_trigger_pipe: bool = False) -> Any:
        """The first event of that kind, within the bound."""
        assert self.process.stdout is not None
        fd = self.trigger_fd if on_trigger_pipe else self.process.stdout.fileno()
        deadline = time.monotonic() + TIMEOUT_S
        found: list[AnyEvent] = []
        while not any(isinstance(event, kind) for event in found):
            assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], (
                f"no {kind.__name__}"
            )
            data = os.read(fd, 65536)
            assert data, self.process.communicate()[1].decode()
            fresh = self._decoders[fd].feed(data)
            found += fresh
            self.told += fresh if not on_trigger_pipe else []
        return next(event for event in found if isinstance(event, kind))

    def stop(self) -> list[AnyEvent]:
        """Everything it told, the last counters included."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(events.encode(Stop(t_ns=0)))
        self.process.stdin.close()
        decoder = self._decoders[self.process.stdout.fileno()]
        self.told += decoder.feed(self.process.stdout.read())
        assert self.process.wait(TIMEOUT_S) == 0
        return self.told

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        os.close(self.trigger_fd)


class Nodes:
    """Both nodes' sockets; the scripts write to them."""

    def __init__(self, link: LinkPair) -> None:
        self.listener = link.secondary.run(lambda: socket.create_server((S, 7788)))
        self.meta_listener = link.primary.run(lambda: socket.create_server((P, 7788)))
        dial = socket.create_connection
        self.data_p = link.primary.run(lambda: dial((S, 7788), TIMEOUT_S, ("", DIALLING_PORTS[0])))
        self.data_s, _ = self.listener.accept()
        self.meta_s = link.secondary.run(
            lambda: dial((P, 7788), TIMEOUT_S, ("", DIALLING_PORTS[1]))
        )
        self.meta_p, _ = self.meta_listener.accept()
        for one in (self.data_p, self.data_s, self.meta_p, self.meta_s):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(TIMEOUT_S)

    def pass_on(self, sender: socket.socket, receiver: socket.socket, *packets: bytes) -> None:
        data = b"".join(packets)
        sender.sendall(data)
        left = len(data)
        while left:
            left -= len(receiver.recv(left))

    def primary(self, *packets: bytes) -> None:
        self.pass_on(self.data_p, self.data_s, *packets)

    def secondary(self, *packets: bytes) -> None:
        self.pass_on(self.meta_s, self.meta_p, *packets)

    def handshake(self) -> None:
        sizes = struct.pack(">QQQIHH", 2048, 0, 2048, 1 << 20, 0, 0) + struct.pack(
            ">IIIIIBBBB", *([512] * 5), 1, 0, 0, 0
        )
        self.primary(h80(0xFFF2))
        self.secondary(h80(0xFFF1))
        for sender, receiver in ((self.data_p, self.data_s), (self.data_s, self.data_p)):
            self.pass_on(sender, receiver, features())
        for sender, receiver in ((self.data_p, self.data_s), (self.data_s, self.data_p)):
            state = struct.pack(">I", 1 | 2 << 2 | 10 << 4 | 8 << 9 | 8 << 13)
            self.pass_on(sender, receiver, protocol(), h100(0x0D, sizes), h100(0x0E, state))

    def epoch(self, first: int, writes: int, size: int = 4096) -> None:
        for number in range(first, first + writes):
            self.primary(p_data(number, number * 8, bytes([number % 256]) * size))
            self.secondary(p_ack(number, number * 8, size))
        self.primary(p_barrier(first), h100(UNPLUG))
        self.secondary(p_barrier_ack(first, writes))

    def close(self) -> None:
        for one in (
            self.data_p,
            self.data_s,
            self.meta_p,
            self.meta_s,
            self.listener,
            self.meta_listener,
        ):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


@pytest.fixture
def nodes(link: LinkPair) -> Iterator[Nodes]:
    made: list[Nodes] = []

    class Late:
        """Opened at first use: the capture has to run before."""

        def __getattr__(self, name: str) -> Any:
            if not made:
                made.append(Nodes(link))
            return getattr(made[0], name)

    yield Late()  # type: ignore[misc]
    for one in made:
        one.close()


ALL_RULES = [
    {"name": event, "event": event}
    for event in ("digest-mismatch", "neg-ack", "late-ack", "missing-ack", "repeated-ack", "unknown-ack",
                  "barrier-count", "unacked-close", "malformed")
]  # fmt: skip


CAPTURES = [
    pytest.param({"capture": "ring"}, id="ring"),
    pytest.param({"capture": "scapy"}, id="scapy-ring"),
    pytest.param(
        {"capture": "scapy", "scapy_socket": "scapy.arch.linux:L2ListenSocket"}, id="scapy-socket"
    ),
]
"""Every way of capturing, up to the same judge."""


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_clean_exchange_is_recorded_counted_and_gives_no_trigger(
    link: LinkPair, nodes: Nodes, tmp_path: Path, capture: dict[str, str]
) -> None:
    watch = Watch(link, tmp_path / "link.pcapng", rules=ALL_RULES, **capture)
    try:
        assert watch.wait(ProcessReady).process == "linkwatch"
        nodes.handshake()
        nodes.epoch(1, 100)
        told = watch.stop()
    finally:
        watch.close()
    stats = [event for event in told if isinstance(event, LinkStats)]
    assert not [event for event in told if isinstance(event, Trigger | Note)]
    assert (stats[-1].writes, stats[-1].acks, stats[-1].digests_checked) == (100, 100, 100)
    assert (stats[-1].kernel_drops, stats[-1].gaps) == (0, 0)
    frames = list(read_frames(watch.path))
    assert len(frames) == stats[-1].packets
    assert sum(len(frame.data) for frame in frames) == stats[-1].bytes_captured > 100 * 4096
    assert abs(frames[-1].t_ns - time.time_ns()) < 60e9
    if shutil.which("tshark"):
        assert malformed(watch.path) == []
        listed = tshark(watch.path, "-Y", "drbd.command==0", "-T", "fields", "-e", "drbd.sector")
        assert [int(sector) for sector in listed] == [8 * number for number in range(1, 101)]


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_wrong_digest_reaches_the_reflexs_pipe_and_the_supervisor(
    link: LinkPair, nodes: Nodes, tmp_path: Path, capture: dict[str, str]
) -> None:
    watch = Watch(link, tmp_path / "link.pcapng", rules=ALL_RULES, **capture)
    try:
        watch.wait(ProcessReady)
        nodes.handshake()
        nodes.epoch(1, 3)
        before_ns = time.monotonic_ns()
        nodes.primary(p_data(9, 89600, bytes(65536), digest=b"oops"))
        trigger = watch.wait(Trigger, on_trigger_pipe=True)
        nodes.secondary(p_ack(9, 89600, 65536))
        told = watch.stop()
    finally:
        watch.close()
    assert (trigger.rule, trigger.side, trigger.sector) == ("digest-mismatch", "primary", 89600)
    assert before_ns <= trigger.t_arrival_ns <= trigger.t_match_ns
    assert trigger.t_match_ns - trigger.t_arrival_ns < 1e9
    assert trigger.instruct == ["primary", "secondary"]
    assert [event for event in told if isinstance(event, Trigger)] == [trigger]


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_missing_acknowledgement_is_told_at_its_deadline(
    link: LinkPair, nodes: Nodes, tmp_path: Path, capture: dict[str, str]
) -> None:
    rules = [
        {"name": "lost", "event": "missing-ack", "deadline_ms": 150, "instruct": ["secondary"]}
    ]
    watch = Watch(link, tmp_path / "link.pcapng", rules=rules, **capture)
    try:
        watch.wait(ProcessReady)
        nodes.handshake()
        nodes.primary(p_data(1, 8, bytes(512)))
        trigger = watch.wait(Trigger, on_trigger_pipe=True)
        nodes.secondary(p_ack(1, 8, cmd=RS_WRITE_ACK))
        told = watch.stop()
    finally:
        watch.close()
    assert (trigger.rule, trigger.side, trigger.instruct) == ("lost", "secondary", ["secondary"])
    assert 0 <= trigger.t_match_ns - trigger.t_arrival_ns < 2e9
    assert "no acknowledgement within 150 ms" in trigger.detail
    assert len([event for event in told if isinstance(event, Trigger)]) == 1


def test_an_answer_behind_a_step_of_the_hosts_clock_is_not_late(
    link: LinkPair, nodes: Nodes, tmp_path: Path
) -> None:
    told, write_fd = os.pipe()
    config = LinkwatchConfig(
        interface=INTERFACE, namespace=link.secondary.path, pcapng_path=str(tmp_path / "link.pcapng"),
        trigger_fd=-1, event_fd=write_fd, rules=msgspec.convert(ALL_RULES, list[LinkRule]),
        primary_address=P, secondary_address=S, ring_mib=8,
    )  # fmt: skip
    watch = Linkwatch(config)

    def drain(acks: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while watch._last_view.ledger.totals.acks < acks and time.monotonic() < deadline:
            select.select([watch._source], [], [], 0.05)
            watch._drain()
        assert watch._last_view.ledger.totals.acks == acks

    nodes.handshake()
    nodes.epoch(1, 3)
    drain(3)
    nodes.primary(p_data(9, 800, bytes(4096)))
    while watch._last_view.ledger.totals.writes < 4:
        select.select([watch._source], [], [], 0.05)
        watch._drain()
    true_ns = watch._source.realtime_offset_ns
    watch._source.realtime_offset_ns -= 3600 * NS_PER_S  # what it was before the clock was set
    nodes.secondary(p_ack(9, 800, 4096))
    drain(4)
    assert abs(watch._source.realtime_offset_ns - true_ns) < NS_PER_MS
    watch._finish()
    os.close(write_fd)
    with open(told, "rb") as pipe:
        seen = events.Decoder().feed(pipe.read())
    assert not [event for event in seen if isinstance(event, Trigger)]
    assert ["clock was set" in event.text for event in seen if isinstance(event, Note)] == [True]


def test_a_killed_watch_leaves_a_readable_capture(
    link: LinkPair, nodes: Nodes, tmp_path: Path
) -> None:
    watch = Watch(link, tmp_path / "link.pcapng")
    try:
        watch.wait(ProcessReady)
        nodes.handshake()
        nodes.epoch(1, 20)
        while watch.wait(LinkStats).writes < 20:
            pass
        watch.process.send_signal(signal.SIGKILL)
        watch.process.wait(TIMEOUT_S)
    finally:
        watch.close()
    assert sum(len(frame.data) for frame in read_frames(watch.path)) > 20 * 4096


def test_the_end_of_the_interface_ends_the_watch(tmp_path: Path) -> None:
    pair = make_pair()
    watch = Watch(pair, tmp_path / "link.pcapng")
    try:
        watch.wait(ProcessReady)
        pair.primary.run(_delete_interface)
        ended = watch.wait(StreamEnded)
        assert INTERFACE in ended.error
        assert watch.process.wait(TIMEOUT_S) == 0
    finally:
        watch.close()
        pair.close()
    assert list(read_frames(watch.path)) is not None


def bytes_on_disk(folder: Path) -> int:
    """A segment may be dropped between its name and its size."""
    total = 0
    for one in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += one.stat().st_size
    return total


def test_hours_of_link_stay_within_the_bound_and_a_trigger_keeps_its_window(
    link: LinkPair, nodes: Nodes, tmp_path: Path
) -> None:
    # The kernel's ring holds all that this test sends: nothing drops, however late the watch runs.
    watch = Watch(link, tmp_path / "link.pcapng", rules=ALL_RULES, capture_mib=8, ring_mib=64)
    try:
        watch.wait(ProcessReady)
        nodes.handshake()
        for epoch in range(12):
            nodes.epoch(1 + epoch * 32, 32, 65536)
            assert bytes_on_disk(tmp_path) <= 6 << 20
        nodes.primary(p_data(9999, 89600, bytes(65536), digest=b"oops"))
        trigger = watch.wait(Trigger)
        assert watch.process.stdin is not None
        watch.process.stdin.write(events.encode(KeepCapture(t_ns=trigger.t_arrival_ns)))
        watch.process.stdin.flush()
        nodes.secondary(p_ack(9999, 89600, 65536))
        for epoch in range(4):
            nodes.epoch(10000 + epoch * 32, 32, 65536)
        told = watch.stop()
    finally:
        watch.close()
    stats = [event for event in told if isinstance(event, LinkStats)][-1]
    assert stats.first_packet_no > 1 and stats.packets > stats.frames_stored
    assert [event.level for event in told if isinstance(event, Note)] == [
        "info"
    ]  # the window is complete
    assert len(segments(watch.path)) >= 4
    join(watch.path)
    assert watch.path.stat().st_size <= 9 << 20
    view = LinkView(
        LinkEnds(ports=frozenset({7788}), integrity_alg="crc32c"),
        [LinkRule(name="d", event="digest-mismatch")],
    )
    found, first_no = [], 1
    for run in read_runs(watch.path):
        for t_ns, frame, number in view.frames(run.data, first_no, 0):
            found += view.feed(t_ns, frame, number, t_ns)
        first_no += run.frames
    assert first_no - 1 == stats.frames_stored
    assert [(one.sector, one.offset_bytes) for one in found] == [(89600, trigger.offset_bytes)]
    if shutil.which("tshark"):
        wanted = "drbd.sector==89600 && drbd.command==0"
        shown = tshark(watch.path, "-Y", wanted, "-T", "fields", "-e", "frame.number")
        assert shown == [str(trigger.offset_bytes)]


def test_a_killed_watch_leaves_its_segments(link: LinkPair, nodes: Nodes, tmp_path: Path) -> None:
    watch = Watch(link, tmp_path / "link.pcapng", capture_mib=16)
    try:
        watch.wait(ProcessReady)
        nodes.handshake()
        nodes.epoch(1, 64, 65536)
        deadline = time.monotonic() + TIMEOUT_S
        while sum(one.stat().st_size for one in tmp_path.iterdir()) < 64 << 16:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.01)
        watch.process.kill()
        watch.process.wait(TIMEOUT_S)
    finally:
        watch.close()
    assert segments(watch.path)
    join(watch.path)
    # What is on disk when it is killed has blocks around its frames.
    assert sum(len(frame.data) for frame in read_frames(watch.path)) > 60 << 16


def _delete_interface() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname=INTERFACE)[0])


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ({"interface": "nosuch0"}, 3, "there is no interface 'nosuch0'"),
        ({"namespace": "/proc/self/fd/999"}, 3, "network namespace"),
        ({"pcapng_path": "/nonexistent/x.pcapng"}, 3, "/nonexistent/x.pcapng"),
        ({"rules": [{"name": "r", "event": "nonsense"}]}, 2, "allowed: digest-mismatch"),
        ({"colour": "blue"}, 2, "colour"),
    ],
)
def test_what_cannot_be_is_an_error_with_its_exit_code(
    link: LinkPair, tmp_path: Path, config: dict[str, Any], status: int, words: str
) -> None:
    watch = Watch(link, tmp_path / "link.pcapng", **config)
    try:
        assert watch.process.wait(TIMEOUT_S) == status
        assert watch.process.stderr is not None
        text = watch.process.stderr.read().decode()
        assert words in text
        assert "Traceback" not in text
    finally:
        watch.close()
