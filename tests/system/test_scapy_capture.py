"""``[link] capture = "scapy"``: scapy's sniffing before the same judge, from a socket to a run's
outcome."""

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from link_script import S
from scapy.layers.inet import IP
from scapy.packet import Raw
from scapy.sessions import DefaultSession
from scapy.supersocket import SuperSocket
from scapy.utils import rdpcap, wrpcap

from freezeframe.harness.core import events
from freezeframe.harness.core.events import LinkStats, StreamEnded, Trigger
from freezeframe.harness.core.link.skim import blocks
from freezeframe.harness.edge import scapy_link
from freezeframe.harness.edge.netns import INTERFACE, LinkPair, make_pair, missing_capabilities
from freezeframe.harness.edge.packet_ring import InterfaceGone
from freezeframe.harness.edge.ring_socket import RingSocket
from freezeframe.harness.edge.scapy_layers import Drbd
from freezeframe.harness.edge.scapy_source import MAX_QUEUED_FRAMES, ScapySource, open_socket
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.store import StoredIncident

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()),
        reason=f"needs {', '.join(missing_capabilities())}: run as root",
    ),
]
TIMEOUT_S = 30.0
GOLDEN = Path(__file__).parents[1] / "golden" / "drbd"
SUPPORT = Path(__file__).parents[1] / "support"


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


def numbers_of(source: ScapySource, count: int) -> list[int]:
    """Numbers of the datagrams, until ``count`` have come or none more do."""
    found: list[int] = []
    deadline = time.monotonic() + TIMEOUT_S
    while len(found) < count and time.monotonic() < deadline:
        run = source.read_run(0.2)
        view = memoryview(b"" if run is None else run.data)
        for at, _, length, t_ns in blocks(view):
            if length == 1042 and view[at + 23] == 17:
                assert abs(t_ns - time.time_ns()) < 60e9
                found.append(int.from_bytes(view[at + 42 : at + 46], "big"))
    return found


@pytest.mark.parametrize("scapy_socket", ["", "scapy.arch.linux:L2ListenSocket"])
def test_every_frame_comes_once_and_silence_is_known(link: LinkPair, scapy_socket: str) -> None:
    opened = open_socket(
        INTERFACE, namespace=link.secondary.path, ring_bytes=16 << 20, scapy_socket=scapy_socket
    )
    source = ScapySource(opened, INTERFACE)
    try:
        send_datagrams(link, 40, 1000)  # fit into the buffer of any packet socket
        assert sorted(numbers_of(source, 40)) == list(range(40))
        deadline = time.monotonic() + TIMEOUT_S
        while not source.is_drained() and time.monotonic() < deadline:
            source.read_run(0.1)
        assert source.is_drained()
        assert source.read_run() is None
        assert source.notes == ()
        assert source.statistics().received >= 40
        assert source.statistics().dropped == 0
    finally:
        source.close()


class Held(SuperSocket):  # type: ignore[misc]
    """A socket whose frames come when the test says so."""

    def __init__(self, frames: int) -> None:
        self.ins, self.outs = socket.socketpair()
        self.ins.setblocking(False)
        self.left = frames

    def recv(self, x: int = 0, **_: Any) -> Raw | None:
        try:
            self.ins.recv(1)
        except BlockingIOError:
            return None
        packet = Raw(bytes(60))
        packet.time = time.time()
        return packet

    def give(self, count: int) -> None:
        self.outs.sendall(bytes(count))


def test_a_full_queue_holds_the_sniffer_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freezeframe.harness.edge.scapy_source.MAX_QUEUED_FRAMES", 4)
    assert MAX_QUEUED_FRAMES > 4
    held = Held(0)
    source = ScapySource(held, "held")
    try:
        assert "does not say how many frames it drops" in source.notes[0]
        held.give(20)
        frames, most = 0, 0
        deadline = time.monotonic() + TIMEOUT_S
        while frames < 20 and time.monotonic() < deadline:
            assert frames == 20 or not source.is_drained()
            run = source.read_run(0.5)
            if run is not None:
                frames, most = frames + run.frames, max(most, run.frames)
        assert (frames, most <= 4) == (20, True)
    finally:
        source.close()


def test_closing_does_not_wait_for_a_sniffer_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freezeframe.harness.edge.scapy_source.MAX_QUEUED_FRAMES", 1)
    held = Held(0)
    source = ScapySource(held, "held")
    held.give(9)
    assert select.select([source], [], [], TIMEOUT_S)[0]
    source.close()
    assert not source._sniffer.thread.is_alive()


def test_a_source_that_ends_says_so_once_all_of_it_is_read(tmp_path: Path) -> None:
    from scapy.utils import PcapReader

    capture = GOLDEN / "small-handshake.pcap"
    source = ScapySource(PcapReader(str(capture)), "file")
    frames = 0
    try:
        with pytest.raises(InterfaceGone, match="scapy's capture on file has ended"):
            while True:
                run = source.read_run(0.2)
                frames += 0 if run is None else run.frames
    finally:
        source.close()
    assert frames == len(rdpcap(str(capture))) == 60


def test_times_of_another_clock_are_moved_and_their_distances_kept(tmp_path: Path) -> None:
    from scapy.utils import PcapReader

    bare = tmp_path / "bare.pcap"  # raw IP: an Ethernet header comes in front
    frames = [frame for frame in rdpcap(str(GOLDEN / "small-handshake.pcap")) if IP in frame]
    for frame in frames:
        frame[IP].time = frame.time
    wrpcap(str(bare), [frame[IP] for frame in frames])
    source = ScapySource(PcapReader(str(bare)), "file")
    found: list[tuple[int, bytes]] = []
    try:
        while len(found) < len(frames):
            run = source.read_run(1.0)
            view = memoryview(b"" if run is None else run.data)
            found += [(t_ns, bytes(view[at : at + size])) for at, size, _, t_ns in blocks(view)]
    finally:
        source.close()
    assert abs(found[0][0] - time.time_ns()) < 60e9
    apart = [t_ns - found[0][0] for t_ns, _ in found]
    assert apart == pytest.approx([float(f.time - frames[0].time) * 1e9 for f in frames], abs=2e3)
    assert [data[14:] for _, data in found] == [bytes(frame[IP]) for frame in frames]


def linkwatch(
    tmp_path: Path, config: dict[str, Any], **environment: str
) -> tuple[int, list[Any], str]:
    """A link watch that runs until its source ends, or its stdin does: (status, events, stderr)."""
    plain = {"interface": INTERFACE, "pcapng_path": str(tmp_path / "link.pcapng"), "trigger_fd": -1}
    paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, "-m", "freezeframe.harness.watch.linkwatch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdin.write(json.dumps(plain | config).encode() + b"\n")
    child.stdin.flush()
    told = events.Decoder().feed(child.stdout.read())
    errors = child.stderr.read().decode()
    status = child.wait(TIMEOUT_S)
    for pipe in (child.stdin, child.stdout, child.stderr):
        pipe.close()
    return status, told, errors


def test_a_drivers_capture_file_is_judged_and_its_end_is_lost_evidence(tmp_path: Path) -> None:
    status, told, _ = linkwatch(
        tmp_path,
        {
            "capture": "scapy",
            "scapy_socket": "scapy_sockets:from_file",
            "rules": [{"name": "digest", "event": "digest-mismatch"}],
            "integrity_alg": "crc32c",
        },
        SCAPY_SOURCE=str(GOLDEN / "small-failure.pcap"),
    )
    assert status == 0
    (trigger,) = [one for one in told if isinstance(one, Trigger)]
    assert (trigger.rule, trigger.side, trigger.sector) == ("digest", "primary", 89600)
    (ended,) = [one for one in told if isinstance(one, StreamEnded)]
    assert "has ended" in ended.error
    assert [one for one in told if isinstance(one, LinkStats)][-1].packets == 163


def test_a_driver_that_fails_is_named(tmp_path: Path) -> None:
    config = {"capture": "scapy", "scapy_socket": "scapy_sockets:broken"}
    status, _, errors = linkwatch(tmp_path, config)
    assert status == RigError.exit_code
    assert f"scapy socket scapy_sockets:broken cannot be opened on {INTERFACE}" in errors
    assert f"no tap on {INTERFACE}" in errors


def bench_file(tmp_path: Path) -> Path:
    """The built-in simulated bench, captured by scapy."""
    from freezeframe.harness.bench.benchfile import load_bench

    built_in = load_bench("sim").path
    text = built_in.read_text().replace("[link]\n", '[link]\ncapture = "scapy"\n')
    text = text.replace('"rules/', f'"{built_in.parent}/rules/')
    path = tmp_path / "scapy.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("scenario", "rule"), [("clean", None), ("neg_ack", "link-neg-ack")])
def test_a_run_whose_link_scapy_captures_ends_as_with_the_ring(
    tmp_path: Path, scenario: str, rule: str | None
) -> None:
    argv = [sys.executable, "-m", "freezeframe.harness.cli", "run", scenario, "--bench"]
    argv += [str(bench_file(tmp_path)), "--seed", "7", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run([*argv, "--keep"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = StoredIncident.open(Path(json.loads(done.stdout)["incident"]))
    trigger, capture = stored.raw["trigger"], stored.raw["capture"]
    assert (trigger is None) == (rule is None)
    triggers = [one["rule"] for one in [trigger, *stored.raw["more_triggers"]] if one]
    assert rule is None or rule in triggers
    assert (capture["kernel_drops"], capture["gaps"]) == (0, 0)
    assert capture["writes"] == capture["digests_checked"] > 100


SNIFFING = """
import sys
assert "scapy" not in sys.modules

def test_packets(pair, link, faults):
    from freezeframe import FaultTable
    faults.arm(FaultTable(kind="neg_ack", at_write=3))
    sniffer = link.sniffer()
    pair.write()
    pair.await_trigger()
    sniffer.stop()
    from freezeframe.link import Drbd
    names = [packet[Drbd].sprintf("%cmd%") for packet in link.packets()]
    assert names.count("P_NEG_ACK") == 1
    live = [packet[Drbd].sprintf("%cmd%") for packet in sniffer.results if Drbd in packet]
    assert live.count("P_NEG_ACK") == 1
    assert live.count("P_DATA") <= names.count("P_DATA")

def test_sniff(pair, link):
    from freezeframe.link import Drbd
    pair.write()
    one = link.sniff(count=1, timeout=20, lfilter=lambda packet: Drbd in packet)
    assert len(one) == 1
"""


def test_a_tests_link_gives_its_packets_and_sniffs(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SNIFFING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_sniff_takes_scapys_arguments_and_closes_its_ring(link: LinkPair) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    sniffer = scapy_link.started_sniffer(
        INTERFACE, namespace=link.secondary.path, session=DefaultSession(), count=3
    )
    send_datagrams(link, 30, 100)
    sniffer.join(TIMEOUT_S)
    assert len(sniffer.results) == 3
    assert not [one for one in sniffer.results if Drbd in one]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_undissected_ring_gives_the_frames_bytes(link: LinkPair) -> None:
    ring = RingSocket(INTERFACE, namespace=link.secondary.path, ring_bytes=1 << 20, layer=Raw)
    try:
        send_datagrams(link, 1, 100)
        deadline = time.monotonic() + TIMEOUT_S
        while not ring.has_frames and time.monotonic() < deadline:
            select.select([ring], [], [], 0.1)
        packet = ring.recv()
        assert type(packet) is Raw
        assert struct.unpack_from(">H", packet.load, 12)[0] in (0x0800, 0x0806)
    finally:
        ring.close()
