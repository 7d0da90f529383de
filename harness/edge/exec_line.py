"""``exec:COMMAND``: a line that a program brings: ssh, ``ipmitool sol activate``, conserver's
``console``, telnet.

The program runs on a terminal of its own, in raw mode, in a session of its own; the line's descriptor
is the terminal's other end, so that it is read and written like a device. Nothing is interpreted by a
shell. What it says on its standard error is kept for the moment at which it ends.
"""

import contextlib
import fcntl
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import tty
from typing import Final

from freezeframe.harness.errors import RigError

PREFIX: Final = "exec:"
END_S: Final = 2.0
"""After its terminal has gone a program may take so long to end; then it is killed."""
MAX_SAID_BYTES: Final = 300
"""Of the end of its standard error."""
_TAKES_TERMINAL: Final = "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execvp(sys.argv[1],sys.argv[1:])"
"""The program's terminal controls it: it is told when that goes."""


def command_of(url: str) -> list[str]:
    """The program and its arguments. RigError: it is none, or is not installed."""
    try:
        words = shlex.split(url.removeprefix(PREFIX))
    except ValueError as error:
        raise RigError(f"{url}: not a command: {error}") from error
    if not words:
        raise RigError(f"{url}: names no program, as in exec:ssh node-a")
    if shutil.which(words[0]) is None:
        raise RigError(f"{url}: {words[0]} is not installed on this machine")
    return words


class ExecPort:
    """The terminal of a running program; ``fileno`` is the harness's end."""

    def __init__(self, url: str) -> None:
        command = command_of(url)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - until close
        self._fd, theirs = pty.openpty()
        try:
            tty.setraw(theirs, termios.TCSANOW)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TAKES_TERMINAL, *command],
                stdin=theirs, stdout=theirs, stderr=self._said, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._fd)
            self._said.close()
            raise RigError(f"{url} cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs)
        fcntl.fcntl(self._fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def reason(self) -> str:
        """Why the line has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        status = self._process.poll()
        ended = (
            "its program closed its terminal"
            if status is None
            else f"its program ended with status {status}"
        )
        size = os.fstat(self._said.fileno()).st_size
        said = os.pread(self._said.fileno(), MAX_SAID_BYTES, max(0, size - MAX_SAID_BYTES))
        text = " ".join(said.decode("utf-8", "replace").split())
        return ended + (f": {text}" if text else "")

    def close(self) -> None:
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGHUP)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._said.close()
