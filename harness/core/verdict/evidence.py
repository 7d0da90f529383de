"""What there is to judge an incident by, gathered once from its parts and bounded to it; what is missing is said. Pure.

Only what a real bench has goes in. A simulated controller also records which faults were armed and when they fired: that
is taken away at the door, and neither the scenario's name nor the run's steps of arming are ever looked at.

A log and a console reach further back than the incident. What was logged, printed or complained of before the bench was
armed belongs to something else, and never speaks for this incident: ``named`` and the complaints leave it out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

from freezeframe.harness.core.blocks.blockstamp import Journal
from freezeframe.harness.core.console.places import ConsoleText, NamedPlace, place_in
from freezeframe.harness.core.events import NS_PER_MS, SIDES, Ns, Side
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.blindness import unsafe_events
from freezeframe.harness.core.link.linkevidence import LinkEvidence, LinkWrite
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.rootcause import EventRecord, RootCauseSet, StateRecord, this_boot
from freezeframe.harness.core.verdict.armedclock import armed_uptime_ns, device_clock
from freezeframe.harness.core.verdict.comparisonrecord import ComparisonRecord
from freezeframe.harness.core.verdict.complaints import line_at, printed_digests
from freezeframe.harness.core.verdict.deviceclock import DeviceClock
from freezeframe.harness.core.verdict.record import (
    IncidentRecord,
    TriggerRecord,
    WrongReadRecord,
)
from freezeframe.harness.errors import HarnessError, WireError

TELL_TALES: Final = frozenset({"FAULT_FIRED"})
"""Event records that exist only on a simulated controller."""
FIRST_OF_A_WRITE: Final = frozenset({"HOST_WRITE", "REPL_RECEIVE"})
"""Records with which a controller's log of one write begins."""
MAX_PORTS: Final = 64
STEP_NS: Final = 20 * NS_PER_MS
"""Wall and monotonic clock drift apart by less than this in a run, unless somebody sets the wall
clock."""


class OwnWrite(NamedTuple):
    """The write that the trigger itself names; None: it names none."""

    sector: int | None
    size_bytes: int | None
    block_id: str
    packet_no: int | None


@dataclass(frozen=True, kw_only=True)
class SideEvidence:
    """What one controller left."""

    side: Side
    set: RootCauseSet | None = None
    """Without the simulation's tell-tales; None: it did not arrive whole."""
    set_problem: str = ""
    healthy: StateRecord | None = None
    """Its state record when the bench was armed."""
    console: bytes = b""
    console_times: Sequence[tuple[Ns, int]] = ()
    console_texts: Sequence[ConsoleText] = ()
    """How the device's console names places."""
    clock: DeviceClock | None = None
    """Of the boot that the set tells of."""
    armed_ns: Ns = 0
    """When the bench was armed."""
    trigger_ns: Ns | None = None
    """When the trigger was found; None: there was none."""
    link_writes: Sequence[LinkWrite] = ()
    """The capture's: a line that names no place names one of these."""
    armed_uptime_ns: int = 0
    """The controller's uptime then, in the boot that the set tells of; 0: that boot began later, or it is not known."""

    @cached_property
    def events(self) -> Sequence[EventRecord]:
        """The event log of the boot that ended in the incident, oldest first; its first records may be older than the
        incident."""
        return () if self.set is None else this_boot(self.set.events)

    @cached_property
    def own_events(self) -> Sequence[EventRecord]:
        """Of these, what was logged since the bench was armed."""
        return [one for one in self.events if one["uptime_ns"] >= self.armed_uptime_ns]

    @cached_property
    def log_is_whole(self) -> bool:
        """Nothing of the incident's time has been overwritten."""
        first = self.events[0] if self.events else None
        return first is not None and (
            first["name"] == "BOOT" or first["uptime_ns"] < self.armed_uptime_ns
        )

    def tells(self, *names: str) -> bool:
        """Whether the set's log would hold such records if anything of the kind had happened in its
        time."""
        return self.set is not None and self.set.tells.issuperset(names)

    def named(self, *names: str) -> list[EventRecord]:
        """Records of the incident's time."""
        return [one for one in self.own_events if one["name"] in names]

    @cached_property
    def _by_write(self) -> Mapping[int, Mapping[str, EventRecord]]:
        """Write number -> name -> record. Numbers begin anew in each boot, and the log outlives a
        warmstart: with the first record of a write, those of older writes of its number are left out."""
        found: dict[int, dict[str, EventRecord]] = {}
        for one in self.events:
            if "write_no" in one:
                if one["name"] in FIRST_OF_A_WRITE:
                    found[one["write_no"]] = {}
                found.setdefault(one["write_no"], {})[one["name"]] = one
        return found

    def of_write(self, name: str, write_no: int | None) -> EventRecord | None:
        """The newest record of that name about the newest write of that number."""
        return None if write_no is None else self._by_write.get(write_no, {}).get(name)

    @cached_property
    def write_numbers(self) -> Mapping[bytes, int]:
        """block_id -> the controller's own number of the write, as far as the state record
        tells."""
        if self.set is None:
            return {}
        rows: object = self.set.state.get("last_writes")
        return {
            row[4]: row[0]
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, list)
            and len(row) >= 7
            and isinstance(row[4], bytes)
            and isinstance(row[0], int)
        }

    def named_write(self, place: NamedPlace) -> LinkWrite | None:
        """The captured write that a line names by its id and digests: by both digests, which tell it
        from all others; else by its id, the newest. None: it names none, or none that was captured."""
        if not place.write_id_text:
            return None
        if place.digests is not None:
            named = [one for one in self.link_writes if _digests(one) == place.digests]
        else:
            named = [one for one in self.link_writes if one.block_id == place.write_id_text]
        return named[-1] if named else None

    def at(self, record: EventRecord | None) -> tuple[Ns, Ns] | None:
        """(host time, error) of an event record."""
        if record is None or self.clock is None:
            return None
        uptime_ns = record["uptime_ns"]
        return self.clock.host_ns(uptime_ns), self.clock.error_at(uptime_ns)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything about one incident."""

    record: IncidentRecord
    sides: Mapping[Side, SideEvidence]
    link: LinkEvidence | None
    """None: there is no capture."""
    link_problem: str = ""
    """Why there is no capture, why it ends early, or why nobody understands it."""
    link_is_recorded: bool
    """There is a capture, of a protocol that is not understood: ``link`` is None."""
    journal: Journal | None = None
    journal_problem: str = ""

    @property
    def primary(self) -> SideEvidence:
        return self.sides["primary"]

    @property
    def secondary(self) -> SideEvidence:
        return self.sides["secondary"]

    @property
    def trigger(self) -> TriggerRecord | None:
        return self.record.trigger

    @property
    def comparison(self) -> ComparisonRecord | None:
        return self.record.comparison

    @property
    def wrong_reads(self) -> Sequence[WrongReadRecord]:
        return self.record.workload.wrong_reads if self.record.workload is not None else ()

    @property
    def t_detect_ns(self) -> Ns | None:
        return self.trigger.t_match_ns if self.trigger is not None else None

    @property
    def data_equal(self) -> bool | None:
        """The volumes were compared, and hold what the host was promised; None: not compared."""
        compared = self.comparison
        if compared is None or (compared.data_equal and not compared.bytes_compared):
            return None
        return compared.data_equal

    @property
    def is_uneventful(self) -> bool:
        """Nothing triggered, and no data were found wrong where they were compared. It does not say
        that all of it was seen: ``assurance.not_judged``."""
        return self.trigger is None and bool(self.data_equal) and not self.wrong_reads

    # --- what the capture is worth ----------------------------------------------------------------------------
    @property
    def link_error_ns(self) -> Ns:
        """Frames are timed by the wall clock: its own reading's error, and what it moved during the run."""
        clock = self.record.clock
        return (clock.error_ns if clock is not None else 0) + abs(self.record.wall_step_ns)

    @property
    def link_times_hold(self) -> bool:
        """Whether times of frames can be compared with each other and with other sources."""
        return abs(self.record.wall_step_ns) <= STEP_NS

    def is_own(self, t_link_ns: Ns) -> bool:
        """Whether what was captured then may belong to the incident: the bench may have been armed by then."""
        return t_link_ns + self.link_error_ns >= self.record.armed_ns()

    @cached_property
    def own_writes(self) -> Sequence[LinkWrite]:
        """Captured writes of the incident's time, oldest first."""
        if self.link is None:
            return ()
        return [one for one in self.link.writes if self.is_own(one.t_sent_ns)]

    @property
    def capture_drops(self) -> int:
        return self.record.capture.kernel_drops if self.record.capture is not None else 0

    @property
    def capture_is_whole(self) -> bool:
        link = self.link
        return link is not None and not (
            self.capture_drops
            or link.gaps
            or link.is_cut_short
            or self.frames_missing
            or unsafe_events(link.blind)
        )

    @property
    def frames_missing(self) -> int:
        """Frames that the watch recorded and the file does not hold."""
        capture = self.record.capture
        recorded = None
        if capture is not None:
            recorded = (
                capture.frames_stored if capture.frames_stored is not None else capture.packets
            )
        if self.link is None or recorded is None:
            return 0
        return max(0, recorded - self.link.frames)

    # --- the trigger's own ------------------------------------------------------------------------------------
    @cached_property
    def own_write(self) -> OwnWrite | None:
        """What the trigger says of the write that it is about; None: nothing."""
        trigger = self.trigger
        if trigger is None:
            return None
        if trigger.source == "link":
            named = trigger.sector is not None and trigger.sector >= 0
            sector = self.of_host(trigger.sector or 0) if named else None
            found = OwnWrite(sector, None, trigger.block_id, trigger.offset_bytes)
            return found if any(found) else None
        if trigger.side not in SIDES or trigger.offset_bytes is None:
            return None
        line = line_at(self.sides[trigger.side].console, trigger.offset_bytes)
        side = self.sides[trigger.side]
        place = place_in(line, side.console_texts)
        if place is None:
            return None
        write = side.named_write(place)
        if write is not None:
            return OwnWrite(write.sector, write.size_bytes, write.block_id, write.packet_no)
        sector = self.of_host(place.sector)
        return OwnWrite(sector, place.length_bytes, "", None) if place.sector >= 0 else None

    def of_host(self, sector: int) -> int:
        """A sector of the link or of the leg of a mirror, as the host counts it."""
        here = sector - (self.link.addresses.distance_sectors if self.link is not None else 0)
        return here if here >= 0 else sector

    # --- following one write -----------------------------------------------------------------------------------
    def writes_to(self, sector: int, size_bytes: int | None = None) -> list[LinkWrite]:
        """Captured writes that begin at (or, without a size, cover) ``sector``, oldest first."""
        if size_bytes is None:
            return [one for one in self.own_writes if one.covers(sector)]
        return [
            one for one in self.own_writes if one.sector == sector and one.size_bytes == size_bytes
        ]

    def primary_number(self, write: LinkWrite) -> int | None:
        """The primary's number of the captured write."""
        known = self.primary.write_numbers.get(write.row.write_id)
        if known is not None:
            return known
        sent = [
            one
            for one in self.primary.named("REPL_SEND")
            if one["sector"] == write.sector and one["bytes"] == write.size_bytes
        ]
        # Both lists are in order, and the log may lack its oldest records: count from the newest.
        captured = self.writes_to(write.sector, write.size_bytes)
        later = len(captured) - 1 - captured.index(write) if write in captured else 0
        return sent[-1 - later]["write_no"] if len(sent) == len(captured) and sent else None

    def secondary_number(self, write: LinkWrite) -> int | None:
        """The secondary's number of the captured write; None: the protocol does not tell."""
        if self.link is None:
            return None
        return self.link.protocol.number_of(write.row.write_id, "secondary")

    def promised(self, write_id: int, sector: int, sectors: int) -> bytes | None:
        """What the host's write put into these sectors; None when the journal has no such write
        there."""
        written = self.journal.writes.get(write_id) if self.journal is not None else None
        if self.journal is None or written is None or sectors <= 0:
            return None
        if not (written.lba <= sector and sector + sectors <= written.lba + written.sectors):
            return None
        return self.journal.content(written, sector, sectors)


def _digests(write: LinkWrite) -> tuple[int, int] | None:
    """As numbers, as a kernel prints them; None: they were not checked."""
    row = write.row
    if not row.digest_computed:
        return None
    return int.from_bytes(row.digest_wire, "little"), int.from_bytes(row.digest_computed, "little")


# --- gathering ----------------------------------------------------------------------------------------------
def without_tell_tales(found: RootCauseSet | None) -> RootCauseSet | None:
    """The set as a controller of flesh and blood would have stored it."""
    if found is None:
        return None
    return RootCauseSet(
        header=found.header,
        state={key: value for key, value in found.state.items() if key != "faults"},
        events=[one for one in found.events if one["name"] not in TELL_TALES],
        tells=found.tells,
    )


def link_ends(record: IncidentRecord) -> LinkEnds:
    """Which connections of the capture are the replication link, as far as the incident says."""
    link = record.link
    ports = link.ports if link is not None else ()
    name, problem = (link.protocol if link is not None else "") or byname.USUAL, ""
    try:
        usual_ports = byname.find(name)(LinkOptions()).ports
    except HarnessError as error:  # recorded where a package was installed that is not here
        name, problem = byname.NONE, f"the link is not understood here: {error}"
        usual_ports = ()
    return LinkEnds(
        protocol=name,
        problem=problem,
        primary_address=link.primary_address if link is not None else "",
        secondary_address=link.secondary_address if link is not None else "",
        ports=frozenset(ports[:MAX_PORTS] or usual_ports),
        integrity_alg=link.integrity_alg if link is not None else "",
    )


def suspects(sides: Iterable[SideEvidence]) -> Callable[[LinkWrite], bool]:
    """Which captured writes keep their data, beside those that are wrong in themselves: what
    somebody complained of."""
    sectors = set[int]()
    for side in sides:
        sectors |= {one["sector"] for one in side.named("REPL_DIGEST_FAILED")}
        sectors |= {one.sector for one in printed_digests(side)}

    def is_suspect(write: LinkWrite) -> bool:
        return write.sector in sectors

    return is_suspect


def gather(
    record: IncidentRecord,
    *,
    sets: Mapping[Side, RootCauseSet | None],
    set_problems: Mapping[Side, str] | None = None,
    healthy: Mapping[Side, StateRecord | None] | None = None,
    consoles: Mapping[Side, tuple[bytes, Sequence[tuple[Ns, int]]]] | None = None,
    journal: bytes | None = None,
    frames: Iterable[Run] | None = None,
    frames_offset_ns: Ns = 0,
    frames_problem: Callable[[], str] = str,
) -> Evidence:
    """Put the parts of an incident together. ``frames``: the capture, its clock ahead of CLOCK_MONOTONIC by
    ``frames_offset_ns``; ``frames_problem`` tells, once they have been read, why they ended early."""
    sides: dict[Side, SideEvidence] = {}
    ends = link_ends(record)
    texts = byname.console_texts(ends.protocol)
    for side in SIDES:
        found = without_tell_tales(sets.get(side))
        console, times = (consoles or {}).get(side, (b"", ()))
        clock = device_clock(side, record, console, times)
        sides[side] = SideEvidence(
            side=side,
            set=found,
            set_problem=(set_problems or {}).get(side, ""),
            healthy=(healthy or {}).get(side),
            console=console,
            console_times=times,
            console_texts=texts,
            clock=clock,
            armed_ns=record.armed_ns(side),
            trigger_ns=record.trigger.t_match_ns if record.trigger is not None else None,
            armed_uptime_ns=armed_uptime_ns(side, record, found, clock),
        )
    read, journal_problem = _journal(journal)
    workload = record.workload
    if read is None and workload is not None and workload.keeps_journal is False:
        journal_problem = (
            f"the workload {workload.driver} keeps no journal: what each write held is not known"
        )
    link, link_problem = None, ""
    not_understood = ends.not_understood if frames is not None else ""
    if frames is not None and not not_understood:
        link = LinkEvidence(ends, suspects(sides.values()))
        for run in frames:
            link.feed(run, frames_offset_ns)
        link.close(is_whole=not record.is_import)
        link_problem = frames_problem()
        sides = {side: replace(one, link_writes=link.writes) for side, one in sides.items()}
    has_frames = link is not None and link.frames > 0
    return Evidence(
        record=record,
        sides=sides,
        link=link if has_frames else None,
        link_is_recorded=bool(not_understood),
        link_problem=not_understood
        or link_problem
        or ("" if has_frames else "there is no capture of the link"),
        journal=read,
        journal_problem=journal_problem,
    )


def _journal(data: bytes | None) -> tuple[Journal | None, str]:
    if data is None:
        return None, "there is no journal of the host's writes"
    try:
        return Journal.read(data), ""
    except WireError as error:
        return None, f"the host's journal is damaged: {error}"
