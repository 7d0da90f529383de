"""An incident that may be given away: no data of the host, and hashes in the place of serial
numbers.

Data is removed by what is *kept*: of a captured frame only the bytes that the dissector knows to be
no host data stay, everything else becomes zero. A frame that came twice, or that fits nothing,
loses its whole payload.

A serial number becomes a keyed hash of the same length, so that offsets stay true. The key lies
beside the incidents (``.redaction-key``, for its owner only): the same unit has the same name in
all exports of one folder, and who has no key cannot try numbers out.
"""

import copy
import hashlib
import hmac
import os
import re
import secrets
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from freezeframe.harness.core import frames
from freezeframe.harness.core.blocks.blockdiff import BlockDiff
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.ipheaders import HOSTILE, locate_tcp
from freezeframe.harness.core.link.linkevidence import LinkEvidence
from freezeframe.harness.core.link.messages import Message
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamData
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.comparisonrecord import RecordPart
from freezeframe.harness.core.verdict.evidence import Evidence, link_ends
from freezeframe.harness.core.verdict.record import (
    IncidentRecord,
    TriggerRecord,
    Verdict,
)
from freezeframe.harness.edge.pcapng import CapturedFrame
from freezeframe.harness.errors import WireError
from freezeframe.harness.incidents.dossier import ConsoleLine, Dossier, SentFrame

P = TypeVar("P", bound=RecordPart)
KEY_FILE: Final = ".redaction-key"
KEY_BYTES: Final = 32
MIN_SERIAL_CHARS: Final = 4
"""A shorter one would be found in too much that is none; it is reported, not replaced."""
MAX_SERIALS: Final = 16
HEADERS_BYTES: Final = 54
"""Kept of a frame that is no TCP: Ethernet, IP and a little more; an ARP request whole."""
_MIN_TCP_FRAME_BYTES: Final = 54
_DROPPED_KEYS: Final = frozenset({"excerpt_hex", "frame_hex"})
_REMOVED: Final = "(redacted)"
_SERIAL_ON_CONSOLE: Final = re.compile(
    rb"(?i)serial(?: number|no\.?|#)?[ :=]+([A-Za-z0-9][A-Za-z0-9_./-]{3,31})"
)


def folder_key(out_dir: Path) -> bytes:
    """The folder's key, made when it is first needed; one of its own for this export where none can
    be kept."""
    path = out_dir / KEY_FILE
    try:
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    except OSError:
        pass  # there already, or nowhere to keep it
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            key = file.read(KEY_BYTES)
    except OSError:
        key = b""
    return key if len(key) == KEY_BYTES else secrets.token_bytes(KEY_BYTES)


class Pseudonyms:
    """Serial numbers and what stands for them; text and bytes keep their lengths."""

    def __init__(self, serials: Iterable[str], key: bytes) -> None:
        self._names: dict[bytes, bytes] = {}
        self._given: list[bytes] = []
        for serial in serials:
            raw = serial.encode()
            self._given.append(raw)
            digest = hmac.new(key, raw, hashlib.sha256).hexdigest().upper().encode()
            self._names[raw.lower()] = (b"S" + digest)[: len(raw)].ljust(len(raw), b"0")
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = (
            re.compile(b"|".join(map(re.escape, longest_first)), re.IGNORECASE)
            if self._names
            else None
        )

    @property
    def shown(self) -> dict[str, str]:
        """Serial number -> what stands for it, in the order of the serial numbers."""
        return {serial.decode(): self.text(serial.decode()) for serial in sorted(self._given)}

    def data(self, value: bytes) -> bytes:
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda found: self._names[found[0].lower()], value)

    def text(self, value: str) -> str:
        return self.data(value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def anything(self, value: Any) -> Any:
        """A value of JSON or CBOR with every text in it replaced."""
        match value:
            case str():
                return self.text(value)
            case bytes():
                return self.data(value)
            case dict():
                return {
                    self.anything(key): self.anything(one)
                    for key, one in value.items()
                    if key not in _DROPPED_KEYS
                }
            case list() | tuple():
                return [self.anything(one) for one in value]
        return value


@dataclass(frozen=True, kw_only=True)
class RedactionPreview:
    """What a redacted export masks, and what it leaves."""

    serial_numbers: Mapping[str, str]
    """Serial number -> what stands for it."""
    occurrences: Mapping[str, Mapping[str, int]]
    """Serial number -> where it stands (consoles, timeline, record, frames) -> how often."""
    frames: int
    masked_frames: int
    captured_bytes: int
    masked_bytes: int
    """Bytes of captured frames that are not zero and become zero."""
    removed: Sequence[str]
    stays: Sequence[str]


STAYS: Final = (
    "addresses and host names",
    "sector numbers and checksums of blocks",
    "console text other than serial numbers",
)
"""What ``--redact`` does not remove; docs/incidents.md says the same."""


@dataclass
class RedactedDossier(Dossier):
    """As Dossier, of what may be given away. It is judged on the whole evidence, and only then redacted."""

    key: bytes = field(default=b"", kw_only=True)

    @cached_property
    def whole(self) -> Dossier:
        return Dossier(self.stored, self.problems, given=self.given)

    @cached_property
    def names(self) -> Pseudonyms:
        serials = sorted(set(_serials(self.whole)))[:MAX_SERIALS]
        for serial in serials:
            if len(serial) < MIN_SERIAL_CHARS:
                self.problems.append(f"serial number {serial!r} is too short to be replaced")
        return Pseudonyms([one for one in serials if len(one) >= MIN_SERIAL_CHARS], self.key)

    @cached_property
    def record(self) -> IncidentRecord:
        """Without the host's data and the serial numbers; the verdict as ``verdict``."""
        whole = self.whole.record
        bare = msgspec.structs.replace(
            whole,
            trigger=_bare(whole.trigger) if whole.trigger is not None else None,
            more_triggers=tuple(map(_bare, whole.more_triggers)),
            verdict=_without_data(whole.verdict) if whole.verdict is not None else None,
        )
        return self._renamed(bare)

    @cached_property
    def evidence(self) -> Evidence:
        return self.whole.evidence

    @cached_property
    def judgement(self) -> tuple[Verdict, str]:
        verdict, why = self.whole.judgement
        return self._renamed(_without_data(verdict)), self.names.text(why)

    def _renamed(self, part: P) -> P:
        return msgspec.convert(self.names.anything(msgspec.to_builtins(part)), type(part))

    @cached_property
    def rows(self) -> list[Row]:
        rows = [self.names.anything(row) for row in self.whole.rows]
        for row in rows:
            if row.get("where") == "link":
                row.pop("text", None)
        return rows

    @cached_property
    def consoles(self) -> Mapping[Side, Sequence[ConsoleLine]]:
        return {
            side: [
                replace(line, data=self.names.data(line.data)) for line in self.whole.consoles[side]
            ]
            for side in SIDES
        }

    @property
    def sets(self) -> Mapping[Side, RootCauseSet]:
        return {
            side: RootCauseSet(
                header=self.names.anything(dict(one.header)),
                state=self.names.anything(dict(one.state)),
                events=one.events,
                tells=one.tells,
            )
            for side, one in self.whole.sets.items()
        }

    @cached_property
    def control_frames(self) -> Sequence[SentFrame]:
        return [replace(sent, frame=self._frame(sent.frame)) for sent in self.whole.control_frames]

    @property
    def link(self) -> LinkEvidence:
        return self._bare_link

    @cached_property
    def _bare_link(self) -> LinkEvidence:
        """Understood before anything was removed; the data that it holds goes."""
        link = copy.copy(self.whole.link)
        link.writes = [replace(write, data=b"") for write in link.writes]
        return link

    @cached_property
    def diff(self) -> BlockDiff | None:
        """Only which bits differ: zeroes against the mask."""
        diff = self.whole.diff
        if diff is None:
            return None
        mask = bytes(one ^ other for one, other in zip(diff.expected, diff.found, strict=True))
        return replace(
            diff,
            expected=bytes(len(mask)),
            found=mask,
            expected_from=f"{diff.expected_from} (redacted: shown as zeroes)",
            found_from=f"{diff.found_from} (redacted: only the differing bits are shown)",
        )

    def frames(self) -> Iterator[CapturedFrame]:
        kept = _Kept(self.whole)
        for number, frame in enumerate(self.whole.frames(), 1):
            yield CapturedFrame(
                frame.t_ns,
                self.names.data(kept.masked(number, frame.data)),
                frame.original_length,
                frame.interface,
            )

    def preview(self) -> RedactionPreview:
        """Count what this redaction masks. Reads the whole capture."""
        names, whole = self.names.shown, self.whole
        texts = {f"{side}'s console": [one.data for one in whole.consoles[side]] for side in SIDES}
        texts["timeline"] = [msgspec.json.encode(row) for row in whole.rows]
        texts["record"] = [msgspec.json.encode(whole.record)]
        counts = {
            serial: {
                where: count
                for where, lines in texts.items()
                if (count := sum(line.lower().count(serial.lower().encode()) for line in lines))
            }
            for serial in names
        }
        kept, number, frames, captured, masked = _Kept(whole), 0, 0, 0, 0
        for number, frame in enumerate(whole.frames(), 1):
            lost = frame.data.count(0) - kept.masked(number, frame.data).count(0)
            captured += len(frame.data)
            masked -= lost
            frames += lost < 0
        trigger, verdict = whole.record.trigger, whole.verdict
        removed = ["excerpts of triggers on the link, and bytes in hexadecimal"] if trigger else []
        removed += ["the expected and the found bytes"] if verdict.byte_offset is not None else []
        return RedactionPreview(
            serial_numbers=names,
            occurrences=counts,
            frames=number,
            masked_frames=frames,
            captured_bytes=captured,
            masked_bytes=masked,
            removed=removed,
            stays=STAYS,
        )

    def _frame(self, frame: bytes) -> bytes:
        """The control frame with another serial number and a right CRC; nothing of one that cannot
        be read."""
        try:
            read = frames.decode(frame)
            return frames.encode(
                read.type, read.seq, self.names.data(read.payload), flags=read.flags
            )
        except WireError:
            return bytes(len(frame))


def _serials(dossier: Dossier) -> Iterator[str]:
    """Serial numbers that the incident names: of its controllers, its sets and its consoles."""
    for controller in dossier.record.controllers.values():
        yield from _named(controller.serial_number)
    for one in dossier.sets.values():
        yield from _named(one.header.get("serial_number"))
    for side in SIDES:
        for line in dossier.consoles[side]:
            for found in _SERIAL_ON_CONSOLE.findall(line.data):
                yield found.decode("ascii").rstrip(".,-/")


def _named(serial: object) -> Iterator[str]:
    if isinstance(serial, str) and serial.strip():
        yield serial.strip()[:64]


def _bare(trigger: TriggerRecord) -> TriggerRecord:
    """A trigger without bytes: of the link, its excerpt begins with the packet's data."""
    excerpt = "" if trigger.source == "link" else trigger.excerpt
    return msgspec.structs.replace(trigger, excerpt=excerpt, excerpt_hex="")


def _without_data(verdict: Verdict) -> Verdict:
    """A verdict without bytes of the host's."""
    if verdict.byte_offset is None:
        return verdict
    return msgspec.structs.replace(verdict, expected=_REMOVED, found=_REMOVED)


class _Kept:
    """Which bytes of each frame are known to be no host data."""

    def __init__(self, dossier: Dossier) -> None:
        self._offsets: dict[int, tuple[int, int, int]] = {}
        """Frame number -> (flow, offset in its stream, length) of a payload that was new from end
        to end."""
        self._starts: dict[int, array[int]] = {}
        self._ends: dict[int, array[int]] = {}
        ends = link_ends(dossier.record)
        reassembler = Reassembler(ports=ends.ports)
        follower = Follower(ends.speak(must_match=False), ends.ports)
        number = 0
        for number, frame in enumerate(dossier.frames(), 1):
            for event in reassembler.feed(frame.t_ns, frame.data, number):
                flow = -1
                if isinstance(event, StreamData):
                    flow = event.flow.number
                    self._offsets[event.packet_no] = (flow, event.offset, len(event.data))
                for message in follower.on(event):
                    if isinstance(message, Message) and flow >= 0:
                        self._keep(flow, message)

    def _keep(self, flow: int, message: Message) -> None:
        if message.tentative or message.clear_bytes <= 0:
            return
        starts = self._starts.setdefault(flow, array("q"))
        if starts and starts[-1] >= message.stream_offset:
            return  # a second message out of the same bytes
        # A stream's messages come in their order: both lists are sorted.
        starts.append(message.stream_offset)
        end = message.stream_offset + message.clear_bytes
        self._ends.setdefault(flow, array("q")).append(end)

    def masked(self, number: int, data: bytes) -> bytes:
        """The frame with zeroes for everything that is not known to be no host data."""
        located = locate_tcp(memoryview(data)) if len(data) >= _MIN_TCP_FRAME_BYTES else None
        if located is None or located == HOSTILE or located[0] + 20 > len(data):
            return data[:HEADERS_BYTES].ljust(len(data), b"\0")
        start = min(located[0] + (data[located[0] + 12] >> 4) * 4, len(data))
        out = bytearray(data[:start].ljust(len(data), b"\0"))
        flow, offset, length = self._offsets.get(number, (-1, 0, 0))
        if flow < 0 or flow not in self._starts or length != min(located[1], len(data)) - start:
            return bytes(out)
        starts, ends = self._starts[flow], self._ends[flow]
        at = max(bisect_right(starts, offset) - 1, 0)
        while at < len(starts) and starts[at] < offset + length:
            first, last = max(starts[at], offset), min(ends[at], offset + length)
            if first < last:
                place = start + first - offset
                out[place : place + last - first] = data[place : place + last - first]
            at += 1
        return bytes(out)
