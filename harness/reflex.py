"""THE hot route, a process of its own: console bytes -> trigger -> control frame.

    os.read(console) -> Scanner.feed -> os.write(control, frame encoded when the bench was armed)

Nothing else stands between the read and the write. Link triggers come over a pipe polled beside the consoles:
one place decides and writes, so that two triggers at once make one action. An Arm is good for one action; hits
are told also when nothing is armed. When the supervisor dies, what the consoles still hold is recorded.
"""

import os
import select
import sys
from collections.abc import Callable
from time import monotonic_ns

from harness.core import events
from harness.core.events import Event, Side
from harness.core.triggers import Scanner
from harness.edge import reflex_io


class Reflex:
    def __init__(self, config: reflex_io.ReflexConfig) -> None:
        self.instruct = reflex_io.instructions(config)
        self.consoles = reflex_io.make_consoles(config, self.instruct)
        self.scanner = Scanner(config.rules, [console.side for console in self.consoles.values()])
        self.control = config.control
        self.armed: dict[str, dict[str, bytes]] | None = None
        self.is_stopping = False
        self.inboxes = reflex_io.make_inboxes(
            {reflex_io.STDIN_FD: "commands", config.trigger_fd: "link triggers"}
        )
        self.poller = select.poll()
        for fd in (*self.inboxes, *self.consoles):  # in this order: an Arm counts for what came after it
            self.poller.register(fd, select.POLLIN)
        self.out = reflex_io.EventOut(config.event_fd, self.poller)
        self.handlers: dict[int, Callable[[int], object]] = {config.event_fd: self.out.room}
        self.handlers |= dict.fromkeys(self.consoles, self.read_console)
        self.handlers |= dict.fromkeys(self.inboxes, self.read_events)
        self.out.tell([reflex_io.ready(config)])

    def run(self) -> None:
        while not self.is_stopping:
            for fd, _ in self.poller.poll():
                self.handlers[fd](fd)
        self.armed, deadline_ns = None, monotonic_ns() + reflex_io.LAST_WORDS_NS
        for fd in list(self.consoles):
            while self.read_console(fd) and monotonic_ns() < deadline_ns:
                pass
        self.out.finish(reflex_io.LAST_WORDS_NS)

    def read_console(self, fd: int) -> bool:
        """The hot route. False when there was nothing to read."""
        console, told = self.consoles[fd], list[Event]()
        try:
            data = os.read(fd, reflex_io.READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            return self.end(fd, console.name, str(error.strerror))
        t_arrival_ns = monotonic_ns()
        if not data:
            return self.end(fd, console.name, "closed")
        if hits := self.scanner.feed(console.side, data):
            t_match_ns = monotonic_ns()
            sent = self.strike("console", next((who for hit in hits if (who := self.instruct[hit.rule])), []))
            told = console.triggers(hits, data, t_arrival_ns, t_match_ns) + sent
        self.out.tell(told + console.record(t_arrival_ns, data))
        return True

    def strike(self, reason: str, who: list[Side]) -> list[Event]:
        """Write the frames armed for ``reason`` to ``who``, in this order; nothing when nothing is armed."""
        if self.armed is None or not who:
            return []
        frames, self.armed = self.armed.get(reason, {}), None
        written = [reflex_io.write_frame(side, frames.get(side), self.control.get(side)) for side in who]
        return [attempt.told() for attempt in written]

    def read_events(self, fd: int) -> None:
        """Commands on the standard input, link triggers on their pipe."""
        received = self.inboxes[fd].read()
        for event in received or []:
            if isinstance(event, events.Arm | events.Disarm):
                self.armed = event.frames if isinstance(event, events.Arm) else None
            elif isinstance(event, events.Trigger):
                self.out.tell([event, *self.strike(event.source, event.instruct)])
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
