"""Link rules on a scripted pair in virtual time: each wrong thing gives its trigger, nothing
healthy gives any."""

import struct
from pathlib import Path

import crc32c
import pytest
from link_script import (
    CONN_ST_CHG_REQ,
    NEG_ACK,
    PING,
    RECV_ACK,
    RS_DATA_REPLY,
    RS_WRITE_ACK,
    SYNCER,
    P,
    Pair,
    S,
    cookie,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    p_data,
    p_trim,
)

from freezeframe.harness.core.events import NS_PER_MS, Trigger
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.errors import UsageError

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.connect()
    return made


def test_a_healthy_pair_gives_no_trigger(pair: Pair) -> None:
    for first in range(1, 60, 7):
        pair.epoch(first, 6)
    pair.send("data", P, p_trim(900, 64, 4096))
    pair.wait(1)
    pair.ack(900, 64, 4096)
    pair.wait(5000)
    assert pair.hits == []
    assert pair.ledger.totals.writes == pair.ledger.totals.acks == 55
    assert pair.ledger.totals.digests_checked == 54


def test_a_write_whose_connection_has_closed_waits_for_no_answer(pair: Pair) -> None:
    """Seen: ``top`` showed 15 answers outstanding long after the pair had become whole again."""
    assert pair.ledger.outstanding() == 0
    for number, expected in ((1, 1), (2, 2)):
        pair.write(number, 8 * number)
        assert pair.ledger.outstanding() == expected
    pair.ack(1, 8)
    assert pair.ledger.outstanding() == 1
    pair.close("data", S)
    pair.close("meta", S)
    pair.wait(20)
    assert pair.ledger.outstanding() == 0
    pair.connect()
    pair.write(3, 24)
    assert pair.ledger.outstanding() == 1


def test_resync_reconnect_and_an_ordered_goodbye_give_no_trigger(pair: Pair) -> None:
    pair.epoch(1, 3)
    pair.send(
        "data",
        P,
        h100(RS_DATA_REPLY, struct.pack(">Q8sII", 8, SYNCER, 0, 0) + b"bad!" + bytes(512)),
    )
    pair.send("meta", S, p_ack(0, 8, cmd=RS_WRITE_ACK, block_id=SYNCER))
    pair.send("data", P, p_data(50, 8, bytes(512), flags=0x106))
    pair.send("meta", S, p_ack(50, 8, cmd=RS_WRITE_ACK))
    pair.write(51, 16)
    pair.send("data", P, h100(CONN_ST_CHG_REQ, struct.pack(">II", 0x1F0, 1 << 4)))
    pair.close("data", P)
    pair.close("meta", P)
    pair.wait(20)
    pair.connect()
    pair.epoch(1, 3)
    pair.wait(3000)
    assert pair.hits == []


def test_flipped_bit_behind_the_digest(pair: Pair) -> None:
    data = bytearray(bytes(range(256)) * 8)
    digest = struct.pack("<I", crc32c.crc32c(data))
    data[1022] ^= 1 << 3
    pair.wait(10)
    pair.send("data", P, p_data(7, 89600, bytes(data), digest=digest))
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.source) == ("digest-mismatch", "primary", "link")
    assert (trigger.sector, trigger.block_id) == (89600, "0xffff888000000007")
    wire = f"{crc32c.crc32c(bytes(range(256)) * 8):08x} on the wire, {crc32c.crc32c(data):08x} computed"
    assert trigger.detail == (
        f"sector 89600 + 2048 bytes, block_id 0xffff888000000007, digest {wire}; bit 3 of byte 1022"
    )
    assert trigger.t_arrival_ns == 10 * NS_PER_MS
    assert trigger.instruct == ["primary", "secondary"]


def test_other_digest_algorithms() -> None:
    import hashlib

    pair = Pair()
    pair.connect("sha1")
    data = bytes(1024)
    pair.send("data", P, p_data(1, 8, data, digest=hashlib.sha1(data).digest()))
    pair.ack(1, 8, 1024)
    assert pair.hits == []
    pair.send("data", P, p_data(2, 8, data, digest=bytes(20)))
    assert pair.hits == ["digest-mismatch"]
    assert f"sha1 digest {'00' * 20} on the wire" in pair.triggers[0].detail


def test_without_an_algorithm_nothing_is_checked() -> None:
    pair = Pair(integrity_alg="crc32c")
    pair.connect("")
    pair.send("data", P, p_data(1, 8, bytes(512), digest=b""))
    pair.ack(1, 8)
    pair.wait(2000)
    assert pair.hits == []
    assert pair.ledger.totals.digests_checked == 0


def test_negative_acknowledgement(pair: Pair) -> None:
    pair.write(1, 8)
    pair.send("meta", S, p_ack(1, 8, cmd=NEG_ACK))
    pair.wait(3000)
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.sector) == ("neg-ack", "secondary", 8)


def test_late_acknowledgement() -> None:
    pair = Pair([LinkRule(name="slow", event="late-ack", deadline_ms=50)])
    pair.connect()
    pair.write(1, 8)
    pair.wait(50)
    pair.ack(1, 8)
    pair.write(2, 16)
    pair.wait(50.5)
    pair.ack(2, 16)
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.sector) == ("slow", "secondary", 16)
    assert "acknowledged after 50.500 ms, 50 ms allowed" in trigger.detail


def test_missing_acknowledgement_is_told_once_and_its_late_arrival_not_at_all() -> None:
    pair = Pair(
        [
            LinkRule(name="lost", event="missing-ack", deadline_ms=200),
            LinkRule(name="late", event="late-ack"),
        ]
    )
    pair.connect()
    pair.write(1, 8)
    pair.write(2, 16)
    pair.ack(2, 16)
    assert pair.link_rules.next_deadline() == 200 * NS_PER_MS
    pair.wait(199)
    assert pair.hits == []
    pair.wait(1)
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.sector) == ("lost", "secondary", 8)
    assert trigger.t_match_ns == 200 * NS_PER_MS
    assert pair.link_rules.next_deadline() is None
    pair.wait(2000)
    pair.ack(1, 8)
    assert pair.hits == ["lost"]


def test_repeated_acknowledgement(pair: Pair) -> None:
    pair.write(1, 8)
    pair.ack(1, 8)
    pair.wait(5)
    pair.ack(1, 8)
    pair.wait(99)
    assert pair.hits == []
    pair.wait(1)
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.sector) == ("repeated-ack", "secondary", 8)
    assert "first 5.000 ms before" in trigger.detail


@pytest.mark.parametrize("hole", [False, True])
def test_a_repeated_acknowledgement_in_a_session_that_stood_before_the_capture(hole: bool) -> None:
    """No greeting and no barrier was seen, but the write was, and none since: it is certain. After a
    hole a write with the same id may have gone unseen: it is not."""
    pair = Pair(integrity_alg="crc32c")
    pair.open("data", from_start=False)
    pair.open("meta", from_start=False)
    for number in range(1, 5):  # what is found by looking is tentative at first
        pair.write(number, 8 * number)
        pair.ack(number, 8 * number)
    pair.wait(5)
    if hole:
        pair.gap("data", P)
    pair.ack(4, 32)
    pair.ack(9, 72)  # of a write from before the capture, for all that is known
    pair.wait(500)
    assert pair.hits == ([] if hole else ["repeated-ack"])


def test_a_block_id_may_be_used_again(pair: Pair) -> None:
    for _ in range(3):
        pair.write(1, 8)
        pair.ack(1, 8)
    pair.wait(500)
    assert pair.hits == []


def test_unknown_acknowledgement(pair: Pair) -> None:
    pair.write(1, 8)
    pair.send("meta", S, p_ack(1, 16), p_ack(2, 8))
    pair.ack(1, 8)
    pair.wait(500)
    assert pair.hits == ["unknown-ack", "unknown-ack"]
    assert {t.sector for t in pair.triggers} == {8, 16}


@pytest.mark.parametrize("told", [1, 3, 0, 0xFFFFFFFF])
def test_wrong_barrier_count(pair: Pair, told: int) -> None:
    for number in (1, 2):
        pair.write(number, 8 * number)
        pair.ack(number, 8 * number)
    pair.send("data", P, p_barrier(77))
    pair.send("meta", S, p_barrier_ack(77, told))
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side) == ("barrier-count", "secondary")
    assert trigger.detail == f"barrier 0x4d acknowledges {told} writes, its epoch had 2"


@pytest.mark.parametrize("wrong", [0, 1])
def test_with_two_primaries_each_end_counts_its_own_writes(pair: Pair, wrong: int) -> None:
    """Their epochs overlap, and their barriers may have the same number."""
    for epoch in range(1, 9):
        for number in range(1, 4):
            pair.write(number, 8 * number)
            pair.ack(number, 8 * number)
        pair.send("data", S, p_data(100, 800, bytes(512)))
        pair.send("meta", P, p_ack(100, 800))
        pair.send("data", P, p_barrier(epoch))
        pair.send("data", S, p_barrier(epoch))
        pair.send("meta", P, p_barrier_ack(epoch, 1 + wrong * (epoch == 5)))
        pair.send("meta", S, p_barrier_ack(epoch, 3))
    pair.wait(2000)
    assert [one.detail for one in pair.triggers] == wrong * [
        "barrier 0x5 acknowledges 2 writes, its epoch had 1"
    ]
    assert {one.side for one in pair.triggers} <= {"primary"}


def test_skipped_and_unknown_barriers(pair: Pair) -> None:
    pair.send("data", P, p_barrier(1), p_barrier(2))
    pair.send("meta", S, p_barrier_ack(2, 0))
    assert pair.hits == ["barrier-count"]
    assert "0x1 was skipped" in pair.triggers[0].detail
    pair.send("meta", S, p_barrier_ack(9, 0))
    pair.wait(200)
    assert "barrier 0x9 is not open" in pair.triggers[1].detail


def test_acknowledgements_behind_their_barrier_are_no_error(pair: Pair) -> None:
    pair.write(1, 8)
    pair.send("data", P, p_barrier(1))
    pair.write(2, 16)
    pair.ack(1, 8)
    pair.send("meta", S, p_barrier_ack(1, 1))
    pair.ack(2, 16)
    pair.wait(2000)
    assert pair.hits == []


def test_close_with_open_writes_replaces_their_deadlines(pair: Pair) -> None:
    for number in (1, 2, 3):
        pair.write(number, 8 * number)
    pair.ack(2, 16)
    pair.close("data", S)
    pair.send("meta", S, p_ack(3, 24))  # was under way
    pair.close("meta", S, "rst")
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side, trigger.sector) == ("unacked-close", "secondary", 8)
    assert "closed by 10.77.0.2 (rst) with 1 unacknowledged writes" in trigger.detail
    pair.wait(3000)
    assert pair.hits == ["unacked-close"]


def test_a_new_connection_ends_a_session_whose_meta_close_was_not_seen(pair: Pair) -> None:
    pair.write(1, 8)
    pair.close("data", S)
    pair.connect()
    pair.epoch(1, 2)
    pair.wait(3000)
    assert pair.hits == ["unacked-close"]


def test_malformed(pair: Pair) -> None:
    pair.send("meta", S, b"\x86\x20\xec\x21" + bytes(30))
    (trigger,) = pair.triggers
    assert (trigger.rule, trigger.side) == ("malformed", "secondary")
    pair = Pair()
    pair.connect()
    pair.send("data", P, h100(0x16, bytes(24)))
    assert pair.triggers[0].detail.startswith("P_WRITE_ACK on the data socket")
    pair = Pair()
    pair.connect()
    pair.send("data", P, p_data(1, 8, bytes(511)))
    assert "not whole sectors" in pair.triggers[0].detail


# --- holes in the capture -----------------------------------------------------------------------------------------
def test_a_gap_in_the_writes_makes_counts_and_strays_unknown_until_a_barrier_came_round(
    pair: Pair,
) -> None:
    pair.epoch(1, 2)
    pair.write(10, 80)
    pair.gap("data", P)
    pair.send("data", P, h100(PING))
    pair.write(13, 104)
    pair.ack(13, 104)  # which proves that what was found after the hole is the link
    pair.send("data", P, p_barrier(5))
    pair.ack(10, 80)
    pair.ack(11, 88)  # its write is in the gap
    pair.send("meta", S, p_barrier_ack(5, 2))
    pair.wait(2000)
    assert pair.hits == []
    pair.ack(12, 96)
    pair.wait(200)
    assert pair.hits == ["unknown-ack"]


def test_a_gap_told_after_the_stray_acknowledgement_explains_it(pair: Pair) -> None:
    pair.ack(1, 8)
    pair.wait(60)
    pair.gap("data", P)
    pair.wait(2000)
    assert pair.hits == []


def test_a_gap_in_the_acknowledgements_makes_silence_unknown(pair: Pair) -> None:
    pair.write(1, 8)
    pair.send("data", P, p_barrier(1))
    pair.gap("meta", S)
    pair.wait(3000)
    pair.close("data", S)
    pair.close("meta", S)
    assert pair.hits == []


def test_frames_lost_by_the_kernel_make_silence_unknown(pair: Pair) -> None:
    pair.write(1, 8)
    pair.ledger.frames_lost(pair.now_ns)
    pair.ack(9, 72)
    pair.wait(3000)
    assert pair.hits == []


def test_capture_begun_mid_stream() -> None:
    pair = Pair(integrity_alg="crc32c")
    pair.open("data", from_start=False)
    pair.open("meta", from_start=False)
    pair.send("meta", S, p_ack(1, 8), p_barrier_ack(1, 9))
    pair.send("data", P, p_barrier(2))
    pair.write(3, 24)
    pair.ack(3, 24)
    pair.send("meta", S, p_barrier_ack(2, 5))
    pair.wait(3000)
    assert pair.hits == []
    pair.send("data", P, p_data(4, 8, bytes(512), digest=b"oops"))
    assert pair.hits == ["digest-mismatch"]


def test_protocol_a_and_b() -> None:
    pair = Pair()
    pair.connect(wire=1)
    pair.send("data", P, p_data(1, 8, bytes(512), flags=2), p_barrier(1))
    pair.send("meta", S, p_barrier_ack(1, 1))
    pair.wait(3000)
    pair.send("data", P, p_data(2, 8, bytes(512), flags=0x80))
    pair.send("meta", S, p_ack(2, 8, cmd=RECV_ACK))
    pair.send("meta", S, p_ack(2, 8))
    pair.wait(3000)
    assert pair.hits == []


# --- limits and mistakes ------------------------------------------------------------------------------------------
def test_a_burst_of_hits_is_counted_not_told(pair: Pair) -> None:
    for number in range(40):
        pair.send("data", P, p_data(number, 8, bytes(512), digest=b"oops"))
    assert len(pair.triggers) == 16
    assert pair.link_rules.suppressed == 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"event": "lost-ack"}, "digest-mismatch, broken-stamp"),
        ({"event": "neg-ack", "deadline_ms": 5}, "late-ack and missing-ack only"),
        ({"event": "late-ack", "deadline_ms": -1}, "1 to"),
        ({"event": "late-ack", "instruct": ("both",)}, "primary, secondary"),
    ],
)
def test_a_wrong_rule_says_what_is_allowed(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LinkRule(name="r", **arguments)  # type: ignore[arg-type]


# --- real captures ------------------------------------------------------------------------------------------------
def watch(capture: str, integrity_alg: str = "") -> tuple[LinkView, list[Trigger]]:
    ends = LinkEnds(
        primary_address="10.99.0.1",
        secondary_address="10.99.0.2",
        ports=frozenset({7788}),
        integrity_alg=integrity_alg,
    )
    view = LinkView(ends, [LinkRule(name=event, event=event) for event in EVENTS])
    triggers, t_ns = [], 0
    for number, frame in enumerate(read_frames(GOLDEN / capture), 1):
        t_ns = frame.t_ns
        triggers += view.tick(t_ns)
        triggers += view.feed(t_ns, frame.data, number, t_ns)
    return view, triggers + view.close(t_ns)


def test_a_real_handshake_gives_no_trigger() -> None:
    _, triggers = watch("small-handshake.pcap")
    assert triggers == []


def test_a_real_digest_failure_is_found_with_its_bit() -> None:
    view, triggers = watch("small-failure.pcap", "crc32c")
    assert [(t.rule, t.side, t.offset_bytes, t.sector) for t in triggers] == [
        ("digest-mismatch", "primary", 48, 89600),
        ("unacked-close", "secondary", 53, 89600),
    ]
    assert triggers[0].detail == (
        "sector 89600 + 65536 bytes, block_id 0xffff88800846c1c0, "
        "digest 7d7119e2 on the wire, 245fc9ed computed; bit 4 of byte 680"
    )
    assert view.ledger.totals.digests_checked == 1


def test_cookie_helper_is_what_linux_sends() -> None:
    assert cookie(0x846C1C0) == bytes.fromhex("c0c14608 8088ffff".replace(" ", ""))
