"""The workload process ``python -m freezeframe.drivers.hosts.writer``: a stamped writer with an
intent/ack journal on disk. The address decides between NBD and a block device.

Standard input: one JSON line (``WriterConfig``), then encoded events; ``Stop`` or the end of the
stream ends it cleanly. Output: ProcessReady, WorkloadProgress, Note, WorkloadDone. Exit status 0
when WorkloadDone is ok, 1 when not, 2 on a wrong configuration. Each intent is in the journal
before its write is sent, each ack after its reply; flushes and lost connections are recorded too.
So the journal contains what was promised even if this process is killed.
"""

import os
import select
import sys
import time
from typing import Any, Final

import msgspec

from freezeframe.drivers.hosts import blockdev
from freezeframe.drivers.hosts.nbd import NbdConnection, error_name
from freezeframe.drivers.hosts.workload import InFlight, WriteGenerator, WriterConfig
from freezeframe.harness.core import events
from freezeframe.harness.core.blocks import blockstamp
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

MAX_CONFIG_BYTES: Final = 64 << 10
READ_BYTES: Final = 64 << 10
CONNECT_TIMEOUT_S: Final = 2.0
"""Timeout of one reconnect attempt. The first connect may take reconnect_limit_s."""
BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Pauses between reconnect attempts; the last one repeats."""
PROGRESS_NS: Final = 100 * NS_PER_MS
HEARTBEAT_NS: Final = NS_PER_S
"""Maximum interval of progress events, also without progress. A longer silence means that the
workload does not run."""


class Stopped(HarnessError):
    """The time allowed after Stop has passed."""


class RigTrouble(RigError):
    """A failure of the bench, not of the host port."""


Connection = NbdConnection | blockdev.BlockDeviceConnection


def connect(uri: str, timeout_s: float) -> Connection:
    """Open the volume at ``uri`` for requests."""
    if uri.startswith(f"{blockdev.SCHEME}:"):
        return blockdev.BlockDeviceConnection(uri)
    return NbdConnection(uri, timeout_s=timeout_s)


def check_write_bytes(config: WriterConfig, connection: Connection) -> None:
    """Raise UsageError if the host port does not support the configured writes."""
    if config.write_bytes > connection.max_request_bytes:
        raise UsageError(
            f"workload: write_bytes: at most {connection.max_request_bytes} on this host port"
        )
    if config.write_bytes % connection.block_bytes:
        raise UsageError(
            f"workload: write_bytes: a multiple of {connection.block_bytes} on this host port"
        )


class WorkloadInput:
    """Standard input: the configuration line, then events."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._decoder = events.Decoder()
        self._rest = b""

    def config(self) -> WriterConfig:
        """Read the first line. Raises UsageError."""
        line = b""
        while b"\n" not in line:
            data = os.read(self.fd, READ_BYTES)
            line += data
            if not data or len(line) > MAX_CONFIG_BYTES:
                raise UsageError(
                    "workload: standard input does not start with a configuration line"
                )
        line, _, self._rest = line.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=WriterConfig)
        except msgspec.MsgspecError as error:
            raise UsageError(f"workload: wrong configuration: {error}") from error

    def stop_asked(self) -> bool:
        """Read available events; call it when the descriptor is readable. Returns True at Stop, at
        the end, and on invalid data."""
        data, self._rest = self._rest or os.read(self.fd, READ_BYTES), b""
        self.ended = not data
        try:
            return self.ended or any(
                isinstance(event, events.Stop) for event in self._decoder.feed(data)
            )
        except (ValueError, msgspec.MsgspecError):
            self.ended = True
            return True

    @property
    def has_rest(self) -> bool:
        return bool(self._rest)


class Outbox:
    """The event pipe. If its reader exits, the workload continues: the journal is what counts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.broken = False

    def tell(self, event: events.Event) -> None:
        data = memoryview(events.encode(event))
        try:
            while data and not self.broken:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            self.broken = True


class JournalFile:
    """The journal on disk. All records of one round are written at once."""

    def __init__(self, path: str, header: bytes) -> None:
        try:
            self._fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise RigTrouble(f"write journal {path}: {error.strerror}") from error
        self._path = path
        self.append(header)

    def append(self, records: bytes) -> None:
        view = memoryview(records)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise RigTrouble(f"write journal {self._path}: {error.strerror}") from error


class Writer:
    """One run of the workload."""

    def __init__(self, config: WriterConfig, inbox: WorkloadInput, outbox: Outbox) -> None:
        self._config = config
        self._inbox = inbox
        self._outbox = outbox
        self._connection = connect(config.uri, max(config.reconnect_limit_s, CONNECT_TIMEOUT_S))
        if self._connection.read_only:
            raise RigError(f"host port {config.uri} is read-only: is this the primary?")
        check_write_bytes(config, self._connection)
        self.workload = WriteGenerator(config, self._connection.size_bytes)
        span = (self.workload.first_lba, self.workload.span_sectors)
        self._journal = JournalFile(
            config.journal_path, blockstamp.journal_header(config.volume, config.seed, *span)
        )
        self._cookies: dict[int, int] = {}
        # Cookie of the FLUSH at the end: 0 = not sent.
        self._flush_cookie = 0
        self._flushed = False
        self._stop_ns: Ns | None = None
        self._reconnects = 0
        self._told_ns: Ns = 0
        self._told_acked = 0

    def run(self) -> None:
        """Write everything and flush; stop when asked. Raises RigError when the bench or the
        device fails."""
        self._outbox.tell(events.ProcessReady(t_ns=time.monotonic_ns(), process="workload"))
        self._told_ns = time.monotonic_ns()
        try:
            while not self._flushed:
                self._round()
        finally:
            self._progress(time.monotonic_ns(), at_once=True)
            self._connection.close()

    # --- one round ----------------------------------------------------------------------------------------

    def _round(self) -> None:
        now_ns = time.monotonic_ns()
        self._check_stop_limit(now_ns)
        self._send_new(now_ns)
        if self.workload.all_sent and not self.workload.in_flight and not self._flush_cookie:
            self._flush_cookie = self._connection.submit("flush")
        self._wait(now_ns)
        try:
            completions = self._connection.pump(0)
        except RigError as lost:
            self._reconnect(lost)
            return
        now_ns = time.monotonic_ns()
        acks = []
        for completion in completions:
            if completion.error:
                what = f"write {self._cookies.get(completion.cookie, '(flush)')} failed"
                raise RigError(
                    f"host port {self._config.uri}: {what}: {error_name(completion.error)}"
                )
            if completion.cookie == self._flush_cookie:
                self._flushed = True
                acks.append(blockstamp.journal_mark(blockstamp.FLUSHED, now_ns))
                continue
            write = self.workload.acknowledge(self._cookies.pop(completion.cookie), now_ns)
            acks.append(blockstamp.journal_record(blockstamp.ACK, write, now_ns))
        if acks:
            self._journal.append(b"".join(acks))
            self._progress(now_ns)

    def _send_new(self, now_ns: Ns) -> None:
        fresh: list[InFlight] = []
        while (flight := self.workload.next_write(now_ns)) is not None:
            fresh.append(flight)
        if fresh:
            records = [
                blockstamp.journal_record(blockstamp.INTENT, f.write, f.write.time_ns)
                for f in fresh
            ]
            self._journal.append(b"".join(records))
            for flight in fresh:
                self._submit(flight)

    def _submit(self, flight: InFlight) -> None:
        offset_bytes = flight.write.lba * SECTOR_BYTES
        cookie = self._connection.submit("write", offset_bytes, data=flight.data)
        self._cookies[cookie] = flight.write.write_id

    def _wait(self, now_ns: Ns) -> None:
        """Wait until the host port, the supervisor or a timer needs service."""
        poller = select.poll()
        poller.register(
            self._connection,
            select.POLLIN | (select.POLLOUT if self._connection.wants_write else 0),
        )
        self._poll(poller, self._sleep_ms(now_ns))

    def _sleep_ms(self, now_ns: Ns) -> float:
        wake: list[Ns] = []
        if (allowed_ns := self.workload.next_deadline(now_ns)) is not None:
            wake.append(allowed_ns)
        if self._stop_ns is not None:
            wake.append(self._stop_ns)
        changed = self.workload.acked != self._told_acked
        wake.append(self._told_ns + (PROGRESS_NS if changed else HEARTBEAT_NS))
        return max(0.0, (min(wake) - now_ns) / NS_PER_MS)

    def _poll(self, poller: "select.poll", timeout_ms: float) -> None:
        """Wait with ``poller``, and for the supervisor."""
        if not self._inbox.ended:
            poller.register(self._inbox.fd, select.POLLIN)
        ready = dict(poller.poll(0 if self._inbox.has_rest else timeout_ms))
        if (self._inbox.fd in ready or self._inbox.has_rest) and self._inbox.stop_asked():
            self._stop()
        if self._outbox.broken:
            self._stop()
        self._progress(time.monotonic_ns())

    def _stop(self) -> None:
        self.workload.stopped = True
        if self._stop_ns is None:
            self._stop_ns = time.monotonic_ns() + int(self._config.stop_limit_s * NS_PER_S)

    def _check_stop_limit(self, now_ns: Ns) -> None:
        if self._stop_ns is not None and now_ns >= self._stop_ns:
            waiting = len(self.workload.in_flight)
            raise Stopped(
                f"{waiting} writes not acknowledged {self._config.stop_limit_s:g} s after Stop"
            )

    def _progress(self, now_ns: Ns, *, at_once: bool = False) -> None:
        changed = self.workload.acked != self._told_acked
        if at_once or now_ns - self._told_ns >= (PROGRESS_NS if changed else HEARTBEAT_NS):
            self._told_ns = now_ns
            self._told_acked = self.workload.acked
            self._outbox.tell(
                events.WorkloadProgress(
                    t_ns=now_ns,
                    bytes_written=self.workload.bytes_acked,
                    bytes_total=self._config.bytes_total,
                    writes_acked=self.workload.acked,
                    reconnects=self._reconnects,
                )
            )

    # --- a lost host port ---------------------------------------------------------------------------------

    def _reconnect(self, lost: RigError) -> None:
        """Connect again and resend the writes without an answer. Raises RigError when the port
        stays away too long."""
        self._connection.close()
        self._journal.append(blockstamp.journal_mark(blockstamp.DISCONNECTED, time.monotonic_ns()))
        self._cookies.clear()
        self._flush_cookie = 0
        self._note(f"connection lost: {lost}")
        limit_s = time.monotonic() + self._config.reconnect_limit_s
        attempt = 0
        while True:
            try:
                self._connection = connect(self._config.uri, CONNECT_TIMEOUT_S)
                break
            except RigError as error:
                if time.monotonic() >= limit_s:
                    away = f"host port unavailable for {self._config.reconnect_limit_s:g} s"
                    raise RigError(f"{away}: {error}") from error
                self._check_stop_limit(time.monotonic_ns())
                self._poll(select.poll(), BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * 1000)
                attempt += 1
        self._reconnects += 1
        self._note(f"connected again; {len(self.workload.in_flight)} writes are resent")
        for flight in self.workload.in_flight.values():
            self._submit(flight)

    def _note(self, text: str) -> None:
        self._outbox.tell(
            events.Note(t_ns=time.monotonic_ns(), source="workload", text=text, level="warning")
        )


def end_of(outbox: Outbox, error: HarnessError | None, **done_fields: Any) -> int:
    """Report how the workload ended; return the exit status of the process."""
    whose: events.Whose = "device"
    if error is not None:
        whose = (
            "caller"
            if isinstance(error, UsageError)
            else "rig"
            if isinstance(error, RigTrouble)
            else "device"
        )
        print(f"workload: {error}", file=sys.stderr)
    outbox.tell(
        events.WorkloadDone(
            t_ns=time.monotonic_ns(),
            ok=error is None,
            error="" if error is None else str(error),
            whose=whose if error is not None else "",
            **done_fields,
        )
    )
    return 0 if error is None else 2 if whose == "caller" else 1


def main() -> int:
    inbox, outbox, writer = WorkloadInput(0), Outbox(1), None
    error: HarnessError | None = None
    try:
        config = inbox.config()
        outbox = Outbox(config.event_fd)
        writer = Writer(config, inbox, outbox)
        writer.run()
    except HarnessError as failure:
        error = failure
    workload = writer.workload if writer is not None else None
    return end_of(
        outbox,
        error,
        writes_acked=workload.acked if workload else 0,
        bytes_written=workload.bytes_acked if workload else 0,
        longest_hold_ns=workload.longest_hold_ns(time.monotonic_ns()) if workload else 0,
    )


if __name__ == "__main__":
    sys.exit(main())
