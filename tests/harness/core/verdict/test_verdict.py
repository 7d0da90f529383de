"""The verdict: right on whole evidence of every kind, never wrong on cut evidence, blind to the
simulation's tell-tales."""

import itertools
import json
import random
import re
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cuts import CUTS
from link_mutations import unsummed
from truths import CLEAN, KINDS, OUTSIDE, lies
from verdictrun import Outcome, virtual_run
from virtualbench import evidence

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.events import NS_PER_MS
from freezeframe.harness.core.link.blindness import BlindKind
from freezeframe.harness.core.link.skim import run_of
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.evidence import gather, without_tell_tales
from freezeframe.harness.core.verdict.findings import Stage
from freezeframe.harness.core.verdict.grade import grade
from freezeframe.harness.core.verdict.oneclock import rows
from freezeframe.harness.core.verdict.record import IncidentRecord, LinkRecord, Verdict
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.incidents.inquest import plain
from freezeframe.harness.incidents.store import MAX_INTEGER

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"
SEED = 1


@cache
def incident(kind: str) -> Outcome:
    """One fault of ``kind`` in virtual time, judged."""
    return virtual_run(kind, SEED, load_bench("sim").rules())


def judged_again(outcome: Outcome, **changed: Any) -> Verdict:
    return judge(evidence({**outcome.parts, **changed}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_each_kind_is_named_with_its_write_and_bit(kind: str) -> None:
    outcome = incident(kind)
    assert (outcome.result, outcome.detail) == ("right", "")
    assert outcome.verdict.evidence_grade == "A", outcome.verdict.evidence_lacks


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_evidence_gives_the_same_verdict_with_and_without_what_only_a_simulation_tells(
    kind: str,
) -> None:
    outcome = incident(kind)
    stripped = {side: without_tell_tales(one) for side, one in outcome.parts["sets"].items()}
    for found in stripped.values():
        assert found is None or "faults" not in found.state
        assert found is None or all(one["name"] != "FAULT_FIRED" for one in found.events)
    told = outcome.parts["record"] | {"scenario": "lost_write", "seed": 99, "recovery": [
        *outcome.parts["record"]["recovery"],
        {"t_ns": 0, "side": "secondary", "step": "faults armed", "detail": "[{'kind': 'lost_write'}]"},
    ]}  # fmt: skip
    again = judged_again(outcome, sets=stripped, record=told)
    assert plain(again) == plain(outcome.verdict)


@pytest.mark.parametrize("kernel_drops", [0, 1, 3])
def test_a_capture_that_dropped_frames_is_not_whole_and_lowers_the_grade(kernel_drops: int) -> None:
    parts = incident("bit_flip_receiver").parts
    record = parts["record"] | {
        "capture": parts["record"]["capture"] | {"kernel_drops": kernel_drops}
    }
    e = evidence({**parts, "record": record})
    assert e.capture_is_whole is not bool(kernel_drops)
    verdict = judge(e)
    assert verdict.evidence_grade == ("B" if kernel_drops else "A")
    assert any("dropped" in one for one in verdict.evidence_lacks) is bool(kernel_drops)


@pytest.mark.parametrize("frames_after", [0, 2, 4])
def test_an_answer_is_lost_also_where_the_link_fell_silent_with_it(frames_after: int) -> None:
    """Seen: both controllers only saved, and no frame came any more that could show a close."""
    outcome = incident("lost_ack")
    assert outcome.verdict.packet_no is not None
    frames = outcome.parts["frames"][: outcome.verdict.packet_no + frames_after]
    capture = {"kernel_drops": 0, "packets": len(frames)}
    verdict = judged_again(
        outcome, frames=frames, record=outcome.parts["record"] | {"capture": capture}
    )
    assert (verdict.kind, verdict.write_id) == ("lost", outcome.verdict.write_id)
    assert verdict.conclusive and verdict.evidence_grade == "A"


def test_a_capture_with_a_hole_is_not_whole() -> None:
    parts = incident("bit_flip_receiver").parts
    middle = len(parts["frames"]) // 2
    frames = parts["frames"][:middle] + parts["frames"][middle + 8 :]
    assert not evidence({**parts, "frames": frames}).capture_is_whole
    assert not evidence({**parts, "frames": None}).capture_is_whole


def lying(found: RootCauseSet | None) -> RootCauseSet | None:
    """The set with a fault plan and firings that never were."""
    if found is None:
        return None
    fired = {
        "seq": 0,
        "uptime_ns": 1,
        "name": "FAULT_FIRED",
        "level": "INFO",
        "fault": 8,
        "write_no": 3,
    }
    state = {**found.state, "faults": [{"kind": "lost_write", "at_write": 3, "fired": 1}]}
    return replace(found, state=state, events=[fired, *found.events])


@pytest.mark.parametrize("kind", ["bit_flip_receiver", "stall", "wrong_barrier_count"])
def test_a_false_tell_tale_changes_nothing(kind: str) -> None:
    outcome = incident(kind)
    sets = {side: lying(one) for side, one in outcome.parts["sets"].items()}
    assert judged_again(outcome, sets=sets) == outcome.verdict


# --- cut evidence -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cut", CUTS)
def test_cut_evidence_lowers_the_grade_and_never_makes_the_verdict_lie(cut: str) -> None:
    for number, kind in enumerate(KINDS):
        if (number + list(CUTS).index(cut)) % 3:
            continue  # each cut with a third of the kinds; `make verdict` has the others' seeds
        outcome = incident(kind)
        poorer = judge(evidence(CUTS[cut](outcome.parts, random.Random(f"{kind}/{cut}"))))
        assert lies(kind, outcome.truth, poorer, outcome.writes) == "", (kind, poorer.text)
        assert poorer.evidence_grade >= outcome.verdict.evidence_grade, kind
        if kind != CLEAN and cut != "short event logs":
            assert poorer.evidence_grade > "A" and poorer.evidence_lacks, kind
        if not poorer.conclusive:
            assert poorer.reason, kind


@pytest.mark.parametrize(
    ("kind", "cut", "candidates"),
    [
        ("bit_flip_sender", "no set of the primary", [Stage.PRIMARY_AFTER_DIGEST, Stage.ON_THE_LINK]),
        ("on_the_link", "no set of the primary", [Stage.PRIMARY_AFTER_DIGEST, Stage.ON_THE_LINK]),
        ("bit_flip_receiver", "no capture",
         [Stage.PRIMARY_AFTER_DIGEST, Stage.ON_THE_LINK, Stage.SECONDARY_BEFORE_CHECK]),
        ("lost_write", "no set of the secondary",
         [Stage.LOST_WRITE, Stage.MISDIRECTED_WRITE, Stage.STORE_AFTER_ACK]),
        ("host_buffer", "no set of the primary", [Stage.HOST_BUFFER, Stage.PRIMARY_BEFORE_DIGEST]),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_remains_possible(
    kind: str, cut: str, candidates: list[Stage]
) -> None:
    outcome = incident(kind)
    poorer = judge(evidence(CUTS[cut](outcome.parts, random.Random(1))))
    assert not poorer.conclusive
    assert list(poorer.candidates) == candidates
    assert poorer.stage is None and poorer.confidence == "open"
    assert "missing" in poorer.text


@pytest.mark.parametrize(("kind", "seed"), [("on_the_link", 1), ("bit_flip_sender", 53)])
def test_data_whose_digest_cannot_be_checked_after_a_hole_were_not_changed_before_it(
    kind: str, seed: int
) -> None:
    """The write that failed was never answered, so that after the hole its header is not proven. Seen: "in the
    primary, before it made the digest", although the primary's log tells what it sent."""
    outcome = virtual_run(kind, seed, load_bench("sim").rules())
    cut = "capture with drops"
    poorer = judge(evidence(CUTS[cut](outcome.parts, random.Random(f"{kind}/{seed}/{cut}"))))
    assert "no digest that can be checked" in poorer.reasons[0]
    assert (poorer.stage, poorer.write_id) == (outcome.verdict.stage, outcome.verdict.write_id)
    assert lies(kind, outcome.truth, poorer, outcome.writes) == ""


@pytest.mark.parametrize("kind", ["bit_flip_sender", "on_the_link", "host_buffer"])
def test_byte_and_bit_are_known_without_journal_and_sets(kind: str) -> None:
    outcome = incident(kind)
    poorer = judged_again(outcome, journal=None, sets={}, healthy={})
    bit = outcome.truth.bit
    assert bit is not None
    assert (poorer.byte_offset, poorer.bit_mask) == (bit // 8, 1 << bit % 8)


# --- what else the verdict tells ------------------------------------------------------------------------------
def test_the_way_of_the_write_is_told_step_by_step_with_times_and_errors() -> None:
    steps = incident("bit_flip_sender").verdict.route
    assert [one.at for one in steps][:5] == [
        "host intent", "primary HOST_WRITE", "primary REPL_SEND", "primary REPL_UNACKED", "link data",
    ]  # fmt: skip
    right, wrong = steps[2].crc32c, steps[4].crc32c
    assert right != wrong == steps[3].crc32c
    assert steps[4].digest_right is False
    for one in steps:
        assert one.t_ns is not None and one.error_ns is not None
        assert one.t_ns > 0 and one.error_ns >= 0
    sent, captured = steps[2], steps[4]
    assert sent.t_ns is not None and sent.error_ns is not None and captured.t_ns is not None
    assert sent.t_ns - sent.error_ns <= captured.t_ns, "nothing is on the link before it was sent"


def test_cause_and_detection_are_two_times() -> None:
    for kind in KINDS:
        verdict = incident(kind).verdict
        if kind != CLEAN:
            assert verdict.t_cause_ns - (verdict.t_cause_error_ns or 0) <= verdict.t_detect_ns, kind
    late = incident("bit_flip_store").verdict
    assert late.t_detect_ns - late.t_cause_ns > 20_000_000, (
        "the scrub comes some time after the write"
    )


def test_states_that_should_agree_are_told_beside_the_healthy_ones() -> None:
    rows = incident("bit_flip_receiver").verdict.state_differences
    connection = next(one for one in rows if one.field == "connection")
    assert connection.primary != connection.secondary
    assert connection.healthy_primary == connection.healthy_secondary == "Connected"


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_a_verdict_is_larger_than_a_reader_takes(kind: str) -> None:
    """A UUID of 64 bits once was: what was read back was not what had been written."""

    def numbers(value: Any) -> list[int]:
        if isinstance(value, dict):
            value = list(value.values())
        return (
            [one for inner in value for one in numbers(inner)]
            if isinstance(value, list)
            else [value]
        )

    verdict = json.loads(json.dumps(plain(incident(kind).verdict)))
    assert max(one for one in numbers(verdict) if isinstance(one, int)) <= MAX_INTEGER


def test_nothing_explains_a_trigger_that_has_no_cause() -> None:
    clean = incident(CLEAN)
    trigger = {"rule": "odd", "source": "console", "side": "primary", "t_match_ns": 5_000_000_000}
    verdict = judged_again(clean, record=clean.parts["record"] | {"trigger": trigger})
    assert not verdict.conclusive and "odd" in verdict.reason


# --- bytes from real nodes ------------------------------------------------------------------------------------
FLIPPED_AT = 724 - 16 - struct.calcsize(">Q8sII") - 4
"""The injector's log says payload offset 724: behind the packet's header, its fields and the
digest."""


def test_the_flipped_bit_of_a_real_capture_is_found() -> None:
    """Two Linux nodes, one bit flipped in flight (tests/golden/drbd): the byte that the injector's
    log names."""
    frames = [(one.t_ns, one.data) for one in read_frames(GOLDEN / "small-failure.pcap")]
    record = IncidentRecord(link=LinkRecord(ports=(7788,), integrity_alg="crc32c"))
    verdict = judge(gather(record, sets={}, frames=[run_of(frames)]))
    assert (verdict.write_lba, verdict.write_sectors) == (89600, 128)
    assert (verdict.byte_offset, verdict.lba) == (FLIPPED_AT, 89600 + FLIPPED_AT // 512)
    assert verdict.bit_mask.bit_count() == 1 and verdict.bytes_different == 1
    assert int(verdict.expected[:2], 16) ^ int(verdict.found[:2], 16) == verdict.bit_mask
    assert verdict.candidates == (Stage.PRIMARY_AFTER_DIGEST, Stage.ON_THE_LINK)
    assert not verdict.conclusive and verdict.evidence_grade == "F"


def test_every_stage_has_a_kind_that_shows_it() -> None:
    shown = {incident(kind).verdict.stage for kind in KINDS} - {None}
    also = {one.stage for kind in KINDS for one in incident(kind).verdict.also}
    assert {str(stage) for stage in Stage} - shown - also == {str(Stage.PRIMARY_STORE)}
    assert set(OUTSIDE) <= set(KINDS)


def test_a_recorded_row_stands_at_its_time_and_one_without_a_time_is_left_out() -> None:
    e = evidence(incident("bit_flip_receiver").parts)
    recorded = [
        {"t_ns": 7, "event": "noted"},
        *({"t_ns": t_ns, "event": "damaged"} for t_ns in ("7", 7.0, True, None, [7])),
        {"event": "damaged"},
        {"t_ns": 9, "event": "trigger", "where": "link", "t_match_ns": 11, "error_ns": 3},
        {"t_ns": 8, "event": "passed on", "error_ns": 4},
    ]
    found = [one for one in rows(e, 0, 100, recorded=recorded) if one["t_ns"] < 100]
    assert [(one["event"], one["t_ns"], one["t_detect_ns"], one["error_ns"]) for one in found] == [
        ("noted", 7, 7, 0),
        ("passed on", 8, 8, 4),
        ("trigger", 9, 11, e.link_error_ns),
    ]


def test_all_sources_stand_on_one_clock_each_with_its_error() -> None:
    """What happened later is never told earlier by more than the two errors, whoever told it."""
    outcome = incident("bit_flip_receiver")
    e = evidence(outcome.parts)
    verdict = outcome.verdict
    found = rows(e, verdict.t_cause_ns - 20_000_000, verdict.t_detect_ns + 20_000_000)
    assert {one["source"] for one in found} >= {
        "host",
        "event log",
        "console",
        "link",
        "reflex",
        "control",
    }
    assert [one["t_ns"] for one in found] == sorted(one["t_ns"] for one in found)
    assert all(one["error_ns"] is None or 0 <= one["error_ns"] < 50_000_000 for one in found)
    write = f"write {verdict.write_id}:"
    intent, data = (
        next(one for one in found if one["event"] == name and one["text"].startswith(write))
        for name in ("intent", "data")
    )
    refused = next(one for one in found if one["event"] == "REPL_DIGEST_FAILED")
    told = next(
        one for one in found if one["source"] == "console" and "Digest integrity" in one["text"]
    )
    trigger = next(one for one in found if one["event"] == "trigger")
    order = [intent, data, refused, told, trigger]
    for earlier, later in itertools.pairwise(order):
        assert earlier["t_ns"] - earlier["error_ns"] <= later["t_ns"] + later["error_ns"]


@pytest.mark.parametrize("kind", ["bit_flip_receiver", "neg_ack", "bit_flip_store"])
def test_a_link_that_is_not_understood_costs_a_grade_and_the_logs_speak(kind: str) -> None:
    """The frames are the same; nobody reads them."""
    outcome = incident(kind)
    assert outcome.verdict.evidence_grade == "A"
    record = outcome.parts["record"]
    link = record.get("link") or {}
    verdict = judged_again(outcome, record=record | {"link": link | {"protocol": "none"}})
    assert verdict.evidence_grade == "B"
    assert [one for one in verdict.evidence_lacks if "not understood" in one]
    assert verdict.side == outcome.verdict.side or not verdict.conclusive
    assert verdict.lba == outcome.verdict.lba


def test_a_protocol_that_is_not_installed_is_a_lack_and_no_error() -> None:
    outcome = incident("neg_ack")
    record = outcome.parts["record"] | {"link": {"protocol": "a_vendors"}}
    verdict = judged_again(outcome, record=record)
    assert any("'a_vendors' not found" in one for one in verdict.evidence_lacks)


def test_a_stale_copy_is_named_with_the_write_that_was_due() -> None:
    verdict = incident("stale_copy").verdict
    assert verdict.expected == f"write {verdict.write_id}" and verdict.found.startswith("write ")
    assert verdict.found != verdict.expected
    assert verdict.text.find(verdict.found) < verdict.text.find(f"belongs to {verdict.expected}")


def test_a_hidden_direction_costs_a_letter_and_strangers_on_the_port_cost_none() -> None:
    parts = incident("bit_flip_receiver").parts
    pair = [bytes([10, 77, 0, end]) for end in (1, 2)]
    frames = parts["frames"]
    others = [
        (t_ns, one.replace(pair[0], bytes([10, 9, 8, 7])).replace(pair[1], bytes([10, 9, 8, 6])))
        for t_ns, one in frames[:40]
    ]
    with_strangers = sorted([*frames, *others], key=lambda one: one[0])
    half = [(t_ns, one) for t_ns, one in frames if one[26:30] == pair[0]]
    for captured, kinds, letter in (
        (frames, set(), "A"),
        (with_strangers, {BlindKind.STRANGERS}, "A"),
        (half, {BlindKind.ANSWERS_NOT_SHOWN}, "B"),
    ):
        record = parts["record"] | {"capture": {"kernel_drops": 0, "packets": len(captured)}}
        e = evidence({**parts, "frames": captured, "record": record})
        assert e.link is not None and {one.kind for one in e.link.blind} == kinds
        assert grade(e).letter == letter, grade(e).lacks
        for one in e.link.blind:
            assert (one.says in grade(e).lacks) is (letter != "A")


@pytest.mark.parametrize(
    ("kind", "named"), [("late_ack", "late"), ("lost_ack", "lost"), ("stall", "late or lost")]
)
def test_without_a_log_the_answers_that_overtook_tell_late_and_lost_from_not_read(
    kind: str, named: str
) -> None:
    outcome = incident(kind)
    verdict = judged_again(outcome, sets=outcome.parts["sets"] | {"secondary": None})
    assert verdict.kind == named
    assert verdict.stage == (None if kind == "stall" else Stage.RESPONSE)
    assert any("meanwhile" in one for one in verdict.reasons) is (kind != "stall")


def test_without_clocks_a_secondary_that_logged_nothing_meanwhile_had_not_read() -> None:
    parts = CUTS["device clocks unknown"](incident("stall").parts, random.Random(1))
    e = evidence(parts)
    verdict = judge(e)
    assert (verdict.kind, verdict.stage) == ("not reading", Stage.STALL)
    named = re.search(r"idle for (\d+) ms", verdict.text + " ".join(verdict.reasons))
    write = next(one for one in e.own_writes if one.write_id == verdict.write_id)
    assert named is not None and abs(int(named[1]) - write.latency_ns / NS_PER_MS) < 100


@pytest.mark.parametrize("kind", ["lost_write", "bit_flip_store", "misdirected_write"])
def test_what_a_store_did_wrong_is_tied_to_the_copy_on_the_link(kind: str) -> None:
    """From a damaged block to the frame that carried it and to both controllers' numbers of the write."""
    outcome = incident(kind)
    e, verdict = evidence(outcome.parts), outcome.verdict
    (write,) = (one for one in e.own_writes if one.packet_no == verdict.packet_no)
    assert (write.write_id, write.block_id) == (verdict.write_id, verdict.block_id)
    assert verdict.primary_no == e.primary_number(write) is not None
    assert verdict.secondary_no == e.secondary_number(write) is not None


def test_two_bytes_that_changed_on_the_link_are_told_by_the_journal() -> None:
    """A digest proves one flipped bit; of more, only what the host wrote can say where they are."""
    outcome = incident("on_the_link")
    single = outcome.verdict
    assert single.packet_no is not None and single.byte_offset is not None
    frames = list(outcome.parts["frames"])
    t_ns, frame = frames[single.packet_no - 1]
    size = (single.write_sectors or 0) * 512
    changed = bytearray(frame)
    changed[-size + 324] ^= 0x21
    assert single.byte_offset > 324
    frames[single.packet_no - 1] = (t_ns, unsummed(bytes(changed)))
    verdict = judged_again(outcome, frames=frames)
    assert (verdict.stage, verdict.write_id) == (Stage.ON_THE_LINK, single.write_id)
    assert (verdict.bytes_different, verdict.byte_offset, verdict.bit_mask) == (2, 324, 0x21)


@pytest.mark.parametrize("reaches_back", [True, False])
def test_a_log_that_has_wrapped_says_that_a_write_was_not_read_only_if_it_reaches_back(
    reaches_back: bool,
) -> None:
    outcome = virtual_run("stall", 2, load_bench("sim").rules())
    e, own = evidence(outcome.parts), outcome.parts["sets"]["secondary"]
    write = next(one for one in e.own_writes if one.write_id == outcome.verdict.write_id)
    times = [at[0] if (at := e.secondary.at(one)) else 0 for one in own.events]
    later = next(n for n, t_ns in enumerate(times) if t_ns > write.t_sent_ns)
    wrapped = replace(own, events=own.events[later - 100 if reaches_back else later :])
    verdict = judged_again(outcome, sets=outcome.parts["sets"] | {"secondary": wrapped})
    assert not evidence({**outcome.parts, "sets": {"secondary": wrapped}}).secondary.log_is_whole
    assert verdict.kind == ("not reading" if reaches_back else "late or lost")
