"""Wrong firmwares, each wrong in one named way: the proof that the checks can see.

``MUTANTS``: name -> (the side it takes, its class, the check of ``invariants`` that it must turn
red).
"""

from typing import Any, Final

from freezeframe.firmware_sim.controller import Controller
from freezeframe.firmware_sim.faults import Faults
from freezeframe.firmware_sim.management import Management
from freezeframe.firmware_sim.store import Store
from freezeframe.harness.wire.nbd import Error as NbdError


class _StoresOneWriteLate(Faults):
    """Keeps the newest write to itself until the next one comes."""

    _kept: tuple[int, bytes] | None = None

    def store(self, write_no: int, offset_bytes: int, data: bytes, backend: Store[Any]) -> None:
        kept, self._kept = self._kept, (offset_bytes, data)
        if kept is not None:
            backend.write(*kept)


class AcksBeforeItStores(Controller):
    faults_class = _StoresOneWriteLate


class _CountsOneMore(Faults):
    def barrier_count(self, count: int) -> int:
        return count + 1


class WrongBarrierCount(Controller):
    faults_class = _CountsOneMore


class LosesItsTrace(Controller):
    """Begins its event log anew at a warmstart."""

    def _warmstart(self) -> None:
        super()._warmstart()
        self.trace.next_seq = 0


class _NamesTheOther(Management):
    def identity(self) -> tuple[object, ...]:
        fields = list(super().identity())
        fields[1] = b"FFSIM-X-9999"
        return tuple(fields)


class AnswersAsAnother(Controller):
    management_class = _NamesTheOther


class FailsTheHost(Controller):
    """Ends what is under way with an error instead of holding the host."""

    def _warmstart(self) -> None:
        for job in dict.fromkeys(self._jobs.values()):
            self.host.answer(job, error=NbdError.EIO)
        self._jobs.clear()
        super()._warmstart()


class ForgetsTheHost(Controller):
    """Restarts without the requests that were under way."""

    def _warmstart(self) -> None:
        super()._warmstart()
        self._held.clear()


class LosesItsCache(Controller):
    """Comes up from a warmstart with what it had in memory zeroed."""

    def restart_soon(self) -> None:
        super().restart_soon()
        self.store.trim(0, self.store.size_bytes)


class KeepsItsEpoch(Controller):
    """Boots without counting."""

    def _next_epoch(self) -> None:
        self.boot_epoch = 1


MUTANTS: Final[dict[str, tuple[str, type[Controller], str]]] = {
    "acks before it stores": ("secondary", AcksBeforeItStores, "acks_follow_stores"),
    "wrong barrier count": ("secondary", WrongBarrierCount, "consoles_tell_no_error"),
    "loses its trace": ("primary", LosesItsTrace, "event_logs_are_continuous"),
    "answers as another": ("secondary", AnswersAsAnother, "each_answers_as_itself"),
    "fails the host": ("primary", FailsTheHost, "host_never_failed"),
    "forgets the host": ("primary", ForgetsTheHost, "host_was_answered"),
    "loses its cache": ("primary", LosesItsCache, "acked_writes_are_kept"),
    "keeps its epoch": ("secondary", KeepsItsEpoch, "boot_epochs_rise"),
}
