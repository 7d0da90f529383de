"""A command of ours in a real terminal: a pseudo-terminal, and an emulator that shows what a person would see."""

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte
from command import COMMAND
from waiting import LIMIT_S


class Terminal:
    """``screen`` is the emulator's; all that was printed is in ``raw``."""

    def __init__(self, *arguments: str, columns: int, lines: int, cwd: Path) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._main, other = os.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.modes = termios.tcgetattr(other)
        hidden = ("COLUMNS", "LINES", "NO_COLOR")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        # Its controlling terminal, so that Ctrl-C comes as a signal.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *COMMAND, *arguments], cwd=cwd, stdin=other, stdout=other, stderr=other,
            env=environment | {"TERM": "xterm-256color"},
        )  # fmt: skip
        self._other = other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self._other)

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    def until(self, ready: Callable[[str], object], what: str) -> str:
        """The screen as soon as that is true of it; a bounded wait."""
        until_s = time.monotonic() + LIMIT_S
        while not ready(self.text):
            left_s = until_s - time.monotonic()
            assert left_s > 0, f"waited {LIMIT_S:g} s for {what}; there is\n{self.text}"
            self._take(min(left_s, 0.5))
        return self.text

    def ended(self) -> int:
        """Its exit status, with all that it printed taken."""
        until_s = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < until_s, f"it has not ended\n{self.text}"
            self._take(0.1)
        while self._take(0):
            pass
        return self.process.returncode

    def type(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    @property
    def modes_now(self) -> object:
        return termios.tcgetattr(self._other)

    def _take(self, timeout_s: float) -> bool:
        if not select.select([self._main], [], [], timeout_s)[0]:
            return False
        data = os.read(self._main, 65536)
        self.raw += data
        self._stream.feed(data)
        return True
