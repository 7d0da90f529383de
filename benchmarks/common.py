"""What every benchmark shares: its result as a table, JSON and a section of docs/performance.md;
peers; statistics.

    python -m benchmarks.NAME [--json] [--rounds N] [--seconds S] [--no-write]

Contestants are run interleaved (A B C A B C), so that a busy moment of the machine meets all of
them; docs/performance.md says who is not, and why. The peers live in an environment of their own,
``.venv-bench`` (``make bench-setup``): the product never imports them.
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import math
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PERFORMANCE: Final = ROOT / "docs" / "performance.md"
NATIVE: Final = Path(__file__).resolve().parent / "native"
PEERS_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
LAPS_NS: Final = 100_000_000
NAN: Final = float("nan")
"""Not measured: "-" in the tables."""
LEAST: Final = 5
"""Latencies of which a median is told."""
PR_SET_PDEATHSIG, SIGKILL = 1, 9
CPUCLOCK_SCHED: Final = 2
"""With a process id's complement before it: the clock that ``clock_getcpuclockid`` gives."""


@dataclass(frozen=True)
class Target:
    """One line of what must be shown."""

    what: str
    value: float
    limit: float
    at_least: bool = True
    unit: str = "x"

    @property
    def reached(self) -> bool:
        """What could not be measured is not reached: as a rule too little came of it to be
        measured."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "reached" if self.reached else "NOT REACHED"
        return f"{self.what}: {number(self.value)} {self.unit} (wanted {sign} {number(self.limit)}): {verdict}"


@dataclass
class Result:
    """One benchmark's outcome. Its cells are numbers, not their texts: units stand in the columns'
    names."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: str = field(default_factory=lambda: machine())
    date: str = field(default_factory=lambda: now())

    def as_json(self) -> str:
        told = asdict(self)
        told["targets"] = [asdict(one) | {"reached": one.reached} for one in self.targets]
        told["rows"] = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return json.dumps(_finite(told), allow_nan=False)

    def markdown(self) -> str:
        lines = [
            f"## {self.title}",
            "",
            f"`python -m benchmarks.{self.name}`, {self.date}, {self.machine}.",
            "",
        ]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(number(cell) for cell in row) + " |" for row in self.rows]
        lines += (
            [""] + [f"* {target}" for target in self.targets] + [f"* {note}" for note in self.notes]
        )
        return "\n".join(lines) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Any) -> str:
    """Three significant digits, thousands separated; "-" for what was not measured."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def machine() -> str:
    """Processor, cores and what they are worth, kernel, load of others at this moment."""
    load = os.getloadavg()[0]
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    return (
        f"{model}, {os.cpu_count()} cores (two busy at once keep {number(two_at_once())} of their speed), "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}"
    )


# --- figures ------------------------------------------------------------------------------------------------------
def percentile(values: Sequence[float], percent: float) -> float:
    """NaN where there are too few values for any to lie above it: the 99th needs 100."""
    if len(values) * (100 - percent) < 100:
        return NAN
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float], *, least: int = 1) -> float:
    """NaN for fewer than ``least`` values."""
    return statistics.median(values) if len(values) >= least else NAN


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """User and system time that a process has used so far; with ``children`` that of its children,
    too.

    Of the process's own clock: /proc tells the same in ticks of 10 ms, too coarse for short
    rounds."""
    try:
        total = time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        return 0.0
    if children:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += sum(
                    cpu_seconds(int(one), children=True)
                    for one in (task / "children").read_text().split()
                )
    return total


def peak_mib(pid: int) -> float:
    """Largest resident set so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return NAN


def two_at_once() -> float:
    """What a processor keeps of its speed while a second one is busy, too, of the first two that
    this process may use: 1 for two whole ones that nobody else uses, some 0.6 for two threads of
    one core; NaN where there is no second. A virtual machine does not say which it has, and has now
    these, now those."""
    pair = sorted(os.sched_getaffinity(0))[:2]
    if len(pair) < 2:
        return NAN
    fork = get_context("fork")
    with ProcessPoolExecutor(2, fork, initializer=fork.Barrier(2).wait) as pool:
        # Until both workers are alive: one that comes late has no time for all of its laps.
        list(pool.map(int, pair))
        alone = [
            laps for one in pair for laps in pool.map(_laps, [one], [monotonic_ns() + LAPS_NS])
        ]
        together = list(pool.map(_laps, pair, repeat(monotonic_ns() + LAPS_NS)))
    return min(some / most for some, most in zip(together, alone, strict=True))


def _laps(processor: int, begin_ns: int) -> int:
    """How often a loop goes round on that processor between ``begin_ns`` and LAPS_NS later."""
    os.sched_setaffinity(0, {processor})
    while monotonic_ns() < begin_ns:
        pass
    laps, end_ns = 0, begin_ns + LAPS_NS
    while monotonic_ns() < end_ns:
        laps += 1
    return laps


# --- processes ----------------------------------------------------------------------------------------------------
def compiled(name: str, directory: Path) -> Path:
    """``native/NAME.c`` compiled with the machine's C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the C peers need a compiler: apt-get install gcc")
    target = directory / name
    if not target.exists():
        command = [
            compiler,
            "-O2",
            "-Wall",
            "-D_GNU_SOURCE",
            "-o",
            str(target),
            str(NATIVE / f"{name}.c"),
        ]
        subprocess.run(command, check=True)
    return target


def peers_python() -> str:
    if not PEERS_PYTHON.exists():
        raise SystemExit("the peers are not installed: make bench-setup")
    return str(PEERS_PYTHON)


def have(*tools: str) -> bool:
    return all(shutil.which(tool) for tool in tools)


def die_with_parent() -> None:
    """For ``preexec_fn``: no contestant outlives the benchmark."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)


@contextlib.contextmanager
def running(argv: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that is gone afterwards with all that it started, whatever happens."""
    child = subprocess.Popen(argv, preexec_fn=die_with_parent, start_new_session=True, **options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def scratch(*, memory: bool = False) -> Iterator[Path]:
    """A directory for one benchmark; ``memory``: not on a disk, whose speed is not what is
    measured."""
    base = "/dev/shm" if memory and Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ff-bench-", dir=base) as name:
        yield Path(name)


def ours(module: str) -> list[str]:
    return [sys.executable, "-m", module]


# --- the command --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: float
    arguments: argparse.Namespace


def main(
    measure: Callable[[Options], Result],
    *,
    rounds: int,
    seconds: float,
    add: Callable[[argparse.ArgumentParser], Any] = lambda _: None,
) -> None:
    """Run one benchmark as a command."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, and leave docs/performance.md as it is",
    )
    parser.add_argument(
        "--no-write", action="store_true", help="leave docs/performance.md as it is"
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"of all contestants (default {rounds})"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"a contestant and round (default {seconds:g})",
    )
    add(parser)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    result = measure(Options(arguments.rounds, arguments.seconds, arguments))
    if not (arguments.no_write or arguments.json):
        write_section(result)
    print(result.as_json() if arguments.json else result.markdown())


def write_section(result: Result) -> None:
    """Replace this benchmark's section of docs/performance.md, or add it."""
    text = PERFORMANCE.read_text()
    begin, end = f"<!-- begin {result.name} -->", f"<!-- end {result.name} -->"
    section = f"{begin}\n{result.markdown()}{end}\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n", re.DOTALL)
    text = (
        pattern.sub(lambda _: section, text)
        if pattern.search(text)
        else f"{text.rstrip()}\n\n{section}"
    )
    PERFORMANCE.write_text(text)
