"""What a replication protocol says, in words that no protocol owns: writes, answers, barriers.

A protocol (``core.link.protocol``) turns the byte streams of a link into these messages. Ledger,
link rules, evidence, verdict, redaction and exports know nothing else of the link.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import msgspec

from freezeframe.harness.core.events import Ns, Side

WriteKind = Literal["write", "zero", "trim", "same", "flush"]
"""same: one block over and over. Only a "write" brings data."""
AnswerKind = Literal["none", "received", "ok", "refused", "retry"]
"""none: not answered yet; received: taken, not stored; retry: the sender is asked to send again."""

ResyncWord = Literal["stated", "bitmap", "marked", "request", "data", "same", "answer", "equal"]


def _hex_id(write_id: bytes) -> str:
    return f"0x{write_id.hex()}"


@dataclass(eq=False)
class LinkSession:
    """One peer connection of two nodes, over one or several TCP connections (lanes)."""

    number: int
    """Counts from 1 within a watch or a capture."""
    addresses: tuple[str, str]
    port: int
    t_opened_ns: Ns
    protocol: str = ""
    """Name of its protocol."""
    primary_address: str = ""
    """Whose side is "primary"; "" until the first write tells, when the bench did not say."""
    closed: bool = False
    """Nothing that still comes on it is judged."""
    data: int = -1
    """Number of the TCP connection that carries its writes, where their answers travel on another; -1: on
    the same one, or not known."""
    resends: bool = False
    """What is not answered when it closes is sent again over the next session, and old copies may
    still be under way then."""
    id_name: str = "id"
    """The protocol's own word for a write's id."""
    show_id: Callable[[bytes], str] = _hex_id
    """A write's or barrier's id for people, as the protocol's other tools show it."""

    def side_of(self, address: str) -> Side:
        return "primary" if address == self.primary_address else "secondary"


class Message(msgspec.Struct, frozen=True, eq=False):
    """One message of ``sender``, whole."""

    session: LinkSession
    sender: str
    """Its IP address."""
    name: str
    """The protocol's own name for it: P_DATA."""
    t_ns: Ns
    """When its last byte was seen."""
    packet_no: int
    """Frame of its last byte (tshark lists a message there)."""
    stream_offset: int
    """Of its first byte in the stream of its direction."""
    clear_bytes: int
    """So many bytes from there on hold neither data of the host nor a secret: a redacted export
    keeps no others."""
    tentative: bool
    """Found by looking for a message after a hole, and not confirmed by the other end's answers: nobody is judged
    by it."""


class ReplicatedWrite(Message, frozen=True, eq=False):
    """A replicated write, or its announcement when its data follow as WriteParts."""

    key: Hashable
    """Names the write in its session while it waits for its answer."""
    write_id: bytes
    """The sender's id of it as on the wire; may be used again once it is answered."""
    kind: WriteKind
    volume: int
    offset_bytes: int
    """Where on the volume."""
    length_bytes: int
    data: bytes | memoryview
    """Shorter than ``length_bytes``: WriteParts follow. A view lives as long as what was fed."""
    raw: bytes | memoryview
    """Header fields, digest and data as on the wire, for excerpts."""
    t_first_ns: Ns
    """When its first byte was seen ..."""
    first_packet_no: int
    """... and in which frame."""
    expects_answer: bool
    algorithm: str = ""
    digest_wire: bytes = b""
    digest_computed: bytes = b""
    """b"": not checked."""
    digest_agreed: bool = True
    """False: the algorithm was assumed, because nothing captured says which was agreed on."""


class WritePart(Message, frozen=True, eq=False):
    """A piece of a write's data that did not come with its ReplicatedWrite."""

    key: Hashable
    part_offset_bytes: int
    """Within the write."""
    data: bytes | memoryview
    algorithm: str = ""
    digest_wire: bytes = b""
    digest_computed: bytes = b""
    digest_agreed: bool = True


class Answer(Message, frozen=True, eq=False):
    """What the receiver says of one write."""

    key: Hashable
    write_id: bytes
    kind: AnswerKind
    """Never "none"."""
    code: int
    """The protocol's number for it."""
    offset_bytes: int = -1
    """As the answer repeats it; -1: it does not."""
    length_bytes: int = 0
    raw: bytes = b""
    may_be_resync: bool = False
    """Resync traffic is answered in the same words: it is no error that no write waits for it."""


class Barrier(Message, frozen=True, eq=False):
    """The writes before it are to be stored before those after it."""

    barrier_id: bytes


class BarrierAnswer(Message, frozen=True, eq=False):
    barrier_id: bytes
    count: int | None
    """How many writes it says lay before the barrier; None: the protocol does not count."""
    raw: bytes = b""


class Resync(Message, frozen=True, eq=False):
    """Traffic that makes the two sides equal again after they had been apart."""

    what: ResyncWord
    """stated: what the sender says of itself before it; bitmap: ``ranges`` that it has marked as out of
    sync; marked: it marks one more; request, data, answer: a copy is asked for, sent, stored; same: it
    was found equal, and is not copied; equal: the sender calls both sides up to date, and the resync,
    if there was one, over."""
    offset_bytes: int = -1
    length_bytes: int = 0
    volume: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    """(first byte, byte behind the last one)."""
    size_bytes: int = 0
    """stated: of the volume; 0: not said."""
    bits: int = -1
    """stated: how many blocks it has marked; -1: not said."""
    crashed: bool = False
    """stated: it ended uncleanly while it was the primary."""
    initial: bool = False
    """stated: it has never been paired."""
    broken: bool = False
    """bitmap: the packet cannot be read."""


class Leaving(Message, frozen=True, eq=False):
    """An end says that it disconnects: writes that it leaves unanswered are no error."""

    is_off: bool = False
    """It stays after all."""


class Other(Message, frozen=True, eq=False):
    """A message that tells nothing about writes."""


class Opened(msgspec.Struct, frozen=True, eq=False):
    """The greeting of both ends was captured: every write of the session will have been."""

    session: LinkSession
    t_ns: Ns
    agreed: str
    """What they agreed on, for people."""


class Closed(msgspec.Struct, frozen=True, eq=False):
    """The session is over: no answer comes any more."""

    session: LinkSession
    t_ns: Ns
    packet_no: int
    closer: str
    """Address of the end that closed; "" when that was not captured."""
    reason: str
    """As tcpstream.StreamClosed.reason, or reopened."""


class Hole(msgspec.Struct, frozen=True, eq=False):
    """The capture lacks bytes that ``sender`` sent."""

    session: LinkSession
    sender: str
    t_ns: Ns
    hides_writes: bool
    """There may be writes or barriers among them ..."""
    hides_answers: bool
    """... or answers."""


class Malformed(msgspec.Struct, frozen=True, eq=False):
    """Bytes of ``sender`` that are no message of the protocol."""

    session: LinkSession
    sender: str
    t_ns: Ns
    packet_no: int
    stream_offset: int
    what: str
    excerpt: bytes
    hides_writes: bool = True
    """Bytes were passed over behind it."""


LinkMessage = (
    ReplicatedWrite
    | WritePart
    | Answer
    | Barrier
    | BarrierAnswer
    | Resync
    | Leaving
    | Other
    | Opened
    | Closed
    | Hole
    | Malformed
)
