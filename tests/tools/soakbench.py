"""The bench of a soak: a simulated pair, adapters on its four lines, a host that writes, and the command
``watch`` as a process. All are real processes; nothing here looks inside the watch."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import cbor2
from soaklines import LIMIT_S, ConsoleAdapter, ControlAdapter
from soaknet import LinkEnd

from freezeframe.harness.bench import registry
from freezeframe.harness.core import frames
from freezeframe.harness.core.blocks.blockstamp import stamp
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.frames import IdentityPayload, TargetPayload
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.roles import HostPort
from freezeframe.harness.wire import scpi
from freezeframe.harness.wire.control import Op, PairState

COMMAND: Final = [sys.executable, "-m", "freezeframe.harness.cli"]
SECTORS: Final = 8
"""Of one write."""
WRITE_PAUSE_S: Final = 0.05
STEP_S: Final = 0.02
DISK_MIB: Final = 6144
"""Of the small disk that incidents are written to."""
LINGERING: Final = ("storm guard: ", "console full of garbage")
"""Why a bench whose frames are loaded and whose lines are there is degraded for a while."""
NOT_HEARD: Final = re.compile(
    "its canary has not come yet|printed a line that did not come in|be asked to print"
)
WATCHERS: Final = {
    "reflex": "freezeframe.harness.watch.reflex", "linkwatch": "freezeframe.harness.watch.linkwatch",
}  # fmt: skip


class Line(NamedTuple):
    """One JSON line of the watch, and when it came."""

    t_s: float
    fields: dict[str, Any]

    @property
    def event(self) -> str:
        return str(self.fields.get("event", ""))

    @property
    def text(self) -> str:
        return str(self.fields.get("text") or self.fields.get("why") or "")

    @property
    def is_armed(self) -> bool:
        """Both sides are armed and every line is there; a canary may still be to come."""
        if self.event != "health" or self.fields["health"] in ("blind", "disarmed"):
            return False
        parts = self.fields["why"].split("; ")
        return all(not one or one.startswith(LINGERING) or NOT_HEARD.search(one) for one in parts)

    @property
    def is_paused(self) -> bool:
        """The storm guard has had too many actions: recording only, for a while."""
        return (
            self.event == "health"
            and self.fields["why"].startswith("storm guard: ")
            and self.fields["health"] == "disarmed"
        )

    @property
    def is_ready(self) -> bool:
        """Frames are loaded and nothing is missing but what the storm guard withholds."""
        if self.event != "health":
            return False
        health, why = self.fields["health"], self.fields["why"]
        is_guarded = health == "degraded" and all(
            one.startswith(LINGERING) for one in why.split("; ")
        )
        return health == "armed" or is_guarded


def wait_for(ready: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
    """A bounded wait for what gives no event of its own."""
    until_s = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > until_s:
            return False
        threading.Event().wait(STEP_S)
    return True


def switch(sim_dir: Path, side: Side, *, on: bool) -> None:
    """Switch an output of the simulated supply."""
    port = int((sim_dir / "supply.port").read_text())
    command = scpi.OUTPUT.format(on=on, output=scpi.OUTPUTS[side])
    with socket.create_connection(("127.0.0.1", port)) as supply:
        supply.sendall(f"{command}\n{scpi.ERROR_QUERY}\n".encode())
        answer = supply.recv(256).decode().strip()
    assert answer == scpi.NO_ERROR, answer


class WatchProcess:
    """``freezeframe watch --json``."""

    def __init__(self, bench: Path, out_dir: Path, log: Path) -> None:
        self.lines: list[Line] = []
        self._came = threading.Condition()
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [*COMMAND, "watch", "--bench", str(bench), "--json", "--out", str(out_dir)],
            stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self._log.write(raw)
            self._log.flush()
            with contextlib.suppress(ValueError), self._came:
                self.lines.append(Line(time.monotonic(), json.loads(raw)))
                self._came.notify_all()

    def find(
        self, test: Callable[[Line], bool], since: int = 0, limit_s: float = 0.0
    ) -> Line | None:
        """The first line from number ``since`` that ``test`` accepts; wait for it."""

        def found() -> Line | None:
            return next((one for one in self.lines[since:] if test(one)), None)

        with self._came:
            self._came.wait_for(
                lambda: found() is not None or self.process.poll() is not None, limit_s
            )
            return found()

    def said(self, pattern: str, since: int = 0, limit_s: float = 0.0) -> Line | None:
        shape = re.compile(pattern)
        return self.find(
            lambda one: one.event in ("report", "health") and bool(shape.search(one.text)),
            since,
            limit_s,
        )

    def await_ready(self, limit_s: float = LIMIT_S) -> Line | None:
        """The line that says ready, and that none has withdrawn; or that the storm guard has a pause. None: too
        late."""

        def now_ready() -> Line | None:
            health = [one for one in self.lines if one.event == "health"]
            if health and health[-1].is_paused:
                return health[-1]
            if not health or not health[-1].is_ready:
                return None
            first = health[-1]
            for one in reversed(health):
                if not one.is_ready:
                    break
                first = one
            return first

        with self._came:
            self._came.wait_for(
                lambda: now_ready() is not None or self.process.poll() is not None, limit_s
            )
            return now_ready()

    def armed_since(self, since_s: float) -> Line | None:
        """The first line after the last one, from ``since_s`` on, that said that a side is not armed."""
        health = [one for one in self.lines if one.event == "health" and one.t_s >= since_s]
        first = None
        for one in reversed(health):
            if not one.is_armed:
                break
            first = one
        return first

    def child(self, name: str) -> int | None:
        """The process of a watcher."""
        for listed in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in listed.read_text().split():
                with contextlib.suppress(OSError):
                    if WATCHERS[name] in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                        return int(pid)
        return None

    def usage(self) -> dict[str, tuple[int, int]]:
        """Process -> (resident KiB, open descriptors)."""
        found = {"station": self.process.pid} | {name: self.child(name) for name in WATCHERS}
        used: dict[str, tuple[int, int]] = {}
        for name, pid in found.items():
            with contextlib.suppress(OSError, TypeError, ValueError):
                status = Path(f"/proc/{pid}/status").read_text()
                resident = int(status.partition("VmRSS:")[2].split()[0])
                used[name] = (resident, len(list(Path(f"/proc/{pid}/fd").iterdir())))
        return used

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(LIMIT_S)


class Host(threading.Thread):
    """Writes stamped blocks to the primary, all the time but in a pause; keeps what was acknowledged."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(name="host", daemon=True)
        self._url, self._seed = url, seed & 0xFFFFFFFF
        self._rng = random.Random(seed)
        self._may_run = threading.Event()
        self._is_idle = threading.Event()
        self._is_ending = threading.Event()
        self._writes = 0
        self._unflushed: dict[int, int] = {}
        self.acknowledged: dict[int, set[int]] = {}
        """Sector -> the writes whose data may be there (0: none). A power cut may take what was not flushed."""
        self.acknowledged_count = 0
        self.start()

    def resume(self) -> None:
        self._is_idle.clear()
        self._may_run.set()

    def pause(self) -> None:
        self._may_run.clear()
        self._is_idle.wait(LIMIT_S)

    def close(self) -> None:
        self._is_ending.set()
        self._may_run.set()
        self.join(LIMIT_S)

    def run(self) -> None:
        port: HostPort | None = None
        while not self._is_ending.is_set():
            if not self._may_run.is_set():
                self._is_idle.set()
                self._may_run.wait()
                continue
            try:
                port = port or registry.load("nbd", HostPort)(self._url)
                self._write(port)
            except (HarnessError, OSError):  # it restarts, or has no power
                port = None
                self._unflushed.clear()
            self._is_ending.wait(WRITE_PAUSE_S)
        if port is not None:
            port.close()

    def _write(self, port: HostPort) -> None:
        self._writes += 1
        at = SECTORS * self._rng.randrange(port.size_bytes // 512 // SECTORS)
        allowed = self.acknowledged.setdefault(at, {0})
        allowed.add(self._writes)
        data = stamp(1, self._seed, self._writes, at, SECTORS, time.time_ns())
        port.write(512 * at, data)
        self._unflushed[at] = self._writes
        self.acknowledged_count += 1
        if self._writes % 16 == 0:
            port.flush()
            self.acknowledged |= {sector: {last} for sector, last in self._unflushed.items()}
            self._unflushed.clear()


class SoakBench:
    """``folder``: empty."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.out_dir = folder, folder / "incidents"
        self.consoles: dict[Side, ConsoleAdapter] = {}
        self.controls: dict[Side, ControlAdapter] = {}
        self.ends: dict[Side, LinkEnd] = {}
        self.sim_dir = folder / "sim"
        self.log = folder / "watch.log"
        self.out_dir.mkdir()
        self.has_disk = self._mount_disk()
        self._states = 0
        self.forget()
        os.environ.pop("STATE_DIRECTORY", None)
        self._sim = subprocess.Popen(
            [*COMMAND, "sim", "--json", "--dir", str(self.sim_dir), "--seed", str(seed)],
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        attached = self.sim_dir / "bench.toml"
        assert wait_for(attached.is_file), "the simulated pair did not start"
        for side in SIDES:
            self.consoles[side] = ConsoleAdapter(self.sim_dir / f"{side}.console")
            self.controls[side] = ControlAdapter(self.sim_dir / f"{side}.control")
            self.ends[side] = LinkEnd(self.sim_dir / f"{side}.netns")
        self.path = self._bench_file(attached.read_text())
        self.host = Host(f"nbd+unix:///?socket={self.sim_dir}/primary.nbd", seed)
        self.watch: WatchProcess

    def _bench_file(self, text: str) -> Path:
        for side in SIDES:
            for line, adapter in (
                ("console", self.consoles[side]),
                ("control", self.controls[side]),
            ):
                device = f'{line} = "{self.sim_dir}/{side}.{line}"'
                assert device in text, device
                text = text.replace(device, f'{line} = "socket://127.0.0.1:{adapter.port}"')
        # Garbage on a console is a disturbance here, not a failure of a device.
        text = re.sub(r', "[^"]*garble\.toml"', "", text)
        text = re.sub(r"(?m)^capture_mib = .*$", "capture_mib = 32", text)
        text = re.sub(r"(?m)^poll_s = .*$", "poll_s = 2", text)
        path = self.folder / "bench.toml"
        path.write_text(text)
        return path

    def _mount_disk(self) -> bool:
        """Incidents are on a disk of their own, which can be filled."""
        image = self.folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        for argv in (
            ["mkfs.ext4", "-q", str(image)],
            ["mount", "-o", "loop", str(image), str(self.out_dir)],
        ):
            try:
                subprocess.run(argv, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                return False
        self.out_dir = self.out_dir / "soak"
        self.out_dir.mkdir()
        return True

    # --- the watch ------------------------------------------------------------------------------------------
    def forget(self) -> None:
        """The next watch knows nothing of what the storm guard counted."""
        self._states += 1
        os.environ["XDG_STATE_HOME"] = str(self.folder / f"state-{self._states}")

    @property
    def is_paused(self) -> bool:
        health = [one for one in self.watch.lines if one.event == "health"]
        return bool(health) and health[-1].is_paused

    def start_watch(self) -> None:
        self.watch = WatchProcess(self.path, self.out_dir, self.log)

    # --- the pair -------------------------------------------------------------------------------------------
    def power(self, side: Side, *, on: bool) -> None:
        switch(self.sim_dir, side, on=on)

    def is_whole(self) -> bool:
        """Whether both answer and are in full duplex."""
        found = [self.controls[side].identity() for side in SIDES]
        return all(one is not None and one.pair_state == PairState.FULL_DUPLEX for one in found)

    def arm_fault(self, side: Side, seed: int, faults: list[dict[str, Any]]) -> bool:
        """Load a plan of faults into one firmware."""
        seen = self.controls[side].identity(5.0)
        if seen is None:
            return False
        target = frames.pack(TargetPayload(seen.serial_number, seen.boot_epoch))
        plan = cbor2.dumps({"seed": seed, "faults": faults})
        answer = self.controls[side].ask(Op.SET_FAULTS, target + plan)
        return answer is not None and answer[0] == 0

    def answers_since(self, side: Side, t_s: float) -> list[tuple[float, IdentityPayload]]:
        return [one for one in self.controls[side].identities if one[0] >= t_s]

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            if self.watch.process.poll() is None:
                self.watch.kill()
        self.host.close()
        for side in SIDES:
            self.consoles[side].close()
            self.controls[side].close()
            self.ends[side].close()
        self._sim.send_signal(signal.SIGINT)
        try:
            self._sim.wait(LIMIT_S)
        finally:
            self._sim.kill()
            if self.has_disk:
                subprocess.run(["umount", str(self.out_dir.parent)], check=False)
