"""Link watch: replication traffic of 64 KiB writes over a veth link of MTU 1500, captured, recorded, dissected, every
digest checked; and the dissection of the capture file against tshark and scapy.

Live: the fastest rate without a lost frame, with the link watch held on one core. Offline: the same file through
``harness.core`` (reassembly, packets, ledger, digests), through tshark, which lists each DRBD command and checks no digest,
and its beginning through scapy's reader, which goes no further than TCP's payload.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import (
    Options,
    Result,
    Target,
    cpu_seconds,
    have,
    main,
    median,
    peers_python,
    running,
    scratch,
)
from benchmarks.link_load import traffic, watching
from harness.core import skim
from harness.core.skim import survey
from harness.edge.netns import make_pair
from harness.edge.pcapng import first_packet_at

SIZE = 65536
MTU_BYTES = 1500
RATES_MB_S = (100.0, 125.0, 150.0, 200.0, 300.0)
OFFLINE = """
import sys
from pathlib import Path
from harness.core.linkview import LinkEnds, LinkView
from harness.edge.pcapng import read_runs
from harness.wire import drbd
view, first_no = LinkView(LinkEnds(ports=frozenset({drbd.PORT})), []), 1
for run in read_runs(Path(sys.argv[1])):
    for t_ns, frame, number in view.frames(run.data, first_no, 0):
        view.feed(t_ns, frame, number, t_ns)
    first_no += run.frames
totals = view.ledger.totals
print(totals.writes, totals.digests_checked, totals.digests_wrong)
"""
PURE = "import sys; sys.modules['harness.core._native'] = None\n" + OFFLINE
OURS, SCAPY_NAME = "FreezeFrame", "scapy (Ether/IP/TCP only)"
P_DATA = "0x0000"
OFFLINE_SECONDS = 4.0
SCAPY_BYTES = 24_000_000
"""It reads some 4 MB/s."""
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
    link = make_pair(mtu_bytes=MTU_BYTES)
    with contextlib.closing(link), contextlib.ExitStack() as stack:
        watch = stack.enter_context(watching(link, directory / "live.pcapng"))
        os.sched_setaffinity(watch.child.pid, {0})
        started_s = cpu_seconds(watch.child.pid)
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
        "writes": writes, "checked": stats.digests_checked, "cpu": (cpu_s - started_s) / took_s, "peak": peak,
    }  # fmt: skip


def offline(capture: Path, beginning: Path, writes: int) -> dict[str, float]:
    """MB/s of each reader, from the start of its process to its end; scapy without its start, and only the beginning."""
    commands = {
        OURS: [sys.executable, "-c", OFFLINE, str(capture)],
        "FreezeFrame without its C module": [sys.executable, "-c", PURE, str(capture)],
        SCAPY_NAME: [peers_python(), "-c", SCAPY, str(beginning)],
    }
    if have("tshark"):
        options = ["--enable-heuristic", "drbd_tcp", "-T", "fields", "-e", "drbd.command"]
        commands["tshark"] = ["tshark", "-r", str(capture), *options]
    rates = {}
    for name, argv in commands.items():
        start = time.perf_counter()
        told = subprocess.run(
            argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        took_s = float(told.split()[0]) if name == SCAPY_NAME else time.perf_counter() - start
        if name.startswith("FreezeFrame"):
            assert told.split() == [str(writes), str(writes), "0"], told
        if name == "tshark":
            assert sum(line.split(",").count(P_DATA) for line in told.splitlines()) == writes
        rates[name] = (beginning if name == SCAPY_NAME else capture).stat().st_size / took_s / 1e6
    return rates


def copy_beginning(capture: Path, target: Path, size_bytes: int) -> None:
    """The first whole frames of a capture."""
    with capture.open("rb") as file:
        data = file.read(size_bytes)
    target.write_bytes(data[: survey(data, first_packet_at(data), len(data))[0]])


def measure(options: Options) -> Result:
    rows: list[list[object]] = []
    best = peak = 0.0
    with scratch(memory=True) as directory:
        for rate in RATES_MB_S:
            runs = [live(directory, rate, options.seconds) for _ in range(options.rounds)]
            whole = sum(
                run["drops"] == 0 and run["gaps"] == 0 and run["checked"] == run["writes"] for run in runs
            )
            mb_s, cpu = median([run["mb_s"] for run in runs]), median([run["cpu"] for run in runs])
            drops, checked = (median([run[key] for run in runs]) for key in ("drops", "checked"))
            rows.append(
                [f"live, {rate:g} MB/s asked", f"{mb_s:.0f} MB/s", f"{cpu:.2f} of a core",
                 f"{whole} of {len(runs)} runs whole; medians: drops {drops:.0f}, digests {checked:.0f} of "
                 f"{runs[0]['writes']}"]
            )  # fmt: skip
            is_reached = whole * 2 > len(runs)
            best = max(best, mb_s) if is_reached else best
            peak = max(peak, *(run["peak"] for run in runs))
            if not is_reached:
                break
        run = live(directory, 100.0, OFFLINE_SECONDS)
        capture, beginning = directory / "live.pcapng", directory / "beginning.pcapng"
        copy_beginning(capture, beginning, SCAPY_BYTES)
        size_mb = capture.stat().st_size / 1e6
        rounds = [offline(capture, beginning, int(run["writes"])) for _ in range(options.rounds)]
    rates = {name: median([one[name] for one in rounds]) for name in rounds[0]}
    for name, rate in rates.items():
        of_mb = SCAPY_BYTES / 1e6 if name == SCAPY_NAME else size_mb
        ratio = f"{rates[OURS] / rate:.1f} x slower" if name != OURS else ""
        rows.append([f"offline, {name}", f"{rate:.1f} MB/s", ratio, f"{of_mb:.0f} MB"])
    targets = [
        Target("highest rate that most runs took whole, every digest checked", best, 125, unit="MB/s"),
        Target("link watch, peak memory with its 64 MiB ring", peak, 256, at_least=False, unit="MiB"),
        Target("offline against scapy", rates[OURS] / rates[SCAPY_NAME], 40),
    ]
    if "tshark" in rates:
        targets.append(Target("offline against tshark", rates[OURS] / rates["tshark"], 10))
    notes = [
        "Offline: medians over the rounds; times of whole processes, scapy's without its start-up.",
        _module_note(),
    ]
    return Result("link", "Link watch", ["what", "rate", "", "checked"], rows, targets, notes)


def _module_note() -> str:
    return f"The C module was {'in use' if skim.NATIVE else 'NOT in use'}."


if __name__ == "__main__":
    main(measure, rounds=3, seconds=3.0)
