"""What stands around the hot route: its configuration, the record on disk, the events to the supervisor.

Nothing here runs between the read of a trigger and the write of its frame, except ``write_frame``.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec

from harness.core import events
from harness.core.events import (
    NS_PER_MS,
    NS_PER_S,
    AnyEvent,
    ConsoleBytes,
    Event,
    FrameFailed,
    FrameSent,
    Note,
    Ns,
    ProcessReady,
    Side,
    Trigger,
)
from harness.core.frames import decode
from harness.core.rulebook import RuleBook
from harness.core.rules import MAX_PATTERN_CHARACTERS, ConsoleRule
from harness.core.triggers import Hit, Place
from harness.edge.realtime import become_realtime
from harness.errors import RigError, WireError

TIMES: Final = struct.Struct("<QQ")
"""One entry of ``console.times`` a read: t_ns, offset_bytes of its first byte."""
EXCERPT_BYTES: Final = 256
REPLAY_BYTES: Final = 4 * MAX_PATTERN_CHARACTERS
"""Kept of each console, so that new rules find a text that is half there: the longest literal."""
MAX_BACKLOG_BYTES: Final = 4 << 20
"""Events that wait for a slow supervisor: 14 s of a console at 300 kB/s. Above it console bytes are not told."""
WRITE_PARTS: Final = 256
"""Events given to the pipe at once; IOV_MAX is 1024."""
WRITE_LIMIT_NS: Final = 50 * NS_PER_MS
"""A control line that takes no byte for so long is told as failed; a frame is 50 bytes, 5 ms at 115,200 baud."""
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
    """An inherited pipe that gets every byte too: the control side of a line that carries both; -1: none."""


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
    """The configuration line, and not a byte more: events follow it. Raises RigError when it is none."""
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
    return ProcessReady(t_ns=time.monotonic_ns(), process="reflex", notes=notes)


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


def write_frame(side: Side, frame: bytes | None, fd: int | None) -> Attempt:
    """Write ``frame`` to the non-blocking ``fd``, for WRITE_LIMIT_NS at most."""
    t_ns = time.monotonic_ns()
    error = ""
    if frame is None or fd is None:
        return Attempt(side, b"", t_ns, t_ns, "no frame is armed for it, or it has no control line")
    try:
        _write_within(fd, frame)
    except OSError as problem:
        error = problem.strerror or str(problem)
    return Attempt(side, frame, t_ns, time.monotonic_ns(), error)


def _write_within(fd: int, data: bytes) -> None:
    written, deadline_ns = 0, time.monotonic_ns() + WRITE_LIMIT_NS
    while written < len(data):
        try:
            written += os.write(fd, data[written:])
        except BlockingIOError:
            # A full PTY may call itself writable all the same: the deadline counts, not the answer.
            left_ms = (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            if left_ms <= 0:
                raise TimeoutError(0, f"the line took {written} of {len(data)} bytes") from None
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll(left_ms)


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


def make_inboxes(config: ReflexConfig) -> tuple[dict[int, Inbox], select.poll]:
    """Commands on the standard input, link triggers on their pipe; and the poller of them and of the consoles, in this
    order: an Arm counts for what came after it."""
    names = {STDIN_FD: "commands", config.trigger_fd: "link triggers"}
    inboxes = {fd: Inbox(fd, name) for fd, name in names.items() if fd is not None}
    poller = select.poll()
    for fd in (*inboxes, *(stream.fd for stream in config.streams)):
        poller.register(fd, select.POLLIN)
    return inboxes, poller


class Console:
    """One console's place in the stream and its record on disk."""

    def __init__(self, config: StreamConfig, book: RuleBook) -> None:
        self.side = config.side
        self.label = config.name
        self.name = config.name or f"{config.side} console"
        self._book = book
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._log_fd = os.open(config.log_path, flags, 0o644)
        self._times_fd = os.open(config.times_path, flags, 0o644)
        self._recorded_from = os.fstat(self._log_fd).st_size
        """A reflex that was started again goes on where the record ends."""
        self.place = Place()
        """Behind the last byte that was read."""
        self._is_recording = True
        self._copy_fd = config.copy_fd

    def triggers(self, hits: list[Hit], data: bytes, t_arrival_ns: Ns, t_match_ns: Ns) -> list[Event]:
        """The events for the hits that ``data``, not yet recorded, completed."""
        seen = self.place.before + data
        first = self.place.offset_bytes - len(self.place.before)
        return [
            Trigger(
                t_ns=t_match_ns,
                rule=self._book.rules[hit.rule].name,
                source="console",
                side=self.side,
                console=self.label,
                offset_bytes=self._recorded_from + hit.end_offset_bytes,
                t_arrival_ns=t_arrival_ns,
                t_match_ns=t_match_ns,
                excerpt=seen[: hit.end_offset_bytes - first][-EXCERPT_BYTES:],
                instruct=self._book.instructed[hit.rule],
            )
            for hit in hits
        ]

    def record(self, t_arrival_ns: Ns, data: bytes) -> list[Event]:
        """Append to the record on disk; the events that tell of it."""
        told: list[Event] = []
        place = self.place
        offset = self._recorded_from + place.offset_bytes
        if self._is_recording:
            try:
                _append(self._log_fd, data)
                _append(self._times_fd, TIMES.pack(t_arrival_ns, offset))
            except OSError as error:
                self._is_recording = False
                text = f"{self.name}: the record ends at byte {offset}: {error.strerror}"
                told.append(Note(t_ns=t_arrival_ns, source="reflex", text=text, level="error"))
        if self._copy_fd >= 0:
            with contextlib.suppress(OSError):  # full or gone: a dialogue asks again, the record is whole
                os.write(self._copy_fd, data)
        self.place = Place(place.offset_bytes + len(data), (place.before + data)[-REPLAY_BYTES:])
        told.append(
            ConsoleBytes(
                t_ns=t_arrival_ns, side=self.side, console=self.label, offset_bytes=offset, data=data
            )
        )
        return told


def _append(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):  # a signal came, or the disk is nearly full
        written += os.write(fd, data[written:])


class EventOut:
    """Events to the supervisor over a pipe that may be full or gone: never waits, never drops a trigger."""

    def __init__(self, fd: int, poller: select.poll) -> None:
        self._fd = fd
        self._poller = poller
        self._unrecorded: list[tuple[Console, Ns, bytes, list[Event]]] = []
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._untold_events = 0
        self._untold_bytes = 0
        self._is_gone = False
        self._is_polled = False
        os.set_blocking(fd, False)

    def tell(self, told: Sequence[Event]) -> None:
        for event in told:
            if isinstance(event, ConsoleBytes) and self._backlog_bytes > MAX_BACKLOG_BYTES:
                self._untold_events += 1
                self._untold_bytes += len(event.data)
            else:
                self._enqueue(event)

    def record(self, console: Console, t_arrival_ns: Ns, data: bytes, told: list[Event]) -> None:
        """To be recorded and told by the next ``flush``: once all consoles that had something have been searched."""
        self._unrecorded.append((console, t_arrival_ns, data, told))

    def room(self, _fd: int) -> None:
        """The pipe has room again."""
        self.flush()

    def flush(self) -> None:
        """Record what was read, and write what the pipe takes; poll for more room while something is left."""
        for console, t_arrival_ns, data, told in self._unrecorded:
            self.tell(told + console.record(t_arrival_ns, data))
        self._unrecorded.clear()
        while self._backlog and not self._is_gone:
            try:
                written = os.writev(self._fd, list(islice(self._backlog, WRITE_PARTS)))
            except BlockingIOError:
                break
            except OSError:  # the supervisor is dead: the record on disk goes on
                self._is_gone = True
                self._backlog.clear()
                break
            self._backlog_bytes -= written
            while written:
                first = self._backlog.popleft()
                if written < len(first):
                    self._backlog.appendleft(first[written:])
                written = max(0, written - len(first))
            if self._untold_events and self._backlog_bytes < MAX_BACKLOG_BYTES // 2:
                self._tell_what_was_left_out()
        self._poll(bool(self._backlog))

    def finish(self, limit_ns: Ns) -> None:
        """Write the rest, for at most ``limit_ns``."""
        deadline_ns = time.monotonic_ns() + limit_ns
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        self.flush()
        while self._backlog:
            left_ms = (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            if left_ms <= 0 or not room.poll(left_ms):
                return
            self.flush()

    def _enqueue(self, event: Event) -> None:
        if self._is_gone:
            return
        message = events.encode(event)
        self._backlog.append(message)
        self._backlog_bytes += len(message)

    def _tell_what_was_left_out(self) -> None:
        text = (
            f"{self._untold_events} reads of console ({self._untold_bytes} bytes) were not told: "
            "the supervisor was slow; the record on disk has them"
        )
        self._untold_events = self._untold_bytes = 0
        self._enqueue(Note(t_ns=time.monotonic_ns(), source="reflex", text=text, level="warning"))

    def _poll(self, wanted: bool) -> None:
        if wanted and not self._is_polled:
            self._poller.register(self._fd, select.POLLOUT)
        elif self._is_polled and not wanted:
            self._poller.unregister(self._fd)
        self._is_polled = wanted


def replace_rules(book: RuleBook, event: events.NewRules, consoles: Iterable[Console]) -> None:
    """Other rules from the next byte on."""
    rules = msgspec.json.decode(event.rules, type=list[ConsoleRule])
    book.replace(rules, {console.name: console.place for console in consoles})


def make_consoles(config: ReflexConfig) -> tuple[RuleBook, dict[int, Console]]:
    """The rules, and descriptor -> console; no descriptor blocks from here on. RigError when a record cannot be
    opened."""
    sides = {stream.name or f"{stream.side} console": stream.side for stream in config.streams}
    if len(sides) != len(config.streams):
        raise RigError("two consoles have the same name")
    book = RuleBook(config.rules, config.default_instruct, sides)
    try:
        for fd in (*(stream.fd for stream in config.streams), *config.control.values()):
            os.set_blocking(fd, False)
        return book, {stream.fd: Console(stream, book) for stream in config.streams}
    except OSError as error:
        raise RigError(str(error)) from error
