"""A third party's protocol that raises is named, accuses no device, and costs no record; the same frames
through the right one are understood."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from freezeframe.drivers.skeleton.link import ANSWER, HELLO, PORT, SkeletonLink, message, write
from freezeframe.harness.core.link.blindness import BlindKind, LinkState, blindness, unsafe_events
from freezeframe.harness.core.link.conversation import conversation
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.protocolguard import GuardedProtocol
from freezeframe.harness.core.link.tcpstream import Reassembler
from freezeframe.harness.core.linkevents import EVENTS, LinkRule

WRITES = 6
S = 1_000_000_000


def frames() -> list[tuple[int, bytes]]:
    said = [(True, message(HELLO)), (False, message(HELLO))]
    for number in range(WRITES):
        said += [(True, write(number, number * 512, bytes([number]) * 512))]
        said += [(False, message(ANSWER, number))]
    return conversation(PORT, said)


def played(link: Any) -> tuple[set[str], int]:
    """(link events that hit, writes that the ledger has seen)."""
    guarded = GuardedProtocol(link, "acme")
    follower, ledger = Follower(guarded, frozenset({PORT})), Ledger()  # type: ignore[arg-type]
    rules = LinkRules(LinkRule(name=name, event=name) for name in EVENTS)
    reassembler, hits, t_ns = Reassembler(ports=frozenset({PORT})), set[str](), 0

    def take(events: Iterable[Any]) -> None:
        for event in events:
            for one in follower.on(event):
                for found in ledger.on(one):
                    hits.update(hit.rule for hit in rules.on(found, t_ns))

    for number, (t_ns, frame) in enumerate(frames(), 1):
        take(reassembler.feed(t_ns, frame, number))
    take(reassembler.close(t_ns + S))
    for found in ledger.tick(t_ns + 60 * S):
        hits.update(hit.rule for hit in rules.on(found, t_ns + 60 * S))
    link.broken = guarded.broken
    return hits, ledger.totals.writes


def breaking(method: str, after: int = 0) -> SkeletonLink:
    """A protocol whose ``method`` raises once it has been called ``after`` times."""
    link = SkeletonLink(LinkOptions(must_match=True))
    calls = 0

    def broken(right: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise KeyError("crc")
            return right(*args, **kwargs)

        return call

    if method == "connection":
        link.connection = broken(link.connection)  # type: ignore[method-assign]
        return link
    make = link.make_direction

    def make_broken(both: Any, opening: Any) -> Any:
        direction = make(both, opening)
        setattr(direction, method, broken(getattr(direction, method)))
        return direction

    link.make_direction = make_broken  # type: ignore[method-assign]
    return link


def test_the_right_one_is_understood() -> None:
    link = SkeletonLink(LinkOptions(must_match=True))
    assert played(link) == (set(), WRITES)
    assert link.broken == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize("after", [0, 1, 5, 9])
@pytest.mark.parametrize("method", ["connection", "feed", "take", "closed", "begin"])
def test_what_it_raises_is_its_own_and_no_device_is_accused(method: str, after: int) -> None:
    link = breaking(method, after)
    hits, writes = played(link)
    assert hits == set()
    said: str = link.broken  # type: ignore[attr-defined]
    if not said:  # it was not called so often
        assert writes == WRITES and method in ("connection", "closed", "begin")
        return
    name = "feed" if method == "take" else method
    assert said.startswith(
        f"protocol 'acme': {name}() raised KeyError: 'crc' (test_protocolguard.py"
    )
    assert "expected: " in said


def test_what_is_no_message_is_named() -> None:
    link = SkeletonLink(LinkOptions(must_match=True))
    make = link.make_direction

    def speaks(both: Any, opening: Any) -> Any:
        direction = make(both, opening)
        direction.feed = lambda *_: iter(["a write"])  # type: ignore[method-assign,assignment,return-value]
        return direction

    link.make_direction = speaks  # type: ignore[method-assign]
    assert played(link) == (set(), 0)
    assert "feed() raised TypeError: str is no message" in link.broken  # type: ignore[attr-defined]


def test_a_broken_protocol_makes_the_link_blind() -> None:
    state = LinkState(
        protocol="acme", frames=9, messages=9, broken="protocol 'acme': feed() raised X"
    )
    found = blindness(state)
    assert [one.kind for one in found] == [BlindKind.PROTOCOL_BROKE]
    assert found[0].says.startswith("protocol 'acme': feed() raised X; nothing of the link")
    assert unsafe_events(found) == set(EVENTS)
