"""The loops of the link watch that see every frame, in Python: what the C module
(harness/native/*.c) does in C.

Captured frames have one form: runs of pcapng's enhanced packet blocks in memory, interface 0,
nanoseconds, little-endian. The ring's blocks are turned into it, a capture file is it.
``Skimmer.frames`` gives out those frames of a run that may tell something, and passes over the
middle of a healthy bulk transfer, by the rules that stand at ``HalfState``. Whoever feeds what comes
out sees the same packets, times and frame numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from freezeframe.harness.core.link.ipheaders import (
    ETHERTYPE_IPV4,
    IPPROTO_TCP,
    NOT_FRAGMENTED_MASK,
    Foreign,
    look,
)

EPB: Final = 6
EPB_LEAST_BYTES: Final = 32
"""An enhanced packet block without its data and padding."""
EPB_HEAD: Final = struct.Struct("<IIIIIII")
"""type, total length, interface, time (high, low), captured length, original length."""
EPB_HEAD_BYTES: Final = EPB_HEAD.size
MAX_BLOCK_BYTES: Final = 16 << 20
MAX_FRAME_BYTES: Final = 1 << 20
MAX_TIME_NS: Final = (1 << 63) - 1
"""Later times, which no capture has, are taken for this one."""
_U32: Final = struct.Struct("<I")
_BLOCK_HEAD: Final = struct.Struct("@12xII")
"""linux/if_packet.h, struct tpacket_block_desc: num_pkts, offset_to_first_pkt."""
_PACKET_HEAD: Final = struct.Struct("@IIIIIIHHIIHH")
"""struct tpacket3_hdr: next_offset, sec, nsec, snaplen, len, status, mac, net; then of struct
tpacket_hdr_variant1 rxhash, vlan_tci, vlan_tpid, padding."""
_TP_STATUS_VLAN_VALID: Final = 1 << 4
_TP_STATUS_VLAN_TPID_VALID: Final = 1 << 6
_TPID_802_1Q: Final = 0x8100
_MAC_BYTES: Final = 12
_TAG: Final = struct.Struct(">HH")
_NS_PER_S: Final = 1_000_000_000
_LEAST_FRAME_BYTES: Final = 54
_TCP: Final = struct.Struct(">4sIIBBH")
_PLAIN: Final = struct.Struct(">12xHBxHxxHxBxx12sIIBBH")
"""Ethernet, IPv4 and TCP at once: ethertype, version and IHL, total length, fragment field, protocol;
addresses and ports; sequence number, acknowledgement, data offset, flags, window."""
_TCP_HEADER_BYTES: Final = 20
_ACK: Final = 0x10
_FLAGS: Final = 0x17
"""FIN, SYN, RST and ACK."""
_ALIGNED_TIMESTAMP: Final = memoryview(b"\x01\x01\x08\x0a")
_SEQ_MASK: Final = 0xFFFFFFFF
_HALF_RANGE: Final = 1 << 31

Buffer = bytes | bytearray | memoryview


class Run(NamedTuple):
    """Captured frames in the one form."""

    data: Buffer
    """Whole enhanced packet blocks; who gave it out says how long it is good for."""
    frames: int
    bytes_captured: int
    t_first_ns: int
    """CLOCK_REALTIME, as all times in blocks."""
    t_last_ns: int


def encode(frames: Iterable[tuple[int, Buffer, int]]) -> bytes:
    """(time, frame, original length) each as an enhanced packet block."""
    parts: list[Buffer] = []
    for t_ns, data, original_length in frames:
        length = len(data)
        padding = -length % 4
        total = EPB_LEAST_BYTES + length + padding
        t_ns = min(max(t_ns, 0), MAX_TIME_NS)
        parts.append(
            EPB_HEAD.pack(EPB, total, 0, t_ns >> 32, t_ns & 0xFFFFFFFF, length, original_length)
        )
        parts += (data, bytes(padding) + _U32.pack(total))
    return b"".join(parts)


def run_of(frames: Sequence[tuple[int, Buffer]]) -> Run:
    """Whole frames as a run."""
    data = encode((t_ns, frame, len(frame)) for t_ns, frame in frames)
    times = [t_ns for t_ns, _ in frames] or [0]
    return Run(data, len(frames), sum(len(frame) for _, frame in frames), times[0], times[-1])


def ring_block(block: Buffer, out: bytearray | memoryview) -> tuple[int, int, int, int, int]:
    """One block of a TPACKET_V3 ring as enhanced packet blocks, written to ``out``: (bytes written,
    frames, bytes captured, first time, last time). A VLAN tag that the kernel took out of the frame
    stands in it again: what is recorded is the frame as sent. ValueError when the block contradicts itself or
    ``out`` is too small."""
    view, to = memoryview(block), memoryview(out)
    if len(view) < 20:
        raise ValueError("capture ring: block without its header")
    count, at = _BLOCK_HEAD.unpack_from(view)
    used = captured_bytes = first_ns = t_ns = 0
    for number in range(count):
        if at + _PACKET_HEAD.size > len(view):
            raise ValueError("capture ring: frame outside of its block")
        following, seconds, nanoseconds, captured, length, status, mac, _, _, tci, tpid, _ = (
            _PACKET_HEAD.unpack_from(view, at)
        )
        start = at + mac
        if start + captured > len(view) or captured > MAX_FRAME_BYTES:
            raise ValueError("capture ring: frame longer than its block")
        frame: Buffer = view[start : start + captured]
        if status & _TP_STATUS_VLAN_VALID and captured >= _MAC_BYTES:
            kind = tpid if status & _TP_STATUS_VLAN_TPID_VALID else _TPID_802_1Q
            tag = _TAG.pack(kind, tci & 0xFFFF)
            frame = bytes(frame[:_MAC_BYTES]) + tag + bytes(frame[_MAC_BYTES:])
            captured, length = captured + _TAG.size, min(length + _TAG.size, 0xFFFFFFFF)
        padded = captured + 3 & ~3
        total = EPB_LEAST_BYTES + padded
        if used + total > len(to):
            raise ValueError("capture ring: no room for the frames of a block")
        t_ns = seconds * _NS_PER_S + nanoseconds
        first_ns = first_ns if number else t_ns
        EPB_HEAD.pack_into(to, used, EPB, total, 0, t_ns >> 32, t_ns & 0xFFFFFFFF, captured, length)
        data_at = used + EPB_HEAD_BYTES
        to[data_at : data_at + captured] = frame
        to[data_at + captured : data_at + padded] = bytes(padded - captured)
        _U32.pack_into(to, used + total - 4, total)
        used += total
        captured_bytes += captured
        at += following
    return used, count, captured_bytes, first_ns, t_ns


def blocks(view: memoryview, at: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """(where the data begin, captured length, original length, time) of each whole block from
    ``at`` on."""
    while 0 <= at <= len(view) - EPB_LEAST_BYTES:
        kind, total, interface, high, low, captured, original = EPB_HEAD.unpack_from(view, at)
        if (
            kind != EPB
            or interface
            or total < EPB_LEAST_BYTES
            or total % 4
            or total > MAX_BLOCK_BYTES
        ):
            return
        if (
            at + total > len(view)
            or captured > total - EPB_LEAST_BYTES
            or captured > MAX_FRAME_BYTES
        ):
            return
        if _U32.unpack_from(view, at + total - 4)[0] != total:
            return
        yield at + EPB_HEAD_BYTES, captured, original, min(high << 32 | low, MAX_TIME_NS)
        at += total


def survey(data: Buffer, at: int, most: int) -> tuple[int, int, int, int, int]:
    """(end, frames, bytes captured, first time, last time) of the whole blocks from ``at`` on, at
    most ``most``."""
    view = memoryview(data)
    frames = captured_bytes = first_ns = last_ns = 0
    for start, captured, _, t_ns in blocks(view, at):
        if frames >= most:
            break
        first_ns = t_ns if not frames else first_ns
        frames, captured_bytes, last_ns = frames + 1, captured_bytes + captured, t_ns
        at = start - EPB_HEAD_BYTES + EPB_HEAD.unpack_from(view, start - EPB_HEAD_BYTES)[1]
    return at, frames, captured_bytes, first_ns, last_ns


class Fill:
    """The body of one packet while it arrives in pieces: they are copied into one buffer of the
    announced length."""

    __slots__ = ("_body", "discarding", "filled", "length")

    def __init__(self) -> None:
        self._body: bytearray | None = None
        self.length = 0
        """Announced; 0 while no body is arriving."""
        self.filled = 0
        self.discarding = False

    def begin(self, length: int) -> None:
        if not 1 <= length <= MAX_BLOCK_BYTES:
            raise ValueError("a body of this length is not filled")
        self._body, self.length, self.filled = bytearray(length), length, 0

    def take(self, data: Buffer) -> int:
        """Copy what fits; how many bytes that was."""
        if self._body is None:
            return 0
        taken = min(self.length - self.filled, len(data))
        self._body[self.filled : self.filled + taken] = data[:taken]
        self.filled += taken
        return taken

    def swallow(self, data: Buffer) -> bool:
        """Copy all of it, if the body goes on behind it; else nothing."""
        end = self.filled + len(data)
        if self._body is None or end >= self.length:
            return False
        self._body[self.filled : end] = data
        self.filled = end
        return True

    @property
    def complete(self) -> bool:
        return self._body is not None and self.filled == self.length

    def finish(self) -> Buffer:
        """The complete body."""
        body = self._body
        if body is None or self.filled != self.length:
            raise ValueError("the body is not complete")
        self.drop()
        return body

    def drop(self) -> None:
        """Forget the body that has begun."""
        self._body, self.length, self.filled = None, 0, 0

    def discard(self) -> None:
        """Nobody wants the bytes of this direction, now or later."""
        self.drop()
        self.discarding = True


GOOD: Final = 0
UNFINISHED: Final = 1
"""The field holds the sum of the pseudo header alone: what a sender with checksum offload leaves to
its network adapter, and what a receiver leaves that has joined segments."""
ZERO: Final = 2
"""The field is 0, and should not be."""
BAD: Final = 3
NEVER: Final = -(1 << 62)
"""A stream offset below all that occur; its negative is above all."""
TIMESTAMPS_UNKNOWN: Final = -1
TIMESTAMPS_OFF: Final = -2
"""Values of ``HalfState.ts_recent``: none seen yet; the handshake did not agree on them."""


def signed(difference: int) -> int:
    """A difference of two sequence numbers as the nearest signed number: the sequence space wraps
    at 2**32."""
    difference &= _SEQ_MASK
    return difference - (1 << 32) if difference >= _HALF_RANGE else difference


def judge_sum(frame: Buffer, at: int, end: int, addresses: bytes) -> int:
    """The TCP checksum of ``frame[at:end]`` between two IP ``addresses`` (RFC 9293 3.1).

    A ones' complement sum of 16-bit words is a remainder modulo 65,535.
    """
    length = end - at
    view = memoryview(frame)
    if not (at >= 0 and length >= 20 and end <= len(view)):
        raise ValueError("no TCP header within the frame")
    pseudo = int.from_bytes(addresses, "big") + 6 + (length >> 16) + (length & 0xFFFF)
    body = int.from_bytes(view[at:end], "big") << 8 * (length % 2)
    if (pseudo + body) % 0xFFFF == 0:
        return GOOD
    field = view[at + 16] << 8 | view[at + 17]
    if field == 0:
        return ZERO
    return UNFINISHED if (field - pseudo) % 0xFFFF == 0 else BAD


class HalfState:
    """One direction of a TCP connection, as far as a frame in the middle of a bulk transfer touches
    it. Positions are stream offsets.

    Such a frame is the next of a steady stream, and what it says is believed without a further look, when

    * this direction is ``steady`` and the other one steady or not begun;
    * its flags are ACK and no SYN, FIN, RST, and it has no options but an aligned timestamp;
    * it begins at ``next_seq``, and was captured whole;
    * its checksum is right or unfinished, or ``verify`` is off;
    * what it acknowledges lies between the other's ``acked`` and ``offset``;
    * it ends within ``edge``, and its timestamp is not older than ``ts_recent``;
    * it is empty, or its sender has ``spoken`` before.

    It may be passed over, its bytes copied to ``fill`` and the counters moved on, when it is empty or
    leaves the body that has begun incomplete.
    """

    __slots__ = (
        "acked", "acked_seq", "edge", "fill", "last_packet_no", "max_window", "next_seq", "offset",
        "other", "scale", "spoken", "steady", "sums_known", "ts_recent", "verify",
    )  # fmt: skip

    fill: Fill
    """Where its consumer collects."""
    other: Any
    """The HalfState of the other direction."""

    def __init__(self) -> None:
        self.next_seq = -1
        """Sequence number of the byte at ``offset``; -1 until one is known."""
        self.offset = 0
        self.last_packet_no = 0
        self.steady = False
        """Open, and nothing waits: no hole, nothing out of order, nothing refused, no FIN."""
        self.verify = True
        """Checksums of this direction are checked."""
        self.sums_known = False
        """A right one was seen; the first right one is always given out."""
        self.spoken = False
        """Bytes from this sender's address were given out, so that its first ones are known."""
        self.acked = NEVER
        """What its receiver has acknowledged last."""
        self.acked_seq = -1
        """The same as a sequence number, while ``next_seq`` is not known."""
        self.edge = -NEVER
        """The right edge of the receiver's window; -NEVER: not known."""
        self.scale = -1
        """Window scale of the receiver; -1: its SYN was not captured."""
        self.max_window = 0
        """The largest window that the receiver has offered; 0: not known."""
        self.ts_recent = TIMESTAMPS_UNKNOWN
        """The receiver's copy of the sender's timestamp (RFC 7323 4.3)."""


class _NextSegment(NamedTuple):
    """The next segment of a steady stream."""

    half: Any
    data: memoryview
    tsval: int
    ack: int
    acked: int
    """The position of the other direction that it acknowledges."""
    window: int


def _find_next(halves: dict[bytes, Any], view: memoryview) -> _NextSegment | None:
    """By the rules at ``HalfState``; nothing is changed."""
    if len(view) < _LEAST_FRAME_BYTES:
        return None
    (
        ethertype, version_ihl, total, fragment, protocol, key, seq, ack, data_offset, flags, window
    ) = _PLAIN.unpack_from(view)  # fmt: skip
    if (
        ethertype == ETHERTYPE_IPV4
        and version_ihl == 0x45
        and protocol == IPPROTO_TCP
        and not fragment & NOT_FRAGMENTED_MASK
        and total
    ):
        at, end, addresses = 34, 14 + total, key[:8]
    else:
        located = look(view)
        if isinstance(located, Foreign):
            return None
        at, end, addresses = located
        if at < 0 or at + _TCP_HEADER_BYTES > len(view):
            return None
        ports, seq, ack, data_offset, flags, window = _TCP.unpack_from(view, at)
        key = addresses + ports
    if end > len(view):
        return None
    data_at = at + (data_offset >> 4) * 4
    half = halves.get(key)
    if (
        half is None
        or not half.steady
        or seq != half.next_seq
        or flags & _FLAGS != _ACK
        or not at + _TCP_HEADER_BYTES <= data_at <= end
        or half.offset + end - data_at > half.edge
        or (data_at < end and not half.spoken)
    ):
        return None
    other, recent, acked = half.other, half.ts_recent, 0
    if other.next_seq >= 0:
        acked = other.offset + signed(ack - other.next_seq)
        if not other.steady or not other.acked <= acked <= other.offset:
            return None
    tsval, options = -1, data_at - at - _TCP_HEADER_BYTES
    if options == 12 and view[at + 20 : at + 24] == _ALIGNED_TIMESTAMP:
        tsval = int.from_bytes(view[at + 24 : at + 28], "big")
        if recent > 0 and signed(tsval - recent) < 0:
            return None
    elif options:
        return None
    if half.verify:
        verdict = judge_sum(view, at, end, addresses)
        if verdict > UNFINISHED or (verdict == GOOD and not half.sums_known):
            return None
    return _NextSegment(half, view[data_at:end], tsval, ack, acked, window)


def _move_on(found: _NextSegment, number: int) -> None:
    """What this segment says is believed, and its bytes have been taken."""
    half, data, tsval, ack, acked, window = found
    other = half.other
    if tsval >= 0 and half.ts_recent != TIMESTAMPS_OFF and half.offset <= half.acked:
        half.ts_recent = tsval
    if other.next_seq < 0:
        other.acked_seq = ack
    else:
        other.acked = acked
        if other.scale >= 0:
            size = window << other.scale
            other.max_window = max(other.max_window, size)
            known = other.edge != -NEVER
            other.edge = max(other.edge, acked + size) if known else acked + size
    half.next_seq = (half.next_seq + len(data)) & _SEQ_MASK
    half.offset += len(data)
    half.last_packet_no = number


def _passes_over(halves: dict[bytes, Any], frame: memoryview, number: int) -> bool:
    found = _find_next(halves, frame)
    if found is None:
        return False
    fill = found.half.fill
    if found.data and not fill.discarding and not fill.swallow(found.data):
        return False
    _move_on(found, number)
    return True


class Skimmer:
    """All directions that are followed, by addresses and ports as they stand in the frames."""

    def __init__(self, ports: Iterable[int]) -> None:
        self.halves: dict[bytes, Any] = {}
        self.skipped_frames = 0
        """Frames that are not TCP over IP, are fragments, have other ports, or contradict their
        length."""

    def frames(
        self, run: Buffer, first_no: int, offset_ns: int
    ) -> Iterator[tuple[int, memoryview, int]]:
        """(time less ``offset_ns``, frame, number) of those of ``run`` that have to be fed, in
        order."""
        view, halves = memoryview(run), self.halves
        for number, (start, captured, _, t_ns) in enumerate(blocks(view), first_no):
            frame = view[start : start + captured]
            if not halves or not _passes_over(halves, frame, number):
                yield t_ns - offset_ns, frame, number

    def next_data(self, frame: Buffer, number: int) -> tuple[Any, memoryview] | None:
        """Direction and data of a frame that is the next of a steady stream and has data; both
        directions are moved on. None: nothing was changed, and the frame has to be judged. This is
        the way of nearly all data that are not passed over."""
        found = _find_next(self.halves, memoryview(frame))
        if found is None or not found.data or found.half.other.next_seq < 0:
            return None
        _move_on(found, number)
        return found.half, found.data
