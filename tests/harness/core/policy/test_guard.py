"""The storm guard: intervals, back-off, caps, kinds, the breaker. Everything by virtual time."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_play import Play, of

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.policy import Health
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.guard import DAY_S, HOUR_S, Acted, Guard, Limits, Rung

START_NS = 1_000 * NS_PER_S


def at(seconds: float) -> int:
    return START_NS + round(seconds * NS_PER_S)


def storm(guard: Guard, duration_s: int, *, every_s: int = 1, kind: str = "") -> list[int]:
    """A trigger of a new kind each ``every_s``, answered as the guard allows. When it
    warmstarted."""
    warmstarts = []
    for second in range(0, duration_s, every_s):
        rung = guard.allowed(at(second)).rung
        if rung is Rung.WARMSTART:
            warmstarts.append(second)
            guard.acted(at(second), kind or f"kind {second}", rung)
    return warmstarts


def test_a_storm_warmstarts_four_times_in_two_minutes() -> None:
    """The times that the docstring and the documentation state."""
    assert storm(Guard(Limits()), 120) == [0, 15, 45, 105]


def test_a_storm_is_capped_in_every_window_of_a_day() -> None:
    limits = Limits()
    times = storm(Guard(limits), 24 * 3600, every_s=5)
    assert times, "the guard lets nothing through: the caps prove nothing"
    for window_s, cap in (*limits.caps, (DAY_S, limits.per_day)):
        most = max(sum(one <= other < one + window_s for other in times) for one in times)
        assert most <= cap
    assert max(b - a for a, b in pairwise(times)) <= limits.max_interval_s + 5


def test_caps_hold_without_an_interval() -> None:
    guard = Guard(Limits(min_interval_s=0, caps=((120.0, 6), (3600.0, 12))))
    times = storm(guard, 3600)
    assert times[:6] == [0, 1, 2, 3, 4, 5]
    assert times[6] == 120, "the window of two minutes begins with its first warmstart"
    assert len(times) == 12


def test_inside_the_interval_a_save_is_allowed_and_the_reason_is_given() -> None:
    guard = Guard(Limits())
    guard.acted(at(0), "k", Rung.WARMSTART)
    allowed = guard.allowed(at(14.9))
    assert allowed.rung is Rung.SAVE
    assert "only saves" in allowed.why and "15 s" in allowed.why
    assert allowed.until_ns == at(15)
    assert guard.next_change_ns(at(14.9)) == at(15)
    assert guard.allowed(at(15)).rung is Rung.WARMSTART
    assert guard.allowed(at(15)).why == ""


def test_the_interval_doubles_and_calm_resets_it() -> None:
    guard = Guard(Limits(caps=()))
    intervals = []
    for second in (0, 20, 60, 2000, 2020):
        guard.acted(at(second), "k", Rung.WARMSTART)
        intervals.append(guard.interval_s)
    assert intervals == [15, 30, 60, 15, 30]


def test_a_kind_that_is_known_only_saves_for_an_hour() -> None:
    guard = Guard(Limits(per_kind_per_hour=2))
    guard.acted(at(0), "a", Rung.WARMSTART)
    guard.acted(at(100), "b", Rung.WARMSTART)
    assert guard.known_kinds(at(101)) == frozenset()
    guard.acted(at(200), "a", Rung.WARMSTART)
    assert guard.known_kinds(at(201)) == {"a"}
    assert guard.known_kinds(at(3601)) == frozenset()


def test_saves_count_for_no_cap_but_open_the_breaker() -> None:
    guard = Guard(Limits(max_saves=3))
    for second in range(2):
        guard.acted(at(second), "k", Rung.SAVE)
    assert guard.allowed(at(3)).rung is Rung.WARMSTART
    guard.acted(at(3), "k", Rung.SAVE)
    assert guard.allowed(at(3)).rung is Rung.NOTHING
    assert guard.broken == "3 saves in one hour: the triggers do not stop"


def test_the_breaker_stays_open_until_a_person_closes_it() -> None:
    guard = Guard(Limits(min_interval_s=0, caps=(), per_day=3))
    for second in range(3):
        assert guard.allowed(at(second)).rung is Rung.WARMSTART
        guard.acted(at(second), "k", Rung.WARMSTART)
    for second in (4, DAY_S + 100, 30 * DAY_S):
        assert guard.allowed(at(second)).rung is Rung.NOTHING
        assert "3 warmstarts in 24 hours" in guard.allowed(at(second)).why
    guard.reset()
    assert guard.allowed(at(5)).rung is Rung.WARMSTART


def test_the_past_outlives_the_process() -> None:
    first = Guard(Limits(per_day=3))
    first.acted(at(0), "k", Rung.WARMSTART)
    second = Guard(Limits(per_day=3), first.log, first.broken)
    assert second.allowed(at(10)).rung is Rung.SAVE
    assert second.interval_s == first.interval_s


def test_what_did_not_go_out_counts_for_nothing() -> None:
    guard = Guard(Limits())
    guard.acted(at(0), "k", Rung.NOTHING)
    assert guard.log == ()


@pytest.mark.parametrize("days", [1, 3])
def test_it_forgets_what_no_limit_looks_at(days: int) -> None:
    guard = Guard(Limits(per_day=10_000, caps=(), min_interval_s=0, max_saves=10_000))
    for second in range(0, days * 86_400, 600):
        guard.acted(at(second), "k", Rung.WARMSTART)
    assert len(guard.log) <= 86_400 / 600


def test_a_storm_does_not_spend_the_saves_of_an_hour_in_seconds() -> None:
    """A trigger twice a second for 20 minutes: collected again and again, and not disarmed for good."""
    guard, acted = Guard(Limits()), []
    for half_second in range(2400):
        now = at(half_second / 2)
        rung = guard.allowed(now).rung
        if rung is not Rung.NOTHING:
            guard.acted(now, "k", rung)
            acted.append((half_second / 2, rung))
    assert guard.broken == ""
    assert [t for t, rung in acted if rung is Rung.WARMSTART][:4] == [0, 15, 45, 105]
    saves = [t for t, rung in acted if rung is Rung.SAVE]
    assert saves[:4] == [0.5, 1, 1.5, 11.5] and len(saves) < 12
    assert guard.allowed(at(saves[-1] + 0.1)).until_ns is not None, "it ends by itself"


def test_a_start_that_no_person_made_keeps_an_open_breaker_and_its_counts() -> None:
    """Seen: the service manager's restart of the watch closed it, and the storm went on."""
    saved = m.Saved(ended="Ctrl-C", broken="9 warmstarts in 24 hours", guard_log=(
        Acted(1_000 * NS_PER_S, "k", Rung.WARMSTART),
    ))  # fmt: skip
    play = Play()
    play.machine.guard.recall(saved.guard_log, saved.broken)
    play.settle()
    play.settle(m.BenchArmed(who="a service", closes_breaker=False))
    assert play.machine.loaded is None
    assert str(play.machine.status) == (
        "disarmed: storm guard: 9 warmstarts in 24 hours; recording until a person arms again"
    )
    assert "the breaker stays open" in play.reports("person")[-1]
    assert (play.saved.broken, play.saved.guard_log) == (saved.broken, saved.guard_log)
    play.settle(m.BenchArmed(who="anna"))
    assert play.machine.loaded is not None and play.reports("person")[-1] == "anna: arms"
    assert (play.saved.broken, play.saved.guard_log) == ("", ())


def test_without_an_open_breaker_the_counts_of_a_process_before_go_on() -> None:
    log = (Acted(999 * NS_PER_S, "k", Rung.WARMSTART),)
    for closes in (True, False):
        play = Play()
        play.machine.guard.recall(log, "")
        play.settle()
        play.settle(m.BenchArmed(who="anna", closes_breaker=closes))
        assert play.saved.guard_log == log
        assert play.machine.loaded is not None and play.machine.loaded.rung is Rung.SAVE


# --- the end of a pause, on a bench where nothing else happens ------------------------------------------------
def test_the_end_of_a_pause_is_a_deadline_until_a_step_has_taken_it() -> None:
    """Seen: asked after the pause's end, the machine no longer named it, so the bench stayed "only
    saves" until the next poll, up to 60 s."""
    play = Play().armed()
    play.settle(play.strike())
    play.recover()
    end_ns = play.now + 15 * NS_PER_S
    assert play.machine.next_deadline_ns() == end_ns
    play.now = end_ns + NS_PER_S
    assert play.machine.next_deadline_ns() == end_ns
    (arm,) = of(play.settle(), m.ArmBench)
    assert arm.rung is Rung.WARMSTART and play.machine.status.health is Health.ARMED
    due_ns = play.machine.next_deadline_ns()
    assert due_ns is not None and due_ns > play.now


def test_an_idle_bench_warmstarts_when_the_documentation_says() -> None:
    """A trigger each 0.1 s that comes only while a warmstart is armed; nothing else happens."""
    play, times = Play().armed(), []
    began_ns = play.now
    while play.now < began_ns + 120 * NS_PER_S:
        loaded = play.machine.loaded
        if loaded is not None and loaded.rung is Rung.WARMSTART:
            times.append((play.now - began_ns) / NS_PER_S)
            play.settle(play.strike())
            play.idle(3)
            play.recover()
        play.idle(0.1)
    assert times == pytest.approx([0, 15, 45, 105], abs=0.1 * len(times))


LIMITS = st.builds(
    Limits,
    min_interval_s=st.sampled_from([0.0, 1.0, 15.0]),
    max_interval_s=st.sampled_from([30.0, 600.0]),
    calm_s=st.sampled_from([60.0, 1800.0]),
    caps=st.sampled_from([(), ((60.0, 2),), ((120.0, 6), (HOUR_S, 3))]),
    per_kind_per_hour=st.integers(1, 4),
    save_interval_s=st.sampled_from([1.0, 10.0]),
)


@settings(max_examples=40, deadline=None)
@given(LIMITS, st.lists(st.tuples(st.floats(0, 900), st.integers(0, 1)), max_size=14))
def test_nothing_changes_by_itself_before_the_next_change(
    limits: Limits, actions: list[tuple[float, int]]
) -> None:
    """Kinds and rungs as the guard allows; then it is looked at every second."""
    guard, second = Guard(limits), 0.0
    for pause_s, kind in actions:
        second += pause_s
        guard.acted(at(second), f"kind {kind}", guard.allowed(at(second)).rung)
    now = at(second)
    before, next_ns = (guard.allowed(now), guard.known_kinds(now)), guard.next_change_ns(now)
    for later in range(1, 2 * 3600, 7):
        now = at(second + later)
        if next_ns is not None and now >= next_ns:
            before = guard.allowed(now), guard.known_kinds(now)
            next_ns = guard.next_change_ns(now)
            assert next_ns is None or next_ns > now
        found = guard.allowed(now), guard.known_kinds(now)
        assert (found[0].rung, found[0].why, found[1]) == (before[0].rung, before[0].why, before[1])


def test_a_save_that_is_an_hour_old_may_end_a_pause() -> None:
    guard = Guard(Limits(caps=((HOUR_S, 1),), save_interval_s=600))
    guard.acted(at(3000), "k", Rung.WARMSTART)
    for second in (3010, 3011, 6500):
        guard.acted(at(second), "k", Rung.SAVE)
    assert guard.allowed(at(6501)).why.startswith(
        "storm guard: 3 saves in one hour, the next after"
    )
    assert guard.next_change_ns(at(6501)) == at(3000 + HOUR_S)
    guard = Guard(Limits(caps=((HOUR_S, 1),), save_interval_s=600), guard.log[1:])
    guard.acted(at(6502), "k", Rung.WARMSTART)
    assert guard.next_change_ns(at(6503)) == at(3010 + HOUR_S)
    assert guard.allowed(at(3010 + HOUR_S)).rung is Rung.SAVE


@settings(max_examples=40, deadline=None)
@given(LIMITS, st.lists(st.tuples(st.floats(0, 90), st.booleans()), min_size=1, max_size=8))
def test_what_is_armed_and_said_is_what_the_guard_allows_at_each_moment(
    limits: Limits, triggers: list[tuple[float, bool]]
) -> None:
    """Strikes at any times on a bench where all is well: within 0.1 s of each change the reflex has
    the frames that are allowed, and the health says why they are not the harshest."""
    play = Play(limits=limits).armed()

    def look() -> None:
        guard, machine = play.machine.guard, play.machine
        lately = (guard.allowed(play.now - NS_PER_S // 10), guard.allowed(play.now))
        rung = machine.loaded.rung if machine.loaded is not None else Rung.NOTHING
        assert rung in [one.rung for one in lately]
        assert any(machine.status.why.removesuffix("; recording") == one.why for one in lately)

    for pause_s, is_primary in triggers:
        for _ in range(round(pause_s)):
            play.idle(1)
            look()
        if play.machine.loaded is not None:
            play.settle(play.strike(side="primary" if is_primary else "secondary"))
            play.recover()
        if play.machine.guard.broken:
            return
    for _ in range(130):
        play.idle(1)
        look()
