"""The four serial lines of a soak: each is an adapter between the simulator's PTY and the watch, which can
be unplugged and can disturb what it carries. What it has carried is kept: the watch's record is held
against it."""

import contextlib
import os
import random
import select
import socket
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from freezeframe.harness.core import frames
from freezeframe.harness.core.frames import Frame, FrameReceiver, IdentityPayload
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Op, Status

READ_BYTES: Final = 64 << 10
LIMIT_S: Final = 120.0
"""Of a hang, not of speed."""
IDLE_S: Final = 0.05


class Adapter(threading.Thread):
    """Serves one client on ``port``. ``unplug``: the connection ends, nothing listens, and what the
    device says meanwhile is lost, as it is with a USB adapter that is pulled out."""

    def __init__(self, device: Path) -> None:
        super().__init__(name=f"adapter {device.name}", daemon=True)
        self._fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._fd)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._lock = threading.Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._is_ending = False
        self._client: socket.socket | None = None
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.start()

    def do(self, work: Callable[[], None]) -> None:
        """Have it done in the adapter's thread, and wait for it."""
        done = threading.Event()
        self._work.append(lambda: (work(), done.set()))  # type: ignore[func-returns-value]
        self._waker.send(b"x")
        assert done.wait(LIMIT_S), f"{self.name} hangs"

    def unplug(self) -> None:
        self.do(self._unplug)

    def plug(self) -> None:
        self.do(self._plug)

    def close(self) -> None:
        self._is_ending = True
        self._waker.send(b"x")
        self.join(LIMIT_S)
        for one in (self._client, self._listener):
            if one is not None:
                one.close()
        os.close(self._fd)

    def _unplug(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._drop_client()

    def _plug(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self.has_ended()

    def run(self) -> None:
        while not self._is_ending:
            watched: list[socket.socket | int] = [self._fd, self._wake]
            watched += [one for one in (self._client or self._listener,) if one is not None]
            for ready in select.select(watched, [], [], IDLE_S)[0]:
                self._serve(ready)
            while self._work:
                self._work.popleft()()
            self.pump()

    def _serve(self, ready: socket.socket | int) -> None:
        if ready is self._wake:
            self._wake.recv(READ_BYTES)
        elif ready == self._fd:
            with contextlib.suppress(OSError):
                self.from_device(os.read(self._fd, READ_BYTES))
        elif ready is self._listener:
            self._client, _ = self._listener.accept()
            self.connections += 1
        elif ready is self._client:
            try:
                data = self._client.recv(READ_BYTES)
            except OSError:
                data = b""
            if data:
                self.from_client(data)
            else:
                self._drop_client()

    def to_client(self, data: bytes) -> bool:
        """Whether it was taken: without a connection it is lost."""
        if self._client is None:
            return False
        try:
            self._client.sendall(data)
        except OSError:
            self._drop_client()
            return False
        return True

    def to_device(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._fd, view) :]

    def from_device(self, data: bytes) -> None:
        raise NotImplementedError

    def from_client(self, data: bytes) -> None:
        raise NotImplementedError

    def has_ended(self) -> None:
        """The connection has ended."""

    def pump(self) -> None:
        """Called at least every IDLE_S."""


class Mark(NamedTuple):
    """Where the record may have a hole."""

    offset_bytes: int
    """Of what was carried."""
    t_s: float
    why: str


class ConsoleAdapter(Adapter):
    """A console. ``carried`` is what the watch was given, all of it."""

    def __init__(self, device: Path) -> None:
        self.carried = bytearray()
        self.marks: list[Mark] = []
        self.change: Callable[[bytes], bytes] = bytes
        """Changes what the device says before it is carried."""
        self.pieces = 0
        """Carry in pieces of so many bytes; 0: as it comes."""
        self._held: bytearray | None = None
        super().__init__(device)

    def mark(self, why: str) -> None:
        self.marks.append(Mark(len(self.carried), time.monotonic(), why))

    def has_ended(self) -> None:
        self.mark("the connection ended")

    def say(self, data: bytes) -> None:
        """As if the device had printed it."""
        self.do(lambda: self._carry(data))

    def stall(self) -> None:
        """What the device says is held back until ``flow``."""
        self._held = bytearray()

    def flow(self) -> None:
        def release() -> None:
            held, self._held = bytes(self._held or b""), None
            self._carry(held)

        self.do(release)

    def from_device(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
        else:
            self._carry(self.change(data))

    def from_client(self, data: bytes) -> None:
        self.to_device(data)

    def _carry(self, data: bytes) -> None:
        step = self.pieces or max(1, len(data))
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            if self.to_client(piece):
                self.carried += piece


class ControlAdapter(Adapter):
    """A control line: it carries whole frames, may lose or change each, and asks the device itself."""

    def __init__(self, device: Path) -> None:
        self._requests, self._replies = FrameReceiver(), FrameReceiver()
        self._mine: dict[int, list[Frame]] = {}
        self._arrived = threading.Condition()
        self._seq = 0
        self.change_request: Callable[[Frame], Frame | None] = lambda frame: frame
        """None: the frame is lost."""
        self.change_reply: Callable[[Frame], Frame | None] = lambda frame: frame
        self.identities: list[tuple[float, IdentityPayload]] = []
        """What the device answered to the watch, with its time."""
        super().__init__(device)

    def has_ended(self) -> None:
        self._requests = FrameReceiver()

    def from_client(self, data: bytes) -> None:
        for one in self._requests.feed(data):
            if isinstance(one, Frame) and (kept := self.change_request(one)) is not None:
                self.to_device(_bytes_of(kept))

    def from_device(self, data: bytes) -> None:
        for one in self._replies.feed(data):
            if not isinstance(one, Frame):
                continue
            if one.seq in self._mine:
                with self._arrived:
                    self._mine[one.seq].append(one)
                    self._arrived.notify_all()
                continue
            kept = self.change_reply(one)
            if kept is None:
                continue
            if kept.type == Op.IDENTIFY | control.REPLY and kept.payload[:1] == bytes([Status.OK]):
                answered = frames.unpack(IdentityPayload, kept.payload, 1)
                self.identities.append((time.monotonic(), answered))
            self.to_client(_bytes_of(kept))

    def ask(self, op: Op, payload: bytes = b"", limit_s: float = 5.0) -> bytes | None:
        """The payload of the device's answer; None: it does not answer."""
        self._seq = (self._seq + 1) % 64
        seq = 0xFF80 + self._seq
        self._mine[seq] = []
        try:
            self.do(lambda: self.to_device(frames.encode(op, seq, payload)))
            with self._arrived:
                self._arrived.wait_for(lambda: self._mine[seq], limit_s)
            return self._mine[seq][0].payload if self._mine[seq] else None
        finally:
            del self._mine[seq]

    def identity(self, limit_s: float = 1.0) -> IdentityPayload | None:
        answer = self.ask(Op.IDENTIFY, limit_s=limit_s)
        if answer is None or answer[0] != Status.OK:
            return None
        return frames.unpack(IdentityPayload, answer, 1)

    def lose_requests(self, count: int, ops: tuple[Op, ...]) -> None:
        """The next ``count`` frames of these operations get lost on the way to the device."""
        left = [count]

        def change(frame: Frame) -> Frame | None:
            if frame.type not in ops or left[0] == 0:
                return frame
            left[0] -= 1
            return None

        self.change_request = change

    def lose_replies(self, count: int, ops: tuple[Op, ...]) -> None:
        """The next ``count`` answers to these get lost."""
        left = [count]

        def change(frame: Frame) -> Frame | None:
            if frame.type & ~control.REPLY not in ops or left[0] == 0:
                return frame
            left[0] -= 1
            return None

        self.change_reply = change

    def answer_as(self, serial_number: str) -> None:
        """Another device answers."""

        def change(frame: Frame) -> Frame:
            if frame.type != Op.IDENTIFY | control.REPLY:
                return frame
            body = bytearray(frame.payload)
            body[1 + 16 : 1 + 32] = serial_number.encode().ljust(16, b"\0")
            return Frame(frame.type, frame.flags, frame.seq, bytes(body))

        self.change_reply = change

    def carry_all(self) -> None:
        self.change_request = self.change_reply = lambda frame: frame


def _bytes_of(frame: Frame) -> bytes:
    return frames.encode(frame.type, frame.seq, frame.payload, flags=frame.flags)


def noise(rng: random.Random) -> Callable[[bytes], bytes]:
    """What a wrong baud rate makes of text: three of four bytes are others, line ends as well."""
    return lambda data: bytes(rng.randrange(128, 256) if rng.random() < 0.75 else b for b in data)


def holes(
    carried: bytes, recorded: bytes, marks: list[Mark], window_bytes: int
) -> tuple[int, list[str]]:
    """(bytes that are missing in the record, what is wrong with it). A hole is right directly before or
    after a mark."""
    at, lost, wrong = 0, 0, []
    want = memoryview(carried)
    have = memoryview(recorded)
    done = 0
    while done < len(have):
        same = _common(want[at:], have[done:])
        at, done = at + same, done + same
        if done == len(have):
            break
        probe = bytes(have[done : done + 48])
        found = carried.find(probe, at)
        if found < 0 or found - at > 4 * window_bytes:
            wrong.append(f"record byte {done}: {probe[:32]!r} was not carried after byte {at}")
            return lost, wrong
        if not any(at - window_bytes <= one.offset_bytes <= found + window_bytes for one in marks):
            wrong.append(f"{found - at} bytes from {at} are missing, and nothing was wrong there")
        lost, at = lost + found - at, found
    if at < len(carried):
        missing = len(carried) - at
        if not any(at - window_bytes <= one.offset_bytes for one in marks):
            wrong.append(f"the last {missing} bytes are missing, and nothing was wrong there")
        lost += missing
    return lost, wrong


def ends_with(newest_first: Iterable[bytes], wanted: bytes) -> bool:
    """Whether a record in parts, the newest part first, ends with these bytes."""
    found = b""
    for part in newest_first:
        found = part[-len(wanted) :] + found
        if len(found) >= len(wanted):
            break
    return found.endswith(wanted)


def _common(first: memoryview, second: memoryview) -> int:
    """How many bytes are the same from the start."""
    size, step = min(len(first), len(second)), 1 << 16
    at = 0
    while at < size:
        if first[at : at + step] == second[at : at + step] and at + step <= size:
            at += step
        elif step == 1:
            if first[at] != second[at]:
                return at
            at += 1
        else:
            step = max(1, step // 16)
            if first[at : at + step] != second[at : at + step]:
                continue
    return size
