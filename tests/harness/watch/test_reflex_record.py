"""Events of the reflex for a supervisor that does not read."""

import os
import select
from collections.abc import Iterator

import pytest

from freezeframe.harness.core import events
from freezeframe.harness.watch.reflex_record import BACKLOG, EventOut

HIT = events.Trigger(
    t_ns=1, rule="each line", source="console", side="primary", offset_bytes=1, t_arrival_ns=1, t_match_ns=1,
    excerpt=b"x" * 200, instruct=[],
)  # fmt: skip
SENT = events.FrameSent(t_ns=2, side="primary", seq=7, t_done_ns=3, frame=b"frame")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_memory_is_bounded_and_what_sent_a_frame_is_told(pipe: tuple[int, int]) -> None:
    out = EventOut(pipe[1], select.epoll())
    for _ in range(BACKLOG + 500):
        out.tell([HIT])
    out.tell([HIT, SENT])
    out.tell([HIT] * 250)  # 750 in all were too many
    told: list[events.AnyEvent] = []
    decoder = events.Decoder()
    while out.is_due():
        out.flush()
        told += decoder.feed(os.read(pipe[0], 1 << 20))
    *triggers, sent, note = told
    assert triggers == [HIT] * (BACKLOG + 1)
    assert sent == SENT
    assert isinstance(note, events.Note)
    assert note.text.startswith("the supervisor did not read: 750 triggers were not sent as events")


def test_a_supervisor_that_is_gone_keeps_nothing() -> None:
    reader, writer = os.pipe()
    out = EventOut(writer, select.epoll())
    os.close(reader)
    out.tell([HIT] * 10)
    out.flush()
    assert not out.is_due()
    out.tell([HIT])
    assert not out.is_due()
    os.close(writer)
