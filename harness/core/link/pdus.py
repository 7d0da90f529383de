"""What protocols of whole PDUs share: cutting a stream into them, and which connections belong
together.

A protocol says how long the PDU at a place is (``Measure``); ``PduStream`` collects it, looks for
the next one after a hole, and marks what was found by looking as tentative until it is confirmed: by the
next PDU, and by the other end. What follows a hole may be the data of a write that hold PDUs, such as a
capture that the host copies, or the rest of a PDU that was cut; only when the other end has answered what
was found (PROVING_ANSWERS) does the reader surely stand where the devices do.
``Associations`` keeps one session per pair of addresses and service port. ``PduLink`` and
``PduDirection`` are a protocol except for its format: what is left to write is how long a PDU is and
what it says. DRBD has a stream of its own (``drbd.stream``), which passes bulk bodies unfed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.ledgerbook import REORDER_FRAMES, REORDER_NS
from freezeframe.harness.core.link.messages import (
    Answer,
    Closed,
    Hole,
    LinkMessage,
    LinkSession,
    Malformed,
    ReplicatedWrite,
)
from freezeframe.harness.core.link.protocol import API_VERSION, LinkOptions, Opening

MAX_SESSIONS: Final = 64
"""Pairs of addresses and port that are distinguished at once; a bench has one or two."""
MAX_ASKED: Final = 65_536
"""Commands under way of one connection that are no writes."""
TRUSTED: Final = 2
"""PDUs in succession after which what was found by looking is believed."""
PROVING_ANSWERS: Final = 4
"""Answers in a row, each to a write that was found since the hole. One alone may have the number of
what only looks like a write."""
EXCERPT_BYTES: Final = 72
MAX_UNPROVEN_BYTES: Final = 1 << 18
"""A longer PDU that was found by looking is not waited for: the wait would swallow what follows."""

Measure = Callable[[bytearray, int], "int | str"]
"""Bytes of the whole PDU at a place, 0 when its header is not complete there, or why no PDU begins
there. Never raises, and never more than the protocol's own bound."""
Confirm = Callable[[bytes], "bool | None"]
"""Whether a whole PDU proves itself, by a header digest or the like; None: it has nothing to."""


@dataclass(frozen=True, slots=True)
class Pdu:
    """One PDU, whole."""

    body: bytes
    t_ns: Ns
    """When its last byte was seen ..."""
    packet_no: int
    """... and in which frame."""
    t_first_ns: Ns
    first_packet_no: int
    offset: int
    """Of its first byte in the stream."""
    tentative: bool
    """Found by looking, and not confirmed by what follows, or by the other end."""


@dataclass(frozen=True, slots=True)
class NoPdu:
    """Bytes where a PDU must begin, and none does."""

    what: str
    excerpt: bytes
    t_ns: Ns
    packet_no: int
    offset: int


class PduStream:
    """One direction of one connection, cut into PDUs."""

    def __init__(
        self, *, from_start: bool, measure: Measure, confirm: Confirm | None = None
    ) -> None:
        self._measure = measure
        self._confirm = confirm
        self._held = bytearray()
        self._held_from: tuple[Ns, int] = (0, 0)
        self._offset = 0
        self._needs = 0
        """Bytes of the PDU that has begun, as it was measured; 0: not known. A large one comes in many frames."""
        self._looking = not from_start
        self._trust = TRUSTED if from_start else 0
        self.is_followed = from_start
        """From its start, without a hole or a guess."""

    @property
    def looking(self) -> bool:
        """Out of step: bytes are passed over until a PDU is found."""
        return self._looking

    @property
    def unproven(self) -> bool:
        """What is found is tentative until it is confirmed."""
        return self._looking or self._trust < TRUSTED

    @property
    def offset_bytes(self) -> int:
        """Where in the stream the bytes that ``measure`` gets begin."""
        return self._offset

    def gap(self, length_bytes: int) -> None:
        """The capture lacks ``length_bytes`` here."""
        self._offset += len(self._held) + length_bytes
        self._held.clear()
        self._looking, self._trust, self._needs = True, 0, 0
        self.is_followed = False

    def doubt(self) -> None:
        """The length of the last PDU was a guess: what follows is tentative until it is confirmed,
        and bytes that are no PDU accuse nobody."""
        self._trust, self.is_followed = 0, False

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> list[Pdu | NoPdu]:
        """The PDUs that ``data`` completes, and one NoPdu where the sender leaves the format.

        Give each result to the protocol before the next call: ``measure`` may depend on what an
        earlier PDU of either direction said. Within one call it is asked in order.
        """
        return list(self.pdus(data, t_ns, packet_no))

    def pdus(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> Iterator[Pdu | NoPdu]:
        """As ``feed``, one at a time: each is handled before the next is measured."""
        if not self._held:
            self._held_from = (t_ns, packet_no)
        self._held += data
        return iter(partial(self.next_pdu, t_ns, packet_no), None)

    def next_pdu(self, t_ns: Ns, packet_no: int) -> Pdu | NoPdu | None:
        """The next result from what is held; None: more bytes are needed."""
        if len(self._held) < self._needs:
            return None
        passed = self._needs = 0
        found: Pdu | NoPdu | None = None
        while passed < len(self._held):
            length = self._measure(self._held, passed)
            if isinstance(length, str):
                if not self._looking:
                    self._looking = True
                    excerpt = bytes(self._held[passed : passed + EXCERPT_BYTES])
                    offset = self._offset + passed
                    if self._trust >= TRUSTED:
                        found = NoPdu(length, excerpt, t_ns, packet_no, offset)
                    self._trust = 0
                passed += 1
                if found is not None:
                    break
                continue
            if not length or len(self._held) - passed < length:
                if self._looking and length > MAX_UNPROVEN_BYTES:
                    passed += 1  # so much is not waited for on the word of what may be data
                    continue
                if not self._looking:
                    self._needs = length
                break
            body = bytes(memoryview(self._held)[passed : passed + length])
            if self._looking:
                proven = self._confirm(body) if self._confirm is not None else None
                if proven is False:
                    passed += 1
                    continue
                self._looking, self._trust = False, TRUSTED - 1 if proven else 0
            self._trust = min(TRUSTED, self._trust + 1)
            first = self._held_from if not passed else (t_ns, packet_no)
            offset = self._offset + passed
            found = Pdu(body, t_ns, packet_no, *first, offset, self._trust < TRUSTED)
            passed += length
            break
        if passed:
            del self._held[:passed]
            self._offset += passed
            self._held_from = (t_ns, packet_no)
        return found


class Strays:
    """Answers that no write under way waits for: one may have been captured a little before its
    write, as ``ledgerbook.is_disorder`` has it. The write is then not waited for; whether the answer
    was good is not known, since it may have been another command's."""

    def __init__(self) -> None:
        self._asked: OrderedDict[Hashable, None] = OrderedDict()
        """Commands under way that are no writes: their answers are no strays."""
        self._early: OrderedDict[Hashable, tuple[Ns, int]] = OrderedDict()
        self.unasked = 0
        """Answers to nothing that was seen."""

    def asked(self, key: Hashable) -> None:
        """A command that is no write."""
        self._early.pop(key, None)
        self._asked[key] = None
        if len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)

    def answered(self, key: Hashable, pdu: Pdu) -> None:
        """An answer that no write waits for."""
        if key in self._asked:
            del self._asked[key]
            return
        self.unasked += 1
        self._early[key] = (pdu.t_ns, pdu.packet_no)
        if len(self._early) > REORDER_FRAMES:
            self._early.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """A command that is no write has been answered in another way."""
        self._asked.pop(key, None)

    def has_answered(self, key: Hashable, write: Pdu) -> bool:
        """Whether the answer to this write has come."""
        self._asked.pop(key, None)
        t_ns, packet_no = self._early.pop(key, (-REORDER_NS, -REORDER_FRAMES))
        is_near = write.packet_no - packet_no <= REORDER_FRAMES and write.t_ns - t_ns <= REORDER_NS
        return packet_no >= 0 and (packet_no > write.packet_no or is_near)

    def clear(self) -> None:
        self._asked.clear()
        self._early.clear()


S = TypeVar("S", bound=LinkSession)
Where = tuple[LinkSession, str, str, Ns, int, int, int, bool]
"""The first fields of a Message."""


class Associations(Generic[S]):
    """Sessions by the two addresses and the service port; a closed one makes room for the next."""

    def __init__(
        self, options: LinkOptions, make: Callable[[int, tuple[str, str], int, Ns], S]
    ) -> None:
        self._pair = frozenset({options.primary_address, options.secondary_address}) - {""}
        self._make = make
        self._sessions: OrderedDict[tuple[str, str, int], S] = OrderedDict()
        self._numbers = 0

    def is_pairs(self, opening: Opening) -> bool:
        """Whether both ends are those that the bench names, as far as it names them."""
        return self._pair <= {opening.source, opening.destination}

    @property
    def are_named(self) -> bool:
        """Both ends are named: whoever ``is_pairs`` accepts is the pair and no stranger."""
        return len(self._pair) == 2

    def session_for(self, opening: Opening) -> S:
        """The open session of this connection's ends, or a new one."""
        key = _ends(opening)
        session = self._sessions.get(key)
        return self.new_session(opening) if session is None or session.closed else session

    def new_session(self, opening: Opening) -> S:
        """A new session of this connection's ends, whatever became of the one before."""
        a, b, port = _ends(opening)
        self._numbers += 1
        session = self._make(self._numbers, (a, b), port, opening.t_ns)
        self._sessions.pop((a, b, port), None)
        self._sessions[a, b, port] = session
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session


def _ends(opening: Opening) -> tuple[str, str, int]:
    """Both addresses in order, and the service port."""
    a, b = sorted((opening.source, opening.destination))
    return a, b, opening.service_port


@dataclass(eq=False)
class PduConnection(Generic[S]):
    """Both directions of one connection: its session, and what is under way on it."""

    session: S
    strays: Strays = field(default_factory=Strays)
    is_spoken: bool = False
    """One of the ends has spoken the protocol ..."""
    is_pairs: bool = False
    """... and the one that sends writes."""
    withheld: list[Malformed | Hole] = field(default_factory=list)
    """Between named ends: what one began with, while nobody has spoken the protocol."""
    answered: int = 0
    """Writes that were answered in a row since the reader lost its place."""
    is_proved: bool = False
    """The reader once stood where the devices do."""

    def lose_sight(self) -> None:
        """The capture lacks bytes: of what was under way nothing is known any more."""
        self.strays.clear()
        self.answered = 0

    def forget_guesses(self) -> None:
        """What was found was no PDU: whatever was concluded from it about the connection is void."""


C = TypeVar("C", bound=PduConnection[Any])


class PduLink(ABC, Generic[S, C]):
    """What a ``ReplicationProtocol`` of whole PDUs does whatever its format: its connections and its
    sessions. A protocol adds what it shows (``name``, ``ports``, ``tells``, ``refuses_by``,
    ``wireshark``) and the three methods that make its parts."""

    api_version: Final = API_VERSION
    host_addresses: bool = False
    console_texts: tuple[ConsoleText, ...] = ()

    def __init__(self, options: LinkOptions) -> None:
        self.options = options
        self.associations: Associations[S] = Associations(options, self.make_session)
        self._connections: dict[int, C] = {}

    @abstractmethod
    def make_session(self, number: int, ends: tuple[str, str], port: int, t_ns: Ns) -> S:
        """A new session of these two addresses and this service port."""

    @abstractmethod
    def make_connection(self, opening: Opening) -> C:
        """A new connection: of the open session of its ends (``associations.session_for``), or of a
        session of its own (``associations.new_session``)."""

    @abstractmethod
    def make_direction(self, both: C, opening: Opening) -> PduDirection[C]: ...

    def connection(self, opening: Opening) -> PduDirection[C] | None:
        if not self.associations.is_pairs(opening):
            return None
        both = self._connections.get(opening.connection)
        if both is None:
            both = self._connections[opening.connection] = self.make_connection(opening)
        return self.make_direction(both, opening)

    def forget(self, connection: int) -> None:
        """Drop a connection that is over."""
        self._connections.pop(connection, None)

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        return None


class PduDirection(ABC, Generic[C]):
    """One direction of one connection of a ``PduLink``: see ``core.link.protocol.Direction``."""

    def __init__(self, link: PduLink[Any, C], both: C, opening: Opening) -> None:
        self.link = link
        self.both = both
        self.opening = opening
        self.sender = opening.source
        self.sends_writes: bool | None = None
        """Whether this end sends writes, or answers; None until a PDU has shown it."""
        self.stream = PduStream(
            from_start=opening.from_start, measure=self.measure, confirm=self.confirm
        )
        self._foreign = False
        self._known = not opening.from_start
        """What it began with is the protocol's. Without the beginning, ``stream`` says what is proven."""
        self._found_write = False
        """What was found since the last hole wrote."""

    @abstractmethod
    def measure(self, data: bytearray, at: int) -> int | str:
        """See ``Measure``."""

    @abstractmethod
    def take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        """Append what the PDU says; set ``sends_writes`` when it shows that."""

    def confirm(self, body: bytes) -> bool | None:
        """See ``Confirm``."""
        return None

    def is_own(self, pdu: Pdu) -> bool:
        """Whether a stranger's stream, such as one that begins with a length, would hardly begin with
        this PDU. Until one has come, bytes that are no PDU may be anybody's."""
        return True

    def begin(self) -> list[LinkMessage]:
        return []

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> list[LinkMessage]:
        out: list[LinkMessage] = []
        if self._foreign:
            return out
        for found in self.stream.pdus(data, t_ns, packet_no):
            if isinstance(found, Pdu):
                self._take(found, out)
                self._known |= self.is_own(found)
                if self._known and not found.tentative:
                    self._spoken(out)
                continue
            message = self.malformed(found.what, found.excerpt, found)
            if self._known or self._is_pairs():
                out.append(message)
            elif self.link.options.must_match and self.link.associations.are_named:
                self.both.withheld = self.both.withheld or [message]  # the first says it
            else:
                self._foreign = True
                self.opening.fill.discard()
                break
        if self.stream.looking and not self._foreign:
            out.append(self._hole(t_ns))  # whatever passes until the next PDU is found is not seen
            self.both.answered = 0
            if not self.both.is_proved:
                self.both.forget_guesses()
        return out

    def _is_pairs(self) -> bool:
        """Whether bytes before which nothing was the protocol's own are the pair's error. A health check that
        opens the port is none, also where the server has greeted it; nor is a port that carries another
        protocol, or an encrypted one. Between two addresses that are both named, who is answered in
        the protocol is the pair."""
        is_pairs = self.both.is_spoken and self.link.associations.are_named
        return self.link.options.must_match and (self.both.is_pairs or is_pairs)

    def _spoken(self, out: list[LinkMessage]) -> None:
        self.both.is_spoken = True
        self.both.is_pairs |= bool(self.sends_writes)
        out += self.both.withheld
        self.both.withheld.clear()

    @property
    def _is_certain(self) -> bool:
        """The reader stands where the devices do."""
        both = self.both
        is_certain = self.stream.is_followed or both.answered >= PROVING_ANSWERS
        both.is_proved |= is_certain
        return is_certain

    def _take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        """Answers prove where the reader of their writes stands, also where their own direction was never lost."""
        both, unasked, before = self.both, self.both.strays.unasked, len(out)
        certain = self._is_certain or pdu.tentative
        self.take(pdu if certain else replace(pdu, tentative=True), out)
        if both.answered >= PROVING_ANSWERS:
            return
        found = [type(one) for one in out[before:]]
        self._found_write |= ReplicatedWrite in found
        answers = found.count(Answer)
        # Whoever answers itself is no end of a mirror: both are data.
        is_others = both.strays.unasked == unasked and not (answers and self._found_write)
        both.answered = both.answered + answers if is_others else 0

    def gap(self, length_bytes: int, t_ns: Ns) -> list[LinkMessage]:
        if self._foreign:
            return []
        self.stream.gap(length_bytes)
        self._found_write = False
        self.both.lose_sight()
        return [self._hole(t_ns)]

    def closed(self, t_ns: Ns, packet_no: int, reason: str) -> list[LinkMessage]:
        self.link.forget(self.opening.connection)
        session = self.both.session
        if session.closed or self._foreign or self.sends_writes is None:
            return []
        session.closed = True
        return [Closed(session, t_ns, packet_no, self.sender, reason)]

    def where(self, pdu: Pdu, name: str, clear_bytes: int) -> Where:
        """The first fields of a message that this PDU is."""
        clear_bytes = 0 if pdu.tentative else clear_bytes
        return (
            self.both.session, self.sender, name, pdu.t_ns, pdu.packet_no, pdu.offset, clear_bytes, pdu.tentative
        )  # fmt: skip

    def malformed(self, what: str, excerpt: bytes, found: Pdu | NoPdu) -> Malformed | Hole:
        """Bytes that no device takes for a PDU: the sender's fault where the reader surely stands where the
        devices do, else the reader's own."""
        is_certain, self.both.answered = self._is_certain, 0
        if isinstance(found, NoPdu):
            self.stream.doubt()
        if not is_certain:
            return self._hole(found.t_ns)
        where = (self.sender, found.t_ns, found.packet_no, found.offset)
        return Malformed(self.both.session, *where, what, excerpt)

    def _hole(self, t_ns: Ns) -> Hole:
        sends = self.sends_writes
        return Hole(self.both.session, self.sender, t_ns, sends is not False, sends is not True)
