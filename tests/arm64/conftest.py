"""Tests on emulated arm64 controllers need QEMU and Debian's packages: they run where they are
asked for, by --run-arm64 (``make smoke-arm64``)."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-arm64", action="store_true", help="run the controllers on emulated arm64"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-arm64", default=False):
        return
    kept = [item for item in items if item.get_closest_marker("arm64") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
