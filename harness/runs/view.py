"""Who watches a run or a watch: what is reported while it goes on."""

from collections.abc import Callable
from typing import Protocol

from freezeframe.harness.core.events import AnyEvent
from freezeframe.harness.core.policy import HealthStatus


class View(Protocol):
    """Who watches the run; called from threads of the supervisor only."""

    def phase(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def step(self, side: str, step: str, detail: str) -> None: ...
    def happened(self, source: str, event: AnyEvent) -> None: ...
    def health(self, status: HealthStatus) -> None:
        """The health of a bench under watch has changed."""
        ...


class Silent:
    """Nobody watches."""

    def phase(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def step(self, side: str, step: str, detail: str) -> None:
        pass

    def happened(self, source: str, event: AnyEvent) -> None:
        pass

    def health(self, status: HealthStatus) -> None:
        pass


class HealthTap:
    """A view whose changes of health are given to somebody else first."""

    def __init__(self, view: View, take: Callable[[HealthStatus], None]) -> None:
        self._view, self._take = view, take
        self.phase, self.progress = view.phase, view.progress
        self.step, self.happened = view.step, view.happened

    def health(self, status: HealthStatus) -> None:
        self._take(status)
        self._view.health(status)
