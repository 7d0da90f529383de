"""A watch that is killed when its frames are out: the sets are still on the devices, and whoever comes
next collects them."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, Output, freezeframe, simulated_bench, told
from waiting import LIMIT_S

from freezeframe.harness.bench import registry
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.roles import HostPort, Serviceable

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
PLAN = {
    "seed": 1,
    "faults": [
        {"kind": "bit_flip_receiver", "side": "secondary", "at_write": 1, "count": 1, "delay_ms": 0}
    ],
}


@contextlib.contextmanager
def watching(bench: Path, cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], Output]]:
    process = subprocess.Popen(
        [*COMMAND, "watch", "--bench", str(bench), "--json"], cwd=cwd, stdout=subprocess.PIPE
    )
    try:
        yield process, Output(process)
    finally:
        process.kill()
        process.wait()


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.endswith(b"}")]


@pytest.mark.parametrize("who", ["resume", "watch"])
def test_the_sets_of_a_killed_watch_are_collected_by_whoever_comes_next(
    who: str, tmp_path: Path
) -> None:
    with simulated_bench(tmp_path) as bench:
        with OpenBench(load_bench(bench), tmp_path) as opened:
            secondary = opened.controllers["secondary"]
            assert isinstance(secondary, Serviceable)
            identity = opened.identities["secondary"]
            assert secondary.set_faults(identity, PLAN, deadline_in(LIMIT_S)).ok
        with watching(bench, tmp_path) as (process, output):
            output.until(b'"health": "armed",')
            host: HostPort = registry.load("nbd", HostPort)(load_bench(bench).primary.host)
            # It is held while the primary restarts, and may not outlive that.
            with contextlib.suppress(HarnessError, OSError):
                host.write(0, bytes(4096))
            output.until(b'"acted": true')
            process.kill()
        if who == "resume":
            found = told(freezeframe("resume", "--bench", str(bench), "--json", cwd=tmp_path))
        else:
            with watching(bench, tmp_path) as (process, output):
                before = output.until(b'"event": "incident"')
                found = lines(before.rpartition(b"\n")[2] + output.until(b"}\n"))[0]
                output.until(b'"health": ')  # it watches on
                process.send_signal(signal.SIGINT)
                assert process.wait(LIMIT_S) == 1
    assert found["outcome"] == "fail"
    assert {side: found["sets"][side]["complete"] for side in SIDES} == dict.fromkeys(SIDES, True)
    stored = StoredIncident.open(Path(found["incident"]))
    assert stored.altered() == [] and stored.outcome == "fail"
    # The same folder that the killed watch had recorded into.
    # The console's line and the close on the link are two streams: either may be read first, and the kill
    # may come before the other.
    assert stored.record.trigger is not None
    assert stored.record.trigger.rule in ("digest-failed", "link-unacked-close")
    assert (stored.path / "secondary" / "console.log").stat().st_size > 0
