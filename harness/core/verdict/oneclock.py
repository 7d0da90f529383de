"""Everything that an incident's sources tell, on the host's clock: one row a happening, each with
its error bound. Pure.

What the host noted itself has no error against its own clock. Frames are timed by the wall clock,
devices by their uptime: their rows are off by up to what ties those clocks to ours, and two rows
whose bounds overlap have no certain order.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.link.linkevidence import NO_ID
from freezeframe.harness.core.text import escape, sector_range
from freezeframe.harness.core.timeline import Row, row
from freezeframe.harness.core.verdict import deviceclock
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence

MAX_ROWS: Final = 20_000
LINE_BYTES: Final = 400
PLAIN: Final = frozenset({"seq", "uptime_ns", "name", "level"})


def rows(
    e: Evidence, from_ns: Ns, to_ns: Ns, *, recorded: Sequence[Row] = (), whole: bool = False
) -> list[Row]:
    """The rows between two times, in order; at most MAX_ROWS of them.

    ``t_ns`` is when it happened, give or take ``error_ns`` (None: not known), ``t_detect_ns`` when
    the harness had it (None: not noted). ``recorded``: the rows of timeline.jsonl, in place of what
    incident.json tells of them. ``whole``: what is recorded or printed comes from the whole run,
    only the many writes and event records from between the times.
    """
    few = [*_recorded(e, recorded)] if recorded else [*_told(e)]
    few += [row for side in e.sides.values() for row in _printed(side)]
    many = [
        *_journalled(e),
        *(row for side in e.sides.values() for row in _logged(e, side)),
        *_captured(e),
    ]
    found = [one for one in [*few, *many] if from_ns <= one["t_ns"] <= to_ns]
    if whole:
        found += [one for one in few if not from_ns <= one["t_ns"] <= to_ns]
    found.sort(key=lambda one: one["t_ns"])
    return found[:MAX_ROWS]


def _recorded(e: Evidence, recorded: Sequence[Row]) -> Iterator[Row]:
    """What the harness noted as it happened: exact on its own clock, and as good as theirs where it
    passes on a time of others."""
    for one in recorded:
        t_ns = one.get("t_ns")
        if not isinstance(t_ns, int) or isinstance(t_ns, bool):
            continue
        error_ns = one.get("error_ns", 0)
        if one.get("event") == "trigger" and one.get("where") == "link":
            error_ns = e.link_error_ns
        base = {"source": "", "side": "", "event": ""}
        yield {**base, **one, "error_ns": error_ns, "t_detect_ns": one.get("t_match_ns", t_ns)}


def _told(e: Evidence) -> Iterator[Row]:
    """The same from incident.json."""
    trigger = e.trigger
    if trigger is not None and trigger.t_match_ns is not None:
        yield _own(trigger.t_match_ns, "reflex", "trigger", trigger.side, trigger.rule)
    for action in e.record.actions:
        yield _own(action.t_frame_ns, "reflex", "control frame", action.side)
        reply = action.reply
        if reply is not None and reply.t_ack_ns:
            yield _own(reply.t_ack_ns, "control", "reply", action.side, reply.status)
    for step in e.record.recovery:
        yield _own(step.t_ns, "recovery", step.step, step.side)


def _own(t_ns: Ns, source: str, event: str, side: str, text: str = "") -> Row:
    """Of the harness's own clock."""
    return row(t_ns, source, event, side, error_ns=0, t_detect_ns=t_ns, text=text)


def _journalled(e: Evidence) -> Iterator[Row]:
    for write in e.journal.writes.values() if e.journal else ():
        text = f"write {write.write_id}: {sector_range(write.lba, write.sectors)}"
        yield _own(write.time_ns, "host", "intent", "", text)


def _logged(e: Evidence, side: SideEvidence) -> Iterator[Row]:
    pulled = [
        one.t_ns for one in e.record.recovery if (one.side, one.step) == (side.side, "set pulled")
    ]
    pulled_ns = pulled[0] if pulled else None
    for record in side.events:
        at = side.at(record)
        if at is not None:
            text = " ".join(
                f"{name}={value}" for name, value in record.items() if name not in PLAIN
            )
            yield row(
                at[0],
                "event log",
                str(record["name"]),
                side.side,
                error_ns=at[1],
                t_detect_ns=pulled_ns,
                text=text,
            )


def _printed(side: SideEvidence) -> Iterator[Row]:
    """Console lines: when they were printed, where the device's clock tells, else when they were
    read."""
    for line in deviceclock.lines(side.console, side.console_times):
        data = side.console[line.offset_bytes : line.offset_bytes + LINE_BYTES].split(b"\n", 1)[0]
        t_ns, error_ns = line.t_read_ns, None
        if side.clock is not None:
            printed_ns, bound_ns = (
                side.clock.host_ns(line.uptime_ns),
                side.clock.error_at(line.uptime_ns),
            )
            # The uptime of another boot leads to another time: then only the reading is known.
            if line.t_read_ns - NS_PER_S < printed_ns <= line.t_read_ns + bound_ns:
                t_ns, error_ns = printed_ns, bound_ns
        text = escape(data.rstrip(b"\r"))
        yield row(
            t_ns, "console", "line", side.side, error_ns=error_ns, t_detect_ns=line.t_read_ns, text=text
        )  # fmt: skip


def _captured(e: Evidence) -> Iterator[Row]:
    error_ns = e.link_error_ns
    for write in e.link.writes if e.link else ():
        which = (
            f"write {write.write_id}" if write.write_id != NO_ID else f"block_id {write.block_id}"
        )
        text = f"{which}: {sector_range(write.sector, write.sectors)}"
        wrong = ", digest wrong" if write.digest_is_right is False else ""
        yield row(
            write.t_sent_ns, "link", "data", "primary", error_ns=error_ns, t_detect_ns=None, text=text + wrong,
            packet_no=write.packet_no,
        )  # fmt: skip
        if write.is_acked:
            yield row(
                write.t_ack_ns, "link", write.ack, "secondary", error_ns=error_ns, t_detect_ns=None, text=text,
                packet_no=write.ack_packet_no,
            )  # fmt: skip
