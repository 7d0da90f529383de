"""What a run makes of what it has seen: no outcome is better than its evidence."""

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from freezeframe.harness.bench.benchfile import Bench, Scenario, load_bench, load_scenario
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import SIDES, Side, Trigger, Whose, WorkloadDone, WrongRead
from freezeframe.harness.core.recovery.messages import Compared, Finish, SideResult
from freezeframe.harness.errors import NotWholeError, RigError, UsageError
from freezeframe.harness.roles import Controller, Identity
from freezeframe.harness.runs.campaign import ScenarioRun
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.workload import Workload

ACKED = 1024
CAPTURE = {
    "packets": 9000,
    "kernel_drops": 0,
    "gaps": 0,
    "writes": ACKED,
    "acks": ACKED,
    "digests_checked": ACKED,
}
DONE = WorkloadDone(t_ns=1, ok=True, writes_acked=ACKED, bytes_written=ACKED << 16)


WRONG_READ = WorkloadDone(
    t_ns=1, ok=True, writes_acked=ACKED, wrong_reads_total=3,
    wrong_reads=[WrongRead(offset_bytes=512, size_bytes=512, text="verify failed")],
)  # fmt: skip
LOST_UNFLUSHED: dict[str, object] = {
    "data_equal": False, "lost_acked_writes": 2,
    "comparison": {"lost_unflushed_writes": 2, "sides_equal": True},
}  # fmt: skip


def trigger(rule: str) -> Trigger:
    return Trigger(
        t_ns=5, rule=rule, source="console", side="secondary", offset_bytes=1, t_arrival_ns=4, t_match_ns=5,
        instruct=list(SIDES),
    )  # fmt: skip


@dataclass
class Collected:
    finish: Finish | None


@dataclass
class Seen:
    """What a session holds when it is closed."""

    workload_done: WorkloadDone | None = DONE
    lost_evidence: list[str] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)
    causes: list[Trigger] = field(default_factory=list)
    collector: Collected | None = None

    @property
    def unexcused(self) -> list[Trigger]:
        return self.triggers


def side(name: Side, **changes: object) -> SideResult:
    known: dict[str, object] = {
        "side": name,
        "set": "complete",
        "reply": "ok",
        "boot_epoch": 2,
        "up": True,
    }
    return SideResult(**(known | changes))  # type: ignore[arg-type]


def recovered(*causes: str, later: tuple[str, ...] = (), **primary: object) -> Seen:
    sides = (side("primary", **primary), side("secondary"))
    finish = Finish(sides=sides, rejoined=True, data_equal=True)
    told = [trigger(rule) for rule in causes]
    return Seen(
        causes=told,
        triggers=[*told, *(trigger(rule) for rule in later)],
        collector=Collected(finish),
    )


@pytest.fixture
def judged(tmp_path: Path) -> "Judge":
    return Judge(tmp_path)


class Judge:
    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir
        self.run: ScenarioRun

    def __call__(
        self, scenario: str | Scenario, seen: Seen, bench: Bench | None = None, **record: object
    ) -> str:
        plan = load_scenario(scenario) if isinstance(scenario, str) else scenario
        self.run = ScenarioRun(
            bench or load_bench("sim"), plan, seed=1, out_dir=self._out_dir, view=Silent(), keep=True
        )  # fmt: skip
        known: dict[str, object] = {
            "capture": dict(CAPTURE),
            "data_equal": True,
            "lost_acked_writes": 0,
        }
        self.run.incident.record |= known | record
        self.run.journalled = ACKED
        return self.run._judge(cast(Session, seen))

    @property
    def why(self) -> str:
        return "; ".join(self.run.reasons)


def test_all_as_expected_passes(judged: Judge) -> None:
    assert judged("clean", Seen()) == "pass"
    assert judged("bit_flip_receiver", recovered("digest-failed")) == "pass"
    assert judged("hung_warmstart", recovered("digest-failed", power_cycled=True)) == "pass"


def test_what_went_with_the_power_that_the_harness_cut_had_only_been_acknowledged(
    judged: Judge,
) -> None:
    cut = recovered("digest-failed", power_cycled=True)
    assert judged("hung_warmstart", cut, **LOST_UNFLUSHED) == "pass"
    assert any("only acknowledged" in note for note in judged.run.incident.record["notes"])
    flushed = {"lost_unflushed_writes": 1, "sides_equal": True}
    assert judged("hung_warmstart", cut, **(LOST_UNFLUSHED | {"comparison": flushed})) == "fail"
    unequal = {"lost_unflushed_writes": 2, "sides_equal": False}
    assert judged("hung_warmstart", cut, **(LOST_UNFLUSHED | {"comparison": unequal})) == "fail"


@pytest.mark.parametrize("whose", ["rig", "caller"])
def test_a_workload_that_lacks_something_is_no_device_that_failed(
    judged: Judge, whose: Whose
) -> None:
    done = WorkloadDone(t_ns=1, ok=False, error="fio is not installed", whose=whose)
    with pytest.raises(RigError if whose == "rig" else UsageError, match="fio is not installed"):
        judged("clean", Seen(workload_done=done))


def test_without_a_capture_nothing_is_judged(judged: Judge) -> None:
    for capture in ({}, CAPTURE | {"writes": 0}):
        with pytest.raises(RigError, match="saw no replicated write"):
            judged("clean", Seen(), capture=capture)


def with_link(**changes: object) -> Bench:
    """The simulated bench with another [link]."""
    bench = load_bench("sim")
    link = bench.link.model_validate(bench.link.model_dump() | changes)
    return bench.model_copy(update={"link": link})


def test_a_run_on_another_port_says_which_port_it_looked_at(judged: Judge) -> None:
    with pytest.raises(RigError, match=r"protocol drbd on TCP port 7799.* that its port\?"):
        judged("clean", Seen(), bench=with_link(port=[7799]), capture=CAPTURE | {"writes": 0})


@pytest.mark.parametrize(("counter", "what"), [("digests_checked", "digest"), ("acks", "answer")])
def test_what_must_be_checked_and_was_not_is_no_pass(
    judged: Judge, counter: str, what: str
) -> None:
    blind = CAPTURE | {counter: 0}
    assert judged("clean", Seen(), capture=blind) == "inconclusive"
    assert any(f"no {what} was checked" in one for one in judged.run.reasons)
    assert judged("neg_ack", recovered("link-neg-ack"), capture=blind) == "inconclusive"
    other = with_link(must_check=[one for one in ("digest", "answer") if one != what])
    assert judged("clean", Seen(), bench=other, capture=blind) == "pass"
    assert judged("clean", Seen(), bench=with_link(must_check=[]), capture=blind) == "pass"


def test_a_link_that_is_not_understood_is_said_once_and_the_rest_is_judged(judged: Judge) -> None:
    bench, capture = with_link(protocol="none"), {"packets": 9000, "kernel_drops": 0, "gaps": 0}
    assert judged("clean", Seen(), bench=bench, capture=capture) == "pass"
    (said,) = judged.run.reasons
    assert "recorded and not understood" in said
    failed = judged("clean", Seen(), bench=bench, capture=capture, data_equal=False)
    assert failed == "fail"
    assert sum("not understood" in one for one in judged.run.reasons) == 1


@pytest.mark.parametrize("hole", ["kernel_drops", "gaps"])
def test_silence_proves_nothing_where_the_capture_has_holes(judged: Judge, hole: str) -> None:
    assert judged("clean", Seen(), capture=CAPTURE | {hole: 3}) == "inconclusive"
    assert "3" in judged.why
    # What was seen in spite of them was seen.
    assert judged("neg_ack", recovered("link-neg-ack"), capture=CAPTURE | {hole: 3}) == "pass"


def test_a_comparison_with_another_journal_is_none(judged: Judge) -> None:
    for journalled in (0, ACKED - 1):
        run = ScenarioRun(
            load_bench("sim"),
            load_scenario("clean"),
            seed=1,
            out_dir=judged._out_dir,
            view=Silent(),
            keep=True,
        )
        run.incident.record |= {
            "capture": dict(CAPTURE),
            "data_equal": True,
            "lost_acked_writes": 0,
        }
        run.journalled = journalled
        with pytest.raises(RigError, match=f"journal holds {journalled} acknowledged writes"):
            run._judge(cast(Session, Seen()))


def test_lost_evidence_is_rig_trouble_whatever_else_was_seen(judged: Judge) -> None:
    with pytest.raises(RigError, match="secondary console ended"):
        judged("clean", Seen(lost_evidence=["secondary console ended: closed"]))


def test_data_that_was_not_compared_is_inconclusive(judged: Judge) -> None:
    assert judged("clean", Seen(), data_equal=None) == "inconclusive"


@pytest.mark.parametrize(
    ("scenario", "seen", "record", "why"),
    [
        ("clean", Seen(), {"data_equal": False}, "differ"),
        ("clean", Seen(), {"lost_acked_writes": 2}, "2 acknowledged writes are lost"),
        ("clean", Seen(), LOST_UNFLUSHED, "the host had not flushed them"),
        ("hung_warmstart", recovered("digest-failed"), LOST_UNFLUSHED, "2 of the lost writes were only acknowledged"),
        ("clean", Seen(workload_done=WRONG_READ), {}, "read back 3 blocks that are not what it wrote, first at byte 512"),
        ("clean", Seen(triggers=[trigger("digest-failed")]), {}, "unexpected trigger digest-failed"),
        ("clean", Seen(workload_done=WorkloadDone(t_ns=1, ok=False, error="EIO", writes_acked=ACKED)), {}, "EIO"),
        ("neg_ack", Seen(), {}, "not detected"),
        ("neg_ack", recovered("digest-failed"), {}, "none of the expected rules"),
        # The warmstart itself closes the link: what it sets off is no detection.
        ("console_garble", recovered("ping-timeout", later=("link-unacked-close",)), {}, "none of the expected"),
        ("neg_ack", Seen(triggers=[trigger("link-neg-ack")]), {}, "before the bench was armed"),
        ("neg_ack", recovered("link-neg-ack", set="partial", reason="line broke"), {}, "partial: line broke"),
        ("neg_ack", recovered("link-neg-ack", power_cycled=True), {}, "only by a power cycle"),
        ("hung_warmstart", recovered("digest-failed"), {}, "none had to be power cycled"),
    ],
)  # fmt: skip
def test_a_device_that_failed_fails(
    judged: Judge, scenario: str, seen: Seen, record: dict[str, object], why: str
) -> None:
    assert judged(scenario, seen, **record) == "fail"
    assert why in judged.why


@pytest.mark.parametrize("rejoined", [True, False, None])
def test_a_pair_that_did_not_rejoin_fails(judged: Judge, rejoined: bool | None) -> None:
    seen = recovered("digest-failed")
    assert seen.collector is not None and seen.collector.finish is not None
    seen.collector.finish = replace(
        seen.collector.finish, rejoined=rejoined, detail="cs:WFConnection"
    )
    assert judged("bit_flip_receiver", seen) == ("pass" if rejoined else "fail")
    why = "the pair did not return to full duplex: cs:WFConnection"
    assert (why in judged.why) is not bool(rejoined)


def test_an_incident_that_cannot_be_closed_is_not_a_pass(judged: Judge) -> None:
    assert judged("clean", Seen()) == "pass"
    shutil.rmtree(judged.run.incident.path)
    result = judged.run._ended("pass", None)
    assert result.outcome == "rig-trouble"
    assert isinstance(result.error, RigError)
    assert "could not be closed" in "; ".join(result.reasons)


@pytest.mark.parametrize("hole", ["kernel_drops", "gaps"])
def test_a_hole_in_the_capture_excuses_what_was_not_seen_and_nothing_else(
    judged: Judge, hole: str
) -> None:
    capture = CAPTURE | {hole: 3}
    assert judged("neg_ack", Seen(), capture=capture) == "inconclusive"
    assert judged("neg_ack", Seen(), capture=capture, lost_acked_writes=2) == "fail"
    assert judged("neg_ack", Seen(), capture=capture, data_equal=False) == "fail"
    failed = WorkloadDone(t_ns=1, ok=False, error="EIO", whose="device", writes_acked=ACKED)
    assert judged("neg_ack", Seen(workload_done=failed), capture=capture) == "fail"


def test_a_link_fault_that_was_not_made_is_the_rigs_only_where_the_host_wrote_all(
    judged: Judge,
) -> None:
    status = {"link": {"fired": [], "writes": 2}}
    opened = cast(OpenBench, SimpleNamespace(virtual=SimpleNamespace(status=lambda: status)))
    judged("neg_ack", Seen())
    with pytest.raises(RigError, match="2 replicated writes passed the link"):
        judged.run._note_link_faults(opened, cast(Session, Seen()))
    for done in (None, WorkloadDone(t_ns=1, ok=False, error="EIO", whose="device")):
        judged.run._note_link_faults(opened, cast(Session, Seen(workload_done=done)))
        assert "the armed fault was not made" in judged.why


class Unwhole(ScenarioRun):
    """Of a pair that does not become whole again."""

    def _compare(self, session: Session, workload: Workload) -> Compared:
        raise RigError("the pair did not reach full duplex in time")


def test_a_pair_that_cannot_be_compared_is_the_rigs_trouble_only_where_the_host_had_none(
    tmp_path: Path,
) -> None:
    run = Unwhole(
        load_bench("sim"),
        load_scenario("clean"),
        seed=1,
        out_dir=tmp_path,
        view=Silent(),
        keep=True,
    )
    nobody = cast(Workload, None)
    with pytest.raises(RigError, match="full duplex"):
        run._compare_at_the_end(cast(Session, Seen()), nobody)
    run.reasons.append("host writes made no progress for 60 s")
    run._compare_at_the_end(cast(Session, Seen(workload_done=None)), nobody)
    assert run.reasons[1] == "the data was not compared: the pair did not reach full duplex in time"


class LeftByItself(Unwhole):
    """Of a pair that is no longer whole, though both controllers answer."""

    def _compare(self, session: Session, workload: Workload) -> Compared:
        raise NotWholeError("the pair did not reach full duplex in time; primary: copy pending")

    def _hold_together(self, session: Session, workload: Workload) -> Compared:
        self.compared = Compared(equal=True, detail="")
        return self.compared


def test_a_pair_that_left_full_duplex_by_itself_has_failed_and_is_compared(tmp_path: Path) -> None:
    """A mirror that lacks acknowledged writes says so only here; its volumes may be equal by luck."""
    run = LeftByItself(
        load_bench("sim"),
        load_scenario("clean"),
        seed=1,
        out_dir=tmp_path,
        view=Silent(),
        keep=True,
    )
    run._compare_at_the_end(cast(Session, Seen()), cast(Workload, None))
    assert run.reasons == ["the pair did not reach full duplex in time; primary: copy pending"]
    assert run.compared is not None


class Asked:
    """Answers in turn what it was given; an error is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def identify(self, side: str, deadline_ns: int) -> Identity:
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Identity)
        return found


@pytest.mark.parametrize(
    ("answers", "kind", "text"),
    [
        (
            ["ok", "pending", "ok", "no answer"],
            NotWholeError,
            "copy pending .8 sectors, bad_blocks.",
        ),
        (["no answer"], RigError, "no answer"),
    ],
)
def test_two_that_have_just_answered_are_there_when_the_time_is_up(
    answers: list[str], kind: type[Exception], text: str
) -> None:
    def identity(state: str, detail: str = "") -> Identity:
        return Identity(
            model="M", serial_number="S", firmware_version="1", boot_epoch=1, role=1, pair_state=state,
            uptime_ns=1, events_logged=0, pair_detail=detail,
        )  # fmt: skip

    known = {
        "ok": identity("full duplex"),
        "pending": identity("copy pending", "8 sectors, bad_blocks"),
        "no answer": RigError("no answer"),
    }
    bench = OpenBench.__new__(OpenBench)
    asked = Asked(*(known[one] for one in answers))
    bench.controllers = dict.fromkeys(SIDES, cast(Controller, asked))  # who is to be asked
    bench.identify = asked.identify  # type: ignore[method-assign]
    with pytest.raises(kind, match=text) as caught:
        bench.await_full_duplex(time.monotonic_ns() + 10**12)
    assert type(caught.value) is kind
