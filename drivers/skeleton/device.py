"""A made-up device for the tests: it answers the questions of ``driver.py``, in memory and in virtual
time. Yours may be a simulator of your firmware, or recorded answers; with none, delete this file and
check the real device with ``freezeframe driver check NAME --bench FILE``.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from freezeframe.driver import Ns
from freezeframe.testing import Case, ControllerCase, LinkCase, conversation

from .driver import SkeletonDriver
from .link import ANSWER, HELLO, PORT, SkeletonLink, message, write

SERIAL_NUMBER = "SK-0001"


class VirtualClock:
    def __init__(self) -> None:
        self.t_ns: Ns = 1_000_000_000

    def now(self) -> Ns:
        return self.t_ns


@dataclass
class Device:
    """The firmware behind one control line: a question in, lines out."""

    serial_number: str = SERIAL_NUMBER
    clock: VirtualClock = field(default_factory=VirtualClock)
    boot_epoch: int = 1
    pair_state: int = 2
    role: int = 1
    printed: list[str] = field(default_factory=list)
    """Lines on its console."""
    faults: dict[int, str] = field(default_factory=dict)
    """Number of the replicated write -> what goes wrong."""
    events: list[dict[str, Any]] = field(default_factory=list)
    sets: dict[int, tuple[dict[str, Any], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log("BOOT", boot_epoch=self.boot_epoch, cold=1)

    def log(self, name: str, level: str = "INFO", **arguments: int) -> None:
        head = {"seq": len(self.events), "uptime_ns": self.clock.now(), "name": name}
        self.events.append(head | {"level": level} | arguments)

    def ask(self, line: str) -> list[str]:
        """The lines that answer ``line``."""
        number, verb, *words = line.split() if len(line.split()) > 1 else ("?", "")
        match verb:
            case "who":
                return [f"{number} ok {self._who()}"]
            case "print":
                self.printed.append(line.split(maxsplit=2)[2])
                return [f"{number} ok"]
            case "sets":
                listed = [f"{number} + {_line(entry)}" for entry, _ in self.sets.values()]
                return [*listed, f"{number} ok"]
            case "read" if words and int(words[0]) in self.sets:
                stored = self.sets[int(words[0])][1]
                piece = stored[int(words[1]) : int(words[1]) + int(words[2])]
                return [f"{number} ok data={base64.b64encode(piece).decode()}"]
            case "freeze" | "faults" if words[0] != self.serial_number:
                return [f"{number} refused wrong target"]
            case "freeze" | "faults" if words[1] != str(self.boot_epoch):
                return [f"{number} refused stale epoch"]
            case "freeze":
                return [f"{number} ok {self._freeze(int(words[2]), words[3], words[4])}"]
            case "faults":
                pairs = (one.split(":") for one in words[2:])
                self.faults = {int(at): kind for kind, at in pairs}
                return [f"{number} ok"]
        return [f"{number} refused unknown question"]

    def _who(self) -> str:
        about = {
            "serial_number": self.serial_number, "version": "1.0", "boot_epoch": self.boot_epoch,
            "role": self.role, "pair_state": self.pair_state, "uptime_ns": self.clock.now(),
            "events_logged": len(self.events),
        }  # fmt: skip
        return _line(about)

    def _freeze(self, reason: int, incident_id: str, act: str) -> str:
        set_id, uptime_ns = len(self.sets) + 1, self.clock.now()
        about = {
            "set_id": set_id, "kind": act, "reason": reason, "incident_id": incident_id,
            "boot_epoch": self.boot_epoch,
        }  # fmt: skip
        header = {"uptime_ns": uptime_ns, "first_seq": 0, "next_seq": len(self.events)}
        state = {"role": self.role, "pair_state": self.pair_state, "uptime_ns": uptime_ns}
        content = {"header": about | header, "state": state, "events": self.events}
        stored = json.dumps(content).encode()
        sha256 = hashlib.sha256(stored).hexdigest()
        entry = about | {"complete": 1, "stored_bytes": len(stored), "sha256": sha256}
        self.sets[set_id] = (entry, stored)
        if act == "warmstart":
            self.printed.append("skeleton: warmstart")
            self.boot_epoch += 1
            self.log("BOOT", boot_epoch=self.boot_epoch, cold=0)
            self.printed.append(f"skeleton: boot {self.boot_epoch}")
        reply = {"set_id": set_id, "boot_epoch": self.boot_epoch, "uptime_ns": uptime_ns}
        return _line(reply | {"events_logged": len(self.events)})


class DeviceLine:
    """The control line to a ``Device``: plays ByteLink. Waiting passes virtual time."""

    name = "device in memory"

    def __init__(self, device: Device) -> None:
        self.device = device
        self._asked = bytearray()
        self._answered = bytearray()

    def fileno(self) -> int:
        return -1

    def write(self, data: bytes) -> None:
        self._asked += data
        *lines, rest = bytes(self._asked).split(b"\n")
        self._asked[:] = rest
        for line in lines:
            answers = self.device.ask(line.decode("ascii", "replace"))
            self._answered += "".join(f"{one}\n" for one in answers).encode()

    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        clock = self.device.clock
        clock.t_ns += 1_000
        if not self._answered:
            clock.t_ns = max(clock.t_ns, deadline_ns)
        data = bytes(self._answered[:max_bytes])
        del self._answered[:max_bytes]
        return data

    def close(self) -> None: ...


def _line(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in fields.items())


# --- what `freezeframe driver check` is given ----------------------------------------------------
def cases() -> list[Case]:
    return [controller_case(), link_case()]


def controller_case() -> ControllerCase:
    device = Device()
    driver = SkeletonDriver(
        "primary", DeviceLine(device), serial_number=SERIAL_NUMBER, clock=device.clock
    )
    return ControllerCase(controller=driver, clock=device.clock)


def link_case() -> LinkCase:
    """Twelve healthy writes. Better: frames that were captured from real devices."""
    said = [(True, message(HELLO)), (False, message(HELLO))]
    for number in range(12):
        data = hashlib.sha512(str(number).encode()).digest() * 8
        said += [(True, write(number, number * 512, data)), (False, message(ANSWER, number))]
    return LinkCase(make=SkeletonLink, capture=conversation(PORT, said), writes=12, answers=12)
