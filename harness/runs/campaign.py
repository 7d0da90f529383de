"""Scenario -> run -> outcome: writes go out, something breaks (or nothing does), and what follows
is one incident."""

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from freezeframe.harness.bench.benchfile import Bench, Scenario
from freezeframe.harness.bench.checks import refuse_unplayable, unread
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.link.blindness import no_write_seen, not_understood, unproved
from freezeframe.harness.core.link.protocol import Tell
from freezeframe.harness.core.recovery import messages as recovery
from freezeframe.harness.core.verdict.assurance import left_out
from freezeframe.harness.core.verdict.record import FAULTS_ARMED
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import HarnessError, NotWholeError, RigError, UsageError
from freezeframe.harness.incidents.basis import keep_basis
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import conclude
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.incidents.store import Outcome
from freezeframe.harness.runs import linksight
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.session import WORKLOAD_SILENT_S, Session
from freezeframe.harness.runs.view import Silent, View
from freezeframe.harness.runs.workload import Workload, compare_volumes, in_words
from freezeframe.harness.wire import control

DETECT_TIMEOUT_S: Final = 10.0
"""After the last host write: how long an armed fault may stay unseen."""
SETTLE_S: Final = 0.5
"""After the last host write of a run that expects nothing: what is still on its way may trigger."""
TICK_S: Final = 0.5
LAST_WORDS_S: Final = 2.0
"""What the workload's process said before it ended is taken within this time."""
STALLED_S: Final = 60.0
"""Host writes that make no progress for so long have failed."""


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
        described: dict[str, Any] = {
            "outcome": self.outcome,
            "incident": str(self.incident) if self.incident else None,
            "bench": record.get("bench"),
            "scenario": record.get("scenario"),
            "seed": record.get("seed"),
            "trigger": None,
            "actions": record.get("actions", []),
            "sets": {
                side: {
                    key: one.get(key)
                    for key in ("bytes", "sha256", "complete", "reason")
                    if key in one
                }
                for side, one in record.get("sets", {}).items()
            },
            "data_equal": record.get("data_equal"),
            "lost_acked_writes": record.get("lost_acked_writes"),
            "capture_drops": record.get("capture", {}).get("kernel_drops"),
            "digests_checked": record.get("capture", {}).get("digests_checked"),
            "canaries": record.get("canaries", {}),
            "recheck": record.get("recheck", {}),
            "verdict": record.get("verdict"),
            "reasons": self.reasons,
        }
        if trigger:
            times = {key: value for key, value in trigger.items() if key.startswith("t_")}
            described["trigger"] = {
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
            described["error"] = {"whose": "rig", "text": str(self.error)}
        return described


class ScenarioRun:
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
            bench_id=bench.id,
            pair_id=bench.pair_id,
            seed=seed,
            scenario=scenario.name,
            versions=versions(),
            rules=[str(path) for path in bench.rule_paths()],
            incident_id=secrets.token_bytes(control.INCIDENT_ID_BYTES),
        )
        keep_basis(self.incident, bench)
        self.is_underway = False
        """From the first host write on there is something to tell."""
        self.reasons: list[str] = []
        self.compared: recovery.Compared | None = None
        self.journalled: int | None = None
        """Acknowledged writes in the journal that the data was compared with; None: not
        compared."""

    def execute(self) -> Result:
        """Run it to its end. UsageError is raised; all else becomes the result's outcome."""
        try:
            refuse_unplayable(self.bench, self.scenario)
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
        """What our own processes wrote to stderr, which is nothing when all is well, belongs to the
        incident."""
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
        kept = (
            self.keep or (outcome != "pass" and self.is_underway) or record["trigger"] is not None
        )
        if kept:
            try:
                conclude(self.incident)
                omitted = left_out(read_record({"verdict": record.get("verdict")})[0])
                if omitted and self.scenario.expect.data_equal:
                    self.reasons += omitted
                    outcome = "fail" if outcome in ("pass", "inconclusive") else outcome
                self.incident.finish(outcome)
            except RigError as failure:
                # An incident that could not be closed has no sums: whatever was seen, it cannot be
                # shown.
                outcome, error = "rig-trouble", error or failure
                self.reasons.append(f"the incident could not be closed: {failure}")
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
        with OpenBench(self.bench, run_dir, seed=self.seed) as opened:
            workload = Workload(opened, self.incident, seed=self.seed)
            session = Session(
                opened, self.incident, self.view, lambda: self._compare(session, workload)
            )
            try:
                session.arm()
                self._set_faults(opened)
                self.is_underway = True
                self.view.phase("host writes")
                self._writes(session, workload, run_dir)
                self._aftermath(session)
                self._note_link_faults(opened, session)
                session.end("the host's writes were done, the data was being compared")
                if session.collector is None:
                    self._compare_at_the_end(session, workload)
            finally:
                session.close()
            return self._judge(session)

    def _set_faults(self, opened: OpenBench) -> None:
        plans = {side: self.scenario.fault_plan(side, self.seed) for side in SIDES}
        plans = {side: plan for side, plan in plans.items() if plan["faults"]}
        if not plans:
            return
        opened.arm_faults(plans)
        for side, plan in plans.items():
            self.incident.step(time.monotonic_ns(), side, FAULTS_ARMED, str(plan["faults"]))

    def _note_link_faults(self, opened: OpenBench, session: Session) -> None:
        """What the injector of a virtual rig did. RigError: nothing, though something was armed and
        the host wrote all."""
        if opened.virtual is None or not self.scenario.faults:
            return
        link = opened.virtual.status()["link"]
        if not link["fired"]:
            described = (
                f"the armed fault was not made: {link['writes']} replicated writes passed the link"
            )
            if session.workload_done is not None and session.workload_done.ok:
                raise RigError(described)
            self.reasons.append(described)
        for line in link["fired"]:
            self.incident.note(f"made in the link: {line}")

    def _writes(self, session: Session, workload: Workload, run_dir: Path) -> None:
        session.observation.expect_stamps(workload.stamps_seed)
        for window in self.scenario.expect.window:
            session.expect(window.rule, window.within_s)
        session.observation.add(workload.start(run_dir))
        self._await_writes(session, workload)
        with contextlib.suppress(
            RigError
        ):  # one that died is reported where its events are waited for
            session.observation.expect_stamps(None)

    def _await_writes(self, session: Session, workload: Workload) -> None:
        session.progressed_ns = time.monotonic_ns()
        while session.workload_done is None:
            session.pump(TICK_S)
            silent_s = (time.monotonic_ns() - session.progressed_ns) / 1e9
            if session.recovering:
                continue  # the sets first, whatever became of the workload
            if session.workload_is_frozen:
                workload.kill()
                raise RigError(
                    f"the workload's process has been silent for {WORKLOAD_SILENT_S:.0f} s: is it frozen, or this machine "
                    "overloaded?"
                )
            self._check_sight(session)
            if silent_s > STALLED_S and not session.recovering:
                self.reasons.append(f"host writes made no progress for {STALLED_S:.0f} s")
                return
            if workload.died and session.workload_done is None:
                raise workload.death()

    @staticmethod
    def _check_sight(session: Session) -> None:
        """RigError: the run has become blind, and proves nothing more."""
        if session.lost_evidence and not session.recovering:
            raise RigError("evidence was lost: " + "; ".join(session.lost_evidence))

    def _aftermath(self, session: Session) -> None:
        """What comes after the last write: a late trigger, and the recovery to its end."""
        expects = self.scenario.expect.detected
        quiet_ns = deadline_in(DETECT_TIMEOUT_S if expects else SETTLE_S)
        if expects and session.collector is None:
            self.view.phase("waiting for the fault to be seen")
        while session.collector is None and time.monotonic_ns() < quiet_ns:
            session.pump(min(TICK_S, max(0.0, (quiet_ns - time.monotonic_ns()) / 1e9)))
            self._check_sight(session)
        while session.recovering:
            session.pump(TICK_S)

    def _compare(self, session: Session, workload: Workload) -> recovery.Compared:
        """Host journal, primary and secondary against each other; called once the pair is whole, by
        whoever is there."""
        deadline_ns = deadline_in(STALLED_S)
        gone_ns = 0
        while session.workload_done is None and time.monotonic_ns() < deadline_ns:
            if session.workload_is_frozen:
                raise RigError("the workload's process is silent: there is nothing to compare with")
            if workload.died:
                gone_ns = gone_ns or deadline_in(LAST_WORDS_S)
                if time.monotonic_ns() > gone_ns:
                    raise workload.death()
            # Called from the collector's thread: the supervisor's own takes the writer's events
            # meanwhile.
            time.sleep(0.02)
        session.opened.await_full_duplex(deadline_in(self.bench.policy.rejoin_timeout_s))
        return self._hold_together(session, workload)

    def _hold_together(self, session: Session, workload: Workload) -> recovery.Compared:
        if why := unread(self.bench):
            self.incident.note(f"the data was not compared: {why}")
            return recovery.Compared(equal=None, detail=why)
        comparison = compare_volumes(session.opened, workload.journal_path)
        self.incident.update(
            data_equal=comparison.data_equal,
            # Without a journal nobody knows what was promised.
            lost_acked_writes=comparison.lost_acked_writes if workload.keeps_journal else None,
            comparison=asdict(comparison),
        )
        self.journalled = comparison.acked_writes if workload.keeps_journal else None
        self.compared = recovery.Compared(equal=comparison.data_equal, detail=in_words(comparison))
        return self.compared

    def _compare_at_the_end(self, session: Session, workload: Workload) -> None:
        """A pair that nobody froze; what had failed before cannot be asked, and that is no trouble
        of the bench."""
        try:
            self._compare(session, workload)
        except NotWholeError as error:
            # It was whole when the bench was armed, and nobody instructed it.
            self.reasons.append(str(error))
            self._hold_together(session, workload)
        except RigError as error:
            done = session.workload_done
            # Without an end of the writes there is a reason only where they had stalled.
            if not (self.reasons if done is None else not done.ok and done.whose == "device"):
                raise
            self.reasons.append(f"the data was not compared: {error}")

    # --- the outcome ------------------------------------------------------------------------------------------
    def _judge(self, session: Session) -> Outcome:
        outcome = self._judged(session)
        link = self.bench.link
        self.reasons += filter(None, [not_understood(link.protocol, link.tells)])
        return outcome

    def _judged(self, session: Session) -> Outcome:
        reasons = self.reasons
        record = self.incident.record
        self._judge_evidence(session)
        done = session.workload_done
        if done is not None and not done.ok:
            reasons.append(f"the host's writes failed: {done.error}")
        if done is not None and done.wrong_reads_total:
            first = next(
                (f", first at byte {one.offset_bytes}: {one.text}" for one in done.wrong_reads), ""
            )
            reasons.append(
                f"the host read back {done.wrong_reads_total} blocks that are not what it wrote{first}"
            )
        reasons += self._judge_data(session)
        has_failed = bool(reasons)
        missed = {key: record["capture"].get(key, 0) for key in ("kernel_drops", "gaps")}
        if not self.scenario.expect.detected:
            reasons += [
                f"unexpected trigger {one.rule} on the {one.side}'s {one.source}: {one.words}"
                for one in session.unexcused[:5]
            ]
        else:
            self._judge_detection(session)
        if reasons:
            # What was not seen may have been in what the capture missed; what is wrong in itself is
            # wrong all the same.
            is_unseen = self.scenario.expect.detected and not session.unexcused and not has_failed
            return "inconclusive" if is_unseen and any(missed.values()) else "fail"
        if record["data_equal"] is None:
            reasons.append("the data was not compared")
        reasons += unproved(
            self.bench.link.demand, linksight.sight_of(record["capture"]),
            wrote=done is not None and done.writes_acked > 0,
            by_silence=not self.scenario.expect.detected,
        ).values()  # fmt: skip
        return "inconclusive" if reasons else "pass"

    def _judge_data(self, session: Session) -> Iterator[str]:
        """What is wrong with the data. Writes that were only acknowledged and went with the power
        that the harness itself cut from the primary are recorded, and are no failure."""
        record = self.incident.record
        if not self.scenario.expect.data_equal:
            return  # what the fault left different is the verdict's to say
        lost = record["lost_acked_writes"] or 0
        unflushed = (record.get("comparison") or {}).get("lost_unflushed_writes", 0)
        finish = session.collector.finish if session.collector is not None else None
        was_cut = finish is not None and any(
            one.power_cycled and one.side == "primary" for one in finish.sides
        )
        never = (
            f"{unflushed} of the lost writes were only acknowledged: the host had not flushed them when its port went "
            "away, and a volatile cache may lose them when its power fails"
        )
        if was_cut and 0 < lost == unflushed and record["comparison"]["sides_equal"]:
            self.incident.note(never)
            return
        if record["data_equal"] is False:
            detail = self.compared.detail if self.compared else ""
            yield f"the data of host, primary and secondary differ: {detail}"
        if lost:
            yield f"{lost} acknowledged writes are lost"
        if unflushed:
            yield never

    def _judge_evidence(self, session: Session) -> None:
        """RigError when what the judgement stands on is not there."""
        record = self.incident.record
        if session.lost_evidence:
            raise RigError("evidence was lost: " + "; ".join(session.lost_evidence))
        done = session.workload_done
        if done is None:
            return
        record["workload"] |= {
            "ok": done.ok, "writes_acked": done.writes_acked, "bytes_written": done.bytes_written,
            "longest_hold_ns": done.longest_hold_ns, "error": done.error, "verified_bytes": done.verified_bytes,
            "wrong_reads": [[one.offset_bytes, one.size_bytes, one.text] for one in done.wrong_reads],
            "wrong_reads_total": done.wrong_reads_total,
        }  # fmt: skip
        if done.whose in ("rig", "caller"):
            raise (RigError if done.whose == "rig" else UsageError)(
                f"the host's workload: {done.error}"
            )
        demand = self.bench.link.demand
        is_unseen = Tell.WRITE in demand.tells and not record["capture"].get("writes")
        if done.writes_acked and is_unseen:
            raise RigError(
                f"{no_write_seen(demand, record['capture'].get('blind') or {})} The host's writes were acknowledged"
            )
        if self.journalled is not None and self.journalled != done.writes_acked:
            record |= {"data_equal": None, "lost_acked_writes": None, "comparison": None}
            raise RigError(
                f"the host's journal holds {self.journalled} acknowledged writes, the writer reported "
                f"{done.writes_acked}: what was compared was not what was promised"
            )

    def _judge_detection(self, session: Session) -> None:
        expected = self.scenario.expect.rules
        if not session.unexcused:
            self.reasons.append("the armed fault was not detected")
            return
        if session.collector is None:
            rules = ", ".join(sorted({one.rule for one in session.unexcused}))
            self.reasons.append(
                f"triggers that instruct nobody, or that came before the bench was armed or after the end: {rules}"
            )
            return
        # What fired after a frame had gone out may be the frame's own doing: a warmstart closes the
        # link.
        seen = {one.rule for one in session.causes}
        if expected and not seen & set(expected):
            self.reasons.append(
                f"none of the expected rules fired ({', '.join(expected)}), but {', '.join(sorted(seen))} did"
            )
        finish = session.collector.finish
        if finish is None:
            self.reasons.append("the recovery did not end")
            return
        for side in finish.sides:
            if side.set != "complete":
                self.reasons.append(
                    f"the {side.side}'s root cause data set is {side.set}: {side.reason}"
                )
            if side.helped_by and not self.scenario.expect.power_cycle:
                self.reasons.append(f"the {side.side} came back only by {side.helped_by}")
        if self.scenario.expect.power_cycle and not any(side.helped_by for side in finish.sides):
            self.reasons.append("no controller hung in its warmstart: none had to be power cycled")
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
    return ScenarioRun(
        bench, scenario, seed=seed, out_dir=out_dir, view=view or Silent(), keep=keep
    ).execute()
