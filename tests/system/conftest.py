"""With --ff-bench these tests run on that bench: those of its scenarios that it can play, the
others are left out."""

import pytest

from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.bench.checks import unplayable


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    bench = load_bench(config.getoption("--ff-bench"))

    def is_out(item: pytest.Item) -> bool:
        played = (mark.args[0] for mark in item.iter_markers("scenario"))
        return any(unplayable(bench, load_scenario(name)) for name in played)

    left_out = [item for item in items if is_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
