"""Start the child processes of a run, exchange events with them, and stop them within a time
limit."""

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
"""Length of the stderr excerpt of a dead child in an error message."""
KILLED_S = 5.0


class Child:
    """A child ``python -m MODULE``. The first line on its stdin is its configuration; then events
    go both ways.

    It ends when the pipe of its parent closes: every process of ours ends when its stdin does.
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
                # The supervisor handles Ctrl-C: it stops its children in order, each within a time limit.
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
        """Exit status; None: running; negative: the signal that ended it."""
        return self._process.returncode

    def fileno(self) -> int:
        """Descriptor that becomes readable when events are available."""
        return self._stdout_fd

    def send(self, event: Event) -> None:
        self._write(events.encode(event))

    def receive(self) -> list[AnyEvent]:
        """Return the available events; ``ended`` is set when the child has closed its side."""
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
        """Return the end of the stderr output of the child."""
        with contextlib.suppress(OSError):
            return self.stderr_path.read_text(errors="replace")[-STDERR_SHOWN_CHARS:].strip()
        return ""

    def death(self) -> RigError:
        """Return the error for a child that ended unexpectedly."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        words = self.last_words()
        return RigError(
            f"{self.name} process ended with status {self._process.returncode}{': ' + words if words else ''}"
        )

    def stop(self, deadline_ns: Ns) -> list[AnyEvent]:
        """Ask the child to stop, read its last events, and kill it after the deadline."""
        with contextlib.suppress(RigError):  # it may have ended by itself
            self.send(events.Stop(t_ns=time.monotonic_ns()))
        with contextlib.suppress(OSError):
            os.close(self._stdin_fd)
            # Popen must not close this number again: it may then belong to another file.
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
            # A process killed this long ago still exists only if a device hangs in the kernel.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=KILLED_S)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._stdin_fd, view) :]
        except BrokenPipeError as error:
            raise self.death() from error
