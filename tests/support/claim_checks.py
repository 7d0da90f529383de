"""What must be in the incident of a whole run for requirements 1 to 9 of docs/claims.md, on any bench
with two ``sim_array`` controllers."""

import json
from pathlib import Path
from typing import Any

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.wire import control


def folder(result: Result) -> Path:
    assert result.incident is not None
    return result.incident


def stored(result: Result, side: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder(result) / side / "state.json").read_text())
    return document


def epoch_of(result: Result, side: str) -> int:
    """The boot epoch that the controller was in when it stored its set."""
    return int(stored(result, side)["header"]["boot_epoch"])


def console(result: Result, side: str) -> str:
    return (folder(result) / side / "console.log").read_text(errors="replace")


def frames(result: Result) -> list[bytes]:
    return [bytes.fromhex(one["frame_hex"]) for one in result.record["actions"]]


def rebooted(result: Result, side: str) -> bool:
    return f"boot epoch {epoch_of(result, side) + 1}, warmstart" in console(result, side)


def assert_it_ends_with_the_warmstart(lines: list[str]) -> None:
    """Behind it stand only the writes that were under way at that moment."""
    while "REPL_UNACKED" in lines[-1]:
        lines = lines[:-1]
    assert "WARMSTART" in lines[-1]


def assert_monitored_and_instructed(result: Result) -> None:
    record = result.record
    assert (
        record["capture"]["writes"] > 100
    )  # host writes went to the primary, and their copies over the link
    assert record["trigger"]["side"] == "secondary"
    assert record["actions"][0]["side"] == "primary"
    assert record["actions"][0]["reply"]["ok"] is True
    assert record["trigger"]["t_frame_done_ns"] > record["trigger"]["t_arrival_ns"]


def assert_another_link(result: Result, bench: Bench) -> None:
    captured = (folder(result) / "link.pcapng").read_bytes()
    for frame in frames(result):
        assert len(frame) > 40
        assert frame.strip(b"\0") not in captured
        assert frame[10:30] not in captured
    assert bench.primary.control not in (bench.link.interface, bench.primary.host)


def assert_primary_warmstarted(result: Result) -> None:
    assert result.record["actions"][0]["reply"]["boot_epoch"] == epoch_of(result, "primary") + 1
    assert rebooted(result, "primary")


def assert_predetermined_string(result: Result) -> None:
    trigger = result.record["trigger"]
    assert trigger["source"] == "console"
    text = b"Digest integrity check FAILED"
    log = (folder(result) / "secondary" / "console.log").read_bytes()
    assert log[: trigger["offset_bytes"]].endswith(text)
    assert (
        log.find(text) + len(text) == trigger["offset_bytes"]
    )  # the first one, at its first occurrence


def assert_set_stored(result: Result) -> None:
    header = stored(result, "primary")["header"]
    assert header["incident_id"] == result.record["incident_id_hex"]
    assert header["reason"] == control.Reason.CONSOLE_TRIGGER
    assert result.record["sets"]["primary"]["complete"] is True


def assert_state_and_event_log(result: Result) -> None:
    document = stored(result, "primary")
    assert {"role", "pair_state", "uuids", "queues", "cache", "last_writes", "bitmap"} <= set(
        document["state"]
    )
    lines = (folder(result) / "primary" / "events.log").read_text().splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(document["header"]["first_seq"], document["header"]["next_seq"]))
    assert_it_ends_with_the_warmstart(lines)
    assert any("REPL_SEND" in line for line in lines)


def assert_secondary_instructed(result: Result) -> None:
    assert [one["side"] for one in result.record["actions"]] == ["primary", "secondary"]
    assert result.record["actions"][1]["reply"]["ok"] is True
    assert stored(result, "secondary")["header"]["reason"] == control.Reason.SECOND_CONTROLLER
    assert rebooted(result, "secondary")


def assert_secondary_recovers(result: Result) -> None:
    trigger = result.record["trigger"]
    assert (trigger["source"], trigger["rule"], trigger["side"]) == (
        "link",
        "link-neg-ack",
        "secondary",
    )
    assert rebooted(result, "secondary")
    assert result.record["data_equal"] is True
