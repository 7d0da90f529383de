"""Scenario -> run -> outcome: writes go out, something breaks (or nothing does), and what follows is one incident."""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from harness.bench import Rig, deadline_in
from harness.benchfile import Bench, Scenario
from harness.collect import Collector
from harness.core import recovery
from harness.core.events import (
    SIDES,
    AnyEvent,
    ConsoleBytes,
    FrameFailed,
    FrameSent,
    LinkStats,
    Note,
    Side,
    StreamEnded,
    Trigger,
    WorkloadDone,
    WorkloadProgress,
)  # fmt: skip
from harness.edge.versions import versions
from harness.errors import HarnessError, RigError, UsageError
from harness.incident import Incident
from harness.observe import Observation
from harness.roles import Serviceable
from harness.store import Outcome
from harness.wire import control
from harness.workload import Workload, compare_volumes, in_words

READY_TIMEOUT_S: Final = 30.0
"""For the pair to reach full duplex before the run."""
DETECT_TIMEOUT_S: Final = 10.0
"""After the last host write: how long an armed fault may stay unseen."""
SETTLE_S: Final = 0.5
"""After the last host write of a run that expects nothing: what is still on its way may trigger."""
TICK_S: Final = 0.5
STALLED_S: Final = 60.0
"""Host writes that make no progress for so long have failed."""


class View(Protocol):
    """Who watches the run; called from the supervisor's thread only."""

    def phase(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def happened(self, source: str, event: AnyEvent) -> None: ...


class Silent:
    """Nobody watches."""

    def phase(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def happened(self, source: str, event: AnyEvent) -> None:
        pass


@dataclass
class Result:
    """What a run came to."""

    outcome: Outcome
    record: dict[str, Any]
    """incident.json's content, also when the folder of a clean run is gone."""
    incident: Path | None
    """The incident's folder; None: the run was clean and nothing was kept."""
    error: HarnessError | None = None
    """Why the outcome is rig-trouble."""
    reasons: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The one object that ``run --json`` prints."""
        record = self.record
        trigger = record.get("trigger")
        told: dict[str, Any] = {
            "outcome": self.outcome,
            "incident": str(self.incident) if self.incident else None,
            "bench": record.get("bench"),
            "scenario": record.get("scenario"),
            "seed": record.get("seed"),
            "trigger": None,
            "actions": record.get("actions", []),
            "sets": {
                side: {key: one.get(key) for key in ("bytes", "sha256", "complete", "reason") if key in one}
                for side, one in record.get("sets", {}).items()
            },
            "data_equal": record.get("data_equal"),
            "lost_acked_writes": record.get("lost_acked_writes"),
            "capture_drops": record.get("capture", {}).get("kernel_drops"),
            "reasons": self.reasons,
        }
        if trigger:
            times = {key: value for key, value in trigger.items() if key.startswith("t_")}
            told["trigger"] = {
                "rule": trigger["rule"],
                "source": trigger["source"],
                "side": trigger["side"],
                "offset": trigger["offset_bytes"],
                "times": times,
                "reaction_us": trigger.get("reaction_us"),
                "detail": trigger["detail"],
                "excerpt": trigger["excerpt"],
            }
        if self.error is not None:
            told["error"] = {"whose": "rig", "text": str(self.error)}
        return told


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A short-lived directory with a short path (a unix socket's has at most 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="freezeframe-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Session:
    """A rig under watch, from armed to recovered: one incident."""

    def __init__(
        self, rig: Rig, incident: Incident, view: View, compare: Callable[[], recovery.Compared]
    ) -> None:
        self.rig = rig
        self.incident = incident
        self.view = view
        self.triggers: list[Trigger] = []
        self.collector: Collector | None = None
        self.workload_done: WorkloadDone | None = None
        self.progressed_ns = time.monotonic_ns()
        self.lost_streams: list[str] = []
        self.is_autonomic = rig.bench.policy.instructed_by == "secondary"
        self._compare = compare
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self.observation = Observation(rig, incident, rig.bench.rules())

    def arm(self) -> None:
        """Identify both controllers, wait for full duplex, encode the frames, and hand them to the reflex."""
        self.view.phase("waiting for full duplex")
        self.observation.await_ready()
        identities = self.rig.await_full_duplex(deadline_in(READY_TIMEOUT_S))
        self.incident.record["controllers"] = {
            side: {"model": one.model, "serial_number": one.serial_number, "firmware_version": one.firmware_version,
                   "boot_epoch": one.boot_epoch}
            for side, one in identities.items()
        }  # fmt: skip
        for note in (*self.rig.notes, *self.observation.notes):
            self.incident.note(note)
        if self.is_autonomic:
            self.incident.milestone()
            return
        reasons = {"console": control.Reason.CONSOLE_TRIGGER, "link": control.Reason.LINK_TRIGGER}
        frames: dict[str, dict[Side, bytes]] = {source: {} for source in reasons}
        first = self.rig.bench.policy.instruct[0]
        for source, reason in reasons.items():
            for side in SIDES:
                why = reason if side == first else control.Reason.SECOND_CONTROLLER
                frames[source][side] = self.rig.controllers[side].freeze_frame(
                    identities[side], why, self.incident.incident_id
                )
        self.observation.arm(frames)
        self.incident.milestone()

    @property
    def recovering(self) -> bool:
        return self.collector is not None and self.collector.finish is None

    def pump(self, seconds: float) -> None:
        """Take what the other processes tell, for at most so long, and act on it."""
        for source, event in self.observation.wait(deadline_in(seconds), self._wake_read):
            self.take(source, event)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        if self.collector is not None and self.collector.failure is not None:
            raise self.collector.failure

    def take(self, source: str, event: AnyEvent) -> None:
        self.view.happened(source, event)
        match event:
            case Trigger():
                self._triggered(source, event)
            case FrameSent():
                self.incident.acted(event)
                self._frame(recovery.FrameOut(side=event.side), event.frame)
            case FrameFailed():
                self.incident.acted(event)
                self._frame(recovery.FrameNotOut(side=event.side, reason=event.error), b"")
            case WorkloadProgress():
                self.progressed_ns = event.t_ns
                self.view.progress(event.bytes_written, event.bytes_total)
            case WorkloadDone():
                self.workload_done = event
                self.incident.append_event(event, source)
            case StreamEnded():
                self.lost_streams.append(f"{event.stream}: {event.error}")
                self.incident.note(f"{event.stream} ended: {event.error}")
                self.incident.append_event(event, source)
            case Note():
                if event.level != "info":
                    self.incident.note(f"{event.source}: {event.text}")
                self.incident.append_event(event, source)
            case ConsoleBytes() | LinkStats():
                pass
            case _:
                self.incident.append_event(event, source)

    def _triggered(self, source: str, trigger: Trigger) -> None:
        if source != "reflex":
            # A link trigger is told twice, by the link's watch and by the reflex that decides: the reflex's counts.
            return
        first = not self.triggers
        self.triggers.append(trigger)
        self.incident.triggered(trigger)
        if first:
            self.view.phase(f"trigger: {trigger.rule}")
        if self.collector is None and trigger.instruct:
            armed = {side: self.rig.identities[side].boot_epoch for side in trigger.instruct}
            self.collector = Collector(self.rig, self.incident, armed, self._compare, self._wake)
            if self.is_autonomic:
                for side in armed:
                    self._frame(recovery.FrameOut(side=side), b"")

    def _frame(self, event: recovery.FrameOut | recovery.FrameNotOut, frame: bytes) -> None:
        if self.collector is not None:
            self.collector.feed(event, frame)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Stop the watchers and take their last words; nothing writes into the incident afterwards."""
        if self.collector is not None:
            self.collector.cancel(wait_s=5.0)
        for source, event in self.observation.stop():
            if isinstance(event, StreamEnded):
                continue  # the watchers end one after the other, and tell it of each other
            with contextlib.suppress(HarnessError):
                self.take(source, event)
        if self.observation.link is not None:
            self.incident.record["capture"] = _plain_stats(self.observation.link)
        os.close(self._wake_read)
        os.close(self._wake_write)


def _plain_stats(stats: LinkStats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in stats.__struct_fields__ if name != "t_ns"}


class Run:
    """One scenario on one bench."""

    def __init__(
        self, bench: Bench, scenario: Scenario, *, seed: int, out_dir: Path, view: View, keep: bool
    ) -> None:
        self.bench = bench.with_workload(scenario.workload)
        self.scenario = scenario
        self.seed = seed
        self.view = view
        self.keep = keep
        self.incident = Incident.create(
            out_dir,
            bench=bench.name,
            seed=seed,
            scenario=scenario.name,
            versions=versions(),
            rules=[str(path) for path in bench.rule_paths()],
            incident_id=secrets.token_bytes(control.INCIDENT_ID_BYTES),
        )
        self.is_underway = False
        """From the first host write on there is something to tell."""
        self.reasons: list[str] = []
        self.compared: recovery.Compared | None = None

    def execute(self) -> Result:
        """Run it to its end. UsageError is raised; all else becomes the result's outcome."""
        try:
            with run_directory() as run_dir:
                try:
                    outcome = self._on_rig(run_dir)
                finally:
                    self._keep_last_words(run_dir)
        except UsageError:
            self.incident.discard()
            raise
        except HarnessError as error:
            return self._ended("rig-trouble", error)
        except KeyboardInterrupt:
            return self._ended("interrupted", None)
        except BaseException:
            self.incident.finish("interrupted")
            raise
        return self._ended(outcome, None)

    def _keep_last_words(self, run_dir: Path) -> None:
        """What our own processes wrote to stderr, which is nothing when all is well, belongs to the incident."""
        for log in run_dir.glob("*.stderr"):
            if log.stat().st_size:
                logs = self.incident.path / "logs"
                logs.mkdir(exist_ok=True)
                shutil.copyfile(log, logs / log.name)

    def _ended(self, outcome: Outcome, error: HarnessError | None) -> Result:
        if error is not None:
            self.reasons.append(str(error))
        record = self.incident.record
        record["reasons"] = self.reasons
        kept = self.keep or (outcome != "pass" and self.is_underway) or record["trigger"] is not None
        if kept:
            with contextlib.suppress(RigError):
                self.incident.finish(outcome)
        else:
            self.incident.discard()
        record["outcome"] = outcome
        return Result(
            outcome=outcome,
            record=record,
            incident=self.incident.path.absolute() if kept else None,
            error=error,
            reasons=self.reasons,
        )

    def _on_rig(self, run_dir: Path) -> Outcome:
        self.view.phase("opening the bench")
        with Rig(self.bench, run_dir, seed=self.seed) as rig:
            workload = Workload(rig, self.incident, seed=self.seed)
            session = Session(rig, self.incident, self.view, lambda: self._compare(session, workload))
            try:
                session.arm()
                self._set_faults(rig)
                self.is_underway = True
                self.view.phase("host writes")
                self._writes(session, workload, run_dir)
                self._aftermath(session)
                if session.collector is None:
                    self._compare(session, workload)
            finally:
                session.close()
            return self._judge(session)

    def _set_faults(self, rig: Rig) -> None:
        for side in SIDES:
            plan = self.scenario.fault_plan(side, self.seed)
            if not plan["faults"]:
                continue
            controller = rig.controllers[side]
            if not isinstance(controller, Serviceable):
                raise RigError(
                    f"the {side} controller's driver cannot arm faults; scenario {self.scenario.name} needs it"
                )
            reply = controller.set_faults(rig.identities[side], plan, deadline_in(5.0))
            if not reply.ok:
                raise RigError(f"the {side} controller refused the fault plan: {reply.status} {reply.text}")
            self.incident.step(time.monotonic_ns(), side, "faults armed", str(plan["faults"]))

    def _writes(self, session: Session, workload: Workload, run_dir: Path) -> None:
        session.observation.add(workload.start(run_dir))
        session.progressed_ns = time.monotonic_ns()
        while session.workload_done is None:
            session.pump(TICK_S)
            silent_s = (time.monotonic_ns() - session.progressed_ns) / 1e9
            if silent_s > STALLED_S and not session.recovering:
                self.reasons.append(f"host writes made no progress for {STALLED_S:.0f} s")
                return
            if workload.died and session.workload_done is None:
                raise workload.death()

    def _aftermath(self, session: Session) -> None:
        """What comes after the last write: a late trigger, and the recovery to its end."""
        expects = self.scenario.expect.detected
        quiet_ns = deadline_in(DETECT_TIMEOUT_S if expects else SETTLE_S)
        if expects and session.collector is None:
            self.view.phase("waiting for the fault to be seen")
        while session.collector is None and time.monotonic_ns() < quiet_ns:
            session.pump(min(TICK_S, max(0.0, (quiet_ns - time.monotonic_ns()) / 1e9)))
        while session.recovering:
            session.pump(TICK_S)

    def _compare(self, session: Session, workload: Workload) -> recovery.Compared:
        """Host journal, primary and secondary against each other; called once the pair is whole, by whoever is there."""
        deadline_ns = deadline_in(STALLED_S)
        while session.workload_done is None and time.monotonic_ns() < deadline_ns:
            # Called from the collector's thread: the supervisor's own takes the writer's events meanwhile.
            time.sleep(0.02)
        session.rig.await_full_duplex(deadline_in(self.bench.policy.rejoin_timeout_s))
        comparison = compare_volumes(session.rig, workload.journal_path)
        self.incident.update(
            data_equal=comparison.data_equal,
            lost_acked_writes=comparison.lost_acked_writes,
            comparison=asdict(comparison),
        )
        self.compared = recovery.Compared(equal=comparison.data_equal, detail=in_words(comparison))
        return self.compared

    # --- the outcome ------------------------------------------------------------------------------------------
    def _judge(self, session: Session) -> Outcome:
        reasons = self.reasons
        record = self.incident.record
        done = session.workload_done
        if done is not None:
            record["workload"] = {
                "ok": done.ok, "writes_acked": done.writes_acked, "bytes_written": done.bytes_written,
                "longest_hold_ns": done.longest_hold_ns, "error": done.error,
            }  # fmt: skip
            if not done.ok:
                reasons.append(f"the host's writes failed: {done.error}")
        if record["data_equal"] is False:
            detail = self.compared.detail if self.compared else ""
            reasons.append(f"the data of host, primary and secondary differ: {detail}")
        if record["lost_acked_writes"]:
            reasons.append(f"{record['lost_acked_writes']} acknowledged writes are lost")
        if not self.scenario.expect.detected:
            reasons += [
                f"unexpected trigger {one.rule} ({one.detail or one.side})" for one in session.triggers[:5]
            ]
        else:
            self._judge_detection(session)
        if reasons:
            blind = record["capture"].get("kernel_drops") or session.lost_streams
            return (
                "inconclusive" if blind and not session.triggers and self.scenario.expect.detected else "fail"
            )
        if record["data_equal"] is None:
            reasons.append("the data was not compared")
            return "inconclusive"
        return "pass"

    def _judge_detection(self, session: Session) -> None:
        expected = self.scenario.expect.rules
        seen = {one.rule for one in session.triggers}
        if not seen:
            self.reasons.append("the armed fault was not detected")
            return
        if expected and not seen & set(expected):
            self.reasons.append(
                f"none of the expected rules fired ({', '.join(expected)}), but {', '.join(sorted(seen))} did"
            )
        if session.collector is None:
            self.reasons.append("the trigger's rule instructs nobody")
            return
        finish = session.collector.finish
        if finish is None:
            self.reasons.append("the recovery did not end")
            return
        for side in finish.sides:
            if side.set != "complete":
                self.reasons.append(f"the {side.side}'s root cause data set is {side.set}: {side.reason}")
            if side.power_cycled and not self.scenario.expect.power_cycle:
                self.reasons.append(f"the {side.side} came back only by a power cycle")
        if finish.rejoined is not True:
            self.reasons.append(
                f"the pair did not return to full duplex{': ' + finish.detail if finish.detail else ''}"
            )


def run(
    bench: Bench,
    scenario: Scenario,
    *,
    seed: int,
    out_dir: Path,
    view: View | None = None,
    keep: bool = False,
) -> Result:
    """Run ``scenario`` on ``bench``; the incident's folder goes under ``out_dir``. See Result."""
    return Run(bench, scenario, seed=seed, out_dir=out_dir, view=view or Silent(), keep=keep).execute()


def watch(bench: Bench, *, out_dir: Path, view: View) -> Iterator[Result]:
    """Watch a pair that others write to; yields each incident when it is closed, then watches on. Ends by exception."""
    with run_directory() as run_dir, Rig(bench, run_dir) as rig:
        while True:
            yield _watch_once(rig, out_dir, view)


def _watch_once(rig: Rig, out_dir: Path, view: View) -> Result:
    incident = Incident.create(
        out_dir,
        bench=rig.bench.name,
        seed=0,
        versions=versions(),
        rules=[str(path) for path in rig.bench.rule_paths()],
        incident_id=secrets.token_bytes(control.INCIDENT_ID_BYTES),
    )
    # Others go on writing while the volumes would be read: a comparison would compare moving targets.
    session = Session(
        rig, incident, view, lambda: recovery.Compared(equal=True, detail="not compared in a watch")
    )
    try:
        session.arm()
        view.phase("watching")
        while session.collector is None or session.recovering:
            session.pump(TICK_S)
    except BaseException:
        session.close()
        if session.triggers:
            incident.finish("interrupted")
        else:
            incident.discard()
        raise
    session.close()
    incident.record["reasons"] = [f"trigger {session.triggers[0].rule} on the {session.triggers[0].side}"]
    incident.finish("fail")
    return Result(
        outcome="fail",
        record=incident.record,
        incident=incident.path.absolute(),
        reasons=incident.record["reasons"],
    )
