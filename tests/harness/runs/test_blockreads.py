"""When the failing block is read from which side, and what a side that refuses or is silent costs."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from freezeframe.harness.bench import boundary
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import Ns, Side, Trigger
from freezeframe.harness.core.recovery.messages import Compared, Finish, FrameOut, Policy
from freezeframe.harness.core.recovery.table import Signal
from freezeframe.harness.errors import WireError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.roles import Controller, Identity, Reply, RootCauseSet, SetEntry
from freezeframe.harness.runs import blockreads
from freezeframe.harness.runs.collect import Collector
from freezeframe.harness.wire import rootcause

LIMIT_S = 60
OURS = b"\x01" * 16
EPOCH = 4
STORED = b"a stored set"
ENTRY = SetEntry(
    set_id=7, kind="warmstart", complete=True, reason=1, incident_id=OURS, raw_bytes=90, stored_bytes=len(STORED),
    boot_epoch=EPOCH, sha256=hashlib.sha256(STORED).hexdigest(),
)  # fmt: skip
IDENTITY = Identity(
    model="M", serial_number="P", firmware_version="1", boot_epoch=EPOCH + 1, role=1, pair_state="full duplex",
    uptime_ns=1, events_logged=1,
)  # fmt: skip
CAUSE = Trigger(
    t_ns=1, rule="link-digest", source="link", side="primary", offset_bytes=1, t_arrival_ns=1, t_match_ns=1,
    sector=80, sectors=16,
)  # fmt: skip


@dataclass
class Device:
    """A controller as the collector asks it; it cannot read blocks."""

    side: Side
    said: list[tuple[Side, str]]
    """Each call in the order of their ends, of both sides."""

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply:
        self.said.append((self.side, "reply"))
        return Reply(ok=True, status="ok", set_id=7)

    def identify(self, deadline_ns: Ns) -> Identity:
        self.said.append((self.side, "identify"))
        return IDENTITY

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        return [ENTRY]

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        self.said.append((self.side, "pull"))
        progress(STORED)
        header = dict.fromkeys(rootcause.HEADER_KEYS, 0) | {"set_id": entry.set_id}
        return RootCauseSet(header=header, state=dict.fromkeys(rootcause.STATE_KEYS, 0), events=[])


@dataclass
class Reader(Device):
    """One that can."""

    content: bytes = bytes(8192)
    answers: list[str] = field(default_factory=list)
    """Of the next reads: "silent" until the deadline, or why they are refused; then all are answered."""
    asked: list[tuple[int, int]] = field(default_factory=list)
    patience_ns: list[Ns] = field(default_factory=list)
    took_ns: list[Ns] = field(default_factory=list)
    never: threading.Event = field(default_factory=threading.Event)

    def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: Ns) -> bytes:
        self.asked.append((offset_bytes, length_bytes))
        began_ns = time.monotonic_ns()
        self.patience_ns.append(deadline_ns - began_ns)
        answer = self.answers.pop(0) if self.answers else ""
        if answer == "silent":
            self.never.wait(max(0, deadline_ns - time.monotonic_ns()) / 1e9)
        self.took_ns.append(time.monotonic_ns() - began_ns)
        if answer:
            raise WireError(answer)
        self.said.append((self.side, "block"))
        return self.content


class BootReader(Reader):
    reads_while_booting = True


def collect(
    tmp_path: Path,
    *devices: Device,
    instructed: tuple[Side, ...] = ("primary", "secondary"),
    triggers: tuple[Trigger, ...] = (CAUSE,),
    rejoin_timeout_s: float = 1,
    rejoin: Callable[[Ns], object] = lambda deadline_ns: None,
) -> tuple[Finish, Incident]:
    """``rejoin`` is given the deadline of the wait for the pair's return, and ends it."""
    policy = Policy(
        reply_timeout_s=1, boot_timeout_s=LIMIT_S, pull_timeout_s=5, rejoin_timeout_s=rejoin_timeout_s,
        power_cycle=False,
    )  # fmt: skip
    bench_policy = SimpleNamespace(instructed_by="harness", recovery=lambda: policy)

    def await_full_duplex(deadline_ns: Ns) -> None:
        devices[0].said.append(("primary", "rejoin"))
        rejoin(deadline_ns)

    opened = SimpleNamespace(
        controllers={one.side: one for one in devices},
        bench=SimpleNamespace(policy=bench_policy, link=SimpleNamespace(console_texts=())),
        await_full_duplex=await_full_duplex,
    )
    incident = Incident.create(tmp_path, bench="none", seed=0, incident_id=OURS)
    ended = threading.Event()
    collector: Collector

    def changed() -> None:
        if collector.finish is not None or collector.failure is not None:
            ended.set()

    collector = Collector(
        cast(OpenBench, opened), incident, dict.fromkeys(instructed, EPOCH), lambda: Compared(equal=True),
        changed, cause=triggers[0], triggers=triggers[1:],
    )  # fmt: skip
    for side in instructed:
        collector.feed(FrameOut(side=side), b"frame")
    assert ended.wait(LIMIT_S)
    assert collector.failure is None
    assert collector.finish is not None
    return collector.finish, incident


def block(incident: Incident) -> dict[str, Any]:
    return cast(dict[str, Any], incident.record["failing_block"])


def test_boot_loaders_are_asked_between_the_answers_and_the_boots(tmp_path: Path) -> None:
    said: list[tuple[Side, str]] = []
    flipped = bytes(5000) + b"\x08" + bytes(3191)
    primary, secondary = BootReader("primary", said), BootReader("secondary", said, content=flipped)
    finish, incident = collect(tmp_path, primary, secondary)
    assert {one.set for one in finish.sides} == {"complete"}
    assert [what for _, what in said[:2]] == ["reply", "reply"]
    before_boot = said[: said.index(("primary", "identify"))]
    assert ("primary", "block") in before_boot
    assert said.index(("secondary", "block")) < said.index(("secondary", "identify"))
    assert primary.asked == secondary.asked == [(80 * 512, 8192)]
    found = block(incident)
    assert (found["sector"], found["sectors"], found["named_by"]) == (80, 16, "link-digest")
    assert (found["bytes_different"], found["byte_offset"]) == (1, 5000)
    for device in (primary, secondary):
        kept = (incident.path / device.side / "block.bin").read_bytes()
        assert kept == device.content
        assert found["sides"][device.side]["sha256"] == hashlib.sha256(kept).hexdigest()
        assert found["sides"][device.side]["t_asked_ns"] <= found["sides"][device.side]["t_read_ns"]


def test_one_that_answers_only_when_it_is_up_is_pulled_first(tmp_path: Path) -> None:
    said: list[tuple[Side, str]] = []
    _, incident = collect(tmp_path, Reader("primary", said), Reader("secondary", said))
    reads = [at for at, one in enumerate(said) if one[1] == "block"]
    pulls = [at for at, one in enumerate(said) if one[1] == "pull"]
    assert len(reads) == len(pulls) == 2 and min(reads) > max(pulls)
    assert max(reads) < said.index(("primary", "rejoin"))
    assert block(incident)["bytes_different"] == 0


def test_a_side_that_was_not_instructed_is_asked_at_once(tmp_path: Path) -> None:
    said: list[tuple[Side, str]] = []
    primary, secondary = Device("primary", said), Reader("secondary", said)
    _, incident = collect(tmp_path, primary, secondary, instructed=("primary",))
    assert len(secondary.asked) == 1
    assert secondary.patience_ns[0] <= blockreads.LATE_NS
    found = block(incident)
    assert list(found["sides"]) == ["secondary"] and found["bytes_different"] is None


def test_a_refusal_and_a_silence_cost_the_block_and_nothing_else(tmp_path: Path) -> None:
    said: list[tuple[Side, str]] = []
    refuses = BootReader("primary", said, answers=["bad offset \x1b[2J", "bad offset \x1b[2J"])
    silent = BootReader("secondary", said, answers=["silent", ""])
    finish, incident = collect(tmp_path, refuses, silent)
    assert {one.set for one in finish.sides} == {"complete"} and finish.data_equal
    assert all(
        one <= blockreads.EARLY_NS for one in (refuses.patience_ns[0], silent.patience_ns[0])
    )
    sides = block(incident)["sides"]
    assert sides["primary"]["reason"] == "bad offset \\x1b[2J" and not sides["primary"]["path"]
    assert not (incident.path / "primary" / "block.bin").exists()
    assert sides["secondary"]["path"] == "secondary/block.bin", "it was asked again when it was up"
    assert block(incident)["bytes_different"] is None


def test_a_silent_reader_takes_nothing_of_the_time_for_the_rejoin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence is longer than all the time for the rejoin."""
    timeout_ns = blockreads.EARLY_NS // 20
    monkeypatch.setattr(blockreads, "LATE_NS", 3 * timeout_ns)
    said: list[tuple[Side, str]] = []
    silent = Reader("secondary", said, answers=["silent"])
    deadlines_ns: list[Ns] = []
    finish, incident = collect(
        tmp_path,
        Device("primary", said),
        silent,
        rejoin_timeout_s=timeout_ns / 1e9,
        rejoin=deadlines_ns.append,
    )
    assert finish.rejoined and silent.took_ns[0] >= blockreads.LATE_NS // 2
    settled_ns = max(
        one["t_ns"] for one in incident.record["recovery"] if one["step"] == Signal.PULLED
    )
    assert deadlines_ns[0] >= settled_ns + silent.took_ns[0] + timeout_ns
    assert block(incident)["sides"]["secondary"]["reason"] == "silent"


def test_a_driver_that_hangs_beyond_its_deadline_costs_neither_a_set_nor_the_rejoin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the bench calls it: through the boundary, which gives the call up."""
    monkeypatch.setattr(boundary, "GRACE_S", 0.05)
    monkeypatch.setattr(blockreads, "EARLY_NS", 50_000_000)
    goes_on = threading.Event()

    class Hangs(BootReader):
        def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: Ns) -> bytes:
            goes_on.wait(LIMIT_S)
            self.said.append((self.side, "block"))
            return self.content

    said: list[tuple[Side, str]] = []
    hung = boundary.guarded(Hangs("primary", said), Controller, "acme", "primary")
    try:
        finish, incident = collect(tmp_path, hung, BootReader("secondary", said))
        assert ("primary", "block") not in said
    finally:
        goes_on.set()
    assert {one.set for one in finish.sides} == {"complete"}, finish
    assert finish.rejoined and finish.data_equal
    sides = block(incident)["sides"]
    assert "read_blocks() has still not returned" in sides["primary"]["reason"]
    assert sides["secondary"]["path"] == "secondary/block.bin"


def test_a_long_write_is_read_up_to_64_kib_and_a_later_hit_may_name_the_place(
    tmp_path: Path,
) -> None:
    said: list[tuple[Side, str]] = []
    nameless = replace_sector(CAUSE, sector=-1)
    primary = BootReader("primary", said, content=bytes(1 << 16))
    _, incident = collect(
        tmp_path,
        primary,
        instructed=("primary",),
        triggers=(nameless, replace_sector(CAUSE, sector=7, sectors=1000)),
    )
    assert primary.asked == [(7 * 512, 1 << 16)]
    assert block(incident)["sectors"] == 128


def test_without_a_place_nothing_is_read_and_without_a_reader_nothing_is_recorded(
    tmp_path: Path,
) -> None:
    said: list[tuple[Side, str]] = []
    nameless = (replace_sector(CAUSE, sector=-1),)
    reader = BootReader("primary", said)
    _, incident = collect(tmp_path / "1", reader, instructed=("primary",), triggers=nameless)
    found = block(incident)
    assert (reader.asked, found["sector"]) == ([], None)
    assert found["sides"]["primary"]["reason"] == blockreads.UNNAMED
    _, incident = collect(tmp_path / "2", Device("primary", said), instructed=("primary",))
    assert "failing_block" not in incident.record


def replace_sector(trigger: Trigger, *, sector: int, sectors: int = 0) -> Trigger:
    return msgspec.structs.replace(trigger, sector=sector, sectors=sectors)
