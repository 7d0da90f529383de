"""A pair to play with: a key of ``freezeframe sim``, or ``freezeframe inject``, makes a fault while a watch
watches, and whatever the watch prints can be given to ``show``."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, Output, freezeframe, simulated_bench, told
from terminal import Terminal

from freezeframe.harness.edge.netns import missing_capabilities

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


def objects(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def is_armed_again(seen: bytes) -> bool:
    """After its incident was collected; on a slow machine the storm guard may allow a warmstart by then."""
    return bool(re.search(rb'"health": "(degraded|armed)', seen.partition(b": collected")[2]))


def test_a_key_makes_an_incident_of_a_watch_whose_name_can_be_shown(tmp_path: Path) -> None:
    """Seen: a watch without hardware never showed a fault, and called its incident 000001."""
    with Terminal("sim", "--dir", "pair", columns=80, lines=24, cwd=tmp_path) as sim:
        screen = sim.until(lambda text: "s wrong_barrier_count" in text, "the keys")
        (key,) = re.findall(r"(\w) neg_ack\b", screen.partition("press a key")[2])
        bench = str(tmp_path / "pair" / "bench.toml")
        with subprocess.Popen(
            [*COMMAND, "watch", "--bench", bench, "--json"], cwd=tmp_path, stdout=subprocess.PIPE
        ) as watch:
            output = Output(watch)
            seen = output.until(b'"watching;')
            sim.type(key.encode())
            seen += output.until(b'"event": "incident"') + output.until(b"\n")
            sim.until(lambda text: "1024 host writes acknowledged" in text, "the host's writes")
            listed = told(freezeframe("list", "--json", cwd=tmp_path))
            while not is_armed_again(seen):
                seen += output.until(b"\n")
            touched = freezeframe("check", bench, "--touch", "--json", cwd=tmp_path)
            watch.send_signal(signal.SIGINT)
            seen += output.until(b'"event": "end"') + output.until(b"\n")
        sim.type(b"\x03")
        assert sim.ended() == 0
    found = objects(seen)
    (incident,) = [one for one in found if one["event"] == "incident"]
    assert incident["outcome"] == "fail" and incident["trigger"]["rule"] == "link-neg-ack"
    name = Path(incident["incident"]).name
    reports = [one["text"] for one in found if one["event"] == "report"]
    for said in ("warmstart of primary and secondary", "collected"):
        assert any(one.startswith(f"{name}: {said}") for one in reports), reports
    assert not [one for one in reports if re.match(r"\d{6}:", one)], reports
    assert [one["id"] for one in listed["incidents"]] == [name], "what is recorded now is none"
    assert len(listed["recording"]) == 1 and listed["recording"] != [name]
    assert name in freezeframe("show", name, cwd=tmp_path).stdout
    # Seen: a healthy bench under watch had four problems, for each of its lines was in use.
    assert touched.returncode == 0, touched.stdout
    known = {one["name"]: one for one in told(touched)["findings"]}
    assert f"pid {watch.pid} watches this bench" in known["watch"]["detail"]
    assert {known[f"{side} controller"]["detail"] for side in ("primary", "secondary")} == {
        "boot epoch 2, full duplex"
    }


def test_inject_writes_as_a_host_and_says_what_it_armed(tmp_path: Path) -> None:
    with simulated_bench(tmp_path) as bench:
        done = freezeframe("inject", "stall", "--bench", str(bench), "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (fault,) = told(done)["faults"]
        assert fault["kind"] == "stall" and fault["side"] == "secondary"
        assert told(done)["writes_acked"] == 1024 and told(done)["error"] == ""
        done = freezeframe("inject", "clean", "--bench", str(bench), cwd=tmp_path)
        assert done.returncode == 0 and done.stdout == "1024 host writes acknowledged\n"


def test_inject_needs_a_pair_that_runs(tmp_path: Path) -> None:
    done = freezeframe("inject", "neg_ack", "--bench", "sim", cwd=tmp_path)
    assert done.returncode == 2 and "start `freezeframe sim`" in done.stderr
