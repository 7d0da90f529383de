"""The conformance kit of the seam: what ``core.link.protocol`` promises, tried on a protocol and a
capture of it. Needs no test framework: AssertionError says what was broken, and how to repeat it.
"""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.ledgerevents import Totals
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.messages import (
    LinkMessage,
    Message,
    ReplicatedWrite,
    WritePart,
)
from freezeframe.harness.core.link.protocol import (
    API_VERSION,
    LinkOptions,
    ProtocolMaker,
    ReplicationProtocol,
    Tell,
)
from freezeframe.harness.core.link.skim import Fill
from freezeframe.harness.core.link.tcpstream import (
    Flow,
    Reassembler,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from freezeframe.harness.core.linkevents import EVENTS, LinkRule

HEAD_BYTES: Final = 16
"""Where a header may stand in what is fed: half of the spoilt bytes are there."""
JUNK_PIECE_BYTES: Final = 1 << 13
JUNK_PIECES: Final = 4
MAX_JUNK_BYTES: Final = 1 << 20
"""A protocol that still holds most of so much junk has no bound."""
SINGLE_BYTES: Final = 20_000
"""As much of a capture is fed byte by byte; the rest in random pieces."""
MIN_DISTINCT_BYTES: Final = 8
"""Data of fewer different bytes may stand in a header by chance."""
_SLICE_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class ExpectedOnLink:
    """What an independent reader counts in the capture; None: not held against anything."""

    writes: int | None = None
    answers: int | None = None
    digests_checked: int | None = None
    digests_wrong: int | None = None
    hits: frozenset[str] = frozenset()
    """Link events of the whole capture: names of core.linkevents.EVENTS."""


def plain(message: LinkMessage) -> tuple[Any, ...]:
    """The message as values that can be compared and kept: views become bytes, its session a
    number."""
    found: list[Any] = [type(message).__name__, message.session.number]
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if name != "session":
            found.append(bytes(value) if isinstance(value, memoryview) else value)
    return tuple(found)


def check_protocol(
    make: ProtocolMaker,
    capture: Iterable[tuple[Ns, bytes]],
    expected: ExpectedOnLink,
    *,
    options: LinkOptions | None = None,
    ports: frozenset[int] = frozenset(),
    trials: int = 60,
    seed: int = 0,
    passed: Callable[[str], None] = lambda statement: None,
) -> None:
    """Hold ``make`` to the guarantees of the seam, on ``capture``: (time, Ethernet frame) each.

    AssertionError: one is broken; it says which, and the trial of ``seed`` that shows it. ``passed``
    takes each guarantee that is kept.
    """
    made = make(LinkOptions())
    _described(made)
    assert made.api_version == API_VERSION, f"api_version is {made.api_version}, not {API_VERSION}"
    ports = ports or frozenset(made.ports)
    trial = _Trial(make, options or LinkOptions(must_match=bool(ports)), ports, expected)
    events = _streams(capture, ports)
    assert any(type(event) is StreamData for event in events), "the capture shows no stream"
    guarantees: tuple[tuple[str, Callable[[], None]], ...] = (
        ("the counts and the link events of the whole capture", lambda: trial.whole(events)),
        ("it shows what tells claims", lambda: trial.shows(events, made.tells)),
        (
            "the messages do not depend on how bytes are cut",
            lambda: trial.cut(events, trials, seed),
        ),
        ("a hole accuses no device", lambda: trial.holed(events, trials, seed)),
        ("a capture may begin anywhere", lambda: trial.begun_late(events, trials)),
        ("it never raises", lambda: trial.junk(events, trials, seed)),
        ("its memory is bounded", lambda: trial.memory(events, seed)),
        ("clear bytes hold no data of the host", lambda: trial.redacted(events)),
    )
    for guarantee, try_it in guarantees:
        try_it()
        passed(guarantee)


def _described(made: ReplicationProtocol) -> None:
    """What it says of itself."""
    members = [one for one in vars(ReplicationProtocol) if not one.startswith("_")]
    lacking = [one for one in members if not hasattr(made, one)]
    assert not lacking, f"the protocol has no {', '.join(lacking)}"
    assert isinstance(made.name, str) and made.name, f"name is {made.name!r}, expected a text"
    assert all(isinstance(one, int) and 0 < one < 1 << 16 for one in made.ports), (
        f"ports is {made.ports!r}, expected TCP ports"
    )
    assert isinstance(made.tells, frozenset | set) and all(
        isinstance(one, Tell) for one in made.tells
    ), f"tells is {made.tells!r}, expected a frozenset of Tell"
    assert made.refuses_by in ("closing", "status"), (
        f"refuses_by is {made.refuses_by!r}, expected 'closing' or 'status'"
    )
    assert Tell.ANSWER not in made.tells or Tell.WRITE in made.tells, "tells ANSWER without WRITE"


def _streams(capture: Iterable[tuple[Ns, bytes]], ports: frozenset[int]) -> list[StreamEvent]:
    """The capture's streams, each with memory of its own."""
    reassembler, found, t_ns = Reassembler(ports=ports), list[StreamEvent](), 0
    for number, (t_ns, frame) in enumerate(capture, 1):
        found += (_own(event) for event in reassembler.feed(t_ns, frame, number))
    return found + [_own(event) for event in reassembler.close(t_ns)]


def _own(event: StreamEvent) -> StreamEvent:
    if type(event) is StreamData:
        return _piece(event, 0, len(event.data))
    return event


def _piece(event: StreamData, begin: int, end: int) -> StreamData:
    data = bytes(event.data[begin:end])
    return StreamData(event.flow, event.t_ns, event.packet_no, event.offset + begin, data)


def _gap(event: StreamData) -> StreamGap:
    return StreamGap(event.flow, event.t_ns, event.packet_no, event.offset, len(event.data))


def _with_new_fills(events: Iterable[StreamEvent]) -> Iterator[StreamEvent]:
    """The same events on flows that nobody has collected anything in."""
    flows: dict[int, Flow] = {}
    for event in events:
        old = event.flow
        if old.number not in flows:
            flows[old.number] = Flow(
                old.number, old.connection, old.source, old.source_port, old.destination,
                old.destination_port, Fill(),
            )  # fmt: skip
        fields = [getattr(event, name) for name in event.__struct_fields__]
        yield type(event)(flows[old.number], *fields[1:])


@dataclass
class _Trial:
    make: ProtocolMaker
    options: LinkOptions
    ports: frozenset[int]
    expected: ExpectedOnLink

    def whole(self, events: Sequence[StreamEvent]) -> None:
        hits, totals = self._judged(events)
        counted = {
            "writes": totals.writes,
            "answers": totals.acks,
            "digests_checked": totals.digests_checked,
            "digests_wrong": totals.digests_wrong,
        }
        for name, count in counted.items():
            wanted = getattr(self.expected, name)
            assert wanted in (None, count), f"the whole capture: {count} {name}, expected {wanted}"
        assert hits == self.expected.hits, (
            f"the whole capture: {sorted(hits)} hit, expected {sorted(self.expected.hits)}"
        )

    def shows(self, events: Sequence[StreamEvent], tells: frozenset[Tell]) -> None:
        """In a healthy capture with writes, what the protocol claims to show is there."""
        _, totals = self._judged(events)
        if not totals.writes or self.expected.hits:
            return
        for tell, count, what in (
            (Tell.WRITE, totals.writes, "write"),
            (Tell.ANSWER, totals.acks, "answer"),
            (Tell.DIGEST, totals.digests_checked + totals.digests_wrong, "digest that was checked"),
        ):
            assert tell not in tells or count, (
                f"tells claims {tell.name}, and the capture of {totals.writes} writes shows no {what}: from "
                "what is claimed and not seen, FreezeFrame concludes that it did not happen"
            )
            assert tell in tells or not count, (
                f"it shows {what}s, and tells does not name {tell.name}"
            )

    def cut(self, events: Sequence[StreamEvent], trials: int, seed: int) -> None:
        """However the bytes are cut into pieces, the messages are the same."""
        whole = self._messages(events)
        left, single = SINGLE_BYTES, list[StreamEvent]()
        for event in events:
            size = len(event.data) if type(event) is StreamData else 0
            if type(event) is StreamData and size <= left:
                left -= size
                single += (_piece(event, at, at + 1) for at in range(size))
            else:
                single.append(event)
        self._same(whole, single, "byte by byte")
        for number in range(min(trials, 20)):
            dice, pieces = random.Random(f"{seed}/cut/{number}"), list[StreamEvent]()
            for event in events:
                if type(event) is not StreamData or len(event.data) < 2:
                    pieces.append(event)
                    continue
                size = len(event.data)
                cuts = sorted({0, size, *(dice.randrange(size) for _ in range(dice.randrange(6)))})
                pieces += (_piece(event, a, b) for a, b in itertools.pairwise(cuts))
            self._same(whole, pieces, f"cut by trial {number} of seed {seed}")

    def holed(self, events: Sequence[StreamEvent], trials: int, seed: int) -> None:
        """A hole in the capture is no error of a device."""
        gaps = {at: _gap(event) for at, event in enumerate(events) if type(event) is StreamData}
        lost = [{at} for at in list(gaps)[:: max(1, len(gaps) // trials)]]
        for number in range(trials):
            dice = random.Random(f"{seed}/hole/{number}")
            lost.append(set(dice.sample(list(gaps), min(len(gaps), dice.randrange(1, 6)))))
        for holes in lost:
            holed = [gaps[at] if at in holes else event for at, event in enumerate(events)]
            self._accuses_nobody(holed, f"holes at {sorted(holes)}")

    def begun_late(self, events: Sequence[StreamEvent], trials: int) -> None:
        """A capture may begin anywhere, in the middle of a message too."""
        data = [at for at, event in enumerate(events) if type(event) is StreamData]
        for at in data[:: max(1, len(data) // trials)]:
            for skip in (0, 1, 7):
                late = list(_late(events, at, skip))
                self._accuses_nobody(late, f"begun at event {at}, {skip} bytes into it")

    def junk(self, events: Sequence[StreamEvent], trials: int, seed: int) -> None:
        """Whatever is fed, nothing is raised."""
        for number in range(trials):
            dice, spoilt = random.Random(f"{seed}/junk/{number}"), list[StreamEvent]()
            for event in events:
                if type(event) is StreamData and dice.random() < 0.2:
                    data = bytearray(event.data)
                    for _ in range(dice.randrange(1, 9)):
                        most = dice.choice((HEAD_BYTES, len(data)))
                        data[dice.randrange(min(most, len(data)))] = dice.randrange(256)
                    if dice.random() < 0.1:
                        data = bytearray(dice.randbytes(len(data)))
                    spoilt.append(
                        StreamData(
                            event.flow, event.t_ns, event.packet_no, event.offset, bytes(data)
                        )
                    )
                else:
                    spoilt.append(event)
            try:
                self._judged(spoilt)
            except Exception as error:
                raise AssertionError(
                    f"spoilt bytes of trial {number} of seed {seed} raise {error!r}"
                ) from error

    def memory(self, events: Sequence[StreamEvent], seed: int) -> None:
        """What is held does not grow with what is fed: after a hole, while nothing fits."""
        dice, follower = random.Random(f"{seed}/memory"), self._follower()
        flows = {event.flow.number: event.flow for event in _with_new_fills(events)}
        for flow in flows.values():
            _drain(follower.on(StreamOpened(flow, 0, 1, True, False)))
        tracemalloc.start()
        try:
            for flow in flows.values():
                for junk in (bytes(JUNK_PIECE_BYTES), dice.randbytes(JUNK_PIECE_BYTES)):
                    _drain(follower.on(StreamGap(flow, 1, 1, 0, 1)))
                    before = self._held_after(follower, flow, junk)
                    grown, fed = 0, 0
                    # What looks like a header may be waited for, up to a bound.
                    while not fed or (grown >= fed // 2 and fed < MAX_JUNK_BYTES):
                        grown = self._held_after(follower, flow, junk) - before
                        fed += JUNK_PIECES * JUNK_PIECE_BYTES
                    assert grown < fed // 2, (
                        f"of {fed} bytes of junk from {flow.source}, {grown} bytes are held"
                    )
        finally:
            tracemalloc.stop()

    def _held_after(self, follower: Follower, flow: Flow, junk: bytes) -> int:
        for at in range(JUNK_PIECES):
            _drain(follower.on(StreamData(flow, 1, 1, at * len(junk), junk)))
        return tracemalloc.get_traced_memory()[0]

    def redacted(self, events: Sequence[StreamEvent]) -> None:
        """What a message calls clear holds no data of the host."""
        streams: dict[int, bytearray] = {}
        follower = self._follower()
        for event in _with_new_fills(events):
            number = event.flow.number
            if type(event) is StreamData:
                stream = streams.setdefault(number, bytearray())
                stream[event.offset :] = bytes(event.offset - len(stream)) + bytes(event.data)
            for message in follower.on(event):
                if isinstance(message, Message):
                    start = message.stream_offset
                    clear = bytes(streams[number][start : start + message.clear_bytes])
                    _clear_of_data(message, clear)

    # --- one way through -------------------------------------------------------------------------
    def _follower(self) -> Follower:
        return Follower(self.make(self.options), self.ports)

    def _messages(self, events: Iterable[StreamEvent]) -> list[tuple[Any, ...]]:
        follower = self._follower()
        return [
            plain(message) for event in _with_new_fills(events) for message in follower.on(event)
        ]

    def _same(self, whole: list[tuple[Any, ...]], pieces: list[StreamEvent], how: str) -> None:
        found = self._messages(pieces)
        for at, (a, b) in enumerate(zip(whole, found, strict=False)):
            assert a == b, f"{how}: message {at} is {b[:6]}, in one piece it was {a[:6]}"
        assert len(found) == len(whole), f"{how}: {len(found)} messages, in one piece {len(whole)}"

    def _judged(self, events: Iterable[StreamEvent]) -> tuple[frozenset[str], Totals]:
        """Names of the link events that hit, and the ledger's counts."""
        follower, ledger = self._follower(), Ledger()
        rules = LinkRules(LinkRule(name=name, event=name) for name in EVENTS)
        hits, t_ns = set[str](), 0
        for event in _with_new_fills(events):
            t_ns = max(t_ns, event.t_ns)
            for message in follower.on(event):
                for found in ledger.on(message):
                    hits |= {one.rule for one in rules.on(found, t_ns)}
            for found in ledger.tick(t_ns):
                hits |= {one.rule for one in rules.on(found, t_ns)}
            hits |= {one.rule for one in rules.tick(t_ns - 50 * NS_PER_MS)}
        for found in ledger.tick(t_ns + NS_PER_S):
            hits |= {one.rule for one in rules.on(found, t_ns)}
        return frozenset(hits), ledger.totals

    def _accuses_nobody(self, events: Sequence[StreamEvent], how: str) -> None:
        hits, _ = self._judged(events)
        wrong = hits - self.expected.hits
        assert not wrong, f"{how}: {sorted(wrong)} hit, which the whole capture does not show"


def _late(events: Sequence[StreamEvent], at: int, skip: int) -> Iterator[StreamEvent]:
    """The events from ``at`` on, as a capture that begins there shows them: streams that are going
    on, the first of them ``skip`` bytes later."""
    opened = set[int]()
    for event in events[at:]:
        number = event.flow.number
        if number in opened or type(event) is StreamOpened:
            opened.add(number)
            yield event
        elif type(event) is StreamData and len(event.data) > skip:
            yield StreamOpened(event.flow, event.t_ns, event.packet_no, False, False)
            yield _piece(event, 0 if opened else skip, len(event.data))
            opened.add(number)


def _clear_of_data(message: Message, clear: bytes) -> None:
    if not isinstance(message, ReplicatedWrite | WritePart):
        return
    data = bytes(message.data)
    for at in range(0, len(data) - _SLICE_BYTES + 1, _SLICE_BYTES):
        piece = data[at : at + _SLICE_BYTES]
        assert len(set(piece)) < MIN_DISTINCT_BYTES or piece not in clear, (
            f"{message.name} at byte {message.stream_offset} of its stream: byte {at} of its data lies in "
            f"the {message.clear_bytes} bytes that it calls clear"
        )


def _drain(messages: Iterable[LinkMessage]) -> None:
    for _ in messages:
        pass
