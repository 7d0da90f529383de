"""The replication protocol of the pair: bytes of the link in, writes and answers out.

    a5 5a | type u8 | status u8 | number u32 | length u32 | body
    HELLO   from both ends, first
    WRITE   body: offset u64, CRC-32C of the data u32, data
    ANSWER  no body; status 0: stored, else refused

Only ``measure`` (how long is the message that begins here) and ``take`` (what does it say) are yours
to write; connections, holes in the capture and looking for the next message are the base class's.
"""

import struct
from typing import Final

from crc32c import crc32c

from freezeframe.link import (
    Answer,
    AnswerKind,
    LinkMessage,
    LinkSession,
    Opened,
    Opening,
    Other,
    Pdu,
    PduConnection,
    PduDirection,
    PduLink,
    ReplicatedWrite,
    Tell,
)

PORT: Final = 5555
MAGIC: Final = b"\xa5\x5a"
HEAD: Final = struct.Struct(">2sBBII")
WRITE_HEAD: Final = struct.Struct(">QI")
HELLO, WRITE, ANSWER = 0, 1, 2
NAMES: Final = {HELLO: "HELLO", WRITE: "WRITE", ANSWER: "ANSWER"}
MAX_BODY_BYTES: Final = 1 << 20
"""Every length from the wire needs a bound."""


def message(kind: int, number: int = 0, body: bytes = b"", status: int = 0) -> bytes:
    return HEAD.pack(MAGIC, kind, status, number, len(body)) + body


def write(number: int, offset_bytes: int, data: bytes, crc: int | None = None) -> bytes:
    sent = crc32c(data) if crc is None else crc
    return message(WRITE, number, WRITE_HEAD.pack(offset_bytes, sent) + data)


class SkeletonConnection(PduConnection[LinkSession]):
    """Both directions of one connection."""

    greetings: int = 0


class SkeletonLink(PduLink[LinkSession, SkeletonConnection]):
    name = "skeleton"
    ports = (PORT,)
    tells = frozenset({Tell.WRITE, Tell.DIGEST, Tell.ANSWER, Tell.STATUS})
    """What your protocol shows; nothing is concluded from what it does not show."""
    refuses_by: Final = "status"
    host_addresses = True
    """A write's offset on the link is the host's own."""
    wireshark = "skeleton.number == {write_id}"

    def make_session(self, number: int, ends: tuple[str, str], port: int, t_ns: int) -> LinkSession:
        primary = self.options.primary_address
        return LinkSession(number, ends, port, t_ns, self.name, primary_address=primary)

    def make_connection(self, opening: Opening) -> SkeletonConnection:
        return SkeletonConnection(self.associations.new_session(opening))

    def make_direction(
        self, both: SkeletonConnection, opening: Opening
    ) -> PduDirection[SkeletonConnection]:
        return SkeletonDirection(self, both, opening)


class SkeletonDirection(PduDirection[SkeletonConnection]):
    def measure(self, data: bytearray, at: int) -> int | str:
        """Length of the message at ``at``; 0: more bytes are needed; a text: none begins there."""
        if len(data) - at < HEAD.size:
            return 0
        magic, kind, _, _, length = HEAD.unpack_from(data, at)
        if magic != MAGIC or kind not in NAMES:
            return f"no message begins with {bytes(data[at : at + 4]).hex()}"
        if length > MAX_BODY_BYTES or (kind == WRITE and length < WRITE_HEAD.size):
            return f"{NAMES[kind]} of {length} bytes"
        if self.sends_writes is not None and kind != HELLO and (kind == WRITE) != self.sends_writes:
            return f"{NAMES[kind]} from the wrong end"
        return HEAD.size + int(length)

    def take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        _, kind, status, number, _ = HEAD.unpack_from(pdu.body)
        name, write_id = NAMES[kind], struct.pack(">I", number)
        key = (self.opening.connection, number)
        if not pdu.tentative and kind != HELLO:
            self.sends_writes = kind == WRITE
        if kind == WRITE:
            offset_bytes, crc = WRITE_HEAD.unpack_from(pdu.body, HEAD.size)
            data = pdu.body[HEAD.size + WRITE_HEAD.size :]
            computed = b"" if pdu.tentative else struct.pack(">I", crc32c(data))
            out.append(
                ReplicatedWrite(
                    *self.where(pdu, name, HEAD.size + WRITE_HEAD.size), key, write_id, "write", 0,
                    offset_bytes, len(data), data, pdu.body, pdu.t_first_ns, pdu.first_packet_no,
                    True, "crc32c", struct.pack(">I", crc), computed,
                )
            )  # fmt: skip
        elif kind == ANSWER:
            answered: AnswerKind = "refused" if status else "ok"
            where = self.where(pdu, name, len(pdu.body))
            out.append(Answer(*where, key, write_id, answered, status))
        else:
            out.append(Other(*self.where(pdu, name, len(pdu.body))))
            self.both.greetings += 1
            if self.both.greetings == 2:
                out.append(Opened(self.both.session, pdu.t_ns, "skeleton protocol 1"))
