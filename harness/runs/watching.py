"""A watch: others write, each trigger becomes an incident. The station watches in a thread of its own;
here its incidents are judged, while it watches on."""

import contextlib
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.linktable import LinkTable
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import LinkStats
from freezeframe.harness.core.link.blindness import not_understood, unproved
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.edge.servicemanager import ServiceManager
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.inquest import conclude
from freezeframe.harness.runs import linksight, livestation
from freezeframe.harness.runs.acting import Acting
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.runs.live import LiveView, looked_at
from freezeframe.harness.runs.notify import Notifier, notifier_of
from freezeframe.harness.runs.policyfile import WatchStart, settings_of
from freezeframe.harness.runs.recording import ClosedRecording
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.service import Heartbeat, ServiceStatus
from freezeframe.harness.runs.station import Station
from freezeframe.harness.runs.view import HealthTap, View

LOOK_S: Final = 0.5
"""A signal is handled between two waits for the next incident."""
END_S: Final = 600.0
"""For a recovery under way to end: each of its actions has a bound of its own."""


class Watch:
    """A watch of an open bench; iterate over its incidents as they are closed. On every exit
    nobody is instructed any more, what was instructed is collected, and all is judged."""

    def __init__(
        self,
        opened: OpenBench,
        *,
        out_dir: Path,
        view: View,
        notifier: Notifier | None = None,
        live: LiveView | None = None,
        dry_run: bool = False,
        start: WatchStart = WatchStart.UNATTENDED,
    ) -> None:
        """``notifier``: not started; whom it notifies of this watch. ``live``: who is to hear of its
        incidents. ``dry_run``: nobody is
        instructed; what would have been sent is reported. ``start``: whether an open breaker of the
        storm guard is closed."""
        self.results: list[Result] = []
        """Of all incidents so far."""
        self._lacks = linksight.Lacks()
        self._view, self._notifier, self._live = view, notifier, live
        seen = view if notifier is None else HealthTap(view, notifier.health)
        self.station = Station(opened, out_dir=out_dir, view=seen, dry_run=dry_run, start=start)

    @property
    def unproved(self) -> list[str]:
        """At the end: what the capture of the link did not show, a sentence each."""
        return self._lacks.of_the_whole

    def __enter__(self) -> Self:
        if self._notifier is not None:
            self._notifier.start()
        self.station.start()
        return self

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """Wait for the next incident. RigError: the watch cannot go on."""
        while True:
            with contextlib.suppress(queue.Empty):
                one = self.station.closed.get(timeout=LOOK_S)
                if one is None:
                    if self.station.failure is not None:
                        raise self.station.failure
                    raise StopIteration
                if (result := self._judged(one)) is not None:
                    return result

    def __exit__(self, *_raised: object) -> None:
        self.station.stop("the watch was being stopped")
        if self.station.is_alive():
            self._view.phase("stopping: nobody is instructed any more")
        with contextlib.suppress(queue.Empty):
            while self.station.is_alive() or not self.station.closed.empty():
                one = self.station.closed.get(timeout=END_S)
                if one is None:
                    break
                self._judged(one)
        self.station.join(END_S)
        if self._notifier is not None:
            if self.station.failure is not None:
                why = f"the watch has ended by itself: {self.station.failure}"
                self._notifier.health(HealthStatus(Health.DISARMED, why))
            self._notifier.close()

    def _judged(self, closed: ClosedRecording) -> Result | None:
        """Judge one incident; None: there was nothing to be judged. Whatever is wrong with one, the
        watch goes on."""
        recording, outcome, error = closed.recording, closed.outcome, None
        incident = recording.incident
        try:
            lacks = unproved_by(self.station.opened.bench.link, closed.counted)
            self._lacks.add(lacks)
            if outcome != "fail" and not closed.is_worth_keeping:
                incident.discard()
                return None
            recording.close(self.station.opened, closed.throughout, closed.ever, closed.counted)
            for says in lacks.values():
                incident.note(f"not seen on the link: {says}")
            causes = [f"trigger {one.rule} on the {one.side}" for one in recording.causes[:1]]
            incident.record["reasons"] = [*causes, *recording.troubles, *recording.lost_evidence]
            conclude(incident)
            incident.finish(outcome)
        except Exception as problem:  # noqa: BLE001 - of one incident; the next one is to be caught
            outcome = "rig-trouble"
            is_expected = isinstance(problem, (HarnessError, OSError, ValueError))
            kind = "" if is_expected else f"internal error: {type(problem).__name__}: "
            error = RigError(f"{incident.path}: the incident could not be closed: {kind}{problem}")
            incident.record.setdefault("reasons", []).append(str(error))
            with contextlib.suppress(HarnessError):
                incident.leave()  # it stays open, and nobody is said to be recording it
            self._view.phase(str(error))
        result = Result(
            outcome=outcome,
            record=incident.record,
            incident=incident.path.absolute(),
            error=error,
            reasons=incident.record["reasons"],
        )
        self.results.append(result)
        if self._live is not None:
            self._live.incident(incident.path, outcome, incident.record["trigger"])
        if self._notifier is not None:
            self._notifier.incident(
                incident.path.absolute(), outcome, incident.record["trigger"], result.reasons
            )
        return result


def unproved_by(link: LinkTable, stats: LinkStats | None) -> dict[str, str]:
    """What the capture did not show, by kind; whether anybody wrote, a watch does not know."""
    if missing := not_understood(link.protocol, link.tells):
        return {link.protocol: missing}
    return unproved(link.demand, linksight.sight_now(stats), wrote=None)


@contextlib.contextmanager
def watch(
    bench: Bench, *, out_dir: Path, view: View, dry_run: bool = False, arm: bool = False
) -> Iterator[Watch]:
    """Watch a pair that others write to; see Watch. ``arm``: a person closes the breaker of the storm
    guard. UsageError: see settings_of and WatchStart."""
    settings_of(bench, dry_run=dry_run)  # before anything is opened
    live = LiveView(view, bench.name, "watch")
    notifier, manager = notifier_of(bench, live.phase), ServiceManager()
    start = WatchStart.of(is_service=manager.has_started_us, dry_run=dry_run, arm=arm)
    shown = HealthTap(live, ServiceStatus(manager).health)
    with (
        looked_at(live, bench.id) as status,
        run_directory() as run_dir,
        OpenBench(bench, run_dir) as opened,
        Watch(
            opened,
            out_dir=out_dir,
            view=shown,
            notifier=notifier,
            live=live,
            dry_run=dry_run,
            start=start,
        ) as watched,
        Heartbeat(manager, watched.station.post),
        Acting(watched.station, bench.id, live),
    ):
        status.look_at(
            watched.station.post, lambda now: livestation.describe(watched.station, live, now)
        )
        yield watched
