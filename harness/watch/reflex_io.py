"""The surroundings of the hot route: its configuration, the armed frames, and its other inputs.

Nothing in this module runs between the read of a trigger and the write of its frame, except
``write_frames``.
"""

import contextlib
import os
import select
import signal
import socket
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
"""Minimum interval between cache-warming runs, per console. With one console the code is run after
each read. With hundreds there is always input, which keeps the caches warm, and a run after each
read would cost more than it gains."""
MOMENT_S: Final = 150e-6
"""Sleep directly after the frames. A kernel thread of ordinary priority forwards the bytes of a
PTY, and of some adapters; otherwise it would have to wait until this SCHED_FIFO process has
recorded and reported. Long enough for it, and for the receiver if that is a process of this
machine."""
WRITE_LIMIT_NS: Final = 50 * NS_PER_MS
"""Write timeout of a control line, after which the frame is reported as failed. A frame is 50
bytes, 5 ms at 115,200 baud."""
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_LINE_BYTES: Final = 4096
STDIN_FD: Final = 0
READ_BYTES: Final = 64 << 10
LAST_WORDS_NS: Final = NS_PER_S
"""At the end, time limit for reading the consoles, and again for sending the last events."""

Handlers = dict[int, Callable[[int], object]]
"""Descriptor -> function to call when it is ready."""


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    side: Side
    fd: int
    """An inherited descriptor of the console."""
    name: str = ""
    """Distinguishes the consoles of one side; "": the side has only this one."""
    log_path: str
    """The record of the console: every byte is appended."""
    times_path: str
    copy_fd: int = -1
    """An inherited pipe that also gets every byte, for the control side of a shared line; -1:
    none."""


class NewLine(msgspec.Struct, frozen=True, kw_only=True):
    """A message on ``ReflexConfig.line_fd``, as JSON with its descriptors beside it: a line was
    opened again."""

    side: Side
    console: str = ""
    """Name of the console in the reflex; "": it is no console."""
    fds: list[str]
    """What the descriptors beside the message are, in order: console, control, copy."""
    console_fd: int = -1
    control_fd: int = -1
    copy_fd: int = -1
    """Of the process that received it; -1: not sent."""


class ReflexConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The first line on the standard input of the reflex, as JSON."""

    streams: list[StreamConfig]
    control: dict[Side, int]
    """Inherited descriptor of the control line of each side; may be that of its console."""
    rules: list[ConsoleRule]
    default_instruct: list[Side]
    """Sides to instruct for rules without ``instruct``: the policy of the bench."""
    trigger_fd: int | None = None
    """Pipe on which linkwatch sends events.Trigger."""
    line_fd: int | None = None
    """Unix socket on which lines that were opened again arrive."""
    event_fd: int = 1
    realtime: bool = True


def run(body: Callable[[ReflexConfig], None]) -> int:
    """Run ``body`` with the configuration from standard input; return the exit status of the
    process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the supervisor handles Ctrl-C and stops this process in order
    try:
        body(read_config(STDIN_FD))
    except RigError as error:
        sys.stderr.write(f"reflex: {error}\n")
        return error.exit_code
    return 0


def read_config(fd: int) -> ReflexConfig:
    """Read the configuration line and no byte more, because events follow it. Raises RigError."""
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
    """Request low latency; report what was refused."""
    notes = become_realtime() if config.realtime else []
    return ProcessReady(t_ns=monotonic_ns(), process="reflex", notes=notes)


Volley = Sequence[tuple[Side, bytes | None, int | None]]
"""The writes of one trigger, in order: side, frame, control line."""


class Armed:
    """The armed frames, and the writes for each rule."""

    def __init__(self, control: Mapping[Side, int]) -> None:
        self._control = control
        self._nowhere: Volley = []
        """Target of cache-warming writes; empty if there is no /dev/null, then only the search is
        run."""
        with contextlib.suppress(OSError):
            self._nowhere = [("primary", b"", os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))]
        self._rehearse_due_ns: Ns = 0
        self._frames: Mapping[str, Mapping[str, bytes]] | None = None
        self.by_rule: dict[int, Volley] = {}
        """Writes per console rule that instructs a side."""
        self._arming = 0
        self._gentle: frozenset[str] = frozenset()
        self._muted: frozenset[str] = frozenset()
        self.struck = 0
        """Arming of the newest frames that were written."""
        self.cause = -1
        """Console rule that they were written for; -1: a trigger of the link."""

    def load(self, event: events.Arm | events.Disarm) -> None:
        """Replace the armed frames. Consoles trigger nothing before ``aim``. An ``Arm`` that was
        sent without knowledge of the newest strike is ignored."""
        if isinstance(event, events.Disarm):
            self.clear()
        elif event.seen >= self.struck:
            self._frames, self.by_rule, self._arming = event.frames, {}, event.arming
            self._gentle, self._muted = frozenset(event.gentle), frozenset(event.muted)

    def clear(self) -> None:
        self._frames, self.by_rule = None, {}

    def use(self, book: RuleBook, line: "NewLine") -> None:
        """A line was opened again."""
        if line.control_fd >= 0:
            old_fd = self._control.get(line.side)
            self._control = {**self._control, line.side: line.control_fd}
            # Of a line that is both, the old one may be a console still: what stood in for it.
            if old_fd is not None and line.console_fd < 0:
                os.close(old_fd)
        self.aim(book)

    def lose(self, book: RuleBook, fd: int) -> None:
        """A console has ended; it may have been a control line, too. Its descriptor is closed, and
        nothing is written to its number any more."""
        self._control = {side: one for side, one in self._control.items() if one != fd}
        os.close(fd)
        self.aim(book)

    def spend(self, volley: Volley) -> None:
        """The frames were written: an arming is good for one action. For whom is looked up only
        now: nothing that is reported delays a frame."""
        self.struck = self._arming
        self.cause = next((rule for rule, one in self.by_rule.items() if one is volley), -1)
        self.clear()

    def aim(self, book: RuleBook) -> None:
        if self._frames is not None:
            self.by_rule = {
                rule: self.volley("console", who, book.rules[rule].name)
                for rule, who in enumerate(book.instructed)
            }

    def rehearse(self, book: RuleBook, consoles: int, now_ns: Ns) -> None:
        """Run the code of a trigger without effect, between reads while frames are armed: with
        cold caches a trigger takes twice as long. While all consoles are quiet the process sleeps
        and does not do this."""
        if self.by_rule and now_ns >= self._rehearse_due_ns:
            book.scanner.rehearse(lambda _rule: write_frames(self._nowhere))
            self._rehearse_due_ns = now_ns + REHEARSED_NS * consoles

    def volley(self, reason: str, who: Sequence[Side], rule: str) -> Volley:
        """Return the writes for one trigger; empty when nothing is armed or no side is instructed."""
        if self._frames is None or rule in self._muted:
            return []
        frames = self._frames.get(f"{reason} save" if rule in self._gentle else reason, {})
        return [(side, frames.get(side), self._control.get(side)) for side in who]


class Attempt(msgspec.Struct, frozen=True):
    """The attempt to write one frame to its control line."""

    side: Side
    frame: bytes
    t_ns: Ns
    t_done_ns: Ns
    error: str

    def event(self, arming: int) -> Event:
        if self.error:
            return FrameFailed(t_ns=self.t_ns, side=self.side, error=self.error, arming=arming)
        return FrameSent(
            t_ns=self.t_ns,
            side=self.side,
            seq=sequence_number(self.frame),
            t_done_ns=self.t_done_ns,
            frame=self.frame,
            arming=arming,
        )


def write_frames(volley: Volley) -> list[Attempt]:
    """Write each frame to its non-blocking line, for at most WRITE_LIMIT_NS. One function, because
    each call before the first write takes a microsecond or two with cold caches."""
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
    """Write the rest to a line that was full. "": success in time."""
    deadline_ns = monotonic_ns() + WRITE_LIMIT_NS
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    while written < len(data):
        # A full PTY may still report that it is writable, so only the deadline counts.
        left_ms = (deadline_ns - monotonic_ns()) / NS_PER_MS
        if left_ms <= 0:
            return f"the line accepted {written} of {len(data)} bytes"
        poller.poll(left_ms)
        try:
            written += os.write(fd, data[written:])
        except BlockingIOError:
            pass
        except OSError as problem:
            return problem.strerror or str(problem)
    return ""


def closed() -> bytes:
    """Raise the error for an empty read: the line is closed."""
    raise OSError(0, "closed by its other end")


def last_words(fds: Sequence[int], read: Callable[[int], bool], out: EventOut) -> None:
    """Read the rest of the consoles and send the remaining events."""
    deadline_ns = monotonic_ns() + LAST_WORDS_NS
    for fd in fds:
        while read(fd) and monotonic_ns() < deadline_ns:
            out.flush()
    out.finish(LAST_WORDS_NS)


def sequence_number(frame: bytes) -> int:
    """Return the seq of a frame of wire.control; 0 for a frame of another device type."""
    try:
        return decode(frame).seq
    except WireError:
        return 0


class Inbox:
    """Reads events from one pipe."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._decoder = events.Decoder()

    def read(self) -> list[AnyEvent] | None:
        """Return the available events; None when the pipe has ended or contains invalid data."""
        try:
            data = os.read(self._fd, READ_BYTES)
            return self._decoder.feed(data) if data else None
        except (OSError, ValueError, msgspec.DecodeError):
            return None


def make_inboxes(config: ReflexConfig) -> tuple[dict[int, Inbox], select.epoll]:
    """Return the readers of commands (standard input) and link triggers (their pipe), and the
    poller of these and the consoles."""
    names = {STDIN_FD: "commands", config.trigger_fd: "link triggers"}
    inboxes = {fd: Inbox(fd, name) for fd, name in names.items() if fd is not None}
    poller = select.epoll()
    try:
        for fd in (*inboxes, *(stream.fd for stream in config.streams)):
            poller.register(fd, select.EPOLLIN)
    except OSError as error:
        raise RigError(f"descriptor {fd} cannot be watched: {error.strerror}") from error
    return inboxes, poller


def receive_line(fd: int) -> NewLine | None:
    """Return a line that was opened again, with its descriptors; None: that was no such message."""
    try:
        with socket.socket(fileno=os.dup(fd)) as lines:
            data, fds, _, _ = socket.recv_fds(lines, MAX_LINE_BYTES, len(NewLine.__struct_fields__))
        for one in fds:
            os.set_blocking(one, False)
        line = msgspec.json.decode(data, type=NewLine)
        named = dict(zip((f"{name}_fd" for name in line.fds), fds, strict=True))
        return msgspec.structs.replace(line, **named)
    except (OSError, ValueError, TypeError):  # msgspec.DecodeError is a ValueError
        return None


def record_elsewhere(event: events.Record, consoles: Iterable[Console]) -> list[Event]:
    """Record what comes from now on into the files named; the caller has recorded the rest."""
    reports: list[Event] = []
    for console in consoles:
        if console.name in event.paths and (
            note := console.record_into(*event.paths[console.name])
        ):
            reports.append(note)
    return [*reports, events.Recorded(t_ns=monotonic_ns())]


def replace_rules(
    book: RuleBook, event: events.NewRules, consoles: Iterable[Console]
) -> list[Event]:
    """Use other rules from the next byte on. If they are invalid, return a note and keep the old
    ones."""
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
    """Return the rules, and descriptor -> console. All descriptors become non-blocking.
    ``strike``: see Scanner. Raises RigError when a record cannot be opened."""
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
