"""A watch that a service manager has started: it reports that it is ready, what the health is, and that
the station's loop turns."""

import threading
from collections.abc import Callable
from typing import Final, Self

from freezeframe.harness.core.policy import HealthStatus
from freezeframe.harness.edge.servicemanager import ServiceManager

BEATS_PER_LIMIT: Final = 3
"""One that comes late is followed by another in time."""
JOIN_S: Final = 5.0


class ServiceStatus:
    """The health is the status of the service; with the first one that can be sent it is ready."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._is_ready = False

    def health(self, status: HealthStatus) -> None:
        ready = () if self._is_ready else ("READY=1",)
        # A manager whose socket is full gets none; without READY=1 it would end the watch.
        is_sent = self._manager.send(*ready, self._manager.status(str(status)))
        self._is_ready = self._is_ready or is_sent


class Heartbeat(threading.Thread):
    """``WATCHDOG=1`` comes from the station's own thread: a loop that hangs sends none, whatever the
    other threads do. On exit the service is stopping, and its watchdog is over."""

    def __init__(self, manager: ServiceManager, post: Callable[[Callable[[], None]], None]) -> None:
        """``post`` has something done in the station's thread."""
        super().__init__(name="heartbeat", daemon=True)
        self._manager, self._post = manager, post
        self._over = threading.Event()
        self._is_answered = True

    def ask(self) -> None:
        """Ask the loop for a sign, unless the last question is still to be answered."""
        if self._is_answered:
            self._is_answered = False
            self._post(self._answer)

    def _answer(self) -> None:
        self._manager.send("WATCHDOG=1")
        self._is_answered = True

    def run(self) -> None:
        while not self._over.wait(self._manager.watchdog_s / BEATS_PER_LIMIT):
            self.ask()

    def __enter__(self) -> Self:
        if self._manager.watchdog_s > 0:
            self.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._over.set()
        if self.is_alive():
            self.join(JOIN_S)
        text = self._manager.status("stopping: nobody is instructed")
        self._manager.send("STOPPING=1", text, wait_s=JOIN_S)
