"""The requirements of docs/claims.md, each seen in the incident that a whole run leaves."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freezeframe.harness.bench.benchfile import Bench, load_bench, load_scenario
from freezeframe.harness.runs import campaign
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.wire import control


def only_consoles(bench: Bench, path: Path) -> Bench:
    """The bench without its link rules: the end of the link would race the line that says why it
    ended."""
    lines = []
    for file in bench.rule_paths():
        for rule in tomllib.loads(file.read_text())["rule"]:
            if rule["source"] == "console":
                lines += [
                    "[[rule]]",
                    *(f"{key} = {json.dumps(value)}" for key, value in rule.items()),
                ]
    path.write_text("\n".join(lines))
    changed = bench.model_copy(
        update={"policy": bench.policy.model_copy(update={"rules": [str(path)]})}
    )
    changed._path = bench.path
    return changed


def evidence(bench: Bench, name: str, out_dir: Path) -> Result:
    result = campaign.run(bench, load_scenario(name), seed=11, out_dir=out_dir)
    assert result.outcome == "pass", result.reasons
    return result


@pytest.fixture(scope="module")
def flip(ff_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """A copied write arrives damaged; the harness instructs, by what the consoles say alone."""
    directory = tmp_path_factory.mktemp("flip")
    yield evidence(
        only_consoles(ff_bench, directory / "consoles.toml"), "bit_flip_receiver", directory
    )


@pytest.fixture(scope="module")
def refusal(ff_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """The secondary's response is wrong; the harness instructs."""
    yield evidence(ff_bench, "neg_ack", tmp_path_factory.mktemp("refusal"))


@pytest.fixture(scope="module")
def autonomic_flip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """A copied write arrives damaged; the secondary instructs."""
    yield evidence(
        load_bench("sim_autonomic"), "bit_flip_receiver", tmp_path_factory.mktemp("autonomic-flip")
    )


@pytest.fixture(scope="module")
def autonomic_refusal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """The secondary's response is wrong; the secondary instructs."""
    yield evidence(
        load_bench("sim_autonomic"), "neg_ack", tmp_path_factory.mktemp("autonomic-refusal")
    )


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


@pytest.mark.claim(1)
def test_the_copy_is_monitored_and_an_error_instructs_the_primary(flip: Result) -> None:
    record = flip.record
    assert (
        record["capture"]["writes"] > 100
    )  # host writes went to the primary, and their copies over the link
    assert record["trigger"]["side"] == "secondary"
    assert record["actions"][0]["side"] == "primary"
    assert record["actions"][0]["reply"]["ok"] is True
    assert record["trigger"]["t_frame_done_ns"] > record["trigger"]["t_arrival_ns"]


@pytest.mark.claim(2)
def test_the_instruction_takes_another_link_than_the_copy(flip: Result) -> None:
    captured = (folder(flip) / "link.pcapng").read_bytes()
    for frame in frames(flip):
        assert len(frame) > 40
        assert frame.strip(b"\0") not in captured
        assert frame[10:30] not in captured
    bench = load_bench("sim")
    assert bench.primary.control not in (bench.link.interface, bench.primary.host)


@pytest.mark.claim(3)
def test_the_control_frame_warmstarts_the_primary(flip: Result) -> None:
    assert flip.record["actions"][0]["reply"]["boot_epoch"] == epoch_of(flip, "primary") + 1
    assert rebooted(flip, "primary")


@pytest.mark.claim(4)
@pytest.mark.claim(5)
def test_the_trigger_is_a_predetermined_string_in_the_running_text_log_of_the_copy(
    flip: Result,
) -> None:
    trigger = flip.record["trigger"]
    assert trigger["source"] == "console"
    text = b"Digest integrity check FAILED"
    log = (folder(flip) / "secondary" / "console.log").read_bytes()
    assert log[: trigger["offset_bytes"]].endswith(text)
    assert (
        log.find(text) + len(text) == trigger["offset_bytes"]
    )  # the first one, at its first occurrence


@pytest.mark.claim(6)
def test_the_primary_stores_a_root_cause_data_set_when_instructed(flip: Result) -> None:
    header = stored(flip, "primary")["header"]
    assert header["incident_id"] == flip.record["incident_id_hex"]
    assert header["reason"] == control.Reason.CONSOLE_TRIGGER
    assert flip.record["sets"]["primary"]["complete"] is True


@pytest.mark.claim(7)
def test_the_set_is_the_state_at_that_time_and_the_continuous_event_log(flip: Result) -> None:
    document = stored(flip, "primary")
    assert {"role", "pair_state", "uuids", "queues", "cache", "last_writes", "bitmap"} <= set(
        document["state"]
    )
    lines = (folder(flip) / "primary" / "events.log").read_text().splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(document["header"]["first_seq"], document["header"]["next_seq"]))
    assert_it_ends_with_the_warmstart(lines)
    assert any("REPL_SEND" in line for line in lines)


@pytest.mark.claim(8)
def test_the_secondary_is_instructed_too(flip: Result) -> None:
    assert [one["side"] for one in flip.record["actions"]] == ["primary", "secondary"]
    assert flip.record["actions"][1]["reply"]["ok"] is True
    assert stored(flip, "secondary")["header"]["reason"] == control.Reason.SECOND_CONTROLLER
    assert rebooted(flip, "secondary")


@pytest.mark.claim(9)
def test_a_wrong_response_of_the_secondary_makes_it_recover(refusal: Result) -> None:
    trigger = refusal.record["trigger"]
    assert (trigger["source"], trigger["rule"], trigger["side"]) == (
        "link",
        "link-neg-ack",
        "secondary",
    )
    assert rebooted(refusal, "secondary")
    assert refusal.record["data_equal"] is True


def assert_the_secondary_instructed(result: Result) -> None:
    assert result.record["actions"] == []  # no frame of the harness
    assert stored(result, "primary")["header"]["reason"] == control.Reason.PEER_TRIGGER
    assert rebooted(result, "primary")


@pytest.mark.claim(10)
def test_the_monitor_may_be_the_secondarys_own(autonomic_flip: Result) -> None:
    assert_the_secondary_instructed(autonomic_flip)
    assert autonomic_flip.record["data_equal"] is True
    assert autonomic_flip.record["lost_acked_writes"] == 0


@pytest.mark.claim(11)
def test_its_second_link_runs_between_the_two_controllers(autonomic_flip: Result) -> None:
    events = (folder(autonomic_flip) / "secondary" / "events.log").read_text()
    assert "PEER_INSTRUCTED" in events
    id_on_the_frame = bytes.fromhex(stored(autonomic_flip, "primary")["header"]["incident_id"])
    assert id_on_the_frame not in (folder(autonomic_flip) / "link.pcapng").read_bytes()


@pytest.mark.claim(12)
def test_the_primary_of_that_system_stores_its_set(autonomic_flip: Result) -> None:
    assert autonomic_flip.record["sets"]["primary"]["complete"] is True
    assert (
        stored(autonomic_flip, "primary")["header"]["incident_id"]
        != "00" * control.INCIDENT_ID_BYTES
    )


@pytest.mark.claim(13)
def test_the_set_of_that_system_is_state_and_event_log(autonomic_flip: Result) -> None:
    document = stored(autonomic_flip, "primary")
    assert document["state"]["last_writes"]
    lines = (folder(autonomic_flip) / "primary" / "events.log").read_text().splitlines()
    assert len(lines) == document["header"]["next_seq"] - document["header"]["first_seq"]
    assert_it_ends_with_the_warmstart(lines)


@pytest.mark.claim(14)
def test_a_wrong_response_makes_the_secondary_of_that_system_recover(
    autonomic_refusal: Result,
) -> None:
    assert_the_secondary_instructed(autonomic_refusal)
    assert rebooted(autonomic_refusal, "secondary")
    assert stored(autonomic_refusal, "secondary")["header"]["reason"] == control.Reason.SELF
    assert autonomic_refusal.record["data_equal"] is True
