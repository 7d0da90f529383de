"""``explore`` on a Dask cluster of two workers: the same histories as without."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import freezeframe, told
from distributed import LocalCluster

from freezeframe.fixtures.explore.runner import Explored, explore, seeds
from freezeframe.harness.errors import RigError, UsageError

HISTORIES = 30
"""Two chunks, so that both workers play."""
BUG = "NeverDisarms"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def told_by(found: Explored) -> tuple[object, ...]:
    failures = [(one.seed, one.violation, one.history.as_json()) for one in found.failures]
    return found.runs, found.incidents, found.virtual_s, failures


@pytest.mark.parametrize("mutant", ["", BUG])
def test_a_cluster_plays_the_same_histories(address: str, mutant: str) -> None:
    numbers = seeds(HISTORIES, 7)
    alone = explore(numbers, mutant=mutant, max_failures=2)
    assert told_by(explore(numbers, mutant=mutant, max_failures=2, dask=address)) == told_by(alone)
    assert bool(alone.failures) == bool(mutant)


def test_the_command_takes_the_address(address: str, tmp_path: Path) -> None:
    done = freezeframe("explore", "--runs", "5", "--dask", address, "--json", cwd=tmp_path)
    assert done.returncode == 0 and told(done)["runs"] == 5, done.stderr
    done = freezeframe("explore", "--dask", address, "--workers", "2", cwd=tmp_path)
    assert done.returncode == 2 and "the cluster has its own workers" in done.stderr


def test_an_address_without_a_scheduler_is_trouble_of_the_rig() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RigError, match="no scheduler answers there"):
        explore(seeds(1, 1), dask=f"tcp://127.0.0.1:{port}")
    with pytest.raises(UsageError, match="it is tcp://"):
        explore(seeds(1, 1), dask="nonesuch://x")
