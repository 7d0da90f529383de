"""What the supply's outputs deliver, noted while a rig is watched: samples on the incident's
timeline."""

import math
import threading
import time
from typing import Final, Protocol

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import SIDES, Event, PowerSample
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.incident import Incident

PERIOD_S: Final = 0.5
MAX_SAMPLES: Final = 200_000
"""Of one incident: 14 hours of both outputs."""
STOP_TIMEOUT_S: Final = 5.0


class SampleSink(Protocol):
    """Takes the samples, in the log's thread: an incident."""

    def append_event(self, event: Event, source: str) -> None: ...


class PowerLog:
    """A thread that measures both outputs again and again. A supply that no longer answers is a
    ``failure``, which is how its loss is reported within a second."""

    def __init__(self, opened: OpenBench, incident: SampleSink) -> None:
        self.failure: HarnessError | None = None
        self._opened = opened
        self._incident = incident
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="powerlog", daemon=True)

    def start(self) -> None:
        if self._opened.power is not None:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        taken, limit = 0, MAX_SAMPLES if isinstance(self._incident, Incident) else math.inf
        try:
            while not self._stop.wait(PERIOD_S) and taken < limit:
                for side in SIDES:
                    asked_ns = time.monotonic_ns()
                    volts, amperes = self._opened.measure(side)
                    answered_ns = time.monotonic_ns()
                    sample = PowerSample(
                        t_ns=(asked_ns + answered_ns) // 2,
                        error_ns=(answered_ns - asked_ns + 1) // 2,
                        side=side,
                        volts=round(volts, 4),
                        amperes=round(amperes, 4),
                    )
                    if not self._stop.is_set():
                        self._incident.append_event(sample, "supply")
                    taken += 1
        except HarnessError as error:
            if not self._stop.is_set():
                self.failure = error
