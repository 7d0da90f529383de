"""Both units of docs/systemd on aarch64, installed as docs/pi.md says, and a native harness."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import arm64
import claim_checks
import pytest
from arm64 import Arm64
from pi_pair import PiPair, controllers
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.runs.campaign import Result

pytestmark = [
    pytest.mark.arm64,
    pytest.mark.system,
    pytest.mark.timeout(900),  # the first one makes the root
    pytest.mark.xdist_group("arm64"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Arm64:
    return arm64.opened(tmp_path_factory.mktemp("arm64"))


@pytest.fixture(scope="module")
def pair(machine: Arm64, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PiPair]:
    """Both controllers, by the ExecStart of their units."""

    def emulated(words: list[str], folder: Path) -> list[str]:
        assert words[0] == arm64.INTERPRETER
        return machine.command(*words, shown=[folder])

    with controllers(tmp_path_factory.mktemp("pair"), emulated) as running:
        yield running


def passed(pair: PiPair, scenario: str, bench: Path) -> Result:
    incident = Path(pair.run(scenario, bench)["incident"])
    record = json.loads((incident / "incident.json").read_text())
    return Result(outcome="pass", record=record, incident=incident)


@pytest.fixture(scope="module")
def flip(pair: PiPair) -> Result:
    return passed(pair, "bit_flip_receiver", pair.bench_file(consoles_alone=True))


@pytest.fixture(scope="module")
def refusal(pair: PiPair) -> Result:
    return passed(pair, "neg_ack", pair.bench_file())


def printed(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_interpreter_of_the_units_is_an_aarch64_program_and_starts_others(
    machine: Arm64,
) -> None:
    program = (
        "import os, subprocess, sys; print(os.uname().machine, sys.executable, flush=True); "
        "sys.argv[1:] and subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    out = printed(machine.command(arm64.INTERPRETER, "-c", program, program))
    assert out.splitlines() == [f"aarch64 {arm64.INTERPRETER}"] * 2


def test_a_machine_that_cannot_emulate_says_what_to_do(machine: Arm64, tmp_path: Path) -> None:
    cannot = replace(machine, line=tmp_path / "no.conf", machine=tmp_path / "nothing")
    done = subprocess.run(
        cannot.command("true"), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == arm64.EXIT_RIG
    assert "has no register of interpreters per user namespace" in done.stderr
    assert "As root: apt-get install qemu-user-static" in done.stderr


def test_a_healthy_pair_triggers_nothing(pair: PiPair) -> None:
    told = pair.run("clean", pair.bench_file())
    assert told["trigger"] is None and told["actions"] == []


@pytest.mark.claim(1, bench="arm64")
def test_an_error_of_the_copy_instructs_the_primary_on_arm64(flip: Result) -> None:
    claim_checks.assert_monitored_and_instructed(flip)
    assert flip.record["data_equal"] is True and flip.record["lost_acked_writes"] == 0


@pytest.mark.claim(2, bench="arm64")
def test_the_instruction_to_arm64_takes_another_link(flip: Result, pair: PiPair) -> None:
    claim_checks.assert_another_link(flip, load_bench(str(pair.bench_file())))


@pytest.mark.claim(3, bench="arm64")
def test_the_control_frame_warmstarts_the_arm64_primary(flip: Result) -> None:
    claim_checks.assert_primary_warmstarted(flip)


@pytest.mark.claim(4, 5, bench="arm64")
def test_the_trigger_is_a_predetermined_string_in_the_log_of_an_arm64_console(flip: Result) -> None:
    claim_checks.assert_predetermined_string(flip)


@pytest.mark.claim(6, bench="arm64")
def test_the_arm64_primary_stores_its_set(flip: Result) -> None:
    claim_checks.assert_set_stored(flip)


@pytest.mark.claim(7, bench="arm64")
def test_the_set_of_arm64_is_state_and_event_log(flip: Result) -> None:
    claim_checks.assert_state_and_event_log(flip)


@pytest.mark.claim(8, bench="arm64")
def test_the_arm64_secondary_is_instructed_too(flip: Result) -> None:
    claim_checks.assert_secondary_instructed(flip)
    assert {side: one["complete"] for side, one in flip.record["sets"].items()} == {
        "primary": True,
        "secondary": True,
    }


@pytest.mark.claim(9, bench="arm64")
def test_a_wrong_response_of_the_arm64_secondary_makes_it_recover(refusal: Result) -> None:
    claim_checks.assert_secondary_recovers(refusal)
