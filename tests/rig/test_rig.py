"""The rig of two Linux nodes: up and down without a trace, its scenarios, and every kind of trouble
told clearly."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import await_true

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import Side
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs import rig as rigs
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.rig import VirtualRig

pytestmark = pytest.mark.rig
CLI = [sys.executable, "-m", "freezeframe.harness.cli"]
SERIALS: dict[Side, str] = {"primary": "FFQEMU-P-0001", "secondary": "FFQEMU-S-0001"}


def cli(*arguments: str, runtime: Path, timeout_s: float = 240) -> tuple[int, dict[str, Any], str]:
    """Exit status, the printed object, and what was said on stderr."""
    done = subprocess.run(
        [*CLI, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """A short path: unix sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def up(runtime: Path) -> Iterator[Path]:
    """A rig that stays up over the tests of this module."""
    status, told, said = cli("rig", "up", runtime=runtime)
    assert status == 0, (told, said)
    yield runtime
    namespace = (runtime / "freezeframe-rig" / "link.netns").stat().st_ino
    processes = [told["pid"], *(node["pid"] for node in told["nodes"].values())]
    assert cli("rig", "down", runtime=runtime)[0] == 0
    # The one whose parent is gone is reaped by the machine's init, in its own time.
    await_true(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes),
        10,
        "the processes' end",
    )
    # Its cables go with the namespace, and that with the last who is in it.
    await_true(lambda: namespace not in namespaces(), 60, "the namespace's end")
    left = {path.name for path in (runtime / "freezeframe-rig").iterdir()}
    assert (
        not {"rig.sock", "link.netns", "primary.nbd", "primary.console", "secondary.control"} & left
    )


def namespaces() -> set[int]:
    """Network namespaces that a process is in, or holds open."""
    found = set()
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")):
        with contextlib.suppress(OSError):
            if path.parent.name == "ns" or str(path.readlink()).startswith("net:"):
                found.add(path.stat().st_ino)
    return found


@pytest.mark.claim(1, 3, 6, 8, bench="drbd_qemu")
def test_a_flipped_byte_is_seen_frozen_collected_and_judged(up: Path, tmp_path: Path) -> None:
    status, told, said = cli(
        "run",
        "bit_flip_sender",
        "--bench",
        "drbd_qemu",
        "--seed",
        "5",
        "--out",
        str(tmp_path),
        runtime=up,
    )
    assert (status, told.get("outcome")) == (0, "pass"), (told.get("reasons"), said)
    assert {side: one["complete"] for side, one in told["sets"].items()} == dict.fromkeys(
        SERIALS, True
    )
    assert (told["data_equal"], told["lost_acked_writes"]) == (True, 0)
    incident = Path(told["incident"])
    record = (incident / "primary" / "events.log").read_text()
    assert "freezeframe: warmstart" in record
    assert "sysrq: Trigger a crash" in record
    assert "Digest integrity check FAILED" in (incident / "secondary" / "console.log").read_text(
        errors="replace"
    )
    verdict = told["verdict"]
    assert verdict["candidates"] == ["primary after digest", "on the link"], verdict["text"]
    assert (
        verdict["bit_mask"]
        and verdict["byte_offset"] is not None
        and verdict["write_id"] is not None
    )
    assert any("once the data were in its socket" in reason for reason in verdict["reasons"])
    assert all(clock["consistent"] for clock in verdict["clocks"].values())
    summed = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=incident, capture_output=True, text=True
    )
    assert summed.returncode == 0, summed.stdout


def test_a_second_rig_in_its_place_is_refused(up: Path) -> None:
    status, told, _ = cli("rig", "up", runtime=up)
    assert status == 3
    assert "already up" in told["error"]["text"]


def test_a_fault_that_a_link_cannot_make_is_refused(up: Path, tmp_path: Path) -> None:
    status, told, _ = cli(
        "run", "bit_flip_store", "--bench", "drbd_qemu", "--out", str(tmp_path), runtime=up
    )
    assert (status, told["outcome"]) == (2, "usage")
    assert "bit_flip_store is not possible in a link of drbd" in told["error"]["text"]


def test_a_break_on_the_console_reaches_the_kernel(up: Path) -> None:
    """IAC BREAK and a key; the echo is the proof, since a BREAK is often eaten."""
    line = open_serial(f"unix:{up}/freezeframe-rig/secondary.console")
    line.write(b"\xff\xf3h")
    said, deadline_ns = b"", deadline_in(10)
    while b"sysrq: HELP" not in said and (data := line.read(65536, deadline_ns)):
        said += data
    line.close()
    assert b"sysrq: HELP" in said


def test_half_a_rig_is_told(up: Path, tmp_path: Path) -> None:
    """Last in its module but one: it takes a node away and gives it back."""
    rig = VirtualRig(up / "freezeframe-rig")
    rig.power("secondary", on=False)
    try:
        status, told, _ = cli(
            "run", "clean", "--bench", "drbd_qemu", "--out", str(tmp_path), runtime=up
        )
        assert (status, told["outcome"]) == (3, "rig-trouble")
        assert "only partly running: the secondary node is not running" in told["reasons"][0]
        assert cli("rig", "status", runtime=up)[0] == 3
    finally:
        rig.power("secondary", on=True)


def test_no_rig_is_told(tmp_path: Path) -> None:
    status, told, _ = cli("rig", "status", runtime=tmp_path)
    assert status == 3
    assert "no rig is up" in told["error"]["text"]
    assert cli("rig", "down", runtime=tmp_path)[0] == 0


def test_a_node_that_never_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rigs, "BOOT_TIMEOUT_S", 15.0)
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        config = RigConfig(
            pair=LinuxDrbd.node_pair,
            directory=directory,
            serial_numbers=SERIALS,
            boot_options={"primary": {"stop": "before-replication"}},
        )
        began = time.monotonic()
        with pytest.raises(
            RigError, match=r"the primary node did not boot within 15 s; the last it printed: \["
        ):
            VirtualRig.start(config)
        assert time.monotonic() - began < 40
        assert not (Path(directory) / "rig.sock").exists()


def test_a_killed_daemon_takes_everything_with_it_and_a_silent_line_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        with VirtualRig.start(
            RigConfig(directory=directory, pair=LinuxDrbd.node_pair, serial_numbers=SERIALS)
        ) as rig:
            status = rig.status()
            line = open_serial(f"unix:{directory}/primary.control")
            node = LinuxDrbd("primary", line, serial_number=SERIALS["primary"])
            assert node.identify(deadline_in(10)).serial_number == SERIALS["primary"]
            pids = [one["pid"] for one in status["nodes"].values()]
            watches = [os.pidfd_open(pid) for pid in pids]
            os.kill(
                pids[0], signal.SIGSTOP
            )  # neither console nor control line says a word any more
            with pytest.raises(RigError, match=r"no answer from the shell|broke off"):
                node.identify(deadline_in(2))
            os.kill(status["pid"], signal.SIGKILL)
            for watch in watches:
                poller = select.poll()
                poller.register(watch, select.POLLIN)
                assert poller.poll(10_000)
                os.close(watch)
            line.close()
        assert not re.search(rb"repl-primary", Path("/proc/net/dev").read_bytes())
