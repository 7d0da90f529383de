"""The workload process: against nbdkit, an independent server, and against one that holds, hangs up
and fails."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_test_server import NbdTestServer, served
from waiting import await_listener
from workload_process import LIMIT_S, Run, Starter, starter

from freezeframe.drivers.hosts.nbd import NbdHost
from freezeframe.harness.core import events
from freezeframe.harness.core.blocks.compare import Comparison, compare

pytestmark = pytest.mark.system

SIZE_BYTES = 16 << 20


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Starter]:
    with starter(tmp_path, "freezeframe.drivers.hosts.writer") as runs:
        yield runs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdTestServer]:
    with served(tmp_path, SIZE_BYTES) as server:
        yield server


def answers_held(server: NbdTestServer) -> None:
    """Wait until the server keeps an answer back."""
    end = time.monotonic() + LIMIT_S
    while not server.waiting:
        assert time.monotonic() < end
        os.sched_yield()


def judged(run: Run, uri: str) -> Comparison:
    """What was promised against what an independent connection reads."""
    with NbdHost(uri) as host:
        return compare(run.journal(), None, host.read, host.read, host.size_bytes)


def test_everything_promised_is_on_an_independent_server(runs: Starter, tmp_path: Path) -> None:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is missing: apt install nbdkit")
    path = tmp_path / "kit.sock"
    kit = subprocess.Popen(["nbdkit", "-f", "-U", str(path), "memory", str(SIZE_BYTES)])
    try:
        await_listener(path)
        uri = f"nbd+unix:///?socket={path}"
        run = runs(
            uri,
            pattern="random",
            bytes_total=8 << 20,
            write_bytes=4096,
            queue_depth=32,
            span_bytes=1 << 20,
        )
        done = run.finish()
        assert (done.ok, done.error, done.writes_acked, done.bytes_written) == (
            True,
            "",
            2048,
            8 << 20,
        )
        assert isinstance(run.heard[0], events.ProcessReady)
        last = [event for event in run.heard if isinstance(event, events.WorkloadProgress)][-1]
        assert (last.bytes_written, last.bytes_total, last.writes_acked, last.reconnects) == (
            8 << 20,
            8 << 20,
            2048,
            0,
        )
        assert done.longest_hold_ns > 0
        journal = run.journal()
        assert (len(journal.acked), journal.unacked, journal.torn_bytes) == (2048, [], 0)
        verdict = judged(run, uri)
        assert (verdict.data_equal, verdict.lost_acked_writes) == (True, 0)
    finally:
        kit.kill()
        kit.wait()


def test_a_flush_ends_it_and_a_hold_is_normal(runs: Starter, server: NbdTestServer) -> None:
    server.hold()
    run = runs(server.uri)
    run.hear(events.ProcessReady)
    answers_held(server)
    held_ns = time.monotonic_ns()
    while time.monotonic_ns() < held_ns + 50 * events.NS_PER_MS:
        assert run.process.poll() is None
    server.release()
    done = run.finish()
    assert done.ok
    assert done.longest_hold_ns > 50 * events.NS_PER_MS
    assert server.store.flushes == 1
    assert server.store.dirty_bytes == 0
    assert judged(run, server.uri).data_equal


def test_a_lost_connection_is_made_again_and_everything_unanswered_sent_again(
    runs: Starter, server: NbdTestServer
) -> None:
    run = runs(server.uri, bytes_total=8 << 20, rate_limit_bytes_s=16 << 20)
    for acked in (8, 40):
        run.hear(events.WorkloadProgress, acked=acked)
        server.hold()
        answers_held(server)
        server.hang_up()
        server.release()
    done = run.finish()
    assert (done.ok, done.writes_acked) == (True, 128)
    last = [event for event in run.heard if isinstance(event, events.WorkloadProgress)][-1]
    assert last.reconnects == 2
    assert [e.text for e in run.heard if isinstance(e, events.Note)][1].startswith(
        "connected again; "
    )
    verdict = judged(run, server.uri)
    assert (verdict.data_equal, verdict.lost_acked_writes) == (True, 0)


def test_a_port_that_stays_away_fails_within_its_limit(runs: Starter, tmp_path: Path) -> None:
    with served(tmp_path, SIZE_BYTES) as server:
        run = runs(server.uri, bytes_total=1 << 30, reconnect_limit_s=0.3)
        run.hear(events.WorkloadProgress)
    done = run.finish()
    assert not done.ok
    assert "host port unavailable for 0.3 s" in done.error
    assert done.writes_acked > 0


@pytest.mark.parametrize("how", ["stop", "eof"])
def test_stop_finishes_what_was_sent_and_flushes(
    runs: Starter, server: NbdTestServer, how: str
) -> None:
    run = runs(server.uri, bytes_total=1 << 30)
    run.hear(events.WorkloadProgress)
    assert run.process.stdin is not None
    if how == "stop":
        run.process.stdin.write(events.encode(events.Stop(t_ns=0)))
        run.process.stdin.flush()
    else:
        run.process.stdin.close()
    done = run.finish()
    assert done.ok
    assert 0 < done.bytes_written < 1 << 30
    assert server.store.flushes == 1
    assert run.journal().unacked == []
    assert judged(run, server.uri).data_equal


def test_stop_while_the_host_is_held_has_an_end(runs: Starter, server: NbdTestServer) -> None:
    run = runs(server.uri, bytes_total=1 << 30, stop_limit_s=0.2)
    run.hear(events.WorkloadProgress)
    server.hold()
    assert run.process.stdin is not None
    run.process.stdin.close()
    done = run.finish()
    assert not done.ok
    assert "not acknowledged 0.2 s after Stop" in done.error
    assert 0 < len(run.journal().unacked) <= 8
    server.release()
    assert judged(run, server.uri).data_equal, "unanswered writes may have happened or not"


def test_after_kill_9_the_journal_tells_what_was_promised(
    runs: Starter, server: NbdTestServer
) -> None:
    run = runs(server.uri, bytes_total=1 << 30, pattern="random", span_bytes=4 << 20)
    run.hear(events.WorkloadProgress, acked=50)
    run.process.kill()
    run.process.wait()
    journal = run.journal()
    assert len(journal.acked) >= 50
    assert len(journal.unacked) <= 2 * 8
    assert judged(run, server.uri).data_equal
    # The comparison is not blind: a promise that is broken is found.
    victim = journal.writes[max(journal.acked)]
    server.store.write(victim.lba * 512, b"x" * 512)
    verdict = judged(run, server.uri)
    assert (verdict.data_equal, verdict.lost_acked_writes) == (False, 1)


def test_a_failing_device_is_told_with_the_write(runs: Starter, server: NbdTestServer) -> None:
    server.failing.add(1 << 20)
    done = runs(server.uri).finish()
    assert not done.ok
    assert "write 16 failed: EIO" in done.error


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"\n", "configuration"),
        (b'{"uri": "nbd://x"}\n', "journal_path"),
        (b'{"uri": "nbd://x", "journal_path": "j", "bytes_total": "many"}\n', "bytes_total"),
        (b'{"uri": "ftp://x", "journal_path": "j", "bytes_total": 0}\n', "not an NBD address"),
        (b"x" * 70_000, "configuration line"),
    ],
)
def test_a_wrong_configuration_is_told_and_exits_with_2(
    runs: Starter, line: bytes, what: str
) -> None:
    run = Run(runs.raw(line), Path())
    done = run.hear(events.WorkloadDone)
    assert isinstance(done, events.WorkloadDone)
    assert what in done.error
    assert run.process.wait(LIMIT_S) == 2


def test_an_existing_journal_is_never_overwritten(
    runs: Starter, server: NbdTestServer, tmp_path: Path
) -> None:
    (tmp_path / "journal0").write_bytes(b"evidence")
    done = runs(server.uri).finish()
    assert "File exists" in done.error
    assert (tmp_path / "journal0").read_bytes() == b"evidence"


def test_a_read_only_port_is_refused(runs: Starter, tmp_path: Path) -> None:
    with served(tmp_path, SIZE_BYTES, read_only=True) as server:
        assert "read-only" in runs(server.uri).finish().error
