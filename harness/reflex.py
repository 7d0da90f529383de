"""THE hot route, a process of its own: console bytes -> trigger -> control frame.

    os.read(console) -> Scanner.feed -> os.write(control, frame encoded when the bench was armed)

Nothing else stands between the read and the write. Link triggers come over a pipe polled beside the consoles: one place
decides and writes, so that two triggers at once make one action. An Arm is good for one action; hits are told also when
nothing is armed. Events leave once a round of polling. When the supervisor dies, what the consoles hold is recorded.
"""

import os
import sys
from time import monotonic_ns

from harness.core import events
from harness.core.events import Event, Side
from harness.core.triggers import Hit
from harness.edge import reflex_io


class Reflex:
    def __init__(self, config: reflex_io.ReflexConfig) -> None:
        self.book, self.consoles = reflex_io.make_consoles(config)
        self.control = config.control
        self.armed: dict[str, dict[str, bytes]] | None = None
        self.is_stopping = False
        self.inboxes, self.poller = reflex_io.make_inboxes(config)
        self.out = reflex_io.EventOut(config.event_fd, self.poller)
        self.handlers: reflex_io.Handlers = {config.event_fd: self.out.room}
        self.handlers |= dict.fromkeys(self.consoles, self.read_console)
        self.handlers |= dict.fromkeys(self.inboxes, self.read_events)
        self.out.tell([reflex_io.ready(config)])

    def run(self) -> None:
        while not self.is_stopping:
            self.out.flush()
            t_ns = monotonic_ns()
            for fd, _ in self.poller.poll(wait_ms := self.book.wait_ms(t_ns)):
                self.handlers[fd](fd)
            silent = self.consoles.values() if wait_ms == 0 else ()
            for console in silent:  # all that had come at t_ns has been read
                self.out.tell(self.act(console, self.book.scanner.tick(console.name, t_ns), b"", t_ns))
        self.armed, deadline_ns = None, monotonic_ns() + reflex_io.LAST_WORDS_NS
        for fd in list(self.consoles):
            while self.read_console(fd) and monotonic_ns() < deadline_ns:
                self.out.flush()
        self.out.finish(reflex_io.LAST_WORDS_NS)

    def read_console(self, fd: int) -> bool:
        """The hot route. False when there was nothing to read."""
        console = self.consoles[fd]
        try:
            data = os.read(fd, reflex_io.READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            return self.end(fd, console.name, str(error.strerror))
        t_arrival_ns = monotonic_ns()
        if not data:
            return self.end(fd, console.name, "closed")
        hits = self.book.scanner.feed(console.name, data, t_arrival_ns)
        self.out.record(console, t_arrival_ns, data, self.act(console, hits, data, t_arrival_ns))
        return True

    def act(self, console: reflex_io.Console, hits: list[Hit], data: bytes, t_ns: int) -> list[Event]:
        t_match_ns, sent = monotonic_ns(), self.strike("console", self.book.who(hits))
        return console.triggers(hits, data, t_ns, t_match_ns) + sent

    def strike(self, reason: str, who: list[Side]) -> list[Event]:
        """Write the frames armed for ``reason`` to ``who``, in this order; nothing when nothing is armed."""
        if self.armed is None or not who:
            return []
        frames, self.armed = self.armed.get(reason, {}), None
        written = [reflex_io.write_frame(side, frames.get(side), self.control.get(side)) for side in who]
        return [attempt.told() for attempt in written]

    def read_events(self, fd: int) -> None:
        received = self.inboxes[fd].read()
        for event in received or []:
            if isinstance(event, events.Arm | events.Disarm):
                self.armed = event.frames if isinstance(event, events.Arm) else None
            elif isinstance(event, events.Trigger):
                self.out.tell([event, *self.strike(event.source, event.instruct)])
            elif isinstance(event, events.NewRules):
                reflex_io.replace_rules(self.book, event, self.consoles.values())
            self.is_stopping |= isinstance(event, events.Stop)
        if received is None:
            self.is_stopping |= fd == reflex_io.STDIN_FD
            self.end(fd, self.inboxes[fd].name, "closed")

    def end(self, fd: int, stream: str, error: str) -> bool:
        self.poller.unregister(fd)
        self.consoles.pop(fd, None)
        self.out.tell([events.StreamEnded(t_ns=monotonic_ns(), stream=stream, error=error)])
        return False


if __name__ == "__main__":
    sys.exit(reflex_io.run(lambda config: Reflex(config).run()))
