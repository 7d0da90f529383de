"""Reconnects of the simulated pair: each omission is found, and a healthy one is not hit. A share of
`tests/tools/resyncrun.py`, which `make nightly` runs whole."""

from functools import cache

import pytest
from pairrun import MAY_BE_LATER, pair_run
from resyncrun import OMISSIONS, Rejoined, healthy_run, omitted_run, wrong
from verdictrun import virtual_run
from virtualbench import evidence

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.wire.faults import FaultKind

SHARE = 6


@cache
def omitted() -> list[Rejoined]:
    return [omitted_run(number) for number in range(SHARE)]


@cache
def healthy() -> list[Rejoined]:
    return [healthy_run(number) for number in range(SHARE)]


def test_every_omission_is_found_with_what_was_left_out() -> None:
    assert [wrong(one) for one in omitted()] == [""] * SHARE
    assert {one.fault for one in omitted()} == set(OMISSIONS)
    for one in omitted():
        record = one.verdict.resyncs[-1]
        assert record.bytes_omitted or record.blocks_lost
        assert record.t_equal_ns and record.seen_whole


def test_a_healthy_reconnect_and_a_stale_bitmap_are_not_hit() -> None:
    assert [wrong(one) for one in healthy()] == [""] * SHARE
    assert {one.stale for one in healthy()} == {"none", "primary", "secondary"}
    assert not any(one.bytes_omitted for done in healthy() for one in done.verdict.resyncs)


def test_what_was_resynced_is_recorded_with_its_direction() -> None:
    copied = [one for done in healthy() for one in done.verdict.resyncs if one.bytes_copied]
    assert len(copied) >= SHARE // 2
    for one in copied:
        assert one.source == "primary" and one.bytes_marked >= one.bytes_copied > 0
        assert one.t_parted_ns and one.t_begin_ns and one.t_end_ns and one.t_equal_ns
        assert one.t_parted_ns < one.t_begin_ns <= one.t_end_ns <= one.t_equal_ns
        assert one.ranges >= len(one.copied) > 0 and one.compressed_bitmap_packets == 2


def test_a_stale_mark_that_is_copied_is_told_as_repaired_without_an_explanation() -> None:
    stale = [done for done in healthy() if done.stale != "none"]
    assert any(one.bytes_unexplained for done in stale for one in done.verdict.resyncs)
    plain = [done for done in healthy() if done.stale == "none"]
    assert not any(one.bytes_unexplained for done in plain for one in done.verdict.resyncs)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_the_link_watch_alone_sees_what_the_link_alone_shows(done: int) -> None:
    if omitted()[done].fault != "resync_denied":
        assert omitted()[done].is_live


# --- latent faults --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FaultKind.LOST_WRITE, FaultKind.NEG_ACK),
        (FaultKind.MISDIRECTED_WRITE, FaultKind.BIT_FLIP_RECEIVER),
        (FaultKind.BIT_FLIP_STORE, FaultKind.REPEATED_ACK),
        (FaultKind.STALE_COPY, FaultKind.NEG_ACK),
    ],
)
def test_a_latent_fault_shortly_before_the_one_that_triggers_is_named(
    first: FaultKind, second: FaultKind
) -> None:
    done = [pair_run((first, second), seed, load_bench("sim").rules()) for seed in (1, 2)]
    assert [(one.result, one.detail) for one in done] == [("right", "")] * 2
    assert any(one.fired == 2 for one in done)


def test_without_what_the_secondary_read_back_a_verdict_is_not_certain_and_says_why() -> None:
    outcome = virtual_run("neg_ack", 1, load_bench("sim").rules())
    assert outcome.verdict.confidence == "certain" and MAY_BE_LATER not in outcome.verdict.text
    sets = dict(outcome.parts["sets"])
    found = sets["secondary"]
    assert found is not None
    diagnostics = {**found.state["diagnostics"], "unscrubbed_blocks": 40}
    state = {**found.state, "diagnostics": diagnostics}
    sets["secondary"] = RootCauseSet(header=found.header, state=state, events=found.events)
    poorer = judge(evidence({**outcome.parts, "sets": sets}))
    assert (poorer.stage, poorer.write_id) == (outcome.verdict.stage, outcome.verdict.write_id)
    assert poorer.confidence == "likely" and MAY_BE_LATER in poorer.text
    assert "nobody had read back" in poorer.text
