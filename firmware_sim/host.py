"""The controller's host side: NBD sessions, the jobs they ask for, what is held during a warmstart.

Sessions belong to the memory that a warmstart keeps: the host sees a long busy, never a failure.
"""

from dataclasses import dataclass
from typing import Final

from freezeframe.firmware_sim.nbd_port import NbdSession, Request
from freezeframe.firmware_sim.ports import HostClose, HostHold, HostSend, Outbox

EXPORT_NAME: Final = ""
"""The volume is the default export."""
MAX_WAITING_BYTES: Final = 48 << 20
"""Data of unanswered requests; above this the sessions are no longer read, below half of it they
are again."""


@dataclass(slots=True, eq=False)
class Job:
    """One request of a host session on its way to its reply."""

    session: int
    request: Request
    waiting: int = 0
    """Replicated pieces of it that are not answered yet."""


class HostSide:
    """Bytes of host sessions -> jobs; answers -> bytes."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._sessions: dict[int, NbdSession] = {}
        self._out: dict[int, list[bytes]] = {}
        self._closing: list[int] = []
        self._waiting_bytes = 0
        self._holding = False
        self._hold_changed = False

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def opened(self, session: int, read_only: bool) -> None:
        self._sessions[session] = NbdSession(self._size_bytes, read_only, EXPORT_NAME)
        self._hold_changed = self._holding
        self._protocol_output(session)

    def closed(self, session: int) -> None:
        """The host hung up. Jobs of the session go on; their answers are dropped."""
        self._sessions.pop(session, None)
        self._out.pop(session, None)

    def feed(self, session: int, data: bytes | memoryview) -> list[Job]:
        """Bytes from a host -> the jobs they complete, in order."""
        nbd = self._sessions.get(session)
        if nbd is None:
            return []
        jobs = []
        for request in nbd.feed(data):
            self._waiting_bytes += len(request.data)
            jobs.append(Job(session, request))
        if self._waiting_bytes > MAX_WAITING_BYTES and not self._holding:
            self._holding = self._hold_changed = True
        self._protocol_output(session)
        return jobs

    def answer(self, job: Job, data: bytes = b"", error: int = 0) -> None:
        """The job is done: its reply leaves at the end of the step."""
        self._waiting_bytes -= len(job.request.data)
        if self._holding and self._waiting_bytes < MAX_WAITING_BYTES // 2:
            self._holding = False
            self._hold_changed = True
        nbd = self._sessions.get(job.session)
        if nbd is not None:
            self._out.setdefault(job.session, []).append(nbd.reply(job.request, data, error))

    def collect(self, outbox: list[Outbox]) -> None:
        """Move everything that leaves in this step to ``outbox``."""
        for session, parts in self._out.items():
            outbox.append(HostSend(session, b"".join(parts) if len(parts) > 1 else parts[0]))
        self._out.clear()
        for session in self._closing:
            self._sessions.pop(session, None)
            outbox.append(HostClose(session))
        self._closing.clear()
        if self._hold_changed:
            outbox.extend(HostHold(session, self._holding) for session in self._sessions)
            self._hold_changed = False

    def _protocol_output(self, session: int) -> None:
        nbd = self._sessions[session]
        data = nbd.take_output()
        if data:
            self._out.setdefault(session, []).append(data)
        if nbd.closed:
            self._closing.append(session)
