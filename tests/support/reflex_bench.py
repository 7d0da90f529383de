"""The reflex as a real process over real PTYs: consoles and control lines, and what a supervisor
sends and sees."""

import os
import pty
import select
import socket
import struct
import time
import tty
from pathlib import Path
from typing import TypeVar

from freezeframe.harness.core import events, frames
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import NS_PER_S, AnyEvent, Side
from freezeframe.harness.edge.processes import Child
from freezeframe.harness.watch.reflex_io import ReflexConfig, StreamConfig
from freezeframe.harness.wire.control import Op

LIMIT_S = 60
RULES = [
    ConsoleRule(name="digest", literal="Digest integrity check FAILED"),
    ConsoleRule(name="noted", literal="worth a note", instruct=()),
    ConsoleRule(name="second only", literal="second is ill", instruct=("secondary",)),
]
FRAMES: dict[str, dict[str, bytes]] = {
    reason: {
        side: frames.encode(Op.WARMSTART, seq + at, f"{reason} {side}".encode())
        for at, side in enumerate(events.SIDES)
    }
    for reason, seq in (("console", 10), ("link", 20))
}


class Line:
    """A PTY: the device's end, and the end that the reflex has."""

    def __init__(self) -> None:
        self.device, self.rig = pty.openpty()
        tty.setraw(self.rig)
        os.set_blocking(self.device, False)

    def say(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            assert select.select([], [self.device], [], LIMIT_S)[1], "nobody reads the console"
            left = left[os.write(self.device, left) :]

    def hear(self, length: int) -> bytes:
        """Exactly ``length`` bytes that the rig wrote."""
        heard = b""
        while len(heard) < length:
            assert select.select([self.device], [], [], LIMIT_S)[0], f"only {heard!r} was written"
            heard += os.read(self.device, length - len(heard))
        return heard

    def is_silent(self) -> bool:
        return not select.select([self.device], [], [], 0)[0]

    def close(self) -> None:
        for fd in (self.device, self.rig):
            if fd >= 0:
                os.close(fd)


def link_trigger(instruct: tuple[Side, ...] = ("primary", "secondary")) -> events.Trigger:
    return events.Trigger(
        t_ns=3, rule="link-digest", source="link", side="primary", offset_bytes=7, t_arrival_ns=1, t_match_ns=2,
        detail="sector 8", instruct=list(instruct),
    )  # fmt: skip


E = TypeVar("E", bound=events.Event)


class Bench:
    def __init__(self, directory: Path, rules: list[ConsoleRule] = RULES) -> None:
        self.directory = directory
        self.console = {side: Line() for side in events.SIDES}
        self.control = {side: Line() for side in events.SIDES}
        self.trigger_read, self.trigger_write = os.pipe()
        self.lines, self.reflex_lines = socket.socketpair()
        self.seen: list[AnyEvent] = []
        self.reflex = Child(
            "reflex",
            "freezeframe.harness.watch.reflex",
            self.config(rules),
            stderr_path=directory / "reflex.stderr",
            pass_fds=self.fds(),
        )
        self.until(events.ProcessReady)

    def config(self, rules: list[ConsoleRule]) -> ReflexConfig:
        return ReflexConfig(
            streams=[
                StreamConfig(
                    side=side,
                    fd=line.rig,
                    log_path=str(self.directory / f"{side}.log"),
                    times_path=str(self.directory / f"{side}.times"),
                )
                for side, line in self.console.items()
            ],
            control={side: line.rig for side, line in self.control.items()},
            rules=rules,
            default_instruct=["primary", "secondary"],
            trigger_fd=self.trigger_read,
            line_fd=self.reflex_lines.fileno(),
            realtime=False,
        )

    def fds(self) -> list[int]:
        return [line.rig for line in (*self.console.values(), *self.control.values())] + [
            self.trigger_read,
            self.reflex_lines.fileno(),
        ]

    def arm(self) -> None:
        self.reflex.send(events.Arm(t_ns=0, frames=FRAMES))

    def until(self, kind: type[E], count: int = 1) -> list[E]:
        """Collect events until ``count`` of ``kind`` have been seen; return those."""
        deadline = time.monotonic() + LIMIT_S
        while len(found := [event for event in self.seen if isinstance(event, kind)]) < count:
            left_s = deadline - time.monotonic()
            assert left_s > 0 and not self.reflex.ended, (
                f"{kind.__name__} did not come: {self.reflex.last_words()}"
            )
            select.select([self.reflex], [], [], left_s)
            self.seen += self.reflex.receive()
        return found

    def recorded(self, side: Side, count: int) -> bytes:
        """The record, once it has ``count`` bytes."""
        deadline = time.monotonic() + LIMIT_S
        while len(log := self.log(side)) < count:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{len(log)} of {count} bytes were recorded"
            select.select([self.reflex], [], [], min(left_s, 0.002))
            self.seen += self.reflex.receive()
        return log

    def stop(self) -> None:
        self.seen += self.reflex.stop(time.monotonic_ns() + LIMIT_S * NS_PER_S)

    def count(self, kind: type[events.Event]) -> int:
        return sum(isinstance(event, kind) for event in self.seen)

    def log(self, side: Side) -> bytes:
        return (self.directory / f"{side}.log").read_bytes()

    def times(self, side: Side) -> list[tuple[int, int]]:
        return list(struct.iter_unpack("<QQ", (self.directory / f"{side}.times").read_bytes()))
