"""A Linux node that is a folder of files, and the shells that its driver speaks to."""

import os
import pty
import re
import socket
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from freezeframe.drivers.controllers import linux_scripts
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd, LinuxDrbdBreak
from freezeframe.drivers.controllers.linux_nbd import LinuxNbd
from freezeframe.drivers.controllers.linux_nvme import LinuxNvme
from freezeframe.drivers.controllers.linux_scripts import Scripts
from freezeframe.harness.edge.serial_link import SerialLink

GOLDEN = Path(__file__).parents[1] / "golden" / "drbd"
DRIVERS = (LinuxDrbd, LinuxDrbdBreak, LinuxNvme, LinuxNbd)
BOOT_ID = "7ade8d4b-b793-4f3b-97f0-8b6ff9ce9183"
INCIDENT = bytes(range(16))
PROC_DRBD = """version: 8.4.11 (api:1/proto:86-101)
srcversion: F73C670A7EC572DB9CF3E5B
 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:20 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:3 ua:0 ap:2 ep:1 wo:f oos:8
"""


class Socket:
    """A socket as SerialLink takes it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()


class NodeOnDisk:
    """The files of a Linux node under ``root``, and a shell whose scripts see them in place of the
    machine's own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name, content in {
            "sys/class/dmi/id/product_serial": "FFTEST-1\n",
            "proc/sys/kernel/random/boot_id": f"{BOOT_ID}\n",
            "proc/sys/kernel/osrelease": "6.1.0-56-cloud-amd64\n",
            "proc/uptime": "42.50 12.00\n",
            "proc/stat": "cpu 1 2 3\nbtime 1795403761\n",
            "proc/drbd": PROC_DRBD,
            "proc/mounts": "pstore /sys/fs/pstore pstore rw 0 0\n",
        }.items():
            self.put(name, content)
        # Whatever these tests do, they do not crash the machine that they run on.
        monkeypatch.setattr(linux_scripts, "CRASH", f"echo yes >{root}/crashed")
        monkeypatch.setattr(linux_scripts, "ABLE", f"[ ! -e {root}/unable ]")
        monkeypatch.setattr(linux_scripts, "KERNEL_LOG", f"{root}/kmsg")
        # The clock of this node stands still: what waits by it ends by this count.
        monkeypatch.setattr(linux_scripts, "NEWS_TRIES", 50)
        for name in ("SERIAL", "WHO", "IDENTIFY", "FREEZE", "LIST", "EVIDENCE", "FOLDER", "NEWS"):
            monkeypatch.setattr(linux_scripts, name, self.moved(getattr(linux_scripts, name)))
        for driver in DRIVERS:
            scripts = driver.replication.scripts
            texts = {name: self.moved(text) for name, text in asdict(scripts).items()}
            moved = replace(driver.replication, scripts=Scripts(**texts))
            monkeypatch.setattr(driver, "replication", moved)

    def moved(self, script: str) -> str:
        return re.sub(r"(?<![\w.])/(?=(proc|sys|run|var|etc)\b)", f"{self.root}/", script)

    def put(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


WAITED_NS = 60_000_000_000


def armed(
    device: LinuxDrbd, reason: int, incident: bytes = INCIDENT, *, disruptive: bool = True
) -> bytes:
    """The frame of a node that is prepared for it."""
    identity = device.identify(soon())
    device.prepare(identity, incident, soon())
    return device.freeze_frame(identity, reason, incident, disruptive=disruptive)


def soon(seconds: float = 60.0) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


SHELLS = {"bash": ["bash", "--norc", "-i"], "dash": ["dash", "-i"], "ash": ["busybox", "ash", "-i"]}


def shell_on_a_terminal(
    argv: list[str], folder: Path, **environment: str
) -> tuple["subprocess.Popen[bytes]", SerialLink]:
    """A shell that echoes and prompts, and the line that leads to it."""
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=folder,
        env=os.environ | environment,
    )  # fmt: skip
    os.close(slave)
    return shell, SerialLink("test", os.fdopen(master, "r+b", buffering=0), [])  # type: ignore[arg-type]


def armed_by_break(device: LinuxDrbd) -> tuple[LinuxDrbdBreak, bytes]:
    """The same line and node, by the driver that sends BREAK."""
    by_break = LinuxDrbdBreak("primary", device.link, serial_number="FFTEST-1")
    identity = by_break.identify(soon())
    by_break.prepare(identity, INCIDENT, soon())
    return by_break, by_break.freeze_frame(identity, 1, INCIDENT)


def crash_record(incident: bytes = INCIDENT) -> str:
    golden = (GOLDEN / "cycle-mtu1500-a.tail.raw.log").read_text(errors="replace").splitlines()
    kernel = [line for line in golden if line.startswith("[")]
    note = [f"[   12.6] freezeframe: warmstart {incident.hex()} 1 {BOOT_ID}"]
    note += [f"[   12.7] freezeframe: {line.strip()}" for line in PROC_DRBD.splitlines()]
    panic = [
        "[   12.8] sysrq: Trigger a crash",
        "[   12.9] Kernel panic - not syncing: sysrq triggered crash",
    ]
    return "Panic#1 Part1\n" + "\n".join(f"<4>{line}" for line in (*kernel, *note, *panic)) + "\n"
