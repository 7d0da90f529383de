"""The first bytes of a connection on a mirror's port. Between two named addresses they are the pair's, and what
is wrong with them is an error; without named addresses they may be anybody's. Captures of real mirrors."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import msgspec
import mutations
import pytest
from link_mutations import GOLDEN, Base, Mutation, carried, read_capture, unsummed

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.messages import Answer, Malformed, ReplicatedWrite
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamData, StreamEvent

PRIMARY, SECONDARY = "10.99.0.1", "10.99.0.2"
NAMES = {
    "nvme-clean": ("nvme_tcp", 4420),
    "iscsi-clean": ("iscsi", 3260),
    "iscsi-nodigest": ("iscsi", 3260),
    "nbd-clean": ("nbd", 10809),
}
HEADER_BYTES = 48
"""What comes after is text, or reserved."""


@cache
def mirror(name: str) -> Base:
    frames = read_capture(GOLDEN / "mirrors" / f"{name}.pcap.gz")
    return Base(name, frames, *NAMES[name], PRIMARY, SECONDARY)


@cache
def stream_events(name: str) -> tuple[StreamEvent, ...]:
    base = mirror(name)
    reassembler, found = Reassembler(ports=frozenset({base.port})), []
    for number, frame in enumerate(base.frames, 1):
        for event in reassembler.feed(frame.t_ns, frame.data, number):
            if isinstance(event, StreamData):
                event = msgspec.structs.replace(event, data=bytes(event.data))
            found.append(event)
    return tuple(found)


def opening(name: str) -> int:
    """Index of the event with the first bytes of the initiator, of the connection that carries the writes."""
    found: dict[int, int] = {}
    for at, event in enumerate(stream_events(name)):
        if isinstance(event, StreamData) and event.flow.source == PRIMARY:
            found.setdefault(event.flow.connection, at)
    return max(found.values())


def seen(name: str, at: int, bit: int | None) -> tuple[int, int, int]:
    """(malformed, writes, answers), with that bit of the event flipped."""
    protocol = byname.find(NAMES[name][0])
    options = LinkOptions(primary_address=PRIMARY, secondary_address=SECONDARY, must_match=True)
    follower, counts = Follower(protocol(options)), [0, 0, 0]
    for number, event in enumerate(stream_events(name)):
        if number == at and bit is not None:
            assert isinstance(event, StreamData)
            data = bytearray(event.data)
            data[bit // 8] ^= 1 << bit % 8
            event = msgspec.structs.replace(event, data=bytes(data))
        for message in follower.on(event):
            for place, kind in enumerate((Malformed, ReplicatedWrite, Answer)):
                counts[place] += isinstance(message, kind)
    return counts[0], counts[1], counts[2]


@pytest.mark.parametrize("name", NAMES)
def test_each_flipped_bit_of_the_first_pdu_is_an_error_or_hides_nothing(name: str) -> None:
    at, lost = opening(name), []
    event, whole = stream_events(name)[at], seen(name, at, None)
    assert isinstance(event, StreamData)
    assert whole[0] == 0 and whole[1] == whole[2] > 0
    for bit in range(min(len(event.data), HEADER_BYTES) * 8):
        found = seen(name, at, bit)
        if not found[0] and found != whole:
            lost.append((bit, found))
    assert lost == []


def flipped(base: Base, bit: int) -> Iterator[Mutation]:
    """The capture with that bit of the first bytes to the port flipped, one connection at a time."""
    done = set()
    for index, frame in enumerate(base.frames):
        ports, at = carried(frame)
        if at is None or ports[1] != base.port or ports in done:
            continue
        done.add(ports)
        data = bytearray(frame.data)
        data[at + bit // 8] ^= 1 << bit % 8
        frames = list(base.frames)
        frames[index] = frame._replace(data=unsummed(bytes(data)))
        yield Mutation("", frames)


@pytest.mark.parametrize(("name", "bit"), [("nvme-clean", 1), ("iscsi-clean", 2), ("nbd-clean", 1)])
def test_a_wrong_first_byte_is_hit_between_named_addresses_and_a_strangers_without(
    name: str, bit: int
) -> None:
    named = mirror(name)
    unnamed = replace(named, primary="", secondary="")
    whole = Mutation("", list(named.frames))
    for mutation in flipped(named, bit):
        for judge in (mutations.watched, mutations.imported):
            found = judge(named, mutation)
            assert "malformed" in {one.rule for one in found.hits}
            assert found.counts[0] == judge(named, whole).counts[0], "the writes are still seen"
            assert judge(unnamed, mutation).hits == []
