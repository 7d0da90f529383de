"""An incident as a trace for ui.perfetto.dev: a group of tracks for each place, arrows along the
failing write's way.

Written by the public field numbers of Perfetto's .proto files (protos/perfetto/trace), since its
Python package is under a licence that does not go with GPL-2.0; the tests decode the result with
that package's own definitions.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.comparisonrecord import MAX_TIME_NS
from freezeframe.harness.core.verdict.writepath import LANES, Lane
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.protobuf import fixed64, integer, message, text

# Trace, TracePacket
_PACKET, _CLOCK_SNAPSHOT, _TIMESTAMP, _SEQUENCE_ID, _TRACK_EVENT, _TRACK_DESCRIPTOR = (
    1,
    6,
    8,
    10,
    11,
    60,
)
# TrackDescriptor, ProcessDescriptor, CounterDescriptor
_UUID, _NAME, _PROCESS, _PARENT, _COUNTER, _CHILD_ORDERING, _RANK = 1, 2, 3, 5, 8, 11, 12
_PID, _PROCESS_NAME, _UNIT_NAME, _EXPLICIT = 1, 6, 6, 3
# TrackEvent, DebugAnnotation
_ANNOTATION, _TYPE, _TRACK, _EVENT_NAME, _COUNTER_VALUE, _FLOWS, _ENDING_FLOWS = (
    4,
    9,
    11,
    23,
    30,
    47,
    48,
)
_ANNOTATION_TEXT, _ANNOTATION_NAME = 6, 10
_BEGIN, _END, _INSTANT, _COUNT = 1, 2, 3, 4
# ClockSnapshot, its clocks
_CLOCKS, _PRIMARY_CLOCK, _CLOCK_ID, _CLOCK_TIME = 1, 2, 1, 2
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6

STEP_NS: Final = 20_000
"""How long a step of the way is drawn: what it took is not known, and a person must be able to hit
it."""
MAX_SLICES: Final = 100_000
"""Of one kind in a trace."""
_GROUPS: Final[dict[Lane, str]] = {
    "host": "1 host",
    "primary": "2 primary",
    "link": "3 replication link",
    "secondary": "4 secondary",
    "harness": "5 harness",
}
WAY: Final = "the write's way"


@dataclass(frozen=True, slots=True)
class _Slice:
    t_ns: Ns
    until_ns: Ns
    name: str
    about: tuple[tuple[str, str], ...] = ()
    flows: tuple[int, ...] = ()
    ending: tuple[int, ...] = ()


class _Trace:
    def __init__(self, dossier: Dossier) -> None:
        self._out: list[bytes] = []
        self._uuids = 0
        self._wall_ns = dossier.wall_offset_ns
        self.groups = {lane: self._group(lane) for lane in LANES}

    def clock(self, t_ns: Ns) -> None:
        """Tie the trace's clock, CLOCK_MONOTONIC of the run, to wall time."""
        clocks = [(_BOOTTIME, t_ns), (_MONOTONIC, t_ns), (_REALTIME, t_ns + self._wall_ns)]
        readings = [
            message(
                _CLOCKS, integer(_CLOCK_ID, one), integer(_CLOCK_TIME, min(max(at, 0), MAX_TIME_NS))
            )
            for one, at in clocks
        ]
        self._packet(message(_CLOCK_SNAPSHOT, *readings, integer(_PRIMARY_CLOCK, _BOOTTIME)))

    def _group(self, lane: Lane) -> int:
        uuid = self._uuid()
        process = message(
            _PROCESS, integer(_PID, LANES.index(lane) + 1), text(_PROCESS_NAME, _GROUPS[lane])
        )
        self._packet(
            message(
                _TRACK_DESCRIPTOR,
                integer(_UUID, uuid),
                text(_NAME, _GROUPS[lane]),
                process,
                integer(_CHILD_ORDERING, _EXPLICIT),
            )
        )
        return uuid

    def track(self, lane: Lane, name: str, rank: int, *, unit: str = "") -> int:
        uuid = self._uuid()
        parts = [
            integer(_UUID, uuid),
            text(_NAME, name),
            integer(_PARENT, self.groups[lane]),
            integer(_RANK, rank),
        ]
        if unit:
            parts.append(message(_COUNTER, text(_UNIT_NAME, unit)))
        self._packet(message(_TRACK_DESCRIPTOR, *parts))
        return uuid

    def slices(self, lane: Lane, name: str, rank: int, made: Sequence[_Slice]) -> None:
        """Slices on one track; those that overlap go to further tracks of that name, which the
        viewer shows as one."""
        free: list[tuple[Ns, int]] = []
        for one in sorted(made[:MAX_SLICES], key=lambda one: one.t_ns):
            if free and free[0][0] <= one.t_ns:
                _, track = heapq.heappop(free)
            else:
                track = self.track(lane, name, rank)
            heapq.heappush(free, (max(one.until_ns, one.t_ns), track))
            flows = [fixed64(_FLOWS, flow) for flow in one.flows]
            flows += [fixed64(_ENDING_FLOWS, flow) for flow in one.ending]
            self.event(track, _BEGIN, one.t_ns, one.name, one.about, *flows)
            self.event(track, _END, max(one.until_ns, one.t_ns))

    def instants(self, lane: Lane, name: str, rank: int, made: Sequence[_Slice]) -> None:
        if made:
            track = self.track(lane, name, rank)
            for one in made[:MAX_SLICES]:
                self.event(track, _INSTANT, one.t_ns, one.name, one.about)

    def count(self, track: int, t_ns: Ns, value: int) -> None:
        self.event(track, _COUNT, t_ns, "", (), integer(_COUNTER_VALUE, value))

    def event(
        self,
        track: int,
        kind: int,
        t_ns: Ns,
        name: str = "",
        about: Sequence[tuple[str, str]] = (),
        *more: bytes,
    ) -> None:
        parts = [integer(_TYPE, kind), integer(_TRACK, track)]
        if name:
            parts.append(text(_EVENT_NAME, name))
        for key, value in about:
            parts.append(
                message(_ANNOTATION, text(_ANNOTATION_NAME, key), text(_ANNOTATION_TEXT, value))
            )
        self._packet(
            integer(_TIMESTAMP, min(max(t_ns, 0), MAX_TIME_NS)),
            integer(_SEQUENCE_ID, 1),
            message(_TRACK_EVENT, *parts, *more),
        )

    def whole(self) -> bytes:
        return b"".join(self._out)

    def _uuid(self) -> int:
        self._uuids += 1
        return self._uuids

    def _packet(self, *parts: bytes) -> None:
        self._out.append(message(_PACKET, *parts))


def trace(dossier: Dossier) -> bytes:
    """The whole trace file."""
    out = _Trace(dossier)
    clock = dossier.record.clock
    out.clock(clock.monotonic_ns if clock is not None else 0)
    _way(out, dossier)
    _host(out, dossier)
    _link(out, dossier)
    for side in SIDES:
        _controller(out, dossier, side)
    _harness(out, dossier)
    return out.whole()


def _way(out: _Trace, dossier: Dossier) -> None:
    """A slice a step; each arrow is a flow that begins in one slice and ends in another."""
    path = dossier.path
    made: dict[Lane, list[_Slice]] = {lane: [] for lane in LANES}
    for at, step in enumerate(path.steps):
        about = [("what", step.detail)] if step.detail else []
        if step.error_ns:
            about.append(("clock error", f"{step.error_ns / 1e6:.3f} ms"))
        if step.packet_no:
            about.append(("frame", str(step.packet_no)))
        made[step.lane].append(
            _Slice(
                step.t_ns,
                step.t_ns + STEP_NS,
                step.name,
                tuple(about),
                flows=tuple(flow for flow, (start, _) in enumerate(path.arrows, 1) if start == at),
                ending=tuple(flow for flow, (_, end) in enumerate(path.arrows, 1) if end == at),
            )
        )
    for lane, slices in made.items():
        out.slices(lane, WAY, 0, slices)


def _host(out: _Trace, dossier: Dossier) -> None:
    made = []
    acked_ns = dossier.host_acks_ns
    for write in dossier.host_writes[:MAX_SLICES]:
        about = (("sector", str(write.lba)), ("sectors", str(write.sectors)))
        until_ns = acked_ns.get(write.write_id, 0)
        name = f"write {write.write_id}" + ("" if until_ns else ", never acknowledged")
        made.append(_Slice(write.time_ns, until_ns or write.time_ns, name, about))
    out.slices("host", "host writes", 1, made)


def _link(out: _Trace, dossier: Dossier) -> None:
    writes = dossier.link.writes[:MAX_SLICES]
    made = []
    changes: list[tuple[Ns, int]] = []
    for write in writes:
        about = (
            ("block_id", write.block_id),
            ("frames", f"{write.first_packet_no} to {write.packet_no}"),
        )
        started_ns = write.t_first_ns or write.t_sent_ns
        ended_ns = write.t_ack_ns or write.t_sent_ns
        name = f"sector {write.sector}" + (
            f", {write.ack}" if write.ack else ", no acknowledgement"
        )
        made.append(_Slice(started_ns, ended_ns, name, about))
        changes.append((write.t_sent_ns, 1))
        if write.t_ack_ns:
            changes.append((write.t_ack_ns, -1))
    out.slices("link", "replicated writes", 1, made)
    if changes:
        track, waiting = out.track("link", "unacknowledged", 2, unit="writes"), 0
        for t_ns, change in sorted(changes):
            waiting += change
            out.count(track, t_ns, waiting)


def _controller(out: _Trace, dossier: Dossier, side: Side) -> None:
    lines = [
        _Slice(
            line.t_ns,
            line.t_ns,
            escape(line.data[:200]),
            (("rules", ", ".join(line.rules)),) if line.rules else (),
        )
        for line in dossier.consoles[side]
        if line.t_ns
    ]
    out.instants(side, "console", 1, lines)
    out.instants(side, "event log", 2, list(_events(dossier, side)))


def _events(dossier: Dossier, side: Side) -> Iterator[_Slice]:
    clock = dossier.clocks.get(side)
    if clock is None:
        return
    for event in dossier.boot_events(side)[:MAX_SLICES]:
        about = tuple(
            (name, str(value))
            for name, value in event.items()
            if name not in ("name", "uptime_ns", "level")
        )
        t_ns = event["uptime_ns"] + clock.offset_ns
        yield _Slice(t_ns, t_ns, event["name"], about)


def _harness(out: _Trace, dossier: Dossier) -> None:
    by_source: dict[str, list[_Slice]] = {}
    for row in dossier.rows[:MAX_SLICES]:
        t_ns: Ns = row["t_ns"]
        about = tuple(
            (escape(str(name)), escape(str(value))[:1000])
            for name, value in row.items()
            if name not in ("t_ns", "event", "source") and value not in ("", [], None)
        )
        name = f"{row.get('event')} {row.get('side') or ''}".rstrip()
        source = escape(str(row.get("source")))[:40]
        if source in by_source or len(by_source) < 32:
            by_source.setdefault(source, []).append(_Slice(t_ns, t_ns, escape(name)[:200], about))
    for rank, (source, made) in enumerate(sorted(by_source.items()), 1):
        out.instants("harness", source, rank, made)
