"""A whole run whose host sees the primary's volume as a plain block device: NBD -> FUSE file ->
loop device -> O_DIRECT."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.core.blocks.blockstamp import Journal
from freezeframe.harness.incidents.store import JOURNAL
from freezeframe.harness.runs.campaign import run

SIZE_BYTES = 128 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Path]:
    """The bench file of a simulated pair beside the test, its primary's volume a disk of this
    machine."""
    if shutil.which("nbdfuse") is None:
        pytest.skip("nbdfuse is missing: apt install libnbd-bin")
    volume = tmp_path / "mount" / "volume"
    volume.parent.mkdir()
    sim = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "freezeframe.harness.cli",
            "sim",
            "--json",
            "--dir",
            str(tmp_path / "sim"),
        ],
        stdout=subprocess.PIPE,
    )
    fuse, disk = None, ""
    try:
        assert sim.stdout is not None and select.select([sim.stdout], [], [], LIMIT_S)[0]
        path = Path(json.loads(b"".join(iter(sim.stdout.readline, b"}\n")) + b"}")["bench"])
        fuse = subprocess.Popen(
            ["nbdfuse", str(volume), "--unix", str(path.parent / "primary.nbd")]
        )
        deadline = time.monotonic() + LIMIT_S
        while not volume.exists() and fuse.poll() is None:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.02)
        if fuse.poll() is not None:
            pytest.skip("no FUSE file system can be mounted here")
        made = subprocess.run(
            ["losetup", "--find", "--show", str(volume)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if made.returncode:
            pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
        disk = made.stdout.strip()
        uri = f"blockdev://{disk}?serial={volume}&size_bytes={SIZE_BYTES}"
        primary, secondary = path.read_text().split("[secondary]")
        primary = primary.replace(f"nbd+unix:///?socket={path.parent}/primary.nbd", uri)
        primary = primary.replace('host_driver = "nbd"', 'host_driver = "blockdev"')
        assert uri in primary and "blockdev" in primary
        path.write_text(
            f"{primary}[secondary]"
            + secondary.replace('driver = "nbd"\nbytes', 'driver = "blockdev"\nbytes')
        )
        yield path
    finally:
        if disk:
            subprocess.run(["losetup", "--detach", disk], check=True, timeout=LIMIT_S)
        if fuse is not None:
            subprocess.run(["umount", str(volume.parent)], check=False, timeout=LIMIT_S)
            fuse.terminate()
            fuse.wait(LIMIT_S)
        sim.send_signal(signal.SIGINT)
        sim.wait(LIMIT_S)


def test_a_host_that_sees_a_disk_loses_nothing_and_the_bit_is_found(
    bench: Path, tmp_path: Path
) -> None:
    result = run(
        load_bench(bench),
        load_scenario("bit_flip_receiver"),
        seed=4,
        out_dir=tmp_path / "incidents",
    )
    told = result.as_json()
    assert told["outcome"] == "pass", told["reasons"]
    assert (told["data_equal"], told["lost_acked_writes"]) == (True, 0)
    assert told["verdict"]["stage"] == "secondary before check"
    assert told["verdict"]["evidence_grade"] == "A"
    assert told["verdict"]["write_id"] is not None
    assert result.record["workload"]["driver"] == "blockdev"
    assert result.incident is not None
    journal = Journal.read((result.incident / JOURNAL).read_bytes())
    assert len(journal.acked) == result.record["workload"]["writes_acked"]
    assert os.path.commonpath([result.incident, tmp_path]) == str(tmp_path)
