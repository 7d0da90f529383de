"""Link watch: replication traffic of 64 KiB writes over a veth link of MTU 1500, captured,
recorded, dissected, every digest checked; and the dissection of the capture file against tshark and
scapy.

Live: the fastest rate without a lost frame, with the link watch held on one core; at some of the
rates beside tshark and scapy on the same interface, in turns. Offline: the same file through our
core (reassembly, packets, ledger, digests), through tshark, which lists each DRBD command and
checks no digest, and its beginning through scapy's reader, which goes no further than TCP's
payload.
"""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import (
    NAN,
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
from benchmarks.link_peers import (
    HANDED_OVER_S,
    HEURISTIC,
    P_DATA,
    SCAPY,
    TSHARK,
    Told,
    by_scapy,
    by_tshark,
)
from freezeframe.harness.core.link import skim
from freezeframe.harness.core.link.skim import survey
from freezeframe.harness.edge.netns import LinkPair, make_pair
from freezeframe.harness.edge.pcapng import first_packet_at

SIZE = 65536
MTU_BYTES = 1500
RATES_MB_S = (2.0, 25.0, 100.0, 125.0, 150.0, 200.0, 300.0)
PEER_RATES_MB_S = (2.0, 25.0, 125.0, 200.0)
OFFLINE = """
import sys
from pathlib import Path
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.edge.pcapng import read_runs
from freezeframe.harness.wire import drbd
view, first_no = LinkView(LinkEnds(ports=frozenset({drbd.PORT})), []), 1
for run in read_runs(Path(sys.argv[1])):
    for t_ns, frame, number in view.frames(run.data, first_no, 0):
        view.feed(t_ns, frame, number, t_ns)
    first_no += run.frames
totals = view.ledger.totals
print(totals.writes, totals.digests_checked, totals.digests_wrong)
"""
PURE = "import sys; sys.modules['freezeframe.harness.core.link._native'] = None\n" + OFFLINE
OURS, SCAPY_OFFLINE = "FreezeFrame", "scapy (Ether/IP/TCP only)"
OFFLINE_SECONDS = 4.0
SCAPY_BYTES = 24_000_000
"""It reads some 4 MB/s."""
READER = """
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


class Live(NamedTuple):
    """One run at one rate."""

    mb_s: float
    cores: float
    frames_lost: float
    writes_told: float
    """Ours: with a digest that was checked. NaN: does not know what a write is."""
    writes_sent: int
    gaps: int = 0
    peak_mib: float = NAN

    @property
    def is_whole(self) -> bool:
        knows = not math.isnan(self.writes_told)
        return (
            self.frames_lost == 0
            and self.gaps == 0
            and (not knows or self.writes_told == self.writes_sent)
        )


@contextlib.contextmanager
def a_link() -> Iterator[LinkPair]:
    with contextlib.closing(make_pair(mtu_bytes=MTU_BYTES)) as link:
        yield link


def replicate(
    link: LinkPair, writes: int, mb_per_s: float, module: str = "benchmarks.traffic"
) -> float:
    """The seconds that took."""
    with running(traffic("receiver", link, SIZE, 0, 0, module), stdout=subprocess.PIPE) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        with running(
            traffic("sender", link, SIZE, writes, mb_per_s, module), stdout=subprocess.PIPE
        ) as sender:
            assert sender.stdout is not None
            return float(sender.stdout.readline())


def writes_in(mb_per_s: float, seconds: float) -> int:
    """Whole barriers of them."""
    return max(64, int(mb_per_s * 1e6 * seconds / SIZE) // 64 * 64)


def live(directory: Path, mb_per_s: float, seconds: float) -> Live:
    writes = writes_in(mb_per_s, seconds)
    with a_link() as link, watching(link, directory / "live.pcapng") as watch:
        os.sched_setaffinity(watch.child.pid, {0})
        started_s = cpu_seconds(watch.child.pid)
        took_s = replicate(link, writes, mb_per_s)
        time.sleep(0.1)
        stats, _, cpu_s, peak = watch.stop()
    return Live(
        writes * SIZE / took_s / 1e6, (cpu_s - started_s) / took_s, stats.kernel_drops, stats.digests_checked,
        writes, stats.gaps, peak,
    )  # fmt: skip


def live_peer(
    by: Callable[[LinkPair, Path], contextlib.AbstractContextManager[Told]],
    directory: Path,
    mb_per_s: float,
    seconds: float,
) -> Live:
    writes = writes_in(mb_per_s, seconds)
    with a_link() as link:
        with by(link, directory) as told:
            took_s = replicate(link, writes, mb_per_s)
    return Live(
        writes * SIZE / took_s / 1e6, told.cpu_s / took_s, told.frames_lost, told.writes, writes
    )


def offline(capture: Path, beginning: Path, writes: int) -> dict[str, float]:
    """MB/s of each reader, from the start of its process to its end; scapy without its start, and
    only the beginning."""
    commands = {
        OURS: [sys.executable, "-c", OFFLINE, str(capture)],
        "FreezeFrame without its C module": [sys.executable, "-c", PURE, str(capture)],
        SCAPY_OFFLINE: [peers_python(), "-c", READER, str(beginning)],
    }
    if have("tshark"):
        commands[TSHARK] = ["tshark", "-r", str(capture), *HEURISTIC]
    rates = {}
    for name, argv in commands.items():
        start = time.perf_counter()
        told = subprocess.run(
            argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        took_s = float(told.split()[0]) if name == SCAPY_OFFLINE else time.perf_counter() - start
        if name.startswith("FreezeFrame"):
            assert told.split() == [str(writes), str(writes), "0"], told
        if name == TSHARK:
            assert sum(line.split(",").count(P_DATA) for line in told.splitlines()) == writes
        rates[name] = (
            (beginning if name == SCAPY_OFFLINE else capture).stat().st_size / took_s / 1e6
        )
    return rates


def copy_beginning(capture: Path, target: Path, size_bytes: int) -> None:
    """The first whole frames of a capture."""
    with capture.open("rb") as file:
        data = file.read(size_bytes)
    target.write_bytes(data[: survey(data, first_packet_at(data), len(data))[0]])


def measure(options: Options) -> Result:
    rows: list[list[object]] = []
    best = peak = 0.0
    peers = {SCAPY: by_scapy} | ({TSHARK: by_tshark} if have("tshark") else {})
    with scratch(memory=True) as directory:
        for rate in RATES_MB_S:
            contestants = {OURS: live} | {
                name: partial(live_peer, by)
                for name, by in peers.items()
                if rate in PEER_RATES_MB_S
            }
            runs: dict[str, list[Live]] = {name: [] for name in contestants}
            for _ in range(options.rounds):
                for name, contestant in contestants.items():
                    runs[name].append(contestant(directory, rate, options.seconds))
                    print(f"{rate:g} MB/s: {name}: {runs[name][-1]}", file=sys.stderr)
            rows += [_live_row(name, rate, each) for name, each in runs.items()]
            is_reached = _whole(runs[OURS]) * 2 > options.rounds
            best = max(best, median([run.mb_s for run in runs[OURS]])) if is_reached else best
            peak = max(peak, *(run.peak_mib for run in runs[OURS]))
            if not is_reached:
                break
        last = live(directory, 100.0, OFFLINE_SECONDS)
        capture, beginning = directory / "live.pcapng", directory / "beginning.pcapng"
        copy_beginning(capture, beginning, SCAPY_BYTES)
        size_mb = capture.stat().st_size / 1e6
        rounds = [offline(capture, beginning, last.writes_sent) for _ in range(options.rounds)]
    rates = {name: median([one[name] for one in rounds]) for name in rounds[0]}
    for name, mb_s in rates.items():
        of_mb = SCAPY_BYTES / 1e6 if name == SCAPY_OFFLINE else size_mb
        rows.append([f"offline, {name}", NAN, mb_s, rates[OURS] / mb_s, *[NAN] * 5, of_mb])
    targets = [
        Target(
            "highest rate that most runs took whole, every digest checked", best, 125, unit="MB/s"
        ),
        Target(
            "link watch, peak memory with its 64 MiB ring", peak, 256, at_least=False, unit="MiB"
        ),
        Target("offline against scapy", rates[OURS] / rates[SCAPY_OFFLINE], 40),
    ]
    if TSHARK in rates:
        targets.append(Target("offline against tshark", rates[OURS] / rates[TSHARK], 10))
    columns = [
        "what", "asked MB/s", "MB/s", "ours / it", "cores used", f"whole runs of {options.rounds}", "frames lost",
        "writes told", "writes sent", "MB read",
    ]  # fmt: skip
    notes = [
        "Live: medians over the rounds, the contestants in turns at each rate. Ours has checked each digest of a write that "
        "it told, on one core; tshark lists writes and checks nothing, scapy goes no further than TCP's payload, both on "
        f"any core, and with the 64 KiB of buffer that it takes by default. What these two tell or read later than "
        f"{HANDED_OVER_S:g} s after the last write is lost; ours is stopped behind it, and tells what its ring holds.",
        "Offline: medians over the rounds; times of whole processes, scapy's without its start-up.",
        _module_note(),
    ]
    return Result("link", "Link watch", columns, rows, targets, notes)


def _whole(runs: Sequence[Live]) -> int:
    return sum(run.is_whole for run in runs)


def _live_row(name: str, asked_mb_s: float, runs: Sequence[Live]) -> list[object]:
    mb_s, cores, lost, told, sent, *_ = (median(each) for each in zip(*runs, strict=True))
    return [f"live, {name}", asked_mb_s, mb_s, NAN, cores, _whole(runs), lost, told, sent, NAN]


def _module_note() -> str:
    return f"The C module was {'in use' if skim.NATIVE else 'NOT in use'}."


if __name__ == "__main__":
    main(measure, rounds=3, seconds=3.0)
