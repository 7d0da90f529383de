"""A bounded wait for something that gives no event of its own: another process's file, a node's
state."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STEP_S = 0.05
LIMIT_S = 200.0
"""Of a hang, not of speed: a recovery that is done in 2 s may take long on a busy machine."""


def await_true(ready: Callable[[], T | None], limit_s: float, what: str) -> T:
    """What ``ready`` returns once it is true."""
    until = time.monotonic() + limit_s
    while not (value := ready()):
        assert time.monotonic() < until, f"waited {limit_s:g} s for {what}"
        threading.Event().wait(STEP_S)
    return value


def await_listener(path: Path, limit_s: float = LIMIT_S) -> None:
    """Until somebody accepts connections on the unix socket ``path``: the name is there before
    that."""

    def accepts() -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(path)) == 0

    await_true(accepts, limit_s, f"a listener on {path}")
