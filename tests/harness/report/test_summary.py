"""The summary: what happened, why and what to do now come first, then at most ten facts; details
only with ``verbose``."""

from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER
from rich.console import Console

from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.report.summary import MAX_FACTS, summary

LEAD = ["result", "cause", "next"]
FULL: dict[str, Any] = {
    "actions": [
        {"side": "primary", "t_frame_ns": 1, "t_frame_done_ns": 2, "reply": {"ok": True, "status": "ok"},
         "t_warmstart_ns": 9_000_002},
        {"side": "secondary", "t_frame_ns": 3, "error": "the line accepted 0 of 50 bytes"},
    ],
    "sets": {"primary": {"complete": True, "bytes": 6000, "events": 12}, "secondary": {"reason": "no answer"}},
    "event_logs": {"primary": {"held": 12, "since_trigger": 1, "since_write": 3}},
    "lost_acked_writes": None,
    "redrive": {"outcome": "transient", "reason": "acknowledged"},
    "workload": {"driver": "fio", "keeps_journal": False, "writes_acked": 5, "bytes_written": 4096,
                 "verified_bytes": 4096, "wrong_reads_total": 1},
    "capture": {"packets": 10, "bytes_captured": 2048, "frames_stored": 4, "first_packet_no": 7, "kernel_drops": 2,
                "blind": {"primary": "no frame of the primary was seen"}},
    "canaries": {"primary": {"seen": True, "round_trip_us": 5}, "secondary": {"seen": False, "reason": "silent"}},
    "recheck": {"primary": {"agrees": False, "missed": [["torn", 8]]}},
    "notes": ["not armed for 2 s", "second", "third"],
}  # fmt: skip
"""Parts of incident.json that have a fact each, with a problem in most of them."""


def rows(record: dict[str, Any], outcome: str = "pass", *, verbose: bool = False) -> dict[str, str]:
    """Row name -> text; rows of the same name are joined."""
    typed, damage = read_record(record)
    assert not damage
    console = Console(width=900, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(typed, outcome, verbose=verbose))
    found: dict[str, str] = {}
    for line in capture.get().splitlines():
        name, _, value = line.partition("  ")
        found[name] = f"{found[name]} | {value.strip()}" if name in found else value.strip()
    return found


@pytest.fixture
def recorded(tmp_path: Any) -> dict[str, Any]:
    return dict(golden_incidents.unpack(RECEIVER, tmp_path).raw)


def test_it_leads_with_what_happened_why_and_what_to_do(recorded: dict[str, Any]) -> None:
    verdict = {"text": "The data of write 139 first diverged in the secondary.", "conclusive": True}
    found = rows({**recorded, "verdict": {**(recorded.get("verdict") or {}), **verdict}})
    assert list(found)[:3] == LEAD
    assert found["result"].startswith("PASS: ")
    assert "Trigger digest-failed on the secondary console" in found["result"]
    assert "Digest integrity check FAILED" in found["result"]
    assert found["cause"] == verdict["text"]
    assert f"show {recorded['id']} --timeline" in found["next"] and "console.log" in found["next"]


def test_then_at_most_ten_facts_and_the_details_only_when_asked_for(
    recorded: dict[str, Any],
) -> None:
    record = {**recorded, **FULL}
    short, full = rows(record, "fail"), rows(record, "fail", verbose=True)
    facts = [name for name in short if name not in LEAD]
    assert 8 <= len(facts) <= MAX_FACTS == 10
    assert list(full)[: len(short)] == list(short) and len(full) > len(short) + 4
    assert short["instructed"].startswith("primary ok; secondary the line accepted 0 of 50 bytes")
    assert "secondary INCOMPLETE (no answer)" in short["root cause sets"]
    assert "lost acknowledged writes: not known (fio keeps no journal)" in short["data"]
    assert (
        "1 blocks wrong" in short["read back"] and "2 dropped; BLIND: no frame" in short["capture"]
    )
    assert "canary of the secondary was NOT HEARD" in short["consoles"]
    assert "recheck of the primary DIFFERS" in short["consoles"]
    assert short["note"] == "not armed for 2 s (and 2 more: --verbose)"
    assert "1 event between the trigger and the save" in full["primary event log"]
    assert full["primary warmstart"] == "began 9.0 ms after the frame"
    assert "link.pcapng has 4 frames, from number 7 on" in full["capture detail"]
    assert full["note"].endswith("second | third")


def test_the_answers_of_a_side_stand_together(recorded: dict[str, Any]) -> None:
    first, second = recorded["actions"]
    silent = {**first, "reply": {**first["reply"], "ok": False, "status": "no answer"}}
    said = rows({**recorded, "actions": [silent, second, first]}, "fail")["instructed"]
    assert said.startswith("primary no answer, then ok; secondary ok; ")


@pytest.mark.parametrize("budget_us", [None, 1e9, 0.5])
def test_a_slow_reaction_is_said_in_the_summary(
    recorded: dict[str, Any], budget_us: float | None
) -> None:
    recorded["judged_by"] = {"reaction_budget_us": budget_us}
    said = rows(recorded, "fail")["instructed"]
    assert said.startswith("primary ok; secondary ok; ")
    is_slow = budget_us == 0.5
    assert (": the first frame was written" in said) == is_slow
    assert said.endswith("us after the trigger was read, 0.5 us are allowed") == is_slow
    assert ("first frame sent " in said) != is_slow


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("pass", "nothing to do"),
        ("fail", "show last --timeline"),
        ("rig-trouble", "repair the bench"),
        ("interrupted", "run it again"),
        ("open", "wait until"),
    ],
)
def test_a_run_without_a_trigger_says_what_to_do(outcome: str, words: str) -> None:
    found = rows({"reasons": ["no acknowledgement"]}, outcome)
    assert words in found["next"] and "cause" not in found
    assert found["result"] == f"{outcome.upper()}: no acknowledgement."


def test_a_drill_and_what_is_being_recorded_claim_no_more_than_was_seen(
    recorded: dict[str, Any],
) -> None:
    blind = {
        "capture": {"packets": 0, "blind": {"nothing-captured": "no frame", "half": "one way"}}
    }
    drill = rows({**recorded, **blind, "outcome": "drill"}, "drill")
    assert "BLIND: one way" in drill["capture"] and "no frame;" not in drill["capture"]
    assert "a run shows whether the link is seen" in drill["capture"]
    assert drill["next"] == "nothing to do" and "cause" not in drill
    under_way = rows({}, "open")
    assert "cause" not in under_way and under_way["result"] == "OPEN: it is being recorded."


def test_nothing_of_a_device_acts_on_the_terminal(recorded: dict[str, Any]) -> None:
    evil = "\x1b[2J[bold]x"
    record = {
        **recorded,
        **FULL,
        "reasons": [evil],
        "notes": [evil],
        "scenario": evil,
        "bench": evil,
    }
    shown = "".join(rows(record, "fail", verbose=True).values())
    assert "\x1b" not in shown and "\\x1b[2J[bold]x" in shown


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("drbd", "(Wireshark with drbd_tcp: drbd.block_id == 0x2a)"),
        ("nbd", "(Wireshark: nbd.handle == 0x2a)"),
        ("none", "read link.pcapng, packet 7;"),
    ],
)
def test_the_place_on_the_link_is_found_by_the_protocols_own_filter(
    recorded: dict[str, Any], protocol: str, words: str
) -> None:
    trigger = {
        "source": "link",
        "offset_bytes": 7,
        "block_id": "0x2a",
        "rule": "r",
        "side": "primary",
    }
    link = {**(recorded.get("link") or {}), "protocol": protocol}
    found = rows({**recorded, "trigger": trigger, "link": link}, "fail")
    assert words in found["next"]


def test_the_failing_block_is_one_fact_and_a_refusal_is_escaped(recorded: dict[str, Any]) -> None:
    read = {"path": "primary/block.bin", "t_read_ns": 5, "rejoin": "before"}
    sides = {"primary": read, "secondary": {"reason": "no \x1b[2J"}}
    block = {"sector": 80, "sectors": 8, "named_by": "r", "sides": sides}
    assert rows(recorded | {"failing_block": block})["failing block"] == (
        "sectors 80-87: primary read before the sides rejoined, secondary NOT READ (no \\x1b[2J)"
    )
    both = block | {"sides": {"primary": read, "secondary": read}, "bytes_different": 0}
    assert "no byte differs" in rows(recorded | {"failing_block": both})["failing block"]
    full = {**recorded, **FULL, "failing_block": both}
    assert len([one for one in rows(full) if one not in LEAD]) == MAX_FACTS
    assert {*rows(full)} < {*rows(full, verbose=True)} and "note" in rows(full, verbose=True)
    assert "failing block" not in rows(recorded | {"failing_block": {"sides": sides}})
