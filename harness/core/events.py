"""Events of a bench as frozen values, and their encoding: the messages between the processes of a
run.

Times are CLOCK_MONOTONIC nanoseconds of the host (``Ns``). ``side`` is "primary", "secondary" or
"" (the pair).
"""

import struct
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from freezeframe.harness.core.text import escape

Ns = int
"""Nanoseconds of CLOCK_MONOTONIC."""
Side = Literal["primary", "secondary"]
SIDES: Final[tuple[Side, Side]] = ("primary", "secondary")
NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
READ_TIME: Final = struct.Struct("<QQ")
"""A row of ``console.times``: when a read ended (Ns), and the offset of its first byte in ``console.log``."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events."""

    t_ns: Ns
    """Time of the event. For bytes: when the read() that returned them ended."""


class ProcessReady(Event, tag="process-ready", frozen=True, kw_only=True):
    process: str
    """reflex | linkwatch | workload."""
    notes: list[str] = []
    """What the process could not obtain, for the incident: "memory not locked: RLIMIT_MEMLOCK is 8
    MiB"."""


class Trigger(Event, tag="trigger", frozen=True, kw_only=True):
    """A rule matched. ``t_ns`` equals ``t_match_ns``."""

    rule: str
    source: Literal["console", "link", "operator"]
    side: Side
    """Side of the console; on the link, side of the packet or of the missing answer."""
    offset_bytes: int
    """Console: absolute offset of the first byte after the match. Link: packet number in the
    capture, 0 if there is none."""
    t_arrival_ns: Ns
    """Console: when the read() that returned the last matched byte ended. Link: the kernel
    timestamp of the frame, converted to CLOCK_MONOTONIC. For a missing answer: its deadline."""
    t_match_ns: Ns
    excerpt: bytes = b""
    """Bytes up to and including the match (at most 256)."""
    detail: str = ""
    """Link: what was found, with sector, size, block id."""
    sector: int = -1
    sectors: int = 0
    """Of the write that it is about; 0: not known."""
    block_id: str = ""
    instruct: list[Side] = []
    """Sides to instruct, in this order."""
    console: str = ""
    """Name of the console where a side has several."""
    struck: int = 0
    """``Arm.arming`` of the frames that went out for a hit of this read; they are reported next.
    0: none did."""
    is_cause: bool = False
    """Whether those frames went out for this hit. The others of the read may be muted, instruct
    nobody, or have come too late."""

    @property
    def words(self) -> str:
        """What was found, escaped: on the link its detail, on a console the line up to the end of
        the match."""
        return escape(self.detail or self.excerpt.rpartition(b"\n")[2])


class FrameSent(Event, tag="frame-sent", frozen=True, kw_only=True):
    """The reflex wrote a control frame. ``t_ns`` is the time just before the write()."""

    side: Side
    seq: int
    t_done_ns: Ns
    """When the write returned."""
    frame: bytes
    arming: int = 0
    """``Arm.arming`` of the frame."""


class FrameFailed(Event, tag="frame-failed", frozen=True, kw_only=True):
    side: Side
    error: str
    arming: int = 0


class LinkStats(Event, tag="link-stats", frozen=True, kw_only=True):
    """Counters of the capture since its start."""

    packets: int = 0
    bytes_captured: int = 0
    kernel_drops: int = 0
    gaps: int = 0
    """Gaps in TCP streams that the capture did not see."""
    messages: int = 0
    writes: int = 0
    acks: int = 0
    outstanding: int = 0
    """Writes that wait for their answer now: not those whose connection has closed."""
    digests_checked: int = 0
    frames_stored: int = 0
    """Frames on disk. Fewer than ``packets`` if old frames were overwritten or the capture window
    is full."""
    first_packet_no: int = 1
    """Number, since the start, of the first frame on disk."""
    blind: dict[str, str] = {}
    """What the capture cannot see: kind -> a sentence (``core.link.blindness``)."""
    down: str = ""
    """Why no frame can come now: the interface is down, or has no carrier. "": it is up."""


class StreamEnded(Event, tag="stream-ended", frozen=True, kw_only=True):
    """A console or link can no longer be read."""

    stream: str
    error: str


class PowerSample(Event, tag="power-sample", frozen=True, kw_only=True):
    """Measured output of the power supply."""

    side: Side
    volts: float
    amperes: float
    error_ns: Ns
    """Half of the duration of the measurement request: the measurement happened within ``t_ns`` +-
    this."""


class WorkloadProgress(Event, tag="workload-progress", frozen=True, kw_only=True):
    """Sent at least once per second, even without progress. A longer silence means that the
    workload does not run."""

    bytes_written: int
    """Acknowledged bytes so far."""
    bytes_total: int
    writes_acked: int
    reconnects: int = 0
    bytes_verified: int = 0


Whose = Literal["", "caller", "rig", "device"]


class WrongRead(msgspec.Struct, frozen=True, kw_only=True):
    """A range that the workload read back with other data than it wrote."""

    offset_bytes: int
    size_bytes: int
    text: str


class WorkloadDone(Event, tag="workload-done", frozen=True, kw_only=True):
    ok: bool
    error: str = ""
    whose: Whose = ""
    """Whose fault the error is."""
    writes_acked: int = 0
    bytes_written: int = 0
    longest_hold_ns: Ns = 0
    """Longest time from sending one write to its acknowledgement."""
    verified_bytes: int = 0
    """Bytes read back and checked by the workload itself."""
    wrong_reads: Sequence[WrongRead] = ()
    """Examples of ranges with wrong data; ``wrong_reads_total`` counts all."""
    wrong_reads_total: int = 0


class Note(Event, tag="note", frozen=True, kw_only=True):
    """A text line for the timeline."""

    source: str
    text: str
    level: Literal["info", "warning", "error"] = "info"


class Stop(Event, tag="stop", frozen=True, kw_only=True):
    """Supervisor -> child: finish, flush, report, exit."""


class KeepCapture(Event, tag="freeze", frozen=True, kw_only=True):
    """Supervisor -> linkwatch: the trigger at ``t_ns`` belongs to the incident; keep the capture
    window around it."""


class ExpectStamps(Event, tag="expect-stamps", frozen=True, kw_only=True):
    """Supervisor -> linkwatch: from now on the volume's sole writer is ours, and stamps this range;
    ``sectors`` 0: no longer."""

    volume: int = 0
    seed: int = 0
    first_lba: int = 0
    sectors: int = 0


class Disarm(Event, tag="disarm", frozen=True, kw_only=True):
    """Supervisor -> reflex: keep recording and scanning, but send no frames. Hits are still
    reported."""


class Disarmed(Event, tag="disarmed", frozen=True, kw_only=True):
    """Reflex -> supervisor: no frame is loaded since ``Disarm`` was read. All frames that were
    written before have been reported before this."""


class Arm(Event, tag="arm", frozen=True, kw_only=True):
    """Supervisor -> reflex: ``frames[reason][side]`` are the frames to write; reason is "console"
    or "link"."""

    frames: dict[str, dict[str, bytes]]
    arming: int = 0
    """Counts up; returned with each frame that was written."""
    seen: int = 0
    """The newest arming of whose frames the supervisor knows. A reflex that has written those of a
    later one ignores this message: it crossed the strike, and its frames may be for a boot that is
    over."""
    gentle: list[str] = []
    """Rules whose frames only save: those of ``frames["REASON save"]``."""
    muted: list[str] = []
    """Rules that send no frame now."""


class Record(Event, tag="record", frozen=True, kw_only=True):
    """Supervisor -> reflex and linkwatch: what comes from now on belongs to another incident."""

    paths: dict[str, list[str]]
    """Console -> its console.log and console.times; "link" -> its capture file."""


class Recorded(Event, tag="recorded", frozen=True, kw_only=True):
    """Reflex or linkwatch -> supervisor: ``Record`` is carried out. What was reported before is of
    the incident before, offsets and packet numbers included."""


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
    | ExpectStamps
    | Disarm
    | Disarmed
    | Arm
    | Record
    | Recorded
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[AnyEvent]] = msgspec.msgpack.Decoder(AnyEvent)
LENGTH_BYTES: Final = 4
MAX_MESSAGE_BYTES: Final = 16 << 20
"""Limit for a message between our own processes. A longer one means that the sender is broken."""


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
