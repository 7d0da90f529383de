"""When a warmstart began: the read that completed its first line, however the console was cut into
reads."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.verdict.onset import began_ns

PATTERN = rb"sysrq: Trigger a crash"
BEFORE = b"[    1.0] block drbd0: all is well\n"
LINE = b"[    2.0] sysrq: Trigger a crash\n"
AFTER = b"[    2.1] Kernel panic - not syncing: sysrq triggered crash\n"


@given(st.lists(st.integers(1, len(BEFORE + LINE + AFTER) - 1), unique=True).map(sorted))
def test_the_read_that_completed_it(cuts: list[int]) -> None:
    data = BEFORE + LINE + AFTER
    starts = [0, *cuts]
    reads = [(1000 + number, start) for number, start in enumerate(starts)]
    end = data.index(PATTERN) + len(PATTERN)
    completed = max(number for number, start in enumerate(starts) if start < end)
    assert began_ns(data, reads, PATTERN, 1000) == 1000 + completed
    assert began_ns(data, reads, PATTERN, 1000 + completed) == 1000 + completed
    assert began_ns(data, reads, PATTERN, 1001 + completed) is None


def test_an_earlier_warmstart_is_not_this_one() -> None:
    reads = [(10, 0), (20, len(LINE)), (30, len(LINE + AFTER))]
    assert began_ns(LINE + AFTER + LINE, reads, PATTERN, 15) == 30
    assert began_ns(LINE + AFTER, reads[:2], PATTERN, 15) is None
    assert began_ns(b"", [], PATTERN, 0) is None
