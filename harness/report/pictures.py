"""Geometry of the page's pictures: numbers in, coordinates and labels out. The template draws them.

All pictures are WIDTH units wide. Nothing here is markup: every text is escaped by the template.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.linkevidence import LinkWrite
from freezeframe.harness.core.verdict.writepath import LANES, WritePath

WIDTH: Final = 1000
LABEL_WIDTH: Final = 130
BINS: Final = 174
MAX_POINTS: Final = 1500
ROW_HEIGHT: Final = 44
LANE_WIDTH: Final = 62
LANE_LEFT: Final = 36


def duration(ns: float) -> str:
    """A signed length of time in the unit a person would choose."""
    size = abs(ns)
    for unit, unit_ns in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if size >= unit_ns:
            return f"{ns / unit_ns:.3f} {unit}"
    return f"{ns:.0f} ns"


def tick_label(ns: float) -> str:
    """A round length of time: no digits that say nothing."""
    said, unit = duration(ns).split(" ")
    return f"{said.rstrip('0').rstrip('.') if '.' in said else said} {unit}"


def ticks(low: float, high: float, wanted: int = 8) -> list[float]:
    """Round values from ``low`` to ``high``, about as many as wanted."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


# --- the write's way --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WayRow:
    y: int
    x: int
    lane: str
    kind: str
    name: str
    detail: str
    since: str
    """Time since the first step."""
    error: str


@dataclass(frozen=True)
class Way:
    rows: list[WayRow]
    arrows: list[str]
    """Path data of each arrow."""
    lanes: list[tuple[str, int]]
    width: int
    height: int


def way(path: WritePath) -> Way:
    """Lanes side by side, time downwards, one row a step."""
    xs = {lane: LANE_LEFT + LANE_WIDTH * at for at, lane in enumerate(LANES)}
    start_ns = path.steps[0].t_ns if path.steps else 0
    rows = [
        WayRow(
            y=ROW_HEIGHT * at + ROW_HEIGHT // 2,
            x=xs[step.lane],
            lane=step.lane,
            kind=step.kind,
            name=step.name,
            detail=step.detail,
            since="start"
            if at == 0
            else f"{'+' if step.t_ns >= start_ns else ''}{duration(step.t_ns - start_ns)}",
            error=f"± {duration(step.error_ns)}" if step.error_ns else "",
        )
        for at, step in enumerate(path.steps)
    ]
    arrows = []
    for start, end in path.arrows:
        a, b = rows[start], rows[end]
        bend = 14 if a.x == b.x and end - start > 1 else 0
        middle = (a.y + b.y) // 2
        arrows.append(
            f"M{a.x} {a.y + 7} C{a.x + bend * 2} {middle}, {b.x + bend * 2} {middle}, {b.x} {b.y - 8}"
        )
    return Way(
        rows=rows,
        arrows=arrows,
        lanes=list(xs.items()),
        width=LANE_LEFT * 2 + LANE_WIDTH * (len(LANES) - 1),
        height=ROW_HEIGHT * len(rows),
    )


# --- timeline ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Mark:
    x: float
    title: str
    kind: str


@dataclass
class Band:
    """One lane of the timeline: bars by how much happened, or marks of single things."""

    label: str
    y: int
    height: int
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    bands: list[Band]
    axis: list[tuple[float, str]]
    trigger_x: float | None
    height: int


@dataclass(frozen=True)
class Lane:
    """What a band shows: times of many things, or single things with a title and a kind."""

    label: str
    times_ns: Sequence[Ns] = ()
    unit: str = ""
    single: Sequence[tuple[Ns, str, str]] = ()


def timeline(lanes: Iterable[Lane], start_ns: Ns, end_ns: Ns, trigger_ns: Ns | None) -> Timeline:
    """Times before ``start_ns`` and behind ``end_ns`` are left out; zero of the axis is the
    trigger."""
    end_ns = max(end_ns, start_ns + 1)
    zero_ns = start_ns if trigger_ns is None else trigger_ns
    scale = (WIDTH - LABEL_WIDTH - 10) / (end_ns - start_ns)

    def at(t_ns: float) -> float:
        return round(LABEL_WIDTH + (t_ns - start_ns) * scale, 1)

    bands, y = [], 10
    for lane in lanes:
        band = Band(lane.label, y, 40 if lane.times_ns or not lane.single else 26)
        _fill(band, lane, start_ns, end_ns)
        band.marks = [
            Mark(at(t_ns), f"{duration(t_ns - zero_ns)}: {title}", kind)
            for t_ns, title, kind in lane.single
            if start_ns <= t_ns <= end_ns
        ][:400]
        bands.append(band)
        y += band.height + 12
    axis = [
        (
            at(zero_ns + tick),
            tick_label(tick) if tick else "trigger" if trigger_ns is not None else "0",
        )
        for tick in ticks(start_ns - zero_ns, end_ns - zero_ns)
    ]
    inside = trigger_ns is not None and start_ns <= trigger_ns <= end_ns
    return Timeline(
        bands, axis, at(trigger_ns) if inside and trigger_ns is not None else None, y + 24
    )


def _fill(band: Band, lane: Lane, start_ns: Ns, end_ns: Ns) -> None:
    counts = [0] * BINS
    for t_ns in lane.times_ns:
        if start_ns <= t_ns <= end_ns:
            counts[min((t_ns - start_ns) * BINS // (end_ns - start_ns), BINS - 1)] += 1
    highest = max(counts, default=0)
    width = (WIDTH - LABEL_WIDTH - 10) / BINS
    for bin_no, count in enumerate(counts):
        if count:
            height = max(round(band.height * count / highest, 1), 1.5)
            x = round(LABEL_WIDTH + bin_no * width, 1)
            bar = Bar(
                x,
                band.y + band.height - height,
                round(width - 0.6, 1),
                height,
                f"{count} {lane.unit}",
            )
            band.bars.append(bar)


# --- latencies --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Point:
    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Latencies:
    points: list[Point]
    lines: list[tuple[float, str]]
    axis: list[tuple[float, str]]
    writes: int
    unanswered: int
    median: str
    p99: str
    longest: str
    height: int


def latencies(
    writes: Sequence[LinkWrite], failing: LinkWrite | None, zero_ns: Ns
) -> Latencies | None:
    """Time from the copy on the link to its acknowledgement, on a logarithmic axis; None without
    writes."""
    if not writes:
        return None
    answered = sorted(max(one.latency_ns, 1) for one in writes if one.t_ack_ns)
    low, high = (answered[0], answered[-1]) if answered else (1000, 1_000_000)
    floor, ceiling = (
        math.floor(math.log10(low)),
        max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1),
    )
    start_ns = min(one.t_sent_ns for one in writes)
    end_ns = max(max(one.t_sent_ns for one in writes), start_ns + 1)
    top, bottom = 34, 230

    def x_of(t_ns: float) -> float:
        return round(70 + (t_ns - start_ns) / (end_ns - start_ns) * (WIDTH - 90), 1)

    def y_of(latency_ns: float) -> float:
        part = (math.log10(max(latency_ns, 1)) - floor) / (ceiling - floor)
        return round(bottom - part * (bottom - top), 1)

    points = []
    for one in _thinned(writes, failing):
        kind = "failing" if one is failing else "ok" if one.t_ack_ns else "none"
        what = f"sector {one.sector}, {duration(one.t_sent_ns - zero_ns)} from the trigger: "
        what += (
            f"{one.ack} after {duration(one.latency_ns)}" if one.t_ack_ns else "no acknowledgement"
        )
        points.append(
            Point(x_of(one.t_sent_ns), y_of(one.latency_ns) if one.t_ack_ns else 16, kind, what)
        )
    return Latencies(
        points=points,
        lines=[(y_of(10**power), tick_label(10**power)) for power in range(floor, ceiling + 1)],
        axis=[
            (x_of(zero_ns + tick), tick_label(tick))
            for tick in ticks(start_ns - zero_ns, end_ns - zero_ns)
        ],
        writes=len(writes),
        unanswered=sum(1 for one in writes if not one.t_ack_ns),
        median=duration(answered[len(answered) // 2]) if answered else "-",
        p99=duration(answered[min(len(answered) * 99 // 100, len(answered) - 1)])
        if answered
        else "-",
        longest=duration(answered[-1]) if answered else "-",
        height=270,
    )


def _thinned(writes: Sequence[LinkWrite], failing: LinkWrite | None) -> list[LinkWrite]:
    """At most about MAX_POINTS writes: of each run of neighbours the slowest, every unanswered one
    first."""
    if len(writes) <= MAX_POINTS:
        return list(writes)
    run = -(-len(writes) // MAX_POINTS)
    kept = []
    for at in range(0, len(writes), run):
        kept.append(
            max(
                writes[at : at + run],
                key=lambda one: one.latency_ns if one.t_ack_ns else MAX_LATENCY_NS,
            )
        )
    if failing is not None and failing not in kept:
        kept.append(failing)
    return kept


MAX_LATENCY_NS: Final = 1 << 62
