"""PTYs in place of UARTs, the generator at their far end, and the reactors under test at the near
one."""

import contextlib
import os
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.common import (
    NAN,
    PEERS_PYTHON,
    cpu_seconds,
    die_with_parent,
    ours,
    peak_mib,
    running,
)
from benchmarks.scan import texts
from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.edge.realtime import FIFO_PRIORITY
from freezeframe.harness.watch.reflex_io import ReflexConfig, StreamConfig

PEERS: Final = Path(__file__).resolve().parent / "peers"
TRIGGER: Final = "Digest integrity check FAILED"
FRAME: Final = b"F" * 50
RULES: Final = 300
"""A bench has hundreds of rules; all but one of them never hit here."""
ANSWER_MS: Final = 1000
RECORD_S: Final = 5.0
"""A record that is not complete so long after the last byte has lost some."""


class Line:
    """A raw PTY: the device's end and ours."""

    def __init__(self) -> None:
        self.device, self.ours = os.openpty()
        tty.setraw(self.ours)
        self.path = os.ttyname(self.ours)

    def close(self) -> None:
        os.close(self.device)
        os.close(self.ours)


@dataclass
class Outcome:
    """One contestant's round."""

    latencies_us: list[float]
    missed: int
    cpu_s: float
    peak_mib: float
    sent_bytes: int
    refused_bytes: int
    """What the PTYs did not take, because they were full: lost for the reader."""
    recorded_bytes: float = NAN

    @property
    def lost_bytes(self) -> float:
        return self.refused_bytes + self.sent_bytes - self.recorded_bytes


@contextlib.contextmanager
def lines(count: int) -> Iterator[tuple[list[Line], Line]]:
    """Consoles and a control line."""
    every = [Line() for _ in range(count + 1)]
    try:
        yield every[:-1], every[-1]
    finally:
        for one in every:
            one.close()


def generate(
    generator: Path,
    consoles: list[Line],
    control: Line,
    *,
    rate: int,
    triggers: int,
    gap_us: int,
    warm_up_ms: int,
    answer_ms: int = ANSWER_MS,
) -> "subprocess.Popen[bytes]":
    fds = [control.device, *(one.device for one in consoles)]
    numbers = (rate, warm_up_ms, triggers, gap_us, answer_ms, *fds)
    argv = [str(generator), *map(str, numbers)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=fds, preexec_fn=die_with_parent)


def await_line(stream: "subprocess.Popen[bytes]", text: bytes) -> None:
    assert stream.stdout is not None
    for line in stream.stdout:
        if text in line:
            return
    raise SystemExit(f"a contestant did not start: {stream.args}")


def finish(
    generator: "subprocess.Popen[bytes]",
    pid: int,
    cpu_before_s: float,
    *,
    recorded: Callable[[], float] = lambda: NAN,
    children: bool = False,
) -> Outcome:
    """``recorded``: bytes in the record so far; the processor time is read when it is complete."""
    assert generator.stdout is not None
    text = generator.stdout.read().decode().split("\n")
    generator.wait()
    latencies = [int(line) for line in text if line.lstrip("-").isdigit()]
    sent, refused = (
        next(int(line.split()[1]) for line in text if line.startswith(word))
        for word in ("sent", "refused")
    )
    deadline = time.monotonic() + RECORD_S
    while recorded() < sent and time.monotonic() < deadline:
        time.sleep(0.01)
    cpu_s, peak = cpu_seconds(pid, children=children) - cpu_before_s, peak_mib(pid)
    good = [one / 1000 for one in latencies if one >= 0]
    return Outcome(good, len(latencies) - len(good), cpu_s, peak, sent, refused, recorded())


def total_bytes(files: Sequence[Path]) -> int:
    return sum(one.stat().st_size for one in files)


def run_native(
    reactor: Path,
    generator: Path,
    directory: Path,
    *,
    count: int,
    is_fifo: bool = False,
    **shape: int,
) -> Outcome:
    """The C reactor; ``is_fifo``: with the priority that our reflex takes."""
    with lines(count) as (consoles, control):
        fds = [control.ours, *(one.ours for one in consoles)]
        argv = [str(reactor), str(directory), *map(str, fds)]
        logs = [directory / f"c{number}.log" for number in range(count)]
        with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds) as child:
            await_line(child, b"ready")
            if is_fifo:
                os.sched_setscheduler(child.pid, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
            before = cpu_seconds(child.pid)
            made = generate(generator, consoles, control, **shape)
            outcome = finish(made, child.pid, before, recorded=lambda: total_bytes(logs))
        for one in logs:
            one.unlink()
        return outcome


def run_peer(script: str, generator: Path, **shape: int) -> Outcome:
    """One of the Python peers, in its own environment."""
    with lines(1) as (consoles, control):
        ready_read, ready_write = os.pipe()
        environment = os.environ | {"CONTROL_FD": str(control.ours), "READY_FD": str(ready_write)}
        argv = [str(PEERS_PYTHON), str(PEERS / script), consoles[0].path, str(control.ours)]
        if script.startswith("embedded"):
            argv = [
                str(PEERS_PYTHON), "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:labgrid",
                "--rootdir", str(PEERS),
                "-c", os.devnull, "--embedded-services", "serial", "--port", consoles[0].path, str(PEERS / script),
            ]  # fmt: skip
        fds = (control.ours, ready_write)
        with running(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=fds, env=environment
        ) as child:
            os.close(ready_write)
            if script.startswith("embedded"):
                assert os.read(ready_read, 16), "pytest-embedded did not start"
            else:
                await_line(child, b"ready")
            os.close(ready_read)
            before = cpu_seconds(child.pid, children=True)
            made = generate(generator, consoles, control, **shape)
            return finish(made, child.pid, before, children=True)


def run_ours(generator: Path, directory: Path, *, count: int, **shape: int) -> Outcome:
    """The reflex as a run starts it; a child stands for the supervisor: it decodes every event and
    arms again."""
    with lines(count) as (consoles, control):
        streams = [
            StreamConfig(
                side="primary", name=f"c{number}", fd=one.ours,
                log_path=str(directory / f"o{number}.log"), times_path=str(directory / f"o{number}.times"),
            )
            for number, one in enumerate(consoles)
        ]  # fmt: skip
        logs = [Path(one.log_path) for one in streams]
        others = [
            ConsoleRule(name=str(n), literal=text) for n, text in enumerate(texts()[: RULES - 1])
        ]
        rules = [*others, ConsoleRule(name="digest", literal=TRIGGER)]
        config = ReflexConfig(
            streams=streams,
            control={"primary": control.ours},
            rules=rules,
            default_instruct=["primary"],
        )
        fds = [control.ours, *(one.ours for one in consoles)]
        with running(
            ours("freezeframe.harness.watch.reflex"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(msgspec.json.encode(config) + b"\n")
            child.stdin.flush()
            decoder = events.Decoder()
            told = decoder.feed(os.read(child.stdout.fileno(), 1 << 16))
            assert any(isinstance(event, events.ProcessReady) for event in told), told
            pipes = {"stdin": child.stdout.fileno(), "stdout": child.stdin.fileno()}
            with running([sys.executable, "-m", "benchmarks.supervisor"], **pipes):
                before = cpu_seconds(child.pid)
                made = generate(generator, consoles, control, **shape)
                outcome = finish(made, child.pid, before, recorded=lambda: total_bytes(logs))
        for one in streams:
            Path(one.log_path).unlink()
            Path(one.times_path).unlink()
        return outcome
