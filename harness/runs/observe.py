"""The processes that watch while evidence comes in: the reflex, the link's watch, and the host's
writer.

They record to disk by themselves; what arrives here is for the supervisor to act on and to tell a
person.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import msgspec

from freezeframe.harness.bench import registry
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.blocks.blockstamp import MAX_SECTORS
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import (
    NS_PER_S,
    SIDES,
    AnyEvent,
    Arm,
    Disarm,
    ExpectStamps,
    KeepCapture,
    LinkStats,
    NewRules,
    Note,
    Ns,
    ProcessReady,
    Record,
    Side,
    StreamEnded,
)
from freezeframe.harness.edge.processes import Child
from freezeframe.harness.edge.realtime import MEMORY_NOT_LOCKED
from freezeframe.harness.edge.shared_line import SharedLine
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.watch.linkwatch import LinkwatchConfig
from freezeframe.harness.watch.reflex_io import NewLine, ReflexConfig, StreamConfig

READY_TIMEOUT_S: Final = 20.0
"""Two Python processes start in well under a second; a loaded machine may take several."""
STOP_TIMEOUT_S: Final = 10.0


class Observation:
    """Reflex and linkwatch, started; further children join with ``add``. Closed on every exit."""

    def __init__(
        self, opened: OpenBench, incident: Incident, rules: RuleSet, *, is_standing: bool = False
    ) -> None:
        """``incident``: whose folder is recorded into, until ``record_into``. ``is_standing``: a
        watcher that dies is reported as a stream that ended, and may be started again."""
        self._children: list[Child] = []
        self.link: LinkStats | None = None
        """The newest counters of the capture; None when nothing was captured."""
        self.notes: list[str] = []
        self._opened, self._incident, self._rules = opened, incident, rules
        self._is_standing = is_standing
        self._pending: list[tuple[str, AnyEvent]] = []
        self._shared: list[SharedLine] = []
        self._trigger_read, self._trigger_write = os.pipe()
        self._lines, self._reflex_lines = socket.socketpair()
        try:
            self.start_reflex()
            self.start_linkwatch()
        except BaseException:
            self.kill()
            raise

    def start_reflex(self) -> None:
        self._reflex = self._start_reflex(self._incident, self._rules, self._trigger_read)

    def start_linkwatch(self) -> None:
        self._start_linkwatch(self._incident, self._rules, self._trigger_write)

    def record_into(self, incident: Incident, *, consoles_only: bool = False) -> None:
        """What comes from now on belongs to ``incident``. Each watcher answers with ``Recorded``.
        ``consoles_only``: the capture stays where it is."""
        self._incident = incident
        paths = {
            f"{side} console": [
                str(incident.console_path(side)),
                str(incident.console_times_path(side)),
            ]
            for side in SIDES
        }
        paths["link"] = [str(incident.link_path)]
        for child in [self._reflex] if consoles_only else self._children:
            with contextlib.suppress(RigError):  # its death is reported, and it starts with these
                child.send(Record(t_ns=time.monotonic_ns(), paths=paths))

    def use_line(self, side: Side, *, console: bool, control: bool) -> None:
        """A line of the opened bench was opened again: the reflex reads or writes the new one."""
        controller, fds = self._opened.controllers.get(side), {}
        link = None if controller is None else controller.link
        if console:
            fds["console"] = self._opened.consoles[side].fileno()
        copy_fd = link.share() if console and isinstance(link, SharedLine) else -1
        if copy_fd >= 0:
            fds["copy"] = copy_fd
        if control and link is not None:
            fds["control"] = link.fileno()
        name = f"{side} console" if console else ""
        message = msgspec.json.encode(NewLine(side=side, console=name, fds=list(fds)))
        try:
            socket.send_fds(self._lines, [message], list(fds.values()))
        except OSError as error:
            raise RigError(f"the reflex takes no line: {error}") from error
        finally:
            if copy_fd >= 0:
                os.close(copy_fd)

    def _start_reflex(self, incident: Incident, rules: RuleSet, trigger_fd: int) -> Child:
        opened = self._opened
        links = {side: one.link for side, one in opened.controllers.items()}
        for side, link in links.items():
            if isinstance(link, SharedLine):
                with incident.console_path(side).open("ab") as record:
                    record.write(link.take_early())
        copies = {
            side: link.share() for side, link in links.items() if isinstance(link, SharedLine)
        }
        config = ReflexConfig(
            streams=[
                StreamConfig(
                    side=side,
                    fd=opened.consoles[side].fileno(),
                    log_path=str(incident.console_path(side)),
                    times_path=str(incident.console_times_path(side)),
                    copy_fd=copies.get(side, -1),
                )
                for side in SIDES
            ],
            control={side: link.fileno() for side, link in links.items()},
            rules=list(rules.console),
            default_instruct=list(opened.bench.instruct),
            trigger_fd=trigger_fd,
            line_fd=self._reflex_lines.fileno(),
        )
        fds = {
            *(stream.fd for stream in config.streams),
            *config.control.values(),
            *copies.values(),
            trigger_fd,
            self._reflex_lines.fileno(),
        }
        stderr_path = opened.run_dir / "reflex.stderr"
        child = Child(
            "reflex",
            "freezeframe.harness.watch.reflex",
            config,
            stderr_path=stderr_path,
            pass_fds=tuple(fds),
        )
        for fd in copies.values():
            os.close(fd)
        self._shared = [link for link in links.values() if isinstance(link, SharedLine)]
        self._children.insert(0, child)
        return child

    def _start_linkwatch(self, incident: Incident, rules: RuleSet, trigger_fd: int) -> None:
        opened = self._opened
        link = opened.bench.link
        config = LinkwatchConfig(
            interface=link.interface,
            namespace=link.namespace or "",
            pcapng_path=str(incident.link_path),
            rules=[
                replace(rule, instruct=opened.bench.instruct) if rule.instruct is None else rule
                for rule in rules.link
            ],
            primary_address=link.primary_address,
            secondary_address=link.secondary_address,
            protocol=link.protocol,
            ports=link.ports,
            integrity_alg=link.integrity_alg,
            trigger_fd=trigger_fd,
            capture=link.capture,
            scapy_socket=registry.find(link.scapy_socket).value if link.scapy_socket else "",
            capture_mib=link.capture_mib,
            before_s=link.before_s,
            after_s=link.after_s,
        )
        stderr_path = opened.run_dir / "linkwatch.stderr"
        self._linkwatch = Child(
            "linkwatch",
            "freezeframe.harness.watch.linkwatch",
            config,
            stderr_path=stderr_path,
            pass_fds=(trigger_fd,),
        )
        self._children.append(self._linkwatch)

    def is_running(self, name: str) -> bool:
        return any(child.name == name and not child.ended for child in self._children)

    def add(self, child: Child) -> None:
        self._children.append(child)

    def await_ready(self) -> None:
        """Return when reflex and linkwatch both watch: before that no write may go out. RigError:
        one did not start."""
        deadline_ns = deadline_in(READY_TIMEOUT_S)
        missing = {child.name for child in self._children}
        others: list[tuple[str, AnyEvent]] = []
        while missing:
            for name, event in self.wait(deadline_ns):
                if isinstance(event, ProcessReady):
                    missing.discard(event.process)
                    self.notes += [
                        f"{event.process}: {note}"
                        for note in event.notes
                        if not note.startswith(MEMORY_NOT_LOCKED)
                    ]
                else:
                    others.append((name, event))
            if time.monotonic_ns() >= deadline_ns:
                raise RigError(
                    f"{' and '.join(sorted(missing))} did not become ready within {READY_TIMEOUT_S:.0f} s"
                )

        self._pending = others

    def arm(
        self,
        frames: Mapping[str, Mapping[Side, bytes]],
        *,
        arming: int = 0,
        seen: int = 0,
        gentle: Collection[str] = (),
        muted: Collection[str] = (),
    ) -> None:
        """``frames[reason][side]``; good for one action. All others: see events.Arm."""
        by_reason = {
            reason: {str(side): frame for side, frame in sides.items()}
            for reason, sides in frames.items()
        }
        self._reflex.send(
            Arm(
                t_ns=time.monotonic_ns(), frames=by_reason, arming=arming, seen=seen,
                gentle=sorted(gentle), muted=sorted(muted),
            )
        )  # fmt: skip

    def freeze(self, t_ns: Ns) -> None:
        """The trigger of that time is the incident's: keep the capture's window around it."""
        self._linkwatch.send(KeepCapture(t_ns=t_ns))

    def expect_stamps(self, seed: int | None) -> None:
        """Our stamped writer, and nobody else, writes to the whole volume from now on; None: its
        writes have ended."""
        now_ns, low = time.monotonic_ns(), (seed or 0) & 0xFFFFFFFF
        sectors = 0 if seed is None else MAX_SECTORS
        self._linkwatch.send(ExpectStamps(t_ns=now_ns, seed=low, sectors=sectors))

    def disarm(self) -> None:
        self._reflex.send(Disarm(t_ns=time.monotonic_ns()))

    def replace_rules(self, rules: RuleSet) -> None:
        """Other console rules, in force from the next byte on; the link's stay."""
        self._rules = rules
        encoded = msgspec.json.encode(list(rules.console))
        self._reflex.send(NewRules(t_ns=time.monotonic_ns(), rules=encoded))

    def wait(self, deadline_ns: Ns, wake_fd: int | None = None) -> list[tuple[str, AnyEvent]]:
        """Events by the name of their process, as soon as there are some; [] at the deadline or
        when woken.

        RigError when a process has ended that nobody asked to.
        """
        if self._pending:
            pending, self._pending = self._pending, []
            return pending
        fds = {child.fileno(): child for child in self._children if not child.ended}
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        if wake_fd is not None:
            poller.register(wake_fd, select.POLLIN)
        left_ms = max(0, (deadline_ns - time.monotonic_ns()) // 1_000_000 + 1)
        received: list[tuple[str, AnyEvent]] = []
        for fd, _ in poller.poll(left_ms):
            child = fds.get(fd)
            if child is None:
                continue
            received += [(child.name, event) for event in child.receive()]
            if child.ended and self._is_standing:
                text, now_ns = str(child.death()), time.monotonic_ns()
                gone = StreamEnded(t_ns=now_ns, stream=f"{child.name} process", error=text)
                received.append((child.name, gone))
                self._children.remove(child)
            elif child.ended and child.name != "workload":
                self._note_link(received)
                self._pending = received  # what was said before is taken by the next call
                raise child.death()
        self._note_link(received)
        return received

    def _note_link(self, received: list[tuple[str, AnyEvent]]) -> None:
        for _, event in received:
            if isinstance(event, LinkStats):
                self.link = event

    def stop(self) -> list[tuple[str, AnyEvent]]:
        """End all children in order (the writer, the link, the reflex) and return what they still
        had to say.

        A watcher that does not end by itself has not watched to the end: that is reported as an error.
        """
        last, self._pending = self._pending, []
        for child in reversed(self._children):
            deadline_ns = time.monotonic_ns() + int(STOP_TIMEOUT_S * NS_PER_S)
            last += [(child.name, event) for event in child.stop(deadline_ns)]
            # 1 is how the writer ends when the host port failed, which it has reported.
            if child.exit_status not in ((0, 1) if child.name == "workload" else (0,)):
                text = f"{child.name} process did not end in order (status {child.exit_status}): it was blind at the end"
                last.append(
                    (
                        child.name,
                        Note(t_ns=time.monotonic_ns(), source=child.name, text=text, level="error"),
                    )
                )
        self._note_link(last)
        self._end()
        for line in self._shared:
            line.unshare()
        return last

    def kill(self) -> None:
        for child in self._children:
            with contextlib.suppress(Exception):
                child.kill_if_running()
        self._end()

    def _end(self) -> None:
        self._children.clear()
        for one in (self._lines, self._reflex_lines):
            one.close()
        for fd in (self._trigger_read, self._trigger_write):
            with contextlib.suppress(OSError):  # ended twice
                os.close(fd)
        self._trigger_read = self._trigger_write = -1
