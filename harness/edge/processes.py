"""The child processes of a run: started, spoken to in events, stopped within a bound."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.events import AnyEvent, Event, Ns
from freezeframe.harness.errors import RigError

READ_BYTES = 256 << 10
STDERR_SHOWN_CHARS = 600
"""How much of a dead child's last words goes into an error text."""
KILLED_S = 5.0


class Child:
    """``python -m MODULE``: its configuration is the first line on its stdin, then events both
    ways.

    The child dies with its parent's pipe: every process of ours ends when its stdin does.
    """

    def __init__(
        self,
        name: str,
        module: str,
        config: object,
        *,
        stderr_path: Path,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.stderr_path = stderr_path
        self._decoder = events.Decoder()
        self.ended = False
        with stderr_path.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=tuple(pass_fds),
                # Ctrl-C is the supervisor's: it ends its children in order, each within a bound.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin_fd = self._process.stdin.fileno()
        self._stdout_fd = self._process.stdout.fileno()
        os.set_blocking(self._stdout_fd, False)
        self._write(msgspec.json.encode(config) + b"\n")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    def fileno(self) -> int:
        """The descriptor that turns readable when events are there."""
        return self._stdout_fd

    def send(self, event: Event) -> None:
        self._write(events.encode(event))

    def receive(self) -> list[AnyEvent]:
        """The events that are there; ``ended`` is set when the child has closed its side."""
        received: list[AnyEvent] = []
        while not self.ended:
            try:
                data = os.read(self._stdout_fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self.ended = True
                break
            received += self._decoder.feed(data)
        return received

    def last_words(self) -> str:
        """The end of what the child wrote to stderr."""
        with contextlib.suppress(OSError):
            return self.stderr_path.read_text(errors="replace")[-STDERR_SHOWN_CHARS:].strip()
        return ""

    def death(self) -> RigError:
        """Call when ``ended`` came unasked."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        words = self.last_words()
        return RigError(
            f"{self.name} process ended with status {self._process.returncode}{': ' + words if words else ''}"
        )

    def stop(self, deadline_ns: Ns) -> list[AnyEvent]:
        """Ask for the end, take the last events, then insist: after the deadline the child is
        killed."""
        with contextlib.suppress(RigError):  # it may have ended by itself
            self.send(events.Stop(t_ns=time.monotonic_ns()))
        with contextlib.suppress(OSError):
            os.close(self._stdin_fd)
            # Popen must not close the number again: by then it may be another file's.
            self._process.stdin = None
        last: list[AnyEvent] = []
        os.set_blocking(self._stdout_fd, False)
        while not self.ended:
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0 or not select.select([self._stdout_fd], [], [], left_s)[0]:
                break
            last += self.receive()
        self.kill_if_running(max(0.1, (deadline_ns - time.monotonic_ns()) / 1e9))
        return last

    def kill_if_running(self, wait_s: float = 0.0) -> None:
        try:
            self._process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # Longer than this the kernel does not let go of it only where a device hangs.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=KILLED_S)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._stdin_fd, view) :]
        except BrokenPipeError as error:
            raise self.death() from error
