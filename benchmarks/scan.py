"""Scanning: a log stream against 1,000 rules on one core, in 64 KiB and in 256-byte chunks, beside
ripgrep, grep -F and ``re`` on the same bytes. Nobody's reading of the rules is counted: the tools
read the stream from a file in memory, and what they take for an empty one is subtracted.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import Options, Result, Target, have, main, median, scratch
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.console.triggers import Scanner

RULES = 1000
LINE = (
    "[  %d.%06d] host: %d writes, %d bytes, queue %d, cache %d percent dirty, link up, all well\r\n"
)
STREAM_BYTES = 64 << 20
SLOW_BYTES = 1 << 20
"""For ``re``, which needs a second for it."""


def texts() -> list[str]:
    """Error texts as a firmware has them; none of them is in the stream, but their words are."""
    parts = (
        "link",
        "cache",
        "queue",
        "write",
        "digest",
        "barrier",
        "mirror",
        "volume",
        "port",
        "host",
    )
    return [
        f"{parts[n % 10]} {parts[n // 10 % 10]} error {n:04d}: unit {n * 7 % 97}"
        for n in range(RULES)
    ]


def stream() -> bytes:
    text = "".join(
        LINE % (n, n * 7919 % 1000000, n % 977, n * 4096, n % 33, n % 101) for n in range(20000)
    )
    almost = texts()
    # Every 20th line is nearly a rule's text: the search must look twice.
    near = [
        f"{line}\n{almost[n * 31 % RULES][:-3]}...\r" if n % 20 == 0 else line
        for n, line in enumerate(text.split("\n"))
    ]
    raw = "\n".join(near).encode()
    return (raw * (STREAM_BYTES // len(raw) + 1))[:STREAM_BYTES]


def ours(data: bytes, chunk_bytes: int) -> float:
    """Bytes a second, hits counted."""
    rules = [ConsoleRule(name=str(number), literal=text) for number, text in enumerate(texts())]
    scanner = Scanner(rules, {"c": "primary"})
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    start = time.perf_counter()
    for chunk in chunks:
        scanner.feed("c", chunk, 0)
    return len(data) / (time.perf_counter() - start)


def tool(argv: list[str], path: Path) -> float:
    empty = path.with_name("empty")
    empty.touch()
    took_s = []
    for one in (empty, path):
        start = time.perf_counter()
        done = subprocess.run([*argv, str(one)], stdout=subprocess.PIPE)
        took_s.append(time.perf_counter() - start)
        assert done.returncode in (0, 1), argv
    return path.stat().st_size / (took_s[1] - took_s[0])


def plain_re(data: bytes) -> float:
    pattern = re.compile("|".join(map(re.escape, texts())).encode())
    start = time.perf_counter()
    sum(1 for _ in pattern.finditer(data[:SLOW_BYTES]))
    return SLOW_BYTES / (time.perf_counter() - start)


def measure(options: Options) -> Result:
    data = stream()
    rates: dict[str, list[float]] = {}
    with scratch(memory=True) as directory:
        path, rules = directory / "stream", directory / "rules"
        path.write_bytes(data)
        rules.write_text("\n".join(texts()) + "\n")
        for _ in range(options.rounds):
            rates.setdefault("FreezeFrame, 64 KiB chunks", []).append(ours(data, 65536))
            rates.setdefault("FreezeFrame, 256-byte chunks", []).append(ours(data[: 32 << 20], 256))
            if have("rg"):
                argv = ["rg", "-j1", "-c", "--no-mmap", "-a", "-F", "-f", str(rules)]
                rates.setdefault("ripgrep -F", []).append(tool(argv, path))
            argv = ["grep", "-c", "-a", "-F", "-f", str(rules)]
            rates.setdefault("grep -F", []).append(tool(argv, path))
            rates.setdefault("re", []).append(plain_re(data))
            print(".", end="", file=sys.stderr, flush=True)
    middle = {name: median(values) for name, values in rates.items()}
    first = middle["FreezeFrame, 64 KiB chunks"]
    rows = [[name, rate / 1e6, first / rate] for name, rate in middle.items()]
    targets = [
        Target("64 KiB chunks", first / 1e9, 1.5, unit="GB/s"),
        Target("256-byte chunks", middle["FreezeFrame, 256-byte chunks"] / 1e6, 300, unit="MB/s"),
    ]
    if "ripgrep -F" in middle:
        targets.append(Target("against ripgrep", first / middle["ripgrep -F"], 3))
    return Result(
        "scan", f"Scanning with {RULES:,} rules", ["what", "MB/s", "ours / it"], rows, targets
    )


if __name__ == "__main__":
    main(measure, rounds=5, seconds=0.0)
