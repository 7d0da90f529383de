"""The seam of the replication link: what a protocol is to FreezeFrame.

A protocol is pure: bytes and times come in, messages go out; it opens nothing and reads no clock.
It is found by name (``core.link.byname``): ``[link] protocol = "NAME"`` in the bench file, entry
points of the group ``freezeframe.links``. ``core.link.check`` holds it to the guarantees below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, Protocol

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    Barrier,
    BarrierAnswer,
    Closed,
    Hole,
    Leaving,
    LinkMessage,
    LinkSession,
    Malformed,
    Message,
    Opened,
    Other,
    ReplicatedWrite,
    Resync,
    WriteKind,
    WritePart,
)
from freezeframe.harness.core.link.skim import Fill

API_VERSION: Final = 1
"""Of this seam: a protocol names it as ``api_version``; raised when an old protocol would break."""


class Tell(StrEnum):
    """What a protocol shows on the wire. From what it does not show nothing is concluded."""

    WRITE = "write"
    DIGEST = "digest"
    """A checksum over the data, which can be checked."""
    ANSWER = "answer"
    """Each write is answered by itself."""
    STATUS = "status"
    """An answer can say that the write was refused."""
    BARRIER = "barrier"
    """Barriers are answered with a count of the writes before them."""
    RESYNC = "resync"


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """What a bench file says of the link, for a protocol that is being made."""

    primary_address: str = ""
    secondary_address: str = ""
    """"": not known."""
    integrity_alg: str = ""
    """Digest algorithm that the bench file names, for a capture that does not show what was agreed
    on. "": a protocol may infer it from the digest's size, and says so (digest_agreed)."""
    must_match: bool = False
    """The connections were picked by their port: bytes that are not the protocol's are malformed.
    Otherwise a connection that does not begin with the protocol's bytes is left alone."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One direction of a TCP connection that the capture begins to show."""

    flow: int
    """Tells directions apart, also when the same ports come again."""
    connection: int
    """The same in both directions."""
    source: str
    source_port: int
    destination: str
    destination_port: int
    from_start: bool
    """The first byte that was sent will be the first that is fed."""
    opener: bool
    """This direction's sender opened the connection (its SYN was captured)."""
    t_ns: Ns
    packet_no: int
    ports: frozenset[int] = frozenset()
    """The service ports that the bench file names."""
    fill: Fill = field(default_factory=Fill)
    """Where the body of a long message may be collected: ``fill.begin(length)``, after which the
    bytes of its middle are copied there without being fed. ``fill.discard()``: nothing of this
    direction is wanted any more."""

    @property
    def service_port(self) -> int:
        """The port that was listened on: the one that the bench file names, whatever the numbers;
        where that does not decide, the one that was connected to, or the smaller."""
        named = self.ports & {self.source_port, self.destination_port}
        if len(named) == 1:
            return next(iter(named))
        if self.opener:
            return self.destination_port
        if self.from_start:
            return self.source_port
        return min(self.source_port, self.destination_port)


class Direction(Protocol):
    """One direction of one connection. Never raises, whatever it is fed.

    The messages do not depend on how the bytes were cut into pieces. Memory is bounded.
    """

    def begin(self) -> Iterable[LinkMessage]:
        """Called once, before anything is fed: what its opening means, such as the end of an older
        session of the same two nodes."""
        ...

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> Iterable[LinkMessage]:
        """Take the next bytes of the stream; give the messages that they complete. Views in a
        message may be of ``data``'s memory."""
        ...

    def gap(self, length_bytes: int, t_ns: Ns) -> Iterable[LinkMessage]:
        """The capture lacks ``length_bytes`` here. What is found by looking for the next message is
        tentative until it is confirmed, and a Hole says what may be missing."""
        ...

    def closed(self, t_ns: Ns, packet_no: int, reason: str) -> Iterable[LinkMessage]:
        """The stream has ended; ``reason`` as in tcpstream.StreamClosed."""
        ...


class ReplicationProtocol(Protocol):
    """The protocol of one link; keeps its sessions. Made anew for each watch and each capture."""

    @property
    def name(self) -> str: ...

    @property
    def api_version(self) -> int: ...

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP service ports where the bench file names none."""
        ...

    @property
    def tells(self) -> frozenset[Tell]: ...

    @property
    def refuses_by(self) -> Literal["closing", "status"]:
        """How a receiver refuses data whose digest is wrong: it closes without an answer, or it
        answers so."""
        ...

    @property
    def host_addresses(self) -> bool:
        """A write's offset on the link is the host's own; else a constant lies between the two, such
        as a mirror's metadata."""
        ...

    @property
    def wireshark(self) -> str:
        """Display filter that finds a write by its id: a template with ``{write_id}``."""
        ...

    @property
    def console_texts(self) -> tuple[ConsoleText, ...]:
        """What the consoles of its devices say of places on the volume."""
        ...

    def connection(self, opening: Opening) -> Direction | None:
        """None: not of this link, left alone."""
        ...

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        """The number that the device log of ``side`` gives to the write; None: it is unknown
        from the id."""
        ...


ProtocolMaker = Callable[[LinkOptions], ReplicationProtocol]


class Nothing:
    """``protocol = "none"``: the link is recorded and not understood."""

    name: Final = "none"
    api_version: Final = API_VERSION
    ports: Final[tuple[int, ...]] = ()
    tells: Final[frozenset[Tell]] = frozenset()
    refuses_by: Final = "closing"
    host_addresses: Final = False
    wireshark: Final = ""
    console_texts: Final[tuple[ConsoleText, ...]] = ()

    def __init__(self, options: LinkOptions) -> None:
        pass

    def connection(self, opening: Opening) -> Direction | None:
        return None

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        return None


__all__ = [
    "API_VERSION", "Answer", "AnswerKind", "Barrier", "BarrierAnswer", "Closed", "ConsoleText", "Direction", "Hole",
    "Leaving", "LinkMessage", "LinkOptions", "Malformed", "Message", "Nothing", "Opened", "Opening",
    "Other", "ProtocolMaker", "ReplicationProtocol", "Resync", "LinkSession", "Tell", "ReplicatedWrite",
    "WriteKind", "WritePart",
]  # fmt: skip
