"""An incident as its readers see it: the evidence of its folder, read once, the verdict on it, and what both show.

The page, the capture file, the trace, ``show``, ``replay``, redaction, the index and the rule lab all draw from here. Every
file is read with a limit and none is believed: what cannot be read is a sentence in ``problems``.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

from freezeframe.harness.bench import boundary, registry
from freezeframe.harness.core import rootcause
from freezeframe.harness.core.blocks.blockdiff import BlockDiff
from freezeframe.harness.core.blocks.blockstamp import Write, journal_span
from freezeframe.harness.core.events import READ_TIME, SIDES, Ns, Side
from freezeframe.harness.core.link.linkevidence import LinkEvidence, LinkWrite
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.stampwatch import SoleWriter
from freezeframe.harness.core.rootcause import EventRecord, RootCauseSet, StateRecord
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.bytediff import byte_diff
from freezeframe.harness.core.verdict.comparisonrecord import MAX_TIME_NS
from freezeframe.harness.core.verdict.deviceclock import DeviceClock
from freezeframe.harness.core.verdict.evidence import Evidence, gather, link_ends
from freezeframe.harness.core.verdict.record import (
    IncidentRecord,
    TriggerRecord,
    Verdict,
)
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.core.verdict.writepath import WritePath, write_path
from freezeframe.harness.edge.pcapng import CapturedFrame, run_frames
from freezeframe.harness.errors import HarnessError, RigError, WireError
from freezeframe.harness.incidents.store import (
    CONSOLE,
    HEALTHY,
    JOURNAL,
    LINK,
    SET,
    TIMES,
    StoredIncident,
    link_runs,
)
from freezeframe.harness.roles import Controller, SetReader
from freezeframe.harness.wire import control

MAX_CONSOLE_BYTES: Final = 64 << 20
MAX_NAME_CHARS: Final = 64
"""Of a driver."""
MAX_TIMES_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 4096
"""A longer line of a console is cut into pieces."""
MAX_JOURNAL_BYTES: Final = 1 << 30
MAX_FRAMES: Final = 20_000_000
NONSENSE: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What an understanding of a hostile set may end in."""


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
class SentFrame:
    """A control frame that the harness sent."""

    t_ns: Ns
    side: Side
    frame: bytes
    """As it was on the line."""


@dataclass
class Dossier:
    """Parts are read when first asked for, and only once."""

    stored: StoredIncident
    problems: list[str] = field(default_factory=list)
    given: Evidence | None = field(default=None, kw_only=True)
    """Evidence that does not lie in the folder; None: what the folder holds."""

    # --- the one evidence, and the one verdict on it ----------------------------------------------------------
    @cached_property
    def record(self) -> IncidentRecord:
        return self.stored.record

    @cached_property
    def evidence(self) -> Evidence:
        """Of the whole incident; reads the capture from end to end."""
        if self.given is not None:
            return self.given
        problem: list[str] = []
        record = self.stored.record
        return gather(
            record,
            sets={side: found for side, (found, _) in self._sets.items()},
            set_problems={side: why for side, (_, why) in self._sets.items()},
            healthy={side: self._healthy(side) for side in SIDES},
            consoles=self._consoles,
            journal=self._journal or None,
            frames=self._bounded_runs(problem),
            frames_offset_ns=record.wall_offset_ns,
            frames_problem=lambda: problem[0] if problem else "",
        )

    @cached_property
    def judgement(self) -> tuple[Verdict, str]:
        """(the verdict, why there is none): what a device stored may make no sense."""
        try:
            return judge(self.evidence), ""
        except NONSENSE as error:
            why = f"its record makes no sense: {type(error).__name__}: {error}"
            return Verdict(text="Inconclusive: there is no verdict.", reason=why), why

    @property
    def verdict(self) -> Verdict:
        """Without any conclusion where none could be drawn, which is then a problem."""
        found, why = self.judgement
        if why and (said := f"there is no verdict: {escape(why)}") not in self.problems:
            self.problems.append(said)
        return found

    # --- what both show -----------------------------------------------------------------------------------------
    @property
    def link(self) -> LinkEvidence:
        """The replicated writes of the capture; none where there is no capture."""
        return self.evidence.link or self._no_link

    @cached_property
    def _no_link(self) -> LinkEvidence:
        return LinkEvidence(link_ends(self.stored.record))

    @cached_property
    def failing(self) -> LinkWrite | None:
        """The verdict's write on the link; None: it names none, or the capture does not hold it."""
        packet_no = self.verdict.packet_no
        if packet_no is None:
            return None
        return next((one for one in self.link.writes if one.packet_no == packet_no), None)

    @cached_property
    def path(self) -> WritePath:
        return write_path(self.verdict, self.record, escape(self.trigger_text[:200]))

    @cached_property
    def diff(self) -> BlockDiff | None:
        """Expected and found bytes of the failing write; only where the verdict says that bytes differ."""
        try:
            return byte_diff(self.evidence, self.verdict)
        except NONSENSE:
            return None

    @property
    def wall_offset_ns(self) -> Ns:
        return self.stored.record.wall_offset_ns

    @property
    def clocks(self) -> Mapping[Side, DeviceClock]:
        """Each controller's uptime on the host's clock, where that is known."""
        return {
            side: own.clock for side, own in self.evidence.sides.items() if own.clock is not None
        }

    @property
    def sets(self) -> Mapping[Side, RootCauseSet]:
        """The root cause data sets that can be decoded."""
        return {side: own.set for side, own in self.evidence.sides.items() if own.set is not None}

    def boot_events(self, side: Side) -> Sequence[EventRecord]:
        """The event records of the boot in which the set was stored, on the clock of ``clocks``."""
        return self.evidence.sides[side].events

    @property
    def host_writes(self) -> Sequence[Write]:
        """The host's writes in the order of sending."""
        journal = self.evidence.journal
        return list(journal.writes.values()) if journal is not None else []

    @property
    def host_acks_ns(self) -> Mapping[int, Ns]:
        """When each acknowledged write of the host was."""
        return self.evidence.journal.acked_ns if self.evidence.journal is not None else {}

    @cached_property
    def sole_writer(self) -> SoleWriter | None:
        """Whose stamps the link could rely on: the run's own writer, by the head of its journal."""
        span = journal_span(self._journal)
        return SoleWriter(*span) if span else None

    # --- light parts: the capture is not read for them --------------------------------------------------------
    @cached_property
    def rows(self) -> list[Row]:
        return self.stored.timeline()

    @cached_property
    def triggers(self) -> Sequence[TriggerRecord]:
        """The incident's trigger, then those after it."""
        return self.record.triggers

    @cached_property
    def consoles(self) -> Mapping[Side, Sequence[ConsoleLine]]:
        return {side: self._lines(side) for side in SIDES}

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
        trigger = self.record.trigger
        text = (trigger.detail or trigger.excerpt) if trigger is not None else ""
        return text.encode(errors="replace")

    @cached_property
    def control_frames(self) -> Sequence[SentFrame]:
        frames = []
        for action in self.stored.record.actions:
            if not action.frame_hex:
                continue
            try:
                data = bytes.fromhex(action.frame_hex[: 2 * control.MAX_FRAME_BYTES])
            except ValueError:
                self.problems.append(f"{action.side}: its control frame is not hexadecimal")
                continue
            frames.append(SentFrame(action.t_frame_ns, action.side, data))
        return frames

    def frames(self) -> Iterator[CapturedFrame]:
        """The link's frames in order; a damaged end is a problem, not an error."""
        for run in self.runs():
            yield from run_frames(run)

    def runs(self) -> Iterator[Run]:
        """The same in runs."""
        problem: list[str] = []
        yield from self._bounded_runs(problem)
        self.problems += [one for one in problem if one not in self.problems]

    def reads(self, side: Side) -> Iterator[tuple[Ns, bytes]]:
        """A console as it was read: (when a read returned, what it brought), in order; all at once
        where the times are lost."""
        data, times = self._consoles[side]
        starts = [(0, 0), *sorted(times, key=lambda one: one[1]), (0, len(data))]
        for (t_ns, start), (_, end) in pairwise(starts):
            if data[start:end]:
                yield t_ns, data[start:end]

    # --- files ------------------------------------------------------------------------------------------------
    def _bounded_runs(self, problem: list[str]) -> Iterator[Run]:
        """The capture; ends early, and says why in ``problem``, where the file is damaged."""
        frames = 0
        try:
            for run in link_runs(self.stored.path):
                yield run
                frames += run.frames
                if frames >= MAX_FRAMES:
                    problem.append(f"only the first {frames} frames of {LINK} are read")
                    return
        except FileNotFoundError:
            problem.append("there is no capture of the link")
        except (HarnessError, OSError) as error:
            problem.append(f"{LINK}: {escape(str(error))}")
        self.problems += [one for one in problem if one not in self.problems]

    def _part(self, name: str, max_bytes: int) -> bytes:
        try:
            return self.stored.part(name, max_bytes)
        except RigError as error:
            self.problems.append(escape(str(error)))
            return b""

    @cached_property
    def _journal(self) -> bytes:
        return self._part(JOURNAL, MAX_JOURNAL_BYTES)

    @cached_property
    def _consoles(self) -> Mapping[Side, tuple[bytes, Sequence[tuple[Ns, int]]]]:
        """The bytes of each console, and (when it returned, offset of its first byte) of each read, by offset."""
        if self.given is not None:
            return {
                side: (own.console, own.console_times) for side, own in self.given.sides.items()
            }
        return {side: self._console(side) for side in SIDES}

    def _console(self, side: Side) -> tuple[bytes, Sequence[tuple[Ns, int]]]:
        times = self._part(f"{side}/{TIMES}", MAX_TIMES_BYTES)
        reads = READ_TIME.iter_unpack(times[: len(times) // READ_TIME.size * READ_TIME.size])
        ordered = sorted(
            ((min(t_ns, MAX_TIME_NS), at) for t_ns, at in reads), key=lambda one: one[1]
        )
        return self._part(f"{side}/{CONSOLE}", MAX_CONSOLE_BYTES), ordered

    def _lines(self, side: Side) -> list[ConsoleLine]:
        data, reads = self._consoles[side]
        offsets = [offset for _, offset in reads]
        ends = _trigger_ends(self.stored.record.triggers, side)
        lines = []
        for start, end, following in _cut(data):
            read = bisect_right(offsets, max(following - 1, start)) - 1
            hits = [(rule, first) for offset, rule, first in ends if start < offset <= following]
            t_ns = reads[read][0] if read >= 0 else 0
            rules = tuple(rule for rule, _ in hits)
            lines.append(
                ConsoleLine(t_ns, start, data[start:end], rules, any(first for _, first in hits))
            )
        return lines

    @cached_property
    def _sets(self) -> Mapping[Side, tuple[RootCauseSet | None, str]]:
        """(the set, why there is none) of each side."""
        return {side: self._set(side) for side in SIDES}

    def _set(self, side: Side) -> tuple[RootCauseSet | None, str]:
        pulled = self.stored.record.sets.get(side)
        data = self._part(f"{side}/{SET}", control.MAX_SET_BYTES)
        if not data:
            return None, (pulled.reason if pulled is not None else "") or "it was not pulled"
        try:
            return decode_set(self.stored.record, side, data), ""
        except HarnessError as error:
            self.problems.append(f"{side}'s set cannot be read: {escape(str(error))}")
            return None, error.what if isinstance(error, WireError) else str(error)

    def _healthy(self, side: Side) -> StateRecord | None:
        data = self._part(f"{side}/{HEALTHY}", control.MAX_SET_BYTES)
        try:
            state = rootcause.decode_cbor(data) if data else None
        except WireError:
            return None
        return state if isinstance(state, dict) else None


def decode_set(record: IncidentRecord, side: Side, data: bytes) -> RootCauseSet:
    """A side's set as it was pulled, read by the driver that pulled it. WireError: it is damaged;
    UsageError or RigError: that driver is not here."""
    pulled, who = record.sets.get(side), record.controllers.get(side)
    sha256 = pulled.sha256 if pulled is not None and pulled.complete else None
    driver = who.driver if who is not None else ""
    reader = registry.load(driver[:MAX_NAME_CHARS], Controller) if driver else None
    if who is None or not isinstance(reader, SetReader):
        return rootcause.decode(data, sha256)
    rootcause.check_sha256(data, sha256)
    return boundary.decoded(driver, side, reader.decode_set, data, who.serial_number)


def _trigger_ends(triggers: Sequence[TriggerRecord], side: Side) -> list[tuple[int, str, bool]]:
    """(offset just behind the match, rule, is it the incident's trigger) on that console, by
    offset."""
    return [
        (trigger.offset_bytes, escape(trigger.rule), at == 0)
        for at, trigger in enumerate(triggers)
        if trigger.source == "console" and trigger.side == side and trigger.offset_bytes is not None
    ]


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
