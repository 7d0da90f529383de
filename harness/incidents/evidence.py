"""All that an incident's folder holds, read for a person: consoles, frames, link, sets, the failing
write's way.

Every file is read with a limit and none is believed: what cannot be read is a sentence in
``problems``.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from crc32c import crc32c

from freezeframe.harness.bench import registry
from freezeframe.harness.core import rootcause
from freezeframe.harness.core.blocks import blockstamp
from freezeframe.harness.core.blocks.blockdiff import CRC32, CRC32C, BlockDiff, Checksum, rebuilt
from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.link.linkevidence import LinkEvidence, LinkWrite
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.stampwatch import SoleWriter
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict import writepath
from freezeframe.harness.core.verdict.evidence import link_ends
from freezeframe.harness.core.verdict.writepath import (
    DeviceClock,
    HostWrite,
    Suspect,
    WritePath,
    items,
    mapping,
    number,
)
from freezeframe.harness.edge.pcapng import CapturedFrame, run_frames
from freezeframe.harness.errors import HarnessError, RigError, WireError
from freezeframe.harness.incidents.store import (
    CONSOLE,
    JOURNAL,
    LINK,
    SET,
    TIMES,
    StoredIncident,
    link_runs,
)
from freezeframe.harness.roles import Controller, SetReader
from freezeframe.harness.wire import blockstamp as stamps
from freezeframe.harness.wire import control

MAX_CONSOLE_BYTES: Final = 64 << 20
MAX_NAME_CHARS: Final = 64
"""Of a driver."""
MAX_TIMES_BYTES: Final = 16 << 20
MAX_LINE_BYTES: Final = 4096
"""A longer line of a console is cut into pieces."""
MAX_JOURNAL_BYTES: Final = 256 << 20
MAX_HOST_WRITES: Final = 1 << 20
MAX_SECTOR: Final = 1 << 55
"""2**64 bytes."""
MAX_TIME_NS: Final = (1 << 63) - 1
MAX_OFFSET_NS: Final = 1 << 62
_TIMES: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """One line of a console."""

    t_ns: Ns
    """When the read that brought its end returned; 0: not recorded."""
    offset_bytes: int
    data: bytes
    """Without the line's end."""
    rules: tuple[str, ...] = ()
    """Rules that hit in it; the incident's own trigger first."""
    is_trigger: bool = False


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """A control frame that the harness sent."""

    t_ns: Ns
    side: Side
    frame: bytes
    """As it was on the line."""


@dataclass
class Evidence:
    """An incident, read. Parts are read when first asked for."""

    stored: StoredIncident
    problems: list[str] = field(default_factory=list)

    @property
    def record(self) -> Mapping[str, Any]:
        return self.stored.record

    @cached_property
    def wall_offset_ns(self) -> Ns:
        """Add to CLOCK_MONOTONIC of the run for CLOCK_REALTIME."""
        clock = mapping(self.record.get("clock"))
        wall_ns, monotonic_ns = number(clock.get("wall_ns")), number(clock.get("monotonic_ns"))
        if wall_ns is None or monotonic_ns is None:
            return 0
        return min(max(wall_ns - monotonic_ns, -MAX_OFFSET_NS), MAX_OFFSET_NS)

    @cached_property
    def rows(self) -> list[Row]:
        return self.stored.timeline()

    @cached_property
    def triggers(self) -> list[Mapping[str, Any]]:
        """The incident's trigger, then those after it."""
        first = self.record.get("trigger")
        return [
            *([first] if isinstance(first, dict) else []),
            *items(self.record.get("more_triggers")),
        ]

    @cached_property
    def consoles(self) -> dict[Side, list[ConsoleLine]]:
        return {side: self._console(side) for side in SIDES}

    @cached_property
    def trigger_line(self) -> tuple[Side, int] | None:
        """(side, index into that console) of the line that the trigger was found in."""
        for side in SIDES:
            for at, line in enumerate(self.consoles[side]):
                if line.is_trigger:
                    return side, at
        return None

    @cached_property
    def trigger_text(self) -> bytes:
        """The line of the trigger; what was found, for one of the link; b"" without a trigger."""
        if self.trigger_line is not None:
            side, at = self.trigger_line
            return self.consoles[side][at].data
        trigger = mapping(self.record.get("trigger"))
        return str(trigger.get("detail") or trigger.get("excerpt") or "").encode(errors="replace")

    @cached_property
    def control_frames(self) -> list[ControlFrame]:
        frames = []
        for action in items(self.record.get("actions")):
            t_ns, side, told = (
                number(action.get("t_frame_ns")),
                action.get("side"),
                action.get("frame_hex"),
            )
            if t_ns is None or side not in SIDES or not isinstance(told, str):
                continue
            try:
                data = bytes.fromhex(told[: 2 * control.MAX_FRAME_BYTES])
            except ValueError:
                self.problems.append(f"{side}: its control frame is not hexadecimal")
                continue
            frames.append(ControlFrame(bounded(t_ns), side, data))
        return frames

    @cached_property
    def sets(self) -> dict[Side, RootCauseSet]:
        """The root cause data sets that can be decoded."""
        found: dict[Side, RootCauseSet] = {}
        for side in SIDES:
            stored = self._part(f"{side}/{SET}", control.MAX_SET_BYTES)
            if not stored:
                continue
            try:
                found[side] = decode_set(self.record, side, stored)
            except HarnessError as error:
                self.problems.append(f"{side}'s set cannot be read: {escape(str(error))}")
        return found

    @property
    def events(self) -> dict[Side, Sequence[Mapping[str, Any]]]:
        return {side: one.events for side, one in self.sets.items()}

    def boot_events(self, side: Side) -> Sequence[Mapping[str, Any]]:
        """The event records of the boot in which the set was stored, on the clock of ``clocks``."""
        return rootcause.this_boot(self.events.get(side, ()))

    @cached_property
    def host_writes(self) -> list[HostWrite]:
        """The host's journal in the order of sending, as far as it can be read."""
        data = self._part(JOURNAL, MAX_JOURNAL_BYTES)
        return list(_journal_writes(data).values())

    @cached_property
    def sole_writer(self) -> SoleWriter | None:
        """Whose stamps the link could rely on: the run's own writer, by the head of its journal."""
        span = blockstamp.journal_span(self._part(JOURNAL, MAX_JOURNAL_BYTES))
        return SoleWriter(*span) if span else None

    @cached_property
    def suspect(self) -> Suspect | None:
        return writepath.suspect(self.record, self.events, self.trigger_text)

    @cached_property
    def link(self) -> LinkEvidence:
        """The replicated writes of the capture, read once from end to end."""
        wanted = self.suspect.sector if self.suspect is not None else -1
        found = LinkEvidence(link_ends(self.record), lambda write: write.covers(wanted))
        for run in self.runs():
            found.feed(run, self.wall_offset_ns)
        found.close()
        return found

    @cached_property
    def failing(self) -> LinkWrite | None:
        """The suspect write on the link: the last one before the trigger that covers its sector."""
        if self.suspect is None:
            return None
        until_ns = number(mapping(self.record.get("trigger")).get("t_match_ns"))
        covering = [
            one
            for one in self.link.writes
            if one.covers(self.suspect.sector) and (until_ns is None or one.t_sent_ns <= until_ns)
        ]
        named = [one for one in covering if one.block_id == self.suspect.block_id]
        fitting = named or covering
        return fitting[-1] if fitting else None

    @cached_property
    def clocks(self) -> dict[Side, DeviceClock]:
        """Each controller's uptime on the host's clock, where that can be told: as the verdict
        found it, else from the set and the reply."""
        judged = mapping(mapping(self.record.get("verdict")).get("clocks"))
        found: dict[Side, DeviceClock] = {}
        for side, one in self.sets.items():
            told = mapping(judged.get(side))
            offset_ns, error_ns = number(told.get("offset_ns")), number(told.get("error_ns"))
            if told.get("consistent") is True and offset_ns is not None and error_ns is not None:
                found[side] = DeviceClock(offset_ns=offset_ns, error_ns=error_ns)
            elif (clock := writepath.device_clock(self.record, side, one.header)) is not None:
                found[side] = clock
        return found

    @cached_property
    def path(self) -> WritePath:
        return writepath.write_path(
            record=self.record,
            found=self.suspect,
            host=self.host_writes,
            link=self.failing,
            events=self.events,
            clocks=self.clocks,
            trigger_line=escape(self.trigger_text[:200]),
        )

    @cached_property
    def diff(self) -> BlockDiff | None:
        """Expected and found bytes of the failing block, where the evidence holds or proves
        them."""
        if self.suspect is None:
            return None
        written = self._written(self.suspect.sector)
        on_link = self.failing.data or None if self.failing else None
        if written is not None and on_link is not None and self.failing is not None:
            first, expected = written
            if (
                first == self.failing.sector
                and len(expected) == len(on_link)
                and expected != on_link
            ):
                return BlockDiff(
                    sector=first,
                    expected=expected,
                    found=on_link,
                    expected_from="what the host wrote, by its journal",
                    found_from=f"what was on the link, frames {self.failing.first_packet_no} to {self.failing.packet_no}",
                )
        if written is None and on_link is not None and self.failing is not None:
            written = (self.failing.sector, on_link)
        return self._rebuilt_diff(written) if written is not None else None

    def frames(self) -> Iterator[CapturedFrame]:
        """The link's frames in order; a damaged end is a problem, not an error."""
        for run in self.runs():
            yield from run_frames(run)

    def runs(self) -> Iterator[Run]:
        """The same in runs."""
        try:
            yield from link_runs(self.stored.path)
        except FileNotFoundError:
            self.problems.append(f"there is no {LINK}")
        except (RigError, WireError, OSError) as error:
            self.problems.append(f"{LINK}: {escape(str(error))}")

    def _part(self, name: str, max_bytes: int) -> bytes:
        try:
            return self.stored.part(name, max_bytes)
        except RigError as error:
            self.problems.append(escape(str(error)))
            return b""

    def reads(self, side: Side) -> Iterator[tuple[Ns, bytes]]:
        """A console as it was read: (when a read returned, what it brought), in order; all at once
        where the times are lost."""
        data = self._part(f"{side}/{CONSOLE}", MAX_CONSOLE_BYTES)
        starts = [(0, 0), *self._times(side), (0, len(data))]
        for (t_ns, start), (_, end) in pairwise(starts):
            if data[start:end]:
                yield bounded(t_ns), data[start:end]

    def _times(self, side: Side) -> list[tuple[Ns, int]]:
        """(when it returned, offset of its first byte) of each recorded read, by offset."""
        times = self._part(f"{side}/{TIMES}", MAX_TIMES_BYTES)
        reads = _TIMES.iter_unpack(times[: len(times) // _TIMES.size * _TIMES.size])
        return sorted(reads, key=lambda one: one[1])

    def _console(self, side: Side) -> list[ConsoleLine]:
        data = self._part(f"{side}/{CONSOLE}", MAX_CONSOLE_BYTES)
        reads = self._times(side)
        offsets = [offset for _, offset in reads]
        ends = _trigger_ends(self.triggers, side)
        lines = []
        for start, end, following in _cut(data):
            read = bisect_right(offsets, max(following - 1, start)) - 1
            hits = [(rule, first) for offset, rule, first in ends if start < offset <= following]
            t_ns = bounded(reads[read][0]) if read >= 0 else 0
            rules = tuple(rule for rule, _ in hits)
            lines.append(
                ConsoleLine(t_ns, start, data[start:end], rules, any(first for _, first in hits))
            )
        return lines

    def _written(self, sector: int) -> tuple[int, bytes] | None:
        """(first sector, data) of the host's last write over ``sector`` before the trigger."""
        until_ns = number(mapping(self.record.get("trigger")).get("t_match_ns"))
        before = [
            w
            for w in self.host_writes
            if w.covers(sector) and (until_ns is None or w.t_ns <= until_ns)
        ]
        head = self._part(JOURNAL, blockstamp.JOURNAL_HEADER.size)
        if not before or len(head) < blockstamp.JOURNAL_HEADER.size:
            return None
        write = before[-1]
        _, volume, seed, _, _ = blockstamp.JOURNAL_HEADER.unpack(head)
        data = blockstamp.stamp(
            volume, seed, write.write_id, write.sector, write.sectors, write.t_ns
        )
        return write.sector, data

    def _rebuilt_diff(self, written: tuple[int, bytes]) -> BlockDiff | None:
        """From a pair of CRC-32Cs in an event log: which bytes the device must have had."""
        first, data = written
        for side, events in self.events.items():
            for event in events:
                crcs = _crc_pair(event)
                at, size = number(event.get("sector")), number(event.get("bytes"))
                if crcs is None or at is None or size is None:
                    continue
                start = (at - first) * stamps.SECTOR_BYTES
                if not 0 <= start < start + size <= len(data):
                    continue
                expected = data[start : start + size]
                found = rebuilt(expected, *crcs)
                if found is not None:
                    told = f"what the {side} had, by the checksum in its event {event['seq']}: {found[1]}"
                    return BlockDiff(
                        sector=at,
                        expected=expected,
                        found=found[0],
                        expected_from="what the host wrote, by its journal",
                        found_from=told,
                    )
        return None


def decode_set(record: Mapping[str, Any], side: Side, data: bytes) -> RootCauseSet:
    """A side's set as it was pulled, read by the driver that pulled it. WireError: it is damaged;
    UsageError or RigError: that driver is not here."""
    told = mapping(mapping(record.get("sets")).get(side))
    sha256 = told.get("sha256") if told.get("complete") else None
    who = mapping(mapping(record.get("controllers")).get(side))
    reader = (
        registry.load(str(who["driver"])[:MAX_NAME_CHARS], Controller) if "driver" in who else None
    )
    if not isinstance(reader, SetReader):
        return rootcause.decode(data, sha256)
    rootcause.check_sha256(data, sha256)
    return reader.decode_set(data, str(who.get("serial_number", "")))


def bounded(t_ns: int) -> Ns:
    """A time that fits into every format, whatever the file said."""
    return min(max(t_ns, 0), MAX_TIME_NS)


def _crc_pair(event: Mapping[str, Any]) -> tuple[int, int, Checksum] | None:
    """(expected, found, of which kind) of an event record that tells both."""
    told = {
        "REPL_DIGEST_FAILED": ("digest", "computed", CRC32C),
        "SCRUB_MISMATCH": ("expected_crc32", "found_crc32", CRC32),
    }.get(event["name"])
    if told is None:
        return None
    *names, checksum = told
    expected, found = number(event.get(names[0])), number(event.get(names[1]))
    if expected is None or found is None or max(expected, found) >= 1 << 32:
        return None
    return expected, found, checksum


def _trigger_ends(triggers: Sequence[Mapping[str, Any]], side: Side) -> list[tuple[int, str, bool]]:
    """(offset just behind the match, rule, is it the incident's trigger) on that console, by
    offset."""
    ends = []
    for at, trigger in enumerate(triggers):
        offset = number(trigger.get("offset_bytes"))
        if (
            trigger.get("source") == "console"
            and trigger.get("side") == side
            and offset is not None
        ):
            ends.append((offset, escape(str(trigger.get("rule"))), at == 0))
    return ends


def _cut(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, end without its line end, start of the next) of each line, long ones in pieces."""
    start = 0
    while start < len(data):
        newline = data.find(b"\n", start, start + MAX_LINE_BYTES)
        following = newline + 1 if newline >= 0 else min(start + MAX_LINE_BYTES, len(data))
        end = following
        while end > start and data[end - 1] in b"\r\n":
            end -= 1
        yield start, end, following
        start = following


def _journal_writes(data: bytes) -> dict[int, HostWrite]:
    """The whole records of a write journal, by write id; what is damaged is passed over."""
    writes: dict[int, HostWrite] = {}
    if data[:8] != blockstamp.JOURNAL_MAGIC:
        return writes
    body = data[blockstamp.JOURNAL_HEADER.size :]
    size = blockstamp.RECORD_BYTES
    for at in range(0, len(body) - size + 1, size):
        if len(writes) >= MAX_HOST_WRITES:
            break
        record = body[at : at + size]
        kind, sectors, write_id, lba, t_ns = blockstamp.RECORD.unpack_from(record)
        whole = (
            crc32c(record[: blockstamp.RECORD.size])
            == stamps.CRC.unpack_from(record, size - stamps.CRC.size)[0]
        )
        if not whole or not 0 < sectors <= blockstamp.MAX_WRITE_SECTORS or lba > MAX_SECTOR:
            continue
        known = writes.get(write_id)
        if kind == blockstamp.INTENT and known is None:
            writes[write_id] = HostWrite(
                write_id=write_id, sector=lba, sectors=sectors, t_ns=bounded(t_ns), t_ack_ns=0
            )
        elif kind == blockstamp.ACK and known is not None and not known.t_ack_ns:
            writes[write_id] = HostWrite(
                write_id=write_id,
                sector=known.sector,
                sectors=known.sectors,
                t_ns=known.t_ns,
                t_ack_ns=bounded(t_ns),
            )
    return writes
