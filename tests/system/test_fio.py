"""fio as the host: real fio against an NBD server, a file and a disk, and as the workload of a
whole run."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbd_test_server import NbdTestServer, served
from waiting import await_true
from workload_process import LIMIT_S, Starter, starter

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.core import events
from freezeframe.harness.incidents.store import RESULTS
from freezeframe.harness.runs.campaign import Result, run

pytestmark = pytest.mark.system

SIZE_BYTES = 8 << 20


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Starter]:
    with starter(tmp_path, "freezeframe.drivers.hosts.fio") as runs:
        yield runs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdTestServer]:
    with served(tmp_path, SIZE_BYTES) as server:
        yield server


def test_fio_writes_the_volume_over_and_over_and_finds_all_of_it_again(
    runs: Starter, server: NbdTestServer, tmp_path: Path
) -> None:
    run = runs(server.uri, bytes_total=20 << 20, results_path=str(tmp_path / "results"))
    done = run.finish()
    assert (done.ok, done.error, done.writes_acked) == (True, "", (20 << 20) // (64 << 10))
    assert (done.bytes_written, done.verified_bytes, done.wrong_reads_total) == (
        20 << 20,
        20 << 20,
        0,
    )
    assert done.longest_hold_ns > 0
    told = json.loads((tmp_path / "results").read_text())
    assert [one["purpose"] for one in told] == ["write", "verify"] * 3
    assert not run.journal_path.exists()


class Rotten(NbdTestServer):
    """Its store forgets one bit of each read of a certain place."""

    def _serve(self, request: object) -> tuple[bytes, int]:
        data, error = super()._serve(request)  # type: ignore[arg-type]
        if data and request.offset_bytes == 192 << 10:  # type: ignore[attr-defined]
            data = data[:1000] + bytes([data[1000] ^ 4]) + data[1001:]
        return data, error


def test_what_fio_finds_wrong_is_a_result_with_its_place(runs: Starter, tmp_path: Path) -> None:
    with Rotten(tmp_path / "nbd.sock", SIZE_BYTES) as server:
        done = runs(server.uri).finish()
    assert done.ok
    assert done.wrong_reads_total == 1
    (wrong,) = done.wrong_reads
    assert (wrong.offset_bytes, wrong.size_bytes, wrong.text) == (
        192 << 10,
        64 << 10,
        "verify failed",
    )


def test_a_host_port_that_went_away_is_written_on_where_it_broke_off(
    runs: Starter, server: NbdTestServer
) -> None:
    run = runs(server.uri, bytes_total=8 << 20)
    end = time.monotonic() + LIMIT_S
    server.hold()
    run.hear(events.ProcessReady)
    while not server.waiting:
        assert time.monotonic() < end
        os.sched_yield()
    server.hang_up()
    server.release()
    done = run.finish()
    assert (done.ok, done.error) == (True, "")
    assert done.verified_bytes == 8 << 20
    assert any(isinstance(one, events.Note) and "fio ended" in one.text for one in run.heard)


def test_a_port_that_refuses_each_write_is_a_failed_device(
    runs: Starter, server: NbdTestServer
) -> None:
    server.failing = set(range(0, SIZE_BYTES, 64 << 10))
    done = runs(server.uri).finish()
    assert (done.ok, done.whose) == (False, "device")
    assert "fio ended with status" in done.error


def test_stop_ends_fio_within_the_bound(runs: Starter, server: NbdTestServer) -> None:
    run = runs(server.uri, bytes_total=1 << 30, stop_limit_s=5.0)
    run.hear(events.WorkloadProgress)
    assert run.process.stdin is not None
    run.process.stdin.write(events.encode(events.Stop(t_ns=1)))
    run.process.stdin.flush()
    done = run.finish()  # a bounded wait
    assert "nothing was verified" in done.error


def test_a_killed_workload_leaves_no_fio_behind(runs: Starter, server: NbdTestServer) -> None:
    run = runs(server.uri, bytes_total=1 << 30)
    run.hear(events.WorkloadProgress)
    listed = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    end = time.monotonic() + LIMIT_S
    while not (
        children := listed.read_text().split()
    ):  # the kernel's list may leave out one for a moment
        assert time.monotonic() < end, "no fio"
        os.sched_yield()
    run.process.kill()
    run.process.wait()
    while any(Path(f"/proc/{pid}/exe").exists() for pid in children):
        assert time.monotonic() < end, "fio goes on writing"
        os.sched_yield()


def test_without_fio_it_is_the_bench_that_lacks_something(
    runs: Starter, server: NbdTestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = runs(server.uri).finish()
    assert (done.ok, done.whose) == (False, "rig")
    assert "apt install fio" in done.error


def test_a_fio_that_was_killed_is_no_failure_of_the_device(
    runs: Starter, server: NbdTestServer
) -> None:
    run = runs(server.uri)
    server.hold()  # it waits for an answer, and so is there to be killed
    run.hear(events.ProcessReady)
    await_true(lambda: server.waiting, LIMIT_S, "fio to wait for its answer")
    (child,) = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    done = run.finish()
    assert (done.ok, done.whose) == (False, "rig")
    assert "fio was ended by signal 9" in done.error


def test_a_fio_without_the_nbd_engine_is_what_the_bench_lacks(
    runs: Starter, server: NbdTestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was built without libnbd: it answers so to the question for the engine and to a
    job with it."""
    program = tmp_path / "fio"
    refusal = 'case "$*" in *nbd*) echo "fio: engine nbd not loadable" >&2; exit 1 ;; esac'
    program.write_text(f'#!/bin/sh\n{refusal}\nexec {shutil.which("fio")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = runs(server.uri).finish()
    assert (done.ok, done.whose) == (False, "rig")
    assert "has no nbd engine" in done.error


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loop device and the file behind it."""
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(SIZE_BYTES))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, timeout=200
    )
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    yield made.stdout.strip(), backing
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True, timeout=200)


def test_fio_on_a_plain_disk_and_on_a_file(
    runs: Starter, tmp_path: Path, disk: tuple[str, Path]
) -> None:
    device, backing = disk
    done = runs(f"blockdev://{device}?serial={backing}&size_bytes={SIZE_BYTES}").finish()
    assert (done.ok, done.error, done.verified_bytes) == (True, "", 4 << 20)
    file = tmp_path / "a:file.img"
    file.write_bytes(bytes(SIZE_BYTES))
    done = runs(f"blockdev://{file}?size_bytes={SIZE_BYTES}").finish()
    assert (done.ok, done.error, done.verified_bytes) == (True, "", 4 << 20)
    assert file.read_bytes()[: 4 << 20].count(0) < 1 << 20


def test_a_disk_that_fio_writes_to_cannot_be_claimed_meanwhile(
    runs: Starter, disk: tuple[str, Path]
) -> None:
    device, backing = disk
    size_bytes = 512 << 20  # one fio is at it for longer than this test looks
    os.truncate(backing, size_bytes)
    subprocess.run(["losetup", "--set-capacity", device], check=True, timeout=200)
    run = runs(
        f"blockdev://{device}?serial={backing}&size_bytes={size_bytes}", bytes_total=size_bytes
    )

    def writing() -> set[str]:
        """fios that have the disk open."""
        found = set()
        for pid in (
            Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
        ):
            for fd in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):  # it may end under our eyes
                    found |= {pid} if str(fd.readlink()) == device else set()
        return found

    run.hear(events.ProcessReady)
    refused = 0
    end = time.monotonic() + LIMIT_S
    while refused < 5:
        assert time.monotonic() < end
        before = writing()
        if not before:
            continue
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            assert error.errno == errno.EBUSY
            refused += bool(before & writing())
        else:
            assert not before & writing(), "somebody else could have mounted it"


SCENARIO = """
name = "fio_flip"
title = "A bit flips in the secondary while fio writes"
[[faults]]
kind = "bit_flip_receiver"
at_write = 100
[workload]
driver = "{driver}"
bytes_mib = 32
[expect]
detected = true
rules = ["digest-failed", "receive-error", "link-unacked-close"]
"""


@pytest.fixture
def flipped(tmp_path: Path, ff_bench: Bench) -> Callable[[str], Result]:
    """A whole run whose host is the given driver."""
    from freezeframe.harness.bench.benchfile import load_scenario

    def flip(driver: str) -> Result:
        path = tmp_path / "fio_flip.toml"
        path.write_text(SCENARIO.format(driver=driver))
        return run(ff_bench, load_scenario(path), seed=7, out_dir=tmp_path / "incidents")

    return flip


def test_a_run_with_fio_as_the_host_finds_the_bit(flipped: Callable[[str], Result]) -> None:
    result = flipped("fio")
    told = result.as_json()
    assert told["outcome"] == "pass", told["reasons"]
    assert told["data_equal"] is True
    assert told["lost_acked_writes"] is None, "without a journal nobody knows"
    verdict = told["verdict"]
    assert (verdict["stage"], verdict["kind"], verdict["conclusive"]) == (
        "secondary before check", "data changed", True,
    )  # fmt: skip
    assert verdict["write_id"] is None
    assert verdict["byte_offset"] is not None
    assert verdict["bit_mask"] in [1 << bit for bit in range(8)]
    assert any("fio keeps no journal" in lack for lack in verdict["evidence_lacks"])
    workload = result.record["workload"]
    assert (workload["verified_bytes"], workload["wrong_reads_total"]) == (32 << 20, 0)
    assert result.incident is not None
    assert (
        json.loads((result.incident / RESULTS).read_text())[0]["job"]["write"]["total_ios"] == 512
    )


def test_fio_goes_on_where_a_power_cycle_broke_it_off(tmp_path: Path, ff_bench: Bench) -> None:
    """The primary hangs, is silent for seconds, and loses its connections with its power: held, not
    failed."""
    from freezeframe.harness.bench.benchfile import builtin_folder, load_scenario

    path = tmp_path / "fio_hung.toml"
    text = (builtin_folder() / "scenarios" / "hung_warmstart.toml").read_text()
    path.write_text(
        text.replace('"hung_warmstart"', '"fio_hung"', 1) + '\n[workload]\ndriver = "fio"\n'
    )
    result = run(ff_bench, load_scenario(path), seed=2, out_dir=tmp_path / "incidents")
    assert result.outcome == "pass", result.reasons
    workload = result.record["workload"]
    assert (workload["verified_bytes"], workload["wrong_reads_total"]) == (64 << 20, 0)
    assert workload["longest_hold_ns"] > 1e9
    assert any("fio ended with status" in note for note in result.record["notes"])


def test_a_run_without_fio_is_rig_trouble(
    flipped: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep = tmp_path / "bin"
    keep.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*") if folder else ():
            if program.name != "fio" and not (keep / program.name).exists():
                (keep / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(keep))
    result = flipped("fio")
    assert result.outcome == "rig-trouble"
    assert "apt install fio" in str(result.error)
