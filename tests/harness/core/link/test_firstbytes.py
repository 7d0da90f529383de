"""The first bytes of a connection on a mirror's port. Between two named addresses they are the pair's, and what
is wrong with them is an error; without named addresses they may be anybody's. Captures of real mirrors."""

import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import msgspec
import mutations
import pytest
from link_mutations import GOLDEN, Base, Mutation, carried, read_capture, unsummed

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.messages import Answer, LinkMessage, Malformed, ReplicatedWrite
from freezeframe.harness.core.link.protocol import Direction, LinkOptions, Opening
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


FORMATS = {
    "length of 32 bits": lambda rnd, body: (
        struct.pack(">I", len(body) + rnd.choice((0, 4, 8))) + body
    ),
    "length of 32 bits, little-endian": lambda rnd, body: struct.pack("<I", len(body)) + body,
    "length of 16 bits": lambda rnd, body: struct.pack(">H", len(body)) + body,
    "type, length of 24 bits": lambda rnd, body: (
        struct.pack(">I", rnd.randrange(16) << 24 | len(body)) + body
    ),
    "type, flags, length": lambda rnd, body: (
        struct.pack(">BBH", rnd.randrange(8), rnd.choice((0, 64, 128, 192)), len(body)) + body
    ),
    "TLS records": lambda rnd, body: (
        struct.pack(">BHH", 22, 0x301, len(body)) + rnd.randbytes(len(body))
    ),
    "zeros": lambda rnd, body: bytes(len(body)),
    "text": lambda rnd, body: rnd.choice(
        (b"GET / HTTP/1.0\r\n\r\n", b"\r\n", b"SSH-2.0-x\r\n", b"220 hello\r\n")
    ),
}
"""What strangers begin with."""
STREAMS = 400


@pytest.mark.parametrize("are_named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("name", ["drbd", "nvme_tcp", "iscsi", "nbd"])
def test_another_protocol_on_the_port_accuses_nobody(name: str, are_named: bool) -> None:
    """Also where what it begins with could be the protocol's first bytes, and also between the pair's own
    addresses: a wrong port in the bench file, or an encrypted link."""
    for seed in range(STREAMS):
        rnd = random.Random(seed)
        accusations = [one for one in stranger(name, rnd, are_named) if isinstance(one, Malformed)]
        assert accusations == [], f"seed {seed}"


def stranger(name: str, rnd: random.Random, are_named: bool) -> Iterator[LinkMessage]:
    """What a connection says, on which both ends, or one, speak a protocol of somebody else."""
    make = byname.find(name)
    port = make(LinkOptions()).ports[0]
    addresses = (PRIMARY, SECONDARY) if are_named else ("", "")
    link = make(
        LinkOptions(must_match=True, primary_address=addresses[0], secondary_address=addresses[1])
    )
    write = rnd.choice(list(FORMATS.values()))
    both: list[Direction] = []
    for flow, ends in enumerate(
        [(PRIMARY, 40_000, SECONDARY, port), (SECONDARY, port, PRIMARY, 40_000)]
    ):
        direction = link.connection(
            Opening(
                flow=flow,
                connection=1,
                source=ends[0],
                source_port=ends[1],
                destination=ends[2],
                destination_port=ends[3],
                from_start=True,
                opener=flow == 0,
                t_ns=0,
                packet_no=1,
                ports=frozenset({port}),
            )
        )
        assert direction is not None
        both.append(direction)
        yield from direction.begin()
    packet_no = 0
    for direction in rnd.sample(both, k=rnd.choice((1, 2))):
        data = b"".join(write(rnd, small_numbers(rnd)) for _ in range(rnd.randint(1, 8)))
        piece_bytes = rnd.choice((1, 4, 48, 1500))
        for at in range(0, len(data), piece_bytes):
            packet_no += 1
            yield from direction.feed(data[at : at + piece_bytes], packet_no * 1000, packet_no)


def small_numbers(rnd: random.Random) -> bytes:
    return bytes(
        rnd.choice((rnd.randrange(256), rnd.randrange(4), 0)) for _ in range(rnd.randint(0, 120))
    )
