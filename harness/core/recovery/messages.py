"""What the recovery is given and what it asks for: its settings, the events, the actions, and the
record of its steps."""

from dataclasses import dataclass
from typing import Literal

from freezeframe.harness.core.events import Ns, Side


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Timeouts of the recovery, and what a hung warmstart leads to."""

    reply_timeout_s: float
    boot_timeout_s: float
    pull_timeout_s: float
    """For the whole set of one side, including resumed pulls."""
    rejoin_timeout_s: float
    power_cycle: bool
    """Whether to cycle the power of a controller that does not restart; at most once."""
    breaks: frozenset[Side] = frozenset()
    """Sides whose controller gets a BREAK when it does not restart, at most once, before its power is
    cycled."""
    repeats: int = 0
    """How often an unanswered frame is written again. Only for device types that refuse the second
    copy."""
    saves_late: bool = False
    """Whether a side that no frame reached is asked to save, without a restart, once it answers. Else it
    is only looked whether it keeps a set of the incident."""


# --- what happened ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class FrameOut:
    side: Side
    t_ns: Ns | None = None
    """When the write() returned. None: unknown; use the time this event was processed."""


@dataclass(frozen=True, kw_only=True)
class FrameNotOut:
    side: Side
    reason: str
    t_ns: Ns | None = None
    """When it should have gone out. None: unknown; use the time this event was processed."""


@dataclass(frozen=True, kw_only=True)
class Replied:
    side: Side
    ok: bool
    status: str = "ok"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The controller answered an identify request."""

    side: Side
    boot_epoch: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """It keeps a set of the incident although no frame is known to have reached it."""

    side: Side
    boot_epoch: int


@dataclass(frozen=True, kw_only=True)
class TooLate:
    """It answered, and a save would tell nothing of the incident."""

    side: Side
    reason: str


@dataclass(frozen=True, kw_only=True)
class BreakSent:
    side: Side
    error: str = ""
    """Why no BREAK could be sent; empty if it was."""


@dataclass(frozen=True, kw_only=True)
class PowerCycled:
    side: Side
    error: str = ""
    """Why the power could not be cycled; empty if it was."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    side: Side


@dataclass(frozen=True, kw_only=True)
class PullBroke:
    side: Side
    reason: str
    arrived_bytes: int
    resumable: bool = True
    """False: the controller has no such set, or reports that no more data will come."""


@dataclass(frozen=True, kw_only=True)
class Rejoined:
    """The pair has returned to full duplex."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    equal: bool | None
    """None: the data were not compared."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class TimedOut:
    """The deadline of the current action has passed."""

    detail: str = ""
    line_gone: bool = False
    """The control line is not there: the silence is the bench's, not the controller's."""
    is_stranger: bool = False
    """Another device answered on the control line."""


SideEvent = (
    FrameOut
    | FrameNotOut
    | Replied
    | Answered
    | Kept
    | TooLate
    | BreakSent
    | PowerCycled
    | Pulled
    | PullBroke
)
RecoveryEvent = SideEvent | Rejoined | Compared | TimedOut


# --- what to do ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class AwaitReply:
    """``attempt`` above 1: write the frame again first."""

    side: Side
    deadline_ns: Ns
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class AwaitBoot:
    """Ask for its identity until it answers with a boot epoch later than ``armed_epoch``."""

    side: Side
    armed_epoch: int
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class SaveLate:
    """Ask a side that no frame reached who it is; once it answers, pull its set of the incident if it
    keeps one, else have it save."""

    side: Side
    armed_epoch: int
    """0: it was not known at the trigger."""
    since_ns: Ns | None
    """When the frames went out. A boot since then has lost what a save would tell. None: not known, so it
    is not asked to save."""
    answer_ns: Ns
    """How long its answer is waited for."""
    deadline_ns: Ns
    """For all of it."""


@dataclass(frozen=True, kw_only=True)
class SendBreak:
    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class PowerCycle:
    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Read the set of this incident, starting after the bytes that have arrived."""

    side: Side
    attempt: int
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class AwaitFullDuplex:
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare host journal, primary and secondary. No deadline: the time depends on the amount of
    data."""


@dataclass(frozen=True, kw_only=True)
class SideResult:
    side: Side
    set: Literal["complete", "partial", "missing"]
    reason: str = ""
    """Why the set is not complete."""
    reply: str = ""
    """One of: "ok", the name of the refusal, "no answer"."""
    boot_epoch: int = 0
    """Boot epoch after the restart; 0: the controller was not seen up again."""
    up: bool = False
    power_cycled: bool = False
    break_sent: bool = False

    @property
    def helped_by(self) -> str:
        """What brought it back, where it did not come back by itself; "": nothing had to."""
        return "a power cycle" if self.power_cycled else "a BREAK" if self.break_sent else ""


@dataclass(frozen=True, kw_only=True)
class Finish:
    sides: tuple[SideResult, ...]
    rejoined: bool | None
    """None: not waited for, because a side is not up."""
    data_equal: bool | None
    """None: not compared."""
    detail: str = ""


Action = (
    AwaitReply | SaveLate | AwaitBoot | SendBreak | PowerCycle | Pull | AwaitFullDuplex | Compare | Finish
)  # fmt: skip


# --- what is recorded ---------------------------------------------------------------------------------------
Rung = Literal["", "break", "power cycle"]


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One entry of the recovery history in the incident."""

    t_ns: Ns
    side: Side | Literal[""]
    step: str
    detail: str = ""
    rung: Rung = ""
    """What was done, or could not be, to a controller that hangs."""
    result: str = ""
    """Of that: "ok", or what went wrong."""
