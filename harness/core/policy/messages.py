"""What the policy hears and what it asks for, as frozen values.

Whoever carries the actions out may take its time with ``Identify``, ``Canary``, ``Reopen``,
``LookUp``, ``Save`` and ``Collect``: each is answered by exactly one event. All others are done at
once and in the order given: ``Persist`` before the ``Arm`` that follows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.policy.guard import Acted, Rung
from freezeframe.harness.core.policy.health import HealthStatus


class BenchPart(StrEnum):
    """What the bench consists of, as far as it can be lost."""

    PRIMARY_CONSOLE = "primary console"
    SECONDARY_CONSOLE = "secondary console"
    PRIMARY_CONTROL = "primary control line"
    SECONDARY_CONTROL = "secondary control line"
    LINK = "link capture"
    REFLEX = "reflex process"


class Trouble(StrEnum):
    """What makes a bench worse without taking a part of it away."""

    GARBAGE = "console full of garbage"
    DROPS = "capture drops frames"
    DISK_LOW = "little disk space"
    DISK_FULL = "no disk space for two sets"
    CLOCK = "clock step"
    UNSEEN = "the capture does not see all"
    SILENT = "the link is silent"
    LINK_DOWN = "the link is down"
    RECORD = "a recording has ended"
    SUPPLY = "the supply does not answer"


@dataclass(frozen=True, kw_only=True)
class TriggerSeen:
    """A rule's hit that nobody has been instructed for (see ``Struck``)."""

    rule: str
    side: Side
    instructs: bool
    """Whether the rule would instruct anybody."""
    t_ns: Ns
    sides: tuple[Side, ...] = ()
    """Whom it would instruct, in this order."""
    source: str = "console"
    """console or link: whose frames it would send."""

    @property
    def kind(self) -> str:
        """The kind of its incident."""
        return kind_of(self.rule, self.side)


# --- what happened ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Lost:
    """A part is gone, or could not be opened again."""

    part: BenchPart
    reason: str


@dataclass(frozen=True, kw_only=True)
class Back:
    """A part is there, at the start or again."""

    part: BenchPart


@dataclass(frozen=True, kw_only=True)
class Identified:
    """It answered who it is."""

    side: Side
    serial_number: str
    boot_epoch: int
    pair_state: str
    t_asked_ns: Ns
    """When the question went out: a boot seen after that makes the answer worthless."""
    unrehearsed: str = ""
    """Why its frames could not be tried out; "": they were."""


@dataclass(frozen=True, kw_only=True)
class NotIdentified:
    side: Side
    reason: str


@dataclass(frozen=True, kw_only=True)
class Rebooted:
    """It began a boot: a banner on its console, its power blinked."""

    side: Side
    evidence: str
    t_read_ns: Ns | None = None
    """When its banner was read; None: that is not known."""


@dataclass(frozen=True, kw_only=True)
class PairBroke:
    """The link or a console says that the pair is no longer in full duplex."""

    evidence: str


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Its canary came in on its console."""

    side: Side


@dataclass(frozen=True, kw_only=True)
class NotHeard:
    """Its canary did not come in time."""

    side: Side
    reason: str
    can_print: bool = True
    """False: it cannot be asked to print, so it is not asked again."""


@dataclass(frozen=True, kw_only=True)
class Struck:
    """The armed frames went out, or could not."""

    arming: int
    rule: str
    side: Side
    """Where the trigger was seen."""
    t_ns: Ns
    rung: Rung
    """The harshest frame that was written."""
    out: tuple[Side, ...]
    failed: Mapping[Side, str] = field(default_factory=dict)
    """Side -> why its frame could not go out."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """An incident's recovery has ended, well or not."""

    incident: str
    well: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class LookedUp:
    """Whether a side keeps a set of the incident. None: it did not answer."""

    incident: str
    found: Mapping[Side, bool | None]


@dataclass(frozen=True, kw_only=True)
class Troubled:
    trouble: Trouble
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Eased:
    """The trouble is over."""

    trouble: Trouble


@dataclass(frozen=True, kw_only=True)
class BenchArmed:
    """The bench is wanted armed: at the start of a watch, and after a breaker opened."""

    who: str
    why: str = ""
    closes_breaker: bool = True
    """A person wants it. A start that no person made keeps an open breaker of the storm guard, and what
    a person has disarmed."""


@dataclass(frozen=True, kw_only=True)
class BenchDisarmed:
    """A person wants nobody instructed."""

    who: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """A person has a controller, or a line that carries its frames, in hand: until ``Released`` nobody is
    armed and nobody is asked anything."""

    key: str
    """What is held. Several may be at a time."""
    who: str
    what: str
    """"warmstarts the primary by hand"."""


@dataclass(frozen=True, kw_only=True)
class Released:
    key: str


@dataclass(frozen=True, kw_only=True)
class Expected:
    """In this time hits of the rule are wanted: nobody is instructed for them."""

    rule: str
    until_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end has begun: the workload is done, the watch is stopped, a process has died for
    good."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A deadline has passed."""


Event = (
    Lost | Back | Identified | NotIdentified | Rebooted | PairBroke | Heard | NotHeard | TriggerSeen | Struck
    | Collected | LookedUp | Troubled | Eased | BenchArmed | BenchDisarmed | Held | Released | Expected | Ended
    | Tick
)  # fmt: skip


# --- what to do ---------------------------------------------------------------------------------------------
ReportKind = Literal[
    "lost", "back", "rebooted", "identity", "pair", "trouble", "eased", "not acted", "expected",
    "crossed", "frame", "canary", "incident", "person", "guard", "end", "resumed",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ArmBench:
    """Hand these frames to the reflex in place of those it has. Good for one action."""

    arming: int
    """Counts up; comes back in ``Struck``."""
    incident: str
    epochs: Mapping[Side, int]
    """Who is armed, and the boot that the frame is good for."""
    rung: Rung
    gentle: frozenset[str] = frozenset()
    """Kinds of incident (see ``kind_of``) for which the frames only save."""
    muted: frozenset[str] = frozenset()
    """Rules that strike nobody now."""
    seen: int = 0
    """The newest arming that is known to have struck. A reflex that has struck since drops this: it
    was sent without knowing, and its frames are for a boot that is over."""

    @property
    def gentle_rules(self) -> frozenset[str]:
        """Rules whose frames only save, on whichever side they hit."""
        return frozenset(kind.rpartition(_ON)[0] for kind in self.gentle)


@dataclass(frozen=True, kw_only=True)
class DisarmBench:
    """The reflex has no frames from here on. ``Struck`` may still come: it crossed this."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Identify:
    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Have a line printed and heard."""

    side: Side
    deadline_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Reopen:
    part: BenchPart


@dataclass(frozen=True, kw_only=True)
class MarkGap:
    """Nothing of this part was recorded in this time."""

    part: BenchPart
    from_ns: Ns | None
    """None: since the record's last byte; the process before was killed."""
    to_ns: Ns


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Begin this incident's folder, unless it is there, and its recovery."""

    incident: str
    cause: str
    epochs: Mapping[Side, int]
    out: tuple[Side, ...]
    failed: Mapping[Side, str]
    rung: Rung
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Save:
    """Write save frames now, for a trigger that nobody was armed for; answered by ``Struck``."""

    arming: int
    incident: str
    cause: TriggerSeen
    epochs: Mapping[Side, int]


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """Ask these sides whether they keep a set of this incident."""

    incident: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, kw_only=True)
class Join:
    """The hit belongs to the incident that is being collected."""

    incident: str
    hit: TriggerSeen


@dataclass(frozen=True, kw_only=True)
class WouldFire:
    """In a dry run: say which frames the hit would have sent."""

    hit: TriggerSeen
    arm: ArmBench
    """What the reflex would have had."""


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """One line for the screen, ``--json`` and the journal."""

    kind: ReportKind
    about: str
    """The part, the side, the rule or the incident."""
    text: str


@dataclass(frozen=True, kw_only=True)
class HealthIs:
    """The health has changed."""

    status: HealthStatus


@dataclass(frozen=True, kw_only=True)
class OpenIncident:
    """An incident that is being collected."""

    incident: str
    cause: str
    epochs: Mapping[Side, int]
    out: tuple[Side, ...]
    failed: Mapping[Side, str]
    rung: Rung


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What must outlive the process. Times are CLOCK_MONOTONIC: of another boot of this machine
    they are to be moved before they are used."""

    wanted: bool = False
    """Whether a person wants the bench armed."""
    why_not: str = ""
    """Who has disarmed it, and why; "": nobody has."""
    ended: str = ""
    """Why the end has begun; it stays so after a kill."""
    guard_log: tuple[Acted, ...] = ()
    broken: str = ""
    arming: int = 0
    """The last number given out."""
    armed: tuple[ArmBench, ...] = ()
    """The frames that the reflex has, and those it had before: they may have crossed; and those of a ``Save``
    that is out."""
    open: tuple[OpenIncident, ...] = ()
    """Incidents whose frames are out, the one that is being collected first."""
    down: tuple[tuple[BenchPart, Ns], ...] = ()
    """Parts that were lost, and when."""
    waiting: tuple[TriggerSeen, ...] = ()
    """Triggers that become incidents of their own."""

    @property
    def was_killed(self) -> bool:
        """The process did not end in order: something may be under way."""
        return bool(self.armed or self.open or not self.ended)

    @property
    def begun_anew(self) -> "Saved":
        """For the watch after it: the end that the killed one had begun is not its end."""
        return replace(self, ended="")


@dataclass(frozen=True, kw_only=True)
class Persist:
    """Write this down, and sync it, before the next action is done."""

    saved: Saved


Action = (
    ArmBench | DisarmBench | Identify | Canary | Reopen | MarkGap | Collect | Save | LookUp | Join | WouldFire
    | Announcement | HealthIs | Persist
)  # fmt: skip


def kind_of(rule: str, side: Side) -> str:
    """The kind of an incident, as far as it is known when it begins."""
    return f"{rule}{_ON}{side}"


_ON: Final = " on the "
