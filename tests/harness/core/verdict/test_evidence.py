"""What does not belong to an incident never speaks for it: what a log, a console or a capture holds from before the bench
was armed.

Each case takes the whole evidence of a fault (grade A) and puts a foreign complaint before it; the verdict must not change
by a byte. That a complaint in the incident's own time is heard is shown beside it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from verdictrun import Outcome, virtual_run
from virtualbench import evidence

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.blocks import blockstamp
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.link.linkevidence import MAX_VOTES, HostAddresses
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.complaints import line_at, printed_digests
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence, suspects
from freezeframe.harness.core.verdict.verdict import findings, judge

SECTOR, SIZE = 3072, 4096
"""In the upper half of the volume, where the runs write nothing after the bench was armed."""
KINDS = ("bit_flip_receiver", "late_ack", "wrong_barrier_count", "lost_write")
EARLIER_NS = 541 * NS_PER_S
"""On real nodes a verdict once named a sector whose failure lay this long before the trigger."""


@cache
def incident(kind: str) -> Outcome:
    return virtual_run(kind, 4, load_bench("sim").rules())


def shifted(outcome: Outcome, by_ns: int) -> dict[str, Any]:
    """The parts of an incident of a pair that had been up for so long already: uptimes and times later by it."""
    parts = dict(outcome.parts)
    sets = {}
    for side, one in parts["sets"].items():
        events = [
            event if event["name"] == "BOOT" else {**event, "uptime_ns": event["uptime_ns"] + by_ns}
            for event in one.events
        ]
        sets[side] = replace(one, events=events)
    parts["sets"] = sets
    parts["consoles"] = {
        side: (console, [(t_ns + by_ns, at) for t_ns, at in reads])
        for side, (console, reads) in parts["consoles"].items()
    }
    parts["frames"] = [(t_ns + by_ns, frame) for t_ns, frame in parts["frames"]]
    return parts | {"record": _later(parts["record"], by_ns), "journal": None}


def _later(value: Any, by_ns: int) -> Any:
    """incident.json with every time of the run, and every uptime, later."""
    if isinstance(value, dict):
        return {
            key: one + by_ns
            if key.startswith(("t_", "uptime_ns")) and isinstance(one, int)
            else one
            if key in ("clock", "clock_end")
            else _later(one, by_ns)
            for key, one in value.items()
        }
    return [_later(one, by_ns) for one in value] if isinstance(value, list) else value


def foreign_event(parts: dict[str, Any], by_ns: int) -> dict[str, Any]:
    """In the secondary's event log: of the same boot, long before the bench was armed."""
    own = parts["sets"]["secondary"]
    record = {
        "seq": 1, "uptime_ns": by_ns // 2, "name": "REPL_DIGEST_FAILED", "level": "ERROR", "sector": SECTOR,
        "bytes": SIZE, "digest": 1, "computed": 2,
    }  # fmt: skip
    events = [own.events[0], record, *own.events[1:]]
    more = replace(own, events=events)
    return parts | {"sets": parts["sets"] | {"secondary": more}}


def foreign_scrub(parts: dict[str, Any], by_ns: int) -> dict[str, Any]:
    own = parts["sets"]["secondary"]
    record = {
        "seq": 1, "uptime_ns": by_ns // 2, "name": "SCRUB_MISMATCH", "level": "ERROR", "sector": SECTOR, "bytes": SIZE,
        "expected_crc32": 1, "found_crc32": 2,
    }  # fmt: skip
    events = [own.events[0], record, *own.events[1:]]
    more = replace(own, events=events)
    return parts | {"sets": parts["sets"] | {"secondary": more}}


def _printed(parts: dict[str, Any], line: bytes, t_ns: int) -> dict[str, Any]:
    """The parts with a line at the begin of the secondary's console that was read at ``t_ns``; its event log does not
    hold digest failures, so that the console is asked."""
    console, reads = parts["consoles"]["secondary"]
    reads = [(t_ns, 0), *((at_ns, at + len(line)) for at_ns, at in reads)]
    own = parts["sets"]["secondary"]
    rest = [one for one in own.events if one["name"] != "REPL_DIGEST_FAILED"]
    names = frozenset(one["name"] for one in rest)
    plain = RootCauseSet(header=own.header, state=own.state, events=rest, tells=names)
    record = parts["record"]
    trigger = record["trigger"]
    if trigger is not None and trigger["source"] == "console" and trigger["side"] == "secondary":
        trigger = trigger | {"offset_bytes": trigger["offset_bytes"] + len(line)}
    return parts | {
        "record": record | {"trigger": trigger},
        "consoles": parts["consoles"] | {"secondary": (line + console, reads)},
        "sets": parts["sets"] | {"secondary": plain},
    }


def complaint(uptime_ns: int) -> bytes:
    seconds, rest = divmod(uptime_ns, NS_PER_S)
    return f"[{seconds:5}.{rest // 1000:06}] block drbd0: Digest integrity check FAILED: {SECTOR}s +{SIZE}\r\n".encode()


def foreign_line(parts: dict[str, Any], by_ns: int) -> dict[str, Any]:
    """On the console, read before the bench was armed."""
    return _printed(parts, complaint(by_ns // 2), by_ns // 2)


def listed_line(parts: dict[str, Any], by_ns: int) -> dict[str, Any]:
    """Printed before the bench was armed and read after it, as when somebody lists the log on the console."""
    first_ns = parts["consoles"]["secondary"][1][0][0]
    return _printed(parts, complaint(by_ns // 2), max(first_ns, armed_ns(parts) + 1))


def armed_ns(parts: dict[str, Any]) -> int:
    told: int = parts["record"]["controllers"]["secondary"]["t_answered_ns"]
    return told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreign", [foreign_event, foreign_scrub])
def test_an_earlier_record_of_the_same_boot_changes_nothing(
    kind: str, foreign: Callable[[dict[str, Any], int], dict[str, Any]]
) -> None:
    parts = shifted(incident(kind), EARLIER_NS)
    verdict = judge(evidence(parts))
    assert judge(evidence(foreign(parts, EARLIER_NS))) == verdict
    assert verdict.lba != SECTOR and all(one.lba != SECTOR for one in verdict.also)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreign", [foreign_line, listed_line])
def test_an_earlier_line_changes_nothing(
    kind: str, foreign: Callable[[dict[str, Any], int], dict[str, Any]]
) -> None:
    parts = shifted(incident(kind), EARLIER_NS)
    e = evidence(foreign(parts, EARLIER_NS))
    assert SECTOR not in [one.sector for one in printed_digests(e.secondary)]
    assert not any(one.lba == SECTOR for one in findings(e))
    assert judge(e).write_lba == judge(evidence(parts)).write_lba


def test_the_same_record_and_line_of_the_incidents_own_time_are_heard() -> None:
    parts = shifted(incident("late_ack"), EARLIER_NS)
    for foreign in (foreign_event, foreign_scrub):
        later = foreign(parts, EARLIER_NS)
        own = later["sets"]["secondary"]
        events = [
            own.events[0],
            *own.events[2:],
            {**own.events[1], "uptime_ns": own.events[-1]["uptime_ns"]},
        ]
        more = replace(own, events=events)
        e = evidence(later | {"sets": later["sets"] | {"secondary": more}})
        assert any(one.lba == SECTOR for one in findings(e)), foreign.__name__
    now = armed_ns(parts) + NS_PER_S
    uptime_ns = parts["record"]["controllers"]["secondary"]["uptime_ns"] + NS_PER_S
    e = evidence(_printed(parts, complaint(uptime_ns), now))
    assert [one.sector for one in printed_digests(e.secondary)] == [SECTOR]
    assert any(one.lba == SECTOR for one in findings(e))


def test_what_was_captured_before_the_arming_is_no_finding() -> None:
    """The same capture, of a bench that was armed only after it."""
    e = evidence(incident("neg_ack").parts)
    assert any(one.kind == "neg-ack" for one in findings(e)) and e.own_writes
    late = {
        side: replace_asked(one, e.link.t_last_ns + NS_PER_S if e.link else 0)
        for side, one in incident("neg_ack").parts["record"]["controllers"].items()
    }
    record = incident("neg_ack").parts["record"] | {"controllers": late}
    after = evidence(incident("neg_ack").parts | {"record": record})
    assert not any(one.kind == "neg-ack" and one.write is not None for one in findings(after))
    assert not after.own_writes


def replace_asked(controller: dict[str, Any], t_ns: int) -> dict[str, Any]:
    return controller | {"t_asked_ns": t_ns, "t_answered_ns": t_ns + 1000}


def test_the_triggers_own_write_comes_before_an_earlier_one() -> None:
    """Two writes went wrong while the bench was armed; the trigger names the later one."""
    outcome = incident("late_ack")
    e = evidence(outcome.parts)
    first = judge(e)
    assert e.own_write is not None and first.block_id == e.own_write.block_id
    own = e.secondary.set
    assert own is not None and first.t_cause_ns is not None
    early = {
        "seq": own.events[0]["seq"], "uptime_ns": e.secondary.armed_uptime_ns + 1, "name": "REPL_DIGEST_FAILED",
        "level": "ERROR", "sector": SECTOR, "bytes": SIZE, "digest": 1, "computed": 2,
    }  # fmt: skip
    events = [own.events[0], early, *own.events[1:]]
    events.sort(key=lambda one: (one["name"] != "BOOT", one["uptime_ns"]))
    more: Evidence = replace(
        e,
        sides={
            **e.sides,
            "secondary": replace(e.secondary, set=replace(own, events=events)),
        },
    )
    verdict = judge(more)
    assert (verdict.block_id, verdict.kind) == (first.block_id, first.kind)
    assert SECTOR in [one.lba for one in verdict.also]


def test_the_line_of_a_match_is_cut_out_whole() -> None:
    console = b"one\r\n[ 1.5] two\r\nthree"
    assert line_at(console, console.index(b"two") + 3).strip() == b"[ 1.5] two"
    assert line_at(console, len(console)) == b"three"
    assert line_at(console, 3).strip() == b"one"
    assert line_at(b"", 5) == b"" and line_at(console, 10**15) == b""


def test_a_write_of_an_earlier_boot_with_the_same_number_does_not_answer_for_it() -> None:
    """Seen: an answer that was lost was called held up on the link, as the log, which outlives a warmstart,
    held the answer of another write of that number."""
    parts = incident("lost_ack").parts
    verdict = judge(evidence(parts))
    assert (verdict.kind, verdict.conclusive) == ("lost", True)
    own = parts["sets"]["secondary"]
    first = own.events[0]["uptime_ns"]
    older = [
        {
            "seq": 0,
            "uptime_ns": first,
            "level": "INFO",
            "name": name,
            "write_no": verdict.secondary_no,
        }
        for name in ("REPL_RECEIVE", "REPL_ACK_SENT")
    ]
    more = replace(own, events=[own.events[0], *older, *own.events[1:]])
    longer = judge(evidence(parts | {"sets": parts["sets"] | {"secondary": more}}))
    assert longer == verdict


@pytest.mark.parametrize(
    ("name", "uptime_ns", "is_whole"),
    [
        ("BOOT", 0, True),
        ("BOOT", 9, True),
        ("HOST_WRITE", 6, True),
        ("HOST_WRITE", 7, False),
        ("HOST_WRITE", 9, False),
        ("", 0, False),
    ],
)
def test_a_log_is_whole_that_reaches_back_to_the_boot_or_the_arming(
    name: str, uptime_ns: int, is_whole: bool
) -> None:
    first = [{"seq": 3, "uptime_ns": uptime_ns, "name": name}] if name else []
    log = RootCauseSet(header={}, state={}, events=first)
    assert SideEvidence(side="primary", set=log, armed_uptime_ns=7).log_is_whole is is_whole


def test_the_writes_that_a_side_complained_of_keep_their_data() -> None:
    e = evidence(incident("bit_flip_receiver").parts)
    is_suspect = suspects(e.sides.values())
    complained = {one["sector"] for one in e.secondary.named("REPL_DIGEST_FAILED")}
    assert len(complained) == 1
    assert {one.sector for one in e.own_writes if is_suspect(one)} == complained
    assert not any(map(suspects(()), e.own_writes))


def test_how_far_a_mirrors_addresses_lie_behind_is_told_by_the_stamps_of_its_first_writes() -> None:
    behind, same = HostAddresses(same=False), HostAddresses(same=True)
    for write_id in range(2 * MAX_VOTES):
        data = blockstamp.stamp(1, 7, write_id, 8 * write_id, 1, 0)
        for one in (behind, same):
            one.learn(8 * write_id + (2048 if write_id < MAX_VOTES else 4096), data)
    assert (behind.votes.total(), behind.distance_sectors) == (MAX_VOTES, 2048)
    assert (same.votes.total(), same.distance_sectors) == (0, 0)


def test_a_captured_write_has_the_times_of_its_first_and_its_last_frame() -> None:
    parts = incident("bit_flip_receiver").parts
    e, times_ns = evidence(parts), [t_ns for t_ns, _ in parts["frames"]]
    offset_ns = times_ns[e.own_writes[0].packet_no - 1] - e.own_writes[0].t_sent_ns
    for one in e.own_writes:
        assert one.t_first_ns == times_ns[one.row.first_packet_no - 1] - offset_ns
        assert one.t_sent_ns == times_ns[one.packet_no - 1] - offset_ns
    assert any(one.t_first_ns < one.t_sent_ns for one in e.own_writes)
