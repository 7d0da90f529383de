"""A workload process under test: started, heard, ended."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.blocks.blockstamp import Journal

LIMIT_S = 60


@dataclass
class Run:
    """A running writer and what it has said."""

    process: "subprocess.Popen[bytes]"
    journal_path: Path
    heard: list[events.AnyEvent] = field(default_factory=list)
    decoder: events.Decoder = field(default_factory=events.Decoder)

    def hear(self, kind: type[events.Event], *, acked: int = 0) -> events.AnyEvent:
        """Wait for an event of ``kind`` (a progress of at least ``acked`` writes)."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        end = time.monotonic() + LIMIT_S
        seen = 0
        while True:
            for event in self.heard[seen:]:
                if isinstance(event, kind) and getattr(event, "writes_acked", acked) >= acked:
                    return event
            seen = len(self.heard)
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"heard only {self.heard[-3:]}"
            data = os.read(fd, 65536)
            assert data, f"ended after {self.heard[-3:]}"
            self.heard += self.decoder.feed(data)

    def finish(self) -> events.WorkloadDone:
        done = self.hear(events.WorkloadDone)
        assert isinstance(done, events.WorkloadDone)
        assert self.process.wait(LIMIT_S) == (0 if done.ok else 1)
        return done

    def journal(self) -> Journal:
        return Journal.read(self.journal_path.read_bytes())


class Starter:
    """Starts ``python -m MODULE`` with a configuration."""

    def __init__(self, folder: Path, module: str) -> None:
        self.folder = folder
        self.module = module
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, uri: str, **settings: object) -> Run:
        path = self.folder / f"journal{len(self.processes)}"
        defaults: dict[str, object] = {
            "bytes_total": 4 << 20,
            "write_bytes": 64 << 10,
            "queue_depth": 8,
        }
        config = {"uri": uri, "journal_path": str(path), **defaults, **settings}
        process = self.raw(msgspec.json.encode(config) + b"\n")
        return Run(process, path)

    def raw(self, first: bytes) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-m", self.module]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(first)
        process.stdin.flush()
        return process


@contextmanager
def starter(folder: Path, module: str) -> Iterator[Starter]:
    """Every process that it started has ended behind the block."""
    starter = Starter(folder, module)
    yield starter
    for process in starter.processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
