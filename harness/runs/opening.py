"""Opens lost lines of a bench under watch again, in a thread of its own: a port that hangs while it is
opened delays nobody."""

import queue
import threading
from collections.abc import Callable

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.policy.facts import CONSOLE, SIDE_OF
from freezeframe.harness.core.policy.messages import BenchPart
from freezeframe.harness.errors import RigError


class LineOpening(threading.Thread):
    """``answer(part, error)`` is called in this thread once a request; "" is: it is open."""

    def __init__(self, opened: OpenBench, answer: Callable[[BenchPart, str], None]) -> None:
        super().__init__(name="opening", daemon=True)
        self._opened, self._answer = opened, answer
        self._parts: queue.SimpleQueue[BenchPart | None] = queue.SimpleQueue()

    def put(self, part: BenchPart) -> None:
        self._parts.put(part)

    def stop(self) -> None:
        """End after the line that is being opened."""
        self._parts.put(None)

    def run(self) -> None:
        while (part := self._parts.get()) is not None:
            side, error = SIDE_OF[part], ""
            try:
                self._opened.reopen_line(side, console=part is CONSOLE[side])
            except (RigError, OSError) as problem:
                error = str(problem)
            self._answer(part, error)
