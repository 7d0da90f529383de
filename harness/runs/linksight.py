"""What a run has seen of the replication link, as ``core.link.blindness`` judges it. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_S, LinkStats, Ns
from freezeframe.harness.core.link.blindness import (
    ENOUGH_WRITES,
    QUIET,
    BlindKind,
    Demand,
    Sight,
    unproved,
)

BLIND_STATS: Final = 8
"""Counters of the link in a row (2 s) that must name a blindness before it is reported: a
connection that has just begun shows one direction first."""


def sight_of(capture: Mapping[str, Any]) -> Sight:
    """From incident.json's ``capture``, or the fields of the newest LinkStats; empty: nothing was
    counted."""
    return Sight(
        writes=capture.get("writes") or 0,
        answers=capture.get("acks") or 0,
        digests_checked=capture.get("digests_checked") or 0,
        frames_dropped=capture.get("kernel_drops") or 0,
        gaps=capture.get("gaps") or 0,
        blind=capture.get("blind") or {},
    )


def sight_now(stats: LinkStats | None) -> Sight:
    """From the link watch's newest counters; None: it has sent none."""
    if stats is None:
        return Sight()
    return Sight(
        writes=stats.writes, answers=stats.acks, digests_checked=stats.digests_checked,
        frames_dropped=stats.kernel_drops, gaps=stats.gaps, blind=stats.blind,
    )  # fmt: skip


class Lacks:
    """What a capture that was cut into parts did not show."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._has_seen_write = False

    def add(self, lacks: Mapping[str, str]) -> None:
        """Of one part, by kind of blindness, as ``unproved`` finds them."""
        self._found |= lacks
        self._has_seen_write |= BlindKind.NO_WRITE not in lacks

    @property
    def of_the_whole(self) -> list[str]:
        """A sentence each. That nobody wrote in one part, as after an incident, is no lack of the
        whole."""
        return [
            says
            for kind, says in self._found.items()
            if not self._has_seen_write or kind not in (BlindKind.NO_WRITE, *QUIET)
        ]


DOWN_NS: Final = 3 * NS_PER_S
"""A controller that has restarted says so in that time: by its boot banner, or by a trigger."""


class DownTally:
    """Whether the link is down, by the capture's own interface: of the rig, unless a controller takes
    its port with it when it restarts."""

    def __init__(self) -> None:
        self._since_ns: Ns | None = None
        self._is_counted = False

    def reported(self, stats: LinkStats) -> str:
        """Take the newest counters; return the sentence for a link that has just gone down."""
        before = self._since_ns
        begin_ns = stats.t_ns if before is None else before
        self._since_ns = begin_ns if stats.down else None
        return f"the link is down: {stats.down}" if stats.down and before is None else ""

    def counts(self, stats: LinkStats, *, is_explained: bool) -> str:
        """Return, once, what makes it trouble of the rig: it lasts. ``is_explained``: a controller
        restarts."""
        if is_explained or not stats.down or self._is_counted or self._since_ns is None:
            return ""
        if stats.t_ns - self._since_ns < DOWN_NS:
            return ""
        self._is_counted = True
        return f"the link went down, and no controller restarted: {stats.down}"


class BlindTally:
    """What the capture cannot see while there is something to be seen, reported once."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._counts: Counter[str] = Counter()
        """Kind of blindness -> counters in a row that named it."""

    def reported(self, stats: LinkStats) -> list[str]:
        """Take the link's newest counters; give what is to be said of them. Holes are notes of
        their own, and as long as nobody is seen to write a silent link is no blindness."""
        blind = unproved(
            self._demand, sight_now(stats), wrote=False, by_silence=False, enough=ENOUGH_WRITES
        )
        for kind in self._counts.keys() - blind.keys():
            del self._counts[kind]
        self._counts.update(blind.keys())
        return [says for kind, says in blind.items() if self._counts[kind] == BLIND_STATS]


def lost_frames(stats: LinkStats) -> str:
    """Say how many frames were lost, in powers of two: a number that changes with each frame would be
    reported with each."""
    return f"{1 << stats.kernel_drops.bit_length() - 1} or more since the capture began"
