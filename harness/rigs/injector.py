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
from freezeframe.harness.rigs.framing import FRAMINGS, FramePiece, Framing, kinds

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
TCP_FLAG_ACK: Final = 0x10
SEQUENCE_SPACE: Final = 1 << 32
MAX_AHEAD_BYTES: Final = 1 << 30


def other(side: Side) -> Side:
    return "secondary" if side == "primary" else "primary"


@dataclass
class _Fault:
    kind: str
    at_write: int
    count: int
    delay_ns: Ns
    unanswered: set[bytes] = field(default_factory=set)
    """Writes whose acknowledgement has not passed yet."""
    awaits_data: set[bytes] = field(default_factory=set)
    """Writes that are to be changed and whose data follow."""
    fired: int = 0

    def strikes(self, write_no: int) -> bool:
        return self.at_write <= write_no < self.at_write + self.count


@dataclass
class _Lane:
    """A write whose bytes are held back until its retry was answered and a newer write has passed. The
    sender is made to give its connections up by a reset; whatever it still sends on them is lost, except the
    write itself."""

    keys: frozenset[bytes] = frozenset()
    """The sender's directions of those connections; empty: the write has not come yet."""
    held: list[bytes] = field(default_factory=list)


@dataclass
class _Stream:
    """One direction of one TCP connection, followed from its SYN."""

    next_seq: int
    framing: Framing
    from_opener: bool
    head: bytearray = field(default_factory=bytearray)
    """First bytes of the message that is passing."""
    skip_bytes: int = 0
    is_understood: bool = True
    patches: list[tuple[int, int]] = field(default_factory=list)
    """Sequence number of a byte -> bits to invert in it."""


class Injector:
    """Both directions of the link. A frame belongs to the side that sent it."""

    def __init__(self, protocol: str, host_offset_bytes: int = 0) -> None:
        """``protocol``: of the link, one of framing.FRAMINGS; ``host_offset_bytes``: writes before it are
        the mirror's own and are not counted."""
        self._protocol = protocol
        self._make_framing = FRAMINGS[protocol]
        self._host_offset_bytes = host_offset_bytes
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
        self._lane: _Lane | None = None
        self._unseen: list[tuple[Side, bytes]] = []

    # --- commands ------------------------------------------------------------------------------------
    def arm(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """Arm faults as in a fault plan: kind, at_write, count, delay_ms. Raises UsageError for
        one that a link cannot produce."""
        armed = []
        for fault in faults:
            possible = kinds(self._protocol)
            if fault.get("kind") not in possible:
                raise UsageError(
                    f"{fault.get('kind')!r} cannot be produced in a link of {self._protocol}; possible are: "
                    f"{', '.join(possible)}"
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

    def hold_lane(self) -> None:
        """Hold back the next write that comes with its data, and reset its connection for its sender."""
        self._lane = _Lane()

    def release_lane(self) -> int:
        """Deliver the held write, with the next ``release``; how many frames that are. 0: none came."""
        lane, self._lane = self._lane, None
        held = lane.held if lane is not None else []
        self._held.extend(("primary", frame) for frame in held)
        if held:
            self.fired.append("a write of a connection that was given up is delivered")
        return len(held)

    def next_deadline(self) -> Ns | None:
        return min((self._hold_until.get(sender, 0) for sender, _ in self._held), default=None)

    # --- frames ---------------------------------------------------------------------------------------------
    def feed(self, sender: Side, frame: bytes, now: Ns) -> list[bytes]:
        """Process a frame of ``sender``; return the frames that the other side receives now."""
        self.frames += 1
        frame = self._examine(sender, frame, now)
        if self._lane is not None and self._lane.keys and _key(frame) in self._lane.keys:
            if has_payload(frame):
                self._lane.held.append(frame)
            return []
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

    def unseen(self) -> list[tuple[Side, bytes]]:
        """Frames of the injector's own, by the side in whose name they come. No capture of the link shows them:
        they are made between it and their receiver, as by a firewall."""
        made, self._unseen = self._unseen, []
        return made

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
            self._open(key, (seq + 1) % SEQUENCE_SPACE, frame[tcp_at + 13])
            return frame
        stream = self._streams.get(key)
        if stream is None or payload_at >= end or end > len(frame):
            return frame
        ahead = (stream.next_seq - seq) % SEQUENCE_SPACE
        if stream.is_understood and ahead < end - payload_at:
            self._follow(sender, stream, memoryview(frame)[payload_at + ahead : end], now)
        return (
            self._patched(stream, frame, tcp_at, payload_at, end, seq) if stream.patches else frame
        )

    def _open(self, key: bytes, next_seq: int, flags: int) -> None:
        """A SYN. That of the listener finds the framing that the opener's made."""
        back = _back(key)
        opener = self._streams.get(back) if flags & TCP_FLAG_ACK else None
        framing = opener.framing if opener else self._make_framing(key, self._host_offset_bytes)
        self._streams[key] = _Stream(next_seq, framing, from_opener=not flags & TCP_FLAG_ACK)

    def _follow(self, sender: Side, stream: _Stream, data: memoryview, now: Ns) -> None:
        at = 0
        while at < len(data):
            if stream.skip_bytes:
                step = min(stream.skip_bytes, len(data) - at)
                stream.skip_bytes -= step
            else:
                wanted = stream.framing.wanted(stream.from_opener, bytes(stream.head))
                step = min(wanted - len(stream.head), len(data) - at)
                stream.head += data[at : at + step]
                head = bytes(stream.head)
                if stream.framing.wanted(stream.from_opener, head) == len(head):
                    start = (stream.next_seq + at + step - len(head)) % SEQUENCE_SPACE
                    stream.head.clear()
                    piece = stream.framing.message(stream.from_opener, head)
                    if piece is None or piece.length_bytes < len(head):
                        stream.is_understood = False
                        return
                    stream.skip_bytes = piece.length_bytes - len(head)
                    self._piece(sender, stream, piece, start, now)
            at += step
        stream.next_seq = (stream.next_seq + at) % SEQUENCE_SPACE

    def _piece(self, sender: Side, stream: _Stream, piece: FramePiece, start: int, now: Ns) -> None:
        """Handle a message of which only the first bytes have passed; ``start``: the sequence number
        of the first."""
        if piece.kind == "write":
            self.writes += 1
            if self._lane is not None and not self._lane.keys and piece.data_bytes:
                self._reset(sender, stream)
        for fault in self._faults:
            match piece.kind:
                case "write" if fault.strikes(self.writes):
                    self._strike_write(sender, fault, stream, piece, start, now)
                case "data" if piece.key in fault.awaits_data:
                    fault.awaits_data.discard(piece.key)
                    self._flip(fault, stream, piece, start)
                case "answer" if piece.key in fault.unanswered:
                    self._strike_answer(sender, fault, stream, piece, start, now)
                case "barrier-answer" if fault.kind == "wrong_barrier_count" and fault.unanswered:
                    fault.unanswered.clear()
                    self._change(stream, piece, start)
                    self._told(fault, "a barrier's count changed")
                case _:
                    pass

    def _reset(self, sender: Side, stream: _Stream) -> None:
        assert self._lane is not None
        key = next(one for one, other_ in self._streams.items() if other_ is stream)
        self._lane.keys = frozenset(one for one, it in self._streams.items() if it.from_opener)
        back_key = _back(key)
        back = self._streams[back_key]
        self._unseen.append((other(sender), _reset_frame(back_key, back.next_seq)))
        self.fired.append(f"write {self.writes} is held back, and its connection reset")

    def _strike_write(
        self, sender: Side, fault: _Fault, stream: _Stream, piece: FramePiece, start: int, now: Ns
    ) -> None:
        if fault.kind == "bit_flip_sender":
            if piece.data_bytes:
                self._flip(fault, stream, piece, start)
            else:
                fault.awaits_data.add(piece.key)
        elif fault.kind == "lost_ack":
            self.cut(other(sender), now + LOST_ACK_NS)
            self._told(fault, "its way back is cut")
        else:
            fault.unanswered.add(piece.key)

    def _flip(self, fault: _Fault, stream: _Stream, piece: FramePiece, start: int) -> None:
        self._patch(stream, start + piece.data_at + piece.data_bytes // 2, 0x10)
        self._told(fault, "a bit turned in the middle of it")

    def _strike_answer(
        self, sender: Side, fault: _Fault, stream: _Stream, piece: FramePiece, start: int, now: Ns
    ) -> None:
        if fault.kind == "neg_ack":
            self._change(stream, piece, start)
            self._told(fault, "its acknowledgement became a refusal")
        elif fault.kind == "stall":
            # Not from the write on: held itself, it would wait for no answer on the other side.
            for side in (sender, other(sender)):
                self.hold(side, now + fault.delay_ns)
            self._told(fault, f"the link stands still for {fault.delay_ns // NS_PER_MS} ms")
        elif fault.kind == "late_ack":
            self.hold(sender, now + fault.delay_ns)
            self._told(fault, f"its acknowledgement is held for {fault.delay_ns // NS_PER_MS} ms")
        if fault.kind != "wrong_barrier_count":
            fault.unanswered.discard(piece.key)

    def _change(self, stream: _Stream, piece: FramePiece, start: int) -> None:
        for at, bits in piece.changes:
            self._patch(stream, start + at, bits)

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


def _key(frame: bytes) -> bytes:
    tcp_at = ETHERNET_BYTES + (frame[ETHERNET_BYTES] & 0x0F) * 4
    return frame[ETHERNET_BYTES + 12 : ETHERNET_BYTES + 20] + frame[tcp_at : tcp_at + 4]


def _back(key: bytes) -> bytes:
    return key[4:8] + key[:4] + key[10:12] + key[8:10]


def has_payload(frame: bytes) -> bool:
    tcp_at = ETHERNET_BYTES + (frame[ETHERNET_BYTES] & 0x0F) * 4
    payload_at = tcp_at + (frame[tcp_at + 12] >> 4) * 4
    return (
        ETHERNET_BYTES + int.from_bytes(frame[ETHERNET_BYTES + 2 : ETHERNET_BYTES + 4], "big")
        > payload_at
    )


def _sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _reset_frame(key: bytes, seq: int) -> bytes:
    """A reset as the sender of that direction would write it."""
    ip = bytes.fromhex("450000280000400040060000") + key[:8]
    ip = ip[:10] + _sum(ip).to_bytes(2, "big") + ip[12:]
    tcp = key[8:12] + seq.to_bytes(4, "big") + bytes(4) + bytes.fromhex("50040000") + bytes(4)
    check = _sum(key[:8] + b"\x00\x06\x00\x14" + tcp)
    return MACS + ETHERTYPE_IPV4 + ip + tcp[:16] + check.to_bytes(2, "big") + tcp[18:]


MACS: Final = bytes.fromhex("525400ff0001525400ff0002")
"""To the primary's end, from the secondary's (``node.MAC_PREFIX``)."""


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
