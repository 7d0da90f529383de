"""A standing simulated pair between what the field puts beside a healthy link: a stray RST that both ends ignore,
and a mirror port that carries one direction."""

import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, changed, simulated_bench
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from freezeframe.harness.edge.netns import (
    INTERFACE,
    PRIMARY_ADDRESS,
    Namespace,
    missing_capabilities,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
LIMIT_S = 300
BULK_BYTES = 4096
AFTER_WRITES = 4


class StrayReset(threading.Thread):
    """Behind a write of the primary it sends one RST whose sequence number is 2e9 below the window: every
    TCP ignores it (RFC 9293 3.10.7.4)."""

    def __init__(self, namespace: Path) -> None:
        super().__init__(daemon=True)
        self.is_sent = threading.Event()
        self._at = Namespace.open(namespace)
        self._socket = self._at.run(self._open)

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((INTERFACE, 0))
        made.settimeout(LIMIT_S)
        return made

    def run(self) -> None:
        seen = 0
        while seen < AFTER_WRITES:
            frame = Ether(self._socket.recv(1 << 17))
            is_write = IP in frame and TCP in frame and frame[IP].src == PRIMARY_ADDRESS
            seen += is_write and len(frame) > BULK_BYTES
        tcp = frame[TCP]
        far = (tcp.seq - 2_000_000_000) % 2**32
        reset = TCP(sport=tcp.sport, dport=tcp.dport, seq=far, flags="R")
        ends = Ether(src=frame.src, dst=frame.dst) / IP(src=frame[IP].src, dst=frame[IP].dst)
        self._socket.send(bytes(ends / reset))
        self.is_sent.set()

    def close(self) -> None:
        self.join(LIMIT_S)
        self._socket.close()
        self._at.close()


def run(folder: Path, bench: Path) -> tuple[int, dict[str, Any]]:
    """A run without a fault, and of 16 writes."""
    short = changed(bench, r"^bytes_mib = .*", "bytes_mib = 1")
    done = subprocess.run(
        [*COMMAND, "run", "clean", "--bench", str(short), "--out", str(folder / "incidents"), "--json"],
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def mirrored(namespace: Path) -> None:
    """A mirror port "mir0" in the secondary's namespace that carries what comes to it, and nothing that it sends."""

    def make() -> None:
        for line in (
            "ip link add mir0 type veth peer name mir1",
            "ip link set mir0 mtu 9200 up",
            "ip link set mir1 mtu 9200 up",
            f"tc qdisc add dev {INTERFACE} ingress",
            f"tc filter add dev {INTERFACE} parent ffff: protocol all u32 match u32 0 0 "
            "action mirred egress mirror dev mir1",
        ):
            subprocess.run(line.split(), check=True, timeout=LIMIT_S)

    at = Namespace.open(namespace)
    at.run(make)
    at.close()


@pytest.mark.skipif(shutil.which("tc") is None, reason="needs tc")
def test_a_healthy_pair_beside_a_stray_reset_and_half_a_mirror(tmp_path: Path) -> None:
    with simulated_bench(tmp_path) as bench:
        stray = StrayReset(bench.with_name("primary.netns"))
        stray.start()
        status, told = run(tmp_path, bench)
        stray.close()
        assert stray.is_sent.is_set()
        assert (status, told["outcome"]) == (0, "pass")

        mirrored(bench.with_name("secondary.netns"))
        status, told = run(tmp_path, changed(bench, r'^interface = "repl0"', 'interface = "mir0"'))
        assert (status, told["outcome"]) == (4, "inconclusive")
        assert f"no frame to {PRIMARY_ADDRESS}, which writes, was captured" in json.dumps(told)
