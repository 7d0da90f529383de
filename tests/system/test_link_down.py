"""A link whose cable is pulled is trouble of the rig, said in these words; not a device's failure."""

import threading
from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.edge.netns import INTERFACE, Namespace, missing_capabilities
from freezeframe.harness.edge.packet_ring import PacketRing
from freezeframe.harness.runs.campaign import ScenarioRun
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.runs.session import Session
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch
from freezeframe.harness.runs.workload import Workload

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]

LIMIT_S = 120.0
NO_CARRIER = f"the interface {INTERFACE} has no carrier: its cable is out, or what is at its other end is off"


def set_link(run_dir: Path, state: str) -> None:
    """The primary's end; the capture is at the secondary's."""

    def do() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=INTERFACE)[0], state=state)

    entry = Namespace.open(str((run_dir / "primary.netns").readlink()))
    try:
        entry.run(do)
    finally:
        entry.close()


def test_the_carrier_is_what_it_is_now_not_what_the_kernel_notes_later() -> None:
    """Seen: a run on a whole link said that its cable was out, as IFF_RUNNING comes up to a second late."""
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir):
        ring = PacketRing(INTERFACE, namespace=str((run_dir / "secondary.netns").readlink()))
        for _ in range(10):
            assert ring.down() == ""
            set_link(run_dir, "down")
            assert ring.down() == NO_CARRIER
            set_link(run_dir, "up")
        ring.close()


class Pulling(ScenarioRun):
    """After the host's writes the cable is pulled, and stays out."""

    def _compare_at_the_end(self, session: Session, workload: Workload) -> None:
        set_link(session.opened.run_dir, "down")
        for _ in range(int(10 * LIMIT_S)):
            session.pump(0.1)
            if session.lost_evidence:
                break  # what a comparison would say of a pair that is apart is another test's


def test_a_run_whose_cable_is_pulled_is_rig_trouble_in_these_words(tmp_path: Path) -> None:
    run = Pulling(
        load_bench("sim"), load_scenario("clean"), seed=1, out_dir=tmp_path, view=Silent(), keep=True
    )  # fmt: skip
    result = run.execute()
    assert result.outcome == "rig-trouble", result.reasons
    assert f"the link went down, and no controller restarted: {NO_CARRIER}" in str(result.error)
    assert f"the link is down: {NO_CARRIER}" in result.record["notes"]


class Plugging(Silent):
    """Once armed the cable is pulled; once that is reported it is plugged in again."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.is_pulled = False
        self.said: list[str] = []
        self.seen: list[HealthStatus] = []
        self.is_over = threading.Event()

    def phase(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("watching;") and not self.is_pulled:
            self.is_pulled = True
            set_link(self._opened.run_dir, "down")
        elif text == f"the link is down: {NO_CARRIER}":
            set_link(self._opened.run_dir, "up")
        elif text == "the link is down: over":
            self.is_over.set()

    def health(self, status: HealthStatus) -> None:
        self.seen.append(status)


def test_a_watch_is_degraded_while_the_cable_is_out(tmp_path: Path) -> None:
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        ring = PacketRing(INTERFACE, namespace=str((run_dir / "secondary.netns").readlink()))
        assert ring.down() == ""
        view = Plugging(opened)
        with Watch(opened, out_dir=tmp_path, view=view):
            assert view.is_over.wait(LIMIT_S), view.said
        # A busy machine may see the devices' own words first; then the bench is disarmed and collects.
        degraded = [one.why for one in view.seen if one.health is Health.DEGRADED]
        disarmed = [one.why for one in view.seen if one.health is Health.DISARMED]
        assert (
            any(f"the link is down: {NO_CARRIER}" in one for one in degraded) or len(disarmed) > 2
        )
        assert ring.down() == ""
        ring.close()
