"""``make tcp-diff``: random segment scripts into a real socket of this machine's kernel, and the
same frames into the follower.

    python tests/tools/tcpdiff.py --runs 10000 [--seed 0] [--show]

Compared are the bytes that the application read and whether the connection lived; then the C
module's skimming and, in a second process, the Python code alone. Each rule is also switched off,
which shows how many scripts it decides.

Not in the scripts, because the wire does not show what the kernel does with it, or DRBD does not use
it: urgent data; TCP Fast Open; a receive buffer so full that the kernel drops what it had queued
(where the machine's memory makes it do so, by its counters, the script is left out and counted); a
segment across the window's edge whose acknowledgement is delayed (Linux 6.17 takes it only when the
application has read everything); a too old acknowledgement on a segment in order (Linux checks it
only off its fast path); neighbours joined in the out-of-order queue; wrong checksums that equal the
value of an unfinished one; segments after the connection has ended.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

SUPPORT: Final = Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

from kernel_tcp import KernelTcp, ScriptOutcome, run_script  # noqa: E402
from tcp_follow import RULES, Followed, decided, follow  # noqa: E402

from freezeframe.harness.core.link import skim  # noqa: E402
from freezeframe.harness.core.link.tcpstream import Reassembler  # noqa: E402

AT_LEAST: Final = 100
"""Scripts that each rule must decide, of 10,000."""
PURE: Final = (
    "import sys; sys.modules['freezeframe.harness.core.link._native'] = None; "
    f"sys.path[:0] = [{str(SUPPORT)!r}, {str(Path(__file__).parent)!r}]; "
    "import tcpdiff; tcpdiff.pure(sys.argv[1], sys.argv[2])"
)


def problems(outcome: ScriptOutcome, fed: Followed, skimmed: Followed) -> list[str]:
    found = []
    if fed.data != outcome.data:
        pairs = enumerate(zip(fed.data, outcome.data, strict=False))
        at = next((n for n, (a, b) in pairs if a != b), min(len(fed.data), len(outcome.data)))
        found.append(
            f"the application read {len(outcome.data)} bytes, the follower {len(fed.data)}; "
            f"the first difference is at {at}"
        )
    if fed.lived != outcome.lived:
        found.append(f"the connection {'lived' if outcome.lived else 'was reset'}: not seen so")
    if fed.gaps:
        found.append(f"{fed.gaps} gaps in a complete record")
    if skimmed[:4] != fed[:4]:
        found.append("skimmed and judged frame by frame differ")
    return found


def pure(records: str, results: str) -> None:
    """In a process without the C module: follow all records."""
    assert not skim.NATIVE
    scripts = msgspec.msgpack.decode(Path(records).read_bytes(), type=list[list[bytes]])
    followed = [list(follow(frames, skimmed=True, kind=Reassembler)[:4]) for frames in scripts]
    Path(results).write_bytes(msgspec.msgpack.encode(followed))


def differing_without_c(scripts: list[list[bytes]], expected: list[Followed]) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        records, results = Path(folder, "records"), Path(folder, "results")
        records.write_bytes(msgspec.msgpack.encode(scripts))
        subprocess.run([sys.executable, "-c", PURE, records, results], check=True)
        found = msgspec.msgpack.decode(
            results.read_bytes(), type=list[tuple[bytes, bool, int, str]]
        )
    pairs = zip(found, expected, strict=True)
    return [number for number, (a, b) in enumerate(pairs) if a != b[:4]]


class Report:
    """Of a number of scripts."""

    def __init__(self) -> None:
        self.scripts = self.frames = self.reset = self.bytes_read = self.left_out = 0
        self.different: dict[int, list[str]] = {}
        self.records: dict[int, list[str]] = {}
        """The frames of those: a timer of the kernel may not fire again at the same place."""
        self.decided: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.without_c: list[int] = []

    def run(self, seeds: Iterable[int], *, twin: bool = True) -> "Report":
        kernel = KernelTcp()
        records, expected, numbers = [], [], []
        try:
            for seed in seeds:
                outcome = run_script(kernel, seed)
                if outcome.short_of_memory:
                    self.left_out += 1
                    continue
                fed = follow(outcome.frames)
                skimmed = follow(outcome.frames, skimmed=True, kind=Reassembler)
                if found := problems(outcome, fed, skimmed):
                    self.different[seed] = found
                    self.records[seed] = listing(outcome)
                self.scripts += 1
                self.frames += len(outcome.frames)
                self.reset += not outcome.lived
                self.bytes_read += len(outcome.data)
                self.steps.update(outcome.steps)
                self.decided += decided(outcome.frames, fed)
                records.append(outcome.frames)
                expected.append(fed)
                numbers.append(seed)
        finally:
            kernel.close()
        if twin:
            self.without_c = [numbers[one] for one in differing_without_c(records, expected)]
        return self

    def lines(self) -> list[str]:
        out = [
            f"Linux {platform.release()}: {self.scripts} scripts, {self.frames} frames, "
            f"{self.bytes_read} bytes read, {self.reset} connections reset",
            f"left out, because the kernel dropped segments for want of memory: {self.left_out}",
            f"differences between the kernel and the follower: {len(self.different)}",
            f"differences between the C module and the Python code: {len(self.without_c)}",
            "scripts that each rule decides:",
            *(f"  {self.decided[rule]:6} {rule}" for rule in RULES),
        ]
        for seed, found in list(self.different.items())[:20]:
            out += [f"seed {seed}: {'; '.join(found)}", f"  {command(seed)}", *self.records[seed]]
        out += [f"seed {seed}: without the C module\n  {command(seed)}" for seed in self.without_c]
        return out


def command(seed: int) -> str:
    return f"repeat: .venv/bin/python tests/tools/tcpdiff.py --seed {seed} --runs 1 --show"


def listing(outcome: ScriptOutcome) -> list[str]:
    """Each frame of a script, as tshark would list it, and what became of them."""
    out = []
    for number, frame in enumerate(outcome.frames, 1):
        ip, offset = frame[14:], frame[46] >> 4
        seq, ack = (int.from_bytes(ip[at : at + 4], "big") for at in (24, 28))
        data = ip[20 + 4 * offset :]
        out.append(
            f"{number:4} {'peer  ' if ip[15] == 1 else 'kernel'} seq {seq} ack {ack} flags {ip[33]:02x} "
            f"window {int.from_bytes(ip[34:36], 'big')} options {ip[40 : 20 + 4 * offset].hex()} "
            f"data {len(data)} {data[:16].hex()}"
        )
    out.append(f"steps: {' '.join(outcome.steps)}")
    out.append(f"read: {outcome.data.hex()}")
    out.append(f"followed: {follow(outcome.frames).data.hex()}")
    return out


def show(seed: int) -> None:
    kernel = KernelTcp()
    outcome = run_script(kernel, seed)
    kernel.close()
    print("\n".join(listing(outcome)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first script")
    parser.add_argument("--show", action="store_true", help="print the frames of the first script")
    args = parser.parse_args()
    if args.show:
        show(args.seed)
    began = time.monotonic()
    report = Report().run(range(args.seed, args.seed + args.runs))
    print("\n".join(report.lines()))
    print(f"{time.monotonic() - began:.0f} s")
    few = [rule for rule in RULES if report.decided[rule] < AT_LEAST * args.runs // 10_000]
    if few:
        print(f"too few scripts decided by: {', '.join(few)}")
    too_many = report.left_out * 100 > args.runs
    return bool(report.different or report.without_c or few or too_many)


if __name__ == "__main__":
    sys.exit(main())
