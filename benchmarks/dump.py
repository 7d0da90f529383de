"""Dump pull: one root cause data set, a full event log, over a serial line paced at 921,600 baud
both ways.

Ours is the product's own pull: the driver ``sim_array`` against the simulator's control port,
resumable, each frame's CRC and the set's SHA-256 checked. lrzsz (ZMODEM) sends the same content
uncompressed, as it lies in a controller without compression, and the compressed set as a file. Raw
copy is the line's floor: nothing checked, nothing sent again.
"""

import os
import select
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.common import (
    Options,
    Result,
    Target,
    compiled,
    have,
    main,
    median,
    ours,
    running,
    scratch,
)
from benchmarks.dump_device import SERIAL_NUMBER, stored
from freezeframe.drivers.controllers.sim_array import SimArray
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge.serial_link import open_serial

BAUD = 921_600
LINE_BYTES_PER_S = BAUD // 10
LIMIT_S = 60


@dataclass
class PacedLine:
    device_fd: int
    rig_fd: int
    rig_path: str
    out_bytes: int = 0
    """Towards the rig, known when the line is closed."""
    back_bytes: int = 0


@contextmanager
def paced_line(pacer: Path) -> Iterator[PacedLine]:
    masters, ends = zip(*(os.openpty() for _ in range(2)), strict=True)
    for fd in (*masters, *ends):
        tty.setraw(fd)
    line = PacedLine(ends[0], ends[1], os.ttyname(ends[1]))
    argv = [str(pacer), str(LINE_BYTES_PER_S), *map(str, masters)]
    try:
        with running(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=masters
        ) as child:
            yield line
            line.out_bytes, line.back_bytes = map(int, child.communicate(timeout=5)[0].split())
    finally:
        for fd in (*masters, *ends):
            os.close(fd)


def pull(line: PacedLine, _directory: Path, _content: bytes) -> float:
    with running([*ours("benchmarks.dump_device"), str(line.device_fd)], stdout=subprocess.PIPE,
                 pass_fds=(line.device_fd,)) as device:  # fmt: skip
        assert device.stdout is not None
        device.stdout.readline()
        link = open_serial(line.rig_path, baud=BAUD)
        controller = SimArray("primary", link, serial_number=SERIAL_NUMBER)
        deadline_ns = time.monotonic_ns() + LIMIT_S * NS_PER_S
        begun = time.monotonic()
        (entry,) = controller.sets(deadline_ns)
        controller.pull(entry, b"", deadline_ns, lambda _: None)
        took_s = time.monotonic() - begun
        link.close()
    return took_s


def lrzsz(line: PacedLine, directory: Path, content: bytes) -> float:
    source, arrived = directory / "dump", directory / "arrived"
    source.write_bytes(content)
    arrived.mkdir(exist_ok=True)
    quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL}
    begun = time.monotonic()
    # The receiver begins when the sender calls: one that came too early would be waited for until a
    # timeout of 10 s.
    with running(
        ["sz", "-b", "-q", str(source)], stdin=line.device_fd, stdout=line.device_fd, **quiet
    ) as sender:
        assert select.select([line.rig_fd], [], [], LIMIT_S)[0], "sz says nothing"
        receive = ["rz", "-b", "-q", "-y"]
        with running(receive, stdin=line.rig_fd, stdout=line.rig_fd, cwd=arrived, **quiet):
            # Its end says that the receiver has confirmed all; rz itself may wait for half a minute
            # for a farewell that sz flushes from the line when it ends.
            sender.wait(LIMIT_S)
            took_s = time.monotonic() - begun
    assert (arrived / "dump").read_bytes() == content
    return took_s


def raw(line: PacedLine, directory: Path, content: bytes) -> float:
    source, got = directory / "raw", bytearray()
    source.write_bytes(content)
    begun = time.monotonic()
    with running(["cat", str(source)], stdout=line.device_fd):
        while len(got) < len(content):
            got += os.read(line.rig_fd, 65536)
    took_s = time.monotonic() - begun
    assert got == content
    return took_s


def measure(options: Options) -> Result:
    if not have("sz", "rz"):
        raise SystemExit("lrzsz is not installed: make bench-setup")
    sets = stored()
    (entry,) = sets.entries()
    compressed = sets.read(entry.set_id)
    assert compressed is not None
    content = zstandard.decompress(compressed)
    run: dict[str, tuple[Callable[[PacedLine, Path, bytes], float], bytes]] = {
        "FreezeFrame pull": (pull, compressed),
        "lrzsz": (lrzsz, content),
        "lrzsz, of the compressed set": (lrzsz, compressed),
        "raw copy": (raw, content),
        "raw copy, of the compressed set": (raw, compressed),
    }
    times: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    with scratch(memory=True) as directory:
        pacer = compiled("pacer", directory)
        for number in range(options.rounds):
            for name, (contestant, payload) in run.items():
                print(f"round {number + 1}: {name}", file=sys.stderr)
                with paced_line(pacer) as line:
                    times.setdefault(name, []).append(contestant(line, directory, payload))
                shares.setdefault(name, []).append(
                    len(payload) / (line.out_bytes + line.back_bytes)
                )
    took = {name: median(values) for name, values in times.items()}
    ours_s = took["FreezeFrame pull"]
    rows: list[list[object]] = [
        [name, len(payload), took[name], median(shares[name]),
         len(payload) / LINE_BYTES_PER_S / took[name], took[name] / ours_s]
        for name, (_, payload) in run.items()
    ]  # fmt: skip
    return Result(
        "dump", f"Dump pull over a serial line of {BAUD:,} baud",
        ["who", "payload bytes", "seconds", "payload / line bytes, both ways", "payload / line's time", "time / ours"],
        rows,
        [
            Target("payload among the line's bytes", median(shares["FreezeFrame pull"]), 0.95, unit="of them"),
            Target("payload in the line's time", len(compressed) / LINE_BYTES_PER_S / ours_s, 0.95, unit="of it"),
            Target("faster than lrzsz", took["lrzsz"] / ours_s, 2.0),
        ],
        [f"The set: {len(content):,} bytes, of which {len(compressed):,} are left by zstd."],
    )  # fmt: skip


if __name__ == "__main__":
    main(measure, rounds=3, seconds=0.0)
