"""Some points of the kill matrix; ``make kill-matrix`` plays all."""

import killmatrix
import pytest

from freezeframe.harness.edge.netns import missing_capabilities

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


def test_the_matrix_has_each_process_and_phase() -> None:
    points = killmatrix.points()
    assert set(SAMPLE) <= set(points) and len(points) == len(set(points)) >= 70
