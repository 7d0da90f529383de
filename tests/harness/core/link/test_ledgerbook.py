"""Two primaries: what the capture lacks of one end's writes says nothing about those of the other. A healthy pair is
never hit, wherever a hole is; the other end is judged all the same, and the one with the hole once its barrier has
come round."""

import random
from collections.abc import Collection, Iterator

import pytest
from link_script import P, Pair, S, p_ack, p_barrier, p_barrier_ack, p_data

from freezeframe.harness.core.link.ledgerbook import EXCERPT_BYTES, excerpt
from freezeframe.harness.core.link.messages import LinkSession, ReplicatedWrite, WritePart

Step = tuple[str, str, bytes]
"""(socket, sender, packet)."""
OTHER = {P: S, S: P}
STREAMS = [("data", P), ("data", S), ("meta", P), ("meta", S)]
FIRST_SECTOR = {P: 0, S: 100_000}


def one_end(rnd: random.Random, sender: str, epochs: int) -> Iterator[list[Step]]:
    """Its writes and barriers and the answers to them; the steps of a list may come later than what the
    next lists begin with, in their order."""
    number = 0
    for epoch in range(1, epochs + 1):
        answers: list[Step] = []
        writes = rnd.randrange(1, 5)
        for _ in range(writes):
            number += 1
            # Ids are pointers: they are used again, and differ between the ends.
            name, sector = number % 5 + 10 * (sender == S), FIRST_SECTOR[sender] + number % 7 * 8
            yield [("data", sender, p_data(name, sector, bytes([number % 251]) * 512))]
            answers.append(("meta", OTHER[sender], p_ack(name, sector)))
            if rnd.random() < 0.5:
                yield [answers.pop(0)]
        yield [("data", sender, p_barrier(epoch)), *answers]
        yield [("meta", OTHER[sender], p_barrier_ack(epoch, writes))]


def healthy(seed: int, epochs: int = 6) -> list[Step]:
    """Both ends write at once; their epochs overlap."""
    rnd = random.Random(seed)
    waiting = [[one for group in one_end(rnd, end, epochs) for one in group] for end in (P, S)]
    steps = []
    while any(waiting):
        steps.append(rnd.choice([one for one in waiting if one]).pop(0))
    return steps


def play(steps: list[Step], lost: Collection[int] = ()) -> Pair:
    """The pair, after all was seen but the ``lost`` steps: a hole is known when its stream goes on."""
    pair, holes = Pair(), dict.fromkeys(STREAMS, 0)
    pair.connect()
    for number, (socket, sender, packet) in enumerate(steps):
        if number in lost:
            holes[socket, sender] += len(packet)
        else:
            if holes[socket, sender]:
                pair.gap(socket, sender, holes[socket, sender])
                holes[socket, sender] = 0
            pair.send(socket, sender, packet)
        pair.wait(1)
    pair.wait(500)
    assert not any(holes.values())
    return pair


def of_stream(steps: list[Step], stream: tuple[str, str]) -> list[int]:
    return [number for number, step in enumerate(steps) if step[:2] == stream]


def ended(steps: list[Step], seed: int) -> list[Step]:
    """With an exchange of both ends that no hole touches: a hole shows when its stream goes on."""
    tail = [
        step
        for end, other in OTHER.items()
        for step in (
            ("data", end, p_data(77 + (end == S), FIRST_SECTOR[end] + 999, bytes(512))),
            ("meta", other, p_ack(77 + (end == S), FIRST_SECTOR[end] + 999)),
            ("data", end, p_barrier(1000 + seed)),
            ("meta", other, p_barrier_ack(1000 + seed, 1)),
        )
    ]
    return [*steps, *tail]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", range(3))
def test_a_hole_at_any_place_of_any_stream_accuses_nobody(
    seed: int, stream: tuple[str, str]
) -> None:
    steps = healthy(seed)
    whole = ended(steps, seed)
    assert [one.detail for one in play(whole).triggers] == []
    places = of_stream(steps, stream)
    for length in (1, 2, 5, 9):
        for at in range(len(places) - length + 1):
            hits = [one.detail for one in play(whole, set(places[at : at + length])).triggers]
            assert hits == [], f"{length} packets from step {places[at]}"


@pytest.mark.parametrize("seed", range(40))
def test_holes_in_several_streams_accuse_nobody(seed: int) -> None:
    steps, rnd = healthy(seed), random.Random(seed)
    lost: set[int] = set()
    for _ in range(rnd.randrange(2, 5)):
        places = of_stream(steps, rnd.choice(STREAMS))
        at = rnd.randrange(len(places))
        lost |= set(places[at : at + rnd.randrange(1, 8)])
    assert [one.detail for one in play(ended(steps, seed), lost).triggers] == []


def wrongly_counted(steps: list[Step], sender: str) -> list[Step]:
    """With a barrier of that end answered with one write too many."""
    wrong = [("data", sender, p_barrier(500)), ("meta", OTHER[sender], p_barrier_ack(500, 1))]
    return [*steps, *wrong]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("holed", [P, S])
def test_after_a_hole_the_other_end_is_judged_and_the_same_one_after_a_barrier(
    seed: int, holed: str
) -> None:
    steps = healthy(seed)
    places = of_stream(steps, ("data", holed))
    at = random.Random(seed).randrange(len(places) - 4)
    for sender in (P, S):
        hits = [
            one.detail
            for one in play(
                wrongly_counted(ended(steps, seed), sender), set(places[at : at + 3])
            ).triggers
        ]
        assert hits == ["barrier 0x1f4 acknowledges 1 writes, its epoch had 0"]


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_to_no_write_is_found_once_the_barrier_has_come_round(seed: int) -> None:
    """Also where the answer to the first barrier after the hole was not captured either."""
    steps = healthy(seed)
    places, answers = of_stream(steps, ("data", P)), of_stream(steps, ("meta", S))
    lost = set(places[3:5])
    first = next(
        one for one in answers if one > places[5] and steps[one][2][:8] == p_barrier_ack(1, 1)[:8]
    )
    stray = ("meta", S, p_ack(99, 12_345))
    for also in (set(), {first}):
        hits = [one.rule for one in play([*ended(steps, seed), stray], lost | also).triggers]
        assert hits == ["unknown-ack"]


def test_an_excerpt_is_a_write_as_on_the_wire_and_of_a_part_its_data() -> None:
    session = LinkSession(1, ("10.0.0.1", "10.0.0.2"), 7788, 0)
    head, data = b"header and digest", bytes(range(200))
    where = (session, "10.0.0.1", "P_DATA", 1, 1, 0, 16, False)
    whole = ReplicatedWrite(*where, "key", b"id", "write", 0, 0, 200, data, head + data, 1, 1, True)
    assert excerpt(whole) == (head + data)[:EXCERPT_BYTES]
    assert excerpt(WritePart(*where, "key", 0, memoryview(data))) == data[:EXCERPT_BYTES]


@pytest.mark.parametrize(("answers_after", "hits"), [(0, []), (1, ["repeated-ack"])])
def test_an_answer_that_was_captured_before_its_write_answers_it_once(
    answers_after: int, hits: list[str]
) -> None:
    pair = Pair()
    pair.connect()
    pair.epoch(1, 2)
    pair.wait(3)
    pair.ack(7, 64)
    pair.write(7, 64)
    pair.wait(1)
    for _ in range(answers_after):
        pair.ack(7, 64)
    pair.wait(200)
    assert pair.hits == hits
