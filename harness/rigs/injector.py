"""Fault injector in the replication link of a virtual rig. Frames pass through unchanged unless a
fault is armed.

Pure: ``feed`` takes a frame and the time and returns the frames to deliver now; ``release``
returns frames whose delay has ended. It follows the TCP streams only as far as needed to count
replicated writes, and changes bytes by their position in the stream, so that a retransmitted
segment is changed like the first one. Checksums stay correct (RFC 1624).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_MS, Ns, Side
from freezeframe.harness.errors import UsageError
from freezeframe.harness.wire import drbd

KINDS: Final = (
    "bit_flip_sender",
    "neg_ack",
    "lost_ack",
    "late_ack",
    "wrong_barrier_count",
    "stall",
)
"""Fault kinds of wire.faults that a link can produce. The others happen inside a controller."""
LOST_ACK_NS: Final = 6_000 * NS_PER_MS
"""Duration of a cut of the return direction. If only one acknowledgement were dropped, TCP would
send it again."""
MAX_HELD_FRAMES: Final = 20_000
"""Queue limit. Further frames are dropped, as by a real bridge."""
MAX_STREAMS: Final = 64
MAX_PATCHES: Final = 64

ETHERNET_BYTES: Final = 14
ETHERTYPE_IPV4: Final = b"\x08\x00"
IP_PROTOCOL_TCP: Final = 6
TCP_FLAG_SYN: Final = 0x02
SEQUENCE_SPACE: Final = 1 << 32
MAX_AHEAD_BYTES: Final = 1 << 30

HEADER: Final = drbd.HEADER_H100
MAGIC: Final = drbd.MAGIC_H100
DIGEST_BYTES: Final = 4
DATA_HEAD_BYTES: Final = 24
SET_SIZE_LOW_BYTE: Final = HEADER.size + 7
COMMAND_LOW_BYTE: Final = 7
BLOCK_ID: Final = slice(HEADER.size + 8, HEADER.size + 16)


def other(side: Side) -> Side:
    return "secondary" if side == "primary" else "primary"


@dataclass
class _Fault:
    kind: str
    at_write: int
    count: int
    delay_ns: Ns
    block_ids: set[bytes] = field(default_factory=set)
    """Writes whose acknowledgement has not passed yet."""
    fired: int = 0

    def strikes(self, write_no: int) -> bool:
        return self.at_write <= write_no < self.at_write + self.count


@dataclass
class _Stream:
    """One direction of one TCP connection, followed from its SYN."""

    next_seq: int
    header: bytearray = field(default_factory=bytearray)
    """Received part of the header of the current DRBD packet."""
    skip_bytes: int = 0
    is_drbd: bool = True
    patches: list[tuple[int, int]] = field(default_factory=list)
    """Sequence number of a byte -> bits to invert in it."""


class Injector:
    """Both directions of the link. A frame belongs to the side that sent it."""

    def __init__(self) -> None:
        self.writes = 0
        """Replicated writes since the last ``arm``."""
        self.frames = 0
        self.dropped = 0
        self.fired: list[str] = []
        """Faults that fired, as text."""
        self._faults: list[_Fault] = []
        self._streams: dict[bytes, _Stream] = {}
        self._cut_until: dict[Side, Ns] = {}
        self._hold_until: dict[Side, Ns] = {}
        self._held: deque[tuple[Side, bytes]] = deque()

    # --- commands ------------------------------------------------------------------------------------
    def arm(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """Arm faults as in a fault plan: kind, at_write, count, delay_ms. Raises UsageError for
        one that a link cannot produce."""
        armed = []
        for fault in faults:
            if fault.get("kind") not in KINDS:
                raise UsageError(
                    f"{fault.get('kind')!r} cannot be produced in a link; possible are: {', '.join(KINDS)}"
                )
            at_write, count = int(fault.get("at_write", 1)), int(fault.get("count", 1))
            armed.append(
                _Fault(fault["kind"], at_write, count, int(fault.get("delay_ms", 0)) * NS_PER_MS)
            )
        self._faults = armed
        self.writes = 0
        self.fired.clear()

    def cut(self, sender: Side, until: Ns) -> None:
        """Drop all frames of ``sender`` until that time."""
        self._cut_until[sender] = until
        self.fired.append(f"what the {sender} sends is dropped")

    def hold(self, sender: Side, until: Ns) -> None:
        """Delay all frames of ``sender`` until that time; none is lost."""
        self._hold_until[sender] = max(until, self._hold_until.get(sender, 0))

    def next_deadline(self) -> Ns | None:
        return min((self._hold_until[sender] for sender, _ in self._held), default=None)

    # --- frames ---------------------------------------------------------------------------------------------
    def feed(self, sender: Side, frame: bytes, now: Ns) -> list[bytes]:
        """Process a frame of ``sender``; return the frames that the other side receives now."""
        self.frames += 1
        frame = self._examine(sender, frame, now)
        if now < self._cut_until.get(sender, 0):
            self.dropped += 1
            return []
        if now < self._hold_until.get(sender, 0) or any(held == sender for held, _ in self._held):
            if len(self._held) >= MAX_HELD_FRAMES:
                self.dropped += 1
            else:
                self._held.append((sender, frame))
            return []
        return [frame]

    def release(self, now: Ns) -> list[tuple[Side, bytes]]:
        """Return the frames whose delay has ended, with their sender, in order."""
        free = [one for one in self._held if now >= self._hold_until.get(one[0], 0)]
        self._held = deque(one for one in self._held if now < self._hold_until.get(one[0], 0))
        return free

    def _examine(self, sender: Side, frame: bytes, now: Ns) -> bytes:
        """Follow the stream and return the frame with all changes applied."""
        if frame[12:14] != ETHERTYPE_IPV4 or len(frame) < ETHERNET_BYTES + 40:
            return frame
        tcp_at = ETHERNET_BYTES + (frame[ETHERNET_BYTES] & 0x0F) * 4
        if frame[ETHERNET_BYTES + 9] != IP_PROTOCOL_TCP or len(frame) < tcp_at + 20:
            return frame
        payload_at = tcp_at + (frame[tcp_at + 12] >> 4) * 4
        end = ETHERNET_BYTES + int.from_bytes(frame[ETHERNET_BYTES + 2 : ETHERNET_BYTES + 4], "big")
        seq = int.from_bytes(frame[tcp_at + 4 : tcp_at + 8], "big")
        key = frame[ETHERNET_BYTES + 12 : ETHERNET_BYTES + 20] + frame[tcp_at : tcp_at + 4]
        if frame[tcp_at + 13] & TCP_FLAG_SYN:
            while len(self._streams) >= MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            self._streams[key] = _Stream((seq + 1) % SEQUENCE_SPACE)
            return frame
        stream = self._streams.get(key)
        if stream is None or payload_at >= end or end > len(frame):
            return frame
        ahead = (stream.next_seq - seq) % SEQUENCE_SPACE
        if stream.is_drbd and ahead < end - payload_at:
            self._follow(sender, stream, memoryview(frame)[payload_at + ahead : end], now)
        return (
            self._patched(stream, frame, tcp_at, payload_at, end, seq) if stream.patches else frame
        )

    def _follow(self, sender: Side, stream: _Stream, data: memoryview, now: Ns) -> None:
        at = 0
        while at < len(data):
            if stream.skip_bytes:
                step = min(stream.skip_bytes, len(data) - at)
                stream.skip_bytes -= step
            else:
                # Before the handshake heads are shorter; those packets are over by their length
                # alone.
                step = min(self._wanted(stream) - len(stream.header), len(data) - at)
                stream.header += data[at : at + step]
                if len(stream.header) == self._wanted(stream):
                    start = (stream.next_seq + at + step - len(stream.header)) % SEQUENCE_SPACE
                    self._packet(sender, stream, bytes(stream.header), start, now)
                    stream.header.clear()
                    if not stream.is_drbd:
                        return
            at += step
        stream.next_seq = (stream.next_seq + at) % SEQUENCE_SPACE

    def _wanted(self, stream: _Stream) -> int:
        """Return how many bytes of a packet are inspected: the header, and for some the first
        fields."""
        header = stream.header
        if len(header) < 4:
            return 4
        if int.from_bytes(header[:4], "big") != MAGIC:
            return drbd.HEADER_H80.size
        if len(header) < HEADER.size:
            return HEADER.size
        command, length = HEADER.unpack_from(header)[2:4]
        looked_at = command in (drbd.Cmd.DATA, drbd.Cmd.WRITE_ACK, drbd.Cmd.BARRIER_ACK)
        return HEADER.size + (min(length, DATA_HEAD_BYTES) if looked_at else 0)

    def _packet(self, sender: Side, stream: _Stream, head: bytes, start: int, now: Ns) -> None:
        """Handle the start of a packet. ``head``: its first bytes; ``start``: the sequence number
        of the first."""
        if len(head) < HEADER.size:
            magic, _, length = drbd.HEADER_H80.unpack(head)
            stream.is_drbd = magic == drbd.MAGIC_H80
            stream.skip_bytes = length
            return
        _, _, command, length, _ = HEADER.unpack_from(head)
        stream.skip_bytes = HEADER.size + length - len(head)
        if len(head) < HEADER.size + 8 or not self._faults:
            if command == drbd.Cmd.DATA:
                self.writes += 1
            return
        if command == drbd.Cmd.DATA:
            self.writes += 1
            for fault in self._faults:
                if fault.strikes(self.writes):
                    self._strike_write(sender, fault, stream, head, start, length, now)
        elif command == drbd.Cmd.WRITE_ACK:
            for fault in self._faults:
                if head[BLOCK_ID] in fault.block_ids:
                    self._strike_ack(sender, fault, stream, head, start, now)
        elif command == drbd.Cmd.BARRIER_ACK:
            for fault in self._faults:
                if fault.kind == "wrong_barrier_count" and fault.block_ids:
                    fault.block_ids.clear()
                    self._patch(stream, start + SET_SIZE_LOW_BYTE, 0x01)
                    self._told(fault, "a barrier's count changed")

    def _strike_write(
        self,
        sender: Side,
        fault: _Fault,
        stream: _Stream,
        head: bytes,
        start: int,
        length: int,
        now: Ns,
    ) -> None:
        if fault.kind == "bit_flip_sender":
            before_data = HEADER.size + DATA_HEAD_BYTES + DIGEST_BYTES
            data_bytes = HEADER.size + length - before_data
            self._patch(stream, start + before_data + data_bytes // 2, 0x10)
            self._told(fault, "a bit turned in the middle of it")
        elif fault.kind == "stall":
            for side in (sender, other(sender)):
                self.hold(side, now + fault.delay_ns)
            self._told(fault, f"the link stands still for {fault.delay_ns // NS_PER_MS} ms")
        elif fault.kind == "lost_ack":
            self.cut(other(sender), now + LOST_ACK_NS)
            self._told(fault, "its way back is cut")
        else:
            fault.block_ids.add(head[BLOCK_ID])

    def _strike_ack(
        self, sender: Side, fault: _Fault, stream: _Stream, head: bytes, start: int, now: Ns
    ) -> None:
        if fault.kind == "neg_ack":
            self._patch(stream, start + COMMAND_LOW_BYTE, drbd.Cmd.WRITE_ACK ^ drbd.Cmd.NEG_ACK)
            self._told(fault, "its acknowledgement became a refusal")
        elif fault.kind == "late_ack":
            self.hold(sender, now + fault.delay_ns)
            self._told(fault, f"its acknowledgement is held for {fault.delay_ns // NS_PER_MS} ms")
        if fault.kind != "wrong_barrier_count":
            fault.block_ids.discard(head[BLOCK_ID])

    def _told(self, fault: _Fault, what: str) -> None:
        fault.fired += 1
        self.fired.append(f"{fault.kind} at write {self.writes}: {what}")

    def _patch(self, stream: _Stream, seq: int, bits: int) -> None:
        stream.patches.append((seq % SEQUENCE_SPACE, bits))
        del stream.patches[:-MAX_PATCHES]

    def _patched(
        self, stream: _Stream, frame: bytes, tcp_at: int, payload_at: int, end: int, seq: int
    ) -> bytes:
        changed: bytearray | None = None
        for place, bits in stream.patches:
            offset = (place - seq) % SEQUENCE_SPACE
            if offset < end - payload_at:
                changed = changed if changed is not None else bytearray(frame)
                _turn(changed, tcp_at, payload_at + offset, bits)
        return bytes(changed) if changed is not None else frame


def _turn(frame: bytearray, tcp_at: int, at: int, bits: int) -> None:
    """Invert ``bits`` of the byte ``at`` and correct the TCP checksum by the difference (RFC 1624,
    equation 3)."""
    word_at = at - (at - tcp_at) % 2
    is_last = word_at + 1 >= len(frame)
    before = frame[word_at] << 8 | (0 if is_last else frame[word_at + 1])
    frame[at] ^= bits
    after = frame[word_at] << 8 | (0 if is_last else frame[word_at + 1])
    checksum_at = tcp_at + 16
    checksum = int.from_bytes(frame[checksum_at : checksum_at + 2], "big")
    total = (~checksum & 0xFFFF) + (~before & 0xFFFF) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    frame[checksum_at : checksum_at + 2] = (~total & 0xFFFF).to_bytes(2, "big")
