"""Implement the command ``top``: a live view of a command that watches a bench, which reports it itself."""

import contextlib
import os
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Final

import typer
from rich.live import Live

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.benchid import another_of_that_name, name_of
from freezeframe.harness.cli.interrupt import begin_work, stop_softly
from freezeframe.harness.cli.keys import has_keys, keys_at_once
from freezeframe.harness.cli.output import EXIT_RIG, out, say, say_aside
from freezeframe.harness.cli.topscreen import Screen, clock, summary_line
from freezeframe.harness.core.livestatus import End, LiveStatus, decode
from freezeframe.harness.core.text import counted, escape
from freezeframe.harness.edge.onlookers import Lines, listeners
from freezeframe.harness.edge.ownsocket import MAX_PEERS, names, wait_readable
from freezeframe.harness.errors import RigError
from freezeframe.harness.runs.audit import state_directory

REFRESH_S: Final = 1.0
"""Ages and the clock go on when nothing comes."""
SUMMARY_S: Final = 10.0
"""Between two summaries where no screen is."""
QUIT_KEYS: Final = b"qQ\x03\x04"


def top(bench: str, *, as_json: bool) -> None:
    begin_work()
    described = load_bench(bench)
    lines = _find(described, bench)
    with contextlib.suppress(KeyboardInterrupt):
        stop = stop_softly()
        shown: _Shown = (
            _Raw()
            if as_json
            else _Screen()
            if out.is_terminal and not out.is_dumb_terminal
            else _Plain()
        )
        try:
            end = shown.follow(lines, described.id, stop)
        finally:
            lines.close()
        if end is not None and not as_json:
            count = counted(end.incidents, "incident")
            why = f": {escape(end.why)}" if end.why else ""
            say(f"the watch (pid {lines.pid}) has ended{why}; {count}")
        elif not stop.is_set() and end is None:
            say_aside(
                f"freezeframe: rig: the watch (pid {lines.pid}) is gone, and no end of it was reported: it was "
                f"killed, or this command was stopped meanwhile; `freezeframe watch --bench {escape(bench)}` goes on "
                "with what it had begun",
                "bold red",
            )  # fmt: skip
            raise typer.Exit(EXIT_RIG)


def _find(bench: Bench, given: str) -> Lines:
    found, name = listeners(state_directory(), bench.id), bench.name
    if not found:
        raise RigError(
            f"nobody watches the bench {name} of {bench.path} now: start `freezeframe watch --bench {given}` in another "
            "terminal, and look on then; if a service watches it, set STATE_DIRECTORY to the service's and be its "
            "user; a run shows itself in its own terminal, and `freezeframe console SIDE` its consoles"
            f"{another_of_that_name('watched', _others(name))}"
        )
    for one in found[:-1]:
        text = f"the bench {name} is also watched by pid {one.pid}"
        say_aside(f"freezeframe: {escape(text)}", "dim")
        one.close()
    return found[-1]


def _others(name: str) -> list[str]:
    """Who watches benches of this name."""
    found = []
    for one in names(state_directory()):
        if name_of(one) == name:
            with contextlib.suppress(RigError):
                for lines in listeners(state_directory(), one):
                    found.append(f"pid {lines.pid}")
                    lines.close()
    return found


class _Shown:
    """``follow`` returns the end; None: there was none, or somebody wants no more."""

    def follow(self, lines: Lines, bench_id: str, stop: threading.Event) -> End | None:
        """RigError: the watch hangs up at once."""
        has_come = False
        while not stop.is_set():
            ready = wait_readable([lines.fileno(), *self.keys()], REFRESH_S)
            if any(fd != lines.fileno() and self.is_quit(fd) for fd in ready):
                stop.set()
            elif lines.fileno() in ready:
                for line in lines.read():
                    has_come, one = True, decode(line)
                    self.line(line)
                    if isinstance(one, End):
                        return one
                    self.show(one)
                if lines.is_over:
                    if not self._is_taken_up(lines, bench_id):
                        return None
                    if not has_come:
                        raise RigError(
                            f"the watch (pid {lines.pid}) hung up: {MAX_PEERS} others look, or it is another user's; "
                            "look as that user (sudo -u)"
                        )
                    has_come = False
            self.turn()
        return None

    def _is_taken_up(self, lines: Lines, bench_id: str) -> bool:
        """Who was stopped for too long (Ctrl-Z) was hung up on: look again."""
        again = [one for one in listeners(state_directory(), bench_id) if one.pid == lines.pid]
        for one in again:
            lines.take_up(one)
        return bool(again)

    def keys(self) -> list[int]:
        return []

    def is_quit(self, fd: int) -> bool:
        return False

    def line(self, line: bytes) -> None:
        pass

    def show(self, status: LiveStatus) -> None:
        pass

    def turn(self) -> None:
        pass


class _Raw(_Shown):
    """The objects as they come."""

    def line(self, line: bytes) -> None:
        sys.stdout.write(line.decode("utf-8", "backslashreplace") + "\n")
        sys.stdout.flush()


class _Plain(_Shown):
    """A line for each report, and one of all now and then."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._due_s = 0.0

    def show(self, status: LiveStatus) -> None:
        newest = status.news[-1].n if status.news else 0
        if self._seen is not None:
            fresh = [one for one in status.news if one.n > self._seen]
            if missed := newest - self._seen - len(fresh):
                left_out = f"left out, they came too fast: {counted(missed, 'report')}"
                say(f"{clock(status.utc)} {left_out}")
            for one in fresh:
                say(f"{clock(one.utc)} {escape(one.text)}")
        self._seen = newest
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + SUMMARY_S
            say(f"{clock(status.utc)} {summary_line(status)}")


class _Screen(_Shown):
    """The whole terminal, given back as it was."""

    def __init__(self) -> None:
        self._status: LiveStatus | None = None
        self._came_s = 0.0
        self._live = Live(console=out, screen=True, auto_refresh=False, redirect_stderr=False)

    def follow(self, lines: Lines, bench_id: str, stop: threading.Event) -> End | None:
        with keys_at_once(), self._live:
            return super().follow(lines, bench_id, stop)

    def keys(self) -> list[int]:
        return [sys.stdin.fileno()] if has_keys() else []

    def is_quit(self, fd: int) -> bool:
        typed = os.read(fd, 64)
        return not typed or any(key in QUIT_KEYS for key in typed)

    def show(self, status: LiveStatus) -> None:
        self._status, self._came_s = status, time.monotonic()

    def turn(self) -> None:
        if self._status is None:
            return
        utc = datetime.now(UTC).time().isoformat("seconds")
        silent_s = time.monotonic() - self._came_s
        self._live.update(Screen(self._status, silent_s, utc), refresh=True)
