"""Who is the link, however its ports and addresses are written; what is only out of order; and which
digests can be believed."""

import struct
from pathlib import Path

import pytest
from link_script import (
    NEG_ACK,
    P,
    Pair,
    S,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    p_data,
)

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.core.link.ledgerbook import MATCHES_TO_BELIEVE, REORDER_FRAMES
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames

FIELD = Path(__file__).parents[3] / "golden" / "field"
RULES = [LinkRule(name=event, event=event) for event in EVENTS]
BARRIER_ACK_HEAD = bytes.fromhex("8620ec20 0000 001c 00000008 00000000")


def changed(frame: bytes, at: int, xor: int) -> bytes:
    """The frame with two of its TCP payload's bytes changed, and the checksum mended (RFC 1624)."""
    tcp = 14 + (frame[14] & 15) * 4
    at -= (at - tcp) % 2
    (old,), (told,) = struct.unpack_from(">H", frame, at), struct.unpack_from(">H", frame, tcp + 16)
    total = (~told & 0xFFFF) + (~old & 0xFFFF) + (old ^ xor)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    out = bytearray(frame)
    struct.pack_into(">H", out, at, old ^ xor)
    struct.pack_into(">H", out, tcp + 16, ~total & 0xFFFF)
    return bytes(out)


def watch(
    name: str, ends: LinkEnds, head: bytes = b"", field: int = 0, leave: int = 0
) -> tuple[LinkView, list[Trigger]]:
    """The capture's triggers; with ``head``, a packet that begins so is changed in the two bytes at
    ``field`` of its body, the first after ``leave`` of them."""
    view, triggers, t_ns = LinkView(ends, RULES), list[Trigger](), 0
    for number, one in enumerate(read_frames(FIELD / f"{name}.pcap"), 1):
        t_ns, data = one.t_ns, one.data
        if head and head in data:
            leave -= 1
        if head and head in data and leave < 0:
            data, head = changed(data, data.index(head) + len(head) + field, 0x0101), b""
        triggers += view.tick(t_ns)
        triggers += view.feed(t_ns, data, number, t_ns)
    for later_ms in range(0, 3000, 50):
        triggers += view.tick(t_ns + later_ms * 1_000_000)
    return view, triggers + view.close(t_ns)


def counts(view: LinkView) -> tuple[int, int]:
    return view.ledger.totals.writes, view.ledger.totals.acks


def test_the_named_port_is_the_service_whatever_the_numbers() -> None:
    ends = LinkEnds(ports=frozenset({58123}))
    view, triggers = watch("service-port-58123-midstream", ends)
    assert (counts(view), triggers) == ((12, 12), [])
    assert view.ledger.totals.barriers_checked == 3
    _, triggers = watch("service-port-58123-midstream", ends, BARRIER_ACK_HEAD, field=6, leave=2)
    assert [one.rule for one in triggers] == ["barrier-count"]


def test_one_of_several_ports() -> None:
    view, triggers = watch("service-port-58123-midstream", LinkEnds(ports=frozenset({7788, 58123})))
    assert (counts(view), triggers) == ((12, 12), [])


@pytest.mark.parametrize(
    ("primary", "secondary"),
    [
        ("fd00::a63:1", "fd00::a63:2"),
        ("FD00::0A63:0001", "fd00:0::a63:2"),
        ("fd00::a63:1%eth0", ""),
        ("", ""),
    ],
)
def test_addresses_are_compared_as_addresses(primary: str, secondary: str) -> None:
    ends = LinkEnds(primary_address=primary, secondary_address=secondary, ports=frozenset({7788}))
    view, triggers = watch("ipv6-wrong-digest", ends)
    assert [one.rule for one in triggers] == ["digest-mismatch"]
    assert (counts(view), triggers[0].side) == ((12, 12), "primary")


def test_other_addresses_are_another_link() -> None:
    view, triggers = watch("ipv6-wrong-digest", LinkEnds(primary_address="fd00::a63:9"))
    assert (counts(view), triggers) == ((0, 0), [])


@pytest.mark.parametrize("primary", ["", "10.99.0.1"])
def test_a_stranger_on_the_port_is_not_the_pair(primary: str) -> None:
    ends = LinkEnds(primary_address=primary, ports=frozenset({7788}))
    view, triggers = watch("health-check-from-third-machine", ends)
    assert (counts(view), triggers) == ((12, 12), [])


def test_bytes_that_are_not_drbd_on_a_connection_that_speaks_it_are_an_error() -> None:
    pair = Pair()
    pair.open("data")
    pair.send("data", P, b"GET / HTTP/1.0\r\n\r\n")
    assert pair.hits == []
    pair.connect()
    pair.send("data", P, b"GET / HTTP/1.0\r\n\r\n")
    assert pair.hits == ["malformed"]


def test_a_barrier_that_is_answered_one_frame_before_it_is_captured() -> None:
    ends = LinkEnds(ports=frozenset({7788}))
    view, triggers = watch("barrier-ack-captured-first", ends)
    assert (counts(view), triggers) == ((12, 12), [])
    assert view.ledger.totals.barriers_checked == 4


# --- out of order ---------------------------------------------------------------------------------
@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.connect()
    pair.epoch(1, 3)
    return pair


def frames_pass(pair: Pair, frames: int) -> None:
    pair.packet_no += frames


@pytest.mark.parametrize(
    ("ms", "frames", "hits"),
    [
        (0, 0, []),
        (4.9, REORDER_FRAMES - 2, []),
        (6, 0, ["unknown-ack"]),
        (0, REORDER_FRAMES + 1, ["unknown-ack"]),
    ],
)
def test_an_answer_may_be_captured_a_little_before_its_write(
    pair: Pair, ms: float, frames: int, hits: list[str]
) -> None:
    pair.ack(50, 400)
    pair.wait(ms)
    frames_pass(pair, frames)
    pair.write(50, 400)
    if hits:
        pair.ack(50, 400)
    pair.wait(2000)
    assert pair.hits == hits


@pytest.mark.parametrize(
    ("ms", "frames", "told", "hits"),
    [
        (0, 0, 2, []),
        (4.9, REORDER_FRAMES - 2, 2, []),
        (0, 0, 3, ["barrier-count"]),
        (6, 0, 2, ["barrier-count", "missing"]),
        (0, REORDER_FRAMES + 1, 2, ["barrier-count", "missing"]),
    ],
)
def test_a_barriers_answer_may_be_captured_a_little_before_it_and_its_count_holds(
    pair: Pair, ms: float, frames: int, told: int, hits: list[str]
) -> None:
    for number in (50, 51):
        pair.write(number, number * 8)
        pair.ack(number, number * 8)
    pair.send("meta", S, p_barrier_ack(50, told))
    pair.wait(ms)
    frames_pass(pair, frames)
    pair.send("data", P, p_barrier(50))
    pair.wait(300)
    assert pair.hits == hits[:1]
    pair.epoch(60, 2)
    assert len(pair.hits) == len(hits), "a barrier that was never answered is skipped by the next"


def test_refusals_and_wrong_digests_wait_for_nothing(pair: Pair) -> None:
    pair.send("meta", S, p_ack(50, 400, cmd=NEG_ACK))
    assert pair.hits == ["neg-ack"]
    pair.send("data", P, p_data(51, 408, bytes(512), digest=b"oops"))
    assert pair.hits == ["neg-ack", "digest-mismatch"]


# --- an algorithm that nobody was seen to agree on ------------------------------------------------
def midstream(integrity_alg: str = "") -> Pair:
    pair = Pair(integrity_alg=integrity_alg)
    for socket in ("data", "meta"):
        pair.open(socket, from_start=False)
    pair.send("data", P, h100(0x07), h100(0x07))
    return pair


def wrong(pair: Pair, sender: str = P) -> None:
    pair.send("data", sender, p_data(900, 8000, bytes(512), digest=b"oops"))


@pytest.mark.parametrize(
    ("matches", "hits"),
    [(0, []), (MATCHES_TO_BELIEVE - 1, []), (MATCHES_TO_BELIEVE, ["digest-mismatch"])],
)
def test_an_inferred_algorithm_is_believed_once_it_has_fitted_often_enough(
    matches: int, hits: list[str]
) -> None:
    pair = midstream()
    for number in range(matches):
        pair.write(number, number * 8)
        pair.ack(number, number * 8)
    wrong(pair)
    assert pair.hits == hits
    totals = pair.ledger.totals
    assert (totals.digests_checked, totals.digests_wrong) == (matches + len(hits), len(hits))


def test_it_is_believed_in_the_direction_in_which_it_fitted() -> None:
    pair = midstream()
    for number in range(MATCHES_TO_BELIEVE):
        pair.write(number, number * 8)
    pair.send("data", S, h100(0x07), h100(0x07))
    wrong(pair, S)
    assert pair.hits == []
    wrong(pair, P)
    assert pair.hits == ["digest-mismatch"]


def test_what_the_bench_file_names_or_the_ends_agreed_on_is_believed_at_once(pair: Pair) -> None:
    wrong(pair)
    named = midstream("crc32c")
    wrong(named)
    assert pair.hits == named.hits == ["digest-mismatch"]


def test_a_digest_of_another_algorithm_of_the_same_size_is_never_an_error() -> None:
    pair = midstream()
    for number in range(100):
        pair.send("data", P, p_data(number, number * 8, bytes(512), digest=b"crc3"))
        pair.ack(number, number * 8)
    assert pair.hits == []
    assert pair.ledger.totals.digests_checked == 0
