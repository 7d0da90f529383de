"""What a watch or a run reports about itself to whoever looks: one object, whole each time.

A look-only socket of the command carries it, one JSON object per line (``docs/watch.md``). Ages are seconds
at the time ``utc``, so that they stay right when a clock is set. Texts of devices are escaped.
"""

from typing import Final, Literal

import msgspec

from freezeframe.harness.errors import RigError

FORMAT: Final = 1
"""A later format keeps these keys."""
MAX_NEWS: Final = 50
"""The newest reports that each object carries."""
MAX_TEXT_CHARS: Final = 400
TAIL_LINES: Final = 20
"""The newest lines of each console."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    there: bool = True
    why: str = ""
    """Why it is not there."""


class ConsoleStatus(_Part, frozen=True, kw_only=True):
    last_byte_age_s: float | None = None
    """Since its newest byte was read; None: none came since its present record began."""
    heard: bool = False
    """Its canary came in since the line, the boot and the reflex are what they are."""
    unheard: str = ""
    """Why its canary did not come."""
    tail: list[str] = []
    """The newest lines, the newest last."""


class ControlStatus(_Part, frozen=True, kw_only=True):
    last_answer_age_s: float | None = None
    """Since the question went out that it answered last; None: it has not answered."""


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    volts: float | None
    amperes: float | None
    """None: what the supply answered is no finite number."""
    age_s: float


class SideStatus(msgspec.Struct, frozen=True, kw_only=True):
    console: ConsoleStatus
    control: ControlStatus
    pair_state: str = ""
    """As the controller says; "": it is not identified in its present boot."""
    boot_epoch: int | None = None
    why: str = ""
    """Why it is not identified."""
    supply: Supply | None = None


class LinkStatus(_Part, frozen=True, kw_only=True):
    last_frame_age_s: float | None = None
    rate_bytes_per_s: float = 0.0
    """Of captured frames, over the last two seconds."""
    writes: int = 0
    answers: int = 0
    outstanding: int = 0
    """Writes seen that no answer has been seen for."""
    digests_checked: int = 0
    frames_dropped: int = 0
    gaps: int = 0


class RuleStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    source: Literal["console", "link"]
    instructs: bool
    hits: int = 0
    """Since the command was started."""


class GuardStatus(msgspec.Struct, frozen=True, kw_only=True):
    allows: str
    """What the next action may be: warmstart, save, nothing."""
    why: str = ""
    until_s: float | None = None
    """When that may change by itself."""
    warmstarts_in_hour: int = 0
    saves_in_hour: int = 0


class IncidentStatus(msgspec.Struct, frozen=True, kw_only=True):
    utc: str
    id: str
    outcome: str
    rule: str = ""
    side: str = ""


class News(msgspec.Struct, frozen=True, kw_only=True):
    n: int
    """Counts from 1, so that a gap can be seen."""
    utc: str
    kind: Literal["report", "trigger", "step", "health", "incident"]
    text: str


class LiveStatus(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="status"):
    format: int = FORMAT
    utc: str
    """When it was made, in milliseconds."""
    bench: str
    command: str
    """Which of ours it is: watch."""
    pid: int
    who: str
    started_utc: str
    age_s: float
    """Of what its main loop reported, which is all but news and console tails. More than some seconds: the
    loop does not answer."""
    health: str = ""
    why: str = ""
    collecting: bool = False
    """An incident is being collected."""
    recording: str = ""
    """Folder of the incident that is being recorded into."""
    sides: dict[str, SideStatus] = {}
    link: LinkStatus = LinkStatus()
    reflex_why: str = ""
    """Why the reflex is not there."""
    rules: list[RuleStatus] = []
    guard: GuardStatus | None = None
    incidents: int = 0
    """So far."""
    newest_incidents: list[IncidentStatus] = []
    news: list[News] = []


class End(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="end"):
    """The last object: the command ends in order."""

    utc: str
    why: str
    incidents: int = 0


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(LiveStatus | End)


def encode(one: LiveStatus | End) -> bytes:
    """Return the line, with its newline."""
    return _ENCODER.encode(one) + b"\n"


def decode(line: bytes) -> LiveStatus | End:
    """RigError: it is no object of this protocol."""
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError as error:
        raise RigError(
            f"what answers is no watch of this version of freezeframe: {error}"
        ) from error
