"""What stands around the hot route: its configuration, the frames that are armed, and who else is
heard.

Nothing here runs between the read of a trigger and the write of its frame, except ``write_frames``.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import starmap
from time import monotonic_ns
from typing import Final

import hyperscan
import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.console.rulebook import RuleBook
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import (
    NS_PER_MS,
    NS_PER_S,
    AnyEvent,
    Event,
    FrameFailed,
    FrameSent,
    Note,
    Ns,
    ProcessReady,
    Side,
)
from freezeframe.harness.core.frames import decode
from freezeframe.harness.edge.realtime import become_realtime
from freezeframe.harness.errors import RigError, WireError
from freezeframe.harness.watch.reflex_record import Console, EventOut

REHEARSED_NS: Final = 2_000
"""A console: how often at most. One console's way is rehearsed behind each read; with hundreds
there is always something to do, the way is warm by that, and rehearsals behind each read would cost
more than they bring."""
MOMENT_S: Final = 150e-6
"""Slept directly behind the frames. A kernel thread of ordinary priority carries a PTY's bytes on,
and some adapters': it would have to wait until this SCHED_FIFO process has recorded and told. Long
enough for it and for the other end, where that is a process of this machine."""
WRITE_LIMIT_NS: Final = 50 * NS_PER_MS
"""A control line that takes no byte for so long is told as failed; a frame is 50 bytes, 5 ms at
115,200 baud."""
MAX_CONFIG_BYTES: Final = 4 << 20
STDIN_FD: Final = 0
READ_BYTES: Final = 64 << 10
LAST_WORDS_NS: Final = NS_PER_S
"""At the end the consoles are read, and the supervisor told, for at most this long each."""

Handlers = dict[int, Callable[[int], object]]
"""Descriptor -> what takes it when it is ready."""


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    side: Side
    fd: int
    """An inherited descriptor of the console."""
    name: str = ""
    """Tells the consoles of one side apart; "": the side has only this one."""
    log_path: str
    """Appended to, byte-exact."""
    times_path: str
    copy_fd: int = -1
    """An inherited pipe that gets every byte too: the control side of a line that carries both; -1:
    none."""


class ReflexConfig(msgspec.Struct, frozen=True, kw_only=True):
    """First line on the reflex's standard input, as JSON."""

    streams: list[StreamConfig]
    control: dict[Side, int]
    """Inherited descriptor of each side's control line; may be its console's."""
    rules: list[ConsoleRule]
    default_instruct: list[Side]
    """For rules without ``instruct``: the bench's policy."""
    trigger_fd: int | None = None
    """Pipe from linkwatch that carries events.Trigger."""
    event_fd: int = 1
    realtime: bool = True


def run(body: Callable[[ReflexConfig], None]) -> int:
    """Run ``body`` with the configuration from the standard input; the process's exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's: it stops us in order
    try:
        body(read_config(STDIN_FD))
    except RigError as error:
        sys.stderr.write(f"reflex: {error}\n")
        return error.exit_code
    return 0


def read_config(fd: int) -> ReflexConfig:
    """The configuration line, and not a byte more: events follow it. Raises RigError when it is
    none."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte or len(line) > MAX_CONFIG_BYTES:
            raise RigError("no configuration on the standard input")
        line += byte
    try:
        return msgspec.json.decode(line, type=ReflexConfig)
    except msgspec.DecodeError as error:
        raise RigError(f"configuration: {error}") from error


def ready(config: ReflexConfig) -> ProcessReady:
    """Become as fast as we may; say what could not be had."""
    notes = become_realtime() if config.realtime else []
    return ProcessReady(t_ns=monotonic_ns(), process="reflex", notes=notes)


Volley = Sequence[tuple[Side, bytes | None, int | None]]
"""What one trigger writes, in order: to whom, the frame, the control line."""


class Armed:
    """The frames that are armed, and what each rule would write of them."""

    def __init__(self, control: Mapping[Side, int]) -> None:
        self._control = control
        self._nowhere: Volley = []
        """Where rehearsals go; empty where there is no /dev/null, so that only the search is
        rehearsed."""
        with contextlib.suppress(OSError):
            self._nowhere = [("primary", b"", os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))]
        self._rehearse_due_ns: Ns = 0
        self._frames: Mapping[str, Mapping[str, bytes]] | None = None
        self.by_rule: dict[int, Volley] = {}
        """Of each console rule that instructs anybody."""

    def load(self, frames: Mapping[str, Mapping[str, bytes]] | None) -> None:
        """None: nothing is armed. Consoles trigger nothing before ``aim``."""
        self._frames, self.by_rule = frames, {}

    def aim(self, book: RuleBook) -> None:
        if self._frames is not None:
            self.by_rule = {
                rule: self.volley("console", who) for rule, who in enumerate(book.instructed)
            }

    def rehearse(self, book: RuleBook, consoles: int, now_ns: Ns) -> None:
        """Between the reads, while frames are armed: out of cold caches the way of a trigger takes
        twice as long. When all consoles are quiet the process sleeps, and nothing is rehearsed."""
        if self.by_rule and now_ns >= self._rehearse_due_ns:
            book.scanner.rehearse(lambda _rule: write_frames(self._nowhere))
            self._rehearse_due_ns = now_ns + REHEARSED_NS * consoles

    def volley(self, reason: str, who: Sequence[Side]) -> Volley:
        """Empty when nothing is armed, or nobody is instructed."""
        if self._frames is None:
            return []
        frames = self._frames.get(reason, {})
        return [(side, frames.get(side), self._control.get(side)) for side in who]


class Attempt(msgspec.Struct, frozen=True):
    """One frame's way to its control line."""

    side: Side
    frame: bytes
    t_ns: Ns
    t_done_ns: Ns
    error: str

    def told(self) -> Event:
        if self.error:
            return FrameFailed(t_ns=self.t_ns, side=self.side, error=self.error)
        return FrameSent(
            t_ns=self.t_ns,
            side=self.side,
            seq=sequence_number(self.frame),
            t_done_ns=self.t_done_ns,
            frame=self.frame,
        )


def write_frames(volley: Volley) -> list[Attempt]:
    """Write each frame to its non-blocking line, for WRITE_LIMIT_NS at most. One function, because
    each call on the way to the first write takes a microsecond or two when the caches are cold."""
    attempts = []
    written = 0
    for side, frame, fd in volley:
        t_ns = monotonic_ns()
        error = ""
        if frame is None or fd is None:
            frame, error = b"", "no frame is armed for it, or it has no control line"
        else:
            try:
                if (written := os.write(fd, frame)) < len(frame):
                    error = _write_rest(fd, frame, written)
            except BlockingIOError:
                error = _write_rest(fd, frame, 0)
            except OSError as problem:
                error = problem.strerror or str(problem)
        attempts.append((side, frame, t_ns, monotonic_ns(), error))
    if written:
        time.sleep(MOMENT_S)
    return list(starmap(Attempt, attempts))


def _write_rest(fd: int, data: bytes, written: int) -> str:
    """The line was full. "" when it took the rest in time."""
    deadline_ns = monotonic_ns() + WRITE_LIMIT_NS
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    while written < len(data):
        # A full PTY may call itself writable all the same: the deadline counts, not the answer.
        left_ms = (deadline_ns - monotonic_ns()) / NS_PER_MS
        if left_ms <= 0:
            return f"the line took {written} of {len(data)} bytes"
        poller.poll(left_ms)
        try:
            written += os.write(fd, data[written:])
        except BlockingIOError:
            pass
        except OSError as problem:
            return problem.strerror or str(problem)
    return ""


def closed() -> bytes:
    """What a read of nothing means."""
    raise OSError(0, "closed")


def last_words(fds: Sequence[int], read: Callable[[int], bool], out: EventOut) -> None:
    """What the consoles still hold, and the rest of what is to be told."""
    deadline_ns = monotonic_ns() + LAST_WORDS_NS
    for fd in fds:
        while read(fd) and monotonic_ns() < deadline_ns:
            out.flush()
    out.finish(LAST_WORDS_NS)


def sequence_number(frame: bytes) -> int:
    """The frame's seq when it is one of ours; 0 when it is another device type's."""
    try:
        return decode(frame).seq
    except WireError:
        return 0


class Inbox:
    """Events that come over one pipe."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._decoder = events.Decoder()

    def read(self) -> list[AnyEvent] | None:
        """The events that are there; None when the pipe has ended or no longer carries events."""
        try:
            data = os.read(self._fd, READ_BYTES)
            return self._decoder.feed(data) if data else None
        except (OSError, ValueError, msgspec.DecodeError):
            return None


def make_inboxes(config: ReflexConfig) -> tuple[dict[int, Inbox], select.epoll]:
    """Commands on the standard input, link triggers on their pipe; and the poller of them and of
    the consoles."""
    names = {STDIN_FD: "commands", config.trigger_fd: "link triggers"}
    inboxes = {fd: Inbox(fd, name) for fd, name in names.items() if fd is not None}
    poller = select.epoll()
    try:
        for fd in (*inboxes, *(stream.fd for stream in config.streams)):
            poller.register(fd, select.EPOLLIN)
    except OSError as error:
        raise RigError(f"descriptor {fd} cannot be watched: {error.strerror}") from error
    return inboxes, poller


def replace_rules(
    book: RuleBook, event: events.NewRules, consoles: Iterable[Console]
) -> list[Event]:
    """Other rules from the next byte on; a note when they cannot be used, and the old ones stay."""
    try:
        rules = msgspec.json.decode(event.rules, type=list[ConsoleRule])
        book.replace(rules, {console.name: console.place for console in consoles})
    except (hyperscan.HyperscanError, msgspec.DecodeError, ValueError) as error:
        text = f"the new rules cannot be used, the old ones stay: {error}"
        return [Note(t_ns=monotonic_ns(), source="reflex", text=text, level="error")]
    return []


def make_consoles(
    config: ReflexConfig, strike: Callable[[int], None]
) -> tuple[RuleBook, dict[int, Console]]:
    """The rules, and descriptor -> console; no descriptor blocks from here on. ``strike``: see
    Scanner. RigError when a record cannot be opened."""
    sides = {stream.name or f"{stream.side} console": stream.side for stream in config.streams}
    if len(sides) != len(config.streams):
        raise RigError("two consoles have the same name")
    try:
        book = RuleBook(config.rules, config.default_instruct, sides, strike)
    except hyperscan.HyperscanError as error:
        raise RigError(f"the rules cannot be used: {error}") from error
    try:
        for fd in (*(stream.fd for stream in config.streams), *config.control.values()):
            os.set_blocking(fd, False)
        return book, {
            stream.fd: Console(
                book,
                side=stream.side,
                label=stream.name,
                log_path=stream.log_path,
                times_path=stream.times_path,
                copy_fd=stream.copy_fd,
            )
            for stream in config.streams
        }
    except OSError as error:
        raise RigError(str(error)) from error
