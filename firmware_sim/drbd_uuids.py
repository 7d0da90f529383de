"""Which side has the better data: the decision table over both sides' UUIDs (section 3.4 of the
fact sheet).

The rules are tried in order; numbers are the kernel's. A positive result: this side is the sync
source, negative: the target; magnitude 1: by bitmap, 2: everything, 100: split brain, 1000:
unrelated data.
"""

from dataclasses import dataclass, replace
from typing import Final

from freezeframe.firmware_sim.drbd_metadata import BITMAP, CURRENT, HISTORY
from freezeframe.harness.wire.drbd import (
    UUID_JUST_CREATED,
    UUID_NEW_BITMAP_OFFSET,
    UUID_PRIMARY_BIT,
)

SPLIT_BRAIN: Final = 100
UNRELATED: Final = -1000
NEEDS_NEWER_PEER: Final = -10000
"""Rule 41 cannot be decided without a feature that both sides must have."""
_BITS: Final = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Generations:
    """What the decision looks at."""

    own: tuple[int, ...]
    peer: tuple[int, ...]
    own_crashed: bool = False
    peer_crashed: bool = False
    own_primary: bool = False
    peer_primary: bool = False
    resolver: bool = False
    """This side yields when both crashed as primaries."""
    rule_41: bool = True
    """The feature that rule 41 needs is agreed."""
    version: int = 101


@dataclass(frozen=True, kw_only=True)
class Verdict:
    result: int
    rule: int
    own: tuple[int, ...]
    peer: tuple[int, ...]
    """Both sides' UUIDs, corrected where a packet or an event had got lost."""
    note: str = ""


def decide(facts: Generations) -> Verdict:
    """Apply the table."""
    own, peer = _masked(facts.own), _masked(facts.peer)
    base = Verdict(result=0, rule=10, own=facts.own, peer=facts.peer)
    if own[CURRENT] == peer[CURRENT] == UUID_JUST_CREATED:
        return base
    if own[CURRENT] in (UUID_JUST_CREATED, 0) and peer[CURRENT] != UUID_JUST_CREATED:
        return replace(base, result=-2, rule=20)
    if peer[CURRENT] in (UUID_JUST_CREATED, 0):
        return replace(base, result=2, rule=30)
    if own[CURRENT] == peer[CURRENT]:
        return _same_generation(facts, base)
    return _other_generation(facts, base)


def _same_generation(facts: Generations, base: Verdict) -> Verdict:
    """Rules 34 to 41: the current UUIDs are equal."""
    own, peer = _masked(facts.own), _masked(facts.peer)
    if own[BITMAP] and not peer[BITMAP]:
        if own[BITMAP] == peer[HISTORY] and own[HISTORY] == peer[HISTORY + 1]:
            text = "was SyncSource, missed the resync finished event, corrected myself:"
            return replace(base, result=1, rule=34, own=_finished(facts.own), note=text)
        return replace(
            base, result=1, rule=36, note="was SyncSource (peer failed to write sync_uuid)"
        )
    if peer[BITMAP] and not own[BITMAP]:
        if peer[BITMAP] == own[HISTORY] and peer[HISTORY] == own[HISTORY + 1]:
            text = "was SyncTarget, peer missed the resync finished event, corrected peer:"
            return replace(base, result=-1, rule=35, peer=_finished(facts.peer), note=text)
        return replace(base, result=-1, rule=37, note="was SyncTarget (failed to write sync_uuid)")
    if not facts.own_crashed and not facts.peer_crashed:
        return replace(base, result=0, rule=40)
    if facts.own_primary or facts.peer_primary:
        if not facts.rule_41:
            return replace(base, result=NEEDS_NEWER_PEER, rule=41)
        if facts.own_primary and facts.peer_primary:
            return replace(base, result=-SPLIT_BRAIN, rule=41)
        return replace(base, result=1 if facts.own_primary else -1, rule=41)
    if facts.own_crashed and facts.peer_crashed:
        return replace(base, result=-1 if facts.resolver else 1, rule=40)
    return replace(base, result=1 if facts.own_crashed else -1, rule=40)


def _other_generation(facts: Generations, base: Verdict) -> Verdict:
    """Rules 50 to 100: the current UUIDs differ."""
    own, peer = _masked(facts.own), _masked(facts.peer)
    if own[CURRENT] == peer[BITMAP]:
        return replace(base, result=-1, rule=50)
    if own[CURRENT] == peer[HISTORY] and _sync_uuid_lost(peer, own, facts.version):
        text = "Lost last syncUUID packet, corrected:"
        return replace(base, result=-1, rule=51, peer=_unstarted(facts.peer), note=text)
    if own[CURRENT] in peer[HISTORY:]:
        return replace(base, result=-2, rule=60)
    if peer[CURRENT] == own[BITMAP]:
        return replace(base, result=1, rule=70)
    if peer[CURRENT] == own[HISTORY] and _sync_uuid_lost(own, peer, facts.version):
        text = "Last syncUUID did not get through, corrected:"
        return replace(base, result=1, rule=71, own=_unstarted(facts.own), note=text)
    if peer[CURRENT] in own[HISTORY:]:
        return replace(base, result=2, rule=80)
    if own[BITMAP] == peer[BITMAP] != 0:
        return replace(base, result=SPLIT_BRAIN, rule=90)
    if (set(own[HISTORY:]) & set(peer[HISTORY:])) - {0}:
        return replace(base, result=-SPLIT_BRAIN, rule=100)
    return replace(base, result=UNRELATED, rule=100)


def _masked(uuids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(uuid & ~UUID_PRIMARY_BIT for uuid in uuids)


def _sync_uuid_lost(source: tuple[int, ...], target: tuple[int, ...], version: int) -> bool:
    """Whether the source began a resync of which the target never heard."""
    if version < 96:
        return source[HISTORY + 1] == target[HISTORY]
    return source[HISTORY] + UUID_NEW_BITMAP_OFFSET & _BITS == source[BITMAP]


def _finished(uuids: tuple[int, ...]) -> tuple[int, ...]:
    """The source's UUIDs as the end of the resync leaves them."""
    return uuids[CURRENT], 0, uuids[BITMAP], uuids[HISTORY]


def _unstarted(uuids: tuple[int, ...]) -> tuple[int, ...]:
    """The source's UUIDs as they were before the resync began."""
    return uuids[CURRENT], uuids[HISTORY], uuids[HISTORY + 1], uuids[HISTORY + 1]
