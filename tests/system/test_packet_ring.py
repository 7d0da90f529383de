"""The capture ring on a real link: every frame once with its time, drops counted, errors that name
the thing."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from link_script import (
    S,
)

from freezeframe.harness.core.link.skim import blocks
from freezeframe.harness.edge.netns import INTERFACE, LinkPair, make_pair, missing_capabilities
from freezeframe.harness.edge.packet_ring import PacketRing
from freezeframe.harness.errors import RigError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()),
        reason=f"needs {', '.join(missing_capabilities())}: run as root",
    ),
]
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def link() -> Iterator[LinkPair]:
    pair = make_pair()
    yield pair
    pair.close()


def send_datagrams(link: LinkPair, count: int, size: int) -> None:
    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(count):
                sender.sendto(number.to_bytes(4, "big") + bytes(size - 4), (S, 9))

    link.primary.run(run)


def test_every_frame_of_a_burst_is_captured_with_its_time(link: LinkPair) -> None:
    ring = PacketRing(INTERFACE, namespace=link.secondary.path, ring_bytes=16 << 20)
    try:
        before_ns = time.monotonic_ns()
        send_datagrams(link, 2000, 1000)
        numbers: list[int] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(numbers) < 2000 and time.monotonic() < deadline:
            run = ring.read_run(0.2)
            view = memoryview(b"" if run is None else run.data)
            for at, _, length, t_ns in blocks(view):
                if length == 1042 and view[at + 23] == 17:
                    assert before_ns - 10e6 <= ring.monotonic(t_ns) <= time.monotonic_ns() + 10e6
                    numbers.append(int.from_bytes(view[at + 42 : at + 46], "big"))
        # While the neighbour's address is asked for, the first datagrams wait, and others overtake
        # them.
        assert sorted(numbers) == list(range(2000))
        assert ring.statistics().dropped == 0
    finally:
        ring.close()


def test_drops_of_a_ring_that_nobody_reads_are_counted_and_add_up(link: LinkPair) -> None:
    ring = PacketRing(INTERFACE, namespace=link.secondary.path, ring_bytes=1 << 18)
    try:
        send_datagrams(link, 1500, 1000)
        first = ring.statistics()
        assert first.received >= 1500
        assert first.dropped > 0
        assert ring.statistics().dropped >= first.dropped
    finally:
        ring.close()


def test_a_block_behind_a_loss_says_so_until_the_counters_are_read(link: LinkPair) -> None:
    ring = PacketRing(INTERFACE, namespace=link.secondary.path, ring_bytes=1 << 18)
    try:
        ring.read_run(0.2)
        assert not ring.has_lost
        send_datagrams(link, 1500, 1000)
        while (
            ring.read_run(0.1) is not None
        ):  # what was kept before the loss: these blocks may not know of it yet
            pass
        send_datagrams(link, 1, 1000)
        deadline = time.monotonic() + TIMEOUT_S
        while not ring.has_lost and time.monotonic() < deadline:
            ring.read_run(0.2)
        assert ring.has_lost
        assert ring.statistics().dropped > 0
        assert not ring.has_lost
    finally:
        ring.close()


def test_ring_errors_name_the_thing(link: LinkPair) -> None:
    with pytest.raises(RigError, match=r"no interface 'eth77'.*there are: lo, repl0"):
        PacketRing("eth77", namespace=link.secondary.path)
    lonely = make_pair()
    try:
        lonely.primary.run(_set_down)
        with pytest.raises(RigError, match=f"interface {INTERFACE} .*is down: ip link set"):
            PacketRing(INTERFACE, namespace=lonely.primary.path)
    finally:
        lonely.close()


def _set_down() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=INTERFACE)[0], state="down")


def test_without_the_capability_the_error_names_it(link: LinkPair) -> None:
    code = (
        "import os; os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from freezeframe.harness.edge.packet_ring import PacketRing\n"
        "try: PacketRing('lo')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    if "Permission" in told.stderr or "ModuleNotFound" in told.stderr:
        code = code.replace("import os;", "import os, freezeframe.harness.edge.packet_ring;")
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
        )
    assert told.stdout.startswith("RigError capturing on lo needs the capability CAP_NET_RAW"), (
        told.stderr
    )


def test_scapy_sniffs_on_the_ring(link: LinkPair) -> None:
    from scapy.layers.inet import UDP
    from scapy.sendrecv import AsyncSniffer, sniff

    from freezeframe.harness.edge.ring_socket import RingSocket

    ring = RingSocket(INTERFACE, namespace=link.secondary.path, ring_bytes=4 << 20)
    try:
        send_datagrams(link, 5, 100)
        found = sniff(
            opened_socket=ring,
            lfilter=lambda p: UDP in p and p[UDP].dport == 9,
            count=5,
            timeout=TIMEOUT_S,
        )
        assert [int.from_bytes(bytes(p[UDP].payload)[:4], "big") for p in found] == [0, 1, 2, 3, 4]
        assert abs(float(found[0].time) - time.time()) < 60
        sniffer = AsyncSniffer(
            opened_socket=ring, lfilter=lambda p: UDP in p and p[UDP].dport == 9, count=3
        )
        sniffer.start()
        send_datagrams(link, 3, 100)
        sniffer.join(TIMEOUT_S)
        assert len(sniffer.results) == 3
    finally:
        ring.close()


@pytest.mark.parametrize(
    "tags", [b"\x81\x00\x00\x05", b"\x88\xa8\x00\x07\x81\x00\x00\x05"], ids=["802.1Q", "QinQ"]
)
def test_a_tagged_frame_is_recorded_as_it_was_sent(link: LinkPair, tags: bytes) -> None:
    plain = bytes.fromhex("020000000001020000000002") + b"\x08\x00" + bytes(100)
    sent = plain[:12] + tags + plain[12:]
    ring = PacketRing(INTERFACE, namespace=link.secondary.path, ring_bytes=16 << 20)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((INTERFACE, 0))
            out.send(sent)

    found: list[bytes] = []
    try:
        link.primary.run(send)
        deadline = time.monotonic() + TIMEOUT_S
        while not found and time.monotonic() < deadline:
            run = ring.read_run(0.2)
            view = memoryview(b"" if run is None else run.data)
            frames = [bytes(view[at : at + length]) for at, length, _, _ in blocks(view)]
            found = [frame for frame in frames if frame[:12] == sent[:12]]
    finally:
        ring.close()
    assert found == [sent]
