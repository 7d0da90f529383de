"""The verdict on real Linux nodes: what their kernel logs prove, and that nothing is guessed from
what they do not say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from golden_incidents import LINUX, unpack

from freezeframe.drivers.controllers import linux_drbd, linux_records
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.evidence import Evidence
from freezeframe.harness.core.verdict.record import Verdict
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import verdict_of
from freezeframe.harness.incidents.store import StoredIncident

CHANGED = "block drbd0: Digest mismatch, buffer modified by upper layers during write: {}s +{}"
"""drivers/block/drbd/drbd_main.c, drbd_send_dblock(); from its source, the rig has not shown it."""
SECTOR, SIZE, PRINTED_NS = 1112, 4096, 6_330_000_000
"""The write that the incident is about, and when its primary could have logged something of it."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return Dossier(unpack(LINUX, tmp_path_factory.mktemp("incident"))).evidence


def logged(e: Evidence, *lines: str, uptime_ns: int = PRINTED_NS) -> Evidence:
    """The evidence with more in the primary's kernel log."""
    primary = e.primary
    assert primary.set is not None
    seconds, fraction = divmod(uptime_ns, 1_000_000_000)
    log = "".join(f"[{seconds:5}.{fraction // 1000:06}] {line}\n" for line in lines)
    events = [*primary.set.events, *linux_records.kernel_events(log, linux_drbd.KNOWN)]
    more = RootCauseSet(
        header=primary.set.header, state=primary.set.state, events=events, tells=primary.set.tells
    )
    return replace(e, sides={**e.sides, "primary": replace(primary, set=more)})


def test_byte_and_bit_are_right_and_what_the_log_does_not_say_is_left_open(tmp_path: Path) -> None:
    stored = unpack(LINUX, tmp_path)
    verdict = verdict_of(stored)
    recorded = stored.record.verdict
    assert recorded is not None and recorded.conclusion == verdict.conclusion
    assert (verdict.write_lba, verdict.byte_offset, verdict.bit_mask) == (
        SECTOR,
        2048,
        1 << 4,
    )
    assert (verdict.stage, verdict.candidates) == (
        None,
        ("primary after digest", "on the link"),
    )
    assert any("once the data were in its socket" in reason for reason in verdict.reasons)
    assert "a capture at its own end" in verdict.reason
    assert verdict.evidence_grade == "C"
    assert all(clock is not None and clock.consistent for clock in verdict.clocks.values())
    assert {row.field for row in verdict.state_differences} >= {"connection"}


def test_the_secondary_s_log_holds_its_complaint(real: Evidence) -> None:
    (complaint,) = real.secondary.named("REPL_DIGEST_FAILED")
    assert (complaint["sector"], complaint["bytes"]) == (SECTOR, SIZE)
    assert real.secondary.log_is_whole and real.primary.log_is_whole


def told(e: Evidence) -> tuple[str | None, str | None, Verdict]:
    verdict = judge(e)
    return verdict.stage, verdict.side, verdict


def test_a_buffer_that_the_primary_itself_found_changed_is_the_primary_s(real: Evidence) -> None:
    stage, side, verdict = told(logged(real, CHANGED.format(SECTOR, SIZE)))
    assert (stage, side, verdict.conclusive) == ("primary after digest", "primary", True)
    assert (verdict.byte_offset, verdict.bit_mask) == (2048, 1 << 4)


@pytest.mark.parametrize("where", [(SECTOR + 8, SIZE), (SECTOR, SIZE * 2)])
def test_another_write_s_buffer_proves_nothing(real: Evidence, where: tuple[int, int]) -> None:
    assert told(logged(real, CHANGED.format(*where)))[0] is None


def test_without_a_capture_both_logs_together_say_it(real: Evidence) -> None:
    blind = replace(real, link=None, link_problem="there is no capture of the link")
    stage, _, verdict = told(blind)
    assert stage is None
    assert verdict.candidates == ("primary after digest", "on the link", "secondary before check")
    assert told(logged(blind, CHANGED.format(SECTOR, SIZE)))[:2] == (
        "primary after digest",
        "primary",
    )
    twice = logged(blind, CHANGED.format(SECTOR, SIZE), CHANGED.format(SECTOR, SIZE))
    assert told(twice)[0] is None, "which of the two was refused is not known"


def test_a_log_that_was_overwritten_proves_no_silence(real: Evidence) -> None:
    primary = real.primary
    assert primary.set is not None
    late = RootCauseSet(
        header=primary.set.header,
        state=primary.set.state,
        events=primary.set.events[-2:],
        tells=primary.set.tells,
    )
    cut = replace(real, sides={**real.sides, "primary": replace(primary, set=replace(late))})
    stage, _, verdict = told(
        replace(cut, sides={**cut.sides, "primary": replace(cut.primary, clock=None)})
    )
    assert stage is None
    assert "does not reach back" in verdict.reason


def test_a_driver_that_is_not_here_is_said(tmp_path: Path) -> None:
    stored = unpack(LINUX, tmp_path)
    record = json.loads((stored.path / "incident.json").read_text())
    record["controllers"]["primary"]["driver"] = "vendor_array"
    (stored.path / "incident.json").write_text(json.dumps(record))
    verdict = verdict_of(StoredIncident.open(stored.path))
    assert any("driver 'vendor_array' not found" in lack for lack in verdict.evidence_lacks)
    assert not verdict.conclusive


def test_a_record_that_lost_the_complaint_leaves_the_console_s(real: Evidence) -> None:
    secondary = real.secondary
    assert secondary.set is not None
    late = RootCauseSet(
        header=secondary.set.header, state=secondary.set.state, events=secondary.set.events[-5:],
        tells=secondary.set.tells,
    )  # fmt: skip
    assert not any(one["name"] == "REPL_DIGEST_FAILED" for one in late.events)
    blind = replace(
        real, link=None, sides={**real.sides, "secondary": replace(secondary, set=late)}
    )
    verdict = judge(blind)
    assert (verdict.write_lba, verdict.write_sectors) == (SECTOR, 8)
    assert verdict.candidates == ("primary after digest", "on the link", "secondary before check")
