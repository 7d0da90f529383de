"""Findings that a hole in the capture may yet explain: an answer to no write that was captured, a barrier
answer without its barrier, a second answer.

They are told after JUDGEMENT_NS. Where frames may be lost without a word, as behind a mirror, also that
is too early: a write, its acknowledgement by TCP and all before the next write can be missing. A finding
then waits until a later write shows that none before it was missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.ledgerbook import REORDER_NS, Book, Doubtful
from freezeframe.harness.core.link.ledgerevents import LedgerEvent, RepeatedAck

JUDGEMENT_NS: Final = 100 * NS_PER_MS
"""A stray acknowledgement is reported only after this: a write that the capture lacks shows as a hole
by then, since the receiver's TCP acknowledges it within 40 ms, and HOLE_PATIENCE_NS later the hole
is certain."""
MAX_DOUBTFUL: Final = 256


class Doubts:
    """``tick`` gives out what has become certain."""

    def __init__(self) -> None:
        self._waiting: deque[Doubtful] = deque()
        self._ticked_ns: Ns = -1

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: LedgerEvent, session: int, t_ns: Ns, key: Hashable | None = None) -> None:
        if len(self._waiting) < MAX_DOUBTFUL:
            self._waiting.append(Doubtful(t_ns + JUDGEMENT_NS, session, key, event))

    def forget(self, is_explained: Callable[[Doubtful], bool]) -> None:
        """Drop those that something else explains."""
        self._waiting = deque(one for one in self._waiting if not is_explained(one))

    def next_deadline(self) -> Ns | None:
        """When ``tick`` may give out one that has not been due yet."""
        due = (one.due_ns for one in self._waiting if one.due_ns > self._ticked_ns)
        return min(due, default=None)

    def tick(self, now_ns: Ns, book_of: Callable[[int], Book | None] | None) -> list[LedgerEvent]:
        """``book_of``: session -> its rows, None when it is over; itself None: nothing is lost without
        a word."""
        self._ticked_ns = now_ns
        sure = [
            one
            for one in self._waiting
            if one.due_ns <= now_ns and (book_of is None or _is_shown(one, book_of(one.session)))
        ]
        if sure:
            self.forget(lambda one: any(one is other for other in sure))
        return [one.event for one in sure]


def _is_shown(doubt: Doubtful, book: Book | None) -> bool:
    if book is None or isinstance(doubt.event, RepeatedAck):  # its own write was captured
        return True
    return book.written_ns >= doubt.due_ns - JUDGEMENT_NS + REORDER_NS
