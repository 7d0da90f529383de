"""Tests of the rig boot virtual machines: they run where they are asked for, by --run-rig (``make
test-rig``)."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-rig", action="store_true", help="boot the nodes of the rig")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-rig", default=False):
        return
    kept = [item for item in items if item.get_closest_marker("rig") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
