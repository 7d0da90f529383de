"""How much of an event log was left when it was saved."""

from typing import Any

from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.record import ClockFit, Verdict
from freezeframe.harness.core.verdict.ringdepth import RingDepth, ring_depth

VERDICT = Verdict(
    write_lba=128,
    primary_no=2,
    secondary_no=0x0200000000000000,
    clocks={"primary": ClockFit(offset_ns=1000, error_ns=0, consistent=True), "secondary": None},
)


def saved(*events: tuple[int, str, int, int], first_seq: int = 0) -> RootCauseSet:
    """(uptime_ns, name, write_no, sector) each."""
    records: list[dict[str, Any]] = [
        {
            "seq": first_seq + at,
            "uptime_ns": t_ns,
            "name": name,
            "write_no": write_no,
            "sector": sector,
        }
        for at, (t_ns, name, write_no, sector) in enumerate(events)
    ]
    return RootCauseSet(header={}, state={}, events=records)


LOG = (
    (10, "HOST_WRITE", 1, 128),
    (20, "HOST_WRITE", 2, 128),
    (21, "REPL_SEND", 2, 128),
    (50, "HOST_WRITE", 3, 0),
    (90, "WARMSTART", 0, 0),
)


def test_the_failing_write_and_not_an_earlier_one_to_the_same_place() -> None:
    assert ring_depth(saved(*LOG), 1040, VERDICT, "primary") == RingDepth(5, 0, 2, 3)


def test_the_secondary_has_a_number_of_its_own() -> None:
    number = 0x0200000000000000
    log = saved((5, "REPL_RECEIVE", number, 128), (6, "REPL_STORE", number, 128), first_seq=70)
    assert ring_depth(log, None, VERDICT, "secondary") == RingDepth(2, 70, None, 1)


def test_what_is_not_known_is_not_told() -> None:
    assert ring_depth(saved(*LOG[3:], first_seq=9), 1000, VERDICT, "primary") == RingDepth(
        2, 9, 2, None
    )
    assert ring_depth(saved(), 1000, Verdict(), "primary") == RingDepth(0, 0, None, None)


def test_what_an_earlier_boot_logged_is_counted_to_neither() -> None:
    """A log outlives warmstarts, and uptimes and the primary's count of writes begin anew with
    each."""
    earlier = ((7, "HOST_WRITE", 2, 128), (5000, "WARMSTART", 0, 0), (0, "BOOT", 0, 0))
    assert ring_depth(saved(*earlier, *LOG), 1040, VERDICT, "primary") == RingDepth(8, 0, 2, 3)
    assert ring_depth(saved(*earlier, *LOG[3:]), 1040, VERDICT, "primary") == RingDepth(
        5, 0, 2, None
    )


def test_what_was_logged_at_the_trigger_is_not_after_it() -> None:
    before, at, after = (
        ring_depth(saved(*LOG), 1000 + uptime_ns, VERDICT, "primary") for uptime_ns in (49, 50, 51)
    )
    assert before == RingDepth(5, 0, 2, 3)
    assert at == after == RingDepth(5, 0, 1, 3)
