"""``exec:COMMAND``: a line that a program brings: ssh, ``ipmitool sol activate``, conserver's
``console``, telnet.

The program runs on a terminal of its own, in raw mode, in a session of its own; the line's descriptor
is the terminal's other end, so that it is read and written like a device. Nothing is interpreted by a
shell. The end of what it says on its standard error is kept for the moment at which it ends.
"""

import contextlib
import fcntl
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty
from typing import Final

from freezeframe.harness.errors import RigError

PREFIX: Final = "exec:"
END_S: Final = 2.0
"""After its terminal has gone a program may take so long to end; then it is killed."""
MAX_SAID_BYTES: Final = 300
"""Of the end of its standard error. What it said before is read and forgotten: a program that
complains for weeks fills neither memory nor disk."""
SAID_S: Final = 1.0
"""For the last of it, after the program has ended. Who inherited the pipe may keep it open."""
READ_BYTES: Final = 4096
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
        self._said = b""
        self._fd, theirs = pty.openpty()
        said, says = os.pipe()
        try:
            tty.setraw(theirs, termios.TCSANOW)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TAKES_TERMINAL, *command],
                stdin=theirs, stdout=theirs, stderr=says, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._fd)
            os.close(said)
            raise RigError(f"{url} cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs)
            os.close(says)
        fcntl.fcntl(self._fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        self._listener = threading.Thread(
            target=self._listen, args=(said,), name="stderr of a line", daemon=True
        )
        self._listener.start()

    def _listen(self, said: int) -> None:
        """Until nobody has the pipe any more."""
        with open(said, "rb", buffering=0) as pipe:
            while piece := pipe.read(READ_BYTES):
                self._said = (self._said + piece)[-MAX_SAID_BYTES:]

    def fileno(self) -> int:
        return self._fd

    def reason(self) -> str:
        """Why the line has ended."""
        status = self._ended_with(END_S)
        if status is None:
            ended = "its program closed its terminal"
        else:
            ended = f"its program ended with status {status}"
            self._listener.join(SAID_S)
        text = " ".join(self._said.decode("utf-8", "replace").split())
        return ended + (f": {text}" if text else "")

    def _ended_with(self, within_s: float) -> int | None:
        """The program's exit status, negative for a signal; None: it runs. It stays a zombie until
        ``close``: its number is also its process group's, and may be another's once it is reaped."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            process_fd = os.pidfd_open(self._process.pid)
            try:
                if not select.select([process_fd], [], [], within_s)[0]:
                    return None
            finally:
                os.close(process_fd)
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        except (ProcessLookupError, ChildProcessError):  # ``close`` reaps it in another thread
            return self._process.wait()
        assert found is not None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def close(self) -> None:
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._signal(signal.SIGHUP)
        if self._ended_with(END_S) is None:
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """To the program and its children. It is not reaped yet, so the group is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
