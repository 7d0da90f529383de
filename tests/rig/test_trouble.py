"""What goes wrong on a bench of real nodes, done to the virtual ones: each is told, and nothing
waits without end.

One rig stands for all of it; each test leaves it whole.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from line_relay import LineRelay
from waiting import await_true

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import Side
from freezeframe.harness.edge.serial_link import BREAK, open_serial
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.rigs.rig import VirtualRig

pytestmark = pytest.mark.rig
CLI = [sys.executable, "-m", "freezeframe.harness.cli"]
BENCH = Path(__file__).parents[2] / "bench_configs" / "drbd_qemu.toml"
SERIALS: dict[Side, str] = {"primary": "FFQEMU-P-0001", "secondary": "FFQEMU-S-0001"}


class Bench:
    """The standing rig, and bench files that reach it in other ways."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.directory = runtime / "freezeframe-rig"
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}

    def command(self, *arguments: str) -> list[str]:
        return [*CLI, *arguments, "--json"]

    def run(self, *arguments: str, limit_s: float = 200) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=self.environment,
        )
        return done.returncode, json.loads(done.stdout or "{}") | {"stderr": done.stderr}

    def scenario(
        self, bench: Path, out: Path, name: str = "bit_flip_sender"
    ) -> tuple[int, dict[str, Any]]:
        return self.run("run", name, "--bench", str(bench), "--seed", "5", "--out", str(out))

    def file(self, folder: Path, *changes: tuple[str, str]) -> Path:
        text = BENCH.read_text().replace('"rules/', f'"{BENCH.parent}/rules/')
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = folder / "bench.toml"
        path.write_text(text)
        return path

    @contextmanager
    def shell(self, side: Side) -> Iterator[LinuxDrbd]:
        line = open_serial(f"unix:{self.directory}/{side}.control")
        node = LinuxDrbd(side, line, serial_number=SERIALS[side])
        node.identify(deadline_in(30))
        try:
            yield node
        finally:
            line.close()


@pytest.fixture(scope="module")
def up() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        bench = Bench(Path(directory))
        status, told = bench.run("rig", "up")
        assert status == 0, (told["reasons"], told)
        try:
            yield bench
        finally:
            assert bench.run("rig", "down")[0] == 0


@pytest.fixture
def short() -> Iterator[Path]:
    """A place for sockets, whose paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        yield Path(directory)


BY_CONSOLE = (
    ("{run}/primary.control", "{run}/primary.console"),
    ("{run}/secondary.control", "{run}/secondary.console"),
    ('"linux_drbd"', '"linux_drbd_break"'),
)


def test_a_warmstart_by_break_is_proved_by_its_echo(up: Bench, tmp_path: Path) -> None:
    """One line a node: console, root shell, and SysRq by BREAK. The kernel's record is this
    incident's all the same."""
    status, told = up.scenario(up.file(tmp_path, *BY_CONSOLE), tmp_path)
    assert (status, told["outcome"]) == (0, "pass"), told
    for action in told["actions"]:
        assert action["reply"]["ok"]
        assert "sysrq: Trigger a crash" in action["reply"]["text"]
        assert 0 < action["warmstart_us"] < 1_000_000
    assert all(one["complete"] for one in told["sets"].values())
    record = (Path(told["incident"]) / "primary" / "events.log").read_text()
    assert "Kernel panic - not syncing: sysrq triggered crash" in record
    assert "freezeframe: armed" in record


def test_a_break_that_is_eaten_is_noticed_by_its_missing_echo(
    up: Bench, tmp_path: Path, short: Path
) -> None:
    relay = LineRelay(
        short / "line",
        up.directory / "primary.console",
        outward=lambda data: data.replace(BREAK, b""),
    )
    try:
        bench = up.file(tmp_path, *BY_CONSOLE, ("{run}/primary.console", f"{short}/line"))
        status, told = up.scenario(bench, tmp_path)
    finally:
        relay.close()
    assert (status, told["outcome"]) == (0, "pass"), told
    by_side = {action["side"]: action["reply"]["text"] for action in told["actions"]}
    assert by_side["primary"] == "the BREAK got lost on its way; the node's shell was told instead"
    assert "sysrq: Trigger a crash" in by_side["secondary"]
    assert all(one["complete"] for one in told["sets"].values())


def test_the_last_requests_to_disks_are_in_the_record(up: Bench, tmp_path: Path) -> None:
    status, told = up.scenario(BENCH, tmp_path, "neg_ack")
    assert status == 0, (told["reasons"], told)
    record = (Path(told["incident"]) / "primary" / "events.log").read_text()
    before, _, trace = record.partition("Kernel panic - not syncing")
    assert "block_bio_queue: 147,0 W" in trace, "147 is DRBD's major number"
    assert "role( Secondary -> Primary )" in before


def test_a_console_that_went_silent_is_told_before_anything_is_written(
    up: Bench, tmp_path: Path
) -> None:
    with up.shell("secondary") as node:
        node._shell.ask("echo 1 >/proc/sys/kernel/printk", deadline_in(10))
    try:
        status, told = up.scenario(BENCH, tmp_path, "clean")
    finally:
        with up.shell("secondary") as node:
            node._shell.ask("echo 7 >/proc/sys/kernel/printk", deadline_in(10))
    assert (status, told["outcome"]) == (3, "rig-trouble"), told
    assert (
        "secondary controller printed a line that did not come in on its console"
        in told["reasons"][0]
    )
    assert "is the tap" in told["reasons"][0]


def test_a_set_that_breaks_off_is_partial_and_says_so(
    up: Bench, tmp_path: Path, short: Path
) -> None:
    """The control line dies for good in the middle of the pull of the first set, some 4 kB into
    it."""
    seen = bytearray()

    def until_pulled(data: bytes) -> bytes | None:
        # A set in base64 begins with a gzip header's; bytes come a few at a time.
        seen.extend(data)
        begin = seen.find(b"\nH4sI")
        return None if 0 <= begin < len(seen) - 4000 else data

    relay = LineRelay(short / "line", up.directory / "primary.control", inward=until_pulled)
    try:
        bench = up.file(
            tmp_path,
            ("{run}/primary.control", f"{short}/line"),
            ("pull_timeout_s = 60", "pull_timeout_s = 6"),
        )
        began = time.monotonic()
        status, told = up.scenario(bench, tmp_path)
        assert time.monotonic() - began < 150
    finally:
        relay.close()
    assert status != 0
    assert told["outcome"] in ("fail", "rig-trouble")
    assert told["sets"]["primary"]["complete"] is False
    assert (
        "no answer from the shell" in told["sets"]["primary"]["reason"]
        or "broke off" in told["sets"]["primary"]["reason"]
    )
    assert told["sets"]["secondary"]["complete"] is True
    incident = StoredIncident.open(Path(told["incident"]))
    assert incident.altered() == []


def test_a_record_that_was_cut_is_kept_as_it_is_and_told(up: Bench, tmp_path: Path) -> None:
    """A node that is reset before its record is whole: here its record is cut between crash and
    pull."""
    cut = (
        "mkdir -p /tmp/cut; cat /sys/fs/pstore/dmesg-ramoops-0 | head -c 20000 >/tmp/cut/dmesg.cut"
    )
    with up.shell("primary") as node:
        frame = node.freeze_frame(node.identify(deadline_in(10)), 1, bytes(16))
        node.link.write(frame)
        assert node.freeze_reply(frame, deadline_in(5)) is not None
        await_boot(node)
        node._shell.ask(
            f"{cut}; mkdir -p /var/crash/1; mv /tmp/cut/dmesg.cut /var/crash/1/dmesg.1; umount /sys/fs/pstore; "
            "rm -rf /run/freezeframe",
            deadline_in(10),
        )
        entries = node.sets(deadline_in(20))
        assert entries
        node._shell.ask(
            "rm -r /var/crash/1; mount -t pstore pstore /sys/fs/pstore", deadline_in(10)
        )
    assert any(not one.complete for one in entries), entries


def await_boot(node: LinuxDrbd) -> None:
    before = max(node._epochs.values())
    until = time.monotonic() + 60
    while True:
        assert time.monotonic() < until
        try:
            if node.identify(deadline_in(0.5)).boot_epoch > before:
                return
        except RigError:  # it is booting
            continue


def test_a_node_that_dies_for_good_ends_the_run_within_its_limits(
    up: Bench, tmp_path: Path
) -> None:
    """Its power goes while its warmstart is waited for."""
    bench = up.file(
        tmp_path,
        ("boot_timeout_s = 60", "boot_timeout_s = 8"),
        ("rejoin_timeout_s = 60", "rejoin_timeout_s = 8"),
    )
    command = up.command(
        "run", "bit_flip_sender", "--bench", str(bench), "--out", str(tmp_path / "out")
    )
    began = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=up.environment)
    rig = VirtualRig(up.directory)
    try:
        await_in(tmp_path / "out", lambda text: '"frame-sent"' in text)
        rig.power("primary", on=False)
        stdout, _ = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait()
        rig.power("primary", on=True)
    told = json.loads(stdout)
    assert running.returncode in (1, 3), told
    assert told["sets"]["primary"]["complete"] is False if "primary" in told["sets"] else True
    assert any("primary" in reason for reason in told["reasons"]), told["reasons"]
    assert time.monotonic() - began < 120
    whole_again(up)


def await_in(out: Path, ready: Callable[[str], bool], limit_s: float = 60.0) -> Path:
    """Until the timeline of the run's incident says so; its folder."""

    def found() -> Path | None:
        return next(
            (path.parent for path in out.glob("*/timeline.jsonl") if ready(path.read_text())), None
        )

    return await_true(found, limit_s, "the run's incident to tell it")


def whole_again(up: Bench) -> None:
    """Both nodes answer, and their pair is in full duplex."""

    def is_whole() -> bool:
        try:
            with up.shell("primary") as node:
                return node.identify(deadline_in(10)).pair_state == "full duplex"
        except RigError:  # it is booting
            return False

    await_true(is_whole, 120, "the pair to be whole again")


def test_a_killed_run_leaves_a_readable_incident_and_a_rig_for_the_next(
    up: Bench, tmp_path: Path
) -> None:
    command = up.command(
        "run", "bit_flip_sender", "--bench", str(BENCH), "--out", str(tmp_path / "out")
    )
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=up.environment)
    try:
        folder = await_in(tmp_path / "out", lambda text: '"frame-sent"' in text)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    whole_again(up)
    incident = StoredIncident.open(folder)
    assert incident.record.trigger is not None and incident.record.trigger.rule
    assert (folder / "secondary" / "console.log").stat().st_size
    status, told = up.scenario(BENCH, tmp_path, "clean")
    assert status == 0, (told["reasons"], told)


def test_a_killed_run_takes_its_own_rig_with_it(tmp_path: Path, short: Path) -> None:
    """No rig stands: the run brings one up, and is killed in the middle."""
    command = [
        *CLI,
        "run",
        "clean",
        "--bench",
        str(BENCH),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short), "TMPDIR": str(short)}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        await_true(lambda: len(nodes_under(short)) == 2, 60, "both nodes to run")
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    await_true(lambda: not nodes_under(short), 20, "the nodes to be gone")


def nodes_under(directory: Path) -> list[int]:
    """Processes of QEMU whose disks lie there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if command.startswith(b"qemu-system") and str(directory).encode() in command:
            found.append(int(path.parent.name))
    return found
