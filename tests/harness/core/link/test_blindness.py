"""What the capture cannot see is named, and triggers nothing; what can be seen, triggers all the
same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_script import P, S
from link_wire import healthy_exchange

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link.blindness import (
    ENOUGH_WRITES,
    HARMLESS,
    QUIET,
    BlindKind,
    Demand,
    HeardDirection,
    LinkState,
    Sight,
    blindness,
    no_write_seen,
    unproved,
    unsafe_events,
)
from freezeframe.harness.core.link.ipheaders import Foreign
from freezeframe.harness.core.link.linkevidence import LinkEvidence
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.protocol import Tell
from freezeframe.harness.core.link.skim import run_of
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames

FIELD = Path(__file__).parents[3] / "golden" / "field"
FRAMES = healthy_exchange(20)
DRBD = frozenset({7788})


def watch(frames: Sequence[bytes], ends: LinkEnds) -> tuple[LinkView, list[Trigger]]:
    rules = [LinkRule(name=event, event=event) for event in EVENTS]
    view, triggers, now_ns = LinkView(ends, rules), [], 0
    for number, frame in enumerate(frames, 1):
        now_ns += NS_PER_MS
        triggers += view.tick(now_ns)
        triggers += view.feed(now_ns, frame, number, now_ns)
    for _ in range(100):
        now_ns += 50 * NS_PER_MS
        triggers += view.tick(now_ns)
    return view, triggers + view.close(now_ns)


def sent_by(frame: bytes) -> str:
    return ".".join(map(str, frame[26:30]))


def kinds(view: LinkView) -> set[BlindKind]:
    return {one.kind for one in view.blindness()}


def ends(**changes: object) -> LinkEnds:
    given: dict[str, object] = {"primary_address": P, "secondary_address": S, "ports": DRBD}
    return LinkEnds(**(given | changes))  # type: ignore[arg-type]


def test_a_whole_capture_is_not_blind() -> None:
    view, triggers = watch(FRAMES, ends())
    assert view.blindness() == []
    assert triggers == []


def test_one_pair_that_has_not_written_yet_is_not_several() -> None:
    """No addresses are named, and its handshake alone was captured."""
    view, triggers = watch(FRAMES[:12], ends(primary_address="", secondary_address=""))
    assert view.ledger.totals.writes == 0
    assert (view.blindness(), triggers) == ([], [])


def test_half_a_mirror_without_the_answers() -> None:
    half = [frame for frame in FRAMES if sent_by(frame) == P]
    view, triggers = watch(half, ends())
    assert kinds(view) == {BlindKind.ANSWERS_NOT_SHOWN}
    assert triggers == []


@pytest.mark.parametrize("stranger", ["10.77.0.9", S])
def test_only_who_the_writer_writes_to_can_answer_it(stranger: str) -> None:
    heard = HeardDirection(is_heard=True, has_spoken=True, connections=1)
    state = LinkState(
        ports=DRBD, primary_address=P, secondary_address=S, frames=9, messages=9, writers={P: 4},
        directions={(P, S): heard, (stranger, P): heard},
    )  # fmt: skip
    shown = BlindKind.ANSWERS_NOT_SHOWN not in {one.kind for one in blindness(state)}
    assert shown is (stranger == S)


def test_half_a_mirror_without_the_writes() -> None:
    half = [frame for frame in FRAMES if sent_by(frame) == S]
    view, triggers = watch(half, ends())
    assert BlindKind.WRITES_NOT_SHOWN in kinds(view)
    assert triggers == []


def test_one_of_two_connections() -> None:
    """The meta socket's answers take another path than the mirror's: none proves that what was found in the
    middle of the link is no data, and no digest is held against it."""
    data = [frame for frame in FRAMES if not is_meta(frame)]
    begun = [frame for frame in data if len(frame) > 54 and sent_by(frame) == P]
    acks = [frame for frame in data if len(frame) == 54 and sent_by(frame) == S]
    view, triggers = watch([*begun[5:6], *acks[-1:], *begun[6:]], ends())
    assert kinds(view) == {BlindKind.ANSWERS_NOT_SHOWN, BlindKind.NO_DIGEST}
    assert triggers == []


def is_meta(frame: bytes) -> bool:
    """The secondary opened the meta connection: its service port is the primary's."""
    ports = int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")
    return ports[0 if sent_by(frame) == P else 1] == 7788


@pytest.mark.parametrize("lost", [{1}, {5}, {30}, set(range(1, 200))])
def test_an_answer_that_was_never_sent_is_hit(lost: set[int]) -> None:
    """The speech to the silences around it."""
    view, triggers = watch(healthy_exchange(20, unanswered=lost), ends())
    assert "missing-ack" in {one.rule for one in triggers}
    assert view.blindness() == []


def test_exchanged_addresses() -> None:
    view, triggers = watch(FRAMES, ends(primary_address=S, secondary_address=P))
    assert kinds(view) == {BlindKind.EXCHANGED}
    assert f"all {view.ledger.totals.writes} writes come from {P}" in view.blindness()[0].says
    assert triggers == []


def test_addresses_of_others() -> None:
    view, triggers = watch(FRAMES, ends(primary_address="10.1.1.1", secondary_address="10.1.1.2"))
    assert kinds(view) == {BlindKind.NOT_UNDERSTOOD}
    assert "10.1.1.1, 10.1.1.2" in view.blindness()[0].says
    assert triggers == []


def test_a_port_on_which_nothing_comes() -> None:
    view, _ = watch(FRAMES, ends(ports=frozenset({9})))
    assert kinds(view) == {BlindKind.NO_CONNECTION}


def test_nothing_captured() -> None:
    view, triggers = watch([], ends())
    assert kinds(view) == {BlindKind.NOTHING_CAPTURED}
    assert triggers == []


def test_the_capture_of_one_direction_from_the_field() -> None:
    frames = list(read_frames(FIELD / "one-direction.pcap"))
    found = LinkEvidence(LinkEnds(ports=DRBD))
    found.feed(run_of([(one.t_ns, one.data) for one in frames]), 0)
    found.close()
    assert [one.kind for one in found.blind] == [BlindKind.ANSWERS_NOT_SHOWN]
    assert len(found.writes) == 12
    view, triggers = watch([one.data for one in frames], LinkEnds(ports=DRBD))
    assert triggers == []
    assert view.stats(t_ns=0, packets=1, bytes_captured=1, kernel_drops=0).blind.keys() == {
        "answers-not-shown"
    }


def test_a_direction_that_vanishes_in_mid_watch_is_named_and_accuses_nobody() -> None:
    half_way = len(FRAMES) // 2
    rest = [frame for frame in FRAMES[half_way:] if sent_by(frame) == P]
    view, triggers = watch([*FRAMES[:half_way], *rest], ends())
    assert triggers == []
    assert view.reassembler.gaps or BlindKind.VANISHED in kinds(view)


def test_a_writer_that_repeats_its_write_lacks_the_answer_itself() -> None:
    """The speech to that silence: the other end is dead, and the mirror is whole."""
    last = max(at for at, one in enumerate(FRAMES) if sent_by(one) == P and len(one) > 200)
    rest = [FRAMES[last]] * 3
    rules = [LinkRule(name="missing-ack", event="missing-ack")]
    view, triggers, now_ns = LinkView(ends(), rules), [], 0
    for number, frame in enumerate([*FRAMES[: last + 1], *rest], 1):
        now_ns += NS_PER_MS if number <= last + 1 else 300 * NS_PER_MS
        triggers += view.feed(now_ns, frame, number, now_ns)
    for _ in range(60):
        now_ns += 50 * NS_PER_MS
        triggers += view.tick(now_ns)
    assert {one.rule for one in triggers} == {"missing-ack"}


def test_addresses_that_are_exchanged_midway() -> None:
    counts = {P: 40, S: ENOUGH_WRITES}
    (found,) = blindness(state(writers=counts, last_writer=S, writes_in_a_row=ENOUGH_WRITES))
    assert (found.kind, f"the last {ENOUGH_WRITES} writes come from {S}" in found.says) == (
        BlindKind.EXCHANGED,
        True,
    )
    assert found.unsafe == set(EVENTS)
    few = state(writers=counts, last_writer=S, writes_in_a_row=ENOUGH_WRITES - 1)
    assert blindness(few) == []
    assert blindness(state(writers=counts, last_writer=P, writes_in_a_row=99)) == []


STRANGER = "10.99.0.9"


@pytest.mark.parametrize("named", [(P, S), ("", "")])
def test_strangers_on_the_port_are_named_and_hide_nothing(named: tuple[str, str]) -> None:
    third = BACK | {(STRANGER, S): HeardDirection(True, True, 1)}
    asked = state(directions=third, primary_address=named[0], secondary_address=named[1])
    (found,) = blindness(asked)
    assert (found.kind, found.unsafe) == (BlindKind.STRANGERS, frozenset())
    assert f"{STRANGER} to {S}" in found.says
    sight = SEEN._replace(blind={str(found.kind): found.says})
    assert unproved(demand("digest", "answer"), sight, wrote=True) == {}


def test_two_pairs_on_one_port_are_told_apart_only_by_their_addresses() -> None:
    other = ("10.77.1.1", "10.77.1.2")
    both = BACK | {ends: HeardDirection(True, True, 1) for ends in (other, other[::-1])}
    writers = {P: 40, other[0]: 3}
    named = blindness(state(directions=both, writers=writers))
    assert [one.kind for one in named] == [BlindKind.STRANGERS]
    (found,) = blindness(
        state(directions=both, writers=writers, primary_address="", secondary_address="")
    )
    assert "no addresses are named" in found.says


# --- the function itself --------------------------------------------------------------------------
BACK = {(P, S): HeardDirection(True, True, 1), (S, P): HeardDirection(True, True, 1)}


def state(**changes: object) -> LinkState:
    given: dict[str, object] = {
        "protocol": "drbd", "ports": DRBD, "primary_address": P, "secondary_address": S,
        "frames": 1000, "directions": BACK, "messages": 50, "writers": {P: 40}, "answers": 40,
        "answerers": frozenset({S}), "digests_checked": 40, "answers_elsewhere": True,
    }  # fmt: skip
    return LinkState(**(given | changes))  # type: ignore[arg-type]


def test_a_state_in_which_all_is_seen() -> None:
    assert blindness(state()) == []


def test_no_digest() -> None:
    assert [one.kind for one in blindness(state(digests_checked=0))] == [BlindKind.NO_DIGEST]
    few = state(digests_checked=0, writers={P: ENOUGH_WRITES - 1})
    assert blindness(few) == []
    none = state(digests_checked=0, tells=frozenset({Tell.WRITE, Tell.ANSWER}))
    assert blindness(none) == []


def test_tunnels_are_named_with_their_count() -> None:
    hidden = {Foreign.VXLAN: 900, Foreign.FRAGMENT: 50}
    (found,) = [
        one
        for one in blindness(
            state(foreign=hidden, messages=0, writers={}, answers=0, directions={})
        )
        if one.kind is BlindKind.HIDDEN
    ]
    assert "950" in found.says
    assert "900 of VXLAN, 50 of IP fragments" in found.says
    assert blindness(state(foreign={Foreign.FRAGMENT: 3})) == []


def test_an_encrypted_link() -> None:
    both = {ends: HeardDirection(True, True, 1, is_encrypted=True) for ends in BACK}
    found = blindness(state(directions=both, messages=0, writers={}, answers=0))
    assert [one.kind for one in found] == [BlindKind.ENCRYPTED]


def test_a_protocol_that_shows_nothing_is_not_blamed() -> None:
    assert blindness(state(messages=0, writers={}, answers=0, tells=frozenset())) == []


def test_refusals_and_digests_stay_what_they_are_without_the_other_direction() -> None:
    half = {(P, S): HeardDirection(True, True, 2), (S, P): HeardDirection(False, False, 2)}
    unsafe = unsafe_events(blindness(state(directions=half, answers=0, answerers=frozenset())))
    assert "missing-ack" in unsafe
    assert not unsafe & {"digest-mismatch", "neg-ack", "broken-stamp"}
    assert unsafe <= set(EVENTS)


# --- what was not proved --------------------------------------------------------------------------
SEEN = Sight(writes=40, answers=40, digests_checked=40)
OF_THE_STATE = [
    str(one)
    for one in BlindKind
    if one not in (BlindKind.NO_WRITE, BlindKind.NO_ANSWER, BlindKind.HOLES)
]
SIGHTS = st.builds(
    Sight, writes=st.sampled_from([0, 1, 15, 40]), answers=st.sampled_from([0, 40]),
    digests_checked=st.sampled_from([0, 40]), frames_dropped=st.sampled_from([0, 3]),
    gaps=st.sampled_from([0, 2]),
    blind=st.dictionaries(st.sampled_from(OF_THE_STATE), st.just("said"), max_size=2),
)  # fmt: skip
MUST = st.lists(st.sampled_from(["digest", "answer"]), unique=True)


def demand(*must_check: str, tells: frozenset[Tell] = frozenset(Tell)) -> Demand:
    return Demand(protocol="drbd", tells=tells, ports=(7788,), must_check=must_check)


def test_a_sight_that_shows_all_proves_all() -> None:
    """The speech to the silences below."""
    for wrote in (True, False, None):
        assert unproved(demand("digest", "answer"), SEEN, wrote=wrote) == {}


@given(sight=SIGHTS, must=MUST, wrote=st.none() | st.booleans())
def test_what_was_not_seen_is_a_sentence(sight: Sight, must: list[str], wrote: bool | None) -> None:
    found = unproved(demand(*must), sight, wrote=wrote)
    assert all(found.values())
    assert (BlindKind.HOLES in found) == bool(sight.gaps or sight.frames_dropped)
    assert (BlindKind.NO_WRITE in found) >= (not sight.writes and wrote is not False)
    if sight.writes:
        unchecked = "digest" in must and not sight.digests_checked
        assert (BlindKind.NO_DIGEST in found) == unchecked
        no_answer = "answer" in must and not sight.answers
        assert bool({"no-answer", "answers-not-shown"} & found.keys()) >= no_answer
    loud = sight.blind.keys() - {BlindKind.NO_DIGEST} - HARMLESS
    loud -= QUIET if wrote is False else set()
    assert loud <= found.keys()
    if not found:
        assert sight.writes or wrote is False
        assert (sight.digests_checked or "digest" not in must) or not sight.writes


def test_a_protocol_that_shows_no_write_is_asked_for_nothing() -> None:
    assert unproved(demand("digest", tells=frozenset()), Sight(), wrote=True) == {}
    shown = demand("digest", "answer", tells=frozenset({Tell.WRITE, Tell.ANSWER}))
    assert unproved(shown, SEEN._replace(digests_checked=0), wrote=True) == {}


def test_the_sentence_says_what_to_change_in_the_bench_file() -> None:
    asked = replace(demand("digest", "answer"), is_configured=True)
    (says,) = unproved(asked, SEEN._replace(digests_checked=0), wrote=True).values()
    assert "no digest was checked on the link, of 40 replicated writes" in says
    assert 'must_check = ["answer"]' in says


def test_holes_take_nothing_from_what_was_seen() -> None:
    holed = SEEN._replace(gaps=2, frames_dropped=3)
    (says,) = unproved(demand(), holed, wrote=True).values()
    assert says.startswith("the capture missed 3 frames and has 2 holes")
    assert unproved(demand(), holed, wrote=True, by_silence=False) == {}


def test_a_wrong_address_is_not_blamed_on_the_interface() -> None:
    demand = load_bench("sim").link.demand
    exchanged = "all 4 writes come from 10.9.9.9, which is not named in the bench file"
    said = no_write_seen(demand, {"exchanged": exchanged})
    assert exchanged in said and "mirror port" not in said
    for blind in ({}, {str(BlindKind.NOTHING_CAPTURED): "the capture saw no frame at all"}):
        assert "mirror port" in no_write_seen(demand, blind)


@pytest.mark.parametrize("answers_until", [100, 1000])
def test_what_lay_beyond_the_window_of_a_receiver_that_vanished_is_a_hole_at_the_end(
    answers_until: int,
) -> None:
    frames = healthy_exchange(12, (65536,))
    captured = [
        (10**18 + at * 1000, one)
        for at, one in enumerate(frames)
        if at < answers_until or sent_by(one) == P
    ]
    found = LinkEvidence(ends())
    found.feed(run_of(captured), 0)
    assert found.gaps == 0
    found.close()
    assert found.gaps == 1
