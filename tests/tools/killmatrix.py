"""kill -9 of each process at each phase of ``run`` and of ``watch``: ``python tests/tools/killmatrix.py``.

On a simulated pair that outlives the commands. Checked at each point: no set is lost whose device still
answers (what the killed command did not collect, ``resume`` does); the command that lost another process
ends, or goes on, by itself; nothing is left behind: no process, no temporary directory, no lock, and no
network namespace, neither mounted somewhere nor held by the pair, nor by a process. A point at which
nobody could be killed is wrong. ``--only 'watch reflex armed'`` plays one point. Exit status: 1 when a
point is wrong.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from soakbench import COMMAND, switch, wait_for

from freezeframe.harness.bench import registry
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.store import StoredIncident, incidents
from freezeframe.harness.roles import Acknowledging, HostPort, Serviceable

LIMIT_S: Final = 180.0
"""Of a hang, not of speed."""
MARK: Final = "FREEZEFRAME_KILL_MATRIX"
"""In the environment of all that a point starts: so what it left is found."""
MODULES: Final = {
    "reflex": "freezeframe.harness.watch.reflex",
    "linkwatch": "freezeframe.harness.watch.linkwatch",
    "writer": "freezeframe.drivers.hosts.writer",
}
PHASES: Final = {
    "run": {
        "opening": r"opening the bench",
        "full duplex awaited": r"waiting for full duplex",
        "host writes": r"host writes",
        "frames out": r"secondary: frame out",
        "acknowledged": r"secondary: acknowledged",
        "first set pulled": r": set pulled",
        "full duplex": r"pair: full duplex",
    },
    "watch": {
        "starting": r'"event": "(health|report)"',
        "armed": r'"health": "armed"',
        "frames out": r'"step": "frame out"',
        "acknowledged": r'"side": "secondary", "step": "acknowledged"',
        "up": r'"side": "secondary", "step": "up"',
        "first set pulled": r'"step": "set pulled"',
        "full duplex": r'"step": "full duplex"',
        "incident closed": r'"event": "incident"',
    },
}  # fmt: skip
"""Phase -> what the command prints when it begins."""
BEFORE_THE_TRIGGER: Final = ("opening", "full duplex awaited", "host writes", "starting", "armed")
PROCESSES: Final = {
    "run": ("command", "reflex", "linkwatch", "writer", "primary", "secondary"),
    "watch": ("command", "reflex", "linkwatch", "primary", "secondary"),
}
NOT_THERE: Final = {
    ("run", process, phase)
    for process in ("reflex", "linkwatch", "writer")
    for phase in PHASES["run"]
    if phase == "opening" or (process == "writer" and phase != "host writes")
}
"""Processes that do not live in that phase."""
SCENARIO: Final = """\
name = "killed"
title = "A bit flips, and somebody is killed"
description = "For the kill matrix."
[[faults]]
kind = "bit_flip_receiver"
at_write = 6
[expect]
detected = true
[workload]
bytes_mib = 4
write_kib = 64
queue_depth = 4
"""
PLAN: Final = {
    "seed": 1,
    "faults": [
        {"kind": "bit_flip_receiver", "side": "secondary", "at_write": 1, "count": 1, "delay_ms": 0}
    ],
}


class Point(NamedTuple):
    """Whom to kill, and when."""

    command: str
    process: str
    phase: str

    def __str__(self) -> str:
        return " ".join(self)


def points() -> list[Point]:
    return [
        Point(command, process, phase)
        for command in PHASES
        for process in PROCESSES[command]
        for phase in PHASES[command]
        if (command, process, phase) not in NOT_THERE
    ]


class Pair:
    """A simulated pair beside the points. ``folder``: empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [*COMMAND, "sim", "--json", "--dir", str(folder / "sim")],
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        attached = folder / "sim" / "bench.toml"
        assert wait_for(attached.is_file), "the simulated pair did not start"
        self.bench = attached
        (folder / "killed.toml").write_text(SCENARIO)

    def namespaces(self) -> set[str]:
        """The network namespaces that its processes hold, and those that are mounted."""
        pids = [self._process.pid]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and f"{self.folder}/sim" in (entry / "cmdline").read_text(
                    errors="replace"
                ):
                    pids.append(int(entry.name))
        return namespaces_of(pids)

    def device(self, side: Side) -> int | None:
        """The process of a controller."""
        words = ["--side", side, "--serial-number"]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal():
                    argv = (entry / "cmdline").read_text().split("\0")
                    if "serve" in argv and str(self.folder / "sim") in " ".join(argv):
                        at = argv.index("--side")
                        if argv[at : at + 2] == words[:2] and argv[1:3] == [
                            "-m",
                            "freezeframe.firmware_sim",
                        ]:
                            return int(entry.name)
        return None

    @contextlib.contextmanager
    def opened(self) -> Iterator[OpenBench]:
        with (
            tempfile.TemporaryDirectory() as folder,
            OpenBench(load_bench(self.bench), Path(folder)) as one,
        ):
            yield one

    def repair(self) -> None:
        """Both run, are in full duplex and have no faults armed."""
        for side in SIDES:
            if self.device(side) is None:
                for on in (False, True):
                    switch(self.folder / "sim", side, on=on)
        with self.opened() as opened:
            opened.await_full_duplex(deadline_in(60))
            for side in SIDES:
                self.arm(opened, side, {"seed": 1, "faults": []})
                self.free(opened, side)

    def arm(self, opened: OpenBench, side: Side, plan: dict[str, Any]) -> None:
        controller = opened.controllers[side]
        assert isinstance(controller, Serviceable)
        assert controller.set_faults(
            opened.identify(side, deadline_in(20)), plan, deadline_in(20)
        ).ok

    def free(self, opened: OpenBench, side: Side) -> None:
        """Its store has room for the sets of the next point."""
        controller, soon = opened.controllers[side], deadline_in(60)
        assert isinstance(controller, Acknowledging)
        for entry in controller.sets(soon):
            assert controller.acknowledge(entry, opened.identify(side, soon), soon).ok

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()


class Victim:
    """A command that runs until somebody of it is killed. ``folder``: of this point."""

    def __init__(self, pair: Pair, point: Point, folder: Path) -> None:
        self.folder, self.out_dir = folder, folder / "out"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {
            **os.environ, MARK: str(folder), "TMPDIR": str(self.temporary), "XDG_STATE_HOME": str(folder / "state"),
        }  # fmt: skip
        options = ["--bench", str(pair.bench), "--out", str(self.out_dir)]
        argv = (
            ["run", str(pair.folder / "killed.toml"), *options]
            if point.command == "run"
            else ["watch", "--json", *options]
        )
        self._log = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [*COMMAND, *argv], env=self.environment, stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def shows(self, pattern: str) -> bool:
        return wait_for(
            lambda: bool(re.search(pattern, self.output)) or self.process.poll() is not None,
            LIMIT_S,
        ) and bool(re.search(pattern, self.output))

    def child(self, name: str) -> int | None:
        for pid in self.marked():
            with contextlib.suppress(OSError):
                if MODULES[name] in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    return pid
        return None

    def marked(self) -> list[int]:
        """All living processes that this point started."""
        mark, found = f"{MARK}={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *argv],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )


def namespaces_of(pids: Iterable[int]) -> set[str]:
    """The network namespaces that these processes are in or have a descriptor of, and, of any process, those
    that are mounted."""
    found = {
        line.split()[3]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - nsfs " in line
    }
    for pid in pids:
        for held in (Path(f"/proc/{pid}/ns/net"), *_entries(Path(f"/proc/{pid}/fd"))):
            with contextlib.suppress(OSError):
                found.add(str(held.readlink()))
    return {one for one in found if one.startswith("net:[")}


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it has ended
        return []


def write_once(pair: Pair) -> None:
    """One host write, which the armed fault spoils. It is held while the primary restarts."""
    url = load_bench(pair.bench).primary.host
    with contextlib.suppress(HarnessError, OSError):
        host: HostPort = registry.load("nbd", HostPort)(url, timeout_s=2)
        host.write(0, bytes(4096))
        host.close()


def play(pair: Pair, point: Point, folder: Path) -> str:
    """What is wrong at that point; "": nothing."""
    folder.mkdir()
    pair.repair()
    if point.command == "watch":
        with pair.opened() as opened:
            pair.arm(opened, "secondary", PLAN)
    before = pair.namespaces()
    victim = Victim(pair, point, folder)
    try:
        wrong = _played(pair, point, victim)
    finally:
        if victim.process.poll() is None:
            victim.process.kill()
            victim.process.wait()
    left: set[str] = set()

    def is_as_before() -> bool:
        left.clear()
        left.update(pair.namespaces() - before)
        return not left

    if not wrong and not wait_for(is_as_before, 20):
        return f"network namespaces are left: {sorted(left)}"
    return wrong


def _played(pair: Pair, point: Point, victim: Victim) -> str:
    phases = PHASES[point.command]
    if point.command == "watch" and point.phase not in BEFORE_THE_TRIGGER:
        if not victim.shows(phases["armed"]):
            return f"it was not armed: {victim.output[-1200:]}"
        write_once(pair)
    if not victim.shows(phases[point.phase]):
        return f"the phase did not begin: {victim.output[-1200:]}"
    killed = _pid_of(pair, point, victim)
    if killed is None:
        return f"nobody was killed: there is no {point.process}: {victim.output[-1200:]}"
    try:
        os.kill(killed, signal.SIGKILL)
    except ProcessLookupError:
        return f"nobody was killed: the {point.process} had ended: {victim.output[-1200:]}"
    if wrong := _goes_on(pair, point, victim):
        return wrong
    if not wait_for(lambda: not victim.marked(), 20):
        return f"processes are left: {[_words(pid) for pid in victim.marked()]}"
    wrong = _collected(pair, point, victim)
    if wrong:
        return wrong
    # Whoever comes next can use the bench, and removes what was left.
    after = victim.command("save", _living(pair), "--bench", str(pair.bench))
    if after.returncode:
        return f"the next command cannot use the bench: {after.returncode} {after.stdout[-300:]} {after.stderr[-300:]}"
    left = [one.name for one in victim.temporary.iterdir() if not one.name.endswith(".lock")]
    if left:
        return f"in the temporary directory are left: {left}"
    is_open = [one.path.name for one in incidents(victim.out_dir) if one.outcome == "open"]
    return f"the lock of an incident is held: {is_open}" if is_open else ""


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return f"{pid} ({state}): {words}"
    return f"{pid}: it has ended by now"


def _pid_of(pair: Pair, point: Point, victim: Victim) -> int | None:
    match point.process:
        case "command":
            return victim.process.pid if victim.process.poll() is None else None
        case "primary" | "secondary" as side:
            return pair.device(side)
        case name:
            found: list[int] = []

            def there() -> bool:
                pid = victim.child(name)
                found.extend([] if pid is None else [pid])
                return pid is not None or victim.process.poll() is not None

            wait_for(there, LIMIT_S)
            return found[0] if found else None


def _goes_on(pair: Pair, point: Point, victim: Victim) -> str:
    """The command itself outlives the death of another: a run ends by itself, a watch by Ctrl-C."""
    if point.process == "command":
        victim.process.wait()
        return ""
    if point.command == "watch":
        if point.process in MODULES and not victim.shows(r"there again after"):
            return f"the {point.process} was not started again: {victim.output[-1200:]}"
        if point.phase in BEFORE_THE_TRIGGER and point.process in MODULES:
            if not wait_for(
                lambda: '"health": "armed' in victim.output.rpartition("there again")[2], LIMIT_S
            ):
                return f"it is not armed again: {victim.output[-1200:]}"
            write_once(pair)
        is_triggered = point.process in MODULES or point.phase not in BEFORE_THE_TRIGGER
        if is_triggered and not victim.shows(r'"event": "incident"'):
            return f"there is no incident: {victim.output[-1200:]}"
        victim.process.send_signal(signal.SIGINT)
    try:
        victim.process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"it does not end: {victim.output[-1200:]}"
    trace = "Traceback" in victim.output or "internal error" in victim.output
    return f"it broke: {victim.output[-600:]}" if trace else ""


def _living(pair: Pair) -> Side:
    return next(side for side in SIDES if pair.device(side) is not None)


def _collected(pair: Pair, point: Point, victim: Victim) -> str:
    """Each side that keeps a set of an incident of this point, and answers, has it in the folder."""
    for stored in incidents(victim.out_dir):
        record = json.loads((stored.path / "incident.json").read_text())
        wanted = bytes.fromhex(record["incident_id_hex"])
        kept = _keeping(pair, wanted)
        missing = [side for side in kept if not record["sets"].get(side, {}).get("complete")]
        if missing and stored.outcome == "interrupted" and "verdict" not in record:
            done = victim.command(
                "resume", stored.path.name, "--bench", str(pair.bench), "--out", str(victim.out_dir)
            )
            record = json.loads((stored.path / "incident.json").read_text())
            missing = [side for side in kept if not record["sets"].get(side, {}).get("complete")]
            if missing:
                return (
                    f"resume did not collect {missing}: {done.stdout[-200:]} {done.stderr[-300:]}"
                )
            if StoredIncident.open(stored.path).altered():
                return "the resumed incident is not whole"
        elif missing:
            return f"{stored.path.name} ({stored.outcome}) has no set of {missing}, which keeps one: {record.get('reasons')}"
    return ""


def _keeping(pair: Pair, incident_id: bytes) -> list[Side]:
    """Who answers and keeps a set of that incident."""
    found: list[Side] = []
    with contextlib.suppress(HarnessError), pair.opened() as opened:
        for side in SIDES:
            if pair.device(side) is None:
                continue
            with contextlib.suppress(HarnessError):
                listed = opened.controllers[side].sets(deadline_in(10))
                found += [side] if any(one.incident_id == incident_id for one in listed) else []
    return found


def run_points(wanted: list[Point], tell: Callable[[str], None] = print) -> list[str]:
    """Play them; what is wrong, a line for each point."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="killmatrix-") as name:
        pair = Pair(Path(name))
        try:
            for number, point in enumerate(wanted):
                begun_s = time.monotonic()
                try:
                    said = play(pair, point, Path(name) / f"point-{number}")
                except (HarnessError, AssertionError, subprocess.TimeoutExpired) as error:
                    said = f"{type(error).__name__}: {error}"
                tell(
                    f"{point!s:42} {time.monotonic() - begun_s:5.1f} s  {'WRONG: ' + said if said else 'right'}"
                )
                if said:
                    wrong.append(
                        f"{point}: {said}\n  repeat it: python tests/tools/killmatrix.py --only '{point}'"
                    )
        finally:
            pair.close()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill each process at each phase.")
    parser.add_argument(
        "--only", default="", help="one point, as it is printed, or the begin of several"
    )
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # the pair ends with us
        signal.signal(number, signal.default_int_handler)
    wanted = [one for one in points() if str(one).startswith(options.only)]
    wrong = run_points(wanted, lambda text: print(text, flush=True))
    print(f"{len(wanted)} points, {len(wrong)} wrong")
    for one in wrong:
        print(f"WRONG: {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
