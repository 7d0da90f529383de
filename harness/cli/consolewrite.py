"""Write to a console under watch: what is typed, or piped, goes to the station, which has one place for it."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.breaktable import BREAK_WORD, described
from freezeframe.harness.cli.byhand import asked, claimed_user, needed_watch_of
from freezeframe.harness.cli.output import say_aside
from freezeframe.harness.core import byhand
from freezeframe.harness.core.console.escapekeys import KEYS, ConsoleKey, EscapeKeys, Typed
from freezeframe.harness.core.events import Side
from freezeframe.harness.core.text import did_you_mean, escape
from freezeframe.harness.edge.requests import Asking
from freezeframe.harness.errors import RigError, UsageError

PIECE_BYTES: Final = 512
"""Sent at once; the other side is heard between two."""
WRITE_S: Final = 60.0
"""For one piece: at 300 baud it takes 17 s."""
QUIET_S: Final = 1.0
"""After the end of the input: the device has answered once it has been silent for so long."""
AFTER_S: Final = 10.0
"""And at the latest then."""


class ConsoleWriter:
    """Has the writer's place of a console. UsageError, RigError: it cannot be had, and why."""

    def __init__(
        self, bench: Bench, given: str, side: Side, send: str = "", *, reads_input: bool = True
    ) -> None:
        """``send``: the name of a list of the bench file that is all that is sent; "": the input is, where
        it ``reads_input``."""
        self._bench = bench
        if send and send not in bench.breaks:
            known = ", ".join(bench.breaks) or "none"
            raise UsageError(
                f"--send {send}: no such list in [breaks] of {bench.path}{did_you_mean(send, bench.breaks)}; "
                f"there are: {known}"
            )
        self._send = send
        self._keys = EscapeKeys()
        self._has_input = reads_input and not send and sys.stdin is not None
        self.has_keys = self._has_input and sys.stdin.isatty()
        self._ended_s: float | None = None
        """When the input ended."""
        self._heard_s = 0.0
        self.watch: Asking = needed_watch_of(bench, given, "write to")
        try:
            self._ask(byhand.TakeRequest(who=claimed_user(), command="console", side=side))
        except BaseException:
            self.watch.close()
            raise
        how = KEYS if self.has_keys else "the input goes to it" if self._has_input else ""
        colon = ": " if how else ""
        say_aside(f"freezeframe: the {side}'s console is yours to write to{colon}{how}", "dim")

    def heard(self) -> None:
        """The console has said something."""
        self._heard_s = time.monotonic()

    def turn(self, timeout_s: float) -> bool:
        """Send what comes in this time; whether there may be more. RigError: the watch has ended, or, where
        nobody types, something could not be sent."""
        if self._send:
            name, self._send = self._send, ""
            self._send_list(name)
            self._ended_s = time.monotonic()
        ready = self._ready(timeout_s)
        if self.watch.fileno() in ready:
            raise RigError(
                f"the watch (pid {self.watch.pid}) has ended, and the writer's place with it"
            )
        if self._has_input and sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), PIECE_BYTES)
            if not data:
                self._has_input, self._ended_s = False, time.monotonic()
            return self._typed(self._keys.feed(data) if self.has_keys else [data] if data else [])
        if self._ended_s is None:
            return True
        now = time.monotonic()
        return now - max(self._ended_s, self._heard_s) < QUIET_S and now - self._ended_s < AFTER_S

    def _ready(self, timeout_s: float) -> list[int]:
        poller = select.poll()
        poller.register(self.watch.fileno(), select.POLLIN)
        if self._has_input:
            poller.register(sys.stdin.fileno(), select.POLLIN)
        return [fd for fd, _ in poller.poll(timeout_s * 1000)]

    def _typed(self, typed: Sequence[Typed]) -> bool:
        for one in typed:
            if one is ConsoleKey.QUIT:
                return False
            try:
                self._carry_out(one)
            except (RigError, UsageError) as error:
                if not self.has_keys:
                    raise
                say_aside(f"freezeframe: not sent: {escape(str(error))}")
        return True

    def _carry_out(self, one: Typed) -> None:
        names = list(self._bench.breaks)
        match one:
            case bytes():
                self.write(one)
            case ConsoleKey.BREAK:
                self.send_break()
            case int() if one <= len(names):
                self._send_list(names[one - 1])
            case _:
                say_aside(f"freezeframe: {KEYS}", "dim")
                for number, name in enumerate(names, 1):
                    text = f"  ctrl-t {number}: {name}: {described(self._bench.breaks[name])}"
                    say_aside(escape(text), "dim")

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            self._ask(byhand.WriteRequest(data=data[at : at + PIECE_BYTES]))

    def send_break(self) -> None:
        self._ask(byhand.BreakRequest())

    def _send_list(self, name: str) -> None:
        for item in self._bench.breaks[name]:
            if isinstance(item, int):
                time.sleep(item / 1000)
            elif item == BREAK_WORD:
                self._ask(byhand.BreakRequest(named=name))
            else:
                self._ask(byhand.WriteRequest(data=item.encode(), named=name))

    def _ask(self, request: byhand.Request) -> None:
        asked(self.watch, request, WRITE_S)

    @contextlib.contextmanager
    def keys(self) -> Iterator[None]:
        """Each key comes at once and as it is, also Ctrl-C. Afterwards the terminal is as it was, and the place
        is free."""
        with self.watch:
            if not self.has_keys:
                yield
                return
            fd = sys.stdin.fileno()
            before = termios.tcgetattr(fd)
            tty.setraw(fd)
            raw = termios.tcgetattr(fd)
            raw[1] = before[1]  # what is shown begins at the left
            termios.tcsetattr(fd, termios.TCSANOW, raw)
            try:
                yield
            finally:
                termios.tcsetattr(fd, termios.TCSADRAIN, before)
