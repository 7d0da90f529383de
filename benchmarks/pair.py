"""The simulated pair's write rate: fio over NBD to the primary, protocol C with crc32c digests to
the secondary, with the whole harness watching (reflex on both consoles, link captured, recorded and
every digest checked), all on this machine; beside nbdkit's memory plugin, which neither replicates
nor checks anything.

Each round has a fresh pair. What was measured is then looked at: full duplex from the first write
to the last, no trigger, both volumes equal, and a last pass written through the primary is verified
by fio on the secondary.
"""

import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import (
    NAN,
    Options,
    Result,
    Target,
    cpu_seconds,
    have,
    main,
    median,
    number,
    running,
    scratch,
    two_at_once,
)
from freezeframe.fixtures.pair import Incidents, Pair
from freezeframe.harness.bench.benchfile import load_bench

SHAPES = (("4k", 32, 10_000, "IOPS"), ("64k", 32, 300, "MB/s"))
SIZE = "64m"
OURS, PEER = "simulated pair, watched", "nbdkit memory"
PROCESSES = {
    "primary": ("freezeframe.firmware_sim", "serve", "--side", "primary"),
    "secondary": ("freezeframe.firmware_sim", "serve", "--side", "secondary"),
    "linkwatch": ("freezeframe.harness.watch.linkwatch",),
    "reflex": ("freezeframe.harness.watch.reflex",),
}
"""Consecutive words of the command that tell a process of the bench from the others; all belong to
this process."""


def fio(
    uri: str, *more: str, meanwhile: Callable[[], None] = lambda: time.sleep(0.05)
) -> dict[str, Any]:
    argv = [
        "fio",
        "--name=pair",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--size={SIZE}",
        "--output-format=json",
        *more,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            meanwhile()
        assert process.stdout is not None
        text = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"fio failed: {text}")
    job: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    return job


def timed(block: str, depth: int, seconds: float) -> list[str]:
    return [
        "--rw=randwrite",
        f"--bs={block}",
        f"--iodepth={depth}",
        "--time_based",
        f"--runtime={seconds}",
    ]


def figures(written: dict[str, Any]) -> tuple[float, float, float]:
    """IOPS, MB/s, 99th completion latency in microseconds."""
    return (
        written["iops"],
        written["bw_bytes"] / 1e6,
        written["clat_ns"]["percentile"]["99.000000"] / 1e3,
    )


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def bench_processes() -> dict[str, int]:
    """Process ids of the controllers and of those that watch."""
    found = {}
    for pid in descendants(int(Path("/proc/self").readlink().name)):
        words = tuple(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
        for name, wanted in PROCESSES.items():
            if any(words[at : at + len(wanted)] == wanted for at in range(len(words))):
                found[name] = pid
    assert set(found) == set(PROCESSES), f"not running: {set(PROCESSES) - set(found)}"
    return found


class Watched:
    """One pair under watch, and what its processes have used so far."""

    def __init__(self, directory: Path) -> None:
        run = directory / "r"
        run.mkdir()
        self.pair = Pair(load_bench("sim"), run, Incidents(directory), 1, "benchmark")
        self.uris = {
            side: f"nbd+unix:///?socket={run / f'{side}.nbd'}" for side in ("primary", "secondary")
        }
        self._pids = bench_processes()
        self._begin = {side: len(getattr(self.pair, side).console) for side in self.uris}

    def cpu(self) -> dict[str, float]:
        """Seconds by process; fio's are those of the children that have ended."""
        used = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        fio_used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used | {
            "supervisor": time.process_time(),
            "fio": fio_used.ru_utime + fio_used.ru_stime,
        }

    def write(self, *options: str) -> dict[str, Any]:
        job = fio(self.uris["primary"], *options, meanwhile=lambda: self.pair.settle(0.05))
        written: dict[str, Any] = job["write"]
        return written

    def check(self) -> dict[str, int]:
        """That it was what it is said to be: SystemExit names what was not. Returns the capture's
        counters."""
        self.write(
            "--rw=write",
            "--bs=64k",
            "--iodepth=8",
            "--verify=crc32c",
            "--do_verify=0",
            "--verify_state_save=0",
        )
        stats = self.pair.link.stats()
        wrong = [f"trigger {one.rule}" for one in self.pair.session.triggers]
        for side, begin in self._begin.items():
            if b"pair state:" in getattr(self.pair, side).console[begin:]:
                wrong.append(f"the {side} left full duplex")
        if not self.pair.compare().sides_equal:
            wrong.append("the volumes differ")
        if not stats["kernel_drops"] and stats["digests_checked"] < stats["writes"]:
            wrong.append(f"{stats['digests_checked']} digests checked of {stats['writes']} writes")
        if wrong:
            raise SystemExit(f"not measured as told: {'; '.join(wrong)}")
        fio(
            self.uris["secondary"],
            "--rw=read",
            "--bs=64k",
            "--iodepth=8",
            "--readonly",
            "--verify=crc32c",
        )
        return stats


class Seen:
    """What the rounds gave, in their order."""

    def __init__(self) -> None:
        self.figures: defaultdict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(
            list
        )
        """(block, who) -> see ``figures``."""
        self.cpu_us: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        """(block, process) -> processor time a write."""
        self.kept: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        """block -> ``two_at_once`` before and after ours."""
        self.counters: list[dict[str, int]] = []
        """The capture's."""


def one_round(directory: Path, peer_uri: str, seconds: float, seen: Seen) -> None:
    watched = Watched(directory)
    try:
        for block, depth, _, _ in SHAPES:
            kept = two_at_once()
            before = watched.cpu()
            written = watched.write(*timed(block, depth, seconds))
            after = watched.cpu()
            seen.kept[block].append((kept, two_at_once()))
            seen.figures[block, OURS].append(figures(written))
            for name, used in after.items():
                seen.cpu_us[block, name].append((used - before[name]) * 1e6 / written["total_ios"])
            peer = fio(peer_uri, *timed(block, depth, seconds))["write"]
            seen.figures[block, PEER].append(figures(peer))
            print(block, figures(written), figures(peer), *seen.kept[block][-1], file=sys.stderr)
        seen.counters.append(watched.check())
    finally:
        watched.pair.close(failed=False)


def measure(options: Options) -> Result:
    if not have("fio", "nbdkit"):
        raise SystemExit("needs fio and nbdkit: apt-get install fio nbdkit")
    seen = Seen()
    with scratch(memory=True) as directory:
        socket = directory / "memory.nbd"
        argv = ["nbdkit", "-f", "-U", str(socket), "memory", "128M"]
        with running(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            deadline = time.monotonic() + 10
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            for count in range(options.rounds):
                own = directory / str(count)
                own.mkdir()
                uri = f"nbd+unix:///?socket={socket}"
                one_round(own, uri, options.seconds, seen)
    names = [*PROCESSES, "supervisor", "fio"]
    rows, targets, notes = [], [], []
    for block, depth, wanted, unit in SHAPES:
        best = {
            who: tuple(map(median, zip(*seen.figures[block, who], strict=True)))
            for who in (OURS, PEER)
        }
        for who, (iops, mb_s, late) in best.items():
            used = [median(seen.cpu_us[block, name]) if who == OURS else NAN for name in names]
            rows.append([f"{block}, queue {depth}", who, iops, mb_s, late, *used])
        ours = best[OURS]
        targets.append(
            Target(f"{block} queue {depth}", ours[0 if unit == "IOPS" else 1], wanted, unit=unit)
        )
        notes.append(f"{block}: {ours[0] / best[PEER][0]:.3f} of nbdkit's memory plugin.")
        each = zip(seen.figures[block, OURS], seen.kept[block], strict=True)
        at = 0 if unit == "IOPS" else 1
        notes.append(
            f"{block}, {unit} of each round (in brackets what a processor kept of its speed while both were busy, before and"
            " after it): "
            + ", ".join(
                f"{number(figure[at])} ({number(was)}, {number(then)})"
                for figure, (was, then) in each
            )
            + "."
        )
    writes, digests, drops = (
        sum(one[name] for one in seen.counters)
        for name in ("writes", "digests_checked", "kernel_drops")
    )
    notes.append(
        f"Of {writes:,} writes on the link {digests:,} digests were checked; {drops:,} frames were dropped by the capture."
        " Both volumes were equal after every round, and fio verified on the secondary what it wrote through the primary."
    )
    columns = [
        "writes",
        "who",
        "IOPS",
        "MB/s",
        "99th us",
        *(f"CPU us a write: {name}" for name in names),
    ]
    return Result(
        "pair", "The simulated pair, replicating and watched", columns, rows, targets, notes
    )


if __name__ == "__main__":
    # What the machine gives changes within seconds: many rounds, and what it gave beside each.
    main(measure, rounds=9, seconds=4.0)
