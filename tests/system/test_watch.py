"""A watch of several incidents, and what it says of the time between two of them."""

import re
from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs.campaign import run_directory, watch_opened
from freezeframe.harness.runs.session import Silent

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


class Breaking(Silent):
    """Each time the pair is watched, its secondary complains."""

    def __init__(self, opened: OpenBench) -> None:
        self._opened = opened
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("watching;"):
            secondary = self._opened.controllers["secondary"]
            assert isinstance(secondary, Printing)
            secondary.print_line(
                "block drbd0: Digest integrity check FAILED: 0s +4096", deadline_in(5.0)
            )


def test_the_next_incident_says_how_long_nothing_was_watched(tmp_path: Path) -> None:
    with run_directory() as run_dir, OpenBench(load_bench("sim"), run_dir) as opened:
        view = Breaking(opened)
        results = watch_opened(opened, out_dir=tmp_path, view=view)
        first, second = next(results), next(results)
    gaps = [
        [note for note in one.record["notes"] if note.startswith("not armed")]
        for one in (first, second)
    ]
    assert gaps[0] == [] and len(gaps[1]) == 1
    found = re.match(
        r"not armed from \S+ to \S+ UTC \((\d+\.\d) s\), .* from \S+ on its watchers", gaps[1][0]
    )
    assert found is not None
    between_s = (
        second.record["trigger"]["t_arrival_ns"] - first.record["trigger"]["t_match_ns"]
    ) / 1e9
    # Armed again, and soon triggered again; it is rounded.
    assert between_s - 5 < float(found[1]) <= between_s + 0.05
    # It is printed, too, once, where the watch goes on.
    at = view.told.index(gaps[1][0])
    assert view.told[at + 1].startswith("watching;") and view.told.count(gaps[1][0]) == 1
