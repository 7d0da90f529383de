"""Which health is reported, in virtual time; the notice against its description."""

import json
import re
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.policy import Health, HealthStatus, Machine, Rung, Settings
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.health import HealthInputs, status
from freezeframe.harness.runs.notices import (
    MAX_CHARS,
    HealthNews,
    Notice,
    NoticedIncident,
    health_notice,
    incident_notice,
    occasion_of,
)

SETTLE_NS = 10 * NS_PER_S
REPEAT_NS = 100 * NS_PER_S
ARMED = HealthStatus(Health.ARMED)
STATES = [
    ARMED,
    HealthStatus(Health.UNREHEARSED, "a canary is to come"),
    HealthStatus(Health.DEGRADED, "a console"),
    HealthStatus(Health.DEGRADED, "the link"),
    HealthStatus(Health.BLIND, "nothing can be seen"),
    HealthStatus(Health.DISARMED, "an incident is being collected"),
]


def machine_with_an_open_breaker() -> tuple[Machine, int]:
    machine = Machine(Settings(serial_numbers={"primary": "P", "secondary": "S"}), 0)
    now = 0
    machine.step(now, m.BenchArmed(who="a person"))
    while not machine.guard.broken:
        now += NS_PER_S
        machine.guard.acted(now, "x", Rung.SAVE)
    return machine, now


def test_an_open_breaker_is_no_pause_in_the_policy_s_own_words() -> None:
    machine, now = machine_with_an_open_breaker()
    machine.step(now, m.Tick())
    judged = machine.status
    assert occasion_of(judged) == "breaker-open", str(judged)
    pause = HealthStatus(Health.DISARMED, "storm guard: 3 saves in one hour; recording")
    assert occasion_of(pause) == "disarmed"


def play(changes: list[tuple[int, HealthStatus]], end_ns: int) -> list[tuple[int, HealthStatus]]:
    """What is reported, asked for at each time that is due."""
    news, said = HealthNews(SETTLE_NS, REPEAT_NS), []
    ends = [*(at_ns for at_ns, _ in changes[1:]), end_ns]
    for (at_ns, one), until_ns in zip(changes, ends, strict=True):
        news.change(one, at_ns)
        now = at_ns
        while (due_ns := news.due_ns()) is not None and due_ns < until_ns:
            now = max(now, due_ns)
            taken = news.take(now)
            assert taken is not None
            said.append((now, taken))
        assert news.take(now) is None
    return said


@given(
    st.lists(
        st.tuples(st.integers(1, 40 * NS_PER_S), st.sampled_from(STATES)), min_size=1, max_size=30
    )
)
def test_what_lasts_is_reported_once_and_what_does_not_is_not(
    steps: list[tuple[int, HealthStatus]],
) -> None:
    changes, now = [], 0
    for pause_ns, one in steps:
        changes.append((now, one))
        now += pause_ns
    said = play(changes, now)
    # Spans of one occasion, independently of the class under test.
    spans: list[list[object]] = []
    for (at, one), until in zip(changes, [*(at for at, _ in changes[1:]), now], strict=True):
        if spans and spans[-1][0] == occasion_of(one):
            spans[-1][2] = until
        else:
            spans.append([occasion_of(one), at, until])
    expected, last = [], ""
    for occasion, begin, end in spans:
        assert isinstance(begin, int) and isinstance(end, int)
        if end - begin > SETTLE_NS and occasion != last and (last or occasion != "armed"):
            expected.append((begin + SETTLE_NS, occasion))
            last = str(occasion)
    changed = [
        (at, occasion_of(one))
        for number, (at, one) in enumerate(said)
        if not number or occasion_of(said[number - 1][1]) != occasion_of(one)
    ]
    assert changed == expected
    for (before_ns, before), (at_ns, one) in pairwise(said):
        if occasion_of(before) == occasion_of(one):
            assert before.why != one.why and at_ns - before_ns >= REPEAT_NS


def test_another_reason_is_reported_after_the_pause() -> None:
    console, link = STATES[2], STATES[3]
    said = play([(0, console), (20 * NS_PER_S, link)], 300 * NS_PER_S)
    assert said == [(SETTLE_NS, console), (SETTLE_NS + REPEAT_NS, link)]


def test_every_health_is_an_occasion() -> None:
    for health in Health:
        assert occasion_of(HealthStatus(health, "" if health is Health.ARMED else "x"))
    assert occasion_of(status(HealthInputs("", "", "", (), (), ()))) == "armed"


def keys(kind: type[msgspec.Struct]) -> set[str]:
    return {one.encode_name for one in msgspec.structs.fields(kind)}


def test_the_document_names_every_key_and_no_text_of_a_device_reaches_a_terminal() -> None:
    section = (Path(__file__).parents[3] / "docs/watch.md").read_text()
    section = section.partition("## Notices")[2].partition("\n## ")[0]
    described = set(re.findall(r"`([a-z]+)`", section))
    assert keys(Notice) | keys(NoticedIncident) <= described
    notice = incident_notice(
        "lab", STATES[2], folder=Path("/i/2026-x"), outcome="fail",
        trigger={"rule": "r\x1b[2J", "side": "primary"}, reasons=["x\x07" * MAX_CHARS] * 99,
    )  # fmt: skip
    value = json.loads(notice.as_json())
    assert set(value) == keys(Notice) and set(value["incident"]) == keys(NoticedIncident)
    assert "\x1b" not in value["text"] and value["health"] == "degraded"
    assert len(value["incident"]["reasons"]) == 16
    assert max(map(len, value["incident"]["reasons"])) <= MAX_CHARS
    assert json.loads(health_notice("lab", ARMED).as_json())["incident"] is None
