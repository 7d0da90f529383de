"""The simulated pair's write rate: fio over NBD to the primary, protocol C with crc32c digests to the secondary, with the
whole harness watching (reflex on both consoles, link captured, recorded and every digest checked), all on this
machine; beside nbdkit's memory plugin, which neither replicates nor checks anything.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Result, Target, cpu_seconds, have, main, median, running, scratch
from fixtures.pair import Incidents, Pair
from harness.benchfile import load_bench

SHAPES = (("4k", 32, 10_000, "IOPS"), ("64k", 32, 300, "MB/s"))


def fio(uri: str, block: str, depth: int, seconds: float) -> dict[str, Any]:
    argv = [
        "fio", "--name=pair", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", f"--bs={block}",
        f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--size=64m", "--output-format=json",
    ]  # fmt: skip
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    written: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]["write"]
    return written


def figures(written: dict[str, Any]) -> tuple[float, float, float]:
    """IOPS, MB/s, 99th completion latency in microseconds."""
    return written["iops"], written["bw_bytes"] / 1e6, written["clat_ns"]["percentile"]["99.000000"] / 1e3


def controllers(run: Path) -> list[int]:
    """Process ids of both controllers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"firmware_sim\0serve" in words and str(run).encode() in words:
            found.append(int(process.name))
    return found


def measure(options: Options) -> Result:
    if not have("fio", "nbdkit"):
        raise SystemExit("needs fio and nbdkit: apt-get install fio nbdkit")
    seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    cost: dict[str, list[float]] = {}
    drops = 0
    with scratch(memory=True) as directory:
        run = directory / "r"
        run.mkdir()
        pair = Pair(load_bench("sim"), run, Incidents(directory), 1, "benchmark")
        socket = directory / "memory.nbd"
        argv = ["nbdkit", "-f", "-U", str(socket), "memory", "128M"]
        with running(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            deadline = time.monotonic() + 10
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            uris = {
                "simulated pair, watched": f"nbd+unix:///?socket={run / 'primary.nbd'}",
                "nbdkit memory": f"nbd+unix:///?socket={socket}",
            }
            try:
                pids = controllers(run)
                for _ in range(options.rounds):
                    for block, depth, _, _ in SHAPES:
                        for name, uri in uris.items():
                            before = sum(map(cpu_seconds, pids))
                            written = fio(uri, block, depth, options.seconds)
                            seen.setdefault((block, name), []).append(figures(written))
                            if "pair" in name:
                                used = (sum(map(cpu_seconds, pids)) - before) * 1e6 / written["total_ios"]
                                cost.setdefault(block, []).append(used)
                            pair.settle(0.1)
                            print(name, block, figures(written), file=sys.stderr)
                drops = pair.link.stats().get("kernel_drops", -1)
            finally:
                pair.close(failed=False)
    rows, targets = [], []
    notes = [f"Frames that the capture dropped: {drops}."]
    for block, depth, wanted, unit in SHAPES:
        best = {name: tuple(map(median, zip(*seen[block, name], strict=True))) for name in uris}
        for name, (iops, mb_s, late) in best.items():
            used = f"{median(cost[block]):.0f}" if "pair" in name else "-"
            rows.append([f"{block}, queue {depth}", name, iops, mb_s, late, used])
        ours = best["simulated pair, watched"]
        targets.append(
            Target(f"{block} queue {depth}", ours[0] if unit == "IOPS" else ours[1], wanted, unit=unit)
        )
        notes.append(f"{block}: {ours[0] / best['nbdkit memory'][0]:.3f} of nbdkit's memory plugin.")
    columns = ["writes", "who", "IOPS", "MB/s", "99th us", "CPU us a write, both controllers"]
    return Result("pair", "The simulated pair, replicating and watched", columns, rows, targets, notes)


if __name__ == "__main__":
    main(measure, rounds=3, seconds=4.0)
