"""A controller's clock in one incident: fitted to its answers and its console, and its uptime when the
bench was armed. Pure."""

from collections.abc import Sequence

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict import deviceclock
from freezeframe.harness.core.verdict.deviceclock import Bound, DeviceClock
from freezeframe.harness.core.verdict.record import IncidentRecord


def device_clock(
    side: Side, record: IncidentRecord, console: bytes, times: Sequence[tuple[Ns, int]]
) -> DeviceClock | None:
    """The controller's uptime on our clock: from who-are-you, from the answer to the frame, from
    its console."""
    bounds: list[Bound] = []
    asked = record.controllers.get(side)
    if (
        asked is not None
        and asked.uptime_ns is not None
        and asked.t_asked_ns is not None
        and asked.t_answered_ns is not None
    ):
        bounds.append(
            Bound(
                uptime_ns=asked.uptime_ns,
                not_before_ns=asked.t_asked_ns - asked.uptime_error_ns,
                not_after_ns=asked.t_answered_ns + asked.uptime_error_ns,
            )
        )
    for action in record.actions:
        reply = action.reply
        if action.side == side and reply is not None and reply.uptime_ns and reply.t_ack_ns:
            bounds.append(
                Bound(
                    uptime_ns=reply.uptime_ns, not_before_ns=action.t_frame_ns, not_after_ns=reply.t_ack_ns
                )
            )  # fmt: skip
    stamped = deviceclock.lines(console, times)
    if stamped and bounds:
        # The watch began in the boot that the frames were armed for: its first lines are that
        # boot's.
        bounds += deviceclock.printed(stamped, _armed_boot(stamped, bounds))
    return deviceclock.fit(bounds)


def _armed_boot(stamped: Sequence[deviceclock.StampedLine], bounds: Sequence[Bound]) -> int:
    """Which boot on the console the questions fell into: the last that had begun printing before
    the last answer."""
    last_ns = max(bound.not_after_ns or 0 for bound in bounds)
    before = [line.boot for line in stamped if line.t_read_ns and line.t_read_ns <= last_ns]
    return before[-1] if before else 0


def armed_uptime_ns(
    side: Side, record: IncidentRecord, found: RootCauseSet | None, clock: DeviceClock | None
) -> int:
    """``SideEvidence.armed_uptime_ns``: the device's own uptime when it was asked, so that no clock of
    ours can shift it; where that is not recorded, by its clock."""
    asked = record.controllers.get(side)
    if asked is None or asked.uptime_ns is None:
        if clock is None or not clock.consistent:
            return 0
        uptime_ns = record.armed_ns(side) - clock.offset_ns
        return max(uptime_ns - clock.error_at(max(uptime_ns, 0)), 0)
    booted = found.header.get("boot_epoch") if found is not None else None
    if asked.boot_epoch and isinstance(booted, int) and booted:
        is_same = asked.boot_epoch == booted
    else:
        is_same = clock is not None and clock.consistent
    return max(asked.uptime_ns - asked.uptime_error_ns, 0) if is_same else 0
