"""tshark and scapy as live watchers of a replication link: what each has told of it soon after the
last write.

tshark lists the writes with its DRBD heuristic and checks no digest; scapy's AsyncSniffer takes
each frame apart as far as TCP's payload. Both run at the priority that ours gives itself, on any
processor.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.common import NAN, cpu_seconds, peers_python, running
from freezeframe.harness.edge.netns import INTERFACE, LinkPair
from freezeframe.harness.watch.linkwatch import NICE

TSHARK: Final = "tshark"
SCAPY: Final = "scapy AsyncSniffer"
P_DATA: Final = "0x0000"
HEURISTIC: Final = ("--enable-heuristic", "drbd_tcp", "-T", "fields", "-e", "drbd.command")
HANDED_OVER_S: Final = 1.5
"""libpcap's tools let the kernel keep a block that is not full for a second. What is told later
still is not live."""
SNIFFER: Final = """
import struct, sys, time
from scapy.config import conf
from scapy.layers.inet import TCP
from scapy.sendrecv import AsyncSniffer
frames = size = 0
def look(frame):
    global frames, size
    frames += 1
    size += len(frame[TCP].payload) if TCP in frame else 0
listener = conf.L2listen(iface=sys.argv[1])
SOL_PACKET, PACKET_STATISTICS = 263, 6
listener.ins.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)  # begins anew: scapy throws away what came before
sniffer = AsyncSniffer(opened_socket=listener, store=False, prn=look)
sniffer.start()
time.sleep(1)
print("ready", flush=True)
sys.stdin.readline()
read = frames
arrived, _ = struct.unpack("II", listener.ins.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
print(arrived - read, flush=True)
"""


@dataclass
class Told:
    """Filled in when the watching ends."""

    frames_lost: float = NAN
    """scapy: those that arrived and were not read in time, too."""
    writes: float = NAN
    cpu_s: float = NAN


def inside(link: LinkPair, *argv: str) -> list[str]:
    """A peer's command, with the priority that ours gives itself."""
    return ["nsenter", f"--net={link.secondary.path}", "nice", "-n", str(NICE), *argv]


@contextlib.contextmanager
def by_tshark(
    link: LinkPair,
    directory: Path,
    only: str = "drbd",
    fields: Sequence[str] = HEURISTIC,
    write: str = P_DATA,
) -> Iterator[Told]:
    """``only``: a display filter; ``write``: how a write is listed in these ``fields``."""
    told, listed, said = Told(), directory / "listed", directory / "said"
    # -l: each write is told when it is seen; -Y: nothing is printed for the other frames.
    argv = inside(link, "tshark", "-n", "-l", "-i", INTERFACE, "-B", "64", "-Y", only, *fields)
    environment = os.environ | {"TMPDIR": str(directory)}
    with (
        listed.open("wb") as output,
        said.open("wb") as errors,
        running(argv, stdout=output, stderr=errors, env=environment) as child,
    ):
        deadline = time.monotonic() + 20
        while b"Capturing on" not in said.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        before_s = cpu_seconds(child.pid, children=True)
        yield told
        time.sleep(HANDED_OVER_S)
        told.cpu_s = cpu_seconds(child.pid, children=True) - before_s
        told.writes = listed.read_text().count(write)
        # The end of the capture comes at once; it then reads what it has not yet read, which is not
        # waited for.
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
            dropped = re.search(r"(\d+) packets? dropped", said.read_text())
            told.frames_lost = int(dropped[1]) if dropped else 0


@contextlib.contextmanager
def by_scapy(link: LinkPair, _directory: Path) -> Iterator[Told]:
    told = Told()
    argv = inside(link, peers_python(), "-c", SNIFFER, INTERFACE)
    with running(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        before_s = cpu_seconds(child.pid)
        yield told
        time.sleep(HANDED_OVER_S)
        told.cpu_s = cpu_seconds(child.pid) - before_s
        told.frames_lost = int(child.communicate(b"\n", timeout=60)[0])
