"""The requirements of docs/claims.md, each seen in the incident that a whole run leaves."""

from collections.abc import Iterator
from pathlib import Path

import claim_checks
import pytest
from claim_checks import assert_it_ends_with_the_warmstart, folder, rebooted, stored
from console_rules import only_consoles

from freezeframe.firmware_sim.faults import ACK_KINDS
from freezeframe.harness.bench.benchfile import Bench, load_bench, load_scenario
from freezeframe.harness.runs import campaign
from freezeframe.harness.runs.campaign import Result
from freezeframe.harness.wire import control
from freezeframe.harness.wire.faults import FaultKind


def without_link_rules(bench: Bench, path: Path) -> Bench:
    rules = [str(only_consoles(bench.rule_paths(), path))]
    changed = bench.model_copy(update={"policy": bench.policy.model_copy(update={"rules": rules})})
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
        without_link_rules(ff_bench, directory / "consoles.toml"), "bit_flip_receiver", directory
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


@pytest.mark.claim(1)
def test_the_copy_is_monitored_and_an_error_instructs_the_primary(flip: Result) -> None:
    claim_checks.assert_monitored_and_instructed(flip)


@pytest.mark.claim(2)
def test_the_instruction_takes_another_link_than_the_copy(flip: Result, ff_bench: Bench) -> None:
    claim_checks.assert_another_link(flip, ff_bench)


@pytest.mark.claim(3)
def test_the_control_frame_warmstarts_the_primary(flip: Result) -> None:
    claim_checks.assert_primary_warmstarted(flip)


@pytest.mark.claim(4)
@pytest.mark.claim(5)
def test_the_trigger_is_a_predetermined_string_in_the_running_text_log_of_the_copy(
    flip: Result,
) -> None:
    claim_checks.assert_predetermined_string(flip)


@pytest.mark.claim(6)
def test_the_primary_stores_a_root_cause_data_set_when_instructed(flip: Result) -> None:
    claim_checks.assert_set_stored(flip)


@pytest.mark.claim(7)
def test_the_set_is_the_state_at_that_time_and_the_continuous_event_log(flip: Result) -> None:
    claim_checks.assert_state_and_event_log(flip)


@pytest.mark.claim(8)
def test_the_secondary_is_instructed_too(flip: Result) -> None:
    claim_checks.assert_secondary_instructed(flip)


@pytest.mark.claim(9)
def test_a_wrong_response_of_the_secondary_makes_it_recover(refusal: Result) -> None:
    claim_checks.assert_secondary_recovers(refusal)


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
@pytest.mark.parametrize("fault", [*ACK_KINDS, FaultKind.WRONG_BARRIER_COUNT])
def test_a_wrong_response_makes_the_secondary_of_that_system_recover(
    fault: FaultKind, tmp_path: Path
) -> None:
    """Each fault of an answer that the simulated controller knows; the secondary instructs."""
    result = evidence(load_bench("sim_autonomic"), fault, tmp_path)
    assert_the_secondary_instructed(result)
    assert rebooted(result, "secondary")
    assert stored(result, "secondary")["header"]["reason"] == control.Reason.SELF
    assert result.record["data_equal"] is True
