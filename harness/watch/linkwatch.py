"""The link's process, ``python -m freezeframe.harness.watch.linkwatch``: frames of a source
(``edge.frame_source``) -> capture file, then -> ledger and triggers.

Its configuration is one JSON line on stdin (LinkwatchConfig). After it events are received on
stdin (Stop, or the end of stdin, ends the process) and sent on ``event_fd``. A trigger is sent to
``trigger_fd``, where the reflex polls, and to the supervisor. Every block of frames is written to
disk before it is interpreted. An error during interpretation never stops the recording: it is
reported once, and only the recording continues.

Exit status 0, or that of the RigError or UsageError whose text is on stderr.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.events import (
    NS_PER_MS,
    NS_PER_S,
    Event,
    ExpectStamps,
    KeepCapture,
    LinkStats,
    Note,
    Ns,
    ProcessReady,
    Record,
    Recorded,
    Stop,
    StreamEnded,
    Trigger,
)
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.link.stampwatch import SoleWriter
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.edge.capture_ring import Bounds, CaptureRing
from freezeframe.harness.edge.frame_source import FrameSource, open_source
from freezeframe.harness.edge.packet_ring import InterfaceGone
from freezeframe.harness.edge.pcapng import PcapngWriter
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.wire import drbd

STATS_INTERVAL_NS: Final = NS_PER_S // 4
MAX_WAIT_MS: Final = 250
"""Maximum sleep: the counters are reported four times per second."""
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_QUEUED_BYTES: Final = 4 << 20
"""Limit of events queued for a slow reader. From half of it counters are dropped, at the limit
everything. Triggers also have a pipe of their own to the reflex."""
NICE: Final = -10
"""Real-time priority, where allowed: frames that the ring cannot hold are lost, while other
processes of this machine only wait."""
BLOCKS_A_TURN: Final = 64
"""Read before stdin is looked at again."""
LAST_S: Final = 5.0
"""After Stop, what was captured before it is still read, for so long at most."""
LAST_WAIT_S: Final = 0.1
"""Wait after Stop for the block that the kernel is filling. A timer hands it over, late on a
loaded machine."""
_READ_BYTES: Final = 64 << 10


class LinkwatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    interface: str
    pcapng_path: str
    trigger_fd: int
    """Inherited pipe to the reflex; -1: none."""
    namespace: str = ""
    """Path of the network namespace that the interface is in; "": this process's."""
    capture: Literal["ring", "scapy"] = "ring"
    """Who reads the frames: we the kernel's ring, or scapy."""
    scapy_socket: str = ""
    """MODULE:ATTRIBUTE of what makes the scapy socket; "": the ring's."""
    ring_mib: int = 64
    rules: list[LinkRule] = []
    primary_address: str = ""
    secondary_address: str = ""
    protocol: str = byname.USUAL
    ports: list[int] = msgspec.field(default_factory=lambda: [drbd.PORT])
    """TCP ports of the replication link; empty: any, recognised by the first bytes."""
    integrity_alg: str = ""
    """Digest algorithm to assume if the capture does not contain the handshake."""
    event_fd: int = 1
    capture_mib: int = 1024
    """Limit of the capture on disk: half for the newest frames before a trigger, half for frames
    after it."""
    before_s: float = 600.0
    """Window before the trigger; shorter if the limit is reached."""
    after_s: float = 600.0
    """Maximum window after the trigger: Stop comes when the recovery has ended."""


class _Outbox:
    """Queue of events for one descriptor. It never blocks the capture."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._queue = bytearray()
        self.broken = fd < 0
        if fd >= 0:
            os.set_blocking(fd, False)

    @property
    def waiting(self) -> bool:
        return bool(self._queue) and not self.broken

    def put(self, event: Event) -> None:
        limit = MAX_QUEUED_BYTES // 2 if isinstance(event, LinkStats) else MAX_QUEUED_BYTES
        if not self.broken and len(self._queue) < limit:
            self._queue += events.encode(event)
            self.flush()

    def flush(self) -> None:
        while self.waiting:
            try:
                written = os.write(self.fd, self._queue)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True  # the reader has exited; the supervisor notices that itself
                return
            del self._queue[:written]

    def finish(self, deadline_ns: Ns) -> None:
        """Wait until the reader has taken the rest, or until the deadline."""
        while self.waiting and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            select.select([], [self.fd], [], left_ns / NS_PER_S)
            self.flush()


class Linkwatch:
    """One run of the process."""

    def __init__(self, config: LinkwatchConfig) -> None:
        self._config = config
        ends = LinkEnds(
            primary_address=config.primary_address,
            secondary_address=config.secondary_address,
            protocol=config.protocol,
            ports=frozenset(config.ports),
            integrity_alg=config.integrity_alg,
        )
        self._view: LinkView | None = LinkView(ends, config.rules)
        self._last_view = self._view
        self._source: FrameSource = open_source(
            config.capture,
            config.interface,
            namespace=config.namespace or None,
            ring_bytes=config.ring_mib << 20,
            scapy_socket=config.scapy_socket,
        )
        try:
            self._disk = self._new_ring(Path(config.pcapng_path), 1)
        except BaseException:
            self._source.close()
            raise
        self._events = _Outbox(config.event_fd)
        self._triggers = _Outbox(config.trigger_fd)
        self._inbox = events.Decoder()
        self._packets = self._bytes = self._drops = self._clock_steps = 0
        self._stats_due_ns: Ns = 0
        self._disk_told = False
        self._stopping = False
        self._start_realtime_ns = time.time_ns()

    def _new_ring(self, path: Path, first_no: int) -> CaptureRing:
        config = self._config
        bounds = Bounds(
            max_bytes=config.capture_mib << 20,
            before_ns=int(config.before_s * NS_PER_S),
            after_ns=int(config.after_s * NS_PER_S),
        )
        return CaptureRing(path, self._new_file, bounds, first_no)

    def _record_into(self, path: Path) -> None:
        """What was captured until now stays where it is; the next frame is the first one of
        ``path``. What is understood of the connections goes on."""
        self._drain()
        try:
            fresh = self._new_ring(path, self._packets + 1)
        except RigError as error:
            self._note(f"the link is recorded where it was: {error}")
        else:
            self._close_disk()
            self._disk, self._disk_told = fresh, False
            self._start_realtime_ns = time.time_ns()
        self._events.put(Recorded(t_ns=time.monotonic_ns()))

    def _close_disk(self) -> None:
        statistics = self._source.statistics()
        self._disk.close(
            start_ns=self._start_realtime_ns,
            end_ns=time.time_ns(),
            frames_received=statistics.received,
            frames_dropped=statistics.dropped,
        )
        self._tell_stats(final=True)

    def _new_file(self, path: Path, comment: str) -> PcapngWriter:
        return PcapngWriter(
            path,
            interface=self._config.interface,
            snaplen_bytes=0,
            hardware=platform.machine(),
            system=platform.platform(),
            application="FreezeFrame linkwatch",
            comment=comment,
        )

    def run(self, stdin_fd: int, early: bytes) -> None:
        """Watch until Stop, the end of stdin, SIGTERM, or the end of the interface. ``early``:
        bytes that were read together with the configuration line."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor handles Ctrl-C
        self._take(early)
        poller = select.poll()
        poller.register(stdin_fd, select.POLLIN)
        poller.register(self._source, select.POLLIN | select.POLLERR)
        notes = list(self._source.notes)
        self._events.put(ProcessReady(t_ns=time.monotonic_ns(), process="linkwatch", notes=notes))
        try:
            while not self._stopping:
                for outbox in (self._events, self._triggers):
                    outbox.flush()
                for fd, _ in poller.poll(self._wait_ms()):
                    if fd == stdin_fd:
                        self._take(os.read(stdin_fd, _READ_BYTES) or None)
                self._drain()
                self._tell_stats()
            self._drain_rest()
        except InterfaceGone as error:
            self._events.put(StreamEnded(t_ns=time.monotonic_ns(), stream="link", error=str(error)))
        finally:
            self._finish()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _take(self, data: bytes | None) -> None:
        """Handle bytes from the supervisor; None: the end of its pipe."""
        if data is None:
            self._stopping = True
            return
        for event in self._inbox.feed(data):
            if isinstance(event, Stop):
                self._stopping = True
            elif isinstance(event, KeepCapture):
                self._disk.freeze(event.t_ns)
            elif isinstance(event, Record):
                self._record_into(Path(event.paths["link"][0]))
            elif isinstance(event, ExpectStamps) and self._view is not None:
                writer = SoleWriter(event.volume, event.seed, event.first_lba, event.sectors)
                self._view.expect_stamps(writer if event.sectors else None)

    def _wait_ms(self) -> int:
        """Return the time until the next deadline of the rules or the next report of counters."""
        now_ns = time.monotonic_ns()
        deadlines = [self._stats_due_ns]
        if self._view is not None and (due_ns := self._view.next_deadline()) is not None:
            deadlines.append(due_ns)
        wait_ms = (min(deadlines) - now_ns) // NS_PER_MS + 1
        return max(1 if self._events.waiting else 0, min(MAX_WAIT_MS, wait_ms))

    def _drain(self) -> None:
        """Read what is there, some blocks at most; judge the silence when nothing is left."""
        for _ in range(BLOCKS_A_TURN):
            asked_ns = time.monotonic_ns()
            run = self._source.read_run()
            if run is None:
                break
            self._run(run)
        else:
            return  # not empty yet: silence proves nothing
        self._judge_silence(asked_ns)

    def _drain_rest(self) -> None:
        """Read what was captured before this call."""
        began_realtime_ns = time.time_ns()
        deadline_ns = time.monotonic_ns() + int(LAST_S * NS_PER_S)
        while (asked_ns := time.monotonic_ns()) < deadline_ns:
            run = self._source.read_run(LAST_WAIT_S)
            if run is not None:
                self._run(run)
                if run.t_first_ns > began_realtime_ns:
                    break
            elif self._source.is_drained():
                break
        else:
            self._note(f"the frames captured last were not all read within {LAST_S:g} s")
        self._judge_silence(asked_ns)

    def _judge_silence(self, asked_ns: Ns) -> None:
        """Nothing came when the source was asked at that time."""
        self._notice_drops()
        if self._view is not None and self._source.is_drained():
            self._understand(None, now_ns=asked_ns)

    def _run(self, run: Run) -> None:
        """Record the frames of one block, then interpret them."""
        disk = self._disk
        disk.write(run, time.monotonic_ns())
        if (disk.full or disk.is_complete) and not self._disk_told:
            self._disk_told = True
            if disk.full:
                self._note(f"frames are no longer recorded in {disk.path}: {disk.full}")
            else:
                self._note(f"{disk.path}: the window behind the trigger is complete", "info")
        if self._source.has_lost or self._source.clock_steps != self._clock_steps:
            self._notice_drops()
        first = self._packets + 1
        self._packets += run.frames
        self._bytes += run.bytes_captured
        if self._view is not None:
            self._understand(run, first)

    def _notice_drops(self) -> None:
        """Tell the understanding part before it concludes anything from what it does not see."""
        source, now_ns = self._source, time.monotonic_ns()
        drops, steps = source.statistics().dropped, source.clock_steps
        if (drops, steps) != (self._drops, self._clock_steps) and self._view is not None:
            # Timestamps follow the clock that was set, so the delay of an answer is unknown too.
            try:
                self._view.frames_lost(now_ns)
            except Exception as error:  # noqa: BLE001  (as in _understand)
                self._understand_no_more(error)
        if steps != self._clock_steps:
            self._note(
                "this machine's clock was set: timestamps in the capture are partly from before and partly from after that",
                "info",
            )
        self._drops, self._clock_steps = drops, steps

    def _understand(self, run: Run | None, first: int = 0, now_ns: Ns = 0) -> None:
        """Feed the frames, or with None judge the silence until ``now_ns``. A fault of ours in here
        must not end the recording."""
        assert self._view is not None
        view, clock = self._view, time.monotonic_ns
        try:
            if run is None:
                self._trigger(view.tick(now_ns))
                return
            for t_ns, frame, number in view.frames(
                run.data, first, self._source.realtime_offset_ns
            ):
                found = view.feed(t_ns, frame, number, clock())
                if found:
                    self._trigger(found)
        except Exception as error:  # noqa: BLE001  (the recording continues after any error)
            self._understand_no_more(error)

    def _understand_no_more(self, error: Exception) -> None:
        self._view = None
        self._note(
            f"the link is still recorded but no longer watched: {type(error).__name__}: {error}"
        )

    def _trigger(self, triggers: list[Trigger]) -> None:
        for found in triggers:
            # Numbered as in the final file: old segments may have been removed.
            trigger = msgspec.structs.replace(
                found, offset_bytes=self._disk.number(found.offset_bytes)
            )
            self._triggers.put(trigger)
            self._events.put(trigger)
        if triggers:
            self._disk.pin(time.monotonic_ns())

    def _note(self, text: str, level: Literal["info", "error"] = "error") -> None:
        self._events.put(Note(t_ns=time.monotonic_ns(), source="linkwatch", text=text, level=level))

    def _tell_stats(self, *, final: bool = False) -> None:
        now_ns = time.monotonic_ns()
        if now_ns < self._stats_due_ns and not final:
            return
        self._stats_due_ns = now_ns + STATS_INTERVAL_NS
        self._notice_drops()
        counts = {
            "packets": self._packets,
            "bytes_captured": self._bytes,
            "kernel_drops": self._drops,
        }
        stats = self._last_view.stats(t_ns=now_ns, **counts)
        disk = self._disk
        self._events.put(
            msgspec.structs.replace(
                stats,
                frames_stored=disk.frames_stored,
                first_packet_no=disk.first_no,
                down=self._source.down(),
            )
        )

    def _finish(self) -> None:
        self._notice_drops()
        if self._view is not None:
            with contextlib.suppress(Exception):
                self._trigger(self._view.close(time.monotonic_ns()))
        self._close_disk()
        deadline_ns = time.monotonic_ns() + NS_PER_S
        self._triggers.finish(deadline_ns)
        self._events.finish(deadline_ns)
        self._source.close()


def read_config(stdin_fd: int) -> tuple[LinkwatchConfig, bytes]:
    """Read the configuration line; return it and the bytes read after it. Raises UsageError."""
    data = b""
    while b"\n" not in data:
        more = os.read(stdin_fd, _READ_BYTES)
        if not more or len(data) > MAX_CONFIG_BYTES:
            raise UsageError("linkwatch: the first line on stdin is not a configuration")
        data += more
    line, early = data.split(b"\n", 1)
    try:
        return msgspec.json.decode(line, type=LinkwatchConfig), early
    except msgspec.DecodeError as error:
        raise UsageError(f"linkwatch: wrong configuration: {error}") from error


def main() -> int:
    stdin_fd = sys.stdin.fileno()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    try:
        config, early = read_config(stdin_fd)
        Linkwatch(config).run(stdin_fd, early)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
