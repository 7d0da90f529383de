"""A device's clock on ours: what questions and console lines say of it, and when they contradict
each other."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.verdict.deviceclock import Bound, fit, lines, printed


@given(
    offset=st.integers(0, 10**18),
    seen=st.lists(
        st.tuples(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**9)),
        min_size=1,
        max_size=20,
    ),
)
def test_the_true_offset_is_always_inside_of_the_bound(
    offset: int, seen: list[tuple[int, int, int]]
) -> None:
    bounds = [
        Bound(uptime_ns=up, not_before_ns=up + offset - early, not_after_ns=up + offset + late)
        for up, early, late in seen
    ]
    clock = fit(bounds)
    assert clock is not None and clock.consistent
    assert abs(clock.offset_ns - offset) <= clock.error_ns
    assert 2 * clock.error_ns - 2 <= min(early + late for _, early, late in seen), (
        "as good as the best of them"
    )


def test_one_side_alone_bounds_nothing() -> None:
    assert fit([]) is None
    assert fit([Bound(uptime_ns=5, not_after_ns=9)]) is None
    clock = fit([Bound(uptime_ns=5, not_after_ns=9), Bound(uptime_ns=10, not_before_ns=12)])
    assert clock is not None and (clock.offset_ns, clock.error_ns) == (3, 1)


def test_observations_that_contradict_each_other_are_told() -> None:
    clock = fit(
        [
            Bound(uptime_ns=0, not_before_ns=100, not_after_ns=101),
            Bound(uptime_ns=0, not_after_ns=50),
        ]
    )
    assert clock is not None and not clock.consistent
    assert clock.error_ns >= 25


def test_console_lines_are_cut_into_boots_and_bound_the_clock_from_above() -> None:
    log = b"noise\n[    1.500000] one\r\n[    2.000000] two\r\n[    0.000000] boot\r\n[    0.100000] up\r\n[    9"
    times = [(10_000_000_000, 0), (20_000_000_000, 28)]
    found = lines(log, times)
    assert [(one.boot, one.uptime_ns) for one in found] == [
        (0, 1_500_000_000), (0, 2_000_000_000), (1, 0), (1, 100_000_000),
    ]  # fmt: skip
    assert found[0].t_read_ns == 10_000_000_000
    assert [bound.not_after_ns for bound in printed(found, 1)] == [20_000_000_000, 20_000_000_000]
    assert lines(b"[    1.500000] one", [])[0].t_read_ns == 0
    assert printed(lines(b"[    1.500000] one", []), 0) == []
