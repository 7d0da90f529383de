"""What the capture of a replication link cannot see, and which conclusions that makes unsafe.

``blindness`` decides it, from counters: the link watch asks it before a rule speaks. A conclusion
that rests on what was *not* seen is withheld where it could not have been seen; a wrong digest and a
refusal stay what they are, whatever else is hidden. ``unproved`` decides what a capture that has
found nothing does not prove: the run, the watch, the pytest plugin and the import ask it when they
judge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from freezeframe.harness.core.link.addresses import canonical
from freezeframe.harness.core.link.ipheaders import Foreign
from freezeframe.harness.core.link.ledgerevents import Totals
from freezeframe.harness.core.link.protocol import ReplicationProtocol, Tell
from freezeframe.harness.core.link.tcpsegments import SegmentJudge
from freezeframe.harness.core.linkevents import EVENTS

ENOUGH_WRITES: Final = 16
"""Writes without one digest checked, or without one answer on a connection that is shown."""
MAX_NAMED: Final = 4
"""Directions in one sentence."""
FOREIGN_SHARE: Final = 0.1
"""Of all frames: so many with hidden content are worth a word beside a link that is understood."""
_TLS_HANDSHAKE: Final = b"\x16\x03"

_ABOUT_ANSWERS_MISSING: Final = frozenset(
    {"missing-ack", "late-ack", "unacked-close", "resync-omitted"}
)
_ABOUT_WRITES_MISSING: Final = frozenset(
    {"unknown-ack", "repeated-ack", "barrier-count", "resync-omitted"}
)
_ALL: Final = frozenset(EVENTS)


class BlindKind(StrEnum):
    """What is wrong with the sight of the link."""

    NOTHING_CAPTURED = "nothing-captured"
    NO_CONNECTION = "no-connection"
    NOT_UNDERSTOOD = "not-understood"
    ENCRYPTED = "encrypted"
    HIDDEN = "hidden"
    ANSWERS_NOT_SHOWN = "answers-not-shown"
    WRITES_NOT_SHOWN = "writes-not-shown"
    VANISHED = "vanished"
    EXCHANGED = "exchanged"
    STRANGERS = "strangers"
    NO_WRITE = "no-write"
    NO_DIGEST = "no-digest"
    PROTOCOL_BROKE = "protocol-broke"
    NO_ANSWER = "no-answer"
    HOLES = "holes"


class Blindness(NamedTuple):
    """One thing that the capture cannot see."""

    kind: BlindKind
    says: str
    """A sentence for people."""
    unsafe: frozenset[str] = frozenset()
    """Link events (``core.linkevents``) that must trigger nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class HeardDirection:
    """The frames from one address to another, over all connections on the link's ports."""

    is_heard: bool = False
    """A frame was captured."""
    has_spoken: bool = False
    """Bytes of its streams were captured."""
    connections: int = 0
    is_encrypted: bool = False


@dataclass(frozen=True, kw_only=True)
class LinkState:
    """What was captured of a link until now."""

    protocol: str = ""
    tells: frozenset[Tell] = frozenset(Tell)
    answers_elsewhere: bool = False
    """Answers travel on another connection than writes."""
    ports: frozenset[int] = frozenset()
    primary_address: str = ""
    secondary_address: str = ""
    """As the bench file names them."""
    broken: str = ""
    """Why the protocol understands nothing more: an error of its own code."""
    frames: int = 0
    """Captured, of any kind."""
    directions: Mapping[tuple[str, str], HeardDirection] = field(default_factory=dict)
    """(source, destination) -> what was captured."""
    foreign: Mapping[Foreign, int] = field(default_factory=dict)
    messages: int = 0
    """Of the protocol."""
    writers: Mapping[str, int] = field(default_factory=dict)
    """Address -> replicated writes that it sent."""
    answers: int = 0
    answerers: frozenset[str] = frozenset()
    """Addresses that sent answers."""
    digests_checked: int = 0
    last_writer: str = ""
    writes_in_a_row: int = 0
    """By ``last_writer``, up to now."""
    unheard: int = 0
    """Writes that were not answered in time by an end of which no frame was captured since."""

    @property
    def writes(self) -> int:
        return sum(self.writers.values())

    def between(self, source: str, destination: str) -> HeardDirection:
        return self.directions.get((source, destination), HeardDirection())


def blindness(state: LinkState) -> list[Blindness]:
    """All that the capture cannot see; empty: what is there to be seen is seen. Directions that
    have had no reason to carry anything yet are not held against the capture."""
    if not state.frames:
        return [
            Blindness(
                BlindKind.NOTHING_CAPTURED,
                "the capture saw no frame at all: is it the replication link's interface, or its mirror port?",
                _ALL,
            )
        ]
    if state.broken:
        says = f"{state.broken}; nothing of the link is understood since"
        return [Blindness(BlindKind.PROTOCOL_BROKE, says, _ALL)]
    found = [*_hidden(state), *_not_understood(state), *_strangers(state)]
    if state.writes or state.answers:
        found += [*_half(state), *_vanished(state), *_exchanged(state), *_unchecked(state)]
    return found


def unsafe_events(found: list[Blindness]) -> frozenset[str]:
    """The link events that must trigger nothing."""
    return frozenset().union(*(one.unsafe for one in found))


# --- what was not proved ------------------------------------------------------------------------------------
QUIET: Final = frozenset({str(BlindKind.NOTHING_CAPTURED), str(BlindKind.NO_CONNECTION)})
"""Kinds of blindness that a link on which nobody writes shows too."""
HARMLESS: Final = frozenset({str(BlindKind.STRANGERS)})
"""Named, but nothing of the pair is hidden by them."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a capture must show before its silence proves anything."""

    protocol: str
    tells: frozenset[Tell]
    ports: Sequence[int] = ()
    """Empty: any."""
    interface: str = ""
    must_check: Sequence[str] = ("digest", "answer")
    """Of "digest" and "answer": what must have been checked."""
    is_configured: bool = False
    """A bench file says so, in which it can be changed."""


class Sight(NamedTuple):
    """What a capture has shown."""

    writes: int = 0
    answers: int = 0
    digests_checked: int = 0
    frames_dropped: int = 0
    gaps: int = 0
    blind: Mapping[str, str] = MappingProxyType({})
    """Kind of blindness -> sentence."""


def unproved(
    demand: Demand, sight: Sight, *, wrote: bool | None, by_silence: bool = True, enough: int = 1
) -> dict[str, str]:
    """Kind of blindness -> a sentence: what the capture did not show, so that nothing is proved by
    its silence. Empty: all that was asked for was shown.

    ``wrote``: whether the host wrote anything, so that there was something to be seen; None: not
    known. ``by_silence`` False: what was expected was seen, and holes in the capture take nothing from
    it. ``enough``: so many writes must have been seen before the lack of a digest or answer counts.
    """
    if Tell.WRITE not in demand.tells:
        return {}
    found: dict[str, str] = {}
    for kind, says in sight.blind.items():
        if kind not in (BlindKind.NO_DIGEST, *HARMLESS) and (
            wrote is not False or kind not in QUIET
        ):
            found[kind] = says
    if not sight.writes and wrote is not False:
        found[BlindKind.NO_WRITE] = no_write_seen(demand, sight.blind)
    if sight.writes >= enough:
        found |= _not_checked(demand, sight, found.keys())
    if by_silence and (sight.frames_dropped or sight.gaps):
        holes = [
            *([f"missed {sight.frames_dropped} frames"] if sight.frames_dropped else []),
            *([f"has {sight.gaps} holes"] if sight.gaps else []),
        ]
        found[BlindKind.HOLES] = f"the capture {' and '.join(holes)}: what was in them is not known"
    return found


def no_write_seen(demand: Demand, blind: Mapping[str, str]) -> str:
    """A sentence for a capture without one replicated write. ``blind``: what is known of it, by kind;
    what was captured says more than what was not."""
    seen = [says for kind, says in blind.items() if kind not in QUIET]
    if seen:
        return f"the capture saw no replicated write of the pair: {'; '.join(seen)}."
    ports = " or ".join(map(str, sorted(demand.ports))) or "any"
    where = f" on {demand.interface}" if demand.interface else ""
    asks = "is it the replication link's interface, or its mirror port, and " if where else "is "
    return (
        f"the capture{where} saw no replicated write of protocol {demand.protocol} on TCP port {ports}: "
        f"{asks}that its port?"
    )


def _not_checked(demand: Demand, sight: Sight, known: Collection[str]) -> dict[str, str]:
    """What must be checked, and was not once."""
    found: dict[str, str] = {}
    for one, kind, count, is_said in (
        ("digest", BlindKind.NO_DIGEST, sight.digests_checked, False),
        ("answer", BlindKind.NO_ANSWER, sight.answers, BlindKind.ANSWERS_NOT_SHOWN in known),
    ):
        if count or is_said or one not in demand.must_check or Tell(one) not in demand.tells:
            continue
        says = f"no {one} was checked on the link, of {sight.writes} replicated writes"
        if demand.is_configured:
            others = ", ".join(f'"{other}"' for other in demand.must_check if other != one)
            says += (
                f"; if this link carries none: must_check = [{others}] in the bench file's [link]"
            )
        found[kind] = says
    return found


def not_understood(protocol: str, tells: frozenset[Tell]) -> str:
    """Said once of a link whose protocol shows no write; "": it does."""
    if Tell.WRITE in tells:
        return ""
    return (
        f'the link was recorded and not understood ([link] protocol = "{protocol}"): consoles, data sets '
        "and the comparison alone were judged"
    )


# --- one kind of blindness each -----------------------------------------------------------------------------
def _hidden(state: LinkState) -> list[Blindness]:
    """Frames whose content a tunnel, a tag or a fragment hides."""
    total = sum(state.foreign.values())
    if not total or (state.messages and total < FOREIGN_SHARE * state.frames):
        return []
    kinds = ", ".join(
        f"{count} of {kind}"
        for kind, count in sorted(state.foreign.items(), key=lambda one: -one[1])
    )
    says = f"of {state.frames} frames the content of {total} is hidden: {kinds}"
    return [Blindness(BlindKind.HIDDEN, says)]


def _not_understood(state: LinkState) -> list[Blindness]:
    """Nothing of the protocol, though it shows writes."""
    if state.messages or Tell.WRITE not in state.tells:
        return []
    where = (
        f"on TCP port {' or '.join(map(str, sorted(state.ports)))}"
        if state.ports
        else "on any port"
    )
    spoken = {ends: one for ends, one in state.directions.items() if one.has_spoken}
    if not spoken:
        says = f"of {state.frames} frames none carried data {where}"
        return [Blindness(BlindKind.NO_CONNECTION, says, _ALL)]
    who = ", ".join(
        f"{source} to {destination}" for source, destination in sorted(spoken)[:MAX_NAMED]
    )
    named = {state.primary_address, state.secondary_address} - {""}
    if not any(named <= set(ends) for ends in spoken):
        says = f"what is sent {where} is not between the addresses named ({', '.join(sorted(named))}): {who}"
        return [Blindness(BlindKind.NOT_UNDERSTOOD, says, _ALL)]
    if all(one.is_encrypted for one in spoken.values()):
        says = f"what is sent {where} is encrypted (TLS): {who}"
        return [Blindness(BlindKind.ENCRYPTED, says, _ALL)]
    says = f"what is sent {where} is not protocol {state.protocol}: {who}"
    return [Blindness(BlindKind.NOT_UNDERSTOOD, says, _ALL)]


def _half(state: LinkState) -> list[Blindness]:
    """One direction is not in the capture, as half a mirror gives it."""
    found = []
    for writer in state.writers:
        peers = {d for s, d in state.directions if s == writer}
        backs = [state.between(peer, writer) for peer in peers]
        if not any(back.is_heard for back in backs):
            says = (
                f"no frame to {writer}, which writes, was captured: its answers are not shown; "
                "does the mirror carry both directions?"
            )
            found.append(Blindness(BlindKind.ANSWERS_NOT_SHOWN, says, _ABOUT_ANSWERS_MISSING))
        elif state.answers_elsewhere and not any(
            back.has_spoken or back.connections > 1 for back in backs
        ):
            says = (
                f"only the connection of the writes of {writer} was captured, and its answers travel on another "
                "one: does the mirror carry all of the link?"
            )
            found.append(Blindness(BlindKind.ANSWERS_NOT_SHOWN, says, _ABOUT_ANSWERS_MISSING))
    for answerer in state.answerers - state.writers.keys():
        peers = {d for s, d in state.directions if s == answerer}
        if not any(state.between(peer, answerer).is_heard for peer in peers):
            says = (
                f"no frame to {answerer}, which answers, was captured: the writes are not shown; "
                "does the mirror carry both directions?"
            )
            found.append(Blindness(BlindKind.WRITES_NOT_SHOWN, says, _ABOUT_WRITES_MISSING))
    return found


def _exchanged(state: LinkState) -> list[Blindness]:
    """The one who writes is not the primary named."""
    primary, secondary = state.primary_address, state.secondary_address
    writer, count = state.last_writer, state.writes_in_a_row
    if primary in state.writers and writer and writer != primary and count >= ENOUGH_WRITES:
        says = (
            f"the last {count} writes come from {writer}, those before them from {primary}, which is named the "
            "primary: have the two changed their roles or addresses?"
        )
        return [Blindness(BlindKind.EXCHANGED, says, _ALL)]
    others = {one: count for one, count in state.writers.items() if one != primary}
    if not primary or primary in state.writers or not others:
        return []
    writer = max(others, key=lambda one: others[one])
    named = "named the secondary" if writer == secondary else "not named in the bench file"
    says = (
        f"all {sum(others.values())} writes come from {writer}, which is {named}; "
        f"{primary} is named the primary: are the addresses exchanged?"
    )
    return [Blindness(BlindKind.EXCHANGED, says, _ALL)]


def _vanished(state: LinkState) -> list[Blindness]:
    """A direction that was in the capture, and is no longer."""
    if not state.unheard:
        return []
    says = (
        f"{state.unheard} writes were not answered in time, and nothing of the end that answers was captured and "
        "understood since: has the mirror lost that direction?"
    )
    return [Blindness(BlindKind.VANISHED, says, _ABOUT_ANSWERS_MISSING)]


def _strangers(state: LinkState) -> list[Blindness]:
    """Others speak on the port. They hide nothing of the pair, and are not judged with it."""
    pair = {state.primary_address, state.secondary_address} - {""}
    if not pair:
        pair = {
            end
            for ends in state.directions
            if not state.writers.keys().isdisjoint(ends)
            for end in ends
        }
        if len(pair) > 2 and len(state.writers) > 1:
            pair = set()
    spoken = sorted(ends for ends, one in state.directions.items() if one.has_spoken)
    others = [ends for ends in spoken if not pair.issuperset(ends)]
    if not others or (len(others) == len(spoken) and pair):
        return []
    if not pair and len({frozenset(ends) for ends in spoken}) < 2:
        return []  # one pair, of which nothing tells yet who writes
    where = f"TCP port {' or '.join(map(str, sorted(state.ports)))}" if state.ports else "the link"
    who = ", ".join(f"{source} to {destination}" for source, destination in others[:MAX_NAMED])
    says = (
        f"others speak on {where} too, and are not the pair: {who}"
        if pair
        else f"several pairs speak on {where}, and no addresses are named: {who}"
    )
    return [Blindness(BlindKind.STRANGERS, says)]


def _unchecked(state: LinkState) -> list[Blindness]:
    if Tell.DIGEST not in state.tells or state.digests_checked or state.writes < ENOUGH_WRITES:
        return []
    says = f"no digest was checked in {state.writes} writes: damage on the link would not be seen"
    return [Blindness(BlindKind.NO_DIGEST, says)]


def state_of(
    judge: SegmentJudge, protocol: ReplicationProtocol, totals: Totals, *,
    named: tuple[str, str], ports: frozenset[int], frames: int, messages: int, unheard: int = 0,
) -> LinkState:  # fmt: skip
    """The state of a link from what reassembly, protocol and ledger have counted; ``named`` are the
    primary's and the secondary's address as the bench file has them, or ""."""
    return LinkState(
        protocol=protocol.name,
        tells=protocol.tells,
        answers_elsewhere=getattr(protocol, "answers_elsewhere", False),
        ports=ports,
        broken=getattr(protocol, "broken", ""),
        primary_address=canonical(named[0]),
        secondary_address=canonical(named[1]),
        frames=frames,
        directions={
            (canonical(source), canonical(destination)): HeardDirection(
                pair.is_heard,
                pair.has_spoken,
                pair.connections,
                pair.first_bytes[:2] == _TLS_HANDSHAKE,
            )
            for (source, destination), pair in judge.pairs.items()
        },
        foreign=dict(judge.foreign),
        messages=messages,
        writers=dict(totals.writers),
        answers=totals.acks + totals.orphans,
        answerers=frozenset(totals.answerers),
        digests_checked=totals.digests_checked,
        last_writer=totals.last_writer,
        writes_in_a_row=totals.writes_in_a_row,
        unheard=unheard,
    )
