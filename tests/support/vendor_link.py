"""A made-up vendor's replication protocol: writes in pieces, each with a CRC-32C of its own, answers with
a status on the same connection. It shows what the seam asks of a protocol, in one file.

    a5 5a | type | status | id u32 | length u32 | body
    WRITE   body: offset u64, whole length u32, CRC-32C u32 of the data that follow
    PART    body: offset in the write u32, CRC-32C u32, data
    ANSWER  no body; status 0: stored, 1: refused
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from crc32c import crc32c

from freezeframe.harness.core.link.messages import (
    Answer,
    Closed,
    Hole,
    LinkMessage,
    LinkSession,
    Malformed,
    Opened,
    Other,
    ReplicatedWrite,
    WritePart,
)
from freezeframe.harness.core.link.protocol import API_VERSION, LinkOptions, Opening, Tell

PORT: Final = 5555
MAGIC: Final = b"\xa5\x5a"
HEAD: Final = struct.Struct(">2sBBII")
WRITE_HEAD: Final = struct.Struct(">QII")
PART_HEAD: Final = struct.Struct(">II")
HELLO, WRITE, PART, ANSWER = 0, 1, 2, 3
NAMES: Final = {HELLO: "HELLO", WRITE: "WRITE", PART: "PART", ANSWER: "ANSWER"}
MAX_BODY_BYTES: Final = 1 << 20


def message(kind: int, number: int = 0, body: bytes = b"", status: int = 0) -> bytes:
    return HEAD.pack(MAGIC, kind, status, number, len(body)) + body


def write(number: int, offset: int, whole: int, data: bytes = b"", crc: int | None = None) -> bytes:
    told = crc32c(data) if crc is None else crc
    return message(WRITE, number, WRITE_HEAD.pack(offset, whole, told) + data)


def part(number: int, offset: int, data: bytes, crc: int | None = None) -> bytes:
    told = crc32c(data) if crc is None else crc
    return message(PART, number, PART_HEAD.pack(offset, told) + data)


@dataclass(eq=False)
class VendorSession(LinkSession):
    greeted: set[str] = field(default_factory=set)


class VendorLink:
    name = "vendor"
    api_version = API_VERSION
    ports = (PORT,)
    tells = frozenset({Tell.WRITE, Tell.DIGEST, Tell.ANSWER, Tell.STATUS})
    refuses_by = "status"
    host_addresses = False
    wireshark = "vendor.id == {write_id}"
    console_texts = ()

    def __init__(self, options: LinkOptions) -> None:
        self.options = options
        self.sessions: dict[int, VendorSession] = {}

    def connection(self, opening: Opening) -> VendorDirection | None:
        session = self.sessions.get(opening.connection)
        if session is None:
            ends = (opening.source, opening.destination)
            session = VendorSession(
                len(self.sessions) + 1, ends, opening.service_port, opening.t_ns, "vendor",
                primary_address=self.options.primary_address,
            )  # fmt: skip
            self.sessions[opening.connection] = session
        return VendorDirection(session, opening)

    def number_of(self, write_id: bytes, side: str) -> int | None:
        return int.from_bytes(write_id, "big")


class VendorDirection:
    def __init__(self, session: VendorSession, opening: Opening) -> None:
        self.session, self.sender = session, opening.source
        self.from_start = opening.from_start
        self.held = bytearray()
        self.offset = 0
        """Of the first byte held."""
        self.looking, self.trust = not opening.from_start, 2 if opening.from_start else 0
        self.first: tuple[int, int] = (0, 0)

    def begin(self) -> list[LinkMessage]:
        return []

    def feed(self, data: bytes | memoryview, t_ns: int, packet_no: int) -> list[LinkMessage]:
        if not self.held:
            self.first = (t_ns, packet_no)
        self.held += data
        out: list[LinkMessage] = []
        for kind, status, number, body, offset in self._complete(t_ns, packet_no, out):
            out.append(self._translate(kind, status, number, body, offset, t_ns, packet_no))
            if kind == HELLO and self.from_start and self.sender not in self.session.greeted:
                self.session.greeted.add(self.sender)
                if len(self.session.greeted) == 2:
                    out.append(Opened(self.session, t_ns, "vendor's protocol 1"))
            self.first = (t_ns, packet_no)
        return out

    def _complete(
        self, t_ns: int, packet_no: int, out: list[LinkMessage]
    ) -> Iterator[tuple[int, int, int, bytes, int]]:
        while len(self.held) >= HEAD.size:
            magic, kind, status, number, length = HEAD.unpack_from(self.held)
            if magic != MAGIC or kind not in NAMES or length > MAX_BODY_BYTES:
                if self.trust >= 2:
                    excerpt = bytes(self.held[:32])
                    where = (self.session, self.sender, t_ns, packet_no, self.offset)
                    out.append(Malformed(*where, "no message", b"" if not excerpt else b"?"))
                self.looking, self.trust = True, 0
                del self.held[:1]
                self.offset += 1
                continue
            if len(self.held) < HEAD.size + length:
                return
            self.looking, self.trust = False, min(2, self.trust + 1)
            body, offset = bytes(self.held[HEAD.size : HEAD.size + length]), self.offset
            del self.held[: HEAD.size + length]
            self.offset += HEAD.size + length
            yield kind, status, number, body, offset

    def _translate(
        self,
        kind: int,
        status: int,
        number: int,
        body: bytes,
        offset: int,
        t_ns: int,
        packet_no: int,
    ) -> LinkMessage:
        tentative, head = self.trust < 2, HEAD.size

        def where(clear: int) -> tuple[Any, ...]:
            name = NAMES[kind]
            return (
                self.session,
                self.sender,
                name,
                t_ns,
                packet_no,
                offset,
                0 if tentative else clear,
                tentative,
            )

        write_id = struct.pack(">I", number)
        if kind == WRITE and len(body) >= WRITE_HEAD.size:
            at, whole, crc = WRITE_HEAD.unpack_from(body)
            data = body[WRITE_HEAD.size :]
            digests = (
                ("crc32c", struct.pack(">I", crc), struct.pack(">I", crc32c(data)))
                if data and not tentative
                else ("", b"", b"")
            )
            return ReplicatedWrite(
                *where(head + WRITE_HEAD.size), number, write_id, "write", 0, at, whole, data, body,
                *self.first, True, *digests,
            )  # fmt: skip
        if kind == PART and len(body) >= PART_HEAD.size:
            at, crc = PART_HEAD.unpack_from(body)
            data = body[PART_HEAD.size :]
            computed = b"" if tentative else struct.pack(">I", crc32c(data))
            return WritePart(
                *where(head + PART_HEAD.size),
                number,
                at,
                data,
                "crc32c",
                struct.pack(">I", crc),
                computed,
            )
        if kind == ANSWER:
            answer = "refused" if status else "ok"
            return Answer(*where(head), number, write_id, answer, status)
        return Other(*where(head + len(body) if kind == HELLO else 0))

    def gap(self, length_bytes: int, t_ns: int) -> list[LinkMessage]:
        self.offset += len(self.held) + length_bytes
        self.held.clear()
        self.looking, self.trust = True, 0
        return [Hole(self.session, self.sender, t_ns, True, True)]

    def closed(self, t_ns: int, packet_no: int, reason: str) -> list[LinkMessage]:
        if self.session.closed:
            return []
        self.session.closed = True
        return [Closed(self.session, t_ns, packet_no, self.sender, reason)]
