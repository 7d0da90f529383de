"""Findings that a hole in the capture may yet explain: an answer to no write that was captured, a barrier
answer without its barrier, a second answer, which may be the first one to a write that used the id again.

They are reported after JUDGEMENT_NS. Where frames may be lost without a word, as behind a mirror, also that
is too early: a write, its acknowledgement by TCP and all before the next write can be missing. One thing
makes each of these findings certain: the capture shows that up to the answer no write was missed. A later
write or barrier shows that, and so does a later acknowledgement by the end that answered, of no more
bytes than were captured. Where answers travel on the connection of the writes, the frame of the answer
is such an acknowledgement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.ledgerbook import REORDER_NS, Book, Doubtful
from freezeframe.harness.core.link.ledgerevents import AboutAnswer, LedgerEvent
from freezeframe.harness.core.link.messages import Answer, BarrierAnswer

JUDGEMENT_NS: Final = 100 * NS_PER_MS
"""A stray acknowledgement is reported only after this: a write that the capture lacks shows as a hole
by then, since the receiver's TCP acknowledges it within 40 ms, and HOLE_PATIENCE_NS later the hole
is certain."""
MAX_DOUBTFUL: Final = 256


class WriteSight(Protocol):
    """What the capture shows of the connection of the writes (``follow.LaneSight``)."""

    def attend(self, answer: Answer | BarrierAnswer) -> None:
        """Note from now on what the end that answered acknowledges."""

    def shows(self, answer: Answer | BarrierAnswer, since_ns: Ns) -> bool:
        """Whether it has acknowledged, at that time or later, what was captured of the writes and no
        more."""

    def rest(self) -> None:
        """Nothing is in doubt any more."""


class Doubts:
    """``tick`` gives out what has become certain."""

    def __init__(self, sight: WriteSight | None = None) -> None:
        self._sight = sight
        self._waiting: deque[Doubtful] = deque(maxlen=MAX_DOUBTFUL)
        self._ticked_ns: Ns = -1

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: AboutAnswer, key: Hashable) -> None:
        """The oldest gives way when there are too many."""
        answer = event.answer
        number = answer.session.number
        self._waiting.append(Doubtful(answer.t_ns + JUDGEMENT_NS, number, key, event))
        if self._sight is not None:
            self._sight.attend(answer)

    def forget(self, is_explained: Callable[[Doubtful], bool]) -> None:
        """Drop those that something else explains."""
        if self._waiting:
            kept = [one for one in self._waiting if not is_explained(one)]
            self._waiting = deque(kept, MAX_DOUBTFUL)
            if not kept and self._sight is not None:
                self._sight.rest()

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
            if one.due_ns <= now_ns
            and (book_of is None or self._is_certain(one, book_of(one.session)))
        ]
        if sure:
            self.forget(lambda one: any(one is other for other in sure))
        return [one.event for one in sure]

    def _is_certain(self, doubt: Doubtful, book: Book | None) -> bool:
        """No write before the answer was missed. Frames of another connection may be captured REORDER_NS
        out of order."""
        since_ns = doubt.event.answer.t_ns + REORDER_NS
        if book is not None and book.written_ns >= since_ns:
            return True
        return self._sight is not None and self._sight.shows(doubt.event.answer, since_ns)
