"""What there is to judge an incident by: gathered from its parts, with what is missing said. Pure.

Only what a real bench has goes in. A simulated controller also tells which faults were armed and
when they fired: that is taken away at the door, and neither the scenario's name nor the run's steps
of arming are ever looked at.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from freezeframe.harness.core.blocks.blockstamp import Journal, stamped_crc
from freezeframe.harness.core.events import NS_PER_MS, SIDES, Ns, Side
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.linkevidence import NO_ID, LinkEvidence, LinkWrite
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.rootcause import RootCauseSet, this_boot
from freezeframe.harness.core.verdict import deviceclock
from freezeframe.harness.core.verdict.deviceclock import Bound, DeviceClock
from freezeframe.harness.errors import HarnessError, WireError
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import SECTOR_BYTES

TELL_TALES: Final = frozenset({"FAULT_FIRED"})
"""Event records that exist only on a simulated controller."""
MAX_PORTS: Final = 64
STEP_NS: Final = 20 * NS_PER_MS
"""Wall and monotonic clock drift apart by less than this in a run, unless somebody sets the wall
clock."""

EventRecord = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SideEvidence:
    """What one controller left."""

    side: Side
    set: RootCauseSet | None = None
    """Without the simulation's tell-tales; None: it did not arrive whole."""
    set_problem: str = ""
    healthy: Mapping[str, Any] | None = None
    """Its state record when the bench was armed."""
    console: bytes = b""
    console_times: Sequence[tuple[Ns, int]] = ()
    clock: DeviceClock | None = None
    """Of the boot that the set tells of."""

    @cached_property
    def events(self) -> Sequence[EventRecord]:
        """The event log of the boot that ended in the incident, oldest first."""
        return () if self.set is None else this_boot(self.set.events)

    @cached_property
    def log_is_whole(self) -> bool:
        """Nothing of that boot has been overwritten."""
        return bool(self.events) and self.events[0]["name"] == "BOOT"

    def tells(self, *names: str) -> bool:
        """Whether the set's log would hold such records if anything of the kind had happened in its
        time."""
        return self.set is not None and (self.set.tells is None or self.set.tells.issuperset(names))

    def named(self, *names: str) -> list[EventRecord]:
        return [one for one in self.events if one["name"] in names]

    @cached_property
    def _by_write(self) -> Mapping[tuple[str, int], EventRecord]:
        return {(one["name"], one["write_no"]): one for one in self.events if "write_no" in one}

    def of_write(self, name: str, write_no: int | None) -> EventRecord | None:
        """The newest record of that name about that write."""
        return None if write_no is None else self._by_write.get((name, write_no))

    @cached_property
    def write_numbers(self) -> Mapping[bytes, int]:
        """block_id -> the controller's own number of the write, as far as the state record
        tells."""
        if self.set is None:
            return {}
        rows = self.set.state.get("last_writes")
        return {
            row[4]: row[0]
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, list)
            and len(row) >= 7
            and isinstance(row[4], bytes)
            and isinstance(row[0], int)
        }

    def at(self, record: EventRecord | None) -> tuple[Ns, Ns] | None:
        """(host time, error) of an event record."""
        if record is None or self.clock is None:
            return None
        uptime_ns = record["uptime_ns"]
        return self.clock.host_ns(uptime_ns), self.clock.error_at(uptime_ns)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything about one incident."""

    sides: Mapping[Side, SideEvidence]
    link: LinkEvidence | None
    """None: there is no capture."""
    link_problem: str = ""
    """Why there is no capture, why it ends early, or why nobody understands it."""
    link_is_recorded: bool = False
    """There is a capture, of a protocol that is not understood: ``link`` is None."""
    capture_drops: int = 0
    capture_frames: int | None = None
    """As many the watch recorded; None: it did not tell."""
    journal: Journal | None = None
    journal_problem: str = ""
    trigger: Mapping[str, Any] | None = None
    """incident.json's, as are those below."""
    actions: Sequence[Mapping[str, Any]] = ()
    recovery: Sequence[Mapping[str, Any]] = ()
    comparison: Mapping[str, Any] | None = None
    wrong_reads: Sequence[tuple[int, int, str]] = ()
    """(byte offset, length, what it said) of what the workload read back and found to be not what
    it wrote."""
    wall_step_ns: int = 0
    """How far the wall clock, by which frames are timed, moved against the monotonic one during the
    run."""
    clock_error_ns: Ns = 0

    @property
    def primary(self) -> SideEvidence:
        return self.sides["primary"]

    @property
    def secondary(self) -> SideEvidence:
        return self.sides["secondary"]

    @property
    def t_detect_ns(self) -> Ns | None:
        return self.trigger["t_match_ns"] if self.trigger else None

    @property
    def is_uneventful(self) -> bool:
        """Nothing triggered, and the data of both sides are what the host was promised."""
        equal = bool((self.comparison or {}).get("data_equal"))
        return self.trigger is None and equal and not self.wrong_reads

    @property
    def link_times_hold(self) -> bool:
        """Whether times of frames can be compared with each other and with other sources."""
        return abs(self.wall_step_ns) <= STEP_NS

    @property
    def capture_is_whole(self) -> bool:
        link = self.link
        return link is not None and not (
            self.capture_drops or link.gaps or link.is_cut_short or self.frames_missing
        )

    @property
    def frames_missing(self) -> int:
        """Frames that the watch recorded and the file does not hold."""
        if self.link is None or self.capture_frames is None:
            return 0
        return max(0, self.capture_frames - self.link.frames)

    # --- following one write -----------------------------------------------------------------------------------
    def writes_to(self, sector: int, size_bytes: int | None = None) -> list[LinkWrite]:
        """Captured writes that begin at (or, without a size, cover) ``sector``, oldest first."""
        if self.link is None:
            return []
        if size_bytes is None:
            return [one for one in self.link.writes if one.covers(sector)]
        return [
            one
            for one in self.link.writes
            if one.sector == sector and one.row.length_bytes == size_bytes
        ]

    def primary_number(self, write: LinkWrite) -> int | None:
        """The primary's number of the captured write."""
        known = self.primary.write_numbers.get(write.row.write_id)
        if known is not None:
            return known
        sent = [
            one
            for one in self.primary.named("REPL_SEND")
            if one["sector"] == write.sector and one["bytes"] == write.row.length_bytes
        ]
        # Both lists are in order, and the log may lack its oldest records: count from the newest.
        captured = self.writes_to(write.sector, write.row.length_bytes)
        behind = len(captured) - 1 - captured.index(write) if write in captured else 0
        return sent[-1 - behind]["write_no"] if len(sent) == len(captured) and sent else None

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


def broken_stamps(write: LinkWrite) -> bool:
    """Stamped data that are not what the writer stamped. Right data pass always, wrong ones in 1 of
    2**32."""
    return write.write_id != NO_ID and write.crc32c != stamped_crc(write.sectors)


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


def device_clock(
    side: Side,
    record: Mapping[str, Any],
    found: RootCauseSet | None,
    console: bytes,
    times: Sequence[tuple[Ns, int]],
) -> DeviceClock | None:
    """The controller's uptime on our clock: from who-are-you, from the answer to the frame, from
    its console."""
    bounds: list[Bound] = []
    told = (record.get("controllers") or {}).get(side) or {}
    if "uptime_ns" in told and "t_asked_ns" in told:
        bounds.append(
            Bound(
                uptime_ns=told["uptime_ns"],
                not_before_ns=told["t_asked_ns"] - told.get("uptime_error_ns", 0),
                not_after_ns=told["t_answered_ns"] + told.get("uptime_error_ns", 0),
            )
        )
    for action in record.get("actions") or ():
        reply = action.get("reply") or {}
        if action.get("side") == side and reply.get("uptime_ns") and reply.get("t_ack_ns"):
            bounds.append(
                Bound(
                    uptime_ns=reply["uptime_ns"], not_before_ns=action["t_frame_ns"], not_after_ns=reply["t_ack_ns"]
                )
            )  # fmt: skip
    stamped = deviceclock.lines(console, times)
    if stamped and bounds:
        # The watch began in the boot that the frames were armed for: its first lines are that
        # boot's.
        bounds += deviceclock.printed(stamped, _armed_boot(stamped, bounds))
    return deviceclock.fit(bounds)


def _armed_boot(stamped: Sequence[deviceclock.Line], bounds: Sequence[Bound]) -> int:
    """Which boot on the console the questions fell into: the last that had begun printing before
    the last answer."""
    last_ns = max(bound.not_after_ns or 0 for bound in bounds)
    before = [line.boot for line in stamped if line.t_read_ns and line.t_read_ns <= last_ns]
    return before[-1] if before else 0


def wall_step_ns(record: Mapping[str, Any]) -> int:
    """By how much wall and monotonic clock moved apart between the incident's begin and its end."""
    begin, end = record.get("clock"), record.get("clock_end")
    if not begin or not end:
        return 0
    return int((end["wall_ns"] - begin["wall_ns"]) - (end["monotonic_ns"] - begin["monotonic_ns"]))


def link_ends(record: Mapping[str, Any]) -> LinkEnds:
    """Which connections of the capture are the replication link, as far as the incident tells in so
    many words."""
    told = record.get("link")
    told = told if isinstance(told, dict) else {}
    texts = {
        name: told[name] if isinstance(told.get(name), str) else ""
        for name in ("primary_address", "secondary_address", "integrity_alg")
    }
    ports, protocol = told.get("ports"), told.get("protocol")
    known = [port for port in ports if type(port) is int] if isinstance(ports, list) else []
    name, problem = protocol if isinstance(protocol, str) else byname.USUAL, ""
    try:
        byname.find(name)
    except HarnessError as error:  # recorded where a package was installed that is not here
        name, problem = byname.NONE, f"the link is not understood here: {error}"
    return LinkEnds(
        protocol=name,
        problem=problem,
        ports=frozenset(known[:MAX_PORTS] or (drbd.PORT,)),
        **texts,
    )


_CONSOLE_DIGEST: Final = re.compile(rb"Digest integrity check FAILED: (\d{1,18})s \+(\d{1,9})")
_CONSOLE_SYNC: Final = re.compile(rb"Out of sync: start=(\d{1,18}), size=(\d{1,9})")


def _console_ranges(console: bytes, pattern: re.Pattern[bytes]) -> list[tuple[int, int, int]]:
    """(sector, number, offset in the log) of each such line."""
    return [(int(m[1]), int(m[2]), m.start()) for m in pattern.finditer(console)]


def told_digests(side: SideEvidence) -> list[tuple[int, int, int]]:
    return _console_ranges(side.console, _CONSOLE_DIGEST)


def told_out_of_sync(side: SideEvidence) -> list[tuple[int, int, int]]:
    return _console_ranges(side.console, _CONSOLE_SYNC)


def suspects(sides: Iterable[SideEvidence]) -> Callable[[LinkWrite], bool]:
    """Which captured writes keep their data, beside those that are wrong in themselves: what
    somebody complained of."""
    sectors = set[int]()
    for side in sides:
        sectors |= {one["sector"] for one in side.named("REPL_DIGEST_FAILED")}
        sectors |= {sector for sector, _, _ in told_digests(side)}

    def is_suspect(write: LinkWrite) -> bool:
        return write.sector in sectors

    return is_suspect


def gather(
    record: Mapping[str, Any],
    *,
    sets: Mapping[Side, RootCauseSet | None],
    set_problems: Mapping[Side, str] | None = None,
    healthy: Mapping[Side, Mapping[str, Any] | None] | None = None,
    consoles: Mapping[Side, tuple[bytes, Sequence[tuple[Ns, int]]]] | None = None,
    journal: bytes | None = None,
    frames: Iterable[Run] | None = None,
    frames_offset_ns: Ns = 0,
    frames_problem: Callable[[], str] = str,
) -> Evidence:
    """Put the parts of an incident together. ``record``: incident.json. ``frames``: the capture,
    its clock ahead of CLOCK_MONOTONIC by ``frames_offset_ns``; ``frames_problem`` tells, once they
    have been read, why they ended early."""
    sides: dict[Side, SideEvidence] = {}
    for side in SIDES:
        found = without_tell_tales(sets.get(side))
        console, times = (consoles or {}).get(side, (b"", ()))
        sides[side] = SideEvidence(
            side=side,
            set=found,
            set_problem=(set_problems or {}).get(side, ""),
            healthy=(healthy or {}).get(side),
            console=console,
            console_times=times,
            clock=device_clock(side, record, found, console, times),
        )
    read, journal_problem = _journal(journal)
    workload = record.get("workload") or {}
    if read is None and workload.get("keeps_journal") is False:
        journal_problem = f"the workload {workload.get('driver')} keeps no journal: what each write held is not known"
    link, link_problem, ends = None, "", link_ends(record)
    not_understood = ends.not_understood if frames is not None else ""
    if frames is not None and not not_understood:
        link = LinkEvidence(ends, suspects(sides.values()))
        for run in frames:
            link.feed(run, frames_offset_ns)
        link.close()
        link_problem = frames_problem()
    capture = record.get("capture") or {}
    return Evidence(
        sides=sides,
        link=link if link is not None and link.frames else None,
        link_is_recorded=bool(not_understood),
        link_problem=not_understood
        or link_problem
        or ("" if link is not None and link.frames else "there is no capture of the link"),
        capture_drops=int(capture.get("kernel_drops") or 0),
        capture_frames=capture.get("frames_stored", capture.get("packets")),
        journal=read,
        journal_problem=journal_problem,
        trigger=record.get("trigger"),
        actions=record.get("actions") or (),
        recovery=record.get("recovery") or (),
        comparison=record.get("comparison"),
        wrong_reads=[(at, size, str(text)) for at, size, text in workload.get("wrong_reads") or ()],
        wall_step_ns=wall_step_ns(record),
        clock_error_ns=int((record.get("clock") or {}).get("error_ns", 0)),
    )


def _journal(data: bytes | None) -> tuple[Journal | None, str]:
    if data is None:
        return None, "there is no journal of the host's writes"
    try:
        return Journal.read(data), ""
    except WireError as error:
        return None, f"the host's journal is damaged: {error}"


assert SECTOR_BYTES == drbd.SECTOR_BYTES
