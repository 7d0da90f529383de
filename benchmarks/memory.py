"""Memory: the reflex over much console text, the link watch over much link, sampled while they
work."""

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import msgspec

from benchmarks.common import Options, Result, Target, main, ours, running, scratch
from benchmarks.link_load import traffic, watching
from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.edge.netns import make_pair
from freezeframe.harness.watch.reflex_io import ReflexConfig, StreamConfig

SAMPLES = 8


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def console_samples(directory: Path, total_bytes: int) -> list[float]:
    """Text through ``freezeframe.harness.watch.reflex`` over a pipe; its record goes to a file that
    is not kept."""
    read_fd, write_fd = os.pipe()
    config = ReflexConfig(
        streams=[
            StreamConfig(side="primary", fd=read_fd, log_path="/dev/null", times_path=str(directory / "times"))
        ],
        control={},
        rules=[ConsoleRule(name=str(n), literal=f"error {n}") for n in range(1000)],
        default_instruct=["primary"],
    )  # fmt: skip
    samples: list[float] = []
    with running(
        ours("freezeframe.harness.watch.reflex"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(read_fd,),
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(config) + b"\n")
        child.stdin.flush()
        events.Decoder().feed(os.read(child.stdout.fileno(), 1 << 16))
        drain = threading.Thread(target=_drain, args=(child.stdout.fileno(),), daemon=True)
        drain.start()
        line = (
            b"[  123.456789] host: 128 writes, 8388608 bytes, queue 12, cache 31 percent dirty, all well\r\n"
            * 700
        )
        sent = 0
        for step in range(1, SAMPLES + 1):
            while sent < total_bytes * step // SAMPLES:
                sent += os.write(write_fd, line)
            samples.append(resident_mib(child.pid))
    os.close(read_fd)
    os.close(write_fd)
    return samples


def _drain(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1 << 16):
            pass


def link_samples(directory: Path, total_bytes: int, mb_per_s: float) -> list[float]:
    link, samples = make_pair(), []
    with contextlib.closing(link), contextlib.ExitStack() as stack:
        watch = stack.enter_context(watching(link, directory / "m.pcapng", max_mib=64))
        receiver = stack.enter_context(
            running(traffic("receiver", link, 65536, 0, 0), stdout=subprocess.PIPE)
        )
        assert receiver.stdout is not None
        receiver.stdout.readline()
        writes = total_bytes // 65536 // 64 * 64
        sender = stack.enter_context(
            running(traffic("sender", link, 65536, writes, mb_per_s), stdout=subprocess.PIPE)
        )
        drain = threading.Thread(target=_drain, args=(watch.child.stdout.fileno(),), daemon=True)  # type: ignore[union-attr]
        drain.start()
        pause_s = total_bytes / mb_per_s / 1e6 / SAMPLES
        while sender.poll() is None and len(samples) < 4 * SAMPLES:
            time.sleep(pause_s)
            samples.append(resident_mib(watch.child.pid))
    return samples


def measure(options: Options) -> Result:
    console_mb, link_mb = options.seconds * 100, options.seconds * 100
    with scratch(memory=True) as directory:
        console = console_samples(directory, int(console_mb * 1e6))
        link = link_samples(directory, int(link_mb * 1e6), 150.0)
    rows = [
        ["reflex, 1,000 rules; console", console_mb, console[0], max(console), console[-1]],
        ["link watch, 64 MiB ring; link", link_mb, link[0], max(link), link[-1]],
    ]
    targets = [
        Target("reflex, peak", max(console), 64, at_least=False, unit="MiB"),
        Target(
            "reflex, growth from the first eighth to the end",
            console[-1] - console[0],
            1,
            False,
            "MiB",
        ),
        Target("link watch, peak", max(link), 256, at_least=False, unit="MiB"),
        Target(
            "link watch, growth from the first eighth to the end",
            link[-1] - link[0],
            16,
            False,
            "MiB",
        ),
    ]
    columns = ["process and what it reads", "MB read", "first MiB", "peak MiB", "last MiB"]
    return Result("memory", "Memory", columns, rows, targets, ["--seconds 100 is 10 GB of each."])


if __name__ == "__main__":
    main(measure, rounds=1, seconds=10.0)
