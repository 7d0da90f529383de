"""The failing block of a real incident: read from both simulated controllers before they rejoin."""

import subprocess
from pathlib import Path

import pytest

from freezeframe.drivers.controllers.sim_array import SimArray
from freezeframe.fixtures.pair import Incidents
from freezeframe.fixtures.pair import run_scenario as run_on
from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.core.verdict.failingblock import FailingBlock
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.report.html import page
from freezeframe.harness.report.summary import facts
from freezeframe.harness.runs.campaign import Result

SECTOR_BYTES = 512


def block_of(result: Result) -> tuple[Path, FailingBlock]:
    assert result.incident is not None
    block = StoredIncident.open(result.incident).record.failing_block
    assert block is not None
    return result.incident, block


BOOT_MS = 6000
"""Some seconds, as a real controller: what answers within it has answered before the rejoin, on a
busy machine too."""


def slowly_booting(**policy: object) -> Bench:
    bench = load_bench("sim")
    assert bench.simulation is not None
    return bench.model_copy(
        update={
            "simulation": bench.simulation.model_copy(update={"boot_ms": BOOT_MS}),
            "policy": bench.policy.model_copy(update={"boot_timeout_s": 100, **policy}),
        }
    )


def test_both_sides_are_kept_and_differ_in_the_byte_that_the_verdict_names(
    incidents: Incidents,
) -> None:
    path, block = block_of(run_on(slowly_booting(), "bit_flip_store", seed=3, incidents=incidents))
    record = StoredIncident.open(path).record
    assert {side: one.rejoin for side, one in block.sides.items()} == {
        "primary": "before",
        "secondary": "before",
    }
    primary, secondary = (
        (path / side / "block.bin").read_bytes() for side in ("primary", "secondary")
    )
    assert len(primary) == len(secondary) == block.sectors * SECTOR_BYTES
    places = [
        at for at, (one, two) in enumerate(zip(primary, secondary, strict=True)) if one != two
    ]
    assert places == [block.byte_offset] and block.bytes_different == 1
    verdict = record.verdict
    assert verdict is not None and verdict.write_lba is not None
    assert verdict.byte_offset is not None and block.sector is not None
    wrong = verdict.write_lba * SECTOR_BYTES + verdict.byte_offset
    assert block.sector * SECTOR_BYTES + places[0] == wrong
    assert primary[places[0]] ^ secondary[places[0]] == verdict.bit_mask
    # The resync has mended it since: nothing but these files holds the wrong byte now.
    assert record.data_equal is True
    said = dict(facts(record))["failing block"]
    assert "both sides read before the sides rejoined; 1 of 4096 bytes differs" in said
    shown = page(Dossier(StoredIncident.open(path)))
    assert "failing block" in shown and "both sides read before the sides rejoined" in shown
    summed = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=path, capture_output=True, text=True, timeout=200
    )
    assert summed.returncode == 0
    assert summed.stdout.count("block.bin: OK") == 2


def test_a_refused_write_leaves_the_primarys_new_data_and_the_secondarys_old(
    incidents: Incidents,
) -> None:
    """The secondary did not store what failed its digest. The whole write of 64 KiB is read."""
    path, block = block_of(run_on(slowly_booting(), "bit_flip_sender", seed=3, incidents=incidents))
    verdict = StoredIncident.open(path).record.verdict
    assert verdict is not None
    assert (block.sector, block.sectors) == (verdict.write_lba, verdict.write_sectors)
    assert block.is_read and all(one.rejoin == "before" for one in block.sides.values())
    assert block.bytes_different is not None and block.bytes_different > 1 << 15


def test_a_side_that_runs_on_is_read_while_the_other_restarts(
    incidents: Incidents,
) -> None:
    bench = slowly_booting(instruct=["primary"])
    path, block = block_of(run_on(bench, "lost_write", seed=3, incidents=incidents))
    record = StoredIncident.open(path).record
    assert list(record.sets) == ["primary"]
    assert block.is_read and {one.rejoin for one in block.sides.values()} == {"before"}


def test_a_block_that_the_resync_has_mended_is_never_said_to_be_from_before(
    incidents: Incidents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boot of a millisecond, and no boot loader that answers: the two rejoin while their sets are pulled."""
    monkeypatch.setattr(SimArray, "reads_while_booting", False)
    bench = slowly_booting()
    assert bench.simulation is not None
    quick = bench.simulation.model_copy(update={"boot_ms": 1})
    bench = bench.model_copy(update={"simulation": quick})
    path, block = block_of(run_on(bench, "bit_flip_store", seed=3, incidents=incidents))
    assert block.is_read and block.bytes_different in (0, 1)
    rejoins = {one.rejoin for one in block.sides.values()}
    if block.bytes_different == 0:
        assert "after" in rejoins
        assert (
            "AFTER the rejoin had begun"
            in dict(facts(StoredIncident.open(path).record))["failing block"]
        )
    if rejoins == {"before"}:
        assert block.bytes_different == 1
