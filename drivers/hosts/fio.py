"""The workload process ``drivers.hosts.fio``: fio writes data, then reads and verifies all of it.

It has the same interface as ``writer.py``. fio stamps each of its blocks with a CRC-32C and keeps
no journal: only its own verification shows whether promised data is present. Over NBD it uses its
nbd engine, for a block device libaio with O_DIRECT, for a file psync.

A volume is written in segments: after the host port was disconnected, fio starts again after the
data that was certainly acknowledged.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from freezeframe.drivers.hosts import blockdev
from freezeframe.drivers.hosts.workload import WriterConfig
from freezeframe.drivers.hosts.writer import (
    BACKOFF_S,
    CONNECT_TIMEOUT_S,
    HEARTBEAT_NS,
    Outbox,
    RigTrouble,
    Stopped,
    WorkloadInput,
    check_write_bytes,
    connect,
    end_of,
)
from freezeframe.harness.core import events
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import HarnessError, RigError, UsageError

JOB: Final = "freezeframe"
EILSEQ: Final = 84
"""Errors by which fio reports a block with other data than it wrote."""
MAX_REPORT_BYTES: Final = 16 << 20
"""Interval of the status reports of fio."""
MAX_STDERR_BYTES: Final = 1 << 20
MAX_WRONG: Final = 100
"""Maximum number of wrong ranges listed; all are counted."""
ENGINE_TIMEOUT_S: Final = 20.0
"""Timeout for asking fio whether it has an engine; it takes milliseconds."""
MAX_FRUITLESS: Final = 3
"""Consecutive attempts without progress, after which the fault is not the connection."""
_WRONG: Final = re.compile(
    r"^(?:verify|crc32c|meta): (.{1,200}?) at file .{0,400}? offset (\d{1,18}), length (\d{1,12})",
    re.M,
)
_PR_SET_PDEATHSIG: Final = 1


class Fio:
    """Implements ``roles.HostWorkload``."""

    @staticmethod
    def workload_module() -> str:
        return "freezeframe.drivers.hosts.fio"

    @staticmethod
    def keeps_journal() -> bool:
        return False

    @staticmethod
    def programs() -> tuple[str, ...]:
        return ("fio",)


@dataclass
class Report:
    """The result of one fio run."""

    status: int
    job: Mapping[str, Any]
    """The job of its newest JSON report; {}: there was none."""
    stderr: str

    @property
    def error(self) -> int:
        return int(self.job.get("error") or 0)

    def count(self, direction: str, name: str) -> int:
        return int((self.job.get(direction) or {}).get(name) or 0)


@dataclass
class Reports:
    """Parses the output of fio: JSON objects, one after the other."""

    job: Mapping[str, Any] = field(default_factory=dict)
    _text: str = ""

    def feed(self, data: bytes) -> bool:
        """Add output. Returns whether a report was completed."""
        self._text += data.decode("utf-8", "replace")
        if len(self._text) > MAX_REPORT_BYTES:
            raise RigTrouble("fio: incomplete report")
        found = False
        while (start := self._text.find("{")) >= 0:
            try:
                report, end = json.JSONDecoder().raw_decode(self._text, start)
            except ValueError:
                break
            self._text = self._text[end:]
            if isinstance(report, dict) and report.get("jobs"):
                self.job, found = report["jobs"][0], True
        return found


class FioRun:
    """One run of the workload."""

    def __init__(self, config: WriterConfig, inbox: WorkloadInput, outbox: Outbox) -> None:
        self._config = config
        self._inbox = inbox
        self._outbox = outbox
        program = shutil.which("fio")
        if program is None:
            raise RigTrouble(
                "fio is not installed on this machine: apt install fio, or another [workload] driver"
            )
        self._program = program
        self._check_engine()
        connection = connect(config.uri, max(config.reconnect_limit_s, CONNECT_TIMEOUT_S))
        self._size_bytes = connection.size_bytes // config.write_bytes * config.write_bytes
        read_only = connection.read_only
        connection.close()
        check_write_bytes(config, connection)
        if read_only:
            raise RigError(f"host port {config.uri} is read-only: is this the primary?")
        if not self._size_bytes:
            raise UsageError(
                f"workload: write_bytes: at most {connection.size_bytes}, the volume's size"
            )
        self.acked = 0
        self.longest_hold_ns: Ns = 0
        self.verified_bytes = 0
        self.wrong: list[events.WrongRead] = []
        self.wrong_total = 0
        self._reports: list[Mapping[str, Any]] = []
        self._reconnects = 0
        self._told = (0, 0)
        self._moved_ns = time.monotonic_ns()
        """Time at which fio last reported more acknowledged writes."""

    @property
    def bytes_acked(self) -> int:
        return self.acked * self._config.write_bytes

    def run(self) -> None:
        """Write everything and read it back, one pass over the volume after the other. Raises
        RigError: the device fails."""
        self._outbox.tell(events.ProcessReady(t_ns=time.monotonic_ns(), process="workload"))
        left_bytes = self._config.bytes_total
        try:
            while left_bytes:
                length = min(left_bytes, self._size_bytes)
                for start, end in self._write(length):
                    self._verify(start, end)
                left_bytes -= length
        finally:
            self._keep_reports()

    def _write(self, length_bytes: int) -> list[tuple[int, int]]:
        """Write the first bytes of the volume; return the segments, each written by one fio run."""
        segments: list[tuple[int, int]] = []
        at = fruitless = 0
        while at < length_bytes:
            before = self.acked
            report = self._fio("write", at, length_bytes, ["--do_verify=0", "--end_fsync=1"])
            done = report.count("write", "total_ios")
            self.acked = before + done
            self.longest_hold_ns = max(self.longest_hold_ns, _longest_ns(report.job))
            if not report.status and not report.error:
                segments.append((at, length_bytes))
                return segments
            # fio also counts failed requests, and some successful ones may be after these.
            sure = max(0, done - 2 * self._config.queue_depth)
            self.acked = before + sure
            fruitless = 0 if sure else fruitless + 1
            if sure:
                segments.append((at, at + sure * self._config.write_bytes))
                at = segments[-1][1]
            self._await_port(report, fruitless)
            # fio does not count the writes that it gave up; their wait is known to the second of
            # its reports.
            self.longest_hold_ns = max(self.longest_hold_ns, time.monotonic_ns() - self._moved_ns)
        return segments

    def _verify(self, start: int, end: int) -> None:
        """Verify a segment with fio. Wrong data is a result; the rest is still read."""
        fruitless = 0
        options = ["--verify_only", "--verify_fatal=0", "--continue_on_error=verify"]
        while True:
            report = self._fio("verify", start, end, options)
            if report.error == EILSEQ or (not report.status and not report.error):
                break
            fruitless += 1
            self._await_port(report, fruitless)
        self.verified_bytes += report.count("read", "io_bytes")
        if report.error == EILSEQ:
            self.wrong_total += max(1, int(report.job.get("total_err") or 0))
            for what, offset, length in _WRONG.findall(report.stderr)[
                : MAX_WRONG - len(self.wrong)
            ]:
                self.wrong.append(
                    events.WrongRead(
                        offset_bytes=int(offset), size_bytes=int(length), text=escape(what)
                    )
                )

    def _await_port(self, report: Report, fruitless: int) -> None:
        """After fio failed, wait until the host port answers again. Raises RigError: it does not,
        or the cause is another one."""
        said = (report.stderr.strip().splitlines() or ["no message"])[-1]
        reason = (
            f"fio ended with status {report.status}, error {report.error}: {escape(said[:300])}"
        )
        self._note(reason)
        if fruitless >= MAX_FRUITLESS:
            raise RigError(f"host port {self._config.uri}: {reason}")
        limit_s = time.monotonic() + self._config.reconnect_limit_s
        attempt = 0
        while True:
            try:
                connect(self._config.uri, CONNECT_TIMEOUT_S).close()
                break
            except RigError as error:
                if time.monotonic() >= limit_s:
                    away = f"host port unavailable for {self._config.reconnect_limit_s:g} s"
                    raise RigError(f"{away}: {error}") from error
            self._progress(self.acked)
            self._wait_for_stop(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1
        self._reconnects += 1

    # --- one run of fio --------------------------------------------------------------------------------------------
    def _fio(self, purpose: str, start: int, end: int, options: list[str]) -> Report:
        """Run fio over bytes ``start`` to ``end`` of the volume. Stopped: the supervisor asked for
        the end."""
        command = [
            self._program, f"--name={JOB}", *self._target(), "--thread", "--rw=write",
            f"--bs={self._config.write_bytes}", f"--iodepth={self._config.queue_depth}",
            f"--offset={start}", f"--size={end - start}", "--verify=crc32c",
            f"--randseed={self._config.seed & 0xFFFFFFFF}", "--allrandrepeat=1", "--verify_state_save=0", *options,
            "--eta=never", "--status-interval=1", "--output-format=json",
        ]  # fmt: skip
        reports, before = Reports(), self.acked
        with contextlib.ExitStack() as held:
            stderr = held.enter_context(tempfile.TemporaryFile())
            if self._is_blockdev:
                # fio itself opens a disk for nobody's exclusive use: meanwhile it is ours, and
                # nobody can mount it.
                held.callback(blockdev.BlockDeviceConnection(self._config.uri).close)
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, preexec_fn=_die_with_us
            )  # fmt: skip
            try:
                self._follow(child, reports, before if purpose == "write" else None)
            finally:
                if child.poll() is None:
                    child.kill()
                status = child.wait()
            stderr.seek(0)
            said = stderr.read(MAX_STDERR_BYTES).decode("utf-8", "replace")
        self._reports.append({"purpose": purpose, "status": status, "job": reports.job})
        if status < 0:
            raise RigTrouble(
                f"fio was ended by signal {-status}: by a person, or is this machine short of memory?"
            )
        return Report(status, reports.job, said)

    def _check_engine(self) -> None:
        """Report an engine that is missing in this build of fio, which is not a fault of the host
        port."""
        if self._is_blockdev:
            return
        question = [self._program, "--enghelp=nbd"]
        try:
            asked = subprocess.run(
                question, capture_output=True, timeout=ENGINE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RigTrouble(f"{self._program} cannot be used: {error}") from error
        if asked.returncode:
            raise RigTrouble(
                "this machine's fio has no nbd engine: install a build with libnbd, such as that of Debian, "
                "or use another [workload] driver"
            )

    @property
    def _is_blockdev(self) -> bool:
        return self._config.uri.startswith(f"{blockdev.SCHEME}:")

    def _target(self) -> list[str]:
        if not self._is_blockdev:
            return ["--ioengine=nbd", f"--uri={self._config.uri}"]
        address = blockdev.parse_uri(self._config.uri)
        is_disk = stat.S_ISBLK(blockdev.identified(address).st_mode)
        engine = ["--ioengine=libaio", "--direct=1"] if is_disk else ["--ioengine=psync"]
        return [*engine, f"--filename={address.path.replace(':', chr(92) + ':')}"]

    def _follow(
        self, child: "subprocess.Popen[bytes]", reports: Reports, acked_before: int | None
    ) -> None:
        assert child.stdout is not None
        fd = child.stdout.fileno()
        while True:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if self._stop_asked(poller):
                self._end(child)
            if not poller.poll(0):
                self._progress(*self._told)  # fio sends no report while its port delays it
                continue
            data = os.read(fd, 1 << 16)
            if not data:
                return
            if reports.feed(data):
                report = Report(0, reports.job, "")
                if acked_before is not None:
                    self._progress(acked_before + report.count("write", "total_ios"))
                else:
                    self._progress(
                        self.acked, self.verified_bytes + report.count("read", "io_bytes")
                    )

    def _stop_asked(self, poller: "select.poll") -> bool:
        """Wait until fio reports something or the supervisor sends something."""
        if not self._inbox.ended:
            poller.register(self._inbox.fd, select.POLLIN)
        ready = dict(poller.poll(0 if self._inbox.has_rest else HEARTBEAT_NS / NS_PER_MS))
        if not self._inbox.ended:
            poller.unregister(self._inbox.fd)
        asked = (self._inbox.fd in ready or self._inbox.has_rest) and self._inbox.stop_asked()
        return asked or self._outbox.broken

    def _wait_for_stop(self, seconds: float) -> None:
        poller = select.poll()
        if not self._inbox.ended:
            poller.register(self._inbox.fd, select.POLLIN)
        if poller.poll(seconds * 1000) and self._inbox.stop_asked():
            raise Stopped("stopped while the host port was unavailable")

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        """Let fio end by itself, within the time limit."""
        child.send_signal(signal.SIGINT)
        assert child.stdout is not None
        poller = select.poll()
        poller.register(child.stdout.fileno(), select.POLLIN)
        deadline_ns = time.monotonic_ns() + int(self._config.stop_limit_s * NS_PER_S)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0 and poller.poll(left_ns / 1e6):
            if not os.read(child.stdout.fileno(), 1 << 16):
                break
        raise Stopped("fio was stopped before its end: nothing was verified")

    def _progress(self, acked: int, verified: int = 0) -> None:
        if acked > self._told[0]:
            self._moved_ns = time.monotonic_ns()
        self._told = (acked, verified)
        self._outbox.tell(
            events.WorkloadProgress(
                t_ns=time.monotonic_ns(),
                bytes_written=acked * self._config.write_bytes,
                bytes_total=self._config.bytes_total,
                writes_acked=acked,
                reconnects=self._reconnects,
                bytes_verified=verified or self.verified_bytes,
            )
        )

    def _keep_reports(self) -> None:
        if self._config.results_path:
            try:
                Path(self._config.results_path).write_text(json.dumps(self._reports, indent=1))
            except OSError as error:
                raise RigTrouble(f"{self._config.results_path}: {error.strerror}") from error

    def _note(self, text: str) -> None:
        self._outbox.tell(
            events.Note(t_ns=time.monotonic_ns(), source="workload", text=text, level="warning")
        )


def _longest_ns(job: Mapping[str, Any]) -> Ns:
    return int(((job.get("write") or {}).get("lat_ns") or {}).get("max") or 0)


def _die_with_us() -> None:
    """Run between fork and exec: fio must not continue to write after its workload was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    inbox, outbox, run = WorkloadInput(0), Outbox(1), None
    error: HarnessError | None = None
    try:
        config = inbox.config()
        outbox = Outbox(config.event_fd)
        run = FioRun(config, inbox, outbox)
        run.run()
    except HarnessError as failure:
        error = failure
    return end_of(
        outbox,
        error,
        writes_acked=run.acked if run else 0,
        bytes_written=run.bytes_acked if run else 0,
        longest_hold_ns=run.longest_hold_ns if run else 0,
        verified_bytes=run.verified_bytes if run else 0,
        wrong_reads=run.wrong if run else [],
        wrong_reads_total=run.wrong_total if run else 0,
    )


if __name__ == "__main__":
    sys.exit(main())
