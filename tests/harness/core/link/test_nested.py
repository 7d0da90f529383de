"""A healthy pair whose host writes what looks like the protocol itself: a capture of a mirror, copied onto the
mirror. Wherever the reader begins or has a hole, nobody is accused, and the pair is understood again; and what a
device says that is no message is found."""

import random

import pytest
from nested_link import PROTOCOLS, Case, Drbd, NestedPair, Reader, greetings, play

SEEDS = range(40)
UNDERSTOOD = 0.5
"""Of the writes, at least, in captures with up to two holes of up to 80 exchanges."""


def case(protocol: str, seed: int) -> Case:
    rnd = random.Random(seed)
    return Case(
        protocol, seed, header_digest=rnd.random() < 0.3, data_digest=rnd.random() < 0.4,
        small_numbers=rnd.random() < 0.5, begins_late=rnd.random() < 0.6,
    )  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_healthy_pair_is_accused_of_nothing(protocol: str) -> None:
    writes = answers = holes = 0
    for seed in SEEDS:
        heard = play(case(protocol, seed))
        assert [(one.rule, one.detail) for one in heard.hits] == [], case(protocol, seed)
        writes, answers, holes = (
            writes + heard.writes, answers + heard.answers, holes + heard.holes,
        )  # fmt: skip
    assert holes >= len(SEEDS) and answers >= UNDERSTOOD * writes > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_message_are_found_in_a_stream_that_was_followed(protocol: str) -> None:
    for seed in SEEDS:
        heard = play(case(protocol, seed), exchanges=5, spoil=True)
        assert {one.rule for one in heard.hits} == {"malformed"}, case(protocol, seed)
        assert len(heard.hits) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_message_are_found_after_a_late_start_that_was_proved(
    protocol: str,
) -> None:
    for seed in SEEDS[:12]:
        heard = play(case(protocol, seed), spoil_late=True)
        assert "malformed" in {one.rule for one in heard.hits}, case(protocol, seed)


@pytest.mark.parametrize("lost", ["a write", "an answer", "both"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_after_a_hole_in_either_direction_the_pair_is_understood_again(
    protocol: str, lost: str
) -> None:
    """Seen: one lost write of an iSCSI or NVMe/TCP connection, whose answers were followed all along, and nothing of
    it was judged any more."""
    quiet = Case(protocol, 1, False, False, False, False)
    pair, reader = NestedPair(quiet), followed(quiet)
    pair.kinds = ["random"]
    for number in range(60):
        for flow, data in pair.exchange():
            is_lost = lost == "both" or (flow == 0) is (lost == "a write")
            if number == 10 and is_lost:
                reader.gap(flow, len(data))
            else:
                reader.send(flow, data)
    reader.send(0, b"\xfe\xfe\xfe" + random.Random(1).randbytes(60))
    assert [one.rule for one in reader.finish().hits] == ["malformed"]


@pytest.mark.parametrize("integrity", [False, True])
def test_an_answer_to_a_write_of_before_a_hole_proves_nothing_of_what_follows_it(
    integrity: bool,
) -> None:
    rnd = random.Random(3)
    reader, pair = (
        followed(Case("drbd", 1, False, integrity, False, False)),
        Drbd(False, integrity, 70_000, 5),
    )
    inner = Drbd(False, integrity, 1 << 20, 9)
    under_way, its_answer = pair.write(rnd.randbytes(4096)), pair.answer()
    recording = bytes(1024) + b"".join(inner.write(rnd.randbytes(512)) for _ in range(12))
    cut = pair.write(recording[: len(recording) // 512 * 512])
    reader.send(0, under_way)
    reader.gap(0, 1000)
    reader.send(2, its_answer)
    reader.send(0, cut[1000:])
    reader.send(2, pair.answer())
    for _ in range(60):
        reader.send(0, pair.write(rnd.randbytes(4096)))
        reader.send(2, pair.answer())
    assert reader.finish().hits == []


def followed(case: Case) -> Reader:
    """From its start, and greeted."""
    reader = Reader(case.protocol, NestedPair(case).port)
    for flow in range(4 if case.protocol == "drbd" else 2):
        reader.open(flow, from_start=True)
    for flow, data in greetings(case):
        reader.send(flow, data)
    return reader
