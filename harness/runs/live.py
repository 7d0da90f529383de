"""A command that can be looked at while it goes on: what it reports, through a look-only socket.

``LiveView`` takes what a view is given. A thread of its own sends a status twice a second, and only while somebody
looks; what it says of the bench is made in the station's own thread, in some 25 us, and waits for nobody.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from freezeframe.harness.core.events import (
    NS_PER_S,
    READ_TIME,
    SIDES,
    AnyEvent,
    LinkStats,
    Ns,
    Trigger,
)
from freezeframe.harness.core.livestatus import (
    MAX_NEWS,
    MAX_TEXT_CHARS,
    TAIL_LINES,
    End,
    IncidentStatus,
    LinkStatus,
    LiveStatus,
    News,
    encode,
)
from freezeframe.harness.core.policy import HealthStatus
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import utc_now
from freezeframe.harness.edge.onlookers import Onlookers
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.store import CONSOLE, TIMES, open_inside
from freezeframe.harness.runs.audit import state_directory, user
from freezeframe.harness.runs.view import View
from freezeframe.harness.runs.waking import Waker

PERIOD_NS: Final = NS_PER_S // 2
"""A status is sent at most so often."""
ANSWER_S: Final = 1.0
"""For the station's answer; it takes a millisecond. Without it the last one is sent again, with its age."""
CLOSE_S: Final = 5.0
RATE_NS: Final = 2 * NS_PER_S
NEWEST_INCIDENTS: Final = 20
TAIL_BYTES: Final = 8192
MAX_LINE_CHARS: Final = 500

Describe = Callable[[Ns], dict[str, Any]]
"""Gives the fields of LiveStatus that only the command's main loop knows, in that loop's thread."""


class LiveView:
    """A view that passes on what it is given, and remembers the newest of it."""

    def __init__(self, view: View, bench: str, command: str) -> None:
        self._view, self._lock = view, threading.Lock()
        self.progress = view.progress
        self._bench, self._command, self._started_utc = escape(bench), command, utc_now()
        self._news: deque[News] = deque(maxlen=MAX_NEWS)
        self._told = 0
        self._health: HealthStatus | None = None
        self._incidents: deque[IncidentStatus] = deque(maxlen=NEWEST_INCIDENTS)
        self.incidents = 0
        self._stats: deque[LinkStats] = deque()
        """Of the last seconds."""
        self._frame_ns: Ns | None = None

    # --- a view -------------------------------------------------------------------------------------------
    def phase(self, text: str) -> None:
        self._tell("report", text)
        self._view.phase(text)

    def step(self, side: str, step: str, detail: str) -> None:
        self._tell("step", f"{side or 'pair'}: {step}{f' ({detail})' if detail else ''}")
        self._view.step(side, step, detail)

    def happened(self, source: str, event: AnyEvent) -> None:
        if isinstance(event, Trigger) and source == "reflex":
            text = f"{event.rule} on the {event.side}'s {event.source}: {event.words}"
            self._tell("trigger", text)
        elif isinstance(event, LinkStats):
            self._count(event)
        self._view.happened(source, event)

    def health(self, status: HealthStatus) -> None:
        self._health = status
        self._tell("health", str(status))
        self._view.health(status)

    def incident(self, folder: Path, outcome: str, trigger: dict[str, Any] | None) -> None:
        """An incident is closed and judged."""
        rule, side = (trigger["rule"], trigger["side"]) if trigger else ("", "")
        with self._lock:
            self.incidents += 1
            self._incidents.append(
                IncidentStatus(
                    utc=utc_now(), id=folder.name, outcome=outcome, rule=escape(rule), side=side
                )
            )
        cause = f": {rule} on the {side}" if rule else ""
        self._tell("incident", f"incident {folder.name}: {outcome}{cause}")

    def _tell(self, kind: Any, text: str) -> None:
        with self._lock:
            self._told += 1
            text = escape(text)[:MAX_TEXT_CHARS]
            self._news.append(News(n=self._told, utc=utc_now(), kind=kind, text=text))

    def _count(self, stats: LinkStats) -> None:
        with self._lock:
            before = self._stats[-1].packets if self._stats else 0
            if stats.packets < before:  # the capture was started again
                self._stats.clear()
            if stats.packets != before:
                self._frame_ns = stats.t_ns
            self._stats.append(stats)
            while self._stats[0].t_ns < stats.t_ns - RATE_NS:
                self._stats.popleft()

    # --- what is known of it ----------------------------------------------------------------------------
    def status(self, now: Ns, **known: Any) -> LiveStatus:
        """``known``: further fields of the status."""
        health = self._health
        with self._lock:
            return LiveStatus(
                utc=utc_now(), bench=self._bench, command=self._command, pid=os.getpid(), who=escape(user()),
                started_utc=self._started_utc, age_s=0.0,
                health=health.health.value if health is not None else "",
                why=escape(health.why) if health is not None else "",
                incidents=self.incidents, newest_incidents=list(self._incidents),
                news=list(self._news), **({"link": self._link(now)} | known),
            )  # fmt: skip

    def link(self, now: Ns, *, there: bool, why: str) -> LinkStatus:
        with self._lock:
            return msgspec.structs.replace(self._link(now), there=there, why=escape(why))

    def _link(self, now: Ns) -> LinkStatus:
        if not self._stats:
            return LinkStatus()
        first, last = self._stats[0], self._stats[-1]
        span_ns = last.t_ns - first.t_ns
        grown = last.bytes_captured - first.bytes_captured
        return LinkStatus(
            there=not last.down, why=escape(last.down),
            last_frame_age_s=None if self._frame_ns is None else (now - self._frame_ns) / NS_PER_S,
            rate_bytes_per_s=grown * NS_PER_S / span_ns if span_ns else 0.0,
            writes=last.writes, answers=last.acks, outstanding=last.outstanding,
            digests_checked=last.digests_checked, frames_dropped=last.kernel_drops, gaps=last.gaps,
        )  # fmt: skip


class LiveServer(threading.Thread):
    """Serves the status of a view, from ``start`` to ``close``. A socket that cannot be made is reported
    once, and costs nothing else."""

    def __init__(self, view: LiveView, bench_id: str) -> None:
        super().__init__(name="live", daemon=True)
        self._view = view
        self._waker, self._over = Waker(), threading.Event()
        self._why = ""
        self._post: Callable[[Callable[[], None]], None] | None = None
        self._describe: Describe | None = None
        self._asked = False
        """The station has a question that it has not answered."""
        self._answered = threading.Event()
        self._has_failed = False
        self._made_ns: Ns = time.monotonic_ns()
        self._status = view.status(self._made_ns)
        self._tails: dict[str, ConsoleTail] = {
            side: ConsoleTail(f"{side}/{CONSOLE}", f"{side}/{TIMES}") for side in SIDES
        }
        self._onlookers: Onlookers | None = None
        try:
            self._onlookers = Onlookers(state_directory(), bench_id)
        except RigError as error:
            view.phase(str(error))

    def look_at(self, post: Callable[[Callable[[], None]], None], describe: Describe) -> None:
        """``post`` has something done in the main loop's thread, ``describe`` is."""
        self._post, self._describe = post, describe

    def close(self, why: str) -> None:
        """Everybody who looks gets the reason of the end."""
        self._why = why
        self._over.set()
        self._waker.wake()
        if self.is_alive():
            self.join(CLOSE_S)
        if not self.is_alive():
            self._waker.close()

    # --- the thread -------------------------------------------------------------------------------------
    def run(self) -> None:
        if (onlookers := self._onlookers) is None:
            return
        due_ns: Ns = 0
        while not self._over.is_set():
            left_s = max(0, due_ns - time.monotonic_ns()) / NS_PER_S
            ready = onlookers.await_caller(
                [self._waker.fileno()], left_s if onlookers.any else None
            )
            self._waker.drain()
            if onlookers.fileno() in ready and onlookers.accept():
                due_ns = 0
            if onlookers.any and time.monotonic_ns() >= due_ns and not self._over.is_set():
                due_ns = time.monotonic_ns() + PERIOD_NS
                onlookers.send(encode(self._now()))
        if onlookers.any:
            onlookers.send(encode(self._seen()))  # what was reported last
        onlookers.close(
            encode(End(utc=utc_now(), why=escape(self._why), incidents=self._view.incidents))
        )

    def _now(self) -> LiveStatus:
        post, describe = self._post, self._describe
        if post is not None and describe is not None:
            if not self._asked:
                self._asked = True
                self._answered.clear()
                post(lambda: self._answer(describe))
            self._answered.wait(ANSWER_S)
        return self._seen()

    def _seen(self) -> LiveStatus:
        """Without a question to the station."""
        now = time.monotonic_ns()
        fresh, status = self._view.status(now), self._status
        folder = Path(status.recording) if status.recording else None
        sides = {
            side: msgspec.structs.replace(
                one, console=msgspec.structs.replace(one.console, **self._tails[side].look(folder, now))
            )
            for side, one in status.sides.items()
        }  # fmt: skip
        return msgspec.structs.replace(
            status, utc=fresh.utc, recording=_in_utf8(status.recording), age_s=(now - self._made_ns) / NS_PER_S, sides=sides,
            health=fresh.health, why=fresh.why, news=fresh.news, incidents=fresh.incidents,
            newest_incidents=fresh.newest_incidents,
        )  # fmt: skip

    def _answer(self, describe: Describe) -> None:
        """In the main loop's thread."""
        now = time.monotonic_ns()
        try:
            self._status, self._made_ns = self._view.status(now, **describe(now)), now
        except Exception as error:  # noqa: BLE001 - whatever it is: who looks on must end no watch
            if not self._has_failed:
                self._has_failed = True
                text = f"{type(error).__name__}: {error}"
                self._view.phase(f"internal error: no status for who looks on: {text}")
        finally:
            self._asked = False
            self._answered.set()


class ConsoleTail:
    """The end of a console's record, read from the disk: nothing is asked of who records."""

    def __init__(self, log: str, times: str) -> None:
        self._log, self._times = log, times
        self._newest_ns: Ns | None = None
        self._folder: Path | None = None
        self._before: Path | None = None
        """What was recorded into before: a record that has just begun has no lines yet."""

    def look(self, folder: Path | None, now: Ns) -> dict[str, Any]:
        """Fields of ConsoleStatus."""
        if folder != self._folder:
            self._before, self._folder = self._folder, folder
        tail: list[str] = []
        for one in filter(None, (self._before, folder)):
            with contextlib.suppress(OSError, RigError), open_inside(one, self._log) as file:
                tail = [*tail, *newest_lines(_end_of(file))][-TAIL_LINES:]
        if folder is not None:
            with contextlib.suppress(OSError, RigError), open_inside(folder, self._times) as file:
                size = file.seek(0, os.SEEK_END) // READ_TIME.size * READ_TIME.size
                if size:
                    file.seek(size - READ_TIME.size)
                    self._newest_ns = READ_TIME.unpack(file.read(READ_TIME.size))[0]
        age_s = None if self._newest_ns is None else max(0, now - self._newest_ns) / NS_PER_S
        return {"tail": tail, "last_byte_age_s": age_s}


def newest_lines(data: bytes) -> list[str]:
    """Return the last lines of a console's bytes, escaped; one that has not ended is one."""
    lines = data.replace(b"\r", b"").rstrip(b"\n").split(b"\n")
    if len(data) >= TAIL_BYTES:
        lines = lines[1:] or lines  # the first one is not whole
    shown = [" ".join(escape(part) for part in line.split(b"\t")) for line in lines]
    return [line[:MAX_LINE_CHARS] for line in shown if line][-TAIL_LINES:]


def _end_of(file: Any) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    data: bytes = file.read(TAIL_BYTES)
    return data


def _in_utf8(path: str) -> str:
    """The path; bytes of it that are not UTF-8 are ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def looked_at(view: LiveView, bench_id: str) -> Iterator[LiveServer]:
    """Serve the status of this view until the end of the block."""
    status = LiveServer(view, bench_id)
    status.start()
    why = ""
    try:
        yield status
    except HarnessError as error:
        why = str(error)
        raise
    finally:
        status.close(why)
