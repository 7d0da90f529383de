"""The times of a log's lines: of day, of the device, of several boots, or none."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.console.logtimes import NS_PER_DAY, read_times
from freezeframe.harness.core.events import NS_PER_S

NOON_NS = 1_795_953_600 * NS_PER_S
"""2026-11-29 12:00 UTC."""


def test_uptimes_go_on_over_a_reboot() -> None:
    log = b"[    1.000000] a\n[    9.500000] b\nBIOS\n[    0.100000] c\n[    2.100000] d\n"
    found = read_times(log, NOON_NS)
    assert (found.scale, found.boots, found.unstamped) == ("uptime", 2, 1)
    times = [t_ns / NS_PER_S for t_ns, _ in found.starts]
    assert times == [1.0, 9.5, 11.5]
    assert found.time_at(log.index(b"BIOS")) == 9_500_000_000


def test_two_processors_a_little_out_of_order_are_one_boot() -> None:
    found = read_times(b"[    5.000010] a\n[    5.000004] b\n[    5.000020] c\n", NOON_NS)
    assert found.boots == 1
    assert [t_ns for t_ns, _ in found.starts] == [5_000_010_000, 5_000_020_000]


def test_a_time_of_day_is_of_the_nearest_day() -> None:
    for text, hours in (
        (b"23:30:00 x\n", 11.5),
        (b"00:10:00.5 x\n", -11.8332),
        (b"12:00:01 x\n", 0),
    ):
        ((t_ns, _),) = read_times(text, NOON_NS).starts
        assert abs((t_ns - NOON_NS) / 3600e9 - hours) < 0.01
    midnight_ns = NOON_NS + NS_PER_DAY // 2
    ((t_ns, _),) = read_times(b"23:59:59 x\n", midnight_ns).starts
    assert midnight_ns - t_ns == NS_PER_S


def test_a_stamp_without_a_year_is_not_of_the_future() -> None:
    ((t_ns, _),) = read_times(b"Dec 31 23:59:59 node kernel: x\n", 1_767_225_610 * NS_PER_S).starts
    assert t_ns == 1_767_225_599 * NS_PER_S  # 2025, read on 1 January 2026


def test_lines_before_the_first_time_have_that_time_and_none_falls() -> None:
    log = b"grub\n2026-11-29T12:00:05.000000+00:00 n kernel: a\n2026-11-29T12:00:04+00:00 n kernel: b\n"
    found = read_times(log, NOON_NS)
    assert (found.scale, found.starts) == ("wall", ((NOON_NS + 5 * NS_PER_S, 0),))


def test_a_log_without_times_is_all_at_once() -> None:
    found = read_times(b"a\nb\n", NOON_NS)
    assert (found.scale, found.starts, found.lines) == ("none", ((0, 0),), 2)
    assert read_times(b"", NOON_NS).starts == ()


@given(log=st.binary(max_size=300), around_ns=st.integers(0, (1 << 62) - 1))
def test_any_bytes_have_times_that_never_fall(log: bytes, around_ns: int) -> None:
    found = read_times(log, around_ns)
    times, offsets = [t for t, _ in found.starts], [at for _, at in found.starts]
    assert times == sorted(times) and offsets == sorted(offsets)
    assert bool(found.starts) is bool(log)
    assert all(t_ns >= 0 for t_ns in times)
