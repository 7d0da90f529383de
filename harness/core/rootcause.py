"""Decode a root cause data set as its controller stored it.

The bytes come from a device that has just failed, so nothing in them is trusted: sizes are checked
before memory is allocated, the SHA-256 before the content, the type of every value before its use.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
import zstandard

from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import control, rootcause
from freezeframe.harness.wire.rootcause import EVENT_ARGUMENTS, RECORD, EventCode

ALL_EVENTS: Final = frozenset(code.name for code in EventCode)
"""``RootCauseSet.tells`` of a log that lacks nothing."""
KNOWN_EVENTS: Final = ALL_EVENTS | {"REPL_BUFFER_CHANGED"}
"""All names that a verdict draws conclusions from. The last is no record of the simulator's: the
sender found its buffer changed after it had made the digest."""
EventRecord = Mapping[str, Any]
"""One record of an event log: seq, uptime_ns, name, level, and the code's own arguments by name."""
StateRecord = Mapping[str, Any]
"""A map of CBOR as a controller stored it."""
NS_PER_US: Final = 1_000
US_PER_S: Final = 1_000_000
MAX_DEPTH: Final = 16
"""Maximum nesting of lists and maps. Known sets have 4 levels."""
MAX_ITEMS: Final = 1 << 20
"""Maximum number of values in all lists and maps of a set."""
MAX_EVENTS: Final = 1 << 20
"""Maximum number of event records of a set that a driver decodes."""
_EVENT_HEAD: Final = {"seq": int, "uptime_ns": int, "name": str, "level": str}
"""What each event record holds."""
_FEWER_ARGUMENTS: Final = {
    "BOOT": (),
    "REPL_DIGEST_FAILED": ("sector", "bytes"),
    "REPL_BUFFER_CHANGED": ("sector", "bytes"),
}
"""Records of which a verdict reads less than ``wire.rootcause`` gives them."""
LAST_INLINE_VALUE: Final = 23
HEAD_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}
"""Additional information of a CBOR head -> bytes of the value that follow it."""
SIMPLE_VALUES: Final = frozenset({20, 21, 22, 25, 26, 27})
"""false, true, null, and the three sizes of floats."""


@dataclass(frozen=True, kw_only=True)
class RootCauseSet:
    """A pulled set, decoded."""

    header: StateRecord
    """Keys: wire.rootcause.HEADER_KEYS."""
    state: StateRecord
    """Keys: wire.rootcause.STATE_KEYS."""
    events: Sequence[EventRecord] = field(default_factory=list)
    """Event records, oldest first: seq, uptime_ns, name, level, and the code's own arguments by
    name."""
    tells: frozenset[str] = frozenset()
    """Names of the event records that this log always contains when such an event happens. The
    absence of any other record proves nothing."""

    @property
    def tells_each_write(self) -> bool:
        """Whether the log follows each write from the host to the peer's answer."""
        return self.tells >= ALL_EVENTS


def decode(stored: bytes, sha256: bytes | str | None = None) -> RootCauseSet:
    """Decode a stored set, after comparing its SHA-256 (raw or hex) when one is given. Raises
    WireError."""
    check_sha256(stored, sha256)
    content = decode_cbor(_decompressed(stored))
    if not isinstance(content, dict) or not set(rootcause.SET_KEYS) <= set(content):
        raise WireError(
            f"a root cause data set is a map with the keys {', '.join(rootcause.SET_KEYS)}"
        )
    if content["format"] != rootcause.FORMAT:
        raise WireError(
            f"the set's format is {str(content['format'])[:80]!r}, expected {rootcause.FORMAT!r}"
        )
    return RootCauseSet(
        header=_checked_map(content["header"], "header", rootcause.HEADER_KEYS),
        state=_checked_map(content["state"], "state", rootcause.STATE_KEYS),
        events=_decoded_events(content["events"]),
        tells=ALL_EVENTS,
    )


def check_sha256(stored: bytes, sha256: bytes | str | None) -> None:
    """Raise WireError if the SHA-256 of ``stored`` is not the listed one. None: the listed one is
    unknown."""
    if sha256 is None:
        return
    expected = sha256 if isinstance(sha256, str) else sha256.hex()
    found = hashlib.sha256(stored).hexdigest()
    if found != expected:
        raise WireError(f"the set's SHA-256 is {found}, its controller listed {expected}")


def decode_cbor(data: bytes) -> Any:
    """Decode ``data`` as one CBOR value: maps with text keys, lists, ints, floats, texts, bytes,
    true, false, null.

    Raises WireError on everything else (tags, indefinite lengths), before memory is allocated for
    it.
    """
    _inspect(data)
    try:
        return cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise WireError(f"not CBOR: {error}"[:200], 0, data) from error


# --- sets that a driver has decoded from a format of its own -------------------------------------
def state_record(**known: object) -> dict[str, object]:
    """A state record with all keys of STATE_KEYS: those given, and what says nothing for the rest.
    Further keys are kept as they are, and shown."""
    nothing: dict[str, object] = dict.fromkeys(rootcause.STATE_KEYS, 0)
    nothing |= {"uuids": [], "last_writes": [], "bitmap": [], "faults": []}
    nothing |= {"queues": {}, "cache": {}, "diagnostics": {}}
    return nothing | known


def set_header(**known: object) -> dict[str, object]:
    """A set's header with all keys of HEADER_KEYS, in the same way."""
    nothing: dict[str, object] = dict.fromkeys(rootcause.HEADER_KEYS, 0)
    nothing |= {"kind": "", "incident_id": b"", "model": "", "serial_number": ""}
    return nothing | {"firmware_version": ""} | known


def required_arguments(name: str) -> tuple[str, ...]:
    """The arguments that an event record of this name must have, whole numbers; () for a name of a
    driver's own."""
    if name in _FEWER_ARGUMENTS:
        return _FEWER_ARGUMENTS[name]
    return EVENT_ARGUMENTS[EventCode[name]] if name in EventCode.__members__ else ()


def wrong_with(found: object) -> str:
    """Why ``found`` is no RootCauseSet that can be judged; "": it is one."""
    if not isinstance(found, RootCauseSet):
        return f"{type(found).__name__} is not a RootCauseSet"
    for name, part, keys in (
        ("header", found.header, rootcause.HEADER_KEYS),
        ("state", found.state, rootcause.STATE_KEYS),
    ):
        if not isinstance(part, Mapping):
            return f"the set's {name} is {type(part).__name__}, not a map"
        missing = [key for key in keys if key not in part]
        if missing:
            return f"the set's {name} lacks {', '.join(missing)}"
    if not isinstance(found.tells, frozenset | set):
        return f"the set's tells is {type(found.tells).__name__}, not a set of event names"
    return _wrong_with_events(found.events)


def _wrong_with_events(events: object) -> str:
    if not isinstance(events, Sequence) or isinstance(events, str | bytes):
        return f"the set's events are {type(events).__name__}, not a list"
    if len(events) > MAX_EVENTS:
        return f"the set has {len(events)} event records, the limit is {MAX_EVENTS}"
    last = -1
    for at, record in enumerate(events):
        if not isinstance(record, Mapping):
            return f"event {at} is {type(record).__name__}, not a map"
        for key, kind in _EVENT_HEAD.items():
            if not isinstance(record.get(key), kind):
                return f"event {at} has no {key!r} of type {kind.__name__}"
        if record["seq"] <= last:
            return f"event {at} has seq {record['seq']} after {last}: seq must rise"
        last = record["seq"]
        for key in required_arguments(record["name"]):
            if not isinstance(record.get(key), int):
                return f"event {at} ({record['name']}) has no {key!r} that is a whole number"
    return ""


def event_lines(events: Sequence[EventRecord]) -> list[str]:
    """Return the lines of ``events.log``, one per record: seq, uptime in seconds, level, name,
    argument=value ..."""
    lines = []
    for record in events:
        uptime_us = record["uptime_ns"] // NS_PER_US
        arguments = "".join(
            f" {name}={value}"
            for name, value in record.items()
            if name not in ("seq", "uptime_ns", "level", "name")
        )
        lines.append(
            f"{record['seq']:>8} {uptime_us // US_PER_S:>6}.{uptime_us % US_PER_S:06d} "
            f"{record['level']:<5} {record['name']}{arguments}"
        )
    return lines


def this_boot(events: Sequence[EventRecord]) -> Sequence[EventRecord]:
    """Return the records since the last boot. Uptimes of earlier records belong to another clock."""
    for at in range(len(events) - 1, -1, -1):
        if events[at]["name"] == "BOOT":
            return events[at:]
    return events


def jsonable(value: Any) -> Any:
    """Return ``value`` with bytes as hex text, for ``state.json``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value


def _decompressed(stored: bytes) -> bytes:
    """Decompress one zstd frame. Its declared size must be present, within the limit, and correct."""
    if len(stored) > control.MAX_SET_BYTES:
        raise WireError(f"stored set of {len(stored)} bytes, the limit is {control.MAX_SET_BYTES}")
    try:
        content_bytes = zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise WireError(f"not a zstd frame: {error}", 0, stored) from error
    if content_bytes > control.MAX_SET_BYTES:  # an undeclared size reads as 2**64 - 1
        raise WireError(f"the set declares no size up to {control.MAX_SET_BYTES} bytes", 0, stored)
    try:
        # The output buffer has exactly the declared size; zstd reports an error for more.
        content = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"zstd: {error}", 0, stored) from error
    if len(content) != content_bytes:
        raise WireError(f"the set holds {len(content)} bytes and declares {content_bytes}")
    return content


def _inspect(data: bytes) -> None:
    """Check the heads of all CBOR items (RFC 8949, section 3): types, lengths, nesting and number."""
    open_items: list[tuple[int, bool]] = [(1, False)]
    """Open lists and maps at the current position: items still to come, and whether it is a map."""
    items = at = 0
    while open_items:
        left, is_map = open_items.pop()
        if not left:
            continue
        open_items.append((left - 1, is_map))
        start = at
        items += 1
        if items > MAX_ITEMS or len(open_items) > MAX_DEPTH:
            raise WireError("the CBOR value is nested too deeply or holds too many values", start)
        if at >= len(data):
            raise WireError("the CBOR value is cut off", start)
        major, value = data[at] >> 5, data[at] & 0x1F
        at += 1
        if value > LAST_INLINE_VALUE:
            head_bytes = HEAD_BYTES.get(value, 0)
            if not head_bytes or len(data) - at < head_bytes:
                raise WireError(
                    "a CBOR head is cut off or of indefinite length", start, data[start:]
                )
            # In major type 7 the argument is a float or a simple value, not a length.
            value = value if major == 7 else int.from_bytes(data[at : at + head_bytes], "big")
            at += head_bytes
        if is_map and left % 2 == 0 and major != 3:
            raise WireError("a key of a CBOR map is not a text", start, data[start:])
        if major in (2, 3):
            if value > len(data) - at:
                raise WireError(f"a CBOR string of {value} bytes is cut off", start, data[start:])
            at += value
        elif major in (4, 5):
            inner = value * (major - 3)  # a map has two items per entry
            if inner > MAX_ITEMS:
                raise WireError("a CBOR list or map declares too many values", start, data[start:])
            open_items.append((inner, major == 5))
        elif major == 6 or (major == 7 and value not in SIMPLE_VALUES):
            raise WireError("a CBOR tag or an unknown simple value", start, data[start:])
    if at != len(data):
        raise WireError("bytes follow after the CBOR value", at, data[at:])


def _checked_map(value: Any, name: str, keys: Sequence[str]) -> StateRecord:
    if not isinstance(value, dict):
        raise WireError(f"the set's {name} is not a map")
    missing = [key for key in keys if key not in value]
    if missing:
        raise WireError(f"the set's {name} lacks {', '.join(missing)}")
    return value


def _decoded_events(ring: Any) -> list[EventRecord]:
    if not isinstance(ring, bytes) or len(ring) % RECORD.size:
        raise WireError(f"the set's events are not whole records of {RECORD.size} bytes")
    if len(ring) > rootcause.RING_RECORDS * RECORD.size:
        raise WireError(f"the set holds more than {rootcause.RING_RECORDS} event records")
    return [_decoded_event(*values) for values in RECORD.iter_unpack(ring)]


def _decoded_event(
    seq: int, uptime_ns: int, code: int, level: int, _spare: int, *arguments: int
) -> EventRecord:
    try:
        name, argument_names = EventCode(code).name, EVENT_ARGUMENTS[EventCode(code)]
    except ValueError:  # an event of a newer firmware: keep it, named by its number
        name, argument_names = f"EVENT_{code:#06x}", ("a0", "a1", "a2", "a3")
    try:
        level_name = control.TraceLevel(level).name
    except ValueError:
        level_name = f"L{level}"
    record: dict[str, Any] = {"seq": seq, "uptime_ns": uptime_ns, "name": name, "level": level_name}
    record.update(zip(argument_names, arguments, strict=False))
    return record


def plain(value: object) -> str:
    """What JSON does not have: bytes as hex, anything else in words."""
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)


def event_line(event: EventRecord) -> bytes:
    """One record of a controller's event log as text: seq, uptime in seconds, level, name,
    arguments."""
    rest = {
        key: value
        for key, value in event.items()
        if key not in ("seq", "uptime_ns", "level", "name")
    }
    uptime_ns = event.get("uptime_ns", 0)
    words = [
        f"{event.get('seq', 0):>10}",
        f"{uptime_ns // 10**9:>8}.{uptime_ns % 10**9:09}",
        f"{event.get('level', '')!s:<5}",
        f"{event.get('name', '')!s}",
        *(f"{key}={plain(value)}" for key, value in rest.items()),
    ]
    return escape(" ".join(words)).encode() + b"\n"
