"""Implement the command ``console``: look at a console while a station watches it, and write to it through a watch."""

import contextlib
import sys
import threading
from pathlib import Path
from typing import Final, TextIO

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.benchid import another_of_that_name
from freezeframe.harness.cli.consoleserve import serve_on
from freezeframe.harness.cli.consolewrite import ConsoleWriter
from freezeframe.harness.cli.interrupt import begin_work, stop_softly
from freezeframe.harness.cli.output import say_aside
from freezeframe.harness.core.console.shown import ShownStream
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.consoleport import ConsolePort
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.following import (
    Chunk,
    ConsoleFollower,
    Recorder,
    all_recorders,
    recorders,
)
from freezeframe.harness.runs.policyfile import PolicyFile

POLL_S: Final = 0.1
"""The recorder writes a line's time within 50 ms."""

ECHO_S: Final = 0.02
"""Who types wants to see it."""


def console(
    side: str,
    bench: str,
    *,
    out_dir: Path,
    lines: int,
    timestamps: bool,
    write: bool = False,
    send: str = "",
    serve: str = "",
) -> None:
    """``send``: a list of the bench file to send, which needs ``write`` no more. ``serve``: the address on which
    other programs get the console, in the place of stdout."""
    begin_work()
    described = load_bench(bench)
    named = next((one for one in SIDES if one == side), None)
    if named is None:
        raise UsageError(f"{side}: no such side; allowed: {', '.join(SIDES)}")
    if described.controller(named).console is None:
        raise UsageError(f"{described.path}: [{named}] names no console, so nobody records one")
    follower = None
    with contextlib.suppress(KeyboardInterrupt):
        writer = (
            ConsoleWriter(described, bench, named, send, reads_input=not serve)
            if write or send
            else None
        )
        recorder = _find(described, bench, named, out_dir, writer.watch.pid if writer else 0)
        what = "Ctrl-C ends it" if writer else "read-only, Ctrl-C ends it"
        if writer is None or not writer.has_keys:
            _say(f"the {named}'s console, as {recorder.holder} records it; {what}")
        follower = ConsoleFollower(recorder, named, with_times=timestamps)
        screen = _Screen(sys.stdout, recorder, timestamps)
        stop = stop_softly()
        try:
            with writer.keys() if writer is not None else contextlib.nullcontext():
                if serve:
                    baud = described.controller(named).console_baud
                    with contextlib.closing(ConsolePort(serve, baud=baud, may_write=write)) as port:
                        serve_on(port, follower, writer, stop)
                else:
                    _follow(follower, screen, lines, stop, writer)
            if follower.is_over:
                _say(f"{recorder.holder} has ended: nobody records the bench any more")
        finally:
            screen.end_line()
            follower.close()


def _last_folders(bench: Bench) -> list[Path]:
    """Where the newest watch of the bench has put its incidents, as far as that can be read."""
    with contextlib.suppress(RigError):
        saved = PolicyFile(bench).read()
        return [] if saved is None else [Path(one.folder).parent for one in saved[1].values()]
    return []


def _find(bench: Bench, given: str, side: Side, out_dir: Path, pid: int) -> Recorder:
    """``pid``: that of the watch that is written through; 0: any."""
    known, name = _last_folders(bench), bench.name
    out_dirs = dict.fromkeys([out_dir, *known])
    found = recorders(bench.id, side, out_dirs)
    if not found:
        same_name = [
            one.holder for one in all_recorders(side, out_dirs) if one.newest.record.bench == name
        ]
        raise RigError(
            f"nobody records the bench {name} of {bench.path} now: start `freezeframe watch --bench {given}` (or a "
            "run) in another terminal, and attach then; if another user has started it, name its folder of "
            f"incidents with --out{another_of_that_name('recorded', same_name)}"
        )
    found = [one for one in found if one.pid == pid] or found
    if len(found) > 1:
        others = ", ".join(one.holder for one in found[:-1])
        _say(
            f"the bench {name} is also recorded by {others}; --out FOLDER names whose incidents lie there"
        )
    return found[-1]


def _follow(
    follower: ConsoleFollower,
    screen: "_Screen",
    lines: int,
    stop: threading.Event,
    writer: ConsoleWriter | None,
) -> None:
    for chunk in follower.newest_lines(lines):
        screen.show(chunk)
    while not follower.is_over and not stop.is_set():
        chunks = follower.read()
        for chunk in chunks:
            screen.show(chunk)
        if writer is not None:
            if chunks:
                writer.heard()
            if not writer.turn(0 if chunks else ECHO_S):
                return
        elif not chunks and not follower.is_over:
            stop.wait(POLL_S)


class _Screen:
    """The console's text on stdout; what is ours on stderr, so that a pipe gets the text alone."""

    def __init__(self, out: TextIO, recorder: Recorder, timestamps: bool) -> None:
        self._out, self._timestamps = out, timestamps
        self._shown = ShownStream()
        self._folder = recorder.newest.path

    def show(self, chunk: Chunk) -> None:
        if chunk.incident.path != self._folder:
            self._folder = chunk.incident.path
            if self._out.isatty():
                self.end_line()
            _say(f"recorded in {self._folder.name}")
        stamp = (lambda index: f"{chunk.utc(index)} ") if self._timestamps else None
        self._write(self._shown.feed(chunk.data, stamp))

    def end_line(self) -> None:
        self._write(self._shown.end_line())

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._out.flush()


def _say(text: str) -> None:
    say_aside(f"freezeframe: {escape(text)}", "dim")
