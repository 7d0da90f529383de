"""Link watch: replication traffic of 64 KiB writes over a veth link, captured, recorded, dissected, every digest checked;
and the dissection of the capture file against tshark and scapy.

Live: the fastest rate without a lost frame, with the link watch held on one core. Offline: the same file through
``harness.core`` (reassembly, packets, ledger, digests), ``tshark -V``'s fields, and scapy's reader with our DRBD layers.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import Options, Result, Target, have, main, peers_python, running, scratch
from benchmarks.link_load import traffic, watching
from harness.edge.netns import make_pair

SIZE = 65536
RATES_MB_S = (100.0, 125.0, 150.0, 200.0, 300.0)
OFFLINE = """
import sys, time
from pathlib import Path
from harness.core.linkview import LinkEnds, LinkView
from harness.edge.pcapng import read_frames
from harness.wire import drbd
view = LinkView(LinkEnds(ports=frozenset({drbd.PORT})), [])
start = time.perf_counter()
for number, frame in enumerate(read_frames(Path(sys.argv[1])), 1):
    view.feed(frame.t_ns, frame.data, number, frame.t_ns)
totals = view.ledger.totals
print(time.perf_counter() - start, totals.writes, totals.digests_checked, totals.digests_wrong)
"""
SCAPY = """
import sys, time
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader
start, count = time.perf_counter(), 0
for raw, _ in RawPcapReader(sys.argv[1]):
    frame = Ether(raw)
    count += len(bytes(frame[TCP].payload)) if TCP in frame else 0
print(time.perf_counter() - start, count)
"""


def live(directory: Path, mb_per_s: float, seconds: float) -> dict[str, float]:
    """One run at one rate."""
    writes = int(mb_per_s * 1e6 * seconds / SIZE) // 64 * 64
    link = make_pair()
    with contextlib.closing(link), contextlib.ExitStack() as stack:
        watch = stack.enter_context(watching(link, directory / "live.pcapng"))
        os.sched_setaffinity(watch.child.pid, {0})
        receiver = stack.enter_context(running(traffic("receiver", link, SIZE, 0, 0), stdout=subprocess.PIPE))
        assert receiver.stdout is not None
        receiver.stdout.readline()
        sender = stack.enter_context(
            running(traffic("sender", link, SIZE, writes, mb_per_s), stdout=subprocess.PIPE)
        )
        assert sender.stdout is not None
        took_s = float(sender.stdout.readline())
        time.sleep(0.1)
        stats, _, cpu_s, peak = watch.stop()
    return {
        "asked": mb_per_s, "mb_s": writes * SIZE / took_s / 1e6, "drops": stats.kernel_drops, "gaps": stats.gaps,
        "writes": writes, "checked": stats.digests_checked, "cpu": cpu_s / took_s, "peak": peak,
        "capacity": writes * SIZE / cpu_s / 1e6,
    }  # fmt: skip


def offline(capture: Path) -> dict[str, float]:
    """Seconds a reader needs for the file."""
    took = {}
    argv = [sys.executable, "-c", OFFLINE, str(capture)]
    took["FreezeFrame"] = float(
        subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[0]
    )
    if have("tshark"):
        start = time.perf_counter()
        argv = [
            "tshark",
            "-r",
            str(capture),
            "--enable-heuristic",
            "drbd_tcp",
            "-T",
            "fields",
            "-e",
            "drbd.command",
        ]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took["tshark"] = time.perf_counter() - start
    out = subprocess.run(
        [peers_python(), "-c", SCAPY, str(capture)], check=True, capture_output=True, text=True
    )
    took["scapy (Ether/IP/TCP only)"] = float(out.stdout.split()[0])
    return took


def measure(options: Options) -> Result:
    rows: list[list[object]] = []
    best = capacity = 0.0
    peak = 0.0
    with scratch(memory=True) as directory:
        for rate in RATES_MB_S:
            runs = [live(directory, rate, options.seconds) for _ in range(options.rounds)]
            run = max(
                runs, key=lambda one: (one["drops"] == 0 and one["checked"] == one["writes"], one["mb_s"])
            )
            whole = run["drops"] == 0 and run["gaps"] == 0 and run["checked"] == run["writes"]
            rows.append(
                [f"live, {rate:g} MB/s asked", f"{run['mb_s']:.0f} MB/s", f"{run['capacity']:.0f} MB/s a core",
                 f"drops {run['drops']}, gaps {run['gaps']}, digests {run['checked']} of {run['writes']}"]
            )  # fmt: skip
            best = max(best, run["mb_s"]) if whole else best
            capacity, peak = max(capacity, run["capacity"]), max(peak, run["peak"])
            if not whole:
                break
        live(directory, 100.0, 1.0)
        capture = directory / "live.pcapng"
        size_mb = capture.stat().st_size / 1e6
        rounds = [offline(capture) for _ in range(options.rounds)]
    took = {name: min(one[name] for one in rounds) for name in rounds[0]}
    for name, seconds in took.items():
        rows.append(
            [
                f"offline, {name}",
                f"{size_mb / seconds:.1f} MB/s",
                f"{seconds:.2f} s",
                f"{size_mb:.0f} MB file",
            ]
        )
    targets = [
        Target("live without loss, every digest checked", best, 125, unit="MB/s"),
        Target("link watch, peak memory with its 64 MiB ring", peak, 256, at_least=False, unit="MiB"),
        Target("offline against scapy", took["scapy (Ether/IP/TCP only)"] / took["FreezeFrame"], 40),
    ]
    if "tshark" in took:
        targets.append(Target("offline against tshark", took["tshark"] / took["FreezeFrame"], 10))
    notes = [f"What one core could take, by the CPU time used: {capacity:.0f} MB/s."]
    return Result("link", "Link watch", ["what", "rate", "", "checked"], rows, targets, notes)


if __name__ == "__main__":
    main(measure, rounds=2, seconds=3.0)
