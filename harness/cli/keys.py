"""Take single keys from the terminal."""

import contextlib
import sys
import termios
import tty
from collections.abc import Iterator


def has_keys() -> bool:
    """Whether somebody can press one."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def keys_at_once() -> Iterator[None]:
    """Keys come without Enter, and are not shown; afterwards the terminal is as it was."""
    if not has_keys():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
