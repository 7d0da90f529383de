"""The times and choices of the policy; the bench file's ``[policy]`` sets them, these are the
defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.policy.guard import Limits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chooses. Every time is in seconds."""

    serial_numbers: Mapping[Side, str]
    """Who must answer. Another device is reported, and never instructed."""
    instruct: tuple[Side, ...] = ("primary", "secondary")
    """Who is armed."""
    controlled: tuple[Side, ...] = ("primary", "secondary")
    """Who has a control line; the others are listened to, and nobody asks them anything."""
    limits: Limits = field(default_factory=Limits)
    during_recovery: Literal["join", "next"] = "join"
    """A trigger while an incident is being collected: part of that incident, or one of its own."""
    identify_timeout_s: float = 1.0
    """For one question. A warmstart takes longer; the question is put again."""
    look_s: float = 0.25
    """Pause between two questions while somebody is missing or the pair is not in full duplex."""
    look_max_s: float = 1.0
    """That pause doubles up to this, so that a controller that answers again is armed within 2 s."""
    poll_s: float = 60.0
    """Pause between two questions and two canaries while all is well."""
    canary_timeout_s: float = 2.0
    """From the request for a canary to the latest time at which its line is heard."""
    dry_run: bool = False
    """Nobody is armed. Of each trigger it is said what would have been sent."""
    reopen_s: float = 0.1
    """Pause before a lost line is opened again; it doubles with each failure."""
    reopen_max_s: float = 1.0
    """That pause doubles up to this: a line that is there again after a day is in use, and its side armed,
    within 2 s."""


def ns(seconds: float) -> Ns:
    """Core time of a setting."""
    return round(seconds * NS_PER_S)
