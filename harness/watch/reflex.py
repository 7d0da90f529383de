"""The hot route, in a process of its own: console bytes -> trigger -> control frame.

    os.read(console) -> Scanner.feed -> strike -> os.write(control, frame encoded when the bench was armed)

Nothing else happens between these calls. While frames are armed the code is run regularly without
effect, to keep the caches warm. Link triggers arrive over a pipe polled beside the consoles: one
process decides and writes, so that two simultaneous triggers cause one action. An Arm is good for
one action.
"""

import os
import select
import sys
from time import monotonic_ns

import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.console.triggers import Hit
from freezeframe.harness.watch import reflex_io, reflex_record


class Reflex:
    def __init__(self, config: reflex_io.ReflexConfig) -> None:
        self.book, self.consoles = reflex_io.make_consoles(config, self.strike)
        self.records = {console.name: console for console in self.consoles.values()}
        self.armed = reflex_io.Armed(config.control)
        self.sent: list[reflex_io.Attempt] = []
        self.is_stopping = False
        self.inboxes, self.poller = reflex_io.make_inboxes(config)
        self.out = reflex_record.EventOut(config.event_fd, self.poller)
        self.handlers: reflex_io.Handlers = dict.fromkeys(self.consoles, self.read_console)
        self.handlers |= {
            config.event_fd: self.out.room,
            **dict.fromkeys(self.inboxes, self.read_events),
        }
        if config.line_fd is not None:
            self.handlers[config.line_fd] = self.read_line
            self.poller.register(config.line_fd, select.EPOLLIN)
        self.out.tell([reflex_io.ready(config)])

    def run(self) -> None:
        while not self.is_stopping:
            silence_ms = self.book.wait_ms(t_ns := monotonic_ns())
            if self.out.is_due() or not (ready := self.poller.poll(0)):
                self.out.flush()  # last: reading has priority over recording
                self.armed.rehearse(self.book, len(self.consoles), t_ns)
                ready = self.poller.poll(self.out.wait_s(silence_ms))
            for fd, _ in sorted(ready):  # 0 is stdin: an Arm applies to later bytes
                self.handlers[fd](fd)
            for console in self.consoles.values() if silence_ms == 0 else ():
                self.found(console, self.book.scanner.tick(console.name, t_ns), b"", t_ns)
        self.armed.clear()
        reflex_io.last_words(list(self.consoles), self.read_console, self.out)

    def read_console(self, fd: int) -> bool:
        """The hot route. Returns False when there was nothing to read."""
        console = self.consoles[fd]
        try:
            data = os.read(fd, reflex_io.READ_BYTES) or reflex_io.closed()
        except OSError as error:  # BlockingIOError: nothing to read
            return not isinstance(error, BlockingIOError) and self.end(
                fd, console.name, str(error.strerror)
            )
        t_arrival_ns = monotonic_ns()
        if hits := self.book.scanner.feed(console.name, data, t_arrival_ns):
            self.found(console, hits, data, t_arrival_ns)
        self.out.record(console, t_arrival_ns, data)
        return True

    def strike(self, rule: int) -> None:
        """Send the frames of a rule whose text was found. For plain rules the search calls it
        directly."""
        self.fire(self.armed.by_rule.get(rule, ()))

    def fire(self, volley: reflex_io.Volley) -> None:
        if volley:
            self.sent = reflex_io.write_frames(volley)
            self.armed.spend(volley)

    def found(
        self, console: reflex_record.Console, hits: list[Hit], data: bytes, t_ns: int
    ) -> None:
        for hit in hits:
            self.strike(hit.rule)
        t_match_ns = self.sent[0].t_ns if self.sent else monotonic_ns()
        struck, cause = (self.armed.struck, self.armed.cause) if self.sent else (0, -1)
        self.tell(console.triggers(hits, data, t_ns, t_match_ns, struck, cause))

    def tell(self, triggers: list[events.Event]) -> None:
        self.out.tell([*triggers, *(one.event(self.armed.struck) for one in self.sent)])
        self.sent.clear()

    def read_events(self, fd: int) -> None:
        received = self.inboxes[fd].read()
        for event in received or []:
            if isinstance(event, events.Arm | events.Disarm):
                self.armed.load(event)
                if isinstance(event, events.Disarm):
                    self.tell([events.Disarmed(t_ns=monotonic_ns())])
            elif isinstance(event, events.NewRules):
                self.tell(reflex_io.replace_rules(self.book, event, self.consoles.values()))
            elif isinstance(event, events.Trigger):
                self.fire(self.armed.volley(event.source, event.instruct, event.rule))
                struck = self.armed.struck if self.sent else 0
                self.tell([msgspec.structs.replace(event, struck=struck, is_cause=bool(self.sent))])
            elif isinstance(event, events.Record):
                self.out.flush_all()
                self.tell(reflex_io.record_elsewhere(event, self.records.values()))
            self.armed.aim(self.book)
            self.is_stopping |= isinstance(event, events.Stop)
        if received is None:
            self.is_stopping |= fd == reflex_io.STDIN_FD
            self.end(fd, self.inboxes[fd].name, "closed")

    def read_line(self, fd: int) -> None:
        """A line was opened again: use it from here on."""
        if (line := reflex_io.receive_line(fd)) is None:
            self.poller.unregister(fd)
        else:
            self.armed.use(self.book, line)
            if line.console_fd >= 0:
                self.consoles[line.console_fd] = self.records[line.console].again(line.copy_fd)
                self.handlers[line.console_fd] = self.read_console
                self.poller.register(line.console_fd, select.EPOLLIN)

    def end(self, fd: int, stream: str, error: str) -> bool:
        self.poller.unregister(fd)
        self.book.forget(stream)
        if self.consoles.pop(fd, None) is not None:
            self.armed.lose(self.book, fd)
        self.out.tell([events.StreamEnded(t_ns=monotonic_ns(), stream=stream, error=error)])
        return False


if __name__ == "__main__":
    sys.exit(reflex_io.run(lambda config: Reflex(config).run()))
