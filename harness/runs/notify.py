"""Send notices, from a thread of its own: nothing of a watch waits for a command or a server."""

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.notifytable import NotifyTable
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.policy import HealthStatus
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.notices import HealthNews, Notice, health_notice, incident_notice

MAX_WAITING: Final = 64
"""Notices of incidents that wait to be sent; further ones are counted."""
CLOSE_SENDS: Final = 2
"""At the end there is time for so many sends that take their whole time-out."""
KILL_S: Final = 10.0
"""For a killed command to be gone; one that cannot be killed is left behind."""
LAST_WORDS_BYTES: Final = 200
"""Of what a failing command printed."""


class Notifier(threading.Thread):
    """The notices of one watch. ``health`` and ``incident`` return at once, whatever the command or
    the server does; each notice is sent once."""

    def __init__(
        self, bench: str, table: NotifyTable, path: Path, report: Callable[[str], None]
    ) -> None:
        """``path``: of the bench file; ``report`` takes a sentence for the screen, in the thread
        of this notifier. UsageError, RigError: as ``NotifyTable.ready``."""
        super().__init__(name="notify", daemon=True)
        self._bench, self._table, self._folder, self._report = bench, table, path.parent, report
        self._url, self._headers = table.ready(path.parent)
        self._audit = AuditJournal(bench, "watch", path)
        self._changed = threading.Condition()
        self._news = HealthNews(int(table.settle_s * NS_PER_S))
        self._waiting: deque[Notice] = deque()
        self._left_out = 0
        self._is_closing = False
        self._give_up_ns: int | None = None
        self._failing: set[str] = set()
        """Ways of sending that failed the last time."""

    # --- from other threads -----------------------------------------------------------------------------
    def health(self, status: HealthStatus) -> None:
        with self._changed:
            self._news.change(status, time.monotonic_ns())
            self._changed.notify()

    def incident(
        self, folder: Path, outcome: str, trigger: dict[str, Any] | None, reasons: list[str]
    ) -> None:
        if "incident" not in self._table.on:
            return
        with self._changed:
            notice = incident_notice(
                self._bench, self._news.status, folder=folder, outcome=outcome, trigger=trigger,
                reasons=reasons,
            )  # fmt: skip
            if len(self._waiting) >= MAX_WAITING:
                self._left_out += 1
            else:
                self._waiting.append(notice)
            self._changed.notify()

    def close(self) -> None:
        """Send what is left, the last health included, for a limited time."""
        limit_s = CLOSE_SENDS * self._table.timeout_s
        with self._changed:
            self._is_closing = True
            self._give_up_ns = time.monotonic_ns() + int(limit_s * NS_PER_S)
            self._changed.notify()
        if self.is_alive():
            self.join(limit_s + self._table.timeout_s)

    # --- the thread -------------------------------------------------------------------------------------
    def run(self) -> None:
        while (notice := self._next()) is not None:
            if notice.event in self._table.on:
                self._send(notice)
            self._say_left_out()
        self._say_left_out()

    def _next(self) -> Notice | None:
        """Wait for what is to be sent next; None: the end."""
        with self._changed:
            while True:
                now = time.monotonic_ns()
                if self._give_up_ns is not None and now >= self._give_up_ns:
                    self._left_out += len(self._waiting)
                    return None
                if self._waiting:
                    return self._waiting.popleft()
                due_ns = self._news.due_ns()
                settled = self._news.take(due_ns if self._is_closing and due_ns else now)
                if settled is not None:
                    return health_notice(self._bench, settled)
                if self._is_closing:
                    return None
                self._changed.wait(None if due_ns is None else max(0, due_ns - now) / NS_PER_S)

    def _say_left_out(self) -> None:
        with self._changed:
            count, self._left_out = self._left_out, 0
        if count:
            text = f"{count} notices were not sent: those before them took too long"
            self._audit.add("notify", "incident", "", text)
            self._report(f"notify: {text}")

    def _send(self, notice: Notice) -> None:
        body = notice.as_json()
        if self._table.command is not None:
            self._try("command", notice, lambda: self._run_command(body))
        if self._url:
            self._try("post", notice, lambda: self._post(body))

    def _try(self, way: str, notice: Notice, send: Callable[[], None]) -> None:
        """The first failure in a row is a sentence on the screen; the journal has each."""
        try:
            send()
        except Exception as error:  # noqa: BLE001 - the next notice may be sent, whatever this one met
            is_named = isinstance(error, RigError)
            result = escape(str(error) if is_named else f"the {way} failed: {_words(error)}")
            if way not in self._failing:
                self._report(f"notify: {result}; the watch goes on")
            self._failing.add(way)
        else:
            result = "ok"
            if way in self._failing:
                self._report(f"notify: the {way} works again")
            self._failing.discard(way)
        self._audit.add("notify", notice.event, notice.text, result)

    def _run_command(self, body: bytes) -> None:
        """RigError: it does not start, fails, or does not end in time."""
        command, timeout_s = self._table.command or [], self._table.timeout_s
        name = Path(command[0]).name
        with tempfile.TemporaryFile() as words:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise RigError(f"the command {name} did not start: {error.strerror}") from error
            try:
                process.communicate(body, timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                fate = "was killed" if is_killed(process) else "cannot be killed: it goes on"
                raise RigError(
                    f"the command {name} did not end within {timeout_s:g} s and {fate}"
                ) from error
            except BaseException:
                is_killed(process)
                raise
            if process.returncode:
                size = words.seek(0, os.SEEK_END)
                words.seek(max(0, size - LAST_WORDS_BYTES))
                said = words.read().decode(errors="replace").strip()
                raise RigError(
                    f"the command {name} ended with status {process.returncode}"
                    f"{': ' + said if said else ''}"
                )

    def _post(self, body: bytes) -> None:
        """RigError: nobody answers in time, or not with a status of success. Of the URL only the
        host is named: its path may be a secret."""
        url, timeout_s = urlsplit(self._url), self._table.timeout_s
        assert url.hostname is not None
        where = f"the server {url.hostname}"
        is_tls = url.scheme == "https"
        maker = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        context: dict[str, Any] = {"context": ssl.create_default_context()} if is_tls else {}
        connection = maker(url.hostname, url.port, timeout=timeout_s, **context)
        # The socket's own time-out begins again with each byte of a slow answer.
        is_late = threading.Event()
        limit = threading.Timer(timeout_s, _hang_up, [connection, is_late])
        limit.daemon = True
        limit.start()
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            headers = {"Content-Type": "application/json", "User-Agent": "freezeframe"}
            connection.request("POST", path, body, headers | self._headers)
            status = connection.getresponse().status
        except TimeoutError as error:
            raise RigError(f"{where} did not answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if is_late.is_set():
                raise RigError(f"{where} did not answer within {timeout_s:g} s") from error
            raise RigError(f"{where} cannot be posted to: {_words(error)}") from error
        finally:
            limit.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise RigError(f"{where} answered with status {status}")


def is_killed(process: subprocess.Popen[bytes]) -> bool:
    """End it and what it has started, unless it has ended. False: it has become another user's
    (sudo), or does not end."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(KILL_S)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
    return process.poll() is not None


def _hang_up(connection: http.client.HTTPConnection, is_late: threading.Event) -> None:
    is_late.set()
    with contextlib.suppress(OSError, AttributeError):
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    """Of an OSError its reason alone: other texts may repeat a header."""
    return (
        (error.strerror or type(error).__name__)
        if isinstance(error, OSError)
        else type(error).__name__
    )


def notifier_of(bench: Bench, report: Callable[[str], None]) -> Notifier | None:
    """The notifier of a bench, not started; None: its file has no ``[notify]``."""
    if bench.notify is None:
        return None
    return Notifier(bench.name, bench.notify, bench.path, report)
