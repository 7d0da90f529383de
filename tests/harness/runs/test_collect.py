"""The collector against controllers that answer wrongly, late, with another incident's set, or not
at all."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.guard import Rung
from freezeframe.harness.core.recovery.messages import (
    Answered,
    Compared,
    Finish,
    FrameNotOut,
    FrameOut,
    Policy,
    PowerCycle,
    SendBreak,
    TimedOut,
)
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.errors import LineGoneError, RigError, WireError, WrongDeviceError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Identity, Reply, RootCauseSet, SetEntry
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.carry import Carrier
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.runs.strike import epochs_of, restarted_in

LIMIT_S = 60
OURS = b"\x01" * 16
ARMED_EPOCH = 4
STORED = b"a stored set"
ENTRY = SetEntry(
    set_id=7, kind="warmstart", complete=True, reason=1, incident_id=OURS, raw_bytes=90, stored_bytes=len(STORED),
    boot_epoch=ARMED_EPOCH, sha256="00",
)  # fmt: skip
STRANGER = replace(ENTRY, set_id=9, incident_id=b"\x02" * 16, boot_epoch=ARMED_EPOCH - 1)
IDENTITY = Identity(
    model="SimArray 1", serial_number="P", firmware_version="1", boot_epoch=ARMED_EPOCH + 1, role=1,
    pair_state="full duplex", uptime_ns=1, events_logged=1, capabilities=0,
)  # fmt: skip


@dataclass
class Device:
    """A controller as the collector asks it."""

    answer: Reply | None = field(default_factory=lambda: Reply(ok=True, status="ok", set_id=7))
    boot_epoch: int = ARMED_EPOCH + 1
    entries: list[SetEntry] = field(default_factory=lambda: [ENTRY])
    failures: list[Exception] = field(default_factory=list)
    """Raised by the first pulls, each after half of what was still to come."""
    pulled: list[tuple[int, bytes]] = field(default_factory=list)
    """(set id, what had arrived before) of each pull."""
    powered: list[Side] = field(default_factory=list)
    """Each switching of its power."""
    frame_repeats: int = 0
    lost_frames: int = 0
    """So many frames do not arrive: it neither answers them nor restarts."""
    written: list[bytes] = field(default_factory=list)

    closed: int = 0
    """The line is gone for so many attempts to open it."""

    def reopen(self, side: Side, gone: object) -> None:
        assert gone is self.link
        self.closed -= 1
        if self.closed >= 0:
            raise RigError("no such device")

    @property
    def link(self) -> "Device":
        return self

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.lost_frames -= 1

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        assert not disruptive and incident_id == OURS
        return b"save in boot %d" % identity.boot_epoch

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        return self.answer if self.lost_frames <= 0 else None

    def identify(self, deadline_ns: Ns) -> Identity:
        boot_epoch = self.boot_epoch if self.lost_frames <= 0 else ARMED_EPOCH
        return replace(IDENTITY, boot_epoch=boot_epoch)

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        return self.entries

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        if self.closed > 0:
            raise LineGoneError("unplugged")
        self.pulled.append((entry.set_id, have))
        rest = STORED[len(have) :]
        if self.failures:
            progress(rest[: len(rest) // 2])
            raise self.failures.pop(0)
        progress(rest)
        return RootCauseSet(header={"set_id": entry.set_id}, state={}, events=[])


def collect(
    tmp_path: Path,
    device: Device,
    *,
    instructed_by: str = "harness",
    armed_epoch: int = ARMED_EPOCH,
    power_cycle: bool = False,
    switches_power: bool = True,
    breaks: bool = False,
    boot_timeout_s: float | None = None,
    secondary: Device | None = None,
    audit: AuditJournal | None = None,
    missed_ns: Ns | None = None,
) -> tuple[Finish, Incident]:
    policy = Policy(
        reply_timeout_s=1,
        boot_timeout_s=boot_timeout_s or (0.2 if device.boot_epoch <= armed_epoch else LIMIT_S),
        pull_timeout_s=5,
        rejoin_timeout_s=1,
        power_cycle=power_cycle,
        breaks=frozenset({"primary"} if breaks else ()),
    )
    devices: dict[Side, Device] = {"primary": device}
    if secondary is not None:
        devices["secondary"] = secondary
    opened = SimpleNamespace(
        controllers=devices,
        bench=SimpleNamespace(
            policy=SimpleNamespace(instructed_by=instructed_by, recovery=lambda: policy)
        ),
        await_full_duplex=lambda deadline_ns: {},
        power_cycle=device.powered.append,
        reopen_control=lambda side, gone: devices[side].reopen(side, gone),
    )
    incident = Incident.create(tmp_path, bench="none", seed=0, incident_id=OURS)
    ended = threading.Event()
    collector: Collector

    def changed() -> None:
        if collector.finish is not None or collector.failure is not None:
            ended.set()

    armed: dict[Side, int] = dict.fromkeys(devices, armed_epoch)
    collector = Collector(
        cast(OpenBench, opened), incident, armed, lambda: Compared(equal=True), changed,
        switches_power=switches_power, audit=audit,
    )  # fmt: skip
    for side in devices:
        if side == "primary" and missed_ns is not None:
            collector.feed(FrameNotOut(side=side, reason="it was not armed", t_ns=missed_ns))
        else:
            collector.feed(FrameOut(side=side), b"frame")
    assert ended.wait(LIMIT_S)
    assert collector.failure is None
    assert collector.finish is not None
    return collector.finish, incident


@pytest.mark.parametrize(
    ("repeats", "written", "kept"), [(1, [b"frame"], "complete"), (0, [], "missing")]
)
def test_a_frame_that_was_lost_is_written_again_where_the_driver_says_so(
    tmp_path: Path, repeats: int, written: list[bytes], kept: str
) -> None:
    """Seen: a watch lost the set of a controller whose warmstart frame was lost on the line."""
    device = Device(frame_repeats=repeats, lost_frames=1, boot_epoch=ARMED_EPOCH + 1)
    device.entries = device.entries if repeats else []
    audit = AuditJournal("lab", "watch", Path())
    before = audited(audit)
    finish, incident = collect(
        tmp_path, device, boot_timeout_s=0.2 if not repeats else LIMIT_S, audit=audit
    )
    assert device.written == written
    assert finish.sides[0].set == kept
    steps = [one["step"] for one in incident.record["recovery"]]
    assert ("no answer, written again" in steps) == bool(repeats)
    # It is a frame like the first: among the actions, with its answer, and in the audit journal.
    again = [
        (one["frame_hex"], one["reply"]["status"], one["t_frame_ns"] <= one["t_frame_done_ns"])
        for one in incident.record["actions"]
    ]
    assert again == [(frame.hex(), "ok", True) for frame in written]
    assert [
        (one["action"], one["about"], one["why"], one["result"])
        for one in audited(audit)[len(before) :]
    ] == [("frame", "primary", "no answer, written again", "ok")] * repeats


@dataclass
class Unarmed(Device):
    """Its first answers are not worth anything, and it has its set once it was asked to save."""

    trouble: list[Exception] = field(default_factory=list)
    uptime_ns: int = 0
    has_set: bool = False

    def identify(self, deadline_ns: Ns) -> Identity:
        if self.trouble:
            raise self.trouble.pop(0)
        return replace(super().identify(deadline_ns), uptime_ns=self.uptime_ns)

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        return [ENTRY] if self.written or self.has_set else [STRANGER]


def unarmed(tmp_path: Path, device: Unarmed, armed_epoch: int = 0) -> tuple[Finish, Incident]:
    return collect(
        tmp_path, device, secondary=Device(), armed_epoch=armed_epoch,
        missed_ns=time.monotonic_ns() - 60 * NS_PER_S,
    )  # fmt: skip


def test_a_side_that_was_not_armed_saves_once_it_answers_as_itself(tmp_path: Path) -> None:
    """Seen: a wrong serial number just before a strike; a second later it was right, and its set was
    never asked for."""
    device = Unarmed(trouble=[WrongDeviceError("X"), WireError("noise")], uptime_ns=61 * NS_PER_S)
    finish, incident = unarmed(tmp_path, device)
    assert device.written == [b"save in boot 5"]
    assert [one.set for one in finish.sides] == ["complete", "complete"]
    (late,) = [one for one in incident.record["actions"] if one["side"] == "primary"]
    assert late["reply"]["status"] == "ok"
    steps = {one["step"]: one["detail"] for one in incident.record["recovery"]}
    assert re.fullmatch(r"60\.\d{3} s after the trigger's frames", steps["asked to save now"])


@pytest.mark.parametrize(
    ("device", "armed_epoch", "reason"),
    [
        (Unarmed(uptime_ns=59 * NS_PER_S), 0, "it restarted after the trigger"),
        (Unarmed(), ARMED_EPOCH, "it restarted after the trigger"),
        (Unarmed(), 0, "not known whether it restarted"),
    ],
)
def test_a_boot_since_the_trigger_has_nothing_to_save(
    tmp_path: Path, device: Unarmed, armed_epoch: int, reason: str
) -> None:
    finish, _ = unarmed(tmp_path, device, armed_epoch)
    assert device.written == [] and finish.sides[0].set == "missing"
    assert finish.sides[0].reason == f"frame not out: it was not armed; too late to save: {reason}"


def test_a_set_that_is_there_all_the_same_is_pulled_and_none_is_saved(tmp_path: Path) -> None:
    """The frame's write had failed, and it had arrived."""
    device = Unarmed(has_set=True)
    finish, _ = unarmed(tmp_path, device, ARMED_EPOCH)
    assert device.written == [] and finish.sides[0].set == "complete"


def audited(audit: AuditJournal) -> list[dict[str, str]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in audit.path.read_text().splitlines()]
    return []


def test_a_repeated_frame_that_cannot_be_written_is_an_action_too(tmp_path: Path) -> None:
    class Unplugged(Device):
        def write(self, data: bytes) -> None:
            self.lost_frames -= 1
            raise LineGoneError("unplugged")

    audit = AuditJournal("lab", "watch", Path())
    before = audited(audit)
    _, incident = collect(tmp_path, Unplugged(frame_repeats=1, lost_frames=1), audit=audit)
    assert [one["error"] for one in incident.record["actions"]] == ["unplugged"]
    assert [one["result"] for one in audited(audit)[len(before) :]] == ["unplugged"]


def test_a_line_that_is_gone_in_the_pull_is_waited_for(tmp_path: Path) -> None:
    """Seen: five attempts in a row failed at once, and the set was given up within a millisecond."""
    device = Device(closed=8)
    finish, incident = collect(tmp_path, device)
    assert finish.sides[0].set == "complete"
    assert incident.set_path("primary").read_bytes() == STORED


def test_a_line_that_is_gone_does_not_delay_the_other_sides_set(tmp_path: Path) -> None:
    """Seen: the other's set was pulled when the line was there again, or its time was over."""
    at_first_reopen: list[int] = []
    intact = Device()

    class Unplugged(Device):
        def reopen(self, side: Side, gone: object) -> None:
            at_first_reopen.append(len(intact.pulled))
            super().reopen(side, gone)

    finish, _ = collect(tmp_path, Unplugged(closed=8), secondary=intact)
    assert [one.set for one in finish.sides] == ["complete", "complete"]
    assert at_first_reopen[0] == 1


def test_the_set_of_this_incident_is_pulled_and_no_other(tmp_path: Path) -> None:
    device = Device(entries=[STRANGER, ENTRY, replace(STRANGER, set_id=11)])
    finish, incident = collect(tmp_path, device)
    assert device.pulled == [(ENTRY.set_id, b"")]
    assert finish.sides[0].set == "complete"
    assert incident.set_path("primary").read_bytes() == STORED


@pytest.mark.parametrize("entries", [[], [STRANGER]])
def test_without_a_set_of_this_incident_it_is_missing(
    tmp_path: Path, entries: Sequence[SetEntry]
) -> None:
    device = Device(entries=list(entries))
    finish, incident = collect(tmp_path, device)
    assert device.pulled == []
    assert (finish.sides[0].set, finish.data_equal) == ("missing", True)
    assert "none of this incident" in finish.sides[0].reason
    assert incident.record["sets"]["primary"]["complete"] is False


def test_a_pair_that_instructs_itself_has_its_own_ids_but_no_set_of_an_earlier_boot(
    tmp_path: Path,
) -> None:
    own = replace(ENTRY, set_id=8, incident_id=b"\x03" * 16)
    device = Device(entries=[own, STRANGER])
    finish, _ = collect(tmp_path, device, instructed_by="secondary")
    assert device.pulled == [(own.set_id, b"")]
    assert finish.sides[0].set == "complete"
    finish, _ = collect(tmp_path / "stale", Device(entries=[STRANGER]), instructed_by="secondary")
    assert finish.sides[0].set == "missing"


def test_the_set_of_the_incident_before_is_not_collected_again_before_the_pair_is_armed_again(
    tmp_path: Path,
) -> None:
    """What is armed is of the boot before until then, and a controller may keep a set that was
    acknowledged. Seen: the set of the incident before was collected as that of the next."""
    first, second = ENTRY, replace(ENTRY, set_id=8, boot_epoch=ARMED_EPOCH + 1)
    device = Device(entries=[first])
    action = m.Collect(
        incident="000002", cause="r on the primary", epochs={"primary": ARMED_EPOCH},
        out=("primary",), failed={}, rung=Rung.WARMSTART,
    )  # fmt: skip
    assert epochs_of(action, restarted_in(None)) == {"primary": ARMED_EPOCH}
    finish, _ = collect(tmp_path / "1", device, instructed_by="secondary", armed_epoch=ARMED_EPOCH)
    restarted = restarted_in(finish)
    epochs = epochs_of(action, restarted)
    # It acts for the next failure: another set, another boot.
    device.entries, device.boot_epoch = [second, first], ARMED_EPOCH + 2
    finish, _ = collect(
        tmp_path / "2", device, instructed_by="secondary", armed_epoch=epochs["primary"]
    )
    assert finish.sides[0].set == "complete"
    assert [set_id for set_id, _ in device.pulled] == [first.set_id, second.set_id]
    # It did not act: there is no set of that boot, and the one before is not taken for it.
    device.entries = [first]
    finish, _ = collect(
        tmp_path / "3", device, instructed_by="secondary", armed_epoch=epochs["primary"]
    )
    assert finish.sides[0].set == "missing" and len(device.pulled) == 2


def test_a_pull_that_breaks_off_goes_on_behind_what_arrived(tmp_path: Path) -> None:
    device = Device(failures=[RigError("silent"), RigError("silent")])
    finish, incident = collect(tmp_path, device)
    assert [len(have) for _, have in device.pulled] == [0, 6, 9]
    assert finish.sides[0].set == "complete"
    assert incident.set_path("primary").read_bytes() == STORED


def test_a_damaged_set_is_kept_beside_and_pulled_anew(tmp_path: Path) -> None:
    device = Device(failures=[WireError("the set's SHA-256 is wrong")])
    finish, incident = collect(tmp_path, device)
    assert [len(have) for _, have in device.pulled] == [0, 0]
    assert finish.sides[0].set == "complete"
    assert incident.set_path("primary").read_bytes() == STORED
    assert (incident.path / "primary" / "set.damaged-1.zst").read_bytes() == STORED[:6]


def test_silence_is_told_as_silence(tmp_path: Path) -> None:
    """The frame may have been obeyed all the same: the set is pulled, but no answer is made up."""
    finish, incident = collect(tmp_path, Device(answer=None))
    assert finish.sides[0].reply == "no answer"
    assert finish.sides[0].set == "complete"
    assert any(step["step"] == "no answer" for step in incident.record["recovery"])


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (Device(answer=Reply(ok=False, status="STALE_EPOCH")), "refused: STALE_EPOCH"),
        (Device(boot_epoch=ARMED_EPOCH), "did not restart"),
    ],
)
def test_a_controller_that_did_not_warmstart_has_no_set(
    tmp_path: Path, device: Any, why: str
) -> None:
    finish, _ = collect(tmp_path, device)
    assert device.pulled == []
    assert finish.sides[0].set == "missing"
    assert why in finish.sides[0].reason


class Hung(Device):
    """It does not answer until its power has been switched."""

    def identify(self, deadline_ns: Ns) -> Identity:
        if not self.powered:
            raise WireError("no answer")
        return replace(IDENTITY, boot_epoch=ARMED_EPOCH + 1)


@pytest.mark.parametrize("switches_power", [True, False])
def test_a_side_that_does_not_restart_is_switched_only_where_that_is_wanted(
    switches_power: bool, tmp_path: Path
) -> None:
    """A dry run that goes on with the incident of a killed watch acts on nothing."""
    hung = Hung(boot_epoch=ARMED_EPOCH)
    finish, _ = collect(tmp_path, hung, power_cycle=True, switches_power=switches_power)
    assert hung.powered == (["primary"] if switches_power else [])
    assert finish.sides[0].power_cycled is switches_power


class Breakable(Hung):
    """A BREAK mends it."""

    def break_in(self, deadline_ns: Ns) -> None:
        self.powered.append("BREAK")


@pytest.mark.parametrize(
    ("device", "switches_power", "done"),
    [(Breakable, True, ["BREAK"]), (Breakable, False, []), (Hung, True, ["primary"])],
)
def test_a_break_goes_out_only_by_a_driver_that_sends_one_and_never_in_a_dry_run(
    device: type[Hung], switches_power: bool, done: list[str], tmp_path: Path
) -> None:
    hung = device(boot_epoch=ARMED_EPOCH)
    finish, _ = collect(
        tmp_path, hung, power_cycle=True, breaks=True, switches_power=switches_power
    )
    assert hung.powered == done
    assert finish.sides[0].break_sent is ("BREAK" in done)


class Exchanged(Breakable):
    """Another device answers in its place."""

    def identify(self, deadline_ns: Ns) -> Identity:
        raise WrongDeviceError("leads to X")


@pytest.mark.parametrize(
    ("device", "comes"),
    [
        (Device(), Answered(side="primary", boot_epoch=ARMED_EPOCH + 1)),
        (Exchanged(), TimedOut(detail="leads to X", is_stranger=True)),
    ],
)
@pytest.mark.parametrize("action", [SendBreak, PowerCycle])
def test_who_answers_gets_no_break_and_keeps_its_power(
    action: type[SendBreak | PowerCycle], device: Device, comes: Answered | TimedOut
) -> None:
    carrier = Carrier(
        cast(Any, SimpleNamespace(controllers={"primary": device}, power_cycle=device.powered.append)),
        cast(Any, SimpleNamespace()), MonotonicClock(), armed={}, is_autonomic=False, acted=print, compare=Compared,
        heard=print, pause=print, is_cancelled=lambda: False,
    )  # fmt: skip
    assert carrier.carry_out(action(side="primary", deadline_ns=0)) == comes
    assert device.powered == [] and device.written == []
