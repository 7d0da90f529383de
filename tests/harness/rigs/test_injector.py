"""The injector in the link: it counts writes, turns one bit with a right checksum, holds, cuts;
else it changes nothing."""

import struct
from pathlib import Path

import link_script as drbd
import pytest

from freezeframe.harness.core.events import NS_PER_MS, Side
from freezeframe.harness.errors import UsageError
from freezeframe.harness.rigs.framing import kinds
from freezeframe.harness.rigs.injector import ETHERNET_BYTES, Injector

CAPTURE = Path(__file__).parents[2] / "golden" / "drbd" / "small-handshake.pcap"
PCAP_HEADER_BYTES, RECORD_HEADER_BYTES = 24, 16
ADDRESS: dict[Side, bytes] = {"primary": bytes([10, 77, 0, 1]), "secondary": bytes([10, 77, 0, 2])}
MSS_BYTES = 1448


def captured() -> list[tuple[Side, bytes]]:
    """Frames of two real nodes; which of them is called primary does not matter here."""
    data, at, found = CAPTURE.read_bytes(), PCAP_HEADER_BYTES, []
    while at < len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        frame = data[at + RECORD_HEADER_BYTES : at + RECORD_HEADER_BYTES + length]
        at += RECORD_HEADER_BYTES + length
        side: Side = "primary" if frame[26:30] < frame[30:34] else "secondary"
        found.append((side, frame))
    return found


class Stream:
    """One direction of a TCP connection, as frames."""

    def __init__(self, sender: Side, port: int) -> None:
        self.sender, self.port = sender, port
        self.seq = 0xFFFF_F000  # soon to wrap

    def frame(self, payload: bytes, *, syn: bool = False) -> tuple[Side, bytes]:
        source, target = (
            ADDRESS[self.sender],
            ADDRESS["secondary" if self.sender == "primary" else "primary"],
        )
        ports = struct.pack(
            ">HH", *((self.port, 7788) if self.sender == "primary" else (7788, self.port))
        )
        flags = 0x02 if syn else 0x18
        tcp = (
            ports
            + struct.pack(">IIBBHHH", self.seq % (1 << 32), 1, 0x50, flags, 1024, 0, 0)
            + payload
        )
        checksum = 0xFFFF - _folded(
            source + target + b"\x00\x06" + len(tcp).to_bytes(2, "big") + tcp
        )
        tcp = tcp[:16] + checksum.to_bytes(2, "big") + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source + target
        self.seq += len(payload) + syn
        return self.sender, bytes(12) + b"\x08\x00" + ip + tcp

    def send(self, data: bytes, step: int = MSS_BYTES) -> list[tuple[Side, bytes]]:
        return [self.frame(data[at : at + step]) for at in range(0, len(data), step)]


def frames(step: int = MSS_BYTES) -> list[tuple[Side, bytes]]:
    """A handshake, two writes and a barrier, and their answers."""
    data, answers = Stream("primary", 40001), Stream("secondary", 40002)
    told = [data.frame(b"", syn=True), answers.frame(b"", syn=True)]
    told += data.send(drbd.h80(0xFFF2) + drbd.features() + drbd.protocol(), step)
    told += answers.send(drbd.h80(0xFFF1) + drbd.h100(drbd.PING), step)
    for number in (1, 2):
        told += data.send(drbd.p_data(number, 8 * number, bytes([number]) * 4096), step)
        told += answers.send(drbd.p_ack(number, 8 * number, 4096), step)
    return told + data.send(drbd.p_barrier(7), step) + answers.send(drbd.p_barrier_ack(7, 2), step)


def _folded(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_sum(frame: bytes) -> int:
    """0xffff when the checksum is right (RFC 9293, 3.1)."""
    segment = frame[34 : ETHERNET_BYTES + int.from_bytes(frame[16:18], "big")]
    return _folded(frame[26:34] + b"\x00\x06" + len(segment).to_bytes(2, "big") + segment)


def test_without_a_fault_every_frame_passes_unchanged() -> None:
    injector = Injector("drbd")
    for sender, frame in captured():
        assert injector.feed(sender, frame, 0) == [frame]
    assert injector.writes > 0


@pytest.mark.parametrize("step", [1, 7, 64, MSS_BYTES])
def test_writes_are_counted_however_the_stream_is_cut(step: int) -> None:
    injector = Injector("drbd")
    injector.arm([{"kind": "stall", "at_write": 99, "delay_ms": 1}])
    for sender, frame in frames(step):
        assert injector.feed(sender, frame, 0) == [frame]
    assert injector.writes == 2


@pytest.mark.parametrize("kind", ["bit_flip_sender", "neg_ack", "wrong_barrier_count"])
def test_one_byte_is_changed_and_the_checksum_stays_right(kind: str) -> None:
    injector = Injector("drbd")
    injector.arm([{"kind": kind, "at_write": 1}])
    changed = []
    for sender, frame in frames():
        (out,) = injector.feed(sender, frame, 0)
        if out != frame:
            changed.append((sender, frame, out))
    assert [sender for sender, _, _ in changed] == [
        "primary" if kind == "bit_flip_sender" else "secondary"
    ]
    ((_, before, after),) = changed
    different = [at for at in range(len(before)) if before[at] != after[at]]
    payload_at = ETHERNET_BYTES + 20 + (before[ETHERNET_BYTES + 32] >> 4) * 4
    assert len([at for at in different if at >= payload_at]) == 1
    assert tcp_sum(before) == tcp_sum(after) == 0xFFFF
    assert len(injector.fired) == 1


def test_a_retransmitted_segment_is_changed_in_the_same_way() -> None:
    injector = Injector("drbd")
    injector.arm([{"kind": "bit_flip_sender", "at_write": 1}])
    for sender, frame in frames():
        (out,) = injector.feed(sender, frame, 0)
        if out != frame:
            assert injector.feed(sender, frame, 0) == [out]
            assert injector.writes == 1
            return
    pytest.fail("nothing was changed")


@pytest.mark.parametrize("step", [1, 64, MSS_BYTES])
def test_the_write_of_a_stall_is_delivered_and_its_answer_held(step: int) -> None:
    """As delivered, at least that one write waits for its answer, whatever else was under way."""
    injector = Injector("drbd")
    injector.arm([{"kind": "stall", "at_write": 2, "delay_ms": 1}])
    stream = frames(step)
    passed = [one for one in stream if injector.feed(*one, 0)]
    assert injector.writes == 2
    assert len(injector.fired) == 1
    assert injector.next_deadline() == NS_PER_MS
    held = injector.release(NS_PER_MS)
    assert passed + held == stream, "nothing is lost, and the order is kept"
    delivered = {
        side: b"".join(frame[ETHERNET_BYTES + 40 :] for sender, frame in passed if sender == side)
        for side in ADDRESS
    }
    assert delivered["primary"].endswith(drbd.p_data(2, 16, bytes([2]) * 4096))
    assert drbd.p_ack(2, 16, 4096) not in delivered["secondary"]


def test_a_held_link_loses_nothing_and_keeps_the_order() -> None:
    injector = Injector("drbd")
    injector.hold("primary", 5 * NS_PER_MS)
    sent = [frame for sender, frame in frames() if sender == "primary"]
    for frame in sent:
        assert injector.feed("primary", frame, 0) == []
    assert injector.next_deadline() == 5 * NS_PER_MS
    assert injector.release(5 * NS_PER_MS - 1) == []
    assert [frame for _, frame in injector.release(5 * NS_PER_MS)] == sent
    assert injector.next_deadline() is None


def test_a_cut_is_one_way_and_ends() -> None:
    injector = Injector("drbd")
    injector.cut("secondary", 10)
    (frame, *_) = [frame for _, frame in frames()]
    assert injector.feed("secondary", frame, 9) == []
    assert injector.feed("primary", frame, 9) == [frame]
    assert injector.feed("secondary", frame, 10) == [frame]


def test_a_fault_of_a_controllers_inside_is_refused_with_what_can_be_made() -> None:
    with pytest.raises(UsageError, match=f"bit_flip_store.*{kinds('drbd')[0]}"):
        Injector("drbd").arm([{"kind": "bit_flip_store"}])


@pytest.mark.parametrize("cut", range(0, 70, 3))
def test_frames_cut_anywhere_pass(cut: int) -> None:
    injector = Injector("drbd")
    for sender, frame in frames():
        assert injector.feed(sender, frame[:cut], 0) == [frame[:cut]]
