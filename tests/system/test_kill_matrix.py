"""Some points of the kill matrix; ``make kill-matrix`` plays all."""

import os
from types import SimpleNamespace
from typing import Any, cast

import killmatrix
import pytest

from freezeframe.harness.edge.netns import Namespace, missing_capabilities

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
SAMPLE = (
    killmatrix.Point("run", "command", "acknowledged"),
    killmatrix.Point("run", "linkwatch", "frames out"),
    killmatrix.Point("watch", "command", "frames out"),
)


def test_a_killed_process_costs_no_set_and_leaves_nothing_behind() -> None:
    """Seen: a run whose link's watcher was killed, with the frames out, left both sets on the devices; a killed
    command's temporary directory was removed by nobody."""
    assert killmatrix.run_points(list(SAMPLE)) == []


def test_a_point_at_which_nobody_was_killed_is_not_right() -> None:
    """Seen: in the first phase it was counted as right."""
    ended = SimpleNamespace(
        process=SimpleNamespace(pid=0, poll=lambda: 1), output="", shows=lambda _pattern: True,
        child=lambda _name: None,
    )  # fmt: skip
    pair: Any = SimpleNamespace(device=lambda _side: None)
    for command, phase in (("run", "opening"), ("watch", "starting"), ("watch", "armed")):
        for process in ("command", "primary", *(["reflex"] if command == "watch" else [])):
            said = killmatrix._played(
                pair, killmatrix.Point(command, process, phase), cast(killmatrix.Victim, ended)
            )
            assert said.startswith("nobody was killed")


def test_a_network_namespace_that_is_held_is_found() -> None:
    before = killmatrix.namespaces_of([os.getpid()])
    namespace = Namespace.create()
    try:
        assert len(killmatrix.namespaces_of([os.getpid()]) - before) == 1
    finally:
        namespace.close()
    assert killmatrix.namespaces_of([os.getpid()]) == before


def test_the_matrix_has_each_process_and_phase() -> None:
    points = killmatrix.points()
    assert set(SAMPLE) <= set(points) and len(points) == len(set(points)) >= 70
