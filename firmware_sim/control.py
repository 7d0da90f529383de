"""Control frames on the controller's side: the codec and the handler of every operation.

Written from the tables in ``harness/wire/control.py``. The receiver takes bytes in any pieces,
buffers at most one frame, and separates frames from console text on a shared line.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Protocol

import cbor2
from cobs import cobs
from crc32c import crc32c

from freezeframe.firmware_sim.faults import PlanError
from freezeframe.firmware_sim.rootcause import NoSpace, SetStore
from freezeframe.harness.wire import control as wire
from freezeframe.harness.wire.control import Op, Reason, SetKind, Status, TraceLevel

_DELIMITER: Final = 0
MAX_COBS_BYTES: Final = wire.MAX_FRAME_BYTES - 2
REMEMBERED: Final = 16
"""Requests remembered per port with their answers, so that a repeated request is not executed
again."""
MAX_TEXT_BYTES: Final = 200
_ENTRY_BYTES: Final = wire.SET_ENTRY.size
ENTRIES_A_FRAME: Final = (wire.MAX_PAYLOAD_BYTES - wire.STATUS.size) // _ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A control frame with correct magic, version, length and CRC."""

    type: int
    seq: int
    payload: bytes
    flags: int = 0


def encode(frame: Frame) -> bytes:
    """Encode the frame for the line: ``00 COBS(body) 00``."""
    header = wire.HEADER.pack(
        wire.MAGIC, wire.VERSION, frame.type, frame.flags, frame.seq, len(frame.payload)
    )
    body = header + frame.payload
    encoded: bytes = cobs.encode(body + wire.CRC.pack(crc32c(body)))
    return wire.DELIMITER + encoded + wire.DELIMITER


def decode(coded: bytes) -> Frame | None:
    """Decode the bytes between two delimiters; None: damaged."""
    try:
        body = cobs.decode(coded)
    except cobs.DecodeError:
        return None
    if len(body) < wire.HEADER.size + wire.CRC.size:
        return None
    magic, version, kind, flags, seq, length = wire.HEADER.unpack_from(body)
    if magic != wire.MAGIC or version != wire.VERSION:
        return None
    if length > wire.MAX_PAYLOAD_BYTES or len(body) != wire.HEADER.size + length + wire.CRC.size:
        return None
    (crc,) = wire.CRC.unpack_from(body, len(body) - wire.CRC.size)
    if crc != crc32c(body[: -wire.CRC.size]):
        return None
    return Frame(kind, seq, body[wire.HEADER.size : -wire.CRC.size], flags)


class Receiver:
    """Extracts frames from the bytes of a line, in any pieces. Text between frames is skipped.

    After a delimiter, a COBS code followed by MAGIC starts a frame; anything else is text up to
    the next delimiter. ``damaged`` counts dropped frames: too long, wrong CRC, wrong length.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._held = bytearray()
        self._after_delimiter = False

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        at = 0
        while True:
            end = data.find(_DELIMITER, at)
            self._hold(data[at : len(data) if end < 0 else end])
            if end < 0:
                return frames
            if len(self._held) > MAX_COBS_BYTES:
                self.damaged += 1
            elif len(self._held) >= 2:
                frame = decode(bytes(self._held))
                if frame is None:
                    self.damaged += 1
                else:
                    frames.append(frame)
            self._held.clear()
            self._after_delimiter = True
            at = end + 1

    def _hold(self, part: bytes) -> None:
        """Keep bytes that may be a frame, at most one more than the longest; drop text at once."""
        if not self._after_delimiter:
            return
        room = MAX_COBS_BYTES + 1 - len(self._held)
        self._held += part[:room]
        if len(self._held) >= 2 and self._held[1] != wire.MAGIC:
            self._held.clear()
            self._after_delimiter = False


class BreakDetector:
    """Finds the NULs that stand for a BREAK in the bytes of a line, in any pieces."""

    def __init__(self) -> None:
        self._nulls = 0
        """At the end of what was fed."""

    def feed(self, data: bytes) -> bool:
        """Whether a BREAK was in ``data``, or ended its run of NULs there."""
        before = self._nulls
        leading = len(data) - len(data.lstrip(b"\0"))
        if leading == len(data):
            self._nulls += leading
        else:
            self._nulls = len(data) - len(data.rstrip(b"\0"))
        is_reached = before < wire.BREAK_NULS <= before + leading
        return is_reached or bytes(wire.BREAK_NULS) in data[leading:]


@dataclass(frozen=True, slots=True)
class Frozen:
    """The result of storing a root cause data set."""

    set_id: int
    boot_epoch: int
    events_logged: int
    uptime_ns: int


class Firmware(Protocol):
    """The interface to the controller used by the operations."""

    serial_number: str

    @property
    def boot_epoch(self) -> int: ...
    @property
    def sets(self) -> SetStore: ...

    def identity(self) -> tuple[object, ...]:
        """Values of ``wire.IDENTITY``, in order."""
        ...

    def freeze(self, kind: SetKind, reason: Reason, incident_id: bytes) -> Frozen:
        """Store a root cause data set. WARMSTART also restarts after the answer is sent. Raises
        NoSpace."""
        ...

    def state_record(self, max_bytes: int) -> bytes:
        """Return the present state record as CBOR, with its lists shortened to fit."""
        ...

    def read_blocks(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Content of the volume. Raises ValueError outside of it and for parts of sectors, OSError
        when the medium fails."""
        ...

    def print_line(self, text: str) -> None: ...
    def set_trace_level(self, level: int) -> None: ...
    def arm_faults(self, plan: object) -> None:
        """Arm a fault plan. Raises PlanError."""
        ...

    def control_seen(self, op: int, seq: int) -> None: ...
    def control_refused(self, op: int, status: Status, text: str) -> None:
        """Report a disruptive frame for another target or boot on the console and in the event
        log."""
        ...


class Refused(Exception):
    """Leads to a reply with this status and text."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class Operations:
    """Handles the requests of one control port."""

    def __init__(self, firmware: Firmware) -> None:
        self._firmware = firmware
        self._receiver = Receiver()
        self._remembered: OrderedDict[tuple[int, int, bytes], bytes] = OrderedDict()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the line; return encoded reply frames."""
        return [reply for frame in self._receiver.feed(data) for reply in self._answer(frame)]

    def feed_boot_loader(self, data: bytes) -> list[bytes]:
        """While the firmware starts, its boot loader has the line: it reads the volume, and is silent to
        all else."""
        frames = [one for one in self._receiver.feed(data) if one.type == Op.READ_BLOCKS]
        replies = []
        for frame in frames:
            try:
                payload = wire.STATUS.pack(Status.OK) + self._read_blocks(frame.payload)
            except Refused as refusal:
                payload = _refusal(refusal)
            replies.append(_reply(frame, payload))
        return replies

    def _answer(self, frame: Frame) -> list[bytes]:
        if frame.type & wire.REPLY:
            return []
        self._firmware.control_seen(frame.type, frame.seq)
        key = (frame.type, frame.seq, frame.payload)
        if key in self._remembered:
            return [self._remembered[key]]
        try:
            payloads = self._act(frame)
        except Refused as refusal:
            return [_reply(frame, _refusal(refusal))]
        replies = [_reply(frame, wire.STATUS.pack(Status.OK) + payload) for payload in payloads]
        if frame.type in wire.DESTRUCTIVE or frame.type == Op.PRINT:
            self._remembered[key] = replies[0]
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        elif frame.type == Op.IDENTIFY:
            self._new_dialogue()
        return replies

    def _new_dialogue(self) -> None:
        """IDENTIFY starts a new session, perhaps with the same seq again. Only a warmstart is
        remembered beyond it."""
        for key in [key for key in self._remembered if key[0] != Op.WARMSTART]:
            del self._remembered[key]

    def _act(self, frame: Frame) -> list[bytes]:
        payload = frame.payload
        if frame.type in wire.DESTRUCTIVE:
            self._check_target(frame)
        match frame.type:
            case Op.IDENTIFY:
                _length(payload, 0)
                return [wire.IDENTITY.pack(*self._firmware.identity())]
            case Op.STATE_SAVE:
                return [self._freeze(SetKind.STATE_SAVE, payload)]
            case Op.WARMSTART:
                return [self._freeze(SetKind.WARMSTART, payload)]
            case Op.LIST_SETS:
                _length(payload, 0)
                return self._list_sets()
            case Op.READ_SET:
                return self._read_set(payload)
            case Op.ACK_SET:
                return [self._acknowledge(payload)]
            case Op.GET_STATE:
                _length(payload, 0)
                return [self._firmware.state_record(wire.MAX_PAYLOAD_BYTES - wire.STATUS.size)]
            case Op.PRINT:
                return [self._print(payload)]
            case Op.READ_BLOCKS:
                return [self._read_blocks(payload)]
            case Op.SET_TRACE_LEVEL:
                return [self._trace_level(payload)]
            case Op.SET_FAULTS:
                return [self._set_faults(payload)]
            case _:
                raise Refused(Status.UNKNOWN_OP, f"operation 0x{frame.type:02x} is not known")

    def _check_target(self, frame: Frame) -> None:
        """A frame that changes the controller must name this controller and this boot."""
        if len(frame.payload) < wire.TARGET.size:
            raise Refused(Status.BAD_LENGTH, "no target in the frame")
        raw, epoch = wire.TARGET.unpack_from(frame.payload)
        named = raw.rstrip(b"\0")
        own = self._firmware
        if named != own.serial_number.encode():
            status, text = (
                Status.WRONG_TARGET,
                f"this is {own.serial_number}, not {named.decode('latin-1')}",
            )
        elif epoch != own.boot_epoch:
            status, text = Status.STALE_EPOCH, f"boot epoch is {own.boot_epoch}, not {epoch}"
        else:
            return
        own.control_refused(frame.type, status, text)
        raise Refused(status, text)

    def _freeze(self, kind: SetKind, payload: bytes) -> bytes:
        _length(payload, wire.FREEZE.size)
        _, _, reason, incident_id = wire.FREEZE.unpack(payload)
        if reason not in set(Reason):
            raise Refused(Status.BAD_ARGUMENT, f"reason {reason} is not known")
        try:
            frozen = self._firmware.freeze(kind, Reason(reason), incident_id)
        except NoSpace as error:
            raise Refused(Status.NO_SPACE, str(error)) from error
        return wire.FREEZE_REPLY.pack(
            frozen.set_id, frozen.boot_epoch, frozen.events_logged, frozen.uptime_ns
        )

    def _list_sets(self) -> list[bytes]:
        entries = [
            wire.SET_ENTRY.pack(
                entry.set_id,
                entry.kind,
                entry.complete,
                entry.reason,
                entry.incident_id,
                entry.raw_bytes,
                entry.stored_bytes,
                entry.boot_epoch,
                entry.sha256,
            )
            for entry in self._firmware.sets.entries()
        ]
        return [b"".join(entries[:ENTRIES_A_FRAME])]

    def _read_set(self, payload: bytes) -> list[bytes]:
        """Answer one window with as many replies as its length needs, at least one."""
        _length(payload, wire.READ_SET.size)
        set_id, offset_bytes, length_bytes = wire.READ_SET.unpack(payload)
        blob = self._firmware.sets.read(set_id)
        if blob is None:
            raise Refused(Status.NO_SUCH_SET, f"no set {set_id}")
        if offset_bytes > len(blob):
            raise Refused(Status.BAD_OFFSET, f"set {set_id} has {len(blob)} bytes")
        if length_bytes > wire.MAX_WINDOW_BYTES:
            raise Refused(
                Status.BAD_ARGUMENT, f"a window has at most {wire.MAX_WINDOW_BYTES} bytes"
            )
        end = min(offset_bytes + length_bytes, len(blob))
        step = wire.MAX_SET_DATA_BYTES
        return [
            wire.SET_DATA.pack(set_id, at) + blob[at : min(at + step, end)]
            for at in range(offset_bytes, max(end, offset_bytes + 1), step)
        ]

    def _acknowledge(self, payload: bytes) -> bytes:
        _length(payload, wire.ACK_SET.size)
        _, _, set_id, digest = wire.ACK_SET.unpack(payload)
        entry = self._firmware.sets.entry(set_id)
        if entry is None:
            raise Refused(Status.NO_SUCH_SET, f"no set {set_id}")
        if entry.sha256 != digest:
            raise Refused(Status.WRONG_DIGEST, f"not the digest of set {set_id}")
        self._firmware.sets.free(set_id)
        return b""

    def _print(self, payload: bytes) -> bytes:
        if not 1 <= len(payload) <= wire.PRINT_MAX_BYTES:
            raise Refused(Status.BAD_LENGTH, f"text has 1 to {wire.PRINT_MAX_BYTES} bytes")
        self._firmware.print_line(payload.decode("utf-8", "backslashreplace"))
        return b""

    def _read_blocks(self, payload: bytes) -> bytes:
        _length(payload, wire.READ_BLOCKS.size)
        offset_bytes, length_bytes = wire.READ_BLOCKS.unpack(payload)
        if length_bytes > wire.MAX_BLOCK_DATA_BYTES:
            text = f"a reply holds at most {wire.MAX_BLOCK_DATA_BYTES} bytes"
            raise Refused(Status.BAD_ARGUMENT, text)
        try:
            data = self._firmware.read_blocks(offset_bytes, length_bytes)
        except ValueError as error:
            raise Refused(Status.BAD_OFFSET, str(error)) from error
        except OSError as error:
            raise Refused(Status.BUSY, f"the medium cannot be read: {error.strerror}") from error
        return wire.BLOCK_DATA.pack(offset_bytes) + data

    def _trace_level(self, payload: bytes) -> bytes:
        _length(payload, wire.TRACE_LEVEL.size)
        level = wire.TRACE_LEVEL.unpack(payload)[2]
        if level not in set(TraceLevel):
            raise Refused(Status.BAD_ARGUMENT, f"trace level {level} is not known")
        self._firmware.set_trace_level(level)
        return b""

    def _set_faults(self, payload: bytes) -> bytes:
        try:
            plan: Any = cbor2.loads(payload[wire.TARGET.size :])
            self._firmware.arm_faults(plan)
        except PlanError as error:
            raise Refused(Status.BAD_ARGUMENT, str(error)) from error
        except (cbor2.CBORDecodeError, RecursionError, OverflowError, MemoryError) as error:
            raise Refused(Status.BAD_ARGUMENT, "the plan is not CBOR") from error
        return b""


def _reply(request: Frame, payload: bytes) -> bytes:
    return encode(Frame(request.type | wire.REPLY, request.seq, payload))


def _refusal(refusal: Refused) -> bytes:
    return wire.STATUS.pack(refusal.status) + str(refusal).encode()[:MAX_TEXT_BYTES]


def _length(payload: bytes, expected: int) -> None:
    if len(payload) != expected:
        raise Refused(Status.BAD_LENGTH, f"payload has {len(payload)} bytes, not {expected}")
