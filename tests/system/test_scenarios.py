"""Every scenario, whole: write, break, see, freeze, collect, compare. ``--ff-bench`` runs the same
on a rig."""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outputs import contradicted
from truths import ALSO, TRUTHS
from tshark import malformed, tshark

from freezeframe.fixtures.pair import Incidents
from freezeframe.fixtures.pair import run_scenario as run_on
from freezeframe.harness.bench.benchfile import Bench, builtin_scenarios, load_bench, load_scenario
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import plain, verdict_of
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.runs.campaign import Result

FAULTS = [
    name
    for name in builtin_scenarios()
    if load_scenario(name).faults and load_scenario(name).expect.data_equal
]
LEFT_DIFFERENT = ("misplaced_copy", "stale_copy", "resync_denied")
MAY_BE_MENDED = ("misplaced_copy", "stale_copy")
"""A later write may have covered the wrong place, or the resync of what was active the right one."""
"""Of the faults that leave the two sides different, those that are played here; `make nightly` plays all."""
ANSWER = "response"
LINK_VERDICTS: dict[str, set[tuple[str, str]]] = {
    "bit_flip_sender": {("on the link", "data changed")},
    "neg_ack": {(ANSWER, "neg-ack")},
    "lost_ack": {(ANSWER, "lost")},
    "late_ack": {(ANSWER, "late")},
    "wrong_barrier_count": {(ANSWER, "wrong barrier")},
    "stall": {(ANSWER, "late"), ("stall", "not reading")},
}
"""What a verdict on a fault made in the link may say when it says anything: no controller is to
blame."""


def assert_is_whole(path: Path) -> None:
    """The folder has all its parts, its sums are right, and an independent dissector finds nothing
    malformed."""
    summed = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=path, capture_output=True, text=True, timeout=200
    )
    assert summed.returncode == 0, summed.stdout + summed.stderr
    assert malformed(path / "link.pcapng") == []
    for side in ("primary", "secondary"):
        for name in ("console.log", "console.times", "state.json", "events.log", "set.zst"):
            assert (path / side / name).stat().st_size > 0, f"{side}/{name}"
    rows = [json.loads(line) for line in (path / "timeline.jsonl").read_text().splitlines()]
    assert {"trigger", "frame-sent"} <= {row["event"] for row in rows}


@pytest.mark.claim(7, bench="drbd_qemu", case="bit_flip_sender")
@pytest.mark.claim(9, bench="drbd_qemu", case="neg_ack")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.scenario(kind)) for kind in FAULTS]
)
def test_a_fault_is_seen_frozen_collected_and_no_acknowledged_write_is_lost(
    kind: str, ff_bench: Bench, run_scenario: Callable[..., Result]
) -> None:
    result = run_scenario(kind)
    told = result.as_json()
    assert told["outcome"] == "pass", told["reasons"]
    assert told["trigger"]["rule"] in load_scenario(kind).expect.rules
    assert told["trigger"]["side"] in ("primary", "secondary")
    assert {side: one["complete"] for side, one in told["sets"].items()} == {
        "primary": True,
        "secondary": True,
    }
    assert told["data_equal"] is True
    assert told["lost_acked_writes"] == 0
    assert told["capture_drops"] == 0
    assert result.incident is not None
    assert_is_whole(result.incident)
    verdict = told["verdict"]
    if ff_bench.rig is None:
        assert verdict["conclusive"], verdict["text"]
        assert (verdict["stage"], verdict["kind"], verdict["side"]) == TRUTHS[kind]
        assert [one["kind"] for one in verdict["also"]] == ([ALSO[kind]] if kind in ALSO else [])
    else:
        assert_is_of_the_nodes(kind, result.incident, told)
    stored = StoredIncident.open(result.incident)
    assert json.dumps(stored.raw["verdict"]) == json.dumps(verdict), "as it is read back"
    dossier = Dossier(stored)
    again = verdict_of(dossier)
    assert json.dumps(plain(again)) == json.dumps(verdict), (
        "replayed without the bench, byte for byte"
    )
    assert contradicted(dossier, again) == ""
    assert stored.altered() == []
    for side, one in told["sets"].items():
        pulled = (result.incident / side / "set.zst").read_bytes()
        assert hashlib.sha256(pulled).hexdigest() == one["sha256"]
        assert len(pulled) == one["bytes"]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.scenario(kind)) for kind in LEFT_DIFFERENT]
)
def test_what_no_resync_mends_is_named_and_the_data_differ(
    kind: str, run_scenario: Callable[..., Result]
) -> None:
    result = run_scenario(kind)
    told = result.as_json()
    assert told["outcome"] == "pass", told["reasons"]
    assert told["trigger"]["rule"] in load_scenario(kind).expect.rules
    assert told["data_equal"] is False or kind in MAY_BE_MENDED
    verdict = told["verdict"]
    assert (verdict["stage"], verdict["kind"], verdict["side"]) == TRUTHS[kind], verdict["text"]
    left = ["omitted"] if kind == "stale_copy" and not told["data_equal"] else []
    assert [one["kind"] for one in verdict["also"]] == ([ALSO[kind]] if kind in ALSO else left)
    assert result.incident is not None
    dossier = Dossier(StoredIncident.open(result.incident))
    assert json.dumps(plain(verdict_of(dossier))) == json.dumps(verdict)
    assert contradicted(dossier, verdict_of(dossier)) == ""


def assert_is_of_the_nodes(kind: str, incident: Path, told: dict[str, Any]) -> None:
    """The primary's kernel log from before its crash, the crash in it, and how soon each side began
    to crash."""
    record = (incident / "primary" / "events.log").read_text()
    before, note, after = record.partition("freezeframe: warmstart")
    assert note
    assert "role( Secondary -> Primary )" in before
    assert "sysrq: Trigger a crash" in after
    assert "Kernel panic - not syncing: sysrq triggered crash" in after
    assert 0 < told["trigger"]["reaction_us"] < 1_000_000
    for action in told["actions"]:
        assert 0 < action["warmstart_us"] < 5_000_000, action
    if kind == "bit_flip_sender":
        noticed = before + after.partition("sysrq: Trigger a crash")[0]
        assert re.search(
            r"(sock was|meta connection) shut down by peer|conn\( Connected -> \w+ \)", noticed
        )
        console = (incident / "secondary" / "console.log").read_text(errors="replace")
        assert "Digest integrity check FAILED" in console
        assert "conn( Connected -> ProtocolError )" in console
    if told["verdict"]["conclusive"]:
        assert (told["verdict"]["stage"], told["verdict"]["kind"]) in LINK_VERDICTS[kind]


def test_a_healthy_pair_triggers_nothing(
    ff_bench: Bench, run_scenario: Callable[..., Result]
) -> None:
    result = run_scenario("clean")
    assert result.outcome == "pass", result.reasons
    assert result.record["trigger"] is None
    assert result.record["data_equal"] is True
    capture = result.record["capture"]
    assert capture["digests_checked"] == capture["writes"]
    if ff_bench.rig is None:
        assert capture["writes"] == result.record["workload"]["writes_acked"]
    else:  # a Linux host cache cuts and joins writes
        assert capture["writes"] > 0
    assert capture["kernel_drops"] == capture["gaps"] == 0


def test_the_capture_holds_every_replicated_byte(
    run_scenario: Callable[..., Result], incidents: Incidents
) -> None:
    """tshark, which shares no code with us, counts as many writes and acknowledgements as the
    ledger."""
    result = run_scenario("clean")
    assert result.incident is not None
    shown = tshark(
        result.incident / "link.pcapng", "-Y", "drbd", "-T", "fields", "-e", "drbd.command"
    )
    commands = [one for line in shown for one in line.split(",")]
    assert commands.count("0x0000") == result.record["capture"]["writes"]
    assert commands.count("0x0016") == result.record["capture"]["acks"]
    frames = sum(1 for _ in read_frames(result.incident / "link.pcapng"))
    assert frames == result.record["capture"]["packets"]


@pytest.mark.scenario("bit_flip_receiver")
def test_the_same_seed_breaks_the_same_write(run_scenario: Callable[..., Result]) -> None:
    def sector(result: Result) -> str:
        assert result.incident is not None
        console = (
            StoredIncident.open(result.incident).path / "secondary" / "console.log"
        ).read_text()
        return console.partition("Digest integrity check FAILED: ")[2].splitlines()[0]

    first, again, other = (
        sector(run_scenario("bit_flip_receiver", seed=seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_one_uart_a_controller_carries_console_and_control_frames(incidents: Incidents) -> None:
    result = run_on(load_bench("sim_shared"), "bit_flip_receiver", seed=3, incidents=incidents)
    assert result.outcome == "pass", result.reasons
    assert result.incident is not None
    assert_is_whole(result.incident)
    for side in ("primary", "secondary"):
        console = (result.incident / side / "console.log").read_bytes()
        assert (
            b"boot epoch 1" in console
        )  # from before the reflex, when the identity was asked for on the same line
        assert b"boot epoch 2, warmstart" in console
