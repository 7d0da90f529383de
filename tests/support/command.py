"""The installed command as a process: run to its end, or read while it runs."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waiting import LIMIT_S

COMMAND = [sys.executable, "-m", "freezeframe.harness.cli"]


def freezeframe(
    *arguments: str, cwd: Path, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=limit_s
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout)
    return value


class Output:
    """What ``process`` prints, read up to one mark after another. What follows a mark in the same
    read is kept for the next."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self._held = b""

    def until(self, mark: bytes, limit_s: float = LIMIT_S) -> bytes:
        """Everything up to and with ``mark``; a bounded wait."""
        deadline = time.monotonic() + limit_s
        while mark not in self._held:
            left = deadline - time.monotonic()
            assert left > 0, f"waited {limit_s} s for {mark!r}; there is {self._held!r}"
            if select.select([self._fd], [], [], left)[0]:
                data = os.read(self._fd, 65536)
                assert data, f"ended before {mark!r}; there is {self._held!r}"
                self._held += data
        before, _, self._held = self._held.partition(mark)
        return before + mark


@contextlib.contextmanager
def simulated_bench(folder: Path) -> Iterator[Path]:
    """The bench file of a simulated pair that runs beside the test."""
    process = subprocess.Popen(
        [*COMMAND, "sim", "--json", "--dir", str(folder / "sim")],
        stdout=subprocess.PIPE,
        cwd=folder,
    )
    try:
        yield Path(json.loads(Output(process).until(b"}\n"))["bench"])
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def changed(bench: Path, pattern: str, replacement: str) -> Path:
    """A copy of the bench file with one thing changed."""
    text, count = re.subn(pattern, replacement, bench.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    copy = bench.with_name("changed.toml")
    copy.write_text(text)
    return copy
