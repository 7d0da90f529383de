"""The happenings on the replication link that a rule can name, and the rules themselves.

A new event is one row of EVENTS; what finds it is the ledger, what words it ``core.link.linkrules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from freezeframe.harness.core.events import NS_PER_MS, Ns, Side
from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.errors import UsageError

DEFAULT_DEADLINE_MS: Final = 1000
MAX_DEADLINE_MS: Final = 600_000


@dataclass(frozen=True)
class LinkEventKind:
    """What a link rule can wait for."""

    name: str
    needs: str
    """What the link's protocol has to show for it: a value of ``core.link.protocol.Tell``."""
    says: str
    is_timed: bool = False
    """Its rules have a deadline."""


EVENTS: Final[dict[str, LinkEventKind]] = {
    kind.name: kind
    for kind in (
        LinkEventKind("digest-mismatch", "digest", "data do not fit the digest sent with them"),
        LinkEventKind("broken-stamp", "write", "a copy contradicts the stamps of our own writer"),
        LinkEventKind("neg-ack", "status", "a write was refused"),
        LinkEventKind("late-ack", "answer", "an answer came after the deadline", is_timed=True),
        LinkEventKind("missing-ack", "answer", "no answer within the deadline", is_timed=True),
        LinkEventKind("repeated-ack", "answer", "a write was answered twice"),
        LinkEventKind("unknown-ack", "answer", "an answer to no write that was sent"),
        LinkEventKind("barrier-count", "barrier", "a barrier was answered with a wrong count"),
        LinkEventKind("unacked-close", "answer", "closed with writes that were not answered"),
        LinkEventKind(
            "ghost-write", "answer", "an old copy of a write came after its retry and a newer write"
        ),
        LinkEventKind("resync-omitted", "resync", "a resync left out what differs"),
        LinkEventKind("malformed", "write", "bytes that are not the protocol's"),
    )
}


@dataclass(frozen=True, kw_only=True)
class LinkRule:
    """One link trigger. UsageError when it cannot be meant."""

    name: str
    event: str
    """One of EVENTS."""
    deadline_ms: int = 0
    """Of timed events: from the write's last byte on the wire; 0 is DEFAULT_DEADLINE_MS."""
    instruct: tuple[Side, ...] | None = None
    """Who is instructed, in this order. None: the bench's policy. Empty: nobody."""

    def __post_init__(self) -> None:
        where = f"link rule {self.name!r}"
        kind = EVENTS.get(self.event)
        if kind is None:
            raise UsageError(
                f"{where}: event {self.event!r} is not known{did_you_mean(self.event, EVENTS)}; "
                f"allowed: {', '.join(EVENTS)}"
            )
        if self.deadline_ms and not kind.is_timed:
            timed = " and ".join(one.name for one in EVENTS.values() if one.is_timed)
            raise UsageError(f"{where}: deadline_ms is for {timed} only")
        if not 0 <= self.deadline_ms <= MAX_DEADLINE_MS:
            raise UsageError(
                f"{where}: deadline_ms is {self.deadline_ms}, allowed: 1 to {MAX_DEADLINE_MS}"
            )
        if not set(self.instruct or ()) <= set(get_args(Side)):
            raise UsageError(
                f"{where}: instruct is {list(self.instruct or ())}; allowed: primary, secondary"
            )

    @property
    def deadline_ns(self) -> Ns:
        return (self.deadline_ms or DEFAULT_DEADLINE_MS) * NS_PER_MS
