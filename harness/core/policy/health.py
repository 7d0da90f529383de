"""The health of a bench: one word, and why.

    armed                   frames are loaded, both consoles have been heard since
    armed (unrehearsed)     frames are loaded, a canary is still to come
    degraded                frames are loaded, but something is missing: a line, a side, the warmstart
    blind                   nothing can be seen: the reflex is gone, or both consoles and the capture
    disarmed                nothing is loaded, and something can still be seen: on purpose in a dry run

The rows of ``status`` are a table: the first one that applies names the health. All rows of one health that apply
are named together, so that nothing hides another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from freezeframe.harness.core.policy.guard import UNTIL_A_PERSON


class Health(StrEnum):
    ARMED = "armed"
    UNREHEARSED = "armed (unrehearsed)"
    DEGRADED = "degraded"
    BLIND = "blind"
    DISARMED = "disarmed"

    @property
    def has_frames(self) -> bool:
        """Whether a trigger would instruct somebody."""
        return self in (Health.ARMED, Health.UNREHEARSED, Health.DEGRADED)


@dataclass(frozen=True)
class HealthStatus:
    """Health and its reason; the reason of ``armed`` is empty, of all others it never is."""

    health: Health
    why: str = ""

    def __post_init__(self) -> None:
        assert bool(self.why) is (self.health is not Health.ARMED)

    @property
    def is_breaker_open(self) -> bool:
        """The storm guard has disarmed the bench, and only a person arms it again."""
        return self.health is Health.DISARMED and self.why.endswith(UNTIL_A_PERSON)

    def __str__(self) -> str:
        return f"{self.health.value}: {self.why}" if self.why else self.health.value


@dataclass(frozen=True)
class HealthInputs:
    """What the health is judged by; each text is a reason, "" or () when it does not apply."""

    decided: str
    """Nobody may be instructed: the end has begun, a person or the breaker said so."""
    unseen: str
    """Nothing can be seen."""
    busy: str
    """An incident is being collected or looked up."""
    unready: tuple[str, ...]
    """Why no side can be armed: who does not answer, the pair's state, the disk."""
    missing: tuple[str, ...]
    """What is lost or restricted while frames are loaded."""
    unheard: tuple[str, ...]
    """Whose canary has not come yet."""
    withheld: str = ""
    """Why frames that could be loaded are not."""


def status(view: HealthInputs) -> HealthStatus:
    """The first row that applies; in its stead ``disarmed`` where its frames are withheld."""
    found = _first_row(view)
    if not (view.withheld and found.health.has_frames):
        return found
    return HealthStatus(Health.DISARMED, "; ".join(filter(None, (view.withheld, found.why))))


def _first_row(view: HealthInputs) -> HealthStatus:
    rows: Iterable[tuple[Health, tuple[str, ...]]] = (
        (Health.DISARMED, (view.decided,)),
        (Health.BLIND, (view.unseen,)),
        (Health.DISARMED, (view.busy,)),
        (Health.DISARMED, view.unready),
        (Health.DEGRADED, view.missing),
        (Health.UNREHEARSED, view.unheard),
    )
    for health, reasons in rows:
        said = [reason for reason in reasons if reason]
        if said:
            return HealthStatus(health, "; ".join(said))
    return HealthStatus(Health.ARMED)
