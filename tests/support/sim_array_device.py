"""A device for the tests of the SimArray driver: its own codec, written from docs/control-frames.md, in
virtual time."""

import functools
import hashlib
import random
import struct
from collections.abc import Callable

import cbor2
import zstandard

from freezeframe.harness.wire.rootcause import FORMAT, HEADER_KEYS, RECORD, STATE_KEYS

SERIAL = "FFSIM-P-0001"
IDENTIFY, TRACE, SAVE, WARMSTART, LIST, READ, ACK, STATE, PRINT, FAULTS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    0x10,
)
NO_SUCH_SET, WRONG_TARGET, STALE_EPOCH = 6, 3, 4


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_table_entry(index) for index in range(256)]


def cobs(data: bytes) -> bytes:
    out = bytearray()
    for run in (data + b"\0").split(b"\0")[:-1]:
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out += bytes([len(run) + 1]) + run
    return bytes(out)


def uncobs(data: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        out += data[at + 1 : at + code]
        at += code
        if code < 0xFF and at < len(data):
            out.append(0)
    return bytes(out)


def frame(kind: int, seq: int, payload: bytes) -> bytes:
    body = struct.pack(">BBBBHH", 0xF5, 1, kind, 0, seq, len(payload)) + payload
    return b"\0" + cobs(body + struct.pack(">I", crc32c(body))) + b"\0"


@functools.cache
def stored_set(events: int = 5000) -> bytes:
    noise = random.Random(1)
    ring = b"".join(
        RECORD.pack(n, n * 1000, 0x22, 1, 0, n, noise.getrandbits(64), noise.getrandbits(64), 0)
        for n in range(events)
    )
    content = {
        "format": FORMAT,
        "header": dict.fromkeys(HEADER_KEYS, 0),
        "state": dict.fromkeys(STATE_KEYS, 0),
        "events": ring,
    }
    return zstandard.ZstdCompressor(level=1).compress(cbor2.dumps(content))


class Device:
    """A ByteLink with a controller behind it. Time passes only when nobody has anything to say."""

    name = "fake line"

    def __init__(self) -> None:
        self.now_ns = 1_000_000
        self.to_rig = bytearray()
        self.from_rig = bytearray()
        self.requests: list[tuple[int, int, bytes]] = []
        self.blob = stored_set()
        self.mangle: Callable[[int, bytes], bytes] = lambda number, reply: reply
        """Given the number of a reply frame (from 0) and its bytes: what really reaches the rig."""
        self.replies = 0
        self.status = 0
        self.epoch = 7
        self.serial = SERIAL
        self.model = "SimArray 2"
        self.piece_bytes = 1 << 20

    def now(self) -> int:
        return self.now_ns

    def fileno(self) -> int:
        raise AssertionError("the driver reads through the link")

    def close(self) -> None: ...

    def read(self, max_bytes: int, deadline_ns: int) -> bytes:
        if not self.to_rig:
            self.now_ns = max(self.now_ns, deadline_ns)
            return b""
        piece = bytes(self.to_rig[: min(max_bytes, self.piece_bytes)])
        del self.to_rig[: len(piece)]
        return piece

    def write(self, data: bytes) -> None:
        self.from_rig += data
        *whole, rest = bytes(self.from_rig).split(b"\0")
        self.from_rig[:] = rest
        for coded in filter(None, whole):
            body = uncobs(coded)
            assert struct.unpack(">I", body[-4:])[0] == crc32c(body[:-4])
            magic, version, kind, _, seq, length = struct.unpack(">BBBBHH", body[:8])
            assert (magic, version, length) == (0xF5, 1, len(body) - 12)
            self.requests.append((kind, seq, body[8:-4]))
            for payload in self.answers(kind, body[8:-4]):
                self.say(frame(kind | 0x80, seq, payload))

    def say(self, reply: bytes) -> None:
        self.to_rig += self.mangle(self.replies, reply)
        self.replies += 1

    def answers(self, kind: int, payload: bytes) -> list[bytes]:
        if self.status:
            return [bytes([self.status]) + b"because \x1b[31mof it"]
        if kind == IDENTIFY:
            names = (self.model.encode(), self.serial.encode(), b"2.1")
            return [
                b"\0" + struct.pack(">16s16s16sIBBQQHI", *names, self.epoch, 1, 2, 5, 6, 4096, 7)
            ]
        if kind in (SAVE, WARMSTART):
            return [b"\0" + struct.pack(">IIQQ", 3, self.epoch + (kind == WARMSTART), 99, 1234)]
        if kind == LIST:
            return [b"\0" + self.listed()]
        if kind == READ:
            set_id, offset, length = struct.unpack(">IQI", payload)
            window = self.blob[offset : offset + length]
            step = 4096 - 1 - 12
            return [
                b"\0" + struct.pack(">IQ", set_id, offset + at) + window[at : at + step]
                for at in range(0, max(len(window), 1), step)
            ]
        if kind == STATE:
            return [b"\0" + cbor2.dumps({"role": 1, "uuids": [1, 2, 3, 4]})]
        return [b"\0"]

    def listed(self) -> bytes:
        digest = hashlib.sha256(self.blob).digest()
        return struct.pack(
            ">IBBH16sQQI32s", 3, 2, 1, 1, b"i" * 16, 200_000, len(self.blob), 7, digest
        )

    def kinds(self) -> list[int]:
        return [kind for kind, _, _ in self.requests]
