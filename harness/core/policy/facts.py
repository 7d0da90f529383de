"""What the policy knows of each part and each side, and when it next wants to know more."""

from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.policy.messages import BenchPart

FULL_DUPLEX: Final = "full duplex"
CONSOLE: Final[dict[Side, BenchPart]] = {
    "primary": BenchPart.PRIMARY_CONSOLE,
    "secondary": BenchPart.SECONDARY_CONSOLE,
}
CONTROL: Final[dict[Side, BenchPart]] = {
    "primary": BenchPart.PRIMARY_CONTROL,
    "secondary": BenchPart.SECONDARY_CONTROL,
}
SIDE_OF: Final[dict[BenchPart, Side]] = {
    part: side for side, part in (*CONSOLE.items(), *CONTROL.items())
}


@dataclass
class PartFacts:
    """One part that is there, or is opened again and again."""

    up: bool = False
    was_up: bool = False
    """Since the policy began: only then is what is missing a gap."""
    reason: str = "not opened yet"
    lost_ns: Ns | None = 0
    """None: with the process before, which was killed."""
    opening: bool = False
    """``Reopen`` is out and not answered."""
    reopen_ns: Ns = 0
    pause_s: float = 0.0


@dataclass
class SideFacts:
    """One controller, as it has answered in its present boot."""

    epoch: int | None = None
    """None: it has not been identified in this boot."""
    pair_state: str = ""
    why: str = "has not been asked yet"
    """Why it is not identified."""
    is_pending: bool = True
    """It has not been asked, or has not answered, since it was last forgotten."""
    asking: bool = False
    ask_ns: Ns = 0
    pause_s: float = 0.0
    asked_ns: Ns = -1
    """When the question went out that it answered last."""
    since_ns: Ns = -1
    """When it was last forgotten: an answer to an older question is worth nothing."""
    heard: bool = False
    """Its canary came in since the console, the reflex and the boot are what they are."""
    unheard: str = ""
    """Why its canary did not come."""
    can_print: bool = True
    unrehearsed: str = ""
    """Why its frames could not be tried out; "": they were."""
    listening: bool = False
    """``Canary`` is out and not answered."""
    canary_ns: Ns = 0

    def forget(self, why: str, now: Ns) -> None:
        """It must be asked anew before it is armed again."""
        self.epoch, self.pair_state, self.why = None, "", why
        self.is_pending = True
        self.heard, self.unheard = False, ""
        self.since_ns = self.ask_ns = self.canary_ns = now
        self.pause_s = 0.0
