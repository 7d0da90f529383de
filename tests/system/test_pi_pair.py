"""Two Raspberry Pis without the Pis (pi_pair.py), both controllers on the Python of this test."""

from pathlib import Path

import pytest
from pi_pair import controllers, unit_command
from truths import TRUTHS

from freezeframe.firmware_sim import serve
from freezeframe.harness.bench.benchfile import load_scenario
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge import netns


@pytest.mark.parametrize("side", SIDES)
def test_the_units_are_what_firmware_sim_understands(side: str) -> None:
    options = serve.parser().parse_args(unit_command(side)[4:])
    assert options.side == side and options.console == "/dev/ttyAMA0@921600"
    assert (options.replication_connect or options.replication_listen) == "10.77.0.2:7788"


@pytest.mark.system
@pytest.mark.skipif(
    bool(netns.missing_capabilities()), reason="needs root: makes network namespaces"
)
def test_a_run_on_two_pis(tmp_path: Path) -> None:
    with controllers(tmp_path) as pair:
        told = pair.run("bit_flip_receiver", pair.bench_file())
    assert told["data_equal"] is True and told["lost_acked_writes"] == 0
    assert {side: one["complete"] for side, one in told["sets"].items()} == {
        "primary": True,
        "secondary": True,
    }
    assert (Path(told["incident"]) / "secondary/console.log").stat().st_size > 0


@pytest.mark.system
@pytest.mark.skipif(
    bool(netns.missing_capabilities()), reason="needs root: makes network namespaces"
)
@pytest.mark.parametrize("like", ["pi_pair.toml", "lab.toml.example"])
def test_digests_are_checked_by_the_settings_of_a_shipped_bench_file(
    like: str, tmp_path: Path
) -> None:
    """No capture of a standing pair shows which digest its ends agreed on."""
    with controllers(tmp_path) as pair:
        bench = pair.bench_file(like)
        runs = {scenario: pair.run(scenario, bench) for scenario in ("clean", "bit_flip_sender")}
    assert all(told["digests_checked"] > 0 for told in runs.values())
    flipped = runs["bit_flip_sender"]
    assert flipped["trigger"]["rule"] in load_scenario("bit_flip_sender").expect.rules
    verdict = flipped["verdict"]
    assert (verdict["stage"], verdict["kind"], verdict["side"]) == TRUTHS["bit_flip_sender"]
