"""Rules that are replaced while the reflex process runs: no byte and no hit is lost. Of several hits in one
read it names the one that it struck for."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chatter import Script, chatter
from reflex_bench import FRAMES, Bench, link_trigger

from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule

pytestmark = pytest.mark.system


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reflex.kill_if_running()
    for line in (*made.console.values(), *made.control.values()):
        line.close()
    os.close(made.trigger_read)
    os.close(made.trigger_write)


def test_rules_are_replaced_without_losing_a_byte(bench: Bench) -> None:
    """A text that is half there when the new rules come is found; every byte stays recorded."""
    bench.console["primary"].say(b"before: Digest integ")
    bench.recorded("primary", 20)
    fresh = [ConsoleRule(name="new", literal="Digest integrity")]
    bench.reflex.send(events.NewRules(t_ns=0, rules=msgspec.json.encode(fresh)))
    bench.arm()
    bench.console["primary"].say(b"rity, after")
    (trigger,) = bench.until(events.Trigger)
    assert (trigger.rule, trigger.offset_bytes) == ("new", 24)
    assert bench.recorded("primary", 31) == b"before: Digest integrity, after"


def test_rules_are_replaced_again_and_again_in_a_flood(bench: Bench) -> None:
    """Rules that stay find each of their texts, once, whatever comes and goes beside them; no byte
    is lost."""
    stays = ConsoleRule(name="stays", literal="state: 7", instruct=())
    text = b"".join(b"line %05d, state: %d\r\n" % (number, number % 10) for number in range(20_000))
    pieces = [text[at : at + 9973] for at in range(0, len(text), 9973)]
    for number, piece in enumerate(pieces):
        others = [
            ConsoleRule(name=f"other {number} {n}", literal=f"nothing {number} {n}")
            for n in range(number % 4)
        ]
        bench.reflex.send(events.NewRules(t_ns=0, rules=msgspec.json.encode([*others, stays])))
        bench.console["primary"].say(piece)
    assert bench.recorded("primary", len(text)) == text
    bench.stop()
    right = [at + 8 for at in range(len(text)) if text.startswith(b"state: 7", at)]
    assert [trigger.offset_bytes for trigger in bench.until(events.Trigger, len(right))] == right


CHUNKS = ["aaaa HEAD", " middle ", "half-", "text end\n", "zzz MARK zzz\n"]
HALF, MARK = ConsoleRule(name="half", literal="half-text"), ConsoleRule(name="mark", literal="MARK")
REFUSED = ConsoleRule(name="back-reference", regex=r"(a)\1")


@pytest.mark.parametrize("reload_at", range(len(CHUNKS)))
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([HALF, MARK], None),
        ([HALF, MARK], [HALF, MARK]),
        ([MARK], [HALF, MARK]),
        ([MARK, HALF], [REFUSED]),
    ],
)
def test_rules_are_replaced_between_reads_that_are_not_recorded_yet(
    tmp_path: Path, old: list[ConsoleRule], new: list[ConsoleRule] | None, reload_at: int
) -> None:
    """Nothing is missed, offsets and excerpts are right, whatever the moment; refused rules change
    nothing."""
    told, _ = chatter(
        tmp_path, Script(chunks=CHUNKS, rules=old, new_rules=new, reload_at=reload_at)
    )
    text = "".join(CHUNKS).encode()
    triggers = {event.rule: event for event in told if isinstance(event, events.Trigger)}
    is_too_late = new is not None and HALF not in old and reload_at > 3
    assert set(triggers) == ({"mark"} if is_too_late else {"half", "mark"})
    for name, event in triggers.items():
        end = (
            text.index({"half": b"half-text", "mark": b"MARK"}[name]) + {"half": 9, "mark": 4}[name]
        )
        assert (event.offset_bytes, event.excerpt) == (end, text[:end])
    notes = [event.text for event in told if isinstance(event, events.Note)]
    assert [note[:31] for note in notes] == (
        ["the new rules cannot be used, t"] if new == [REFUSED] else []
    )


@pytest.mark.parametrize("first", ["muted", "noted"])
def test_the_hit_that_strikes_is_named_among_others_of_its_read(first: str, bench: Bench) -> None:
    """Seen: the first hit that would instruct anybody took the blame, also while its rule was muted."""
    text = b"Digest integrity check FAILED" if first == "muted" else b"worth a note"
    bench.reflex.send(events.Arm(t_ns=0, frames=FRAMES, arming=5, muted=["digest"]))
    bench.console["primary"].say(text + b", second is ill, second is ill, second is ill\r\n")
    (sent,) = bench.until(events.FrameSent)
    assert sent.side == "secondary" and sent.arming == 5
    triggers = bench.until(events.Trigger, 4)
    assert [one.rule for one in triggers if one.is_cause] == ["second only"]
    (cause,) = [one for one in triggers if one.is_cause]
    assert cause.struck == 5 and cause.offset_bytes == min(
        one.offset_bytes for one in triggers if one.rule == "second only"
    )
    os.write(bench.trigger_write, events.encode(link_trigger(("secondary",))))
    assert not bench.until(events.Trigger, 5)[-1].is_cause, "an arming is good for one action"
    bench.reflex.send(events.Arm(t_ns=0, frames=FRAMES, arming=6, seen=5))
    os.write(bench.trigger_write, events.encode(link_trigger(("secondary",))))
    bench.until(events.FrameSent, 2)
    assert bench.until(events.Trigger, 6)[-1].is_cause
