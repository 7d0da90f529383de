"""Link watch of NVMe/TCP: a mirror's traffic of 64 KiB writes with header and data digests over a veth link
of MTU 1500, captured, recorded, dissected, every digest of the data checked; and the dissection of the
capture file against tshark.

Live: the fastest rate without a lost frame, with the link watch held on one core; at some of the rates
beside tshark on the same interface, in turns. Offline: the same file through our core and through
tshark, which lists the commands: once with its two digest checks, once without.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.common import (
    NAN,
    Options,
    Result,
    Target,
    cpu_seconds,
    have,
    main,
    median,
    scratch,
)  # fmt: skip
from benchmarks.link import SIZE, Live, a_link, replicate, writes_in
from benchmarks.link_load import watching
from benchmarks.link_peers import HANDED_OVER_S, TSHARK, by_tshark
from freezeframe.harness.core.link import skim

TRAFFIC: Final = "benchmarks.traffic_nvme"
RATES_MB_S: Final = (2.0, 25.0, 100.0, 150.0, 200.0)
PEER_RATES_MB_S: Final = (2.0, 25.0, 100.0)
OFFLINE_MB_S: Final = 25.0
OFFLINE_SECONDS: Final = 8.0
"""Slow enough that the capture is whole on a busy machine, too."""
WRITE: Final = "0x01"
FIELDS: Final = ("-T", "fields", "-e", "nvme.cmd.opc")
CHECKS: Final = ("-o", "nvme-tcp.check_hdgst:TRUE", "-o", "nvme-tcp.check_ddgst:TRUE")
CHECKING: Final = (*CHECKS, *FIELDS, "-e", "nvme-tcp.ddgst.status")
OURS: Final = "FreezeFrame"
WITH_CHECKS, WITHOUT = f"{TSHARK}, digests checked", f"{TSHARK}, no digest checked"
OFFLINE: Final = """
import sys
from pathlib import Path
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.edge.pcapng import read_runs
from freezeframe.harness.wire import nvme_tcp
view, first_no = LinkView(LinkEnds(protocol="nvme_tcp", ports=frozenset({nvme_tcp.PORT})), []), 1
for run in read_runs(Path(sys.argv[1])):
    for t_ns, frame, number in view.frames(run.data, first_no, 0):
        view.feed(t_ns, frame, number, t_ns)
    first_no += run.frames
totals = view.ledger.totals
print(totals.writes, totals.digests_checked, totals.digests_wrong)
"""


def live(directory: Path, mb_per_s: float, seconds: float) -> Live:
    writes = writes_in(mb_per_s, seconds)
    with a_link() as link, watching(link, directory / "live.pcapng", protocol="nvme_tcp") as watch:
        os.sched_setaffinity(watch.child.pid, {0})
        started_s = cpu_seconds(watch.child.pid)
        took_s = replicate(link, writes, mb_per_s, TRAFFIC)
        time.sleep(0.1)
        stats, _, cpu_s, peak = watch.stop()
    return Live(
        writes * SIZE / took_s / 1e6, (cpu_s - started_s) / took_s, stats.kernel_drops,
        stats.digests_checked, writes, stats.gaps, peak,
    )  # fmt: skip


def live_tshark(directory: Path, mb_per_s: float, seconds: float) -> Live:
    """It lists the commands and checks both digests."""
    writes = writes_in(mb_per_s, seconds)
    with a_link() as link:
        with by_tshark(link, directory, "nvme.cmd.opc", (*CHECKS, *FIELDS), WRITE) as told:
            took_s = replicate(link, writes, mb_per_s, TRAFFIC)
    return Live(
        writes * SIZE / took_s / 1e6, told.cpu_s / took_s, told.frames_lost, told.writes, writes
    )


def offline(capture: Path, writes: int) -> dict[str, float]:
    """MB/s of each reader, from the start of its process to its end."""
    commands = {OURS: [sys.executable, "-c", OFFLINE, str(capture)]}
    if have("tshark"):
        commands[WITH_CHECKS] = ["tshark", "-n", "-r", str(capture), *CHECKING]
        commands[WITHOUT] = ["tshark", "-n", "-r", str(capture), *FIELDS]
    rates = {}
    for name, argv in commands.items():
        start = time.perf_counter()
        told = subprocess.run(
            argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        rates[name] = capture.stat().st_size / (time.perf_counter() - start) / 1e6
        if name == OURS:
            assert told.split() == [str(writes), str(writes), "0"], told
        else:
            found = len(re.findall(WRITE, told))
            assert found == writes, (name, found, writes)
    return rates


def measure(options: Options) -> Result:
    rows: list[list[object]] = []
    best = 0.0
    with scratch(memory=True) as directory:
        for rate in RATES_MB_S:
            contestants = {OURS: live}
            if have("tshark") and rate in PEER_RATES_MB_S:
                contestants[TSHARK] = live_tshark
            runs: dict[str, list[Live]] = {name: [] for name in contestants}
            for _ in range(options.rounds):
                for name, contestant in contestants.items():
                    runs[name].append(contestant(directory, rate, options.seconds))
                    print(f"{rate:g} MB/s: {name}: {runs[name][-1]}", file=sys.stderr)
            for name, each in runs.items():
                mb_s, cores, lost, told, sent, *_ = (median(one) for one in zip(*each, strict=True))
                whole = sum(run.is_whole for run in each)
                rows.append([f"live, {name}", rate, mb_s, NAN, cores, whole, lost, told, sent, NAN])
            if sum(run.is_whole for run in runs[OURS]) * 2 <= options.rounds:
                break
            best = max(best, median([run.mb_s for run in runs[OURS]]))
        last = live(directory, OFFLINE_MB_S, OFFLINE_SECONDS)
        capture = directory / "live.pcapng"
        size_mb = capture.stat().st_size / 1e6
        rounds = [offline(capture, last.writes_sent) for _ in range(options.rounds)]
    rates = {name: median([one[name] for one in rounds]) for name in rounds[0]}
    for name, mb_s in rates.items():
        rows.append([f"offline, {name}", NAN, mb_s, rates[OURS] / mb_s, *[NAN] * 5, size_mb])
    targets = [
        Target(
            "highest rate that most runs took whole, every digest checked", best, 100, unit="MB/s"
        )
    ]
    if WITH_CHECKS in rates:
        targets.append(Target("offline against tshark", rates[OURS] / rates[WITH_CHECKS], 10))
    columns = [
        "what", "asked MB/s", "MB/s", "ours / it", "cores used", f"whole runs of {options.rounds}", "frames lost",
        "writes told", "writes sent", "MB read",
    ]  # fmt: skip
    notes = [
        "Live: medians over the rounds, the contestants in turns at each rate. Ours on one core, tshark on any, with the "
        f"64 MiB of buffer that both have; what tshark tells later than {HANDED_OVER_S:g} s after the last write is lost. "
        "Each write is a command, an R2T, the data and an answer.",
        "Offline: medians over the rounds; times of whole processes.",
        f"The C module was {'in use' if skim.NATIVE else 'NOT in use'}.",
    ]
    return Result("nvme", "Link watch, NVMe/TCP", columns, rows, targets, notes)


if __name__ == "__main__":
    main(measure, rounds=3, seconds=3.0)
