"""What stands around the hot route: its configuration, the record on disk, the events to the supervisor.

Nothing here runs between the read of a trigger and the write of its frame, except ``write_frames``.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, starmap
from time import monotonic_ns
from typing import Final

import msgspec

from harness.core import events
from harness.core.events import (
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
TIMES_WITHIN_NS: Final = 50 * NS_PER_MS
"""``console.times`` is written so often: a killed reflex has lost the times of so much; of the bytes see UNRECORDED."""
REHEARSED_NS: Final = 2_000
"""A console: how often at most. One console's way is rehearsed behind each read; with hundreds there is always something to
do, the way is warm by that, and rehearsals behind each read would cost more than they bring."""
MOMENT_S: Final = 150e-6
"""Slept directly behind the frames. A kernel thread of ordinary priority carries a PTY's bytes on, and some adapters': it
would have to wait until this SCHED_FIFO process has recorded and told. Long enough for it and for the other end, where that
is a process of this machine."""
UNRECORDED: Final = 64
"""Reads that may wait to be recorded until nothing more is there to be read: about a millisecond's, and what a killed reflex
has lost."""
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
    return ProcessReady(t_ns=monotonic_ns(), process="reflex", notes=notes)


Volley = Sequence[tuple[Side, bytes | None, int | None]]
"""What one trigger writes, in order: to whom, the frame, the control line."""


class Armed:
    """The frames that are armed, and what each rule would write of them."""

    def __init__(self, control: Mapping[Side, int]) -> None:
        self._control = control
        self._nowhere: Volley = []
        """Where rehearsals go; empty where there is no /dev/null, so that only the search is rehearsed."""
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
            self.by_rule = {rule: self.volley("console", who) for rule, who in enumerate(book.instructed)}

    def rehearse(self, book: RuleBook, consoles: int, now_ns: Ns) -> None:
        """Between the reads, while frames are armed: out of cold caches the way of a trigger takes twice as long. When all
        consoles are quiet the process sleeps, and nothing is rehearsed."""
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
    """Write each frame to its non-blocking line, for WRITE_LIMIT_NS at most. One function, because each call on the way to
    the first write takes a microsecond or two when the caches are cold."""
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


def last_words(fds: Sequence[int], read: Callable[[int], bool], out: "EventOut") -> None:
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
    """Commands on the standard input, link triggers on their pipe; and the poller of them and of the consoles."""
    names = {STDIN_FD: "commands", config.trigger_fd: "link triggers"}
    inboxes = {fd: Inbox(fd, name) for fd, name in names.items() if fd is not None}
    poller = select.epoll()
    try:
        for fd in (*inboxes, *(stream.fd for stream in config.streams)):
            poller.register(fd, select.EPOLLIN)
    except OSError as error:
        raise RigError(f"descriptor {fd} cannot be watched: {error.strerror}") from error
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
        self._read_bytes = 0
        """Recorded since."""
        self._before = bytearray()
        """The newest bytes of the record, REPLAY_BYTES and some more."""
        self.times = bytearray()
        """Entries of ``console.times`` that are not written yet."""
        self._is_recording = True
        self._copy_fd = config.copy_fd

    @property
    def place(self) -> Place:
        """Behind the last byte that was read."""
        return Place(self._read_bytes, bytes(self._before[-REPLAY_BYTES:]))

    def triggers(self, hits: list[Hit], data: bytes, t_arrival_ns: Ns, t_match_ns: Ns) -> list[Event]:
        """The events for the hits that ``data``, not yet recorded, completed."""
        seen = bytes(self._before) + data
        first = self._read_bytes - len(self._before)
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
            # Those for which the search itself strikes come first: what was written was written for the first.
            for hit in sorted(hits, key=lambda hit: not self._book.rules[hit.rule].is_plain)
        ]

    def record(self, t_arrival_ns: Ns, data: bytes) -> Note | None:
        """Append to the record on disk; a note, once, when that takes no more."""
        note = None
        if self._is_recording:
            try:
                if (written := os.write(self._log_fd, data)) < len(data):
                    _write_all(self._log_fd, data[written:])  # a signal came, or the disk is nearly full
            except OSError as error:
                note = self._end_of_record(error)
        self.times += TIMES.pack(t_arrival_ns, self._recorded_from + self._read_bytes)
        self._read_bytes += len(data)
        self._before += data
        if len(self._before) > 2 * REPLAY_BYTES:
            del self._before[:-REPLAY_BYTES]
        if self._copy_fd >= 0:
            with contextlib.suppress(OSError):  # full or gone: a dialogue asks again, the record is whole
                os.write(self._copy_fd, data)
        return note

    def record_times(self) -> Note | None:
        times, self.times = self.times, bytearray()
        try:
            if self._is_recording:
                _write_all(self._times_fd, times)
        except OSError as error:
            return self._end_of_record(error)
        return None

    def _end_of_record(self, error: OSError) -> Note:
        self._is_recording = False
        at = os.fstat(self._log_fd).st_size
        text = f"{self.name}: the record ends at byte {at}: {error.strerror}"
        return Note(t_ns=monotonic_ns(), source="reflex", text=text, level="error")


def _write_all(fd: int, data: bytes | bytearray) -> None:
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])


class EventOut:
    """The record, and events to the supervisor over a pipe that may be full or gone: never waits, never drops a trigger."""

    def __init__(self, fd: int, poller: select.epoll) -> None:
        self._fd = fd
        self._poller = poller
        self._unrecorded: list[tuple[Console, Ns, bytes]] = []
        self._untimed: list[Console] = []
        """Consoles with times to be written."""
        self._times_due_ns: Ns = 0
        self._backlog: deque[bytes] = deque()
        self._is_gone = False
        self._is_polled = False
        os.set_blocking(fd, False)

    def tell(self, told: Sequence[Event]) -> None:
        """Events for the next ``flush``."""
        if not self._is_gone:
            self._backlog += map(events.encode, told)

    def record(self, console: Console, t_arrival_ns: Ns, data: bytes) -> None:
        """To be recorded by the next ``flush``: once all that is there has been searched."""
        self._unrecorded.append((console, t_arrival_ns, data))

    def is_due(self) -> bool:
        """Whether ``flush`` must not wait until nothing more is there to be read."""
        return bool(self._backlog) or len(self._unrecorded) >= UNRECORDED

    def room(self, _fd: int) -> None:
        """The pipe has room again: ``flush`` comes by anyway."""

    def wait_s(self, silence_ms: int | None) -> float | None:
        """How long to wait for bytes; None: for ever."""
        if silence_ms is None:
            return TIMES_WITHIN_NS / NS_PER_S if self._untimed else None
        return min(silence_ms * NS_PER_MS, TIMES_WITHIN_NS) / NS_PER_S

    def flush(self) -> None:
        """Record what was read, and write what the pipe takes; poll for more room while something is left."""
        t_ns = 0
        for console, t_ns, data in self._unrecorded:
            if not console.times:
                self._untimed.append(console)
            if note := console.record(t_ns, data):
                self.tell([note])
        if t_ns:
            self._unrecorded.clear()
            if t_ns > self._times_due_ns:
                self._flush_times()
                self._times_due_ns = t_ns + TIMES_WITHIN_NS
        elif self._untimed:  # a quiet moment
            self._flush_times()
        if self._backlog:
            self._flush_events()

    def _flush_times(self) -> None:
        for console in self._untimed:
            if note := console.record_times():
                self.tell([note])
        self._untimed.clear()

    def _flush_events(self) -> None:
        while self._backlog and not self._is_gone:
            try:
                written = os.writev(self._fd, list(islice(self._backlog, WRITE_PARTS)))
            except BlockingIOError:
                break
            except OSError:  # the supervisor is dead: the record on disk goes on
                self._is_gone = True
                self._backlog.clear()
                break
            while written:
                first = self._backlog.popleft()
                if written < len(first):
                    self._backlog.appendleft(first[written:])
                written = max(0, written - len(first))
        self._poll(bool(self._backlog))

    def finish(self, limit_ns: Ns) -> None:
        """Record the rest, and write it, for at most ``limit_ns``."""
        deadline_ns = monotonic_ns() + limit_ns
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        self.flush()
        self._flush_times()
        while self._backlog:
            left_ms = (deadline_ns - monotonic_ns()) / NS_PER_MS
            if left_ms <= 0 or not room.poll(left_ms):
                return
            self.flush()

    def _poll(self, wanted: bool) -> None:
        if wanted and not self._is_polled:
            self._poller.register(self._fd, select.EPOLLOUT)
        elif self._is_polled and not wanted:
            self._poller.unregister(self._fd)
        self._is_polled = wanted


def replace_rules(book: RuleBook, event: events.NewRules, consoles: Iterable[Console]) -> None:
    """Other rules from the next byte on."""
    rules = msgspec.json.decode(event.rules, type=list[ConsoleRule])
    book.replace(rules, {console.name: console.place for console in consoles})


def make_consoles(config: ReflexConfig, strike: Callable[[int], None]) -> tuple[RuleBook, dict[int, Console]]:
    """The rules, and descriptor -> console; no descriptor blocks from here on. ``strike``: see Scanner. RigError when a
    record cannot be opened."""
    sides = {stream.name or f"{stream.side} console": stream.side for stream in config.streams}
    if len(sides) != len(config.streams):
        raise RigError("two consoles have the same name")
    book = RuleBook(config.rules, config.default_instruct, sides, strike)
    try:
        for fd in (*(stream.fd for stream in config.streams), *config.control.values()):
            os.set_blocking(fd, False)
        return book, {stream.fd: Console(stream, book) for stream in config.streams}
    except OSError as error:
        raise RigError(str(error)) from error
