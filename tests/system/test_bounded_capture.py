"""A run whose capture on disk is far smaller than its link: verdict and frame number of the trigger
stay right. And frames as long as the simulated link's bench file says."""

import shutil
from pathlib import Path

import pytest
from tshark import tshark

from freezeframe.fixtures.pair import Incidents, run_scenario
from freezeframe.harness.bench.benchfile import builtin_folder, load_bench, load_scenario
from freezeframe.harness.core.link.linkview import LinkView
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.core.verdict.evidence import link_ends
from freezeframe.harness.incidents.inquest import verdict_of
from freezeframe.harness.incidents.store import StoredIncident, link_runs
from freezeframe.harness.runs import campaign

MIB = 1 << 20
ETHERNET_HEADER_BYTES = 14


@pytest.mark.system
def test_an_incident_keeps_the_window_around_its_trigger(
    incidents: Incidents, tmp_path: Path
) -> None:
    text = (
        (builtin_folder() / "sim.toml")
        .read_text()
        .replace('"rules/', f'"{builtin_folder() / "rules"}/')
    )
    path = tmp_path / "small.toml"
    path.write_text(text.replace("[link]\n", "[link]\ncapture_mib = 8\n"))
    scenario = load_scenario(builtin_folder() / "scenarios" / "neg_ack.toml")
    result = campaign.run(load_bench(path), scenario, seed=3, out_dir=incidents.out_dir, keep=True)
    assert result.outcome == "pass", result.reasons
    assert result.incident is not None
    stored, record = StoredIncident.open(result.incident), result.record
    assert sorted(one.name for one in result.incident.glob("link*")) == ["link.pcapng"]
    assert (result.incident / "link.pcapng").stat().st_size <= 8 * MIB + 4096
    capture = record["capture"]
    assert capture["first_packet_no"] > 1 and capture["packets"] > 2 * capture["frames_stored"]
    assert sum(run.frames for run in link_runs(stored.path)) == capture["frames_stored"]
    told = verdict_of(stored)
    assert (told.stage, told.conclusive) == ("response", True)
    view, first_no, found = (
        LinkView(link_ends(stored.record), [LinkRule(name="n", event="neg-ack")]),
        1,
        [],
    )
    for run in link_runs(stored.path):
        for t_ns, frame, number in view.frames(run.data, first_no, 0):
            found += view.feed(t_ns, frame, number, t_ns)
        first_no += run.frames
    trigger = record["trigger"]
    assert trigger["source"] == "link"
    assert [(one.offset_bytes, one.sector) for one in found] == [
        (trigger["offset_bytes"], trigger["sector"])
    ]
    if shutil.which("tshark"):
        wanted = f"frame.number=={trigger['offset_bytes']} && drbd.command==0x0019"
        assert len(tshark(result.incident / "link.pcapng", "-Y", wanted)) == 1


@pytest.mark.parametrize("mtu_bytes", [1500, 9000])
def test_the_simulated_link_has_frames_as_long_as_the_bench_file_says(
    mtu_bytes: int, incidents: Incidents
) -> None:
    bench = load_bench("sim")
    assert bench.simulation is not None and bench.simulation.mtu_bytes == 9000, (
        "jumbo frames by default"
    )
    simulation = bench.simulation.model_copy(update={"mtu_bytes": mtu_bytes})
    result = run_scenario(
        bench.model_copy(update={"simulation": simulation}), "clean", seed=1, incidents=incidents
    )
    assert result.incident is not None and result.outcome == "pass", result.reasons
    lengths = tshark(
        result.incident / "link.pcapng",
        "--disable-protocol",
        "tcp",
        "-T",
        "fields",
        "-e",
        "frame.len",
    )
    assert max(map(int, lengths)) == mtu_bytes + ETHERNET_HEADER_BYTES
    assert result.record["capture"]["digests_checked"] == result.record["capture"]["writes"]
