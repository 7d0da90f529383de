"""iSCSI after a hole of any length: no end stays unseen, and nobody is accused. The PDUs are written from RFC 7143;
captures of real mirrors are in ``test_pdus.py``."""

import random
import struct
from dataclasses import dataclass, field

import crc32c
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.link.iscsi import IscsiLink
from freezeframe.harness.core.link.messages import (
    Answer,
    Hole,
    LinkMessage,
    Malformed,
    Message,
    ReplicatedWrite,
)
from freezeframe.harness.core.link.pdus import PduDirection
from freezeframe.harness.core.link.protocol import LinkOptions, Opening

INITIATOR, TARGET = "10.0.0.1", "10.0.0.2"
BLOCK_BYTES = 512
BEFORE, AFTER = 12, 30
BHS_BYTES = 48
WAITED_BYTES = 1 << 18
"""At most, for what looks like the header of a long PDU after a hole."""
UNDERSTOOD = 8
"""Commands after a hole until the direction is understood: two that prove each other, four whose answers prove
both ends, and what is damaged at the end of the hole."""
ANY_HOLE = st.integers(0, 33).map(lambda power: 2**power) | st.integers(1, 1 << 33)


@dataclass
class Mirror:
    """Both ends of a connection that is captured from its middle."""

    has_digests: bool
    command_sn: int = 100
    status_sn: int = 7000
    packet_no: int = 1
    seen: list[LinkMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        link = IscsiLink(
            LinkOptions(primary_address=INITIATOR, secondary_address=TARGET, must_match=True)
        )
        self.rnd = random.Random(5)
        self.initiator = self.direction(link, 0, (INITIATOR, 40000, TARGET, 3260))
        self.target = self.direction(link, 1, (TARGET, 3260, INITIATOR, 40000))

    def direction(
        self, link: IscsiLink, flow: int, ends: tuple[str, int, str, int]
    ) -> PduDirection:
        made = link.connection(
            Opening(
                flow=flow, connection=1, source=ends[0], source_port=ends[1], destination=ends[2],
                destination_port=ends[3], from_start=False, opener=False, t_ns=0, packet_no=1,
            )
        )  # fmt: skip
        assert made is not None
        return made

    def pdu(self, header: bytes, data: bytes = b"") -> bytes:
        header = header[:5] + len(data).to_bytes(3, "big") + header[8:]
        parts = [header, data] if data else [header]
        if self.has_digests:
            parts = [one + struct.pack("<I", crc32c.crc32c(one)) for one in parts]
        return b"".join(parts)

    def command(self) -> bytes:
        """A write of one block with its data."""
        self.command_sn += 1
        cdb = struct.pack(">BBIBHB6x", 0x2A, 0, self.command_sn % 1000, 0, 1, 0)
        head = struct.pack(
            ">BB6x8xIIII", 0x01, 0xA0, self.command_sn % 2**32, BLOCK_BYTES,
            self.command_sn % 2**32, self.status_sn % 2**32,
        )  # fmt: skip
        return self.pdu(head + cdb, self.rnd.randbytes(BLOCK_BYTES))

    def data_out(self, older: int) -> bytes:
        """As Linux sends it: with what was expected when its R2T came."""
        numbers = (0xFFFF0000, 0xFFFF0000, 0, (self.status_sn - older) % 2**32)
        return self.pdu(struct.pack(">BB6x8xIIII16x", 0x05, 0x80, *numbers), bytes(BLOCK_BYTES))

    def response(self) -> bytes:
        self.status_sn += 1
        numbers = (
            self.command_sn % 2**32,
            0,
            self.status_sn % 2**32,
            (self.command_sn + 1) % 2**32,
        )
        return self.pdu(struct.pack(">BB6x8xIIII16x", 0x21, 0x80, *numbers))

    def feed(self, end: PduDirection, data: bytes) -> None:
        self.packet_no += 1
        self.seen += end.feed(data, self.packet_no, self.packet_no)

    def exchange(self, count: int) -> list[LinkMessage]:
        """What is understood of so many writes."""
        self.seen.clear()
        for _ in range(count):
            self.feed(self.initiator, self.command())
            self.feed(self.target, self.response())
        return [one for one in self.seen if not getattr(one, "tentative", False)]

    def await_understanding(self) -> None:
        """Go on until all is understood. What looks like a header may first be waited for."""
        for _ in range(WAITED_BYTES // AFTER // BHS_BYTES + 2):
            found = counts(self.exchange(AFTER))
            assert found[0] == 0
            if found == (0, AFTER, AFTER):
                break
        assert counts(self.exchange(AFTER)) == (0, AFTER, AFTER)

    def miss(self, ends: str, commands: int, rest_bytes: int) -> None:
        """So many commands pass in a hole; ``ends``: of which directions. The last PDU is cut."""
        command, response = self.command(), self.response()
        for end, last in ((self.initiator, command), (self.target, response)):
            rest = last[len(last) - min(rest_bytes, len(last) - 1) :]
            if end.sender in ends.split():
                self.seen += end.gap(commands * len(last) - len(rest), self.packet_no)
                self.feed(end, rest)
            else:
                self.feed(end, last)
        self.command_sn += commands - 1
        self.status_sn += commands - 1


def counts(found: list[LinkMessage]) -> tuple[int, int, int]:
    """(malformed, writes, answers)."""
    kinds = (Malformed, ReplicatedWrite, Answer)
    malformed, writes, answers = (sum(isinstance(one, kind) for one in found) for kind in kinds)
    return malformed, writes, answers


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("ends", [INITIATOR, TARGET, f"{INITIATOR} {TARGET}"])
@settings(max_examples=60, deadline=None, derandomize=True)
@example(commands=1 << 16, rest_bytes=1, begins_at=0)
@example(commands=(1 << 17) + 5, rest_bytes=100, begins_at=0)
@example(commands=65536, rest_bytes=22, begins_at=8946)
@example(commands=32768, rest_bytes=17, begins_at=21)
@example(commands=256, rest_bytes=17, begins_at=21)
@example(commands=32768, rest_bytes=29, begins_at=23)
@example(commands=3, rest_bytes=40, begins_at=(1 << 32) - 20)
@given(
    commands=ANY_HOLE,
    rest_bytes=st.integers(1, BLOCK_BYTES),
    begins_at=st.integers(1, 300) | st.integers(1, (1 << 32) - 1),
)
def test_after_a_hole_of_any_length_both_ends_are_understood(
    has_digests: bool, ends: str, commands: int, rest_bytes: int, begins_at: int
) -> None:
    """Also where the numbers of the session are as small as an opcode: without digests a rest of a cut PDU then
    looks like a header."""
    mirror = Mirror(has_digests, command_sn=begins_at, status_sn=begins_at + 9)
    before = counts(mirror.exchange(BEFORE))
    assert before[0] == 0 and min(before[1:]) >= BEFORE - UNDERSTOOD
    mirror.miss(ends, commands, rest_bytes)
    mirror.await_understanding()


@pytest.mark.parametrize("has_digests", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(commands=ANY_HOLE, older=st.lists(st.integers(0, 4000), min_size=4, max_size=8))
def test_data_that_answer_an_older_request_are_understood_after_a_hole(
    has_digests: bool, commands: int, older: list[int]
) -> None:
    mirror = Mirror(has_digests, command_sn=10_000, status_sn=20_000)
    mirror.exchange(BEFORE)
    mirror.miss(INITIATOR, commands, 20)
    mirror.seen.clear()
    for back in older:
        mirror.feed(mirror.initiator, mirror.data_out(back))
    mirror.exchange(UNDERSTOOD)
    mirror.seen.clear()
    for back in older:
        mirror.feed(mirror.initiator, mirror.data_out(back))
    certain = [one for one in mirror.seen if isinstance(one, Message) and not one.tentative]
    assert [one.name for one in certain] == ["DATA_OUT"] * len(older)
    assert counts(mirror.exchange(AFTER)) == (0, AFTER, AFTER)


def test_after_a_short_hole_data_that_look_like_an_older_connection_are_not_taken_for_pdus() -> (
    None
):
    """A file of captured packets that the host writes to the mirror."""
    mirror, other = Mirror(False), Mirror(False, command_sn=1 << 20, status_sn=1 << 24)
    mirror.exchange(BEFORE)
    recorded = b"".join(other.command() for _ in range(6))
    mirror.seen.clear()
    mirror.seen += mirror.initiator.gap(3000, mirror.packet_no)
    mirror.feed(mirror.initiator, recorded)
    assert not [one for one in mirror.seen if isinstance(one, Message | Malformed)]
    mirror.exchange(UNDERSTOOD)
    assert counts(mirror.exchange(AFTER)) == (0, AFTER, AFTER)


@pytest.mark.parametrize(
    ("words", "length", "is_login"), [(0, 512, True), (3, 512, False), (0, 1 << 20, False)]
)
def test_a_login_has_no_further_headers_and_a_bounded_text(
    words: int, length: int, is_login: bool
) -> None:
    pdu = bytearray(BHS_BYTES)
    pdu[0], pdu[1], pdu[4] = 0x43, 0x87, words
    pdu[5:8] = length.to_bytes(3, "big")
    told = Mirror(False).initiator.measure(bytearray(b"before it") + pdu, 9)
    said = f"with {words} words of headers and {length} bytes of data"
    assert (isinstance(told, str) and said in told) is not is_login


@pytest.mark.parametrize("exchanged", [0, BEFORE])
def test_a_hole_hides_what_its_sender_sends_and_both_while_nobody_knows(exchanged: int) -> None:
    mirror = Mirror(True)
    mirror.exchange(exchanged)
    for end, writes in ((mirror.initiator, True), (mirror.target, False)):
        (hole,) = (one for one in end.gap(1, 1) if isinstance(one, Hole))
        known = (writes, not writes) if exchanged else (True, True)
        assert (hole.sender, hole.hides_writes, hole.hides_answers) == (end.sender, *known)
