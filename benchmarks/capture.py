"""Capture: frames of 64, 1500 and 9000 bytes over a veth link at a given rate, into a file in memory; how many are in it.

Ours is ``harness.linkwatch`` as a run starts it. dumpcap and tcpdump have a buffer of 64 MiB, as ours; scapy is its
AsyncSniffer with a counter only.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import (
    Options,
    Result,
    Target,
    compiled,
    cpu_seconds,
    main,
    peers_python,
    running,
    scratch,
)
from benchmarks.link_load import watching
from harness.edge.netns import INTERFACE, LinkPair, make_pair
from harness.edge.pcapng import read_frames

SIZES = {
    64: (50_000, 100_000, 200_000, 400_000),
    1500: (50_000, 100_000, 200_000),
    9000: (10_000, 20_000, 40_000),
}
SCAPY_LEAST = 500
"""Frames a second; where scapy loses some of these already, it counts as if it had not."""
SCAPY = """
import sys
from scapy.sendrecv import AsyncSniffer
count = 0
def one(_):
    global count
    count += 1
sniffer = AsyncSniffer(iface=sys.argv[1], store=False, prn=one)
sniffer.start()
import time
time.sleep(1)
print("ready", flush=True)
sys.stdin.readline()
time.sleep(1)
sniffer.stop()
print(count, flush=True)
"""


def inside(link: LinkPair, *argv: str) -> list[str]:
    return ["nsenter", f"--net={link.secondary.path}", *argv]


def frames_in(capture: Path) -> int:
    return sum(1 for frame in read_frames(capture) if frame.data[12:14] == b"\x88\xb5")


def blast(program: Path, link: LinkPair, size: int, count: int, pps: int) -> None:
    argv = ["nsenter", f"--net={link.primary.path}", str(program), INTERFACE, str(size), str(count), str(pps)]
    subprocess.run(argv, check=True, capture_output=True)


def contest(
    name: str, program: Path, link: LinkPair, capture: Path, shape: tuple[int, int, int]
) -> tuple[int, float]:
    """(frames captured, CPU seconds)."""
    if name == "FreezeFrame linkwatch":
        with watching(link, capture, max_mib=8192) as watch:
            blast(program, link, *shape)
            time.sleep(0.3)
            stats, _, cpu_s, _ = watch.stop()
        return stats.packets, cpu_s
    if name == "scapy AsyncSniffer":
        argv = inside(link, peers_python(), "-c", SCAPY, INTERFACE)
        with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            assert child.stdin is not None
            child.stdout.readline()
            blast(program, link, *shape)
            cpu_s = cpu_seconds(child.pid)
            child.stdin.write(b"\n")
            child.stdin.flush()
            return int(child.stdout.readline()), cpu_s
    command = {
        "dumpcap -B 64": ["dumpcap", "-q", "-i", INTERFACE, "-B", "64", "-w", str(capture)],
        "tcpdump -B 65536": ["tcpdump", "-Z", "root", "-i", INTERFACE, "-B", "65536", "-w", str(capture)],
    }[name]
    with running(inside(link, *command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        time.sleep(1.0)
        blast(program, link, *shape)
        time.sleep(0.5)
        cpu_s = cpu_seconds(child.pid)
        child.send_signal(signal.SIGINT)
        child.wait(20)
    return frames_in(capture), cpu_s


def measure(options: Options) -> Result:
    peers_python()
    names = ["FreezeFrame linkwatch"]
    names += [name for name in ("dumpcap -B 64", "tcpdump -B 65536") if shutil.which(name.split()[0])]
    names.append("scapy AsyncSniffer")
    rows: list[list[object]] = []
    targets = []
    with scratch(memory=True) as directory, contextlib.closing(make_pair(mtu_bytes=9000)) as link:
        program = compiled("blast", directory)
        for size, rates in SIZES.items():
            best = dict.fromkeys(names, 0)
            for pps in rates:
                count = int(pps * options.seconds)
                for _ in range(options.rounds):
                    for name in names:
                        if name == "scapy AsyncSniffer":
                            continue
                        got, cpu_s = contest(name, program, link, directory / "c.pcapng", (size, count, pps))
                        rows.append(
                            [f"{size} bytes, {pps:,}/s", name, f"{got / count:.4f}", cpu_s / count * 1e6]
                        )
                        best[name] = max(best[name], pps) if got >= count else best[name]
                        print(*rows[-1], file=sys.stderr)
            scapy_pps = SCAPY_LEAST
            while (
                contest(names[-1], program, link, directory / "c", (size, scapy_pps, scapy_pps))[0]
                >= scapy_pps
            ):
                best[names[-1]], scapy_pps = scapy_pps, scapy_pps * 2
            rows.append([f"{size} bytes", names[-1], f"whole up to {best[names[-1]]}/s", 0.0])
            ours = best[names[0]]
            if len(names) > 2:
                targets.append(
                    Target(
                        f"{size} bytes: rate without loss against dumpcap's", ours / max(1, best[names[1]]), 1
                    )
                )
            targets.append(
                Target(f"{size} bytes: against scapy", ours / max(SCAPY_LEAST, best[names[-1]]), 100)
            )
    columns = ["frames", "who", "captured", "CPU us a frame"]
    return Result("capture", "Capture without loss", columns, rows, targets)


if __name__ == "__main__":
    main(measure, rounds=1, seconds=1.0)
