"""Everything that can happen on a bench, as frozen values; the processes of a run speak in these.

Times are CLOCK_MONOTONIC nanoseconds of the host (``Ns``). ``side`` is "primary", "secondary" or ""
(the pair).
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

Ns = int
"""Nanoseconds of CLOCK_MONOTONIC."""
Side = Literal["primary", "secondary"]
SIDES: Final[tuple[Side, Side]] = ("primary", "secondary")
NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events."""

    t_ns: Ns
    """When it happened, as well as the host can tell (for bytes: when the read that brought them
    returned)."""


class ProcessReady(Event, tag="process-ready", frozen=True, kw_only=True):
    process: str
    """reflex | linkwatch | workload."""
    notes: list[str] = []
    """What it could not have, for the incident: "memory not locked: RLIMIT_MEMLOCK is 8 MiB"."""


class Trigger(Event, tag="trigger", frozen=True, kw_only=True):
    """A rule's hit. t_ns = t_match_ns."""

    rule: str
    source: Literal["console", "link", "operator"]
    side: Side
    """Whose console, or on the link whose packet or silence."""
    offset_bytes: int
    """Console: absolute offset just behind the match. Link: packet number in the capture (0 when
    none)."""
    t_arrival_ns: Ns
    """When the read that brought the last byte returned; on the link the kernel's timestamp, as
    CLOCK_MONOTONIC; for something that is missing: when its time was up."""
    t_match_ns: Ns
    excerpt: bytes = b""
    """Bytes up to and including the match (at most 256)."""
    detail: str = ""
    """Link: what was found, with sector, size, block id."""
    sector: int = -1
    block_id: str = ""
    instruct: list[Side] = []
    """Who is instructed for it, in this order."""
    console: str = ""
    """Name of the console where a side has several."""


class FrameSent(Event, tag="frame-sent", frozen=True, kw_only=True):
    """The reflex wrote a control frame. t_ns: just before the write."""

    side: Side
    seq: int
    t_done_ns: Ns
    """When the write returned."""
    frame: bytes


class FrameFailed(Event, tag="frame-failed", frozen=True, kw_only=True):
    side: Side
    error: str


class LinkStats(Event, tag="link-stats", frozen=True, kw_only=True):
    """Counters of the capture since its start."""

    packets: int = 0
    bytes_captured: int = 0
    kernel_drops: int = 0
    gaps: int = 0
    """Holes in TCP streams that the capture did not see."""
    messages: int = 0
    writes: int = 0
    acks: int = 0
    digests_checked: int = 0
    frames_stored: int = 0
    """On disk; fewer than packets where the ring on disk has come round or its window is full."""
    first_packet_no: int = 1
    """Since the start, of the first frame that is on disk."""


class StreamEnded(Event, tag="stream-ended", frozen=True, kw_only=True):
    """A console or link can no longer be read."""

    stream: str
    error: str


class PowerSample(Event, tag="power-sample", frozen=True, kw_only=True):
    """What a supply's output delivered, by the instrument."""

    side: Side
    volts: float
    amperes: float
    error_ns: Ns
    """Half of what the question took: the instrument measured within."""


class WorkloadProgress(Event, tag="workload-progress", frozen=True, kw_only=True):
    """Told at least once a second, also when nothing has moved: who is silent for longer does not
    run."""

    bytes_written: int
    """Acknowledged bytes so far."""
    bytes_total: int
    writes_acked: int
    reconnects: int = 0
    bytes_verified: int = 0


Whose = Literal["", "caller", "rig", "device"]


class WrongRead(msgspec.Struct, frozen=True, kw_only=True):
    """A place that the workload read back and found to be not what it wrote."""

    offset_bytes: int
    size_bytes: int
    text: str


class WorkloadDone(Event, tag="workload-done", frozen=True, kw_only=True):
    ok: bool
    error: str = ""
    whose: Whose = ""
    """Whose fault ``error`` is."""
    writes_acked: int = 0
    bytes_written: int = 0
    longest_hold_ns: Ns = 0
    """Longest time that one write had to wait for its acknowledgement."""
    verified_bytes: int = 0
    """Read back and checked by the workload itself."""
    wrong_reads: Sequence[WrongRead] = ()
    """Some of the places that were not what it wrote."""
    wrong_reads_total: int = 0


class Note(Event, tag="note", frozen=True, kw_only=True):
    """A line of the timeline for a person."""

    source: str
    text: str
    level: Literal["info", "warning", "error"] = "info"


class Stop(Event, tag="stop", frozen=True, kw_only=True):
    """Supervisor -> child: finish, flush, report, exit."""


class KeepCapture(Event, tag="freeze", frozen=True, kw_only=True):
    """Supervisor -> linkwatch: the trigger of ``t_ns`` is the incident's; keep the window around
    it."""


class Disarm(Event, tag="disarm", frozen=True, kw_only=True):
    """Supervisor -> reflex: go on recording and scanning, send no frames (hits are still told)."""


class Arm(Event, tag="arm", frozen=True, kw_only=True):
    """Supervisor -> reflex: ``frames[reason][side]`` are the frames to write; reason is "console"
    or "link"."""

    frames: dict[str, dict[str, bytes]]


class NewRules(Event, tag="new-rules", frozen=True, kw_only=True):
    """Supervisor -> reflex: these console rules are in force from the next byte on."""

    rules: bytes
    """JSON list of core.rules.ConsoleRule."""


AnyEvent = (
    NewRules
    | ProcessReady
    | Trigger
    | FrameSent
    | FrameFailed
    | LinkStats
    | StreamEnded
    | WorkloadProgress
    | WorkloadDone
    | Note
    | Stop
    | KeepCapture
    | Disarm
    | Arm
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[AnyEvent]] = msgspec.msgpack.Decoder(AnyEvent)
LENGTH_BYTES: Final = 4
MAX_MESSAGE_BYTES: Final = 16 << 20
"""A message between our own processes is never longer; longer means a broken pipe partner."""


def encode(event: Event) -> bytes:
    """One message: u32 little-endian length, then msgpack."""
    body = _encoder.encode(event)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class Decoder:
    """Byte stream -> events, however the stream is split."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[AnyEvent]:
        """Return the events completed by ``data``. Raises ValueError on a length that is never
        sent."""
        self._held += data
        events: list[AnyEvent] = []
        at = 0
        while len(self._held) - at >= LENGTH_BYTES:
            length = int.from_bytes(self._held[at : at + LENGTH_BYTES], "little")
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {length} bytes")
            end = at + LENGTH_BYTES + length
            if end > len(self._held):
                break
            events.append(_decoder.decode(self._held[at + LENGTH_BYTES : end]))
            at = end
        del self._held[:at]
        return events
